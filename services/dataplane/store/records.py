"""Records in a file, one after another, each whole by itself: MessagePack `[checksum, bytes]`.

Both files of this node are made of them. What the bytes are, and what a damaged record means, each says itself.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import NamedTuple

HEAD = re.compile(  # an array of two, a number, the length of the bytes that follow
    rb"\x92(?:\xce(....)|([\x00-\x7f])|\xcc(.)|\xcd(..))(?:\xc6(....)|\xc4(.)|\xc5(..))", re.DOTALL
)
"""What is written has four bytes for each; journals of earlier versions have as few as the number needs."""


class Whole(NamedTuple):
    """A record whose checksum is right, and where in the file it is."""

    start: int
    end: int
    body: bytes


def record(body: bytes) -> bytes:
    """The bytes as they stand in the file."""
    return b"".join((b"\x92\xce", zlib.crc32(body).to_bytes(4, "big"), b"\xc6", len(body).to_bytes(4, "big"), body))


def whole_at(data: bytes, at: int) -> Whole | None:
    """The record that begins at `at`; None when there is no whole one."""
    head = HEAD.match(data, at)
    return None if head is None else _whole(data, head)


def whole_from(data: bytes, at: int) -> Whole | None:
    """The first whole record that begins at `at` or behind it."""
    while (head := HEAD.search(data, at)) is not None:
        if (found := _whole(data, head)) is not None:
            return found
        at = head.start() + 1
    return None


def sync_directory(path: Path) -> None:
    """That a file was given the name `path` is on disk."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _whole(data: bytes, head: re.Match[bytes]) -> Whole | None:
    checksum, size = (int.from_bytes(each, "big") for each in head.groups() if each is not None)
    body = data[head.end() : head.end() + size]
    if len(body) != size or zlib.crc32(body) != checksum:
        return None
    return Whole(head.start(), head.end() + size, body)
