"""Observers and relays at unix sockets, and clients of them, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.server import Server

from services.hubble.api import observer_pb2 as api
from services.hubble.flow import Place
from services.hubble.observed import Observed
from services.hubble.records import Record
from services.hubble.server import ObserverServer
from tests.unit.hubble.made import names, record

A = TypeVar("A")

STARTED = 1_000.0  # seconds since the epoch, on the tests' own clock


class Clock:
    def __init__(self) -> None:
        self.now = STARTED

    def __call__(self) -> float:
        return self.now


def observed(node: str = "node1", *, capacity: int = 7, token: int = 1) -> Observed:
    place = Place(node, version="1.2.3", token=token)
    return Observed(names(node), place, capacity=capacity, started=STARTED)


def see(observer: Observed, *times_ns: int, now: float = STARTED, **fields: Any) -> None:
    """The kernel told of packets at these times."""
    batch: list[Record] = [record(at=at, **fields) for at in times_ns]
    observer.take(batch, 0, now)


class Dying(Server):
    """Its connections end with it, as those of a process do; grpclib's stay until the process ends."""

    def __init__(self, handlers: Any) -> None:
        super().__init__(handlers)
        self._protocols: list[Any] = []

    def _protocol_factory(self) -> Any:
        self._protocols.append(super()._protocol_factory())
        return self._protocols[-1]

    def close(self) -> None:
        super().close()
        for protocol in self._protocols:
            if hasattr(protocol, "connection"):
                protocol.connection.close()


@asynccontextmanager
async def served(path: Path, *handlers: Any) -> AsyncIterator[Server]:
    server = Dying(handlers)
    await server.start(path=str(path))
    try:
        yield server
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def observing(path: Path, observer: Observed, clock: Clock | None = None) -> AsyncIterator[Channel]:
    """A client of this observer."""
    async with served(path, ObserverServer(observer, now=clock or Clock())):
        channel = Channel(path=str(path))
        try:
            yield channel
        finally:
            channel.close()


async def ask(channel: Channel, method: str, request: Any, reply: type[A]) -> A:
    return await UnaryUnaryMethod[Any, A](channel, f"/observer.Observer/{method}", type(request), reply)(request)


async def flows(channel: Channel, **request: Any) -> list[api.GetFlowsResponse]:
    """All answers to a request that ends."""
    method = UnaryStreamMethod(channel, "/observer.Observer/GetFlows", api.GetFlowsRequest, api.GetFlowsResponse)
    return list(await method(api.GetFlowsRequest(**request)))


class Following:
    """A client that follows."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.is_over = False

    async def next(self) -> api.GetFlowsResponse:
        answer = await self._stream.recv_message()
        assert answer is not None, "the stream has ended"
        return answer  # type: ignore[no-any-return]  # the stream says nothing of its type

    async def until(self, kind: str) -> api.GetFlowsResponse:
        """The next answer that is a "flow", "lost_events" or "node_status"."""
        while not (answer := await self.next()).HasField(kind):
            pass
        return answer

    async def ended(self) -> bool:
        self.is_over = await self._stream.recv_message() is None
        return self.is_over


@asynccontextmanager
async def following(channel: Channel, **request: Any) -> AsyncIterator[Following]:
    """The call is taken when this begins: what comes from then on is told."""
    method = UnaryStreamMethod(channel, "/observer.Observer/GetFlows", api.GetFlowsRequest, api.GetFlowsResponse)
    async with method.open() as stream:
        await stream.send_message(api.GetFlowsRequest(follow=True, **request), end=True)
        await stream.recv_initial_metadata()
        found = Following(stream)
        yield found
        if not found.is_over:
            await stream.cancel()


def times(answers: list[api.GetFlowsResponse]) -> list[int]:
    """Of the flows, ns since the epoch."""
    return [each.flow.time.seconds * 10**9 + each.flow.time.nanos for each in answers if each.HasField("flow")]
