"""The cluster in memory, as what a command connects to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import bus.client
from bus.testing import MemoryBus
from cli import session
from tests.unit.cli.cluster import Cluster


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()

    @asynccontextmanager
    async def connect(url: str, **_: str) -> AsyncIterator[MemoryBus]:
        serving = asyncio.create_task(made.serve(made.hub.bus("services")))
        await asyncio.sleep(0.01)
        try:
            yield made.hub.bus("cli")
        finally:
            serving.cancel()

    monkeypatch.setattr(bus.client, "connect", connect)
    monkeypatch.setattr(session, "target", lambda name="": session.Target("test", "memory:"))
    monkeypatch.delenv("PLEXUS_DEBUG", raising=False)
    return made
