"""`resources` as a process, on a real nats-server, before the API server over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bus.client import connect
from bus.interface import Unanswered
from bus.messages.dataplane import Health, HealthQuestion
from bus.server import ServerSettings, free_port, running
from bus.services import HEALTH
from services.resources.kubernetes.rights import rules
from tests.k8s.apiserver import serving
from tests.k8s.conftest import kubeconfig
from tests.k8s.test_source import NODE_ONE, pod

PODS = int(os.environ.get("PODS", "1100"))  # three pages; PODS=10000 for figures
BYTES = 6000  # of one pod as an API server has it; those of small clusters have 4 to 8 thousand


@asynccontextmanager
async def resources(**settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = os.environ | {"PLEXUS_SOURCE": "kubernetes"}
    environment |= {f"PLEXUS_{name.upper()}": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.resources", env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ready(url: str) -> Health:
    async with connect(url, name="asker") as bus, asyncio.timeout(100):
        while True:
            try:
                answer = await bus.ask(HEALTH["resources"], "control", message=HealthQuestion())
            except Unanswered:
                await asyncio.sleep(0.05)
            else:
                if answer.ready and answer.active:
                    return answer
                await asyncio.sleep(0.05)


async def test_a_kubeconfig_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "none"
    async with (
        running(ServerSettings(tmp_path / "nats", port=free_port())) as bus,
        resources(bus_url=bus.url, kubeconfig=str(file)) as process,
    ):
        _, errors = await process.communicate()
    last = json.loads(errors.splitlines()[-1])
    assert process.returncode == 1
    assert last["message"] == "service cannot start"
    assert str(file) in last["why"] and "PLEXUS_KUBECONFIG" in last["why"]


async def test_more_pods_than_a_page_holds(tmp_path: Path) -> None:
    """Prints what a start costs: `PODS=10000 pytest -s`."""
    async with serving() as server, running(ServerSettings(tmp_path / "nats", port=free_port())) as bus:
        server.rules = rules()
        server.put(NODE_ONE)
        for number in range(PODS):
            each = pod(f"web-{number}", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
            each["metadata"]["managedFields"][0]["fieldsV1"]["f:padding"] = "x" * (BYTES - 1000)
            server.put(each)
        file = kubeconfig(tmp_path / "kubeconfig", server.url)
        for what in ("first start", "restart"):
            began = time.monotonic()
            async with resources(bus_url=bus.url, kubeconfig=str(file)):
                health = await ready(bus.url)
                told = time.monotonic() - began
                assert health.revision["resources"] >= PODS
                assert all(each.ok for each in health.checks), health.checks
            print(f"{PODS} pods, {what}: {told:.1f} s, {health.resident_bytes / 2**20:.0f} MiB resident")
