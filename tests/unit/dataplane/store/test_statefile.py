"""The file of what a node last heard: whole up to a point, or not used at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataplane.store import statefile
from services.dataplane.store.statefile import Corrupt

FIRST = {f"state.x.{n}": b"first" * n for n in range(5)}


def written(path: Path, *groups: list[statefile.Change], first: dict[str, bytes] = FIRST) -> list[int]:
    """The file's size after its first state and after each group."""
    frames, size = statefile.replace(path, statefile.first_state(first))
    sizes = [size]
    for group in groups:
        more, grown = statefile.append(path, size, statefile.frames(group, frames))
        frames, size = frames + more, size + grown
        sizes.append(size)
    return sizes


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written(tmp_path / "f", [("state.x.1", None), ("state.x.9", b"new")], [("state.x.9", b"newer")])
    state, frames = statefile.parse((tmp_path / "f").read_bytes())
    assert state == {k: v for k, v in FIRST.items() if k != "state.x.1"} | {"state.x.9": b"newer"}
    assert frames == 4
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_a_file_that_ends_anywhere_gives_the_last_whole_state_and_never_a_part_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statefile, "FRAME_CHANGES", 2)  # a group of several frames
    states = [FIRST, FIRST | {"a": b"1", "b": b"2", "c": b"3"}, FIRST | {"a": b"1", "b": b"2", "c": b"4"}]
    sizes = written(tmp_path / "f", [("a", b"1"), ("b", b"2"), ("c", b"3")], [("c", b"4")])
    data = (tmp_path / "f").read_bytes()
    for end in range(len(data) + 1):
        whole = sum(size <= end for size in sizes)
        for torn in (data[:end], data[:end] + bytes(100), data[:end] + b"\x92\xce" * 50):
            if whole:
                assert statefile.parse(torn)[0] == states[whole - 1]
            else:
                with pytest.raises(Corrupt):
                    statefile.parse(torn)


def test_a_byte_that_is_wrong_anywhere_but_at_the_end_makes_the_file_unusable(tmp_path: Path) -> None:
    sizes = written(tmp_path / "f", [("a", b"1")], [("b", b"2")])
    data = (tmp_path / "f").read_bytes()
    for at in range(sizes[-2]):
        wrong = data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]
        with pytest.raises(Corrupt):
            statefile.parse(wrong)


def test_frames_that_are_missing_in_between_make_the_file_unusable(tmp_path: Path) -> None:
    first, second, _ = written(tmp_path / "f", [("a", b"1")], [("b", b"2")])
    data = (tmp_path / "f").read_bytes()
    with pytest.raises(Corrupt, match="none of ours"):
        statefile.parse(data[:first] + data[second:])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_state_or_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        statefile.parse(data)


def test_what_another_version_wrote_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(statefile, "FORMAT", "plexus state 9")
        written(tmp_path / "f")
    with pytest.raises(Corrupt, match="plexus state 9"):
        statefile.parse((tmp_path / "f").read_bytes())


def test_a_group_that_was_cut_off_is_written_over_by_the_next(tmp_path: Path) -> None:
    (size,) = written(tmp_path / "f")
    with (tmp_path / "f").open("ab") as file:
        file.write(b"half of something")
    statefile.append(tmp_path / "f", size, statefile.frames([("a", b"1")], 2))
    assert statefile.parse((tmp_path / "f").read_bytes())[0] == FIRST | {"a": b"1"}


def test_a_state_without_anything_in_it_is_one(tmp_path: Path) -> None:
    written(tmp_path / "f", first={})
    assert statefile.parse((tmp_path / "f").read_bytes()) == ({}, 2)
