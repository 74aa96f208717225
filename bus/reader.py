"""One reading of a log: all that it has from some sequence on, then what is added, without a consumer on the server.

The server is asked for many messages at a time (a batched direct get), and asked again while there are more. What it
stores later it tells without the bodies (`stored.<owner>.>`, the stream's republishing): that is a reason to ask, and
nothing else is read out of it. So whoever reads needs no right to make a consumer, whose messages the server would
deliver to any subject, whatever its maker may write; and what is read comes as an answer to a question of ours, on an
inbox that nobody else knows.

Cost: 100 000 keys of 100 bytes are read as fast as by a consumer; a change is read half a millisecond later.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import datetime

from bus.link import STORED_IN, Mailbox
from bus.log import DELETED, TTL, Log, cause_of
from bus.natspy import Msg
from bus.subjects import is_written, log_of, read_of, stored_of
from bus.telemetry import count
from bus.wire import Entry, Interest

MESSAGES_ASKED = 20_000  # each question costs the server a count of all that is left
BYTES_ASKED = 8 << 20  # and so many wait here at the most
ANSWER_SECONDS = 2.5  # without a sign of the answer for so long, it is taken for lost

_SUBJECT = "Nats-Subject"
_SEQUENCE = "Nats-Sequence"
_BEFORE = "Nats-Last-Sequence"
_LEFT = "Nats-Num-Pending"
_STORED_AT = "Nats-Time-Stamp"


class Missed(Exception):
    """Something of the log did not come, or is another than it was: the reading has to begin anew."""


class Reader:
    """Asks and takes. First each pattern of `interest` by itself, from `start` to `last`; then whatever is added.

    Whoever uses it gives it (`take`) what comes in at the mailbox that `open` joined.
    """

    def __init__(self, log: Log, interest: Interest, inbox: str, start: int, last: int) -> None:
        self._log = log
        self._interest = interest
        self._inbox = inbox
        self._last = last  # the log's last sequence, as far as we know
        self._reached = start - 1
        self._patterns = list(interest.patterns) if start <= 1 else []  # still to be read from the beginning
        self._first_end = last  # how far that first reading goes: each pattern is read at another moment
        self._next = start
        self._before = 0  # sequence of the message before, in the answer that is coming in
        self._asked_to = 0  # the log's last sequence as we knew it when we asked
        self._is_asking = False
        self._is_stale = False  # something was stored since we asked
        self._heard = asyncio.get_running_loop().time()

    @staticmethod
    async def open(log: Log, interest: Interest, box: Mailbox, start: int, last: int) -> Reader:
        """Begin to read from sequence `start`; `last` is the log's, as of now. Raises: BusAway."""
        link = log.link
        inbox = link.client.new_inbox()
        await box.join(inbox, stored=True)
        await box.join(stored_of(log.owner), stored=True)
        reader = Reader(log, interest, inbox, start, last)
        await reader._ask()
        return reader

    @property
    def at_end(self) -> bool:
        """All that we know to be there was taken."""
        return not self._is_asking and not self._patterns

    @property
    def reached(self) -> int:
        """Up to this sequence everything that is wanted was taken; 0 before the first reading is done."""
        return self._reached

    async def take(self, label: str, message: Msg) -> Entry | None:
        """A message of the log; None for all else. Raises: Missed, BusAway."""
        headers = message.headers or {}
        if label != self._inbox:
            await self._hear(headers)
            return None
        self._heard = asyncio.get_running_loop().time()
        if STORED_IN not in headers:  # what is stored always bears it, whatever else its writer put there
            await self._answered(headers)
            return None
        if int(headers[_BEFORE]) != self._before or headers[STORED_IN] != self._log.stream:
            raise Missed(f"message {headers[_SEQUENCE]} after {headers[_BEFORE]}, which did not come")
        entry = read_entry(message.data, headers)
        self._before = entry.sequence
        self._next = entry.sequence + 1
        if self._patterns and entry.sequence > self._first_end:
            return None  # comes again, in its order
        if not is_written(entry.subject):  # nor could it be asked for by the name that it has here
            count("bus_undecodable", family=log_of(self._log.owner))
            return None
        return entry if self._interest.has(entry.subject) else None

    async def look(self, last: int) -> None:
        """The log reaches to `last` now. Raises: Missed; BusAway."""
        self._last = max(last, self._last)
        if self._is_asking:
            if asyncio.get_running_loop().time() - self._heard > ANSWER_SECONDS:
                raise Missed("no answer")
        elif self._last > self._reached:
            await self._ask()

    async def _hear(self, headers: Mapping[str, str]) -> None:
        """The server says that it has stored something."""
        sequence = headers.get(_SEQUENCE, "")
        if self._patterns or (sequence.isdecimal() and int(sequence) >= self._next):
            if self._is_asking:
                self._is_stale = True
            else:
                await self._ask()

    async def _answered(self, headers: Mapping[str, str]) -> None:
        """The answer has ended: there is more, or this pattern is done, or we know all there is."""
        status = headers.get("Status", "")
        if status not in ("204", "404"):  # the end; no such message
            raise Missed(f"status {status} {headers.get('Description', '')}")
        self._is_asking = False
        if status == "204" and headers.get(_LEFT, "0") != "0":
            await self._ask()
        elif self._patterns:
            self._patterns.pop()
            self._next = 1 if self._patterns else self._first_end + 1
            self._reached = 0 if self._patterns else self._first_end
            if self._patterns or self._is_stale or self._last > self._reached:
                await self._ask()
        else:
            self._reached = max(self._asked_to, self._next - 1)
            if self._is_stale or self._last > self._reached:
                await self._ask()

    async def _ask(self) -> None:
        pattern = self._patterns[-1] if self._patterns else log_of(self._log.owner)
        question = {
            "seq": max(1, self._next),
            "next_by_subj": pattern,
            "batch": MESSAGES_ASKED,
            "max_bytes": BYTES_ASKED,
        }
        self._is_asking = True
        self._is_stale = self._is_stale and bool(self._patterns)
        self._before = 0
        self._asked_to = self._last
        self._heard = asyncio.get_running_loop().time()
        await self._log.link.publish(read_of(self._log.stream), json.dumps(question).encode(), reply=self._inbox)


def read_entry(body: bytes, headers: Mapping[str, str]) -> Entry:
    """An entry from what a direct get answers: the stored bytes, the stored headers, and the server's after them."""
    cause = cause_of(headers)
    gone = TTL in headers or (not body and DELETED in headers)  # what is to end by itself is over: values do not
    stored_at = datetime.fromisoformat(headers[_STORED_AT]).timestamp()
    return Entry(
        int(headers[_SEQUENCE]), headers[_SUBJECT], None if gone else body, cause.at, dict(cause.trace), stored_at
    )
