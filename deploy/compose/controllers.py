"""The controllers of a cluster by docker compose: those of a lab (lab/cluster.py), without its kubelets. Which nodes
there are is said first.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import yaml

from bus.client import connect
from bus.interface import Bus, BusError
from bus.messages.resources import Apply, Document
from bus.service import Settings
from bus.subjects import APPLY, NODE, POD
from bus.telemetry import configure_logs
from lab.cluster import RETRY_SECONDS, WORKLOADS, Cluster, bind_pods, keep_replicas, loop, report

NODES = Path(__file__).with_name("nodes.yaml")


async def say_nodes(bus: Bus) -> None:
    documents = [Document(source=NODES.name, manifest=each) for each in yaml.safe_load_all(NODES.read_text())]
    while True:
        try:
            report(await bus.ask(APPLY, message=Apply(documents=documents)))
        except BusError:
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


async def run(bus: Bus) -> None:
    cluster = Cluster()
    await say_nodes(bus)
    async with asyncio.TaskGroup() as tasks:
        schedule, replicate = asyncio.Event(), asyncio.Event()
        tasks.create_task(loop("scheduler", schedule, lambda: bind_pods(cluster, bus)), name="scheduler")
        tasks.create_task(loop("workloads", replicate, lambda: keep_replicas(cluster, bus)), name="workloads")
        async for batch in bus.watch_state(POD, NODE, *WORKLOADS):
            cluster.take(batch)
            if batch.synced:
                schedule.set()
                replicate.set()


async def main() -> None:
    settings = Settings.of(os.environ)
    configure_logs("info", settings.log_format)
    user, password = settings.bus_user, settings.bus_password
    async with connect(settings.bus_url, name="controllers", user=user, password=password) as bus:
        await run(bus)


if __name__ == "__main__":
    asyncio.run(main())
