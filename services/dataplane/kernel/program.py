"""Programs, and the maps that they use, into the kernel: what the verifier refuses is told by the line of our C.

Everything here blocks: a program for as long as the verifier takes (0.2 s for the largest). Needs CAP_BPF,
CAP_NET_ADMIN and CAP_PERFMON. Errors are OSError with the kernel's errno, or `Refused`.

Source: kernel include/uapi/linux/bpf.h (union bpf_attr, struct bpf_prog_info, struct bpf_line_info)
"""

from __future__ import annotations

import ctypes
import re
import struct
from bisect import bisect_right
from dataclasses import dataclass

from services.dataplane.kernel import bpf

MAP_CREATE, BTF_LOAD = 0, 18
SCHED_CLS, CGROUP_SOCK_ADDR = 3, 18  # enum bpf_prog_type
LINE_BYTES = 16  # struct bpf_line_info: instruction, file, text (places in the BTF's strings), line << 10 | column
FUNCTION_BYTES = 8  # struct bpf_func_info: instruction, type

_LOG_BYTES = 1 << 24
_LOG_LINES = 30  # of the verifier's last words
_NAME_BYTES = 16  # BPF_OBJ_NAME_LEN
_STEP = re.compile(r"^(\d+): \(", re.MULTILINE)  # of the log: the verifier looks at this instruction


class Refused(Exception):
    """The verifier did not take a program. The text names it and the line of C, and ends with the verifier's words."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Which line of C an instruction comes from, with the types (BTF) in which the kernel wants it told.

    `records` are struct bpf_line_info, in the order of instructions; `function` is the type's number of the program.
    """

    btf: bytes
    records: bytes
    function: int

    def at(self, instruction: int) -> str:
        """ "include/flow.h:86: the text of the line", "" when it is not known."""
        starts = [found[0] for found in struct.iter_unpack("=IIII", self.records)]
        place = bisect_right(starts, instruction) - 1
        while place > 0 and not self._line(place):  # what the compiler made itself belongs to the line before
            place -= 1
        if place < 0:
            return ""
        _, file, text, line = struct.unpack_from("=IIII", self.records, place * LINE_BYTES)
        return f"{self._string(file)}:{line >> 10}: {self._string(text)}"

    def _line(self, place: int) -> int:
        (line,) = struct.unpack_from("=I", self.records, place * LINE_BYTES + 12)
        return int(line) >> 10

    def _string(self, at: int) -> str:
        header_bytes, _, _, strings_at, _ = struct.unpack_from("=IIIII", self.btf, 4)
        start = header_bytes + strings_at + at
        return self.btf[start : self.btf.index(b"\0", start)].decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Code:
    """A program as the kernel is given it: maps and constants are in the instructions."""

    name: str
    attach_type: int  # enum bpf_attach_type of a socket hook; -1: tc
    instructions: bytes
    lines: Lines | None = None


@dataclass(frozen=True, slots=True)
class MapKind:
    """`key_type`, `value_type`: numbers of types in the BTF of `btf_fd`; 0 where the kernel takes none of such maps."""

    name: str
    type: int
    key_bytes: int
    value_bytes: int
    flags: int
    key_type: int = 0
    value_type: int = 0


def make_map(kind: MapKind, entries: int, btf_fd: int = -1) -> int:
    """A file descriptor of an empty map; the caller closes it."""
    typed = (btf_fd, kind.key_type, kind.value_type) if btf_fd >= 0 and kind.key_type else (0, 0, 0)
    attr = struct.pack(
        "=IIIIIII16sIIII",
        kind.type, kind.key_bytes, kind.value_bytes, entries, kind.flags, 0, 0, _name(kind.name), 0, *typed,
    )  # fmt: skip
    return bpf.call(MAP_CREATE, attr)


def load_btf(btf: bytes) -> int:
    """A file descriptor of types; the caller closes it."""
    types = ctypes.create_string_buffer(btf, len(btf))
    return bpf.call(BTF_LOAD, struct.pack("=QQIII", ctypes.addressof(types), 0, len(btf), 0, 0))


def load(code: Code, btf_fd: int = -1) -> int:
    """A file descriptor of the loaded program; the caller closes it.

    Args:
        btf_fd: of the types in `code.lines`; without, the kernel is not told of lines.
    Raises: Refused.
    """
    try:
        return _load(code, btf_fd, None)
    except OSError as refusal:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return _load(code, btf_fd, log)
        except OSError:
            said = log.value.decode(errors="replace")
        raise Refused(_told(code, refusal, said)) from refusal


def _load(code: Code, btf_fd: int, log: ctypes.Array[ctypes.c_char] | None) -> int:
    instructions = ctypes.create_string_buffer(code.instructions, len(code.instructions))
    terms = ctypes.create_string_buffer(b"GPL")
    heard = (1, len(log), ctypes.addressof(log)) if log else (0, 0, 0)
    told: tuple[int, ...] = (0, 0, 0, 0, 0, 0, 0)
    if code.lines is not None and btf_fd >= 0:
        function = ctypes.create_string_buffer(struct.pack("=II", 0, code.lines.function))
        records = ctypes.create_string_buffer(code.lines.records, len(code.lines.records))
        number = len(code.lines.records) // LINE_BYTES
        told = (
            btf_fd, FUNCTION_BYTES, ctypes.addressof(function), 1, LINE_BYTES, ctypes.addressof(records), number,
        )  # fmt: skip
    attr = struct.pack(
        "=IIQQIIQII16sIIIIQIIQI",
        SCHED_CLS if code.attach_type < 0 else CGROUP_SOCK_ADDR,
        len(code.instructions) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(terms),
        *heard, 0, 0, _name(code.name), 0, max(code.attach_type, 0), *told,
    )  # fmt: skip
    return bpf.call(bpf.PROG_LOAD, attr)


def _told(code: Code, refusal: OSError, log: str) -> str:
    """What a person is told of a refusal."""
    steps = _STEP.findall(log)
    where = code.lines.at(int(steps[-1])) if steps and code.lines else ""
    words = "\n".join(log.splitlines()[-_LOG_LINES:])
    return f"{code.name} at {where or 'an unknown line'} ({refusal.strerror})\n{words}"


def _name(name: str) -> bytes:
    return name.encode()[: _NAME_BYTES - 1]


@dataclass(frozen=True, slots=True)
class Size:
    """Of a loaded program, in instructions: as the kernel keeps it, without what is never reached, and how many the
    verifier went through on all its paths (0: the kernel is older than 5.16)."""

    kept: int
    verified: int


def size(program_fd: int) -> Size:
    info = ctypes.create_string_buffer(256)
    bpf.call(bpf.OBJ_GET_INFO, struct.pack("=IIQ", program_fd, len(info), ctypes.addressof(info)))
    (kept_bytes,) = struct.unpack_from("=I", info.raw, 20)
    (verified,) = struct.unpack_from("=I", info.raw, 216)
    return Size(kept_bytes // 8, verified)
