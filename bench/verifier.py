"""Give a program to this machine's verifier, and hear what it cost. Needs CAP_BPF, CAP_NET_ADMIN."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from services.dataplane.kernel import program
from services.dataplane.kernel.program import Code, Refused, Size

_LOAD_ADDRESS, _OF_MAP = 0x18, 1  # BPF_LD | BPF_IMM | BPF_DW, of BPF_PSEUDO_MAP_FD
_JUMPS = (0x05, 0x06)  # BPF_JMP, BPF_JMP32
_GOTO, _CALL, _EXIT = 0x00, 0x80, 0x90
_FAR_GOTO = 0x06  # BPF_JMP32 | BPF_JA
_ARRAYS = frozenset({2, 3, 4, 6})  # the verifier looks at their number of entries
_ENTRIES_MAX = 4096  # of other maps: the verifier does not care, and memory is taken at once


@dataclass(frozen=True)
class MapKind:
    name: str  # as the kernel keeps it: 15 characters
    type: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    flags: int


@dataclass(frozen=True)
class Program:
    """With the constants of one configuration. Where the code needs a map, it holds the map's place in `maps`."""

    configuration: str
    name: str
    attach_type: int  # enum bpf_attach_type of a socket hook; -1: tc
    code: bytes
    maps: list[MapKind]

    @property
    def instructions(self) -> int:
        return len(self.code) // 8


def map_uses(code: bytes) -> Iterator[int]:
    """Where in the code an instruction names a map: offsets in bytes; the number of the map stands 4 bytes further."""
    at = 0
    while at < len(code):
        is_wide = code[at] == _LOAD_ADDRESS
        if is_wide and code[at + 1] >> 4 == _OF_MAP:
            yield at
        at += 16 if is_wide else 8


def falls_back(code: bytes) -> int | None:
    """The instruction, not a jump, that has the head of a loop right after it; None: there is none.

    Compilers lay some loops out like that, and kernels before 6.7 refuse it ("back-edge"): only jumps may lead back.
    Source: kernel kernel/bpf/verifier.c (check_cfg), and commit 10e14e9652bf, which mended it.
    Raises: ValueError: code of a kind that our compiler does not make.
    """
    met, left = set[int](), set[int]()
    path = [(0, _next(code, 0))]
    met.add(0)
    while path:
        at, following = path[-1]
        to, by_jump = next(following, (-1, False))
        if to < 0:
            left.add(at)
            path.pop()
        elif to not in met:
            met.add(to)
            path.append((to, _next(code, to)))
        elif to not in left and not by_jump:
            return at
    return None


def _next(code: bytes, at: int) -> Iterator[tuple[int, bool]]:
    """Where an instruction leads, in the verifier's order: (the number of the next one, whether a jump leads there)."""
    operation, registers, offset, _ = struct.unpack_from("=BBhi", code, at * 8)
    if operation == _FAR_GOTO or (operation == _JUMPS[0] | _CALL and registers >> 4):
        raise ValueError(f"instruction {at} is a far jump or a call of another function")
    kind = operation & 0xF0 if operation & 7 in _JUMPS else _CALL
    if kind == _GOTO:
        yield at + offset + 1, True
    elif kind == _CALL:
        yield at + 1, False
    elif kind != _EXIT:
        yield at + 1, True
        yield at + offset + 1, True


def verify(given: Program) -> Size:
    """Load it, with fresh maps, and forget it. Raises: Refused."""
    with ExitStack() as fds:
        maps = []
        for kind in given.maps:
            maps.append(create_map(kind))
            fds.callback(os.close, maps[-1])
        fd = load(given, maps)
        fds.callback(os.close, fd)
        return program.size(fd)


def verify_all(programs: Sequence[Program]) -> list[Size | Refused]:
    """What `verify` says of each, on all processors; what is the same in several configurations is asked once."""

    def attempt(given: Program) -> Size | Refused:
        try:
            return verify(given)
        except Refused as refusal:
            return refusal

    kinds = {(each.code, each.attach_type, tuple(each.maps)): each for each in programs}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = dict(zip(kinds, threads.map(attempt, kinds.values()), strict=True))
    return [found[each.code, each.attach_type, tuple(each.maps)] for each in programs]


def create_map(kind: MapKind) -> int:
    """An empty map, smaller than asked where the verifier does not care; the caller closes the file descriptor."""
    entries = kind.max_entries if kind.type in _ARRAYS else min(kind.max_entries, _ENTRIES_MAX)
    made = program.MapKind(kind.name, kind.type, kind.key_bytes, kind.value_bytes, kind.flags)
    return program.make_map(made, entries)


def load(given: Program, maps: Sequence[int]) -> int:
    """Have the kernel take it, with the maps behind these file descriptors; the caller closes the one returned.

    Raises: Refused.
    """
    code = bytearray(given.code)
    for at in map_uses(given.code):
        struct.pack_into("=i", code, at + 4, maps[struct.unpack_from("=i", code, at + 4)[0]])
    return program.load(Code(given.name, given.attach_type, bytes(code)))
