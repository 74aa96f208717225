"""The compiler's own process: C in, an object out (objects.py). Started by build.py, for `make setup` and for loader.py
where a set was not built; it ends when done, so its memory goes back.

Reads a JSON request from stdin, {"parent": process id, "features": {name: number}}, and writes the object's bytes to
stdout. On failure it exits 1 with the compiler's words on stderr. It ends with its parent.

Needs bcc (Debian python3-bpfcc), the C library's headers, and CAP_BPF or root: bcc makes maps as it compiles, and tells
types and lines of C only to the kernel, where they are read from. No kernel headers: `headers/` holds the little that
bcc expects of them. What is made here is never run.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import signal
import struct
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from services.dataplane.kernel import bpf
from services.dataplane.kernel.program import FUNCTION_BYTES, LINE_BYTES
from services.dataplane.load import objects
from services.dataplane.load.objects import HERE, Features, Map, Object, Program
from services.dataplane.shapes import limits
from services.dataplane.shapes.programs import UNITS

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

SOURCES = HERE / "bpf"
HEADERS = HERE / "headers"
MARK = 0x5EED0000  # the upper half of what an instruction loads whose number is yet to come (constants.h)

_INCLUDE = re.compile(r'^#include "([^"]+)"\s*$')
_BCC_VERSION = re.compile(r"""^__version__ = ['"]([^'"]+)""", re.MULTILINE)
_HEADERS_VERSION = re.compile(r"^#define LINUX_VERSION_CODE (\d+)", re.MULTILINE)
_LOAD_NUMBER, _OF_MAP = 0x18, 1  # BPF_LD | BPF_IMM | BPF_DW, of BPF_PSEUDO_MAP_FD
_NOTHING = struct.pack("=BBhi", 0xB7, 0, 0, 0)  # r0 = 0
_EXIT = struct.pack("=BBhi", 0x95, 0, 0, 0)
_BTF_BYTES = 1 << 20
_GET_BTF = 19  # BPF_BTF_GET_FD_BY_ID
_TYPES_AT, _FUNCTIONS_AT, _LINES_AT, _LINE_BYTES_AT = 128, 132, 148, 172  # in struct bpf_prog_info

FLAGS = [
    "-isystem", "/usr/include",
    "-isystem", f"/usr/include/{os.uname().machine}-linux-gnu",
    "-Werror=implicit-function-declaration",
    "-Wno-unused-function",
    "-Wno-constant-logical-operand",
]  # fmt: skip


def flatten(source: Path, seen: set[str] | None = None) -> str:
    """`source` with every quoted include in its place, once, and #line markers so that messages name the right file.

    bcc rewrites map calls in the main file only; this makes one file of all.
    """
    seen = set() if seen is None else seen
    name = source.relative_to(SOURCES)
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate(source.read_text().splitlines(), 1):
        found = _INCLUDE.match(line)
        if not found:
            lines.append(line)
            if line == "{":  # bcc puts a line of its own before each function: count anew in its body
                lines.append(f'#line {number + 1} "{name}"')
            continue
        if found[1] not in seen:
            seen.add(found[1])
            lines.append(flatten(SOURCES / "include" / found[1], seen))
        lines.append(f'#line {number + 1} "{name}"')
    return "\n".join(lines)


def version() -> str:
    """Of bcc, without importing it, and of the C library's headers of the kernel; "": there is no bcc."""
    package = importlib.util.find_spec("bcc")
    if package is None or not package.origin:
        return ""
    bcc = _found(_BCC_VERSION, Path(package.origin).with_name("version.py"))
    return f"bcc {bcc}, headers of Linux version {_found(_HEADERS_VERSION, Path('/usr/include/linux/version.h'))}"


def _found(pattern: re.Pattern[str], file: Path) -> str:
    with suppress(OSError):
        if match := pattern.search(file.read_text()):
            return match[1]
    return "?"


def compile_set(features: Features) -> Object:
    """Raises: ImportError: there is no bcc. Exception: bcc's, which has written its words to stderr."""
    os.environ["BCC_KERNEL_SOURCE"] = str(HEADERS)
    from bcc import BPF

    flags = [*FLAGS, *(f"-D{name}={value}" for name, value in sorted(features.items()))]
    maps: dict[str, Map] = {}
    programs: list[Program] = []
    units: list[_Types] = []
    for number, (unit, functions) in enumerate(UNITS.items()):
        module = BPF(text=flatten(SOURCES / "programs" / f"{unit}.bpf.c"), cflags=flags)
        try:
            names = _map_names(module)
            for fd, name in names.items():
                maps.setdefault(name, _map(fd, name, number))
            units.append(_Types())
            programs += [_program(module, function, number, names, units[number]) for function in functions]
        finally:
            module.cleanup()
    return Object(objects.made_of(features), version(), [each.raw() for each in units], list(maps.values()), programs)


def _map_names(module: Any) -> dict[int, str]:
    """By the file descriptor that bcc has put into instructions."""
    from bcc.libbcc import lib

    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    numbers = range(lib.bpf_num_tables(module.module))
    return {
        lib.bpf_table_fd_id(module.module, each): lib.bpf_table_name(module.module, each).decode() for each in numbers
    }


def _map(fd: int, name: str, unit: int) -> Map:
    """What the kernel says of a map that bcc has made. Source: struct bpf_map_info."""
    info = _info(fd)
    kind, _, key_bytes, value_bytes, entries, flags = struct.unpack_from("=IIIIII", info)
    _, key_type, value_type = struct.unpack_from("=III", info, 64)
    is_shared = name in limits.declared_maps() or name in limits.maps_of_generation()
    return Map(name, kind, key_bytes, value_bytes, flags, 0 if is_shared else entries, unit, key_type, value_type)


