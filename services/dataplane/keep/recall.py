"""What this node last heard is kept on its disk, so that it comes up with it when it starts while the bus is away.

Written behind: what is heard is on the disk a second later, in one flush for all of that second. Meanwhile the maps may
be ahead of the disk. A directory beside the pinned maps says so; it goes with the maps when the machine does, and stays
when only this process dies. Then the disk is not believed: a policy that the maps hold already must not be taken back.
Nor is a file that is another than was written last, as of a backup: a second directory there has the hash of that one
for its name. Where that is not there the file is believed only if the kernel held nothing of this node, as when the
machine has started.

A file that someone removes, or puts another in the place of, is made anew out of what the bus says when it is asked for
everything once more: what this process still has to write is only a part.

What was heard from the bus since the start is newer than the disk and is never overwritten by it. With the first sync
the bus is the truth: what only the disk knew is taken away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from bus import subjects
from bus.codec import Undecodable, decode, encode
from bus.interface import Bus, Family
from bus.messages import Message
from bus.service import Service
from bus.subjects import State
from bus.telemetry import count, logger
from services.dataplane.batch import to_the_end
from services.dataplane.settings import NodeSettings
from services.dataplane.store import statefile
from services.dataplane.store.statefile import Corrupt

log = logger(__name__)

PATIENCE_SECONDS = 2.0  # how long the bus may take to be heard in full before the disk is asked
WRITE_SECONDS = 1.0  # heard, but not on the disk: this long at most
TURN_CHANGES = 250  # taken in one turn of the event loop: about 20 ms
LOOK_SECONDS = 30.0  # how often it is seen that the file is there, when there is nothing to write
MARK = "heard-"  # how the directory is named that has the hash of what is on the disk
COMPACT_BYTES = 4 << 20  # the file may grow by this much, and by what it began with, before it is written anew

HearAll = Callable[[], Awaitable[dict[str, Message]]]
"""Everything that the bus says now, by subject."""

Take = Callable[[str, Message], bool]
"""Takes what is recalled; False: it makes no sense any more."""


class Recall:
    """One node's last known state. `ahead`: the directory beside the maps."""

    def __init__(self, path: Path, ahead: Path) -> None:
        self._path = path
        self._ahead = ahead
        self._pending: dict[str, Message | None] = {}  # heard, and not on the disk
        self._is_synced = False
        self._is_begun = False  # the file holds this process's first sync: from here on it is appended to
        self._frames = self._size = self._first_size = self._inode = 0
        self._hash = _hash()  # of the file, as far as this process has written it
        self._mark = ""  # the directory that says so
        self._recalled: dict[str, Message] = {}  # what only the disk has said so far
        self._shut = ""  # why the disk could not be marked as outdated: it must hold nothing, and gets nothing more
        self._news = asyncio.Event()
        self._problem = ""

    @classmethod
    def of(cls, settings: NodeSettings) -> Recall:
        """A node's. What says that the disk is outdated lies beside the maps, or, where there is no BPF file system for
        any, on the disk: that is where rules keep their tables then."""
        beside = settings.pin_dir
        try:
            beside.mkdir(parents=True, exist_ok=True)
        except OSError:
            beside = settings.state_dir
        return cls(settings.state_dir / "heard.state", beside / "ahead")

    def heard(self, subject: str, message: Message | None) -> None:
        """The bus says so. Call it before the maps are written. What this node itself says is not kept."""
        if subjects.ENDPOINT.has(subject):
            return
        self._recalled.pop(subject, None)
        self._owe(subject, message)

    def refused(self, subject: str) -> None:
        """What the bus says makes no sense: what was good before stays, on the disk too if that alone knows it."""
        known = self._recalled.pop(subject, None)
        if known is not None:
            self._owe(subject, known)

    def _owe(self, subject: str, message: Message | None) -> None:
        if not self._pending:
            self._mark_ahead()
        if not self._shut:
            self._pending[subject] = message
            self._news.set()

    def _mark_ahead(self) -> None:
        """From here on the maps are ahead of the disk. Where that cannot be marked the disk says nothing at all, until
        another process has heard everything anew: what comes from here on is a part."""
        if self._shut:
            return
        try:
            self._ahead.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            self._shut = f"{self._ahead} cannot be made: {problem}"
            log.error(
                "what is heard is not kept on the disk any more: make room, and start the dataplane anew",
                why=self._shut,
            )
            self._clear()
            self._news.set()  # to be shown

    def keep_mark(self) -> None:
        """The mark goes with the pins beside it when someone removes them; it comes back."""
        if self._pending and not self._ahead.exists():
            self._mark_ahead()
        elif self._mark and not self._ahead.with_name(self._mark).exists():
            with suppress(OSError):  # as where it was written
                self._ahead.with_name(self._mark).mkdir(parents=True, exist_ok=True)

    def _mark_written(self) -> None:
        """The disk holds what this process has written, and nothing older is believed. Raises: OSError."""
        self._mark = MARK + self._hash.hexdigest()
        self._ahead.with_name(self._mark).mkdir(parents=True, exist_ok=True)
        for each in self._ahead.parent.glob(MARK + "*"):
            if each.name != self._mark:
                each.rmdir()

    def _clear(self) -> None:
        """The disk is older than the maps, and nothing says so: what it holds goes, now or with the next `write`."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as failure:
            problem = f"{self._path} is outdated and still there: remove it ({failure})"
            if problem != self._problem:
                log.error("a restart while the bus is away would go by an outdated state", why=problem)
            self._problem = problem
            self._news.set()
        else:
            self._problem = self._shut

    def synced(self) -> set[str]:
        """Everything was heard once. Returns what only the disk has said: it is there no more."""
        self._is_synced = True
        gone, self._recalled = set(self._recalled), {}
        self._news.set()
        return gone

    async def unless(self, synced: asyncio.Event, *, is_kernel_new: bool) -> dict[str, Message] | None:
        """What the disk has, when the bus was not heard in full (`synced`) for a moment. None: it was."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await synced.wait()
        except TimeoutError:
            return await self.load(is_kernel_new=is_kernel_new) or {}
        return None

    async def load(self, *, is_kernel_new: bool = True) -> dict[str, Message] | None:
        """The last known state. None: there is none, or it is not to be believed; the log says why.

        `is_kernel_new`: it held nothing of this node when this process started.
        """
        if self._ahead.exists():
            log.warning("the state on disk is older than what the kernel holds: waiting for the bus")
            return None
        try:
            data = await to_the_end(asyncio.to_thread(self._path.read_bytes))
            mark, marks = MARK + _hash(data).hexdigest(), self._marks()
            if mark not in marks and (marks or not is_kernel_new):
                count("state_unusable")
                log.warning("the state on disk is not the one that was written last: waiting for the bus")
                return None
            self._mark = mark
            return await to_the_end(asyncio.to_thread(_read, data))
        except FileNotFoundError:
            return None
        except (Corrupt, Undecodable, OSError, ValueError) as problem:
            count("state_unusable")
            log.warning(
                "the state on disk cannot be used: pods stay closed until the bus is back",
                path=str(self._path),
                why=str(problem),
            )
            return None

    def _marks(self) -> set[str]:
        return {each.name for each in self._ahead.parent.glob(MARK + "*")}

    async def recall(self, found: Mapping[str, Message], take: Take) -> int:
        """Tell what was found on the disk. Returns how many subjects; 0 as well when the bus was heard in full
        meanwhile. Nothing may be heard while this runs."""
        if self._is_synced:
            return 0
        for number, (subject, message) in enumerate(found.items(), 1):
            take(subject, message)
            self._recalled[subject] = message
            if number % TURN_CHANGES == 0:
                await asyncio.sleep(0)
        return len(self._recalled)

    async def run(self, service: Service, hear_all: HearAll) -> None:
        """Write what is heard, for ever; and once more when it ends."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._news.wait()
                await asyncio.sleep(WRITE_SECONDS)
                self._news.clear()
                if self._is_lost():
                    self._problem = f"{self._path} was removed or changed, and is made anew when the bus has said all"
                    log.error("the state on disk is gone", why=self._problem)
                    count("drift", kind="file")
                    service.check("state", False, self._problem)
                    await self._begin_anew(await hear_all())
                await self.write()
                service.check("state", not self._problem, self._problem)
        finally:
            await self.write()

    async def write(self) -> None:
        """What is heard is on the disk when this returns, or is tried again with the next."""
        if self._shut:
            self._clear()
        elif self._is_synced and not self._is_lost() and (self._pending or not self._is_begun):
            await self._write_pending()

    def _is_lost(self) -> bool:
        """The file is not the one that this process has written: nothing may be added to it."""
        if not self._is_begun or self._shut:
            return False
        try:
            found = self._path.stat()
        except OSError:
            return True
        return found.st_ino != self._inode or found.st_size < self._size

    async def _begin_anew(self, state: dict[str, Message]) -> None:
        try:
            bodies = {subject: encode(message) for subject, message in state.items()}
            await to_the_end(asyncio.to_thread(self._replace, bodies))
            self._mark_written()
        except OSError as failure:
            self._problem = str(failure)
            self._news.set()
        else:
            self._problem = ""

    async def _write_pending(self) -> None:
        pending, self._pending = self._pending, {}
        problem = ""
        try:
            await to_the_end(asyncio.to_thread(self._write, pending))
            self._mark_written()
        except (OSError, Corrupt) as failure:
            problem = str(failure)
        if self._shut:  # since this began: it may have put the file back
            self._clear()
        elif problem:
            self._pending = pending | self._pending
            self._news.set()
            if problem != self._problem:
                log.error("state not written to disk: make room there", path=str(self._path), why=problem)
            self._problem = problem
        else:
            self._problem = ""
            if not self._pending and self._ahead.exists():
                with suppress(OSError):  # then the disk is not believed, which costs nothing but a wait
                    self._ahead.rmdir()

    def _write(self, pending: dict[str, Message | None]) -> None:
        changes = {subject: None if message is None else encode(message) for subject, message in pending.items()}
        if not self._is_begun:
            state = {subject: body for subject, body in changes.items() if body is not None}
            self._replace(state)
            return
        pieces = list(statefile.frames(changes.items(), self._frames))
        frames, size = statefile.append(self._path, self._size, pieces)
        self._hash.update(b"".join(pieces))
        self._frames += frames
        self._size += size
        if self._size > 2 * self._first_size + COMPACT_BYTES:
            self._replace(statefile.parse(self._path.read_bytes())[0])

    def _replace(self, state: dict[str, bytes]) -> None:
        written = _hash()

        def pieces() -> Iterator[bytes]:
            for piece in statefile.first_state(state):
                written.update(piece)
                yield piece

        self._frames, self._size = statefile.replace(self._path, pieces())
        self._hash = written
        self._first_size = self._size
        self._inode = self._path.stat().st_ino
        self._is_begun = True


async def hear_all(bus: Bus, families: Sequence[Family]) -> dict[str, Message]:
    """What the bus says of them now."""
    found: dict[str, Message] = {}
    async for batch in bus.watch_state(*families):
        for change in batch.changes:
            if change.message is None:
                found.pop(change.subject, None)
            else:
                found[change.subject] = change.message
        if batch.synced:
            break
    return found


def _hash(data: bytes = b"") -> blake2b:
    return blake2b(data, digest_size=16)


def _read(data: bytes) -> dict[str, Message]:
    """Raises: Corrupt, Undecodable: any part of it that cannot be read makes it unusable."""
    state, _ = statefile.parse(data)
    families: dict[str, State[Message] | None] = {}
    found: dict[str, Message] = {}
    for subject, body in state.items():
        head = subject.rsplit(".", subject.count(".") - 2)[0]
        if head not in families:
            families[head] = subjects.state_of(subject)
        family = families[head]
        if family is None:
            raise Undecodable(subject, "no such family of subjects")
        found[subject] = decode(subject, body, family.message)
        if family.subject_of(found[subject]) != subject:
            raise Undecodable(subject, "the message is of another thing")
    return found
