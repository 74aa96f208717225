"""What must survive on the node's disk: a dictionary whose every change is appended to a file before it counts.

The file is a stream of MessagePack values, each `[checksum, bytes]`, the bytes being `[key, value]`, or `[key]` when
the key is gone; the first is a header that names the format. A crash may leave half a record at the end, or blocks of
zeros: what follows the last whole record is cut off. A record that is damaged with whole ones behind it is no crash's
work: it is passed over, told, and left where it is (`is_damaged`), and all others count. When most of the file is
outdated, what is left is written to a new file that takes the old one's place in one step. That something was lost is
told there too, by a record of its own, until `mended`.

Writes that wait at the same time share one flush (batch.py).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import time
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]

from bus.telemetry import count, logger
from services.dataplane.batch import Batch, to_the_end

log = logger(__name__)

FORMAT = "plexus journal 1"
DAMAGED = "journal damaged"  # a key: the file before this one had lost something
COMPACT_BYTES = 1 << 20  # below this size outdated records are left alone
COMPACT_RATIO = 4  # compact when the file is this many times as large as what counts in it
HEAD = re.compile(  # of a record: an array of two, a number, the length of the bytes that follow
    rb"\x92(?:([\x00-\x7f])|\xcc(.)|\xcd(..)|\xce(....))(?:\xc4(.)|\xc5(..)|\xc6(....))", re.DOTALL
)

Change = tuple[str, bytes | None]  # key, packed value; None: gone


class JournalError(Exception):
    """The journal cannot be used; the text says what to do."""


class Journal:
    """A durable dictionary from text to MessagePack values. Made by `Journal.open`."""

    def __init__(
        self, path: Path, fd: int, values: dict[str, bytes], size: int, *, durable: bool, is_damaged: bool
    ) -> None:
        self.is_damaged = is_damaged
        """Some of what was durable is not known any more, since `mended` the last time."""
        self._path = path
        self._fd = fd
        self._values = values  # packed; changed only by the writing thread, and only after the write
        self._size = size  # bytes of whole records
        self._live = sum(map(_weight, values, values.values()))
        self._durable = durable
        self._thread = ThreadPoolExecutor(1, "journal")
        self._writes: Batch[tuple[Change, ...]] = Batch(self._thread, self._write)

    @classmethod
    def open(cls, path: Path, *, durable: bool = True) -> Journal:
        """Read what is there, or begin.

        Args:
            durable: whether a change counts only once it is flushed to the disk (one `fdatasync` a round). Without,
                it survives the death of this process but not that of the machine.
        Raises: JournalError: another process has it open, or it is of a format that we do not know.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ".new").unlink(missing_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _lock(fd, path)
            values, good, total, damaged = _read(fd, path)
            if good < total:
                log.warning("journal ended in the middle of a record; cut off", path=str(path), bytes=total - good)
                count("journal_cut_bytes", total - good)
                os.ftruncate(fd, good)
            if damaged:
                log.error("journal damaged in its middle: check the disk", path=str(path), bytes=damaged)
                count("journal_damaged_bytes", damaged)
            if good == 0:
                good = os.write(fd, _header())
                os.fsync(fd)
                _sync_directory(path)
        except BaseException:
            os.close(fd)
            raise
        is_damaged = values.pop(DAMAGED, None) is not None or damaged > 0
        return cls(path, fd, values, good, durable=durable, is_damaged=is_damaged)

    def get(self, key: str) -> Any:
        """The value that is on disk; None when there is none."""
        packed = self._values.get(key)
        return None if packed is None else msgpack.unpackb(packed, strict_map_key=False)

    def items(self, prefix: str = "") -> dict[str, Any]:
        """Every key that starts with `prefix`, and its value."""
        values = dict(self._values)
        return {
            key: msgpack.unpackb(packed, strict_map_key=False)
            for key, packed in values.items()
            if key.startswith(prefix)
        }

    async def put(self, key: str, value: object) -> None:
        """`key` has this value; returns when that is on disk. Raises: OSError: it is not, the old value stands."""
        await self.update({key: value})

    async def delete(self, key: str) -> None:
        await self.update(deleted=(key,))

    async def update(self, values: Mapping[str, object] = {}, deleted: Iterable[str] = ()) -> None:
        """Several changes at once, in one flush. Not all or nothing: a crash may leave the first of them."""
        changes: list[Change] = [(key, msgpack.packb(value)) for key, value in values.items()]
        changes += [(key, None) for key in deleted]
        if changes:
            await self._writes.add(tuple(changes))

    async def mended(self) -> None:
        """Nothing is missed any more: begin a file without damage."""
        await to_the_end(asyncio.wrap_future(self._thread.submit(self._mend)))

    async def close(self) -> None:
        """Returns when what was asked is on disk."""
        await self._writes.drain()
        await asyncio.get_running_loop().run_in_executor(self._thread, os.close, self._fd)
        self._thread.shutdown()

    # On the thread

    def _mend(self) -> None:
        self.is_damaged = False
        self._compact()

    def _write(self, rounds: list[tuple[Change, ...]]) -> None:
        changes = [change for changes in rounds for change in changes]
        data = b"".join(_record(key, packed) for key, packed in changes)
        began = time.monotonic()
        try:
            _write_all(self._fd, data)
            if self._durable:
                os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._size)  # or the next record would follow half of this one
            raise
        count("journal_writes")
        count("journal_write_microseconds", int((time.monotonic() - began) * 1e6))
        self._size += len(data)
        for key, packed in changes:
            before = self._values.pop(key, None)
            self._live -= 0 if before is None else _weight(key, before)
            if packed is not None:
                self._values[key] = packed
                self._live += _weight(key, packed)
        if self._size > max(COMPACT_BYTES, COMPACT_RATIO * self._live):
            self._compact()

    def _compact(self) -> None:
        """The changes are on disk already: a failure here costs room, and is tried again with the next write."""
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                _lock(fd, fresh)
                records = {DAMAGED: msgpack.packb(True), **self._values} if self.is_damaged else self._values
                data = _header() + b"".join(_record(key, packed) for key, packed in records.items())
                _write_all(fd, data)
                os.fsync(fd)
                fresh.rename(self._path)
            except BaseException:
                os.close(fd)
                raise
        except OSError as failure:
            log.warning("journal not compacted", path=str(self._path), why=str(failure))
            return
        os.close(self._fd)
        self._fd, self._size = fd, len(data)
        _sync_directory(self._path)
        count("journal_compactions")


