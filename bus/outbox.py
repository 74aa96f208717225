"""The owner's side: its log held in memory, written by compare-and-set, handed to all who watch.

What is handed out comes from reading the log, not from what we wrote, so a key that somebody else wrote (two replicas,
for a moment, or a claim) travels like any other, and everything travels in the log's order.

A log that was lost, wholly or in part, is handed out to nobody until its owner has said everything again and vouched
for it (`vouch`). That something is missing is noticed by the number of messages, at the latest within a second.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import msgspec

from bus import wire
from bus.codec import Undecodable, encode
from bus.follow import follow
from bus.interface import BusAway, Conflict, Unreadable
from bus.journal import last_word, lost_by
from bus.link import Link, Mailbox, may_answer
from bus.log import RESUME_SECONDS, RETRY_SECONDS, TOMBSTONE_SECONDS, Log, LogInfo
from bus.messages import Message
from bus.messages.log import Vouched
from bus.natspy import Msg
from bus.revision import Revision
from bus.services import ROOTS
from bus.subjects import VOUCHED, delta_of, is_vouch, log_of, snapshot_of
from bus.telemetry import caused_by, count, current_cause, logger
from bus.view import View
from bus.watch import read_entry, unreadable
from bus.wire import Delta, Entry, Interest, SnapshotChunk, SnapshotQuestion

log = logger(__name__)

BATCH_SECONDS = 0.010  # between deltas; the first after a pause goes at once
HEARTBEAT_SECONDS = 1.0
CACHED_SNAPSHOTS = 8  # nodes ask for much the same; a thousand at once must not cost a thousand compressions
WAITING_BYTES = 8 << 20  # of questions for snapshots; one that is dropped is asked again, or the log is read instead
LARGE_SNAPSHOT = 1000  # entries; from here on packing goes to a thread

Starter = Callable[[Coroutine[None, None, None], str], "asyncio.Task[None]"]


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot that was made, and what it is true for."""

    position: int
    revision: dict[str, int]
    since: int
    chunks: list[bytes]


