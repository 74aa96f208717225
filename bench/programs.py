"""Every BPF program in every configuration, as it is given to a kernel (verifier.py).

The programs are those that were built (services/dataplane/load/objects.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bench.verifier import MapKind, Program
from services.dataplane.load import objects
from services.dataplane.load.build import build
from services.dataplane.load.install import entries_of
from services.dataplane.load.loader import DatapathConfig
from services.dataplane.load.objects import BUILT, Object
from services.dataplane.shapes.limits import declared_maps, maps_of_generation
from settings import rows

NODE = DatapathConfig(
    node_address="192.0.2.1",
    node_address6="2001:db8::1",
    ipv6=True,
    device_index=2,
    services="10.96.0.0/16",
    services6="fd00:96::/112",
)
WAYS: dict[str, dict[str, Any]] = {
    "native": {},
    "tunnel": {"tunnel_index": 3},
    "tunnel over IPv6": {"tunnel_index": 3, "underlay_ipv6": True},
}
FAMILIES: dict[str, dict[str, Any]] = {"v4": {"ipv6": False}, "v6": {"ipv4": False}}  # NODE has both
NAMES = {"LEGACY_ROUTING": "legacy", "REJECT": "drop"}  # of a switch that is turned; else the setting's own
SWITCHES: dict[str, dict[str, Any]] = {
    **{
        NAMES.get(define, row.name): {"switches": {define: 1 - row.turned(row.default)}}
        for define, row in rows.SWITCHES.items()
    },
    "own sockets alone": {"hooked_namespace": 1},
    "no masquerade": {"masquerade": False, "masquerade6": False},
    "no masquerade4": {"masquerade": False},
    "no masquerade6": {"masquerade6": False},
}


def configurations() -> dict[str, DatapathConfig]:
    """By name: every way between nodes with each family and with both, and with both each switch turned."""
    found: dict[str, DatapathConfig] = {}
    changes: dict[str, dict[str, Any]] = {"": {}, **FAMILIES, **SWITCHES}
    for way, tunnel in WAYS.items():
        for name, change in changes.items():
            found[", ".join(filter(None, (way, name)))] = replace(NODE, **tunnel, **change)
    return found


def all_programs(wanted: Mapping[str, DatapathConfig]) -> list[Program]:
    """Every program for each configuration. Sets that are not built are compiled, as root. Raises: CompileError."""
    asyncio.run(build())
    made = {name: objects.read(BUILT / objects.file_name(config.features)) for name, config in wanted.items()}
    return [
        _program(name, each, found, config)
        for (name, config), found in zip(wanted.items(), made.values(), strict=True)
        for each in found.programs
    ]


def _program(configuration: str, program: objects.Program, found: Object, config: DatapathConfig) -> Program:
    """With places of maps instead of file descriptors."""
    used = sorted({name for _, name in program.maps})
    places = {name: place for place, name in enumerate(used)}
    code = program.code(found.btf[program.unit], places, {"SET_RETVAL": 1} | config.constants())
    by_name = {each.name: each for each in found.maps}
    maps = [_kind(by_name[name], config) for name in used]
    return Program(configuration, code.name, code.attach_type, code.instructions, maps)


def _kind(found: objects.Map, config: DatapathConfig) -> MapKind:
    declared = {**declared_maps(), **maps_of_generation()}
    entries = entries_of(declared[found.name].size, config.sizes) if found.name in declared else found.entries
    return MapKind(found.name, found.type, found.key_bytes, found.value_bytes, entries, found.flags)
