"""Objects: the programs of one set of features, compiled once, in a file; nothing in it is of one node.

A file is the SHA-256 of what follows, a line's end, and an `Object` as MessagePack. `make setup` writes one for
each set into build/programs. A node needs no compiler to load it: what differs from node to node is put into the
instructions (`Program.code`), and maps are made by what the object says of them.

A file is taken only if it is whole, is made of the sources that are here, and nobody but its owner can write it. One
that is not is told of and left alone, and the set is compiled in its place, as one is that was not built (loader.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import msgspec

from services.dataplane.kernel.program import Code, Lines, MapKind
from services.dataplane.shapes.programs import SOCKET_PROGRAMS, UNITS

HERE = Path(__file__).parents[1]  # services/dataplane
BUILT = HERE.parents[1] / "build/programs"

_DIGEST_BYTES = 64  # in hexadecimal digits
_OTHERS_WRITE = 0o022  # of a file's mode

Features = Mapping[str, int]
"""What programs are compiled for, by the name of the macro: IPV4_ENABLED, IPV6_ENABLED."""

SETS: tuple[Features, ...] = (
    {"IPV4_ENABLED": 1, "IPV6_ENABLED": 0},
    {"IPV4_ENABLED": 0, "IPV6_ENABLED": 1},
    {"IPV4_ENABLED": 1, "IPV6_ENABLED": 1},
)
"""All that there are. Every other switch is a constant of the loaded program: measured, it costs the verifier as much
as a macro does, and a packet a few loads of a register (docs/adr/0026)."""


class Damaged(Exception):
    """A file is no object that may be loaded; the text says why."""


class Map(msgspec.Struct, frozen=True, array_like=True):
    """`entries`: of one that is pinned nowhere, and goes with the programs of its unit; 0: the loader knows.
    `unit`: the one whose BTF has the types' numbers."""

    name: str
    type: int
    key_bytes: int
    value_bytes: int
    flags: int
    entries: int
    unit: int
    key_type: int
    value_type: int

    @property
    def kind(self) -> MapKind:
        return MapKind(
            self.name, self.type, self.key_bytes, self.value_bytes, self.flags, self.key_type, self.value_type
        )


class Program(msgspec.Struct, frozen=True, array_like=True):
    """`maps`, `constants`: where an instruction loads one, in instructions, and its name."""

    name: str
    unit: int
    instructions: bytes
    maps: list[tuple[int, str]]
    constants: list[tuple[int, str]]
    lines: bytes
    function: int

    def code(self, btf: bytes, maps: Mapping[str, int], constants: Mapping[str, int]) -> Code:
        """With file descriptors of maps and values of constants. Raises: KeyError: one of them is not given."""
        made = bytearray(self.instructions)
        for at, name in self.maps:
            struct.pack_into("=i", made, at * 8 + 4, maps[name])
        for at, name in self.constants:
            struct.pack_into("=I", made, at * 8 + 4, constants[name])
            struct.pack_into("=I", made, at * 8 + 12, 0)
        attach_type = SOCKET_PROGRAMS.get(self.name, -1)
        return Code(self.name, attach_type, bytes(made), Lines(btf, self.lines, self.function))


class Object(msgspec.Struct, frozen=True, array_like=True):
    """`made_of`: `made_of` of the set. `compiler`: its name and version. `btf`: types and strings, by unit."""

    made_of: str
    compiler: str
    btf: list[bytes]
    maps: list[Map]
    programs: list[Program]


def sources() -> list[Path]:
    """Every file of ours that programs are made of or by."""
    return [
        HERE / "load/compiler.py",
        HERE / "load/objects.py",
        *sorted((HERE / "bpf").rglob("*.[ch]")),
        *sorted((HERE / "headers").rglob("*.h")),
    ]


def made_of(features: Features) -> str:
    """Changes when an object of the set would: the C, the headers, what compiles it and how."""
    parts = [dict(features), UNITS, SOCKET_PROGRAMS, os.uname().machine]
    found = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for path in sources():
        found.update(f"{path.relative_to(HERE)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def file_name(features: Features) -> str:
    """ "ipv4-ipv6.object" """
    return "-".join(name.partition("_")[0].lower() for name, value in features.items() if value) + ".object"


def as_bytes(made: Object) -> bytes:
    body = msgspec.msgpack.encode(made)
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def of_bytes(raw: bytes) -> Object:
    """Raises: Damaged."""
    head, body = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES + 1 :]
    if hashlib.sha256(body).hexdigest().encode() != head:
        raise Damaged("its digest is not that of what it holds")
    try:
        return msgspec.msgpack.decode(body, type=Object)
    except msgspec.MsgspecError as problem:
        raise Damaged(f"it holds no programs: {problem}") from problem


def read(path: Path) -> Object:
    """Raises: Damaged. OSError: FileNotFoundError and others."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & _OTHERS_WRITE:
            raise Damaged("others than its owner may write it, or its owner is another user")
        return of_bytes(file.read())


def write(path: Path, raw: bytes) -> None:
    """In one step: who reads meanwhile has the old file or the new one. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(raw)
        fresh.chmod(0o644)
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)
