"""A real nats-server for each test, on a free port, with its own store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.server import Server, ServerSettings, free_port, running


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(ServerSettings(tmp_path / "nats", port=free_port())) as started:
        yield started
