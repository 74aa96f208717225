"""The bus over NATS: what `connect` gives a service.

`interface.py` says what each call promises; `testing.py` is the same in memory. How it is done: link.py (the
connection), log.py (writing and reading one owner's log), watch.py (the consumer's dance), outbox.py (the owner's
side), lease.py, questions.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

from bus import lease, questions
from bus.codec import TooLarge, Undecodable, decode, encode
from bus.interface import (
    Anew,
    Batch,
    Bus,
    BusAway,
    BusError,
    Change,
    Conflict,
    Family,
    Lease,
    Outbox,
    Refused,
    Unanswered,
)
from bus.link import Link, open_link
from bus.log import Log, entry_headers, make_all_streams
from bus.messages import Message
from bus.outbox import NatsOutbox
from bus.subjects import Request, check_event
from bus.telemetry import count, current_cause, logger
from bus.tls import ClientTls
from bus.watch import watch

__all__ = [
    "Batch",
    "Bus",
    "BusAway",
    "BusError",
    "Change",
    "Conflict",
    "Family",
    "Lease",
    "NatsBus",
    "Outbox",
    "Refused",
    "TooLarge",
    "Unanswered",
    "Undecodable",
    "connect",
]

log = logger(__name__)

M = TypeVar("M", bound=Message)
A = TypeVar("A", bound=Message)

STUCK_SECONDS = 2.0  # a write is tried again for so long before it is told of
KEEP_SECONDS = 5.0  # between looks for a stream that is missing
EVENTS_WAITING = 10_000  # events a slow reader may be behind; more are dropped and counted


class NatsBus:
    """`interface.Bus` over one connection."""

    def __init__(self, link: Link, name: str, fail: Callable[[], object]) -> None:
        self.link = link
        self.failure: BaseException | None = None  # of a task that was not to end
        self._name = name
        self._fail = fail
        self._running: set[asyncio.Task[None]] = set()
        self._logs: dict[str, Log] = {}
        self._outboxes: dict[str, NatsOutbox] = {}  # the last of each owner

    def stuck(self) -> str:
        now = asyncio.get_running_loop().time()
        since = {subject: at for subject, (at, _) in self.link.untaken.items() if now - at >= STUCK_SECONDS}
        if not since:
            return ""
        first = min(since, key=lambda subject: since[subject])
        why = self.link.untaken[first][1]
        return f"{len(since)} not taken for {now - since[first]:.0f} s, {first} first: {why}"

    def watch_state(self, *families: Family, direct: bool = False, anew: Anew | None = None) -> AsyncIterator[Batch]:
        return watch(self.link, families, direct=direct, anew=anew)

    async def own(self, owner: str, *, vouch: bool = True) -> NatsOutbox:
        before = self._outboxes.get(owner)
        outbox = NatsOutbox(self.link, owner, vouch=vouch, word=before.word if before else None)
        self._outboxes[owner] = outbox
        await outbox.open(self._start)
        return outbox

    async def publish_state(self, subject: str, message: Message, *, expected: int | None = None) -> int:
        return await self._log(subject).write(subject, encode(message, subject=subject), expected=expected)

    async def compare_and_set(self, subject: str, message: Message | None, expected: int) -> int | None:
        body = None if message is None else encode(message, subject=subject)
        try:
            return await self._log(subject).write(subject, body, expected=expected)
        except Conflict:
            return None

    async def delete_state(self, subject: str) -> int:
        return await self._log(subject).write(subject, None, expected=None)

    async def publish_event(self, subject: str, message: Message) -> None:
        try:
            body = encode(message, subject=subject)
            await self.link.publish(subject, body, headers=entry_headers(current_cause()))
        except BusAway:
            count("bus_event_lost", subject=".".join(subject.split(".")[:3]))

    async def watch_events(self, pattern: str, kind: type[M]) -> AsyncIterator[tuple[str, M]]:
        subscription = await self.link.subscribe(pattern, limit=EVENTS_WAITING)
        try:
            async for message in self.link.read(subscription, pattern):
                try:
                    event = decode(message.subject, message.data, kind)
                    check_event(message.subject, event)
                except Undecodable as problem:
                    count("bus_undecodable", family=".".join(message.subject.split(".")[:3]))
                    log.warning("event dropped: it does not decode", subject=problem.subject, why=problem.why)
                    continue
                yield message.subject, event
        finally:
            await self.link.unsubscribe(subscription)

    async def ask(self, request: Request[M, A], *tokens: str, message: M, timeout: float = 2.0) -> A:
        return await questions.ask(self.link, request, tokens, message, timeout)

    async def answer(self, request: Request[M, A], *tokens: str, handler: Callable[[M], Awaitable[A]]) -> None:
        await questions.answer(self.link, request, tokens, handler)

    def lease(self, name: str, *, seconds: float = 3.0) -> AbstractAsyncContextManager[Lease]:
        return lease.hold(self.link, name, holder=self._name, seconds=seconds)

    async def ensure_streams(self) -> None:
        await make_all_streams(self.link)

    async def keep_streams(self) -> None:
        while True:
            await make_all_streams(self.link)
            await asyncio.sleep(KEEP_SECONDS)

    async def stop(self) -> None:
        """End what outboxes still run."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _log(self, subject: str) -> Log:
        owner = subject.split(".")[1]
        return self._logs.setdefault(owner, Log(self.link, owner))

    def _start(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None and self.failure is None:
            self.failure = problem
            self._fail()


@asynccontextmanager
async def connect(
    url: str, *, name: str, user: str = "", password: str = "", tls: ClientTls | None = None, patient: bool = True
) -> AsyncIterator[NatsBus]:
    """A bus for the service called `name`; waits until the server is there. `patient`, and what it raises: open_link.

    Should one of its own tasks fail, the body is cancelled and that failure raised.
    """
    body = asyncio.current_task()
    assert body is not None
    async with open_link(url, name=name, user=user, password=password, tls=tls, patient=patient) as link:
        bus = NatsBus(link, name, body.cancel)
        try:
            yield bus
        except asyncio.CancelledError:
            if bus.failure is not None and body.uncancel() == 0:
                raise bus.failure from None
            raise
        finally:
            await bus.stop()
