"""The bus in memory, for tests that need no server: one `Hub`, as many buses as there are services.

What is published goes through the codec, so a message that could not travel fails here too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bus.codec import LIMIT_BYTES, Undecodable, decode, encode
from bus.interface import Anew, Batch, Conflict, Family, Lease, Outbox, Unanswered, Unreadable
from bus.link import NobodyAnswers
from bus.log import entry_headers
from bus.messages import Message
from bus.messages.log import Vouched
from bus.questions import LIMIT_BYTES as QUESTION_BYTES
from bus.questions import answer_bytes
from bus.revision import Revision
from bus.services import ROOTS
from bus.subjects import VOUCHED, Request, check_event, is_vouch, stream_of
from bus.telemetry import count, current_cause, logger
from bus.view import View
from bus.watch import Merged, interests, new_view, read_entry, unreadable
from bus.wire import Entry, Interest

log = logger(__name__)

M = TypeVar("M", bound=Message)
A = TypeVar("A", bound=Message)

EVENTS_WAITING = 10_000


@dataclass
class MemoryLog:
    """The last message of every key of one owner."""

    last: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    revision: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    readers: set[Callable[[list[Entry]], None]] = field(default_factory=set)

    def write(self, subject: str, body: bytes | None, expected: int | None) -> int:
        """Raises: Conflict."""
        current = self.entries[subject].sequence if subject in self.entries else 0
        if expected is not None and expected != current:
            raise Conflict(subject, current)
        self.last += 1
        cause = current_cause()
        entry = Entry(self.last, subject, body, cause.at, dict(cause.trace), time.time())
        self.entries[subject] = entry
        self.tell([entry])
        return self.last

    def tell(self, entries: list[Entry]) -> None:
        for reader in list(self.readers):
            reader(entries)


class Hub:
    """What a server would hold."""

    def __init__(self) -> None:
        self._logs: dict[str, MemoryLog] = {}
        self.leases: dict[str, asyncio.Lock] = {}
        self.listeners: dict[str, list[asyncio.Queue[tuple[str, bytes]]]] = {}
        self.answerers: dict[str, list[Callable[[str, bytes], Awaitable[tuple[bytes, str]]]]] = {}

    def bus(self, name: str = "test") -> MemoryBus:
        """One more connection."""
        return MemoryBus(self, name)

    def log(self, owner: str) -> MemoryLog:
        return self._logs.setdefault(owner, MemoryLog())

    def put(self, subject: str, message: Message) -> int:
        """Write a state as its owner would; returns its sequence."""
        return self.log(subject.split(".")[1]).write(subject, encode(message, subject=subject), None)

    def put_bytes(self, subject: str, body: bytes) -> int:
        """Write any bytes, to see what readers make of them."""
        return self.log(subject.split(".")[1]).write(subject, body, None)

    def delete(self, subject: str) -> int:
        return self.log(subject.split(".")[1]).write(subject, None, None)

    def states(self, owner: str) -> dict[str, Message]:
        """Every value that `owner` says now."""
        held = self.log(owner).entries.values()
        changes = (read_entry(entry) for entry in held if entry.body is not None and not is_vouch(entry.subject))
        return {change.subject: change.message for change in changes if change and change.message is not None}


class MemoryOutbox:
    """`interface.Outbox` in memory."""

    def __init__(self, hub: Hub, owner: str) -> None:
        self._owner = owner
        self._log = hub.log(owner)

    @property
    def owner(self) -> str:
        return self._owner

    @property
    def position(self) -> int:
        return self._log.last

    def get(self, subject: str) -> Message | None:
        entry = self._log.entries.get(subject)
        change = read_entry(entry) if entry else None
        return change.message if change else None

    def body(self, subject: str) -> bytes | None:
        entry = self._log.entries.get(subject)
        return entry.body if entry else None

    def items(self) -> Mapping[str, Message]:
        return {subject: value for subject in self.subjects() if (value := self.get(subject)) is not None}

    def subjects(self) -> list[str]:
        entries = self._log.entries.items()
        return [subject for subject, entry in entries if entry.body is not None and not is_vouch(subject)]

    def unreadable(self, subject: str) -> Unreadable | None:
        return unreadable(self._log.entries.get(subject))

    async def say(self, subject: str, message: Message) -> bool:
        body = encode(message, subject=subject)
        known = self._log.entries.get(subject)
        await asyncio.sleep(0)
        if known is not None and known.body == body:
            return False
        self._log.digests = {}
        self._log.write(subject, body, known.sequence if known else 0)
        return True

    async def unsay(self, subject: str) -> bool:
        known = self._log.entries.get(subject)
        await asyncio.sleep(0)
        if known is None or known.body is None:
            return False
        self._log.digests = {}
        self._log.write(subject, None, known.sequence)
        return True

    async def claim(self, subject: str, message: Message) -> Message:
        await asyncio.sleep(0)
        if (winner := self.get(subject)) is not None:
            return winner
        if (problem := self.unreadable(subject)) is not None:
            raise problem
        self._log.digests = {}
        self._log.write(subject, encode(message, subject=subject), None)
        return message

    async def amend(self, subject: str, before: Message | None, after: Message | None) -> Message | None:
        body = None if after is None else encode(after, subject=subject)
        await asyncio.sleep(0)
        if (problem := self.unreadable(subject)) is not None:
            raise problem
        value = self.get(subject)
        if value == before != after:
            self._log.digests = {}
            self._log.write(subject, body, None)
            return after
        return value

    @property
    def losses(self) -> int:
        return 0

    async def lost(self, known: int) -> None:
        await asyncio.Event().wait()

    async def restore(self) -> int:
        return 0

    async def vouch(self) -> None:
        subject = VOUCHED[self._owner].of(self._owner)
        known = self.get(subject)
        number = known.number + 1 if isinstance(known, Vouched) else 1
        self._log.write(subject, encode(Vouched(writer=self._owner, number=number), subject=subject), None)

    def heard(self, revision: Revision) -> None:
        if self._owner not in ROOTS:
            self._log.revision = dict(revision)
            self._log.tell([])

    def said(self, digests: Mapping[str, str]) -> None:
        self._log.digests = {family.partition(".")[2]: digest for family, digest in digests.items()}
        self._log.tell([])

    async def close(self) -> None:
        """Nothing runs."""


class MemoryLease:
    """`interface.Lease` in memory: kept until it is given back, or taken away by `take_away`."""

    def __init__(self) -> None:
        self._ended = asyncio.Event()

    @property
    def held(self) -> bool:
        return not self._ended.is_set()

    async def lost(self) -> None:
        await self._ended.wait()

    def take_away(self) -> None:
        self._ended.set()


class MemoryBus:
    """`interface.Bus` in memory."""

    def __init__(self, hub: Hub, name: str) -> None:
        self._hub = hub
        self._name = name

    def stuck(self) -> str:
        return ""

    async def watch_state(
        self, *families: Family, direct: bool = False, anew: Anew | None = None
    ) -> AsyncIterator[Batch]:
        views = {owner: new_view(owner, interest, direct=True) for owner, interest in interests(families).items()}
        merged = Merged(views)
        readers = {owner: self._reader(owner, view, merged) for owner, view in views.items()}
        try:
            for owner, reader in readers.items():
                held = self._hub.log(owner)
                views[owner].begin(stream_of(owner))
                reader(sorted(held.entries.values(), key=lambda entry: entry.sequence))
                merged.add(views[owner].finish(held.last))
                held.readers.add(reader)
            merged.news.set()
            if anew is not None:
                anew.asked = lambda owner: self._read_anew(owner, views[owner], merged, readers[owner])
            while True:
                await merged.news.wait()
                batch = merged.take()
                if batch is not None:
                    yield batch
        finally:
            for owner, reader in readers.items():
                self._hub.log(owner).readers.discard(reader)

    def _reader(self, owner: str, view: View, merged: Merged) -> Callable[[list[Entry]], None]:
        def read(entries: list[Entry]) -> None:
            news = [change for entry in entries for change in view.record(entry)]
            view.position = max(view.position, self._hub.log(owner).last)
            view.revision = self._hub.log(owner).revision
            merged.add(news)
            merged.says(owner, self._hub.log(owner).digests)

        return read

    async def own(self, owner: str, *, vouch: bool = True) -> Outbox:
        outbox = MemoryOutbox(self._hub, owner)
        if vouch:
            await outbox.vouch()
        return outbox

    def _read_anew(self, owner: str, view: View, merged: Merged, reader: Callable[[list[Entry]], None]) -> None:
        held = self._hub.log(owner)
        view.retell()
        view.begin(stream_of(owner))
        reader(sorted(held.entries.values(), key=lambda entry: entry.sequence))
        merged.add(view.finish(held.last))
        merged.says(owner, held.digests)

    async def publish_state(self, subject: str, message: Message, *, expected: int | None = None) -> int:
        await asyncio.sleep(0)
        return self._hub.log(subject.split(".")[1]).write(subject, encode(message, subject=subject), expected)

    async def compare_and_set(self, subject: str, message: Message | None, expected: int) -> int | None:
        body = None if message is None else encode(message, subject=subject)
        await asyncio.sleep(0)
        try:
            return self._hub.log(subject.split(".")[1]).write(subject, body, expected)
        except Conflict:
            return None

    async def delete_state(self, subject: str) -> int:
        await asyncio.sleep(0)
        return self._hub.delete(subject)

    async def publish_event(self, subject: str, message: Message) -> None:
        body = encode(message, subject=subject)
        for pattern, queues in self._hub.listeners.items():
            if Interest([pattern]).has(subject):
                for queue in queues:
                    if queue.qsize() >= EVENTS_WAITING:
                        count("bus_dropped_slow_reader")
                    else:
                        queue.put_nowait((subject, body))

    async def watch_events(self, pattern: str, kind: type[M]) -> AsyncIterator[tuple[str, M]]:
        queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        queues = self._hub.listeners.setdefault(pattern, [])
        queues.append(queue)
        try:
            while True:
                subject, body = await queue.get()
                try:
                    event = decode(subject, body, kind, limit=LIMIT_BYTES)
                    check_event(subject, event)
                except Undecodable as problem:
                    count("bus_undecodable", family=".".join(subject.split(".")[:3]))
                    log.warning("event dropped: it does not decode", subject=problem.subject, why=problem.why)
                    continue
                yield subject, event
        finally:
            queues.remove(queue)

    async def ask(self, request: Request[M, A], *tokens: str, message: M, timeout: float = 2.0) -> A:
        subject = request.of(*tokens)
        body = encode(message, subject=subject, limit=QUESTION_BYTES)
        try:
            async with asyncio.timeout(timeout):
                answer, refusal = await self._answerer(subject)(subject, body)
        except TimeoutError:
            raise Unanswered(subject, f"no answer in {timeout} s") from None
        except NobodyAnswers:
            raise Unanswered(subject, "nobody answers this; is the service running?") from None
        if refusal:
            raise Unanswered(subject, refusal)
        return decode(subject, answer, request.answer, limit=QUESTION_BYTES)

    def _answerer(self, subject: str) -> Callable[[str, bytes], Awaitable[tuple[bytes, str]]]:
        for pattern, answerers in self._hub.answerers.items():
            if answerers and Interest([pattern]).has(subject):
                answerers.append(answerers.pop(0))  # the group takes turns
                return answerers[-1]
        raise NobodyAnswers(subject)

    async def answer(self, request: Request[M, A], *tokens: str, handler: Callable[[M], Awaitable[A]]) -> None:
        async def answer(subject: str, body: bytes) -> tuple[bytes, str]:
            headers: dict[str, Any] = dict(entry_headers(current_cause()))  # called in the asker's own task
            return await answer_bytes(request, subject, body, headers, handler)

        answerers = self._hub.answerers.setdefault(request.all(*tokens), [])
        answerers.append(answer)
        try:
            await asyncio.Event().wait()
        finally:
            answerers.remove(answer)

    def lease(self, name: str, *, seconds: float = 3.0) -> AbstractAsyncContextManager[Lease]:
        return self._lease(name)

    @asynccontextmanager
    async def _lease(self, name: str) -> AsyncIterator[Lease]:
        async with self._hub.leases.setdefault(name, asyncio.Lock()):
            lease = MemoryLease()
            try:
                yield lease
            finally:
                lease.take_away()

    async def ensure_streams(self) -> None:
        """They are made when they are used."""

    async def keep_streams(self) -> None:
        await asyncio.Event().wait()


async def first_synced(batches: AsyncIterator[Batch]) -> tuple[dict[str, Message], Batch]:
    """Read a watch until it is synced: (every value by subject, the last batch)."""
    values: dict[str, Message] = {}
    async for batch in batches:
        apply(values, [batch])
        if batch.synced:
            return values, batch
    raise AssertionError("the watch ended")


def apply(values: dict[str, Message], batches: Sequence[Batch]) -> None:
    """Keep `values` as the batches say."""
    for batch in batches:
        for change in batch.changes:
            if change.message is None:
                values.pop(change.subject, None)
            else:
                values[change.subject] = change.message
