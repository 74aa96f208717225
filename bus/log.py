"""An owner's log: one JetStream stream that keeps the last message of every key, written by compare-and-set. How it is
read: reader.py, follow.py.

A deletion is a message without body and with a header, which the server forgets after an hour. A reader that was away
for longer therefore reads everything and compares.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bus.interface import BusAway, BusError, Conflict, Refused
from bus.link import ApiError, Link, NobodyAnswers, parse_api
from bus.services import MANY_WRITERS
from bus.subjects import JOURNAL, LEASES, OWNERS, info_of, last_of, log_of, stored_of, stream_of
from bus.telemetry import Cause, count, current_cause, logger
from bus.wire import Entry

log = logger(__name__)

TOMBSTONE_SECONDS = 3600  # how long a deletion stays in the log
RESUME_SECONDS = 3000.0  # a reader away for longer reads everything; less than TOMBSTONE_SECONDS by a margin
JOURNAL_SECONDS = 7 * 24 * 3600  # how far back time travel reaches
JOURNAL_VALUES = 256  # of one key; the oldest goes first, here and below
JOURNAL_BYTES = 1 << 30  # and what it may take on disk; the oldest goes first
AFTER_A_LOSS = 10_000  # sequences left out by a log that is made anew: what was written since we looked last
RETRY_SECONDS = 0.1  # between attempts while the server is away or its storage is not up yet

WRITER_MESSAGE_BYTES = 16 * 1024  # with headers, of one of many writers: an endpoint has 2 KiB at the most

CAUSED_AT = "Plexus-Caused-At"
DELETED = "Plexus-Deleted"
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
TTL = "Nats-TTL"
_TIME = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_TRACE = {
    "traceparent": re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),
    "tracestate": re.compile(r"[\x20-\x7e]{1,512}"),
}
CLOCKS_DIFFER_SECONDS = 60.0  # at the most, between machines; what began later than that did not

_WRONG_SEQUENCE = (10071, 10164)  # JSStreamWrongLastSequenceErrF and ...ConstantErr of nats-server
_NO_STREAM = 10059
_NO_MESSAGE = 10037
_NAME_IN_USE = 10058

_NANOSECONDS = 1_000_000_000
_UNIQUE = {"duplicate_window": _NANOSECONDS // 10}
"""The least that the server takes. Nobody here numbers messages; a stranger's Nats-Msg-Id, of any length, would be kept
in the server's memory for two minutes."""


class LogAbsent(Exception):
    """There is no such stream (yet)."""


@dataclass(frozen=True, slots=True)
class LogInfo:
    """`log` tells this stream from one of the same name made earlier or later."""

    log: str
    last: int
    first: int = 0  # the lowest sequence that is there
    messages: int = 0
    keys: frozenset[str] | None = None  # those that were asked for and are there, deleted ones too; None: not asked


def entry_headers(cause: Cause) -> dict[str, str]:
    """When, and in which trace, the change began that this message belongs to."""
    return {CAUSED_AT: f"{cause.at:.6f}", **cause.trace}


def cause_of(headers: Mapping[str, str] | None) -> Cause:
    """The reverse; 0.0 when the time is missing, none, or to come; a trace that is none is passed over.

    These go into all that is written because of this message, whoever wrote it: so they are of the W3C's form and
    length, and of nothing else.
    """
    if not headers:
        return Cause(0.0, {})
    told = headers.get(CAUSED_AT, "")
    at = float(told) if _TIME.fullmatch(told) else 0.0
    trace = {name: headers[name] for name, form in _TRACE.items() if form.fullmatch(headers.get(name, ""))}
    return Cause(at if at <= time.time() + CLOCKS_DIFFER_SECONDS else 0.0, trace if "traceparent" in trace else {})


