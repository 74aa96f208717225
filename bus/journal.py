"""The stream JOURNAL: a copy of every log that also keeps what the logs replace. Here: finding what a log has lost.

The server copies as a reader does, some milliseconds behind, and forgets what is older than JOURNAL_SECONDS or more
than JOURNAL_BYTES. So it may know less than a log does, and what it knows counts only where the log knows less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bus.codec import Undecodable, decode
from bus.interface import BusAway
from bus.link import STORED_IN, ApiError, Link, Mailbox, NobodyAnswers
from bus.log import stored_entry
from bus.messages.log import Vouched
from bus.subjects import JOURNAL, VOUCHED, info_of, is_vouch, last_of, log_of, word_of
from bus.wire import Entry

AT_ONCE = 64
ANSWER_SECONDS = 2.0
NO_MESSAGE, NO_STREAM = 10037, 10059  # JetStream's error numbers


async def lost_by(link: Link, owner: str, held: Callable[[str], Entry | None]) -> list[Entry]:
    """The last messages of keys that the log once had and does not have, or has an older one of; oldest first.

    Nothing, without looking at every key, where the log has the word by which its owner vouched last and the message
    that was copied last. Words on the log itself are not among them.

    Args:
        held: the log's last message of a key.
    Raises: BusAway.
    """
    try:
        marks = [await _last(link, VOUCHED[owner].of(owner)), await _last(link, log_of(owner))]
        if not any(mark is not None and _is_newer(mark, held(mark.subject)) for mark in marks):
            return []
        places = asyncio.Semaphore(AT_ONCE)

        async def look(subject: str) -> Entry | None:
            async with places:
                return await _last(link, subject)

        found = await asyncio.gather(*map(look, await _subjects(link, log_of(owner))))
    except NobodyAnswers as problem:
        raise BusAway("JetStream is not up") from problem
    except ApiError as problem:
        raise BusAway(str(problem)) from problem
    lost = [entry for entry in found if entry is not None and _is_newer(entry, held(entry.subject))]
    return sorted((entry for entry in lost if not is_vouch(entry.subject)), key=lambda entry: entry.sequence)


async def last_word(link: Link, owner: str) -> int:
    """The number by which the owner vouched last, as far as JOURNAL knows; 0: it knows of none, or is not there.

    A log that holds a lower one is an older copy, whoever reads it and whatever he remembers.
    Raises: BusAway.
    """
    inbox = link.client.new_inbox()
    async with Mailbox(link) as box:
        await box.join(inbox, stored=True)
        await link.publish(word_of(owner), b"", reply=inbox)
        item = await box.get(asyncio.get_running_loop().time() + ANSWER_SECONDS)
    message = item[1] if item is not None else None
    if message is None:
        raise BusAway(f"{JOURNAL} does not answer")
    if not message.data or (message.headers or {}).get(STORED_IN) != JOURNAL:
        return 0
    try:
        return decode(VOUCHED[owner].of(owner), message.data, Vouched).number
    except Undecodable:
        return 0


def _is_newer(copied: Entry, held: Entry | None) -> bool:
    """By the times at which the changes began: sequences of the journal and of a log are not of one count."""
    if held is None:
        return copied.body is not None
    return copied.body != held.body and copied.caused_at > held.caused_at


async def _last(link: Link, subject: str) -> Entry | None:
    try:
        answer = await link.api(last_of(JOURNAL), {"last_by_subj": subject})
    except ApiError as problem:
        if problem.number in (NO_MESSAGE, NO_STREAM):
            return None
        raise
    return stored_entry(answer["message"])


async def _subjects(link: Link, pattern: str) -> list[str]:
    found: dict[str, int] = {}
    while True:
        question = {"subjects_filter": pattern, "offset": len(found)}
        answer = await link.api(info_of(JOURNAL), question)
        page = answer["state"].get("subjects") or {}
        found |= page
        if not page or len(found) >= int(answer.get("total", 0)):
            return list(found)
