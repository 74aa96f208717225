"""gRPC, as a client and a server of it speak through a real Envoy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from grpclib.client import Channel, StreamStreamMethod, UnaryUnaryMethod
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

from services.proxy.slots import HTTPRule, Slot
from tests.proxy.running import Running, free_ports, running_envoy

SAY, COUNT, SECRET = "/test.Words/Say", "/test.Words/Count", "/test.Words/Secret"
(PORT,) = free_ports(1)


class Words:
    async def say(self, stream: Stream[StringValue, StringValue]) -> None:
        message = await stream.recv_message()
        assert message is not None
        if message.value == "fail":
            raise GRPCError(Status.ABORTED, "as asked")
        await stream.send_message(message)

    async def count(self, stream: Stream[Int32Value, Int32Value]) -> None:
        async for message in stream:
            await stream.send_message(Int32Value(value=message.value + 1))

    def __mapping__(self) -> dict[str, Handler]:
        def handler(method: Callable[[Stream[Any, Any]], Awaitable[None]], kind: Cardinality, message: Any) -> Handler:
            return Handler(method, kind, message, message)

        return {
            SAY: handler(self.say, Cardinality.UNARY_UNARY, StringValue),
            SECRET: handler(self.say, Cardinality.UNARY_UNARY, StringValue),
            COUNT: handler(self.count, Cardinality.STREAM_STREAM, Int32Value),
        }


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Before a server of gRPC."""
    (port,) = free_ports(1)
    rules = tuple(HTTPRule(name="say", method="POST", path=path) for path in (SAY, COUNT))
    with running_envoy(Path(tmp_path_factory.mktemp("envoy")), http=port) as running:

        async def serve() -> Server:
            server = Server([Words()])
            await server.start("127.0.0.1", port)
            return server

        server = running.background.run(serve())
        running.want(Slot(port=PORT, direction="ingress", http=rules))
        yield running

        async def stop() -> None:
            server.close()

        running.background.run(stop())


@asynccontextmanager
async def channel() -> AsyncIterator[Channel]:
    made = Channel("127.0.0.1", PORT)
    try:
        yield made
    finally:
        made.close()


async def say(made: Channel, word: str, path: str = SAY) -> str:
    method = UnaryUnaryMethod(made, path, StringValue, StringValue)
    return (await asyncio.wait_for(method(StringValue(value=word)), 20)).value


@pytest.mark.usefixtures("proxied")
async def test_a_call_and_its_trailers_pass() -> None:
    async with channel() as made:
        assert await say(made, "hello") == "hello"
        with pytest.raises(GRPCError) as failure:
            await say(made, "fail")
        assert (failure.value.status, failure.value.message) == (Status.ABORTED, "as asked")


@pytest.mark.usefixtures("proxied")
async def test_a_call_that_is_denied_is_told_so_and_the_channel_lives_on() -> None:
    async with channel() as made:
        with pytest.raises(GRPCError) as failure:
            await say(made, "hello", SECRET)
        assert failure.value.status == Status.PERMISSION_DENIED
        assert await say(made, "hello") == "hello"


@pytest.mark.usefixtures("proxied")
async def test_streams_go_both_ways_at_once() -> None:
    async with asyncio.timeout(20), channel() as made, _count(made).open() as stream:
        for number in range(5):
            await stream.send_message(Int32Value(value=number), end=number == 4)
            answer = await stream.recv_message()
            assert answer is not None and answer.value == number + 1
        assert await stream.recv_message() is None


def _count(made: Channel) -> StreamStreamMethod[Int32Value, Int32Value]:
    return StreamStreamMethod(made, COUNT, Int32Value, Int32Value)
