"""The proxy itself: questions in, to the resolver, answers back, over UDP and TCP.

An id of a pod's is replaced by one of our own, from a socket with a port of its own, so that nobody else answers; an
answer must repeat the question. While an answer waits for the node's map, everything else goes on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bus.telemetry import count, logger
from services.dns.judge import NOTHING_NEW, Allowed, Judge, Refused, failure
from services.dns.wire import HEADER, MOST_BYTES, answers

log = logger(__name__)

Address = tuple[str, int]
Admit = Callable[[str, frozenset[str]], Awaitable[None]]
"""Have these addresses of this name in the node's map; then it returns. It is cancelled when that takes too long."""

BATCH = 64  # messages of one socket in a row, before others have their turn
ANSWER_SECONDS = 10.0  # a resolver that takes longer is not waited for
ADMIT_SECONDS = 2.0
MOST_PENDING = 8192  # questions that one upstream socket waits for answers of
MOST_UPSTREAMS = 8  # sockets towards one resolver
IDLE_SECONDS = 30.0  # of a TCP connection
MOST_OVER_TCP = 100  # questions of one connection that are not answered


@dataclass(slots=True)
class _Pending:
    client: Address
    id: bytes
    asked: Allowed
    until: float


class UDP:
    """One slot's questions over UDP. `resolver` is where those that come to `listening` are for."""

    def __init__(self, listening: socket.socket, judge: Judge, admit: Admit, resolver: Address) -> None:
        self._listening = listening
        self._judge = judge
        self._admit = admit
        self._resolver = resolver
        self._loop = asyncio.get_running_loop()
        self._upstreams: list[_Upstream] = []
        self._waiting: set[asyncio.Task[None]] = set()
        listening.setblocking(False)
        self._loop.add_reader(listening.fileno(), self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._listening.fileno())
        for task in self._waiting:
            task.cancel()
        for each in self._upstreams:
            each.close()

    def _read(self) -> None:
        receive = self._listening.recvfrom
        try:
            for _ in range(BATCH):
                message, client = receive(MOST_BYTES)
                self._question(message, client)
        except BlockingIOError:
            pass
        except OSError as problem:  # of a client that is gone (ICMP)
            log.debug("a client is gone", why=str(problem))

    def _question(self, message: bytes, client: Address) -> None:
        asked = self._judge.judge(message)
        if isinstance(asked, Allowed):
            upstream = self._upstream()
            if upstream is None:
                count("dns_dropped", why="too many wait")
                return
            upstream.ask(message, client, asked)
        elif isinstance(asked, Refused):
            count("dns_refused")
            self.send(asked.answer, client)

    def _upstream(self) -> _Upstream | None:
        """One that has room; None: there is none."""
        for each in self._upstreams:
            if len(each.pending) < MOST_PENDING:
                return each
        now = time.monotonic()
        for each in self._upstreams:
            each.give_up(now)
            if len(each.pending) < MOST_PENDING:
                return each
        if len(self._upstreams) == MOST_UPSTREAMS:
            return None
        self._upstreams.append(_Upstream(self, self._loop, self._resolver))
        return self._upstreams[-1]

    def send(self, message: bytes, client: Address) -> None:
        try:
            self._listening.sendto(message, client)
        except OSError as problem:  # a full buffer: it is UDP, the client asks again
            count("dns_dropped", why="cannot be sent")
            log.debug("an answer was not sent", why=str(problem))

    def heard(self, message: bytes, pending: _Pending) -> None:
        """An answer to this question."""
        if not pending.asked.is_wanted:
            self.send(pending.id + message[2:], pending.client)
            return
        question = pending.asked.question
        heard = self._judge.heard(message, question, time.time())
        if heard is None:
            count("dns_dropped", why="unreadable answer")
            self.send(pending.id + failure(message, question)[2:], pending.client)
        elif heard.new:
            task = self._loop.create_task(self._after_admission(message, pending, heard.name, heard.new))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
        else:
            self.send(pending.id + message[2:], pending.client)

    async def _after_admission(self, message: bytes, pending: _Pending, name: str, new: frozenset[str]) -> None:
        await admitted(self._admit, name, new)
        self.send(pending.id + message[2:], pending.client)


