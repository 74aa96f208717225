"""Programs and maps into the kernel, pinned, from an object that was built before (objects.py).

What is not built, not whole, or made of other sources than those here is compiled on the spot by a short-lived process
and kept in the state directory for the next start; where there is no compiler, the text says so.
A restart finds its programs pinned and loads nothing, unless the C, the compiler's flags, the node's configuration or
the limits changed, or a pin is missing or holds something else than was pinned there. Maps outlive all of that: what
a map of an older layout or of another size holds goes into the one that takes its place (migrate.py).
Order is a contract: maps first, then steps, which others jump to, then those others (install.py), then attaching
(kernel/maps.py). Programs of before jump to steps of before until the last of them is gone (steps.h).
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
from services.dataplane.batch import to_the_end
from services.dataplane.kernel import bpf
from services.dataplane.kernel import steps as own
from services.dataplane.kernel.bpf import Map
from services.dataplane.kernel.program import Refused
from services.dataplane.load import migrate, objects
from services.dataplane.load.build import CompileError, compiled
from services.dataplane.load.install import Wanted, entries_of, install
from services.dataplane.load.objects import Damaged, Features, Object
from services.dataplane.shapes import layouts
from services.dataplane.shapes.layouts import MapShape
from services.dataplane.shapes.limits import declared_maps, limit, map_path
from services.dataplane.shapes.programs import UNITS
from settings.rows import SWITCHES

log = logger(__name__)

LIFETIMES = ("CT_TCP_SECONDS", "CT_TCP_SYN_SECONDS", "CT_TCP_FIN_SECONDS", "CT_ANY_SECONDS")  # limits.h
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
    """What programs are for. Changing any of it replaces them; a map that gets another size hands on what it holds."""

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
    node_port_min: int = 30_000
    node_port_max: int = 32_767
    hooked_namespace: int = 0  # the cookie of the one whose sockets alone are led to backends; 0: all are
    sizes: Mapping[str, int] = field(default_factory=dict)  # of maps, by their names in bpf/include/limits.h
    seconds: Mapping[str, int] = field(default_factory=dict)  # lifetimes of connections, the same

    @property
    def acts_on_leaving(self) -> bool:
        """to_netdev has something to do."""
        return bool(self.switches.get("LEGACY_ROUTING") or self.services or self.services6)

    @property
    def features(self) -> Features:
        """What programs are compiled for."""
        return {"IPV4_ENABLED": int(self.ipv4), "IPV6_ENABLED": int(self.ipv6)}

    def constants(self) -> dict[str, int]:
        """Each constant of constants.h but SET_RETVAL, which the kernel says."""
        addresses = {
            "NODE_ADDRESS": _number(self.node_address or "0.0.0.0"),
            **_words("NODE_ADDRESS6", self.node_address6 or "::"),
        }
        network, network6 = self.services or "0.0.0.0/0", self.services6 or "::/0"
        addresses |= {
            "SERVICES4": _number(str(ipaddress.IPv4Network(network)[0])),
            "SERVICES4_MASK": _number(str(ipaddress.IPv4Network(network).netmask)),
            **_words("SERVICES6", str(ipaddress.IPv6Network(network6)[0])),
            **_words("SERVICES6_MASK", str(ipaddress.IPv6Network(network6).netmask)),
        }
        return addresses | {
            "DEVICE_INDEX": self.device_index,
            "TUNNEL_INDEX": self.tunnel_index,
            "TUNNEL_PORT": socket.htons(self.tunnel_port),
            "UNDERLAY_IP6": int(self.underlay_ipv6),
            **{name: row.turned(row.default) for name, row in SWITCHES.items()},
            **self.switches,
            "MASQUERADE4": int(self.masquerade and self.ipv4 and bool(self.node_address)),
            "MASQUERADE6": int(self.masquerade6 and self.ipv6 and bool(self.node_address6)),
            "NAT_PORT_MIN": self.nat_port_min,
            "NAT_PORT_MAX": self.nat_port_max,
            "NODE_PORT_MIN": self.node_port_min,
            "NODE_PORT_MAX": self.node_port_max,
            "HOOKED_NAMESPACE": self.hooked_namespace,
            "NAT_PORTS": self.nat_port_max - self.nat_port_min + 1,
            **{name.replace("_SECONDS", "_TICKS"): _ticks(self._lifetime(name)) for name in LIFETIMES},
            "CT_LONGEST_TICKS": _ticks(max(limit("CT_WEEK_SECONDS"), *map(self._lifetime, LIFETIMES))),
            "TIME_WAIT_TICKS": _ticks(max(0, limit("TIME_WAIT_SECONDS") - self._lifetime("CT_TCP_FIN_SECONDS"))),
        }

    def _lifetime(self, name: str) -> int:
        return self.seconds.get(name, 0) or limit(name)


def _number(address: str) -> int:
    """What the kernel reads where this address stands in network byte order."""
    return int.from_bytes(socket.inet_aton(address), sys.byteorder)


def _words(name: str, address: str) -> dict[str, int]:
    """The same of an IPv6 address, in four words."""
    words = struct.unpack("=4I", socket.inet_pton(socket.AF_INET6, address))
    return {f"{name}_{place}": word for place, word in enumerate(words)}


def _ticks(seconds: int) -> int:
    """At least as long, in what connections are counted by (limits.h)."""
    return (seconds * 10**9 >> limit("TICK_SHIFT")) + 1


def digest(config: DatapathConfig) -> str:
    """Changes when the programs would: the C, what compiles it and how, the limits and the configuration."""
    parts = [objects.made_of(config.features), config.constants(), dict(config.sizes)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def generation(config: DatapathConfig) -> str:
    """Names the maps that the programs of this configuration have for themselves (kernel/steps.py)."""
    return digest(config)[:16]


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
            wanted = entries_of(declared.size, config.sizes)
            pinned = Map.open(path)
            pinned.close()
            if pinned.info.max_entries != wanted:
                found[name] = pinned.info.max_entries, wanted
    return found


@dataclass(frozen=True)
class Loaded:
    """Whether programs were loaded, or found pinned; instructions by program when they were. `migration` is to be
    finished when all programs are attached."""

    is_anew: bool
    instructions: dict[str, int]
    migration: migrate.Migration


def check_kernel() -> None:
    """Raises: LoadError: programs of one CPU may interrupt each other here, and share the packet in hand (packet.h)."""
    if REAL_TIME.exists() and REAL_TIME.read_text().strip() == "1":
        raise LoadError(
            "this is a real-time kernel (PREEMPT_RT), on which the programs must not run: boot an ordinary one"
        )


async def load(config: DatapathConfig, pin_dir: Path, state_dir: Path) -> Loaded:
    """Have every program and map pinned under `pin_dir`, loading only what changed since the last time.

    Raises: LoadError: the verifier refused, or there are no programs for this configuration.
        LayoutError: a pinned map is of another kind or shape, or what it holds does not fit.
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
    """Programs and maps, pinned. None: they were, nothing was loaded."""
    stamp = state_dir / STAMP
    wanted = digest(config)
    stamped = _read_stamp(stamp)
    if stamped.get("digest") == wanted:
        found = await to_the_end(asyncio.to_thread(identities, pin_dir, generation(config)))
        others = sorted(name for name, each in found.items() if not each or each != stamped["pinned"].get(name))
        if not others:
            return None
        log.warning("what is pinned is not what was pinned: loading anew", pins=others)
    _forget_stamp(state_dir)
    instructions = await _install(config, pin_dir, state_dir)
    check_maps(pin_dir)
    try:
        pinned = await to_the_end(asyncio.to_thread(identities, pin_dir, generation(config)))
        stamp.write_text(json.dumps({"digest": wanted, "pinned": pinned}))
    except OSError as problem:
        log.warning("the next start loads programs anew: make room on the disk", file=str(stamp), why=str(problem))
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


