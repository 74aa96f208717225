"""What must survive on the node's disk: a dictionary whose every change is appended to a file before it counts.

The file is a stream of records (records.py), each of which holds MessagePack: `[key, value]`, or `[key]` when the key
is gone; the first is a header that names the format. When most of the file is outdated, what is left is written to a
new file that takes the old one's place in one step.

Whatever befalls the file, all records that are whole count, and `is_damaged` says that there may have been more: where
a record is damaged (it is passed over and left where it is), where the end is cut off (a crash leaves half a record
there, or zeros; a record that was durable and is damaged now looks the same), and where there was no file. A record of
its own says so in the file, until `mended`. A value that is passed over may leave an older one of its key in force, or
a key that was gone: who reads them must see whether they are still true.

Without a disk it goes on with what it knows; writes then fail, and `problem` says why. `check` notices that the file is
gone or the disk is back, and writes everything anew.

Writes that wait at the same time share one flush (batch.py).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]

from bus.telemetry import count, logger
from services.dataplane.batch import Batch, to_the_end
from services.dataplane.store.records import record, sync_directory, whole_from

log = logger(__name__)

FORMAT = "plexus journal 1"
DAMAGED = "journal damaged"  # a key: something was lost before this
ASIDE = ".damaged"  # a file of which nothing could be read is kept under its name with this at the end
NO_FILE = -1
COMPACT_BYTES = 1 << 20  # below this size outdated records are left alone
COMPACT_RATIO = 4  # compact when the file is this many times as large as what counts in it

Change = tuple[str, bytes | None]  # key, packed value; None: gone


class JournalError(Exception):
    """The journal cannot be used; the text says what to do."""


class Journal:
    """A durable dictionary from text to MessagePack values. Made by `Journal.open`."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.is_damaged = True
        """Some of what was durable may not be known any more, since `mended` the last time."""
        self.problem = ""
        """Why nothing can be written; "" when all is well."""
        self._path = path
        self._fd = NO_FILE
        self._values: dict[str, bytes] = {}  # packed; changed only by the writing thread, and only after the write
        self._size = 0  # bytes of whole records
        self._live = 0
        self._durable = durable
        self._thread = ThreadPoolExecutor(1, "journal")
        self._writes: Batch[tuple[Change, ...]] = Batch(self._thread, self._write)

    @classmethod
    def open(cls, path: Path, *, durable: bool = True) -> Journal:
        """Read what is there, or begin. What cannot be read or begun is told by `is_damaged` and `problem`.

        Args:
            durable: whether a change counts only once it is flushed to the disk (one `fdatasync` a round). Without,
                it survives the death of this process but not that of the machine.
        Raises: JournalError: another process has it open, or it is of a format that we do not know.
        """
        made = cls(path, durable=durable)
        try:
            made._open()
        except OSError as failure:
            made._cannot_write(failure)
        return made

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

    async def check(self) -> str:
        """The `problem` as of now: a file that someone removed is written anew, and so is one that could not be written
        before."""
        await to_the_end(asyncio.wrap_future(self._thread.submit(self._check)))
        return self.problem

    async def close(self) -> None:
        """Returns when what was asked is on disk."""
        await self._writes.drain()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    # On the thread, but for the first

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.with_name(self._path.name + ".new").unlink(missing_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _lock(fd, self._path)
            self._fd = fd
            self._take_up(_read(fd, self._path))
        except BaseException:
            self._close()
            raise

    def _take_up(self, found: _Found) -> None:
        self._values = found.values
        self._live = sum(map(_weight, self._values, self._values.values()))
        self._size = found.good
        if not found.good:
            if found.total:
                aside = self._path.with_name(self._path.name + ASIDE)
                log.error("journal unreadable, set aside: check the disk", path=str(aside), bytes=found.total)
                count("journal_damaged_bytes", found.total)
                self._path.rename(aside)
            self._begin()
            return
        self.is_damaged = self._values.pop(DAMAGED, None) is not None or found.damaged > 0
        if found.damaged:
            log.error("journal damaged in its middle: check the disk", path=str(self._path), bytes=found.damaged)
            count("journal_damaged_bytes", found.damaged)
        if found.good < found.total:
            log.warning("journal cut off after its last whole record", path=str(self._path), bytes=found.rest)
            count("journal_cut_bytes", found.rest)
            os.ftruncate(self._fd, found.good)
            self.is_damaged = True
            self._append(_record(DAMAGED, msgpack.packb(True)))

    def _close(self) -> None:
        if self._fd != NO_FILE:
            os.close(self._fd)
            self._fd = NO_FILE

    def _cannot_write(self, failure: OSError) -> None:
        problem = f"{self._path} cannot be written: {failure.strerror or failure}"
        if problem != self.problem:
            log.error("pods cannot be started: make room on the disk, or mend it", why=problem)
        self.problem = problem

    def _mend(self) -> None:
        self.is_damaged = False
        try:
            self._begin()
        except OSError as failure:
            self._cannot_write(failure)

    def _check(self) -> None:
        try:
            if self.problem or not self._is_in_place():
                if not self.problem:
                    log.error("the journal was removed, and is written anew", path=str(self._path))
                    count("drift", kind="file")
                self._begin()
        except OSError as failure:
            self._cannot_write(failure)

    def _is_in_place(self) -> bool:
        """What is at the path is the file that we write."""
        try:
            there, ours = self._path.stat(), os.fstat(self._fd)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _write(self, rounds: list[tuple[Change, ...]]) -> None:
        changes = [change for changes in rounds for change in changes]
        data = b"".join(_record(key, packed) for key, packed in changes)
        began = time.monotonic()
        try:
            if self._fd == NO_FILE or not self._is_in_place():
                self._begin()
            self._append(data)
        except OSError as failure:
            self._cannot_write(failure)
            raise
        self.problem = ""
        count("journal_writes")
        count("journal_write_microseconds", int((time.monotonic() - began) * 1e6))
        for key, packed in changes:
            before = self._values.pop(key, None)
            self._live -= 0 if before is None else _weight(key, before)
            if packed is not None:
                self._values[key] = packed
                self._live += _weight(key, packed)
        if self._size > max(COMPACT_BYTES, COMPACT_RATIO * self._live):
            try:
                self._begin()
            except OSError as failure:  # the changes are on disk: it costs room, and is tried with the next write
                log.warning("journal not compacted", path=str(self._path), why=str(failure))
            else:
                count("journal_compactions")

    def _append(self, data: bytes) -> None:
        try:
            _write_all(self._fd, data)
            if self._durable:
                os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._size)  # or the next record would follow half of this one
            raise
        self._size += len(data)

    def _begin(self) -> None:
        """A new file, with what counts and nothing else, takes the place of the one that is there, if any.

        Raises: OSError: the one that is there still is.
        """
        fresh = self._path.with_name(self._path.name + ".new")
        fresh.parent.mkdir(parents=True, exist_ok=True)
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
        self._close()
        self._fd, self._size = fd, len(data)
        self.problem = ""
        sync_directory(self._path)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a file holds."""

    values: dict[str, bytes]
    good: int  # where its last whole record ends
    total: int  # its length
    damaged: int  # bytes before and between whole records

    @property
    def rest(self) -> int:
        return self.total - self.good


def _record(key: str, packed: bytes | None) -> bytes:
    name: bytes = msgpack.packb(key)
    body = b"\x91" + name if packed is None else b"\x92" + name + packed  # an array of one or of two
    return record(body)


def _header() -> bytes:
    return record(msgpack.packb(FORMAT))


def _weight(key: str, packed: bytes) -> int:
    """About the bytes that a record takes."""
    return len(key) + len(packed) + 16


def _read(fd: int, path: Path) -> _Found:
    """Every whole record, wherever it begins.

    Raises: JournalError: the header is another's. OSError.
    """
    with open(os.dup(fd), "rb") as stream:  # noqa: PTH123 (by descriptor, which is locked)
        stream.seek(0)
        data = stream.read()
    values: dict[str, bytes] = {}
    good = damaged = at = 0
    while (found := whole_from(data, at)) is not None:
        at = found.start + 1
        if _is_header(found.body, path) or _take(found.body, values):
            damaged += found.start - good
            good = at = found.end
    return _Found(values, good, len(data), damaged)


def _is_header(body: bytes, path: Path) -> bool:
    """Raises: JournalError: it is one, of another format."""
    try:
        found = msgpack.unpackb(body, strict_map_key=False)
    except (msgpack.exceptions.UnpackException, ValueError):
        return False
    if isinstance(found, str) and found != FORMAT:
        raise JournalError(
            f"{path} is of the format {found!r}, this program knows {FORMAT!r}: "
            "run the version that wrote it, or move the file away, and the node starts without it"
        )
    return isinstance(found, str)


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
