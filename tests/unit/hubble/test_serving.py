"""The socket is there with the right mode, and clients that ask for its health get an answer."""

from __future__ import annotations

import stat
from pathlib import Path

from grpclib.client import Channel
from grpclib.health.v1.health_grpc import HealthStub
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from services.hubble.server import ObserverServer
from services.hubble.serving import serve
from tests.unit.hubble.served import flows, observed, see, times


async def test_a_client_asks_for_health_first_and_is_served(tmp_path: Path) -> None:
    path = tmp_path / "run" / "hubble.sock"
    observer = observed()
    see(observer, 1)
    async with serve(path, ObserverServer(observer)):
        channel = Channel(path=str(path))
        for service in ("hubble.server.Observer", "observer.Observer", ""):
            answer = await HealthStub(channel).Check(HealthCheckRequest(service=service))
            assert answer.status == HealthCheckResponse.SERVING
        assert times(await flows(channel)) == [1]
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        channel.close()
    assert not path.exists()


async def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "hubble.sock"
    for left in (path, path.with_name("hubble.sock.new")):
        left.touch()
    async with serve(path, ObserverServer(observed())):
        channel = Channel(path=str(path))
        assert await flows(channel) == []
        channel.close()