class _Upstream:
    """One socket towards a resolver, and the questions that wait for an answer by it."""

    def __init__(self, owner: UDP, loop: asyncio.AbstractEventLoop, resolver: Address) -> None:
        self._owner = owner
        self._loop = loop
        self.pending: dict[bytes, _Pending] = {}
        self._ids = b""
        self._socket = socket.socket(socket.AF_INET6 if ":" in resolver[0] else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.connect(resolver)
        loop.add_reader(self._socket.fileno(), self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def ask(self, message: bytes, client: Address, asked: Allowed) -> None:
        own = self._id()
        self.pending[own] = _Pending(client, message[:2], asked, time.monotonic() + ANSWER_SECONDS)
        try:
            self._socket.send(own + message[2:])
        except OSError as problem:  # the client asks again
            del self.pending[own]
            count("dns_dropped", why="cannot be asked")
            log.debug("a question was not sent", why=str(problem))

    def _id(self) -> bytes:
        """One that waits for no answer, and that nobody can foresee."""
        while True:
            if not self._ids:
                self._ids = os.urandom(512)
            own, self._ids = self._ids[:2], self._ids[2:]
            if own not in self.pending:
                return own

    def give_up(self, now: float) -> None:
        """Forget what was not answered in time. The oldest come first."""
        for own in [own for own, each in self.pending.items() if each.until <= now]:
            del self.pending[own]
            count("dns_dropped", why="no answer")

    def _read(self) -> None:
        receive = self._socket.recv
        pending = self.pending
        try:
            for _ in range(BATCH):
                message = receive(MOST_BYTES)
                found = pending.get(message[:2])
                if found is None or not answers(message, found.asked.question):
                    count("dns_dropped", why="nobody asked")
                    continue
                del pending[message[:2]]
                self._owner.heard(message, found)
        except BlockingIOError:
            pass
        except OSError as problem:  # the resolver is not there (ICMP): clients ask again
            log.debug("a resolver is not there", why=str(problem))


async def admitted(admit: Admit, name: str, new: frozenset[str]) -> None:
    """Wait until the node's map has these, or for ADMIT_SECONDS: then the answer goes on all the same, and a connection
    is denied until the map has them."""
    try:
        async with asyncio.timeout(ADMIT_SECONDS):
            await admit(name, new)
    except TimeoutError:
        count("dns_unadmitted", len(new))
        log.warning("a name's addresses are not in the node's map yet; its answer goes on", name=name)


@dataclass(slots=True)
class _Client:
    """A TCP connection of a pod, and the one to its resolver. They are its own, so are the ids."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    asked: dict[bytes, Allowed] = field(default_factory=dict)  # id -> question
    onward: asyncio.StreamWriter | None = None


class TCP:
    """One slot's questions over TCP."""

    def __init__(self, judge: Judge, admit: Admit, resolver: Address) -> None:
        self._judge = judge
        self._admit = admit
        self._resolver = resolver

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until its client ends it, is silent, or says what is no question."""
        client = _Client(reader, writer)
        try:
            async with asyncio.TaskGroup() as tasks:
                answering: asyncio.Task[None] | None = None
                while (message := await _message(reader)) is not None:
                    asked = self._judge.judge(message)
                    if asked is None or len(client.asked) >= MOST_OVER_TCP:
                        break
                    if isinstance(asked, Refused):
                        count("dns_refused")
                        await _say(writer, asked.answer)
                        continue
                    if client.onward is None:
                        answers_of, client.onward = await asyncio.open_connection(*self._resolver)
                        answering = tasks.create_task(self._answer(client, answers_of))
                    client.asked[message[:2]] = asked
                    await _say(client.onward, message)
                if answering is not None and not client.asked:
                    answering.cancel()
        except* OSError as problem:
            log.debug("a connection ended", why=str(problem.exceptions[0]))
        finally:
            writer.close()
            if client.onward is not None:
                client.onward.close()

    async def _answer(self, client: _Client, reader: asyncio.StreamReader) -> None:
        while (message := await _message(reader)) is not None:
            asked = client.asked.get(message[:2])
            if asked is None or not answers(message, asked.question):
                count("dns_dropped", why="nobody asked")
                continue
            heard = self._judge.heard(message, asked.question, time.time()) if asked.is_wanted else NOTHING_NEW
            if heard is None:
                count("dns_dropped", why="unreadable answer")
                message = failure(message, asked.question)
            elif heard.new:
                await admitted(self._admit, heard.name, heard.new)
            await _say(client.writer, message)
            del client.asked[message[:2]]
        client.writer.close()


async def _message(reader: asyncio.StreamReader) -> bytes | None:
    """The next one (RFC 1035 section 4.2.2); None: the other end has ended, or is silent."""
    try:
        async with asyncio.timeout(IDLE_SECONDS):
            size = int.from_bytes(await reader.readexactly(2), "big")
            return await reader.readexactly(size) if size >= HEADER else None
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        return None


async def _say(writer: asyncio.StreamWriter, message: bytes) -> None:
    writer.write(len(message).to_bytes(2, "big") + message)
    await writer.drain()
