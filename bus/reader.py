"""Reading a log without a consumer on the server: by questions, and by what the server tells that it has stored.

The server is asked for many messages at a time (a batched direct get), and asked again while there are more. What it
stores later it tells without the bodies (`stored.>`, the stream's republishing): that is a reason to ask, and nothing
else is read out of it. So whoever reads needs no right to make a consumer, whose messages the server would deliver to
any subject, whatever its maker may write; and what is read comes as an answer to a question of ours, on an inbox that
nobody else knows.

An answer does not say which stream of that name it is from: follow.py looks afterwards whether it is the same still.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime

from bus.link import STORED_IN, Mailbox
from bus.log import DELETED, TTL, Log, cause_of
from bus.subjects import is_vouch, is_written, log_of, read_of, stored_of
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
    """Asks for what the log has under the patterns of `interest`, and hears when it gets more."""

    def __init__(self, log: Log, interest: Interest, inbox: str, answers: Mailbox, stored: Mailbox) -> None:
        # Words on the log itself first: what such a word vouches for was stored before it, and is read after it.
        self.patterns = sorted(interest.patterns, key=lambda pattern: not is_vouch(pattern))
        self._log = log
        self._interest = interest
        self._inbox = inbox
        self._answers = answers
        self._stored = stored

    @staticmethod
    @asynccontextmanager
    async def open(log: Log, interest: Interest) -> AsyncIterator[Reader]:
        """Raises: BusAway."""
        inbox = log.link.client.new_inbox()
        async with Mailbox(log.link) as answers, Mailbox(log.link) as stored:
            await answers.join(inbox, stored=True)
            for pattern in interest.patterns:
                await stored.join(stored_of(pattern), stored=True)
            yield Reader(log, interest, inbox, answers, stored)

    async def all_of(self, pattern: str, start: int) -> AsyncIterator[tuple[list[Entry], int]]:
        """What is wanted under `pattern` from sequence `start` on, in order, an answer of the server after the other,
        each with the last sequence of all that is in it.

        Raises: Missed, BusAway.
        """
        last, is_more = start - 1, True
        while is_more:
            question = {
                "seq": max(1, last + 1),
                "next_by_subj": pattern,
                "batch": MESSAGES_ASKED,
                "max_bytes": BYTES_ASKED,
            }
            await self._log.link.publish(read_of(self._log.stream), json.dumps(question).encode(), reply=self._inbox)
            found: list[Entry] = []
            end, is_more = await self._take(found)
            last = max(last, end)
            yield found, last

    async def more(self, deadline: float) -> bool:
        """Wait until the server says that it has stored something, or (False) until `deadline`, loop time.

        Raises: Missed: the connection was made anew, and what was said meanwhile was not heard.
        """
        item = await self._stored.get(deadline)
        is_more = item is not None
        while item is not None:
            if item[1] is None:
                raise Missed("the connection was made anew")
            item = None if self._stored.empty else await self._stored.get()
        return is_more

    async def _take(self, found: list[Entry]) -> tuple[int, bool]:
        """One answer. Returns its last sequence, and whether the server has more after that. Raises: Missed."""
        now = asyncio.get_running_loop().time
        before = 0
        while True:
            item = await self._answers.get(now() + ANSWER_SECONDS)
            if item is None or item[1] is None:
                raise Missed("no answer")
            headers = item[1].headers or {}
            if STORED_IN not in headers:  # what is stored always bears it, whatever else its writer put there
                is_more = self._is_more(headers)
                return before, is_more and before > 0
            if int(headers[_BEFORE]) != before or headers[STORED_IN] != self._log.stream:
                raise Missed(f"message {headers[_SEQUENCE]} after {headers[_BEFORE]}, which did not come")
            entry = read_entry(item[1].data, headers)
            before = entry.sequence
            if not is_written(entry.subject):  # nor could it be asked for by the name that it has here
                count("bus_undecodable", family=log_of(self._log.owner))
            elif self._interest.has(entry.subject):
                found.append(entry)

    def _is_more(self, headers: Mapping[str, str]) -> bool:
        """What the end of an answer says."""
        status = headers.get("Status", "")
        if status not in ("204", "404"):  # the end; no such message
            raise Missed(f"status {status} {headers.get('Description', '')}")
        return status == "204" and headers.get(_LEFT, "0") != "0"


def read_entry(body: bytes, headers: Mapping[str, str]) -> Entry:
    """An entry from what a direct get answers: the stored bytes, the stored headers, and the server's after them."""
    cause = cause_of(headers)
    gone = TTL in headers or (not body and DELETED in headers)  # what is to end by itself is over: values do not
    stored_at = datetime.fromisoformat(headers[_STORED_AT]).timestamp()
    return Entry(
        int(headers[_SEQUENCE]), headers[_SUBJECT], None if gone else body, cause.at, dict(cause.trace), stored_at
    )
