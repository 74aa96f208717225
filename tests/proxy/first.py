"""A process that keeps an Envoy with one slot, and can be killed: `python -m tests.proxy.first DIRECTORY PORT SERVER`.

It says "ready" when the slot is in force: /a at PORT, from the server of 127.0.0.1:SERVER.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from services.proxy import ads, bootstrap
from services.proxy.process import Envoy
from tests.proxy.running import ENVOY, on_loopback, slot_of_a


async def main(directory: Path, port: int, server: int) -> None:
    (directory / "bootstrap.json").write_text(bootstrap.bootstrap("node1", directory))
    slot, discovery = slot_of_a(port), ads.Discovery()
    discovery.want(on_loopback([slot], {"http": server, "tls": server}))
    async with ads.serving(discovery, bootstrap.socket_of(directory)), asyncio.TaskGroup() as tasks:
        tasks.create_task(Envoy(bootstrap.command(ENVOY, directory, concurrency=1), directory).keep())
        while not discovery.in_force(slot.name):
            discovery.changed.clear()
            await discovery.changed.wait()
        sys.stdout.write("ready\n")
        sys.stdout.flush()


asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
