"""A reader of a log never claims a position whose changes it has not passed on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from bus.follow import _read, _start
from bus.log import Log, LogInfo
from bus.reader import Missed, Reader
from bus.view import View
from bus.wire import Entry, Interest

LAST = 5


class Answers:
    """Each question is answered by one message more, with a chance for every other task meanwhile; then no more."""

    owner = "resources"
    patterns = ("state.resources.>",)

    def __init__(self, view: View, told: list[Entry]) -> None:
        self._view = view
        self._told = told

    async def _meanwhile(self) -> None:
        reached = max((entry.sequence for entry in self._told), default=0)
        assert self._view.position == reached, "whoever asks now is told of a position without its changes"
        await asyncio.sleep(0)

    async def all_of(self, pattern: str, start: int) -> AsyncIterator[tuple[list[Entry], int]]:
        await self._meanwhile()
        if start > LAST:
            raise Missed("the connection was made anew")
        yield [Entry(start, f"state.resources.node.n{start}", b"")], start

    async def more(self, deadline: float) -> bool:
        await self._meanwhile()
        return True

    async def info(self, subjects: str = "") -> LogInfo:
        await self._meanwhile()
        return LogInfo("log", self._view.position + 1)


async def test_a_position_is_never_ahead_of_the_changes_told() -> None:
    view = View(Interest(["state.resources.>"]))
    view.begin("log")
    view.finish(0)
    told: list[Entry] = []
    answers = Answers(view, told)
    with pytest.raises(Missed):
        await _read(cast(Reader, answers), cast(Log, answers), view, LogInfo("log", 0), 1, told.extend)
    assert [entry.sequence for entry in told] == [1, 2, 3, 4, 5]
    assert view.position == LAST


class Held:
    """A log that answers for single keys."""

    owner = "dataplane"

    def __init__(self, *entries: Entry) -> None:
        self._entries = {entry.subject: entry for entry in entries}

    async def last(self, subject: str) -> Entry | None:
        return self._entries.get(subject)


async def resumed(held: Held, info: LogInfo) -> tuple[int, int]:
    """Where a reader of n1 at 1 and n2 at 2 goes on after a short absence, and how often it took the log for lost."""
    view = View(Interest(["state.resources.>"]))
    view.begin("log")
    for number in (1, 2):
        view.record(put(number, number))
    view.finish(2)
    losses: list[None] = []
    now = asyncio.get_running_loop().time()
    start = await _start(cast(Log, held), view, info, now, lambda: losses.append(None), lambda _: True, has_lost=False)
    return start, len(losses)


def put(sequence: int, number: int) -> Entry:
    return Entry(sequence, f"state.resources.node.n{number}", b"")


async def test_the_oldest_key_written_again_while_the_reader_was_away_is_no_loss() -> None:
    """The log then begins after what the reader knows of that key; what it has not read yet explains it."""
    assert await resumed(Held(put(3, 1), put(2, 2)), LogInfo("log", last=3, first=2, messages=2)) == (3, 0)


async def test_a_key_that_is_gone_when_there_is_nothing_more_to_read_is_a_loss() -> None:
    assert await resumed(Held(put(2, 2)), LogInfo("log", last=2, first=2, messages=1)) == (1, 1)
