"""An object's programs and the maps that they use, in the kernel and pinned.

Nothing is replaced before the kernel has taken every program: a refusal leaves what was pinned before as it was, but
for maps that were not there. Then steps are in their slots before any program that jumps to them is pinned.

Everything here blocks. Needs what kernel/program.py needs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from services.dataplane.kernel import bpf, program
from services.dataplane.kernel import steps as own
from services.dataplane.kernel.bpf import Map
from services.dataplane.kernel.program import Code
from services.dataplane.load.objects import Object
from services.dataplane.shapes.limits import declared_maps, limit, map_path, maps_of_generation, steps


@dataclass(frozen=True)
class Wanted:
    """What a node wants of an object. `sizes`: entries of maps by the names of limits.h; another has its default."""

    constants: Mapping[str, int]
    sizes: Mapping[str, int]
    generation: str


def entries_of(size: str, sizes: Mapping[str, int]) -> int:
    """How many entries a map is to have that says `size` of itself: a number, or the name of one."""
    return int(size) if size.isdigit() else sizes.get(size, 0) or limit(size)


def install(made: Object, wanted: Wanted, pin_dir: Path) -> dict[str, int]:
    """Every program pinned as `pin_dir`/programs/<name>, replacing the one before; every map that is not there yet made
    and pinned below `pin_dir`/maps. Returns instructions by program, as the kernel keeps them.

    Raises: Refused: by the verifier. OSError: the kernel refused a map or a pin. KeyError: a constant has no value.
    """
    with ExitStack() as opened:
        types = [_types(btf, opened) for btf in made.btf]
        maps = _maps(made, wanted, pin_dir, types, opened)
        codes = [each.code(made.btf[each.unit], maps, wanted.constants) for each in made.programs]
        with ThreadPoolExecutor(os.cpu_count(), "verifier") as threads:
            loading = {
                each.name: threads.submit(_load, code, types[each.unit])
                for each, code in zip(made.programs, codes, strict=True)
            }
        for done in loading.values():
            if done.exception() is None:
                opened.callback(os.close, done.result())
        fds = {name: done.result() for name, done in loading.items()}
        array = Map(os.dup(maps[own.ARRAY]))
        opened.callback(array.close)
        for step in steps():
            own.fill(array, step, fds[step])
        for name, fd in fds.items():
            bpf.pin(fd, pin_dir / "programs" / name)
        return {name: program.size(fd).kept for name, fd in fds.items()}


def _load(code: Code, types: int) -> int:
    return program.load(code, types)


def _types(btf: bytes, opened: ExitStack) -> int:
    """A file descriptor of a unit's types; -1: this kernel does not take them, and programs do without."""
    with suppress(OSError):
        fd = program.load_btf(btf)
        opened.callback(os.close, fd)
        return fd
    return -1


def _maps(made: Object, wanted: Wanted, pin_dir: Path, types: list[int], opened: ExitStack) -> dict[str, int]:
    """File descriptors by name."""
    found: dict[str, int] = {}
    generation = dict(zip(own.OF_GENERATION, own.paths(pin_dir, wanted.generation), strict=True))
    for each in made.maps:
        if each.name in generation:
            entries, path = entries_of(maps_of_generation()[each.name].size, wanted.sizes), generation[each.name]
        elif each.name in declared_maps():
            entries, path = entries_of(declared_maps()[each.name].size, wanted.sizes), map_path(pin_dir, each.name)
        else:
            entries, path = each.entries, None
        found[each.name] = _map(each.kind, entries, path, types[each.unit])
        opened.callback(os.close, found[each.name])
    return found


def _map(kind: program.MapKind, entries: int, path: Path | None, types: int) -> int:
    if path is not None and path.exists():
        return bpf.open_pinned(path)
    fd = program.make_map(kind, entries, types)
    if path is not None:
        try:
            bpf.pin(fd, path)
        except BaseException:
            os.close(fd)
            raise
    return fd
