"""A reader that takes longer for what it is told than its owner takes to say more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

from bus import subjects
from bus.client import connect
from bus.interface import Batch
from bus.messages.resources import Namespace
from bus.server import Server
from bus.testing import apply, first_synced
from tests.bus.watcher import buses

DELTAS = 30
TURNS = 3  # what was under way, and what had come meanwhile; then what was in the socket still


class Owner(threading.Thread):
    """An owner with an event loop of its own: it goes on while the reader's stands still."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.is_up, self.may_go_on, self.is_done = threading.Event(), threading.Event(), threading.Event()
        self.may_end = threading.Event()
        self.said: dict[str, Namespace] = {}
        self.position = 0

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        async with connect(self.url, name="owner") as bus, connect(self.url, name="listener") as listener:
            outbox = await bus.own("resources")
            batches = listener.watch_state(subjects.NAMESPACE)
            await first_synced(batches)
            self.is_up.set()
            await asyncio.to_thread(self.may_go_on.wait)
            for number in range(DELTAS):
                name = f"n{number % 10}"
                if number % 7 == 6:
                    before = subjects.NAMESPACE.of(f"n{(number - 1) % 10}")
                    assert await outbox.unsay(before)
                    del self.said[before]
                else:
                    subject = subjects.NAMESPACE.of(name)
                    self.said[subject] = Namespace(name=name, labels={"number": str(number)})
                    assert await outbox.say(subject, self.said[subject])
                await handed_out(batches, outbox.position)
            self.position = outbox.position
            self.is_done.set()
            await asyncio.to_thread(self.may_end.wait)


async def handed_out(batches: AsyncIterator[Batch], position: int) -> None:
    """Returns when a delta up to `position` has gone to all who listen."""
    async for batch in batches:
        if batch.revision.get("resources", 0) >= position:
            return


async def test_what_comes_while_a_reader_is_busy_is_told_at_once(server: Server) -> None:
    owner = Owner(server.url)
    owner.start()
    try:
        await asyncio.to_thread(owner.is_up.wait)
        async with buses(server, "reader") as (reader,), asyncio.timeout(30):
            batches = reader.watch_state(subjects.NAMESPACE)
            values, _ = await first_synced(batches)
            owner.may_go_on.set()
            owner.is_done.wait()  # the event loop stands still, as when this reader works
            told = []
            async for batch in batches:
                told.append(batch)
                if batch.revision["resources"] >= owner.position:
                    break
            apply(values, told)
    finally:
        owner.may_go_on.set()
        owner.may_end.set()
    assert len(told) <= TURNS, f"{DELTAS} deltas were told one at a time, or nearly"
    assert values == owner.said
