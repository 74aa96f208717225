"""A service as a process: how it starts, says how it is, and ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from bus.client import connect
from bus.interface import Unanswered
from bus.messages.dataplane import Check, Health, HealthQuestion, ReachedRevision
from bus.server import Server, ServerSettings, free_port, running
from bus.services import HEALTH


@asynccontextmanager
async def service(*arguments: str, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = os.environ | {f"PLEXUS_{name.upper()}": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bus.echo_service", *arguments, env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def health(server: Server) -> Health:
    async with connect(server.url, name="asker") as bus, asyncio.timeout(10):
        while True:
            try:
                answer = await bus.ask(HEALTH["identity"], "control", message=HealthQuestion())
            except Unanswered:
                await asyncio.sleep(0.05)
            else:
                if answer.ready:
                    return answer


async def test_it_answers_for_its_health_and_ends_when_told(server: Server) -> None:
    async with service(bus_url=server.url) as process:
        how = await health(server)
        assert how.checks == [Check(name="disk", ok=True, detail="there")]
        assert how.reached == [ReachedRevision(revision={"resources": 7}, at=12.5)]
        assert how.resident_bytes > 0
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
        assert process.returncode == 0
        lines = [json.loads(line) for line in errors.splitlines()]
        assert [line["message"] for line in lines] == ["started", "ready", "stopped"]
        assert lines[-1]["signal"] == "SIGTERM"


async def test_it_shows_health_readiness_and_metrics_over_a_socket(server: Server, tmp_path: Path) -> None:
    where = tmp_path / "http"
    async with service(bus_url=server.url, http=f"unix:{where}"):
        await health(server)
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(where))) as session:
            for page in ("healthz", "readyz"):
                async with session.get(f"http://plexus/{page}") as answer:
                    assert answer.status == 200
                    assert (await answer.json())["service"] == "identity"
            async with session.get("http://plexus/livez") as answer:
                assert (answer.status, await answer.text()) == (200, "ok")
            async with session.get("http://plexus/metrics") as answer:
                text = await answer.text()
    assert "plexus_widgets 3.0" in text
    assert 'plexus_things_total{colour="red"} 5.0' in text
    assert "plexus_ready 1.0" in text
    assert "process_resident_memory_bytes" in text


async def test_a_failing_task_ends_it_with_one_reason(server: Server) -> None:
    async with service("fail", bus_url=server.url) as process:
        _, errors = await process.communicate()
        assert process.returncode == 1
        last = json.loads(errors.splitlines()[-1])
        assert last["level"] == "error" and "the disk is on fire" in last["why"]


async def test_a_setting_that_cannot_be_used_is_named(server: Server) -> None:
    for name, value in (("http", "nowhere"), ("log_format", "xml"), ("log_level", "loud")):
        async with service(bus_url=server.url, **{name: value}) as process:
            _, errors = await process.communicate()
            assert process.returncode == 2
            assert f"PLEXUS_{name.upper()}" in errors.decode()


async def test_it_stops_while_it_waits_for_a_server_that_is_not_there() -> None:
    async with service(bus_url="nats://127.0.0.1:1") as process:
        await asyncio.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            await process.communicate()
        assert process.returncode == 0


async def test_an_idle_service_is_small(server: Server) -> None:
    """The bus must leave the dataplane most of its 90 MB."""
    async with service(bus_url=server.url):
        assert (await health(server)).resident_bytes < 60e6


async def test_one_that_does_not_wait_works_before_there_is_a_server_and_answers_when_it_comes(tmp_path: Path) -> None:
    settings = ServerSettings(tmp_path / "nats", port=free_port())
    where = tmp_path / "http"
    async with service("early", bus_url=settings.url, http=f"unix:{where}") as process:
        async with asyncio.timeout(20), aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(where))) as session:
            while True:
                with suppress(aiohttp.ClientError):
                    async with session.get("http://plexus/readyz") as answer:
                        if answer.status == 200:
                            break
                await asyncio.sleep(0.05)
        async with running(settings) as server:
            assert (await health(server)).ready
            process.send_signal(signal.SIGTERM)
            await process.communicate()
            assert process.returncode == 0
