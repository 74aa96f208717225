"""Reading a watch in the background, and as many connections as a test needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from bus.client import NatsBus, connect
from bus.interface import Batch, Bus, Family
from bus.messages import Message
from bus.server import Server
from bus.testing import apply


class Watcher:
    """Reads a watch in a task of its own and keeps what it was told."""

    def __init__(self) -> None:
        self.values: dict[str, Message] = {}
        self.batches: list[Batch] = []
        self.synced = asyncio.Event()
        self._news = asyncio.Event()

    @property
    def revision(self) -> dict[str, int]:
        return self.batches[-1].revision if self.batches else {}

    @property
    def told(self) -> list[tuple[str, Message | None]]:
        return [(change.subject, change.message) for batch in self.batches for change in batch.changes]

    async def read(self, batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            apply(self.values, [batch])
            self.batches.append(batch)
            if batch.synced:
                self.synced.set()
            self._news.set()

    async def until(self, so: Callable[[Watcher], bool], seconds: float = 15.0) -> None:
        """Wait until what was told makes `so` true."""
        async with asyncio.timeout(seconds):
            while not so(self):
                self._news.clear()
                await self._news.wait()

    async def until_told(self, subject: str) -> None:
        await self.until(lambda told: subject in told.values)

    async def until_is(self, values: Mapping[str, Message]) -> None:
        await self.until(lambda told: told.values == values)

    async def until_revision(self, revision: Mapping[str, int]) -> None:
        await self.until(lambda told: told.revision == revision)

    async def until_values(self, wanted: Iterable[str], seconds: float = 15.0) -> None:
        await self.until(lambda told: set(told.values) == set(wanted), seconds)


@asynccontextmanager
async def watching(bus: Bus, *families: Family, direct: bool = False) -> AsyncIterator[Watcher]:
    """A watcher of these families that is synced."""
    watcher = Watcher()
    task = asyncio.create_task(watcher.read(bus.watch_state(*families, direct=direct)))
    try:
        async with asyncio.timeout(10):
            await watcher.synced.wait()
        yield watcher
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def buses(server: Server, *names: str) -> AsyncIterator[list[NatsBus]]:
    """As many connections, each of its own."""
    async with asyncio.timeout(100):
        if not names:
            yield []
            return
        async with connect(server.url, name=names[0]) as first, buses(server, *names[1:]) as rest:
            yield [first, *rest]