def _program(module: Any, function: str, unit: int, map_names: dict[int, str], types: _Types) -> Program:
    code: bytes = module.dump_func(function)
    constant_names = {number: name for name, number in limits.constants().items()}
    maps: list[tuple[int, str]] = []
    constants: list[tuple[int, str]] = []
    at = 0
    while at < len(code):
        if code[at] != _LOAD_NUMBER:
            at += 8
            continue
        low, high = struct.unpack_from("=I4xI", code, at + 4)
        if code[at + 1] >> 4 == _OF_MAP:
            maps.append((at // 8, map_names[low]))
        elif high == MARK:
            constants.append((at // 8, constant_names[low]))
        at += 16
    lines, number = _lines(module, function, len(code) // 8, types)
    return Program(function, unit, code, maps, constants, lines, number)


def _lines(module: Any, function: str, instructions: int, types: _Types) -> tuple[bytes, int]:
    """Records of lines, and the type's number of the function.

    bcc says them to nobody but the kernel, as it loads the function. So it loads as many instructions that do nothing,
    which the kernel neither moves nor cuts, and says back what it was told. Source: struct bpf_prog_info.
    """
    from bcc import BPF
    from bcc.libbcc import lib

    nothing = ctypes.create_string_buffer(_NOTHING * (instructions - 1) + _EXIT, instructions * 8)
    fd = lib.bcc_func_load(
        module.module,
        BPF.SCHED_CLS,  # whatever it is: of those, any may return 0
        function.encode(),
        ctypes.addressof(nothing),
        len(nothing),
        lib.bpf_module_license(module.module),
        lib.bpf_module_kern_version(module.module),
        0, None, 0, None, 0, -1,
    )  # fmt: skip
    if fd < 0:
        raise OSError(ctypes.get_errno(), f"the kernel does not take the lines of {function}")
    try:
        said = _info(fd)
        types.take(struct.unpack_from("=I", said, _TYPES_AT)[0])
        number = struct.unpack_from("=I", said, _LINES_AT)[0]
        records = ctypes.create_string_buffer(number * LINE_BYTES)
        functions = ctypes.create_string_buffer(FUNCTION_BYTES)
        asked = ctypes.create_string_buffer(256)
        places = ctypes.addressof(functions), 1, number, ctypes.addressof(records)
        struct.pack_into("=IQIIQ", asked, _FUNCTIONS_AT, FUNCTION_BYTES, *places)
        struct.pack_into("=I", asked, _LINE_BYTES_AT, LINE_BYTES)
        _info(fd, asked)
        return types.with_text(records.raw), struct.unpack("=II", functions.raw)[1]
    finally:
        os.close(fd)


class _Types:
    """A unit's BTF, to whose strings names of files and the text of lines are added."""

    def __init__(self) -> None:
        self._header = b""
        self._rest = b""
        self._strings = b""
        self._places: dict[str, int] = {}

    def take(self, number: int) -> None:
        """The kernel's number of it."""
        if self._header:
            return
        fd = bpf.call(_GET_BTF, struct.pack("=I", number))
        try:
            types = ctypes.create_string_buffer(_BTF_BYTES)
            asked = ctypes.create_string_buffer(struct.pack("=QI", ctypes.addressof(types), len(types)), 64)
            size = struct.unpack_from("=I", _info(fd, asked), 8)[0]
        finally:
            os.close(fd)
        raw = types.raw[:size]
        header_bytes, _, _, strings_at, strings_bytes = struct.unpack_from("=IIIII", raw, 4)
        self._header = raw[:header_bytes]
        self._rest = raw[header_bytes : header_bytes + strings_at]
        self._strings = raw[header_bytes + strings_at :][:strings_bytes]

    def raw(self) -> bytes:
        header = self._header[:20] + struct.pack("=I", len(self._strings)) + self._header[24:]
        return header + self._rest + self._strings

    def with_text(self, records: bytes) -> bytes:
        """With names of files from bpf/ on, and with text. The compiler has put the directory that it ran in before."""
        made = []
        for instruction, file, text, line in struct.iter_unpack("=IIII", records):
            name = self._string(file).removeprefix(f"{HEADERS}/")
            known = _source(name)
            number = line >> 10
            if known and 0 < number <= len(known):
                text = self._place(known[number - 1].strip())
            made.append(struct.pack("=IIII", instruction, self._place(name), text, line))
        return b"".join(made)

    def _string(self, at: int) -> str:
        return self._strings[at : self._strings.index(b"\0", at)].decode()

    def _place(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = len(self._strings)
            self._strings += text.encode() + b"\0"
        return self._places[text]


@cache
def _source(name: str) -> list[str]:
    """The lines of a file of ours."""
    path = SOURCES / name
    return path.read_text().splitlines() if path.is_file() else []


def _info(fd: int, asked: ctypes.Array[ctypes.c_char] | None = None) -> bytes:
    """What the kernel says of an object of its, with what is `asked` filled in."""
    info = ctypes.create_string_buffer(256) if asked is None else asked
    bpf.call(bpf.OBJ_GET_INFO, struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
    return info.raw


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    request = json.load(sys.stdin)
    if os.getppid() != request["parent"]:
        sys.exit("whoever asked ended before the kernel could be told to end this with it")
    try:
        made = compile_set(request["features"])
    except ImportError as problem:
        sys.exit(f"there is no bcc here (Debian: python3-bpfcc): {problem}")
    sys.stdout.buffer.write(objects.as_bytes(made))


if __name__ == "__main__":
    main()
