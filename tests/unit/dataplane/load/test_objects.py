"""Objects: what is put into instructions, and which files are taken."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import msgspec
import pytest

from services.dataplane.kernel.program import Lines
from services.dataplane.load import objects
from services.dataplane.load.objects import SETS, Damaged, Object, Program

LOAD_NUMBER = 0x18


def wide(source: int, low: int, high: int) -> bytes:
    """One instruction that loads 64 bits, in two slots."""
    return struct.pack("=BBhIBBhI", LOAD_NUMBER, source << 4, 0, low, 0, 0, 0, high)


MARKED = wide(0, 7, 0x5EED0000) + wide(1, 0, 0)
PROGRAM = Program("connect4", 0, MARKED, [(2, "nat")], [(0, "DEVICE_INDEX")], b"", 1)
OBJECT = Object("digest", "bcc", [b""], [], [PROGRAM])


def test_numbers_and_maps_are_put_where_they_are_loaded() -> None:
    code = PROGRAM.code(b"", {"nat": 11}, {"DEVICE_INDEX": 0xFFFF_FFFE})
    assert code.instructions == wide(0, 0xFFFF_FFFE, 0) + wide(1, 11, 0)
    assert (code.name, code.attach_type) == ("connect4", 10)


@pytest.mark.parametrize(("maps", "constants"), [({}, {"DEVICE_INDEX": 1}), ({"nat": 1}, {})])
def test_nothing_is_loaded_with_a_number_or_a_map_that_nobody_gave(
    maps: dict[str, int], constants: dict[str, int]
) -> None:
    with pytest.raises(KeyError):
        PROGRAM.code(b"", maps, constants)


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    objects.write(tmp_path / "new" / "x.object", objects.as_bytes(OBJECT))
    assert objects.read(tmp_path / "new" / "x.object") == OBJECT
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["x.object"]


def test_a_file_that_is_not_whole_is_not_taken(tmp_path: Path) -> None:
    whole = objects.as_bytes(OBJECT)
    for at in range(len(whole)):
        if at != 64:  # the end of the line
            with pytest.raises(Damaged):
                objects.of_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(Damaged):
            objects.of_bytes(whole[:at])


def test_a_file_of_another_form_is_not_taken() -> None:
    for body in (msgspec.msgpack.encode(["digest", "bcc", [], [], [["connect4"]]]), b"", b"\xc1"):
        raw = objects.as_bytes(OBJECT)
        with pytest.raises(Damaged):
            objects.of_bytes(hashlib.sha256(body).hexdigest().encode() + raw[64:65] + body)


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_file_that_others_may_write_is_not_taken(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x.object"
    objects.write(path, objects.as_bytes(OBJECT))
    path.chmod(mode)
    with pytest.raises(Damaged, match="others"):
        objects.read(path)


def test_a_file_of_another_user_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.object"
    objects.write(path, objects.as_bytes(OBJECT))
    os.chown(path, 12345, -1)
    with pytest.raises(Damaged, match="another user"):
        objects.read(path)


def test_every_set_has_a_file_and_a_digest_of_its_own() -> None:
    assert len({objects.file_name(each) for each in SETS}) == len(SETS)
    assert len({objects.made_of(each) for each in SETS}) == len(SETS)


def test_an_instruction_is_of_the_last_line_that_began_before_it() -> None:
    strings = b"\0include/flow.h\0return c;\0"
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, len(strings))
    records = struct.pack("=IIII", 0, 1, 16, 86 << 10 | 5) + struct.pack("=IIII", 9, 1, 0, 0)
    lines = Lines(header + strings, records, 1)
    assert lines.at(4) == "include/flow.h:86: return c;"
    assert lines.at(9) == "include/flow.h:86: return c;"  # line 0 is the compiler's own
    assert Lines(header + strings, b"", 1).at(4) == ""