def _record(key: str, packed: bytes | None) -> bytes:
    name: bytes = msgpack.packb(key)
    body = b"\x91" + name if packed is None else b"\x92" + name + packed  # an array of one or of two
    return _framed(body)


def _framed(body: bytes) -> bytes:
    framed: bytes = msgpack.packb([zlib.crc32(body), body])
    return framed


def _header() -> bytes:
    return _framed(msgpack.packb(FORMAT))


def _weight(key: str, packed: bytes) -> int:
    """About the bytes that a record takes."""
    return len(key) + len(packed) + 16


def _read(fd: int, path: Path) -> tuple[dict[str, bytes], int, int, int]:
    """The values, where the last whole record ends, the length of the file, and bytes between whole records.

    Raises: JournalError: the header is another's.
    """
    with open(os.dup(fd), "rb") as stream:  # noqa: PTH123 (by descriptor, which is locked)
        stream.seek(0)
        data = stream.read()
    values: dict[str, bytes] = {}
    good = damaged = 0
    head = HEAD.match(data)
    while head is not None:
        body = _body(data, head)
        if body is not None and good == 0:
            _check_header(body, path)
        if body is not None and (good == 0 or _take(body, values)):
            damaged += head.start() - good
            good = head.end() + len(body)
            head = HEAD.search(data, good)
        else:
            head = HEAD.search(data, head.start() + 1) if good else None
    if good == 0 and len(data) > len(_header()):
        raise JournalError(f"{path} is not a journal of ours: move it away, and the node starts without it")
    return values, good, len(data), damaged


def _body(data: bytes, head: re.Match[bytes]) -> bytes | None:
    """The content of the record that begins so; None when it is not whole."""
    checksum, size = (int.from_bytes(each, "big") for each in head.groups() if each is not None)
    body = data[head.end() : head.end() + size]
    return body if len(body) == size and zlib.crc32(body) == checksum else None


def _check_header(body: bytes, path: Path) -> None:
    try:
        found = msgpack.unpackb(body)
    except (msgpack.exceptions.UnpackException, ValueError):
        found = None
    if found != FORMAT:
        raise JournalError(
            f"{path} is of the format {found!r}, this program knows {FORMAT!r}: "
            "run the version that wrote it, or move the file away, and the node starts without it"
        )


def _take(body: bytes, values: dict[str, bytes]) -> bool:
    """Apply a record. False: it is none, though its checksum is right."""
    try:
        parts = msgpack.unpackb(body, strict_map_key=False)
    except (msgpack.exceptions.UnpackException, ValueError):
        return False
    match parts:
        case [str(key)]:
            values.pop(key, None)
        case [str(key), _]:
            values[key] = body[1 + len(msgpack.packb(key)) :]
        case _:
            return False
    return True


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as failure:
        raise JournalError(f"{path} is in use: is another dataplane running with this state directory?") from failure


def _sync_directory(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