class Log:
    """The log of one owner."""

    def __init__(self, link: Link, owner: str) -> None:
        self.link = link
        self.owner = owner
        self.stream = stream_of(owner)

    async def info(self, keys: str = "") -> LogInfo:
        """`keys`: a pattern of few keys, which are to be named. Raises: LogAbsent, BusAway."""
        question = {"subjects_filter": keys} if keys else None
        try:
            answer = await self.link.api(info_of(self.stream), question)
        except ApiError as problem:
            if problem.number == _NO_STREAM:
                raise LogAbsent(self.stream) from None
            raise BusAway(str(problem)) from problem
        except NobodyAnswers as problem:
            raise BusAway("JetStream is not up") from problem
        state = answer["state"]
        self.saw(int(state["last_seq"]))
        first, last, messages = (int(state[name]) for name in ("first_seq", "last_seq", "messages"))
        found = frozenset(state.get("subjects") or ()) if keys else None
        return LogInfo(str(answer["created"]), last, first, messages, found)

    def saw(self, sequence: int) -> None:
        """The log has come so far: should it be lost, the next one begins beyond."""
        _saw(self.link, self.stream, sequence)

    async def settled_info(self, *, create: bool = True) -> LogInfo:
        """`info`, as soon as the server answers and the stream is there; makes it when it is missing."""
        while True:
            try:
                return await self.info()
            except LogAbsent:
                if create:
                    await make_stream(self.link, log_config(self.owner))
            except BusAway as problem:
                log.debug("log not readable yet", owner=self.owner, why=str(problem))
            await asyncio.sleep(RETRY_SECONDS)

    async def last(self, subject: str) -> Entry | None:
        """The last message of a key, a deletion included, as the stream's leader knows it. Waits for the server."""
        while True:
            try:
                answer = await self.link.api(last_of(self.stream), {"last_by_subj": subject})
            except ApiError as problem:
                if problem.number == _NO_MESSAGE:
                    return None
                if problem.number == _NO_STREAM:
                    await self.settled_info()
            except (BusAway, NobodyAnswers):
                pass
            else:
                return stored_entry(answer["message"])
            await self._wait()

    async def write(self, subject: str, body: bytes | None, *, expected: int | None, cause: Cause | None = None) -> int:
        """Store `body` (None: a deletion) as the key's last message; returns its sequence. Waits for the server.

        With `expected` the write happens once, even when the acknowledgement is lost: an answer that did not come is
        replaced by looking. Without, the same bytes may be stored twice.
        Raises: Conflict, Refused.
        """
        headers = entry_headers(cause or current_cause())
        if body is None:
            headers |= {DELETED: "1", TTL: str(TOMBSTONE_SECONDS)}
        if expected is not None:
            headers[_EXPECTED] = str(expected)
        try:
            return await self._write(subject, body, expected, headers)
        finally:
            self.link.untaken.pop(subject, None)

    async def _write(self, subject: str, body: bytes | None, expected: int | None, headers: dict[str, str]) -> int:
        unsure = False
        while True:
            try:
                answer = await self.link.request(subject, body or b"", headers=headers)
                sequence = int(parse_api(answer.data)["seq"])
                self.saw(sequence)
                return sequence
            except ApiError as problem:
                if problem.final and problem.number not in _WRONG_SEQUENCE:
                    raise Refused(subject, str(problem)) from problem
                if problem.number not in _WRONG_SEQUENCE:
                    self._not_taken(subject, str(problem))
                elif unsure and (current := await self.last(subject)) is not None and current.body == body:
                    return current.sequence
                else:
                    raise Conflict(subject, await self._current(subject, problem.text)) from None
            except NobodyAnswers:
                self._not_taken(subject, f"no stream {self.stream} takes it")
                await self.settled_info()  # no stream takes this subject: it is missing, or storage is not up yet
            except BusAway as problem:
                unsure = True
                self._not_taken(subject, str(problem))
            await self._wait()

    def _not_taken(self, subject: str, why: str) -> None:
        """The write is tried again; what waits for long is told in health, and logged when its reason is another."""
        count("bus_write_retried", owner=self.owner)
        since, before = self.link.untaken.get(subject, (asyncio.get_running_loop().time(), ""))
        self.link.untaken[subject] = since, why
        if why != before:
            log.warning("log does not take a message, trying again", owner=self.owner, subject=subject, why=why)

    async def _current(self, subject: str, text: str) -> int:
        found = re.search(r"wrong last sequence: (\d+)", text)
        if found:
            return int(found[1])
        entry = await self.last(subject)
        return entry.sequence if entry else 0

    async def _wait(self) -> None:
        await self.link.connected()
        await asyncio.sleep(RETRY_SECONDS)