async def _install(config: DatapathConfig, pin_dir: Path, state_dir: Path) -> dict[str, int]:
    """Instructions by program. Raises: LoadError."""
    made = await _object(config.features, state_dir)
    constants = {"SET_RETVAL": 0} | config.constants()
    try:
        constants["SET_RETVAL"] = int(bpf.has_set_retval())  # no choice of the node's: it is in no digest
        wanted = Wanted(constants, config.sizes, generation(config))
        return await to_the_end(asyncio.to_thread(install, made, wanted, pin_dir))
    except (Refused, OSError) as refusal:
        raise LoadError(f"the kernel does not take the datapath: {refusal}") from refusal
    except (struct.error, KeyError) as problem:
        raise LoadError(f"a number that programs are to be given is missing, or is too large: {problem}") from problem


async def _object(features: Features, state_dir: Path) -> Object:
    """Built, or kept by an earlier start, or compiled now and kept. Raises: LoadError."""
    name = objects.file_name(features)
    kept = state_dir / "objects" / name
    for path in (objects.BUILT / name, kept):
        try:
            found = await asyncio.to_thread(objects.read, path)
        except FileNotFoundError:
            continue
        except (OSError, Damaged) as problem:
            log.warning("programs in a file are not used: build or remove it", file=str(path), why=str(problem))
            continue
        if found.made_of == objects.made_of(features):
            return found
    log.info("programs were not built for this: compiling", programs=name)
    try:
        raw = await compiled(features)
        found = objects.of_bytes(raw)
    except (CompileError, Damaged, OSError) as problem:
        raise LoadError(
            f"the programs {name} were not built (make setup), and do not compile here: {problem}"
        ) from problem
    try:
        await asyncio.to_thread(objects.write, kept, raw)
    except OSError as problem:
        log.warning("the next start compiles anew: make room on the disk", file=str(kept), why=str(problem))
    return found
