"""Every BPF program in every configuration, compiled here and written to a file that any kernel can be given.

Compiling takes five seconds of a processor a configuration, so what was compiled stays in build/programs until what it
is made of changes, and the compiler works in processes of their own, which take its memory with them.
A machine that is slow, or has no compiler, then loads the programs as they are (verifier.py).
Needs root: bcc makes the maps while it compiles.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import multiprocessing
import os
import shutil
import struct
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.verifier import MapKind, Program, map_kind, map_uses
from lab.host import bpf_file_system
from services.dataplane.load import compiler, loader
from services.dataplane.load.loader import DatapathConfig
from services.dataplane.shapes.programs import SOCKET_PROGRAMS, UNITS
from settings import rows

BUILD = Path(__file__).resolve().parents[1] / "build/programs"
PINS = "plexus-programs-"

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


def compile_all(wanted: Mapping[str, DatapathConfig]) -> list[Program]:
    """Every program for each configuration."""
    for left in bpf_file_system().glob(f"{PINS}*"):  # by a run that was killed
        if not Path("/proc", left.name.removeprefix(PINS)).exists():
            shutil.rmtree(left, ignore_errors=True)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as processes:
        found = list(processes.map(_compiled, wanted, wanted.values()))
    return [program for programs in found for program in programs]


def _compiled(name: str, config: DatapathConfig) -> list[Program]:
    kept = BUILD / f"{name.replace(', ', '-').replace(' ', '_')}.json"
    digest = loader.digest(config)
    with suppress(OSError, ValueError, KeyError):
        found = json.loads(kept.read_text())
        if found["digest"] == digest:
            return _of_entries(found["programs"])
    programs = _compile(name, config)
    BUILD.mkdir(parents=True, exist_ok=True)
    fresh = kept.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps({"digest": digest, "programs": _entries(programs)}))
    fresh.rename(kept)
    return programs


def _compile(name: str, config: DatapathConfig) -> list[Program]:
    os.environ["BCC_KERNEL_SOURCE"] = str(compiler.HERE / "headers")
    from bcc import BPF

    pin_dir = bpf_file_system() / f"{PINS}{os.getpid()}"
    (pin_dir / "maps").mkdir(parents=True)
    try:
        defines = config.defines()
        flags = [*compiler.FLAGS, f'-DPIN_DIR="{pin_dir}"', *(f"-D{key}={value}" for key, value in defines.items())]
        programs = []
        for unit, functions in UNITS.items():
            module = BPF(text=compiler.flatten(compiler.SOURCES / "programs" / f"{unit}.bpf.c"), cflags=flags)
            for function in functions:
                attach_type = SOCKET_PROGRAMS.get(function, -1)
                programs.append(_program(name, function, attach_type, module.dump_func(function)))
    finally:
        shutil.rmtree(pin_dir)
    return programs


def _program(configuration: str, name: str, attach_type: int, code: bytes) -> Program:
    """With places of maps instead of this process's file descriptors."""
    maps: list[MapKind] = []
    by_fd: dict[int, int] = {}
    out = bytearray(code)
    for at in map_uses(code):
        (fd,) = struct.unpack_from("=i", code, at + 4)
        if fd not in by_fd:
            by_fd[fd] = len(maps)
            maps.append(map_kind(fd))
        struct.pack_into("=i", out, at + 4, by_fd[fd])
    return Program(configuration, name, attach_type, bytes(out), maps)


def write(programs: list[Program], path: Path) -> None:
    path.write_text(json.dumps(_entries(programs)))


def read(path: Path) -> list[Program]:
    """What `write` wrote."""
    return _of_entries(json.loads(path.read_text()))


def _entries(programs: list[Program]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(each) | {"code": base64.b64encode(each.code).decode()} for each in programs]


def _of_entries(entries: list[dict[str, Any]]) -> list[Program]:
    return [
        Program(
            each["configuration"],
            each["name"],
            each["attach_type"],
            base64.b64decode(each["code"]),
            [MapKind(**kind) for kind in each["maps"]],
        )
        for each in entries
    ]
