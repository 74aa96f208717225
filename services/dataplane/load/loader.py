"""Programs and maps into the kernel, pinned, by way of the compiler's short-lived process.

A restart finds its programs pinned and compiles nothing, unless the C, the compiler's flags, the node's configuration
or the limits changed, or a pin is missing or holds something else than was pinned there. Maps outlive all of that: what
a map of an older layout or of another size holds goes into the one that takes its place (migrate.py).
Order is a contract: maps first (they are made as programs load), then steps, which others jump to, then those others,
then attaching (kernel/maps.py). Programs of before jump to steps of before until the last of them is gone (steps.h).
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bus.telemetry import logger
from services.dataplane.batch import answered, to_the_end
from services.dataplane.kernel import bpf
from services.dataplane.kernel import steps as own
from services.dataplane.kernel.bpf import Map
from services.dataplane.load import migrate
from services.dataplane.shapes import layouts
from services.dataplane.shapes.layouts import MapShape
from services.dataplane.shapes.limits import declared_maps, limit, map_path
from services.dataplane.shapes.programs import SOCKET_PROGRAMS, UNITS
from settings.rows import SWITCHES

log = logger(__name__)

HERE = Path(__file__).parents[1]  # services/dataplane
REAL_TIME = Path("/sys/kernel/realtime")

STAMP = "programs.json"
"""In the state directory: the digest of the programs that are pinned, and what the kernel says of each of them and of
each map (`bpf.identity`). A pin alone is a name, and whoever may pin can give it to something else."""


class LoadError(Exception):
    """The datapath could not be loaded; the text says why and what to do."""


class LayoutError(LoadError):
    """A pinned map is not of this version, or holds more than it is to have room for: what it holds is not given up by
    itself."""


@dataclass(frozen=True, kw_only=True)
class DatapathConfig:
    """What is compiled in. Changing any of it compiles anew and replaces the programs; a map that gets another size
    hands on what it holds."""

    node_address: str = ""  # IPv4; "": the node has none, or the family is off
    node_address6: str = ""
    ipv4: bool = True
    ipv6: bool = False
    device_index: int
    tunnel_index: int = 0  # 0: native routing
    tunnel_port: int = 8472  # UDP
    underlay_ipv6: bool = False  # the tunnel's outer packets
    services: str = ""  # the range of ClusterIPs, "10.96.0.0/16": what no Service has there is dropped; "": not known
    services6: str = ""
    switches: Mapping[str, int] = field(default_factory=dict)  # of settings.rows.SWITCHES, where not at their default
    masquerade: bool = True
    masquerade6: bool = True
    nat_port_min: int = 36_864
    nat_port_max: int = 65_535
    sizes: Mapping[str, int] = field(default_factory=dict)  # of maps, by their names in bpf/include/limits.h
    seconds: Mapping[str, int] = field(default_factory=dict)  # lifetimes of connections, the same

    @property
    def acts_on_leaving(self) -> bool:
        """to_netdev has something to do."""
        return bool(self.switches.get("LEGACY_ROUTING") or self.services or self.services6)

    def defines(self) -> dict[str, str]:
        words = struct.unpack("=4I", socket.inet_pton(socket.AF_INET6, self.node_address6 or "::"))
        numbers = {
            "IPV4_ENABLED": int(self.ipv4),
            "IPV6_ENABLED": int(self.ipv6),
            "DEVICE_INDEX": self.device_index,
            "TUNNEL_INDEX": self.tunnel_index,
            "TUNNEL_PORT": self.tunnel_port,
            "UNDERLAY_IP6": int(self.underlay_ipv6),
            **{name: row.turned(row.default) for name, row in SWITCHES.items()},
            **self.switches,
            "MASQUERADE4": int(self.masquerade and self.ipv4 and bool(self.node_address)),
            "MASQUERADE6": int(self.masquerade6 and self.ipv6 and bool(self.node_address6)),
            "NAT_PORT_MIN": self.nat_port_min,
            "NAT_PORT_MAX": self.nat_port_max,
            **self.sizes,
            **self.seconds,
        }
        addresses = {
            "NODE_ADDRESS": _be32(self.node_address or "0.0.0.0"),
            **{f"NODE_ADDRESS6_{place}": f"0x{word:08x}u" for place, word in enumerate(words)},
        }
        if self.services:
            network = ipaddress.IPv4Network(self.services)
            addresses |= {"SERVICES4": _be32(str(network[0])), "SERVICES4_MASK": _be32(str(network.netmask))}
        if self.services6:
            network6 = ipaddress.IPv6Network(self.services6)
            for name, address in (("SERVICES6", network6[0]), ("SERVICES6_MASK", network6.netmask)):
                each = struct.unpack("=4I", address.packed)
                addresses |= {f"{name}_{place}": f"0x{word:08x}u" for place, word in enumerate(each)}
        return addresses | {name: str(number) for name, number in numbers.items()}


def _be32(address: str) -> str:
    """The number that the kernel reads where this address stands in network byte order."""
    return f"0x{struct.unpack('=I', socket.inet_aton(address))[0]:08x}u"


def digest(config: DatapathConfig) -> str:
    """Changes when the programs would: the C, what compiles it and how, the limits and the configuration."""
    found = hashlib.sha256(json.dumps([config.defines(), UNITS, SOCKET_PROGRAMS], sort_keys=True).encode())
    for path in sources():
        found.update(f"{path.relative_to(HERE)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def generation(config: DatapathConfig) -> str:
    """Names the maps that the programs of this configuration have for themselves (kernel/steps.py)."""
    return digest(config)[:16]


def sources() -> list[Path]:
    """Every file of ours that the programs are made of or by."""
    return [
        HERE / "load/compiler.py",
        *sorted((HERE / "bpf").rglob("*.[ch]")),
        *sorted((HERE / "headers").rglob("*.h")),
    ]


def check_maps(pin_dir: Path) -> None:
    """Raises: LayoutError: a pinned map is of another kind or shape than this version writes or can migrate; nothing
    was touched.
    """
    for name, shape in layouts.MAPS.items():
        path = map_path(pin_dir, name)
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
        path = map_path(pin_dir, name)
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
    """Whether the compiler ran, and instructions by program when it did. `migration` is to be finished when all
    programs are attached."""

    compiled: bool
    instructions: dict[str, int]
    migration: migrate.Migration


def check_kernel() -> None:
    """Raises: LoadError: programs of one CPU may interrupt each other here, and share the packet in hand (packet.h)."""
    if REAL_TIME.exists() and REAL_TIME.read_text().strip() == "1":
        raise LoadError(
            "this is a real-time kernel (PREEMPT_RT), on which the programs must not run: boot an ordinary one"
        )


async def load(config: DatapathConfig, pin_dir: Path, state_dir: Path) -> Loaded:
    """Have every program and map pinned under `pin_dir`, compiling only what changed since the last time.

    Raises: LoadError: the compiler or the verifier refused. LayoutError: a pinned map is of another kind or shape, or
        what it holds does not fit.
    """
    check_kernel()
    check_maps(pin_dir)
    for folder in ("maps", "programs", "links"):
        (pin_dir / folder).mkdir(parents=True, exist_ok=True)
    migration = await to_the_end(asyncio.to_thread(_begin_migration, config, pin_dir))
    try:
        instructions = await _load(config, pin_dir, state_dir)
        if migration:
            copied = await to_the_end(asyncio.to_thread(migration.copy))
            log.info("maps migrated", files=migration.files, entries=copied)
    except BaseException as problem:
        migration.undo()
        _forget_stamp(state_dir)  # the programs that are pinned now may know maps that are gone
        if isinstance(problem, migrate.DoesNotFit):
            raise LayoutError(str(problem)) from problem
        raise
    migration.leave(own.of_others(pin_dir, generation(config)))
    return Loaded(instructions is not None, instructions or {}, migration)


def _begin_migration(config: DatapathConfig, pin_dir: Path) -> migrate.Migration:
    """Raises: LayoutError: what a map holds does not fit its new size; nothing was touched."""
    resized = resized_maps(config, pin_dir)
    for name, (entries, wanted) in resized.items():
        log.info("a map gets another size", map=name, entries=entries, wanted=wanted)
    rooms = {declared_maps()[name].file: wanted for name, (_, wanted) in resized.items()}
    try:
        migrate.check_room(pin_dir, rooms)
    except migrate.DoesNotFit as problem:
        raise LayoutError(f"{problem}, or remove what fills it") from problem
    try:
        return migrate.begin(pin_dir, rooms)
    except migrate.DoesNotFit as problem:  # what an earlier start, of other sizes, had left to copy
        raise LayoutError(str(problem)) from problem


async def _load(config: DatapathConfig, pin_dir: Path, state_dir: Path) -> dict[str, int] | None:
    """Programs and maps, pinned. None: they were, nothing was compiled."""
    stamp = state_dir / STAMP
    wanted = digest(config)
    stamped = _read_stamp(stamp)
    if stamped.get("digest") == wanted:
        found = await to_the_end(asyncio.to_thread(identities, pin_dir, generation(config)))
        others = sorted(name for name, each in found.items() if not each or each != stamped["pinned"].get(name))
        if not others:
            return None
        log.warning("what is pinned is not what was pinned: compiling anew", pins=others)
    _forget_stamp(state_dir)
    instructions = await _compile(config, pin_dir)
    check_maps(pin_dir)
    try:
        pinned = await to_the_end(asyncio.to_thread(identities, pin_dir, generation(config)))
        stamp.write_text(json.dumps({"digest": wanted, "pinned": pinned}))
    except OSError as problem:
        log.warning("the next start compiles anew: make room on the disk", file=str(stamp), why=str(problem))
    return instructions


def pin_paths(pin_dir: Path, of_generation: str) -> list[Path]:
    """Where every map and program of this version and configuration is pinned."""
    programs = [pin_dir / "programs" / name for unit in UNITS.values() for name in unit]
    return [map_path(pin_dir, name) for name in layouts.MAPS] + own.paths(pin_dir, of_generation) + programs


def identities(pin_dir: Path, of_generation: str) -> dict[str, str]:
    """What is pinned at each of `pin_paths`, by its path below `pin_dir`; "": nothing, or nothing that has any."""
    return {str(path.relative_to(pin_dir)): _identity(path) for path in pin_paths(pin_dir, of_generation)}


def _identity(path: Path) -> str:
    try:
        fd = bpf.open_pinned(path)
    except OSError:
        return ""
    try:
        return bpf.identity(fd)
    finally:
        os.close(fd)


def _forget_stamp(state_dir: Path) -> None:
    """Raises: LoadError: it is still there, and would vouch for programs that it does not know."""
    stamp = state_dir / STAMP
    try:
        stamp.unlink(missing_ok=True)
    except OSError as problem:
        if _read_stamp(stamp):
            raise LoadError(f"{stamp} cannot be removed: {problem}") from problem


def _read_stamp(stamp: Path) -> dict[str, Any]:
    """Empty: there is none, or it is damaged or of an earlier version."""
    try:
        match json.loads(stamp.read_text()):
            case {"digest": str(digested), "pinned": dict(pinned)}:
                return {"digest": digested, "pinned": pinned}
    except (OSError, ValueError):
        pass
    return {}


async def _compile(config: DatapathConfig, pin_dir: Path) -> dict[str, int]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.dataplane.load.compiler",
        cwd=HERE.parent.parent,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    work = {
        "pin_dir": str(pin_dir),
        "generation": generation(config),
        "defines": config.defines(),
        "units": UNITS,
    }
    request = json.dumps({"parent": os.getpid(), **work})
    out, err = await answered(child, request.encode())
    if child.returncode:
        words = err.decode(errors="replace").strip().splitlines()
        raise LoadError("the datapath did not load: " + "\n".join(words[-40:]))
    programs: dict[str, int] = json.loads(out)["programs"]
    return programs