class Table:
    """The last message of every key of one log, deletions included as long as the server may still know them."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.floor = 0  # up to here deletions may have been forgotten: whoever stands before it needs everything

    def least_messages(self, last: int, recent: float) -> int:
        """How many messages the log had at the least when it reached to `last`: a value each, and the deletions stored
        after `recent`. A key that was written since may not have been there."""
        known = (entry for entry in self.entries.values() if entry.sequence <= last)
        return sum(entry.body is not None or entry.stored_at > recent for entry in known)

    def put(self, entry: Entry) -> None:
        """Take an entry unless a later one of its key is known."""
        known = self.entries.get(entry.subject)
        if known is None or entry.sequence >= known.sequence:
            self.entries[entry.subject] = entry

    def body(self, subject: str) -> bytes | None:
        entry = self.entries.get(subject)
        return entry.body if entry else None

    def sequence(self, subject: str) -> int:
        entry = self.entries.get(subject)
        return entry.sequence if entry else 0

    def forget_deletions(self, before: float) -> None:
        """Drop deletions stored before this time (seconds since the epoch)."""
        for entry in [entry for entry in self.entries.values() if entry.body is None and 0 < entry.stored_at < before]:
            del self.entries[entry.subject]
            self.floor = max(self.floor, entry.sequence)

    def set_floor(self, last: int, recent: float) -> None:
        """After a full reading up to `last`: only deletions stored after `recent` are sure to have been in it."""
        young = [entry.sequence for entry in self.entries.values() if entry.stored_at >= recent]
        self.floor = min(young, default=last + 1) - 1

    def since(self, sequence: int, interest: Interest) -> tuple[int, list[Entry]]:
        """(0 for everything or `sequence`, the entries after it in order)."""
        start = sequence if sequence >= self.floor else 0
        found = [entry for entry in self.entries.values() if entry.sequence > start and interest.has(entry.subject)]
        if not start:
            found = [entry for entry in found if entry.body is not None]
        return start, sorted(found, key=lambda entry: entry.sequence)


@dataclass(frozen=True, slots=True)
class Word:
    """What we vouched for last, and how far the log has reached since: it has that still, or a later word, or it has
    lost something."""

    log: str
    number: int
    position: int

    def holds(self, log: str, number: int, position: int) -> bool:
        """A log with this word in it is the one that we left, or one that another has led since."""
        return number > self.number or ((log, number) == (self.log, self.number) and position >= self.position)


class NatsOutbox:
    """`interface.Outbox` over JetStream and core NATS. `word`: of the outbox that this process had before."""

    def __init__(self, link: Link, owner: str, *, vouch: bool = True, word: Word | None = None) -> None:
        self._link = link
        self._owner = owner
        self._log = Log(link, owner)
        self._view = View(Interest([log_of(owner)]), believes=True)
        self._vouches_at_once = vouch
        self._is_vouched = False
        self._word = word
        self._is_doubted = False  # a write has shown that the log lost something, which is not noticed yet
        self._losses = 0
        self._lost = asyncio.Event()  # set, and replaced, at each loss
        self._table = Table()
        self._epoch = ""  # told apart from the log's own name after it went back under us
        self._sent = 0  # position up to which deltas have gone out
        self._news: list[Entry] = []
        self._dirty = asyncio.Event()  # set at first: whoever reads the log directly hears at once that we are here
        self._dirty.set()
        self._loaded = asyncio.Event()
        self._revision: dict[str, int] = {}
        self._heard: deque[tuple[int, dict[str, int]]] = deque()  # (position it holds from, revision)
        self._written = 0  # the last sequence that a write of ours was given, or that one of ours lost to
        self._digests: dict[str, str] = {}  # by noun: what the model says, while nothing of it is being written
        self._locks = KeyLocks()
        self._snapshots: dict[tuple[int, tuple[str, ...]], Kept] = {}
        self._making_seconds = 0.0  # of our thread, for the snapshot that was answered last
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def owner(self) -> str:
        return self._owner

    @property
    def position(self) -> int:
        return max(self._view.position, self._written)

    async def open(self, start: Starter) -> None:
        """Load the log, then hand it out until `close`. `start` runs a task that is not to fail."""
        await self._log.settled_info()
        reading = follow(self._link, self._log, self._view, self._take, began=self._forget, is_whole=self._is_whole)
        self._tasks.append(start(reading, f"follow {self._owner}"))
        await self._loaded.wait()
        if self._word is not None and not self._word.holds(self._view.log, self._number, self._view.position):
            self._losses += 1
        if self._vouches_at_once:
            await self.vouch()
            self._tasks.append(start(self._vouch_again(), f"vouch for {self._owner}"))
        self._tasks.append(start(self._hand_out(), f"deltas of {self._owner}"))
        self._tasks.append(start(self._answer_snapshots(), f"snapshots of {self._owner}"))

    @property
    def word(self) -> Word | None:
        """For the next outbox of this owner."""
        return Word(self._view.log, self._number, self._view.position) if self._is_vouched else self._word

    @property
    def _number(self) -> int:
        """The log's word; 0: it has none."""
        known = self.get(VOUCHED[self._owner].of(self._owner))
        return known.number if isinstance(known, Vouched) else 0

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what it says

    def get(self, subject: str) -> Message | None:
        entry = self._table.entries.get(subject)
        change = read_entry(entry) if entry else None
        return change.message if change else None

    def body(self, subject: str) -> bytes | None:
        return self._table.body(subject)

    def items(self) -> Mapping[str, Message]:
        changes = (read_entry(self._table.entries[subject]) for subject in self.subjects())
        return {change.subject: change.message for change in changes if change and change.message is not None}

    def subjects(self) -> list[str]:
        entries = self._table.entries.items()
        return [subject for subject, entry in entries if entry.body is not None and not is_vouch(subject)]

    def unreadable(self, subject: str) -> Unreadable | None:
        return unreadable(self._table.entries.get(subject))

    async def say(self, subject: str, message: Message) -> bool:
        body = encode(message, subject=subject)
        await self._loaded.wait()
        async with self._locks.hold(subject):
            if self._table.body(subject) == body:
                return False
            await self._write(subject, body)
            return True

    async def unsay(self, subject: str) -> bool:
        await self._loaded.wait()
        async with self._locks.hold(subject):
            if self._table.body(subject) is None:
                return False
            await self._write(subject, None)
            return True

    async def claim(self, subject: str, message: Message) -> Message:
        body = encode(message, subject=subject)
        await self._loaded.wait()
        async with self._locks.hold(subject):
            while True:
                if (winner := self.get(subject)) is not None:
                    return winner
                if (problem := self.unreadable(subject)) is not None:
                    raise problem
                try:
                    await self._write(subject, body)
                    return message
                except Conflict:
                    continue  # the table has the winner now, unless it has let go again

    async def amend(self, subject: str, before: Message | None, after: Message | None) -> Message | None:
        body = None if after is None else encode(after, subject=subject)
        await self._loaded.wait()
        async with self._locks.hold(subject):
            if self.unreadable(subject) is None and self.get(subject) == before:
                try:
                    if before != after:
                        await self._write(subject, body)
                    return after
                except Conflict:
                    pass  # the table has what was first
            if (problem := self.unreadable(subject)) is not None:
                raise problem
            return self.get(subject)

    @property
    def losses(self) -> int:
        return self._losses

    async def lost(self, known: int) -> None:
        while self._losses == known:
            await self._lost.wait()
        await self._loaded.wait()

    async def restore(self) -> int:
        while True:
            try:
                lost = await lost_by(self._link, self._owner, self._table.entries.get)
                break
            except BusAway as problem:
                log.debug("journal not readable yet", owner=self._owner, why=str(problem))
                await asyncio.sleep(RETRY_SECONDS)
        for entry in lost:
            with caused_by(entry.caused_at, entry.trace):
                async with self._locks.hold(entry.subject):
                    await self._write(entry.subject, entry.body)
        if lost:
            count("bus_restored", len(lost), owner=self._owner)
            log.warning("the log had lost what the journal has: said again", owner=self._owner, subjects=len(lost))
        return len(lost)

    async def vouch(self) -> None:
        losses = self._losses
        subject = VOUCHED[self._owner].of(self._owner)
        journal = await self._last_word()
        await self._loaded.wait()
        while not (self._is_vouched or self._losses != losses):  # in one step with the write: it is for this log alone
            try:
                before = max(self._number, self._word.number if self._word else 0, journal)
                await self.say(subject, Vouched(writer=self._owner, number=max(time.time_ns(), before + 1)))
            except Conflict:
                continue  # another replica's, which we know now: ours has to be higher
            self._is_vouched = self._losses == losses
        self._dirty.set()

    async def _last_word(self) -> int:
        """Waits for JOURNAL, and is told of as a write that waits."""
        subject, since = VOUCHED[self._owner].of(self._owner), asyncio.get_running_loop().time()
        try:
            while True:
                try:
                    return await last_word(self._link, self._owner)
                except BusAway as problem:
                    log.debug("journal not readable yet", owner=self._owner, why=str(problem))
                    self._link.untaken[subject] = since, str(problem)
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            self._link.untaken.pop(subject, None)

    async def _vouch_again(self) -> None:
        """For an owner who says what the log says, whatever that is."""
        while True:
            known = self._losses
            await self.lost(known)
            await self.vouch()

    def heard(self, revision: Revision) -> None:
        latest = self._heard[-1][1] if self._heard else self._revision
        if self._owner not in ROOTS and latest != revision:
            self._heard.append((self._written, dict(revision)))
            self._dirty.set()

    def said(self, digests: Mapping[str, str]) -> None:
        nouns = {family.partition(".")[2]: digest for family, digest in digests.items()}
        if nouns != self._digests:
            self._digests = nouns
            self._dirty.set()

    async def _write(self, subject: str, body: bytes | None) -> None:
        """Write over the value that the table knows. Raises: Conflict, after which the table knows better."""
        self._digests = {}
        expected = self._table.sequence(subject)
        cause = current_cause()
        try:
            sequence = await self._log.write(subject, body, expected=expected, cause=cause)
        except Conflict as conflict:
            if conflict.sequence < expected and self._table.body(subject) is not None:
                self._is_doubted = True  # what we wrote or read is not there any more
                await self.lost(self._losses)
                raise
            if conflict.sequence or self._table.body(subject) is not None:
                await self._learn(subject)
                raise
            # The server forgot the deletion that we know.
            sequence = await self._log.write(subject, body, expected=0, cause=cause)
        self._written = max(self._written, sequence)
        self._table.put(Entry(sequence, subject, body, cause.at, dict(cause.trace), time.time()))

    async def _learn(self, subject: str) -> None:
        entry = await self._log.last(subject)
        if entry is None:
            self._table.entries.pop(subject, None)
        else:
            self._table.entries[subject] = msgspec.structs.replace(entry, stored_at=time.time())
            self._written = max(self._written, entry.sequence)  # what is heard from here on may rest on it

    # -- what it hears of its own log

    def _forget(self) -> None:
        """The log is another one, or went back: nothing that we know of it holds."""
        self._word = self.word
        self._is_doubted = False
        if self._view.log:
            self._epoch = f"+{secrets.token_hex(4)}"
        self._table = Table()
        self._snapshots.clear()
        self._heard.clear()
        self._written = 0
        self._loaded.clear()
        self._is_vouched = False
        self._losses += self._view.log != ""
        self._lost.set()
        self._lost = asyncio.Event()

    def _take(self, news: list[Entry]) -> None:
        for entry in news:
            self._table.put(entry)
        self._news += news
        if self._view.complete and not self._loaded.is_set():
            self._table.set_floor(self._view.position, time.time() - RESUME_SECONDS)
            self._news.clear()  # whoever watches asks for all of it: it is another log to them
            self._sent = self._view.position
            self._loaded.set()
        self._dirty.set()

    def _is_whole(self, info: LogInfo) -> bool:
        """Whether the log has as many messages as we know of."""
        if not self._loaded.is_set() or info.last < self._view.position:
            return True
        if self._is_doubted:
            return False
        if info.messages >= len(self._table.entries):
            return True
        return info.messages >= self._table.least_messages(info.last, time.time() - RESUME_SECONDS)

    def _log_name(self) -> str:
        return self._view.log + self._epoch

    def _advance_revision(self) -> None:
        position = self._view.position
        if self._owner in ROOTS:
            self._revision = {self._owner: position}
        while self._heard and self._heard[0][0] <= position:
            self._revision = self._heard.popleft()[1]

    # -- handing it out

    async def _hand_out(self) -> None:
        now = asyncio.get_running_loop().time
        swept = now()
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._dirty.wait()
            except TimeoutError:
                pass
            self._dirty.clear()
            if self._view.complete and self._loaded.is_set() and self._is_vouched:
                await self._send()
            if now() - swept > 60:
                swept = now()
                self._table.forget_deletions(time.time() - TOMBSTONE_SECONDS)
            await asyncio.sleep(BATCH_SECONDS)

    async def _send(self) -> None:
        """Everything since the last time, in one delta (or as many as it fills); a heartbeat when that is nothing."""
        self._advance_revision()
        news, self._news = self._news, []
        last = self._view.position
        pieces = list(wire.in_pieces(news)) or [[]]
        for number, piece in enumerate(pieces, 1):
            done = number == len(pieces)
            reach = last if done else piece[-1].sequence
            revision = self._revision if done else {}
            digests = self._digests if done and last >= self._written else {}
            delta = Delta(wire.SCHEMA, self._log_name(), self._sent, reach, revision, piece, digests)
            try:
                await self._link.publish(delta_of(self._owner), wire.pack(delta))
            except BusAway:
                count("bus_delta_lost", owner=self._owner)  # whoever listens finds the gap
            self._sent = reach

    async def _answer_snapshots(self) -> None:
        async with Mailbox(self._link, limit=WAITING_BYTES, dropped="bus_snapshot_dropped") as box:
            await box.join(snapshot_of(self._owner), queue=self._owner)
            while True:
                item = await box.get()
                if item is not None and item[1] is not None and may_answer(item[1]):
                    self._making_seconds = 0.0
                    await self._answer(item[1])
                    # Whoever asks again and again, in other words each time, has half of our time at the most.
                    await asyncio.sleep(self._making_seconds)

    async def _answer(self, message: Msg) -> None:
        try:
            question = wire.unpack(message.subject, message.data, SnapshotQuestion)
        except Undecodable as problem:
            count("bus_undecodable", family=message.subject)
            log.warning("question dropped: it does not decode", subject=problem.subject, why=problem.why)
            return
        if not self._view.complete or not self._is_vouched:
            return
        same = question.log == self._log_name() and question.since <= self._view.position
        since, chunks = await self._snapshot(question.since if same else 0, question.patterns)
        try:
            for chunk in chunks:
                await self._link.publish(message.reply, chunk)
        except BusAway:
            count("bus_snapshot_lost", owner=self._owner)
        count("bus_snapshots", owner=self._owner, kind="rest" if since else "full")

    async def _snapshot(self, since: int, patterns: list[str]) -> tuple[int, list[bytes]]:
        """(0: everything, the messages to send). The same question about the same position is answered from memory."""
        position = self._view.position
        log_name = self._log_name()
        key = (since, tuple(patterns))
        kept = self._snapshots.get(key)
        self._advance_revision()
        revision = dict(self._revision)
        if kept is not None and (kept.position, kept.revision) == (position, revision):
            return kept.since, kept.chunks
        began = time.thread_time()
        start, entries = self._table.since(since, Interest(patterns))
        pack: partial[list[bytes]] = partial(list, wire.pack_entries(entries))
        packed = pack() if len(entries) < LARGE_SNAPSHOT else await asyncio.to_thread(pack)
        chunks = [
            wire.pack(SnapshotChunk(wire.SCHEMA, log_name, start, position, revision, number, len(packed), piece))
            for number, piece in enumerate(packed)
        ]
        while len(self._snapshots) >= CACHED_SNAPSHOTS:
            del self._snapshots[next(iter(self._snapshots))]
        self._snapshots[key] = Kept(position, revision, start, chunks)
        self._making_seconds = time.thread_time() - began
        return start, chunks


class KeyLocks:
    """Writes of one key go one after the other; a lock lives as long as somebody holds or wants it."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = lock, users - 1
