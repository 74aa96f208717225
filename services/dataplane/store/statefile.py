"""What a node last heard, as a file: a stream of frames that is whole up to a point, or not used at all.

Each frame is a record (records.py) that holds MessagePack, `[number, is_last, [[subject, body], ...]]`: the number
counts frames from 0, body None says that the subject is gone. Frames up to one that `is_last` belong together: a state
that was true at one time. The first such group holds everything that there was; it came into being under another name,
so it is there as a whole. What follows is appended.

A crash may leave the last group half written, or zeros in its place: it is left out, and the state is the one before.
A frame that is damaged with whole ones behind it is no crash's work. Then nothing of the file is used: a part of what
was true (pods, but not the policies for them) would open what must be closed. So it is with whatever cannot be read.

Pure, but for `append` and `replace`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgpack  # type: ignore[import-untyped]

from services.dataplane.store.records import record, sync_directory, whole_at, whole_from

FORMAT = "plexus state 1"
FRAME_CHANGES = 2000  # bounds how long packing one frame holds the interpreter

Change = tuple[str, bytes | None]


class Corrupt(Exception):
    """The file cannot be used; the text says why."""


def frames(changes: Iterable[Change], number: int) -> Iterator[bytes]:
    """The changes as one group of frames, of which the first has this number."""
    group = list(changes)
    starts = range(0, len(group), FRAME_CHANGES) if group else range(1)
    for offset, start in enumerate(starts):
        piece = group[start : start + FRAME_CHANGES]
        yield record(msgpack.packb([number + offset, start + FRAME_CHANGES >= len(group), piece]))


def parse(data: bytes) -> tuple[dict[str, bytes], int]:
    """The last whole state, and how many frames it is made of. Raises: Corrupt."""
    state: dict[str, bytes] = {}
    group: list[Change] = []
    at = number = whole = 0
    while (frame := whole_at(data, at)) is not None:
        is_last, changes = _content(frame.body, number)
        if number == 0 and changes:
            raise Corrupt("it begins with something else than its format")
        group += changes
        number += 1
        at = frame.end
        if is_last:
            _apply(state, group)
            group, whole = [], number
    if whole_from(data, at + 1) is not None:
        raise Corrupt(f"it is damaged at byte {at}")
    if whole < 2:
        raise Corrupt("it does not hold a whole state")
    return state, whole


def first_state(state: Mapping[str, bytes]) -> Iterator[bytes]:
    """The file as it begins: its format, then everything."""
    yield record(msgpack.packb([0, True, [], FORMAT]))
    yield from frames(state.items(), 1)


def replace(path: Path, pieces: Iterable[bytes]) -> tuple[int, int]:
    """Give `path` this content, on disk, in one step. Returns frames and bytes. Raises: OSError: it is as it was."""
    fresh = path.with_name(path.name + ".new")
    fresh.parent.mkdir(parents=True, exist_ok=True)
    count = size = 0
    with open(fresh, "wb", opener=_private) as file:
        for piece in pieces:
            file.write(piece)
            count += 1
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    sync_directory(path)
    return count, size


def append(path: Path, size: int, pieces: Iterable[bytes]) -> tuple[int, int]:
    """Add to the first `size` bytes, on disk. Returns frames and bytes added. Raises: OSError: nothing counts of it."""
    data = list(pieces)
    with path.open("r+b") as file:
        file.truncate(size)  # of a group that did not get to the disk whole
        file.seek(size)
        file.writelines(data)
        file.flush()
        os.fdatasync(file.fileno())
    return len(data), sum(map(len, data))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _content(body: bytes, number: int) -> tuple[bool, list[Change]]:
    """Raises: Corrupt: not a frame of ours, or not the one that is due."""
    try:
        parts = msgpack.unpackb(body)
    except (msgpack.exceptions.UnpackException, ValueError, RecursionError) as problem:
        raise Corrupt(f"frame {number} does not unpack: {problem!r}") from problem
    match parts:
        case [int(found), bool(is_last), list(changes), *rest] if found == number:
            if number == 0 and rest != [FORMAT]:
                raise Corrupt(f"its format is {rest!r}, this version knows {FORMAT!r}")
            return is_last, [_change(each, number) for each in changes]
    raise Corrupt(f"frame {number} is none of ours")


def _change(change: object, number: int) -> Change:
    match change:
        case [str(subject), bytes() | None as body]:
            return subject, body
    raise Corrupt(f"frame {number} holds {change!r}, which is no change")


def _apply(state: dict[str, bytes], changes: Iterable[Change]) -> None:
    for subject, body in changes:
        if body is None:
            state.pop(subject, None)
        else:
            state[subject] = body
