"""Questions and answers: a queue group, a deadline, a bound on how many are answered at once, and of each asker.

A refusal travels as a header with its reason, so that an answer's type stays what it is.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from bus.codec import TooLarge, Undecodable, decode, encode
from bus.interface import BusAway, BusError, Unanswered
from bus.link import Link, NobodyAnswers, may_answer
from bus.log import cause_of, entry_headers
from bus.messages import Message
from bus.natspy import Msg, Subscription
from bus.subjects import Request, speaks_of
from bus.telemetry import caused_by, count, current_cause, logger
from bus.turns import Rate, Turns

log = logger(__name__)

M = TypeVar("M", bound=Message)
A = TypeVar("A", bound=Message)

AT_ONCE = 16  # questions in hand; further ones wait, and are dropped when their asker has given up
WAITING_BYTES = 8 << 20  # of questions that wait; further ones are dropped, and their askers hear nothing
ASKER_BYTES = 256 << 10  # the same of one asker, where the subject names it (a node)
ASKER_RATE = Rate(at_once=1000, per_second=100)  # and so many are answered: a node's pods, several times each
MOST_SECONDS = 60.0  # that an asker waits, whatever it says
LIMIT_BYTES = 4 * 1024 * 1024  # of a question or an answer, if the server takes that much

REFUSED = "Plexus-Refused"
DEADLINE = "Plexus-Deadline-Seconds"
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")


async def ask(link: Link, request: Request[M, A], tokens: tuple[str, ...], message: M, timeout: float) -> A:
    """Bus.ask over NATS."""
    subject = request.of(*tokens)
    try:
        body = encode(message, subject=subject, limit=min(LIMIT_BYTES, link.client.max_payload - 4096))
        headers = {**entry_headers(current_cause()), DEADLINE: f"{timeout:.3f}"}
        reply = await link.request(subject, body, timeout=timeout, headers=headers)
        why = (reply.headers or {}).get(REFUSED)
        if why is not None:
            raise Unanswered(subject, why)
        return decode(subject, reply.data, request.answer, limit=LIMIT_BYTES)
    except NobodyAnswers:
        raise Unanswered(subject, "nobody answers this; is the service running?") from None
    except (BusAway, TooLarge, Undecodable) as problem:
        raise Unanswered(subject, str(problem)) from problem
    except BusError as problem:
        raise Unanswered(subject, str(problem)) from problem


async def answer(
    link: Link, request: Request[M, A], tokens: tuple[str, ...], handler: Callable[[M], Awaitable[A]]
) -> None:
    """Bus.answer over NATS; runs until cancelled."""
    subject = request.all(*tokens)
    now = asyncio.get_running_loop().time
    places = asyncio.Semaphore(AT_ONCE)
    names_askers = len(tokens) < len(request.keys)
    turns: Turns[Msg] = Turns(ASKER_BYTES, ASKER_RATE) if names_askers else Turns(WAITING_BYTES)

    async def hear(subscription: Subscription) -> None:
        async for message in link.read(subscription, subject):
            until = now() + _seconds_left(message)
            if may_answer(message) and not turns.put(message.subject, message, len(message.data), until):
                count("bus_question_dropped", subject=subject)

    subscription = await link.subscribe(subject, queue=request.owner)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(hear(subscription), name=f"questions {subject}")
            while True:
                await places.acquire()
                message = await turns.next()
                count("bus_question_late", turns.late, subject=request.head)
                turns.late = 0
                task = tasks.create_task(_answer_one(link, request, message, handler), name=f"answer {message.subject}")
                task.add_done_callback(lambda _: places.release())
    finally:
        await link.unsubscribe(subscription)


def _seconds_left(message: Msg) -> float:
    told = (message.headers or {}).get(DEADLINE, "")
    return min(float(told), MOST_SECONDS) if _SECONDS.fullmatch(told) else 5.0


async def _answer_one(link: Link, request: Request[M, A], message: Msg, handler: Callable[[M], Awaitable[A]]) -> None:
    body, refusal = await answer_bytes(request, message.subject, message.data, message.headers, handler)
    headers = {REFUSED: refusal} if refusal else None
    if len(body) > link.client.max_payload - 4096:
        body, headers = b"", {REFUSED: f"the answer has {len(body)} bytes, more than the bus takes: ask for less"}
        count("bus_answer_failed", subject=request.head)
    try:
        await link.publish(message.reply, body, headers=headers)
    except BusAway:
        count("bus_answer_lost", subject=request.head)


async def answer_bytes(
    request: Request[M, A],
    subject: str,
    body: bytes,
    headers: dict[str, Any] | None,
    handler: Callable[[M], Awaitable[A]],
) -> tuple[bytes, str]:
    """(the answer, "") or (nothing, why it was refused).

    An error of the handler is logged and counted here, and ends nothing.
    """
    try:
        question = decode(subject, body, request.message, limit=LIMIT_BYTES)
        if not speaks_of(request, subject, question):
            raise Undecodable(subject, "it is of another than its subject says")
    except Undecodable as problem:
        count("bus_undecodable", family=request.head)
        log.warning("question refused: it does not decode", subject=subject, why=problem.why)
        return b"", f"the question does not decode: {problem.why}"
    cause = cause_of(headers)
    try:
        with caused_by(cause.at or current_cause().at, cause.trace):
            return encode(await handler(question), subject=subject, limit=LIMIT_BYTES), ""
    except Exception as problem:  # noqa: BLE001  # the one place for whatever a handler gets wrong
        count("bus_answer_failed", subject=request.head)
        log.error("a question could not be answered; see the stack", subject=subject, cause=problem)
        return b"", " ".join(f"{type(problem).__name__}: {problem}".split())[:500]
