"""Serves the Hubble API at a unix socket, and over TCP, with the health service that clients ask first.

The socket is root's and its group's: whoever may open it sees every flow of the node.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from ssl import SSLContext
from typing import Any

from grpclib.health.service import Health
from grpclib.server import Server

SOCKET_MODE = 0o660


class AskedFor:
    """The name by which the public clients ask for the health of the Observer; no service has it."""

    def __mapping__(self) -> dict[str, Any]:
        return {"/hubble.server.Observer/": None}


@asynccontextmanager
async def serve(path: Path, *servers: Any) -> AsyncIterator[None]:
    """While this lasts, at `path`; what another process left there is removed. Raises: OSError."""
    server = _server(*servers)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new")  # nobody finds the socket before its mode is right
    beside.unlink(missing_ok=True)
    await server.start(path=str(beside))
    try:
        beside.chmod(SOCKET_MODE)
        beside.rename(path)
        yield
    finally:
        server.close()
        await server.wait_closed()
        path.unlink(missing_ok=True)  # noqa: ASYNC240  # one call, of a file in memory


@asynccontextmanager
async def serve_tcp(host: str | None, port: int, tls: SSLContext | None, *servers: Any) -> AsyncIterator[None]:
    """The same over TCP. None for `host`: at every address; for `tls`: in the clear. Raises: OSError."""
    server = _server(*servers)
    await server.start(host, port, ssl=tls)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


def _server(*servers: Any) -> Server:
    return Server([*servers, Health({each: [] for each in (*servers, AskedFor())})])
