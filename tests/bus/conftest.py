"""A real nats-server for each test, on a free port, with its own store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.server import Server, ServerSettings, free_port, running
from tests.bus.places import Open, place


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(ServerSettings(tmp_path / "nats", port=free_port())) as started:
        yield started


@pytest.fixture(params=["memory", "nats"])
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    async with place(request.param, tmp_path) as opens:
        yield opens