def stored_entry(message: Mapping[str, Any]) -> Entry:
    """An entry from STREAM.MSG.GET's answer (base64 body, raw header block)."""
    body: bytes | None = base64.b64decode(message.get("data") or "")
    lines = base64.b64decode(message.get("hdrs") or "").decode(errors="replace").split("\r\n")[1:]
    headers = {name: value.strip() for name, separator, value in (line.partition(":") for line in lines) if separator}
    if TTL in headers or (not body and DELETED in headers):
        body = None
    cause = cause_of(headers)
    return Entry(int(message["seq"]), str(message["subject"]), body, cause.at, dict(cause.trace))


# -- streams


def log_config(owner: str) -> dict[str, Any]:
    """The stream of one owner: the last message of every key, on disk."""
    return {
        "name": stream_of(owner),
        "subjects": [log_of(owner)],
        "retention": "limits",
        "storage": "file",
        "max_msgs_per_subject": 1,
        "discard": "old",
        "allow_direct": True,
        "allow_msg_ttl": True,
        "num_replicas": 1,
        **_UNIQUE,
        **({"max_msg_size": WRITER_MESSAGE_BYTES} if owner in MANY_WRITERS else {}),
        "republish": {"src": log_of(owner), "dest": stored_of(log_of(owner)), "headers_only": True},
    }


def journal_config() -> dict[str, Any]:
    """One stream that copies every owner's log and keeps what the logs replace, for as long as time travel is to reach
    back; of one key JOURNAL_VALUES at the most.

    The nodes' log is not among them: a node that writes its own keys again and again would push out all the others',
    and what a node says it says again itself. The server copies as a reader does: a value that was replaced within the
    millisecond may not be in it.
    """
    return {
        "name": JOURNAL,
        "retention": "limits",
        "storage": "file",
        "sources": [{"name": stream_of(owner)} for owner in OWNERS if owner not in MANY_WRITERS],
        **_UNIQUE,
        "max_age": JOURNAL_SECONDS * _NANOSECONDS,
        "max_msgs_per_subject": JOURNAL_VALUES,
        "max_bytes": JOURNAL_BYTES,
        "discard": "old",
        "allow_direct": True,
        "num_replicas": 1,
    }


def leases_config() -> dict[str, Any]:
    """The stream of leases: one message per lease, forgotten by the server when it is not renewed."""
    return {
        "name": LEASES,
        "subjects": ["lease.>"],
        **_UNIQUE,
        "retention": "limits",
        "storage": "file",
        "max_msgs_per_subject": 1,
        "discard": "old",
        "allow_direct": True,
        "allow_msg_ttl": True,
        "num_replicas": 1,
    }


async def make_stream(link: Link, config: Mapping[str, Any]) -> None:
    """Make the stream if it is missing; one that is there stays as it is.

    A log that was lost goes on beyond what was seen of it, so that nobody who has only heard the old one seems to have
    what the new one says: sequences are revisions (bus/revision.py).
    Without permission or server nothing happens. The caller looks again afterwards, so a failed attempt is only logged.
    """
    if (reached := link.reached.get(config["name"], 0)) > 0:
        config = {**config, "first_seq": reached + AFTER_A_LOSS}
    try:
        await link.api(f"$JS.API.STREAM.CREATE.{config['name']}", config)
    except ApiError as problem:
        if problem.number != _NAME_IN_USE:
            log.warning("stream could not be made", stream=config["name"], why=str(problem))
    except BusError as problem:  # away, refused: whoever needs the stream goes on looking
        log.debug("stream not made", stream=config["name"], why=str(problem))


async def make_all_streams(link: Link) -> None:
    """Every owner's log, the leases and the journal; returns when all are there."""
    configs = [*map(log_config, OWNERS), leases_config(), journal_config()]
    for config in configs:
        is_asked = False  # to be made
        while True:
            try:
                answer = await link.api(info_of(config["name"]))
                if config["name"] not in (LEASES, JOURNAL):
                    _saw(link, config["name"], int(answer["state"]["last_seq"]))
                break
            except (ApiError, BusAway, NobodyAnswers) as problem:
                if isinstance(problem, ApiError) and not is_asked:
                    is_asked = True
                    await make_stream(link, config)
                    continue
            is_asked = False
            await link.connected()
            await asyncio.sleep(RETRY_SECONDS)


def _saw(link: Link, stream: str, sequence: int) -> None:
    link.reached[stream] = max(sequence, link.reached.get(stream, 0))
