"""A node's programs and maps, compiled before the guest booted, pinned as the loader pins them."""

from __future__ import annotations

import functools
import os
from contextlib import closing
from pathlib import Path

from bench.programs import read
from bench.verifier import Program, create_map, load
from services.dataplane.kernel.bpf import Map, pin
from services.dataplane.kernel.steps import ARRAY, fill
from services.dataplane.shapes import limits
from tests.guest.prepare import NODE_PROGRAMS


@functools.cache
def _programs() -> list[Program]:
    return read(NODE_PROGRAMS)


def pin_all(configuration: str, pin_dir: Path) -> None:
    """Everything of a configuration of prepare.py, under `pin_dir`."""
    for folder in ("maps", "programs", "links"):
        (pin_dir / folder).mkdir(parents=True)
    maps: dict[str, int] = {}
    steps: dict[str, int] = {}
    for program in _programs():
        if program.configuration == configuration:
            for kind in program.maps:
                if kind.name not in maps:
                    maps[kind.name] = create_map(kind)
                    pin(maps[kind.name], pin_dir / "maps" / kind.name)
            fd = load(program, [maps[kind.name] for kind in program.maps])
            pin(fd, pin_dir / "programs" / program.name)
            if program.name in limits.steps():
                steps[program.name] = fd
            else:
                os.close(fd)
    with closing(Map(maps.pop(ARRAY))) as array:
        for name, fd in steps.items():
            fill(array, name, fd)
            os.close(fd)
    for fd in maps.values():
        os.close(fd)
