"""One connection to a NATS server, with the settings that survive its death, and requests that fail in our words.

Settings and traps: reconnect for ever; a dead link is noticed in 2 to 4 s; nothing is buffered while the server is
away (a buffered write could arrive long after its writer gave up); subscriptions are read by tasks of ours; and a call
that was cancelled ends so, though nats-py swallows a cancellation that comes while it flushes (`heeding`).
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, TypeVar

from bus.interface import BusAway, BusError, Refused, TurnedAway
from bus.natspy import Client, Msg, Subscription, arrivals, errors
from bus.subjects import escape, matches
from bus.telemetry import count, logger
from bus.tls import ClientTls, advice

log = logger(__name__)

REQUEST_SECONDS = 2.0  # a JetStream answer takes about 1 ms; a server that is being restarted takes longer than this
CONNECT_SECONDS = 2
RECONNECT_WAIT_SECONDS = 0.05  # between attempts; nats-py adds nothing to it
PING_SECONDS = 1  # with two unanswered pings allowed, a dead link is noticed within 4 s
STORED_IN = "Nats-Stream"  # the server puts it on whatever it sends out of a stream's store
T = TypeVar("T")
_VIOLATION = re.compile(r'permissions violation for (\w+) to "([^"]+)"')  # nats-py hands it on in lower case


class NobodyAnswers(BusError):
    """The server knows nobody who listens to this question."""


class ApiError(BusError):
    """JetStream refused; `number` is its own error number. `final`: the question is at fault, so that asking again is
    in vain (4xx); else the server's state is, which may pass."""

    def __init__(self, number: int, text: str, *, final: bool = False) -> None:
        super().__init__(f"{text} ({number})")
        self.number = number
        self.text = text
        self.final = final


