"""Where a test of the bus takes place: on a real server, or in memory. The same body must hold in both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from bus.client import connect
from bus.interface import Bus
from bus.server import ServerSettings, free_port, running
from bus.testing import Hub

Open = Callable[[str], AbstractAsyncContextManager[Bus]]


@asynccontextmanager
async def place(kind: str, directory: Path) -> AsyncIterator[Open]:
    """`kind` is "nats" or "memory". Yields what opens one more bus by name."""
    if kind == "memory":
        hub = Hub()

        @asynccontextmanager
        async def in_memory(name: str) -> AsyncIterator[Bus]:
            yield hub.bus(name)

        yield in_memory
        return
    async with running(ServerSettings(directory / "nats", port=free_port())) as server:

        @asynccontextmanager
        async def on_server(name: str) -> AsyncIterator[Bus]:
            async with connect(server.url, name=name) as bus:
                yield bus

        yield on_server
