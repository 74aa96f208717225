"""Give a compiled program to this machine's verifier, and hear what it cost. No compiler; needs CAP_BPF, CAP_NET_ADMIN.

Source: kernel include/uapi/linux/bpf.h (union bpf_attr, struct bpf_map_info, struct bpf_prog_info)
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

_SYSCALL_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_MAP_CREATE, _PROG_LOAD, _OBJ_GET_INFO = 0, 5, 15
_ATTR_BYTES = 128
_LOAD_ADDRESS, _OF_MAP = 0x18, 1  # BPF_LD | BPF_IMM | BPF_DW, of BPF_PSEUDO_MAP_FD
_SCHED_CLS, _CGROUP_SOCK_ADDR = 3, 18  # enum bpf_prog_type
_JUMPS = (0x05, 0x06)  # BPF_JMP, BPF_JMP32
_GOTO, _CALL, _EXIT = 0x00, 0x80, 0x90
_FAR_GOTO = 0x06  # BPF_JMP32 | BPF_JA
_ARRAYS = frozenset({2, 3, 4, 6})  # the verifier looks at their number of entries
_ENTRIES_MAX = 4096  # of other maps: the verifier does not care, and memory is taken at once
_VERIFIED_AT = 216  # verified_insns, since kernel 5.16
_LOG_BYTES = 1 << 24
_LOG_LINES = 40

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The verifier did not take a program; the text names it and ends with the last of the verifier's words."""


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
    """A function, compiled for one configuration. Where its code needs a map, it holds the map's place in `maps`."""

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


def map_kind(fd: int) -> MapKind:
    """What the kernel says of a map."""
    kind, _, key_bytes, value_bytes, entries, flags, name = struct.unpack_from("=IIIIII16s", _info(fd))
    return MapKind(name.rstrip(b"\0").decode(), kind, key_bytes, value_bytes, entries, flags)


def verify(program: Program) -> int:
    """Load it, with fresh maps, and forget it. Returns how many instructions the verifier went through.

    Raises: Refused.
    """
    with ExitStack() as fds:
        maps = []
        for kind in program.maps:
            maps.append(create_map(kind))
            fds.callback(os.close, maps[-1])
        fd = load(program, maps)
        fds.callback(os.close, fd)
        return int(struct.unpack_from("=I", _info(fd), _VERIFIED_AT)[0])


def verify_all(programs: Sequence[Program]) -> list[int | Refused]:
    """What `verify` says of each, on all processors; what is the same in several configurations is asked once."""

    def attempt(program: Program) -> int | Refused:
        try:
            return verify(program)
        except Refused as refusal:
            return refusal

    kinds = {(each.code, each.attach_type, tuple(each.maps)): each for each in programs}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = dict(zip(kinds, threads.map(attempt, kinds.values()), strict=True))
    return [found[each.code, each.attach_type, tuple(each.maps)] for each in programs]


def create_map(kind: MapKind) -> int:
    """An empty map, smaller than asked where the verifier does not care; the caller closes the file descriptor."""
    entries = kind.max_entries if kind.type in _ARRAYS else min(kind.max_entries, _ENTRIES_MAX)
    return _bpf(_MAP_CREATE, struct.pack("=IIIII", kind.type, kind.key_bytes, kind.value_bytes, entries, kind.flags))


def load(program: Program, maps: Sequence[int]) -> int:
    """Have the kernel take it, with the maps behind these file descriptors; the caller closes the one returned.

    Raises: Refused.
    """
    code = bytearray(program.code)
    for at in map_uses(program.code):
        struct.pack_into("=i", code, at + 4, maps[struct.unpack_from("=i", code, at + 4)[0]])
    kind = _SCHED_CLS if program.attach_type < 0 else _CGROUP_SOCK_ADDR
    instructions = ctypes.create_string_buffer(bytes(code), len(code))
    license_ = ctypes.create_string_buffer(b"GPL")

    def attempt(log: ctypes.Array[ctypes.c_char] | None) -> int:
        words = (1, len(log), ctypes.addressof(log)) if log else (0, 0, 0)
        attr = struct.pack(
            "=IIQQIIQII16sII",
            kind, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(license_),
            *words, 0, 0, b"", 0, max(program.attach_type, 0),
        )  # fmt: skip
        return _bpf(_PROG_LOAD, attr)

    try:
        return attempt(None)
    except OSError as refusal:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return attempt(log)
        except OSError:
            lines = log.value.decode(errors="replace").splitlines()[-_LOG_LINES:]
        words = "\n".join(lines)
        raise Refused(f"{program.name} ({program.configuration}), {refusal.strerror}:\n{words}") from refusal


def _info(fd: int) -> bytes:
    info = ctypes.create_string_buffer(256)
    _bpf(_OBJ_GET_INFO, struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
    return info.raw


def _bpf(command: int, attr: bytes) -> int:
    buffer = ctypes.create_string_buffer(attr, _ATTR_BYTES)
    result: int = _libc.syscall(_SYSCALL_BPF, command, ctypes.byref(buffer), _ATTR_BYTES)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