async def heeding(call: Awaitable[T], undo: Callable[[T], Awaitable[None]] | None = None) -> T:
    """What `call` gives; CancelledError if the task was cancelled meanwhile, whatever `call` made of that.

    Client._flush_pending passes over a cancellation, and so may asyncio.wait_for in Python 3.11: whoever was told to
    end would go on for ever. `undo` takes back what was made in spite of it.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    result = await call
    if task.cancelling() > before:
        if undo is not None:
            await undo(result)
        raise asyncio.CancelledError
    return result


def objection(pattern: str, message: Msg, *, stored: bool = False) -> str | None:
    """Why a message that came in on a subscription to `pattern` is not to be believed; None: it is what it seems.

    The server delivers on a subscription more than what somebody published there: a consumer's messages come to the
    subject that its maker chose, and so do answers of a stream to a question with that subject as its reply. Who may
    write there is then no question of permissions. Such a message bears the subject under which it was stored, or says
    in which stream. `stored`: that is what is waited for here.
    """
    if message.subject != pattern and not matches(pattern, message.subject):
        return f"it was published on {message.subject}"
    if not stored and STORED_IN in (message.headers or {}):
        return "it comes out of a stream's store"
    if message.reply.startswith("$JS."):
        return "it comes from a consumer"
    return None


def may_answer(message: Msg) -> bool:
    """Whether an answer to this question goes to an asker's inbox, and to no subject that means something else.

    Of a question from another account (a node's) the server gives a subject of its own, and passes the answer on.
    """
    if message.reply.startswith(("_INBOX.", "_R_.")):
        return True
    if message.reply:
        count("bus_reply_refused", subject=message.subject)
        log.warning("question dropped: its answer was to go to no inbox", subject=message.subject, reply=message.reply)
    return False


async def insisting(call: Coroutine[Any, Any, T], *, unless: asyncio.Future[None]) -> T:
    """What `call` gives, for one that tries for ever and passes over a cancellation: it is told to end until it does.

    Client.connect is such a one: between two attempts nobody looks whether a cancellation was swallowed in one.
    Raises: what `unless` is told first.
    """
    task = asyncio.create_task(call)
    either: list[asyncio.Future[Any]] = [task, unless]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            unless.result()
        return await task
    finally:
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.1)


class Link:
    """A connected client, and who wants to know when it was connected anew."""

    def __init__(self, client: Client, *, patient: bool = True) -> None:
        self.client = client
        self.untaken: dict[
            str, tuple[float, str]
        ] = {}  # keys whose write is tried again: since when (loop time), and why
        self.reached: dict[str, int] = {}  # by stream: the last sequence that was seen of it by anybody here
        self._reconnected: set[Callable[[], None]] = set()
        self._connected = asyncio.Event()
        self.turned_away: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # why, if that is told
        self._patient = patient
        self._is_turned_away = False  # and that was logged
        self._replies = ""  # what the subjects of answers to our questions start with
        self._asked = 0
        self._waiting: dict[str, tuple[str, asyncio.Future[Msg]]] = {}  # token -> (subject asked, its answer)

    async def request(
        self,
        subject: str,
        body: bytes = b"",
        *,
        timeout: float = REQUEST_SECONDS,
        headers: Mapping[str, str] | None = None,
    ) -> Msg:
        """Ask. Raises: BusAway, NobodyAnswers, Refused.

        Not nats-py's own: that one stands on asyncio.wait_for, which in Python 3.11 can swallow a cancellation.
        """
        if not self.client.is_connected:
            raise BusAway(f"{subject}: not connected")
        self._asked += 1
        token = str(self._asked)
        reply: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[token] = subject, reply
        try:
            await self.publish(subject, body, reply=f"{self._replies}.{token}", headers=headers)
            async with asyncio.timeout(timeout):
                answer = await reply
        except TimeoutError:
            raise BusAway(f"{subject}: no answer in {timeout} s") from None
        finally:
            del self._waiting[token]
        if (answer.headers or {}).get("Status") == "503":
            raise NobodyAnswers(subject)
        return answer

    def open_replies(self) -> None:
        """Choose where answers come in; once, when connected."""
        self._is_turned_away = False
        self._replies = self.client.new_inbox()

    async def read_replies(self) -> None:
        """Give each answer to whoever waits for it; runs as long as the connection."""
        pattern = f"{self._replies}.*"
        subscription = await self.subscribe(pattern)
        self._connected.set()
        async for message in self.read(subscription, pattern):
            _, reply = self._waiting.get(message.subject.rpartition(".")[2], ("", None))
            if reply is not None and not reply.done():
                reply.set_result(message)

    async def api(self, subject: str, question: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A call to JetStream. Raises: ApiError, BusAway, NobodyAnswers, Refused."""
        body = json.dumps(question).encode() if question is not None else b""
        answer = await self.request(subject, body)
        return parse_api(answer.data)

    async def publish(
        self, subject: str, body: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send, if there is a connection. Raises: BusAway."""
        try:
            await heeding(self.client.publish(subject, body, reply=reply, headers=dict(headers) if headers else None))
        except (errors.Error, OSError) as problem:
            raise BusAway(f"{subject}: {problem}") from problem

    async def subscribe(self, subject: str, *, queue: str = "", limit: int = 0) -> Subscription:
        """A subscription to be read with `async for`. It survives reconnects. `limit` 0: nothing is ever dropped."""
        asked = self.client.subscribe(subject, queue=queue, pending_msgs_limit=limit, pending_bytes_limit=0)
        return await heeding(asked, undo=self.unsubscribe)

    async def unsubscribe(self, subscription: Subscription) -> None:
        try:
            await heeding(subscription.unsubscribe())
        except (errors.Error, OSError):
            pass  # the connection is gone, and the subscription with it

    async def read(self, subscription: Subscription, pattern: str, *, stored: bool = False) -> AsyncIterator[Msg]:
        """What comes in on a subscription to `pattern`, and is what it seems. Everything that is read passes here."""
        async for message in arrivals(subscription):
            why = objection(pattern, message, stored=stored)
            if why is None:
                yield message
            else:
                count("bus_foreign", subject=".".join(pattern.split(".")[:3]))
                log.warning("message dropped: it is not what it seems", subscribed=pattern, why=why)

    async def connected(self) -> None:
        """Returns when there is a connection."""
        await self._connected.wait()

    def on_reconnect(self, call: Callable[[], None]) -> Callable[[], None]:
        """`call` runs after each reconnect. Returns what undoes it."""
        self._reconnected.add(call)
        return lambda: self._reconnected.discard(call)

    # -- what nats-py reports

    async def heard_disconnected(self) -> None:
        self._connected.clear()
        for subject, reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(BusAway(f"{subject}: the connection was lost"))
        if not self.client.is_closed:
            count("bus_disconnected")
            log.warning("bus connection lost, reconnecting")

    async def heard_reconnected(self) -> None:
        self._is_turned_away = False
        self._connected.set()
        count("bus_reconnected")
        log.info("bus connected again")
        for call in list(self._reconnected):
            call()

    async def heard_error(self, problem: Exception) -> None:
        if isinstance(problem, errors.SlowConsumerError):
            count("bus_dropped_slow_reader")
        elif found := _VIOLATION.search(str(problem)):
            count("bus_refused", kind=found[1])
            log.warning("the bus refuses a subject to this user", action=found[1], subject=found[2])
            for subject, reply in self._waiting.values():
                if subject.lower() == found[2] and not reply.done():
                    reply.set_exception(Refused(subject))
        elif isinstance(problem, ssl.SSLError):
            count("bus_tls_failed")
            self._turn_away(f"no TLS with the bus: {advice(problem)}")
        elif "authorization violation" in str(problem).lower():
            count("bus_unauthorized")
            self._turn_away("the bus refuses user or password: check PLEXUS_BUS_USER and PLEXUS_BUS_PASSWORD")
        else:
            log.debug("bus connection", problem=str(problem) or type(problem).__name__)

    def _turn_away(self, why: str) -> None:
        if not self._is_turned_away:
            log.error(why)
        self._is_turned_away = True
        if not self._patient and not self.turned_away.done():
            self.turned_away.set_exception(TurnedAway(why))


def parse_api(body: bytes) -> dict[str, Any]:
    """JetStream's JSON answer. Raises: ApiError; BusAway when it is no such answer."""
    try:
        answer = json.loads(body)
    except ValueError:
        raise BusAway(f"not an answer of JetStream: {body[:80]!r}") from None
    if not isinstance(answer, dict):
        raise BusAway(f"not an answer of JetStream: {body[:80]!r}")
    if error := answer.get("error"):
        if error.get("code") == 503:
            raise BusAway(str(error.get("description")))
        final = 400 <= int(error.get("code", 0)) < 500
        raise ApiError(int(error.get("err_code", 0)), str(error.get("description", "")), final=final)
    return answer


@asynccontextmanager
async def open_link(
    url: str, *, name: str, user: str = "", password: str = "", tls: ClientTls | None = None, patient: bool = True
) -> AsyncIterator[Link]:
    """Connect; waits as long as it takes for a server that takes this user and password.

    Args:
        patient: waits for a server that turns us away, too: it may be set right.
    Raises: tls.Unusable; TurnedAway, unless `patient`.
    """
    client = Client()
    context = tls.context() if tls else None
    link = Link(client, patient=patient)
    connecting = client.connect(
        url,
        name=name,
        user=user or None,
        password=password or None,
        inbox_prefix=inbox_of(user),
        tls=context,
        tls_handshake_first=tls is not None,
        max_reconnect_attempts=-1,
        reconnect_time_wait=RECONNECT_WAIT_SECONDS,  # type: ignore[arg-type]  # only ever slept for
        connect_timeout=CONNECT_SECONDS,
        ping_interval=PING_SECONDS,
        max_outstanding_pings=2,
        pending_size=0,
        error_cb=link.heard_error,
        disconnected_cb=link.heard_disconnected,
        reconnected_cb=link.heard_reconnected,
    )
    replies: asyncio.Task[None] | None = None
    try:
        await insisting(connecting, unless=link.turned_away)
        link.open_replies()
        replies = asyncio.create_task(link.read_replies(), name="read answers")
        await link.connected()
        yield link
    finally:
        if replies is not None:
            replies.cancel()
        with suppress(ConnectionError):  # the server was quicker
            await client.close()


def inbox_of(user: str) -> str:
    """What the subjects of answers to this user start with: permissions keep each user to its own."""
    return f"_INBOX.{escape(user)}" if user else "_INBOX"


class Mailbox:
    """One queue for all that one task waits for: several subscriptions, and news of a reconnect.

    Unbounded where it carries a log, because a dropped message would only be read again: what is read must be cheap to
    handle. Where anyone may send (questions), `limit` bounds the bytes that wait, each message counting for at least
    MESSAGE_BYTES; what is over it is dropped and counted as `dropped`.
    """

    RECONNECTED = "reconnected"
    MESSAGE_BYTES = 1024  # what a message costs in memory beside its body, with room to spare

    def __init__(self, link: Link, *, limit: int = 0, dropped: str = "") -> None:
        self._link = link
        self._limit = limit
        self._dropped = dropped
        self._waiting = 0  # bytes
        self._queue: asyncio.Queue[tuple[str, Msg | None]] = asyncio.Queue()
        self._open: dict[str, tuple[Subscription, asyncio.Task[None]]] = {}
        self._forget: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Mailbox:
        self._forget = self._link.on_reconnect(lambda: self._put(self.RECONNECTED, None))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forget()
        for subject in list(self._open):
            await self.leave(subject)

    async def join(self, subject: str, *, queue: str = "", stored: bool = False) -> None:
        """Messages on `subject` come in from now on, labelled with it. `stored`: out of a stream's store, too."""
        subscription = await self._link.subscribe(subject, queue=queue)
        self._open[subject] = (
            subscription,
            asyncio.create_task(self._pump(subject, subscription, stored), name=f"read {subject}"),
        )

    async def leave(self, subject: str) -> None:
        subscription, pump = self._open.pop(subject)
        pump.cancel()
        await self._link.unsubscribe(subscription)

    async def get(self, deadline: float | None = None) -> tuple[str, Msg | None] | None:
        """The next (subject joined, message) or (RECONNECTED, None). None: nothing until `deadline` (loop time)."""
        if not self._queue.empty():
            return self._taken(*self._queue.get_nowait())
        try:
            async with asyncio.timeout_at(deadline):
                return self._taken(*await self._queue.get())
        except TimeoutError:
            return None

    @property
    def empty(self) -> bool:
        return self._queue.empty()

    async def _pump(self, label: str, subscription: Subscription, stored: bool) -> None:
        async for message in self._link.read(subscription, label, stored=stored):
            if self._limit and self._waiting and self._waiting + self._cost(message) > self._limit:
                count(self._dropped, subject=label)
            else:
                self._put(label, message)

    def _put(self, label: str, message: Msg | None) -> None:
        self._waiting += self._cost(message)
        self._queue.put_nowait((label, message))

    def _taken(self, label: str, message: Msg | None) -> tuple[str, Msg | None]:
        self._waiting -= self._cost(message)
        return label, message

    def _cost(self, message: Msg | None) -> int:
        return self.MESSAGE_BYTES + len(message.data) if message is not None else 0
