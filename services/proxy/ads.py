"""The xDS server of one node's Envoy, on a unix socket. What is said is decided by `exchange.py`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from grpclib.const import Cardinality, Handler
from grpclib.server import Server, Stream

from bus.telemetry import count, logger
from services.proxy.api import envoy_pb2 as envoy
from services.proxy.exchange import Book, Exchange
from services.proxy.resources import Resources

log = logger(__name__)

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"

RequestStream = Stream[envoy.DeltaDiscoveryRequest, envoy.DeltaDiscoveryResponse]


class Discovery:
    """Tells Envoy what is wanted. `changed` is set whenever what Envoy has acknowledged, or refused, may be another."""

    def __init__(self) -> None:
        self._book = Book()
        self._exchange: Exchange | None = None  # of the stream that came last
        self._wakes: asyncio.Event | None = None
        self.changed = asyncio.Event()
        self.sent = 0  # resources, in all

    def want(self, wanted: Resources) -> None:
        self._book.want(wanted)
        if self._wakes is not None:
            self._wakes.set()
        self.changed.set()

    def in_force(self, name: str) -> bool:
        """Envoy has what is wanted of this slot. It may, and nobody knows, while it is not connected."""
        return self._exchange is not None and self._exchange.in_force(name)

    def why_refused(self, name: str) -> str:
        """Envoy's words on what is wanted of this slot; ""."""
        return self._book.why_refused(name)

    @property
    def is_connected(self) -> bool:
        return self._exchange is not None

    async def _serve(self, stream: RequestStream) -> None:
        exchange, wakes = Exchange(self._book), asyncio.Event()
        self._exchange, self._wakes = exchange, wakes
        try:
            async with asyncio.TaskGroup() as tasks:
                says = tasks.create_task(self._say(stream, exchange, wakes), name="say")
                async for request in stream:
                    if request.HasField("error_detail"):
                        count("proxy_refusals")
                        log.warning("Envoy refused a configuration", why=request.error_detail.message)
                    exchange.heard(request)
                    wakes.set()
                    self.changed.set()
                says.cancel()
        finally:
            if self._exchange is exchange:
                self._exchange = self._wakes = None
                self.changed.set()

    async def _say(self, stream: RequestStream, exchange: Exchange, wakes: asyncio.Event) -> None:
        while True:
            await wakes.wait()
            wakes.clear()
            for response in exchange.due():
                self.sent += len(response.resources) + len(response.removed_resources)
                await stream.send_message(response)

    def __mapping__(self) -> dict[str, Handler]:  # as grpclib asks a servicer for its methods
        serve: Callable[[Stream[Any, Any]], Awaitable[None]] = self._serve
        return {
            METHOD: Handler(serve, Cardinality.STREAM_STREAM, envoy.DeltaDiscoveryRequest, envoy.DeltaDiscoveryResponse)
        }


@asynccontextmanager
async def serving(discovery: Discovery, path: Path) -> AsyncIterator[None]:
    """For the node's Envoy alone: whoever may write to the socket is root, as the directory is."""
    server = Server([discovery])
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)  # noqa: ASYNC240  # of a process before this one
    listening.bind(str(path))
    path.chmod(0o600)  # noqa: ASYNC240  # before anybody can connect
    await server.start(sock=listening)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()
