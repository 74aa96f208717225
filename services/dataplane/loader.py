"""Programs and maps into the kernel, pinned, by way of the compiler's short-lived process.

A restart finds its programs pinned and compiles nothing, unless the C, the compiler's flags, the node's configuration
or the limits changed, or a pin is missing. Maps outlive all of that: a map whose size was changed keeps the one that it
has, and its entries, until the node is drained; a warning at each start says so.
Order is a contract: maps first (they are made as programs load), then programs, then attaching (effects.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from bus.telemetry import logger
from services.dataplane import bpf_syscall, layouts
from services.dataplane.bpf_syscall import Map
from services.dataplane.layouts import MapShape
from services.dataplane.limits import declared_maps, limit

log = logger(__name__)

HERE = Path(__file__).parent

UNITS: dict[str, list[str]] = {
    "pod": ["from_pod", "to_pod"],
    "netdev": ["from_netdev"],
    "overlay": ["from_overlay"],
    "sock": ["connect4", "sendmsg4", "recvmsg4", "getpeername4"],
}
TC_PROGRAMS = ("from_pod", "to_pod", "from_netdev", "from_overlay")
SOCKET_PROGRAMS = {"connect4": 10, "sendmsg4": 14, "recvmsg4": 19, "getpeername4": 29}  # enum bpf_attach_type


class LoadError(Exception):
    """The datapath could not be loaded; the text says why and what to do."""


class LayoutError(LoadError):
    """A pinned map is not of this version: what it holds is not given up by itself."""


@dataclass(frozen=True, kw_only=True)
class DatapathConfig:
    """What is compiled in. Changing any of it compiles anew and replaces the programs; maps stay as they are."""

    node_address: str
    device_index: int
    tunnel_index: int = 0  # 0: native routing
    direct_routes: bool = True
    masquerade: bool = True
    native_cidr: str = ""  # destinations that are never masqueraded
    ct_max: int = 524_288
    nat_max: int = 524_288
    sock_reverse_max: int = 262_144

    def defines(self) -> dict[str, str]:
        cidr = ipaddress.ip_network(self.native_cidr) if self.native_cidr else None
        return {
            "NODE_ADDRESS": _be32(self.node_address),
            "DEVICE_INDEX": str(self.device_index),
            "TUNNEL_INDEX": str(self.tunnel_index),
            "DIRECT_ROUTES": str(int(self.direct_routes)),
            "MASQUERADE": str(int(self.masquerade)),
            "NATIVE_CIDR": _be32(str(cidr.network_address)) if cidr else "0",
            "NATIVE_MASK": _be32(str(cidr.netmask)) if cidr else "0xffffffff",
            "CT_MAX": str(self.ct_max),
            "NAT_MAX": str(self.nat_max),
            "SOCK_REVERSE_MAX": str(self.sock_reverse_max),
        }


def _be32(address: str) -> str:
    """The number that the kernel reads where this address stands in network byte order."""
    return f"0x{struct.unpack('=I', socket.inet_aton(address))[0]:08x}u"


def digest(config: DatapathConfig) -> str:
    """Changes when the programs would: the C, what compiles it and how, the limits and the configuration."""
    found = hashlib.sha256(json.dumps([config.defines(), UNITS], sort_keys=True).encode())
    for path in sources():
        found.update(f"{path.relative_to(HERE)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def sources() -> list[Path]:
    """Every file of ours that the programs are made of or by."""
    return [HERE / "compiler.py", *sorted((HERE / "bpf").rglob("*.[ch]")), *sorted((HERE / "kernel").rglob("*.h"))]


def check_maps(pin_dir: Path) -> None:
    """Raises: LayoutError: a pinned map is of another kind or shape than this version writes; nothing was touched."""
    for name, shape in layouts.MAPS.items():
        path = pin_dir / "maps" / name
        if not path.exists():
            continue
        found = Map.open(path)
        found.close()
        if MapShape(found.info.key_bytes, found.info.value_bytes) != shape:
            raise LayoutError(
                f"the pinned map {path} has entries of {found.info.key_bytes}+{found.info.value_bytes} bytes and this "
                f"version writes {shape.key_bytes}+{shape.value_bytes}: drain the node, remove the file, start again"
            )
        if found.info.type != declared_maps()[name].type:
            raise LayoutError(
                f"the pinned map {path} is of the kernel's type {found.info.type} and this version makes it of type "
                f"{declared_maps()[name].type}: drain the node, remove the file, start again"
            )


def resized_maps(config: DatapathConfig, pin_dir: Path) -> dict[str, tuple[int, int]]:
    """Pinned maps that were made for another number of entries than is wanted now: (entries, wanted entries)."""
    found: dict[str, tuple[int, int]] = {}
    for name, declared in declared_maps().items():
        path = pin_dir / "maps" / name
        if path.exists():
            size = config.defines().get(declared.size, declared.size)
            wanted = int(size) if size.isdigit() else limit(size)
            pinned = Map.open(path)
            pinned.close()
            if pinned.info.max_entries != wanted:
                found[name] = pinned.info.max_entries, wanted
    return found


@dataclass(frozen=True)
class Loaded:
    """Whether the compiler ran, and instructions by program when it did."""

    compiled: bool
    instructions: dict[str, int]


async def load(config: DatapathConfig, pin_dir: Path, state_dir: Path) -> Loaded:
    """Have every program and map pinned under `pin_dir`, compiling only what changed since the last time.

    Raises: LoadError: the compiler or the verifier refused, or a pinned map is of another kind or shape.
    """
    check_maps(pin_dir)
    for name, (entries, wanted_entries) in resized_maps(config, pin_dir).items():
        log.warning(
            "a map keeps its size: to change it, drain the node, remove the map's file and start again",
            file=str(pin_dir / "maps" / name),
            entries=entries,
            wanted=wanted_entries,
        )
    for folder in ("maps", "programs", "links"):
        (pin_dir / folder).mkdir(parents=True, exist_ok=True)
    stamp = state_dir / "programs.json"
    wanted = digest(config)
    programs = [pin_dir / "programs" / name for unit in UNITS.values() for name in unit]
    maps = [pin_dir / "maps" / name for name in layouts.MAPS]
    if _stamped(stamp) == wanted and all(each.exists() for each in (*programs, *maps)):
        return Loaded(compiled=False, instructions={})
    stamp.unlink(missing_ok=True)
    instructions = await _compile(config, pin_dir)
    check_maps(pin_dir)
    stamp.write_text(json.dumps({"digest": wanted}))
    return Loaded(compiled=True, instructions=instructions)


def _stamped(stamp: Path) -> str:
    try:
        return str(json.loads(stamp.read_text())["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


async def _compile(config: DatapathConfig, pin_dir: Path) -> dict[str, int]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.dataplane.compiler",
        cwd=HERE.parent.parent,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    request = json.dumps({"pin_dir": str(pin_dir), "defines": config.defines(), "units": UNITS})
    try:
        out, err = await child.communicate(request.encode())
    except asyncio.CancelledError:
        child.kill()
        await child.wait()
        raise
    if child.returncode:
        words = err.decode(errors="replace").strip().splitlines()
        raise LoadError("the datapath did not load: " + "\n".join(words[-40:]))
    programs: dict[str, int] = json.loads(out)["programs"]
    return programs


def open_program(pin_dir: Path, name: str) -> int:
    """A file descriptor of a pinned program; the caller closes it."""
    return bpf_syscall.open_pinned(pin_dir / "programs" / name)
