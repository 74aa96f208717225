"""Every BPF program in every configuration, compiled here and written to a file that any kernel can be given.

`python -m bench.programs FILE`: compiling takes a quarter of a second a configuration, and the compiler's memory goes
with the process. A machine that is slow, or has no compiler, then loads them as they are (verifier.py).
Needs root: bcc makes the maps while it compiles.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.verifier import MapKind, Program, map_kind, map_uses
from lab.host import bpf_file_system
from services.dataplane import compiler, loader
from services.dataplane.loader import DatapathConfig

MODES = {
    "native": DatapathConfig(node_address="192.0.2.1", device_index=2),
    "tunnel": DatapathConfig(node_address="192.0.2.1", device_index=2, tunnel_index=3),
}


def configurations() -> dict[str, DatapathConfig]:
    """By name: each routing mode as it is, and with each of the switches turned."""
    found = dict(MODES)
    for mode, config in MODES.items():
        for field in dataclasses.fields(config):
            if isinstance(getattr(config, field.name), bool):
                changed = not getattr(config, field.name)
                word = "" if changed else "no "
                found[f"{mode}, {word}{field.name}"] = dataclasses.replace(config, **{field.name: changed})  # type: ignore[arg-type]
    return found


def compile_all(wanted: Mapping[str, DatapathConfig]) -> list[Program]:
    """Every program for each configuration. Imports bcc, so call it in a process of its own."""
    pin_dir = bpf_file_system() / f"plexus-programs-{os.getpid()}"
    (pin_dir / "maps").mkdir(parents=True)
    try:
        return list(_compile(wanted, pin_dir))
    finally:
        shutil.rmtree(pin_dir)


def _compile(wanted: Mapping[str, DatapathConfig], pin_dir: Path) -> Iterator[Program]:
    os.environ["BCC_KERNEL_SOURCE"] = str(compiler.HERE / "kernel")
    from bcc import BPF

    for name, config in wanted.items():
        defines = config.defines()
        flags = [*compiler.FLAGS, f'-DPIN_DIR="{pin_dir}"', *(f"-D{key}={value}" for key, value in defines.items())]
        for unit, functions in loader.UNITS.items():
            module = BPF(text=compiler.flatten(compiler.SOURCES / f"{unit}.bpf.c"), cflags=flags)
            for function in functions:
                attach_type = compiler.ATTACH_TYPES.get(function, -1)
                yield _program(name, function, attach_type, module.dump_func(function))


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
    entries = [dataclasses.asdict(each) | {"code": base64.b64encode(each.code).decode()} for each in programs]
    path.write_text(json.dumps(entries))


def read(path: Path) -> list[Program]:
    """What `write` wrote."""
    return [
        Program(
            each["configuration"],
            each["name"],
            each["attach_type"],
            base64.b64decode(each["code"]),
            [MapKind(**kind) for kind in each["maps"]],
        )
        for each in json.loads(path.read_text())
    ]


if __name__ == "__main__":
    write(compile_all(configurations()), Path(sys.argv[1]))
