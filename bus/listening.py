"""The door of a service's HTTP pages: open from the start, and a server behind it once somebody comes.

Half of a service's start and 15 MB of its memory would be the HTTP library, which most services of a lab never need.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bus.service import Service


@contextmanager
def listening(where: str) -> Iterator[socket.socket]:
    """Take connections at "host:port" or "unix:/path" while the block lasts. Raises: OSError: it cannot be taken."""
    if where.startswith("unix:"):
        path = Path(where.removeprefix("unix:"))
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()  # of a process before this one
        door = socket.socket(socket.AF_UNIX)
        door.bind(str(path))
        door.listen()
    else:
        host, _, port = where.rpartition(":")
        host = host.strip("[]")
        door = socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    door.setblocking(False)
    try:
        yield door
    finally:
        door.close()


async def serve_when_asked(door: socket.socket, service: Service) -> None:
    """For ever."""
    await _somebody_comes(door)
    http = await asyncio.to_thread(importlib.import_module, "bus.http")
    async with http.serving(service, door):
        await asyncio.Event().wait()


async def _somebody_comes(door: socket.socket) -> None:
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    ready: Callable[[], None] = came.set
    loop.add_reader(door, ready)
    try:
        await came.wait()
    finally:
        loop.remove_reader(door)
