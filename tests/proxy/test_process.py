"""Envoy outlives us, is found again, and is started again when it dies."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.proxy import ads, bootstrap
from services.proxy.process import Envoy, began_at
from tests.proxy.calling import Connection
from tests.proxy.running import Running, free_ports, kill, on_loopback, running_envoy, slot_of_a
from tests.proxy.upstream import Recorder

(PORT,) = free_ports(1)
SLOT = slot_of_a(PORT)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Running]:
    with running_envoy(tmp_path) as running:
        running.want(SLOT)
        yield running


def test_killed_it_is_back_with_all_it_had(own: Running) -> None:
    pid = own.process.pid
    kill(pid)
    own.until(lambda: not own.discovery.is_connected)
    own.until(lambda: own.discovery.in_force(SLOT.name))
    with Connection(PORT) as connection:
        assert connection.ask("GET", "/a").status == 200
    assert own.process.pid != pid


async def test_it_serves_on_when_we_are_killed_and_is_adopted(tmp_path: Path) -> None:
    """The second process knows nothing of the first but the directory."""
    recorder = Recorder()
    server = await asyncio.start_server(recorder.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    command = [sys.executable, "-m", "tests.proxy.first", str(tmp_path), str(PORT), str(port)]
    first = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert first.stdout is not None
    assert await asyncio.wait_for(first.stdout.readline(), 20) == b"ready\n"
    pid = Envoy([], tmp_path).found()
    try:
        with Connection(PORT) as connection:
            assert (await asyncio.to_thread(connection.ask, "GET", "/a")).status == 200
            first.kill()
            await first.wait()
            assert (await asyncio.to_thread(connection.ask, "GET", "/a")).status == 200

            discovery, second, has_one = ads.Discovery(), Envoy(["/nowhere"], tmp_path), asyncio.Event()
            discovery.want(on_loopback([SLOT], {"http": port, "tls": port}))
            async with asyncio.timeout(20), ads.serving(discovery, bootstrap.socket_of(tmp_path)):
                keeps = asyncio.create_task(second.keep(lambda pid: has_one.set()))
                await has_one.wait()
                while not discovery.in_force(SLOT.name):
                    discovery.changed.clear()
                    await discovery.changed.wait()
                keeps.cancel()
            assert (second.pid, second.starts) == (pid, 0)
            assert discovery.sent == 0  # it has all that is wanted
            assert (await asyncio.to_thread(connection.ask, "GET", "/a")).status == 200
        assert recorder.connections == 1
    finally:
        kill(pid)
        server.close()


def test_a_pid_that_is_anothers_by_now_is_not_taken_for_it(tmp_path: Path) -> None:
    envoy = Envoy([], tmp_path)
    for text in (f"{os.getpid()} 1", "", "x y", "1", "0 0"):
        (tmp_path / "envoy.pid").write_text(text)
        assert envoy.found() == 0
    (tmp_path / "envoy.pid").write_text(f"{os.getpid()} {began_at(os.getpid())}")
    assert envoy.found() == os.getpid()


async def test_one_that_cannot_start_is_tried_again_not_too_often(tmp_path: Path) -> None:
    (tmp_path / "program").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "program").chmod(0o700)
    pids: list[int] = []
    enough = asyncio.Event()

    def started(pid: int) -> None:
        pids.append(pid)
        if len(pids) == 4:
            enough.set()

    began = time.monotonic()
    keeps = asyncio.create_task(Envoy([str(tmp_path / "program")], tmp_path).keep(started))
    await asyncio.wait_for(enough.wait(), 20)
    keeps.cancel()
    assert time.monotonic() - began >= 0.1 + 0.2 + 0.5  # the pauses between four starts
