"""A small cluster on a real server, with the services and nodes as they are, whose logs can be damaged.

Only the kernel is in memory. What its maps hold is written down at each change, so that a test can say what was true at
every moment.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from bus import subjects
from bus.client import NatsBus, connect
from bus.control import Model, run_control
from bus.interface import Unanswered
from bus.messages import Message
from bus.messages.resources import Applied, Apply, Document, Pod, PodStatus
from bus.revision import Revision
from bus.server import Server
from bus.subjects import APPLY, POD_STATUS, stream_of
from bus.testing import Hub, first_synced
from services.identity.model import IdentityModel
from services.ipam.model import BlockAllocation, Pools
from services.lb.model import LoadBalancing
from services.policy.model import PolicyModel
from services.resources import handlers
from services.resources.settings import Settings
from tests.unit.dataplane.fake_kernel import MemoryMap
from tests.unit.dataplane.test_node import DEVICE, Machine, until

NODES = {"node-1": "192.0.2.1", "node-2": "192.0.2.2"}
PODS = {"web": "node-1", "client": "node-2", "other": "node-2"}
TABLES = ("endpoints", "ipcache", "policy", "services", "backends")

MODELS: Mapping[str, Callable[[], Model]] = {
    "identity": IdentityModel,
    "ipam": lambda: BlockAllocation(Pools([IPv4Network("10.0.0.0/16")], 24)),
    "lb": LoadBalancing,
    "policy": PolicyModel,
}


def node(name: str) -> dict[str, Any]:
    addresses = [{"type": "InternalIP", "address": NODES[name]}]
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": addresses}}


def pod(name: str, where: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default", "labels": {"app": name}}
    containers = [{"name": "c", "image": "traefik/whoami", "ports": [{"containerPort": 80}]}]
    spec = {"nodeName": where, "containers": containers}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def service(name: str) -> dict[str, Any]:
    spec = {"selector": {"app": name}, "ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec}


def policy(name: str, peer: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"{name}-from-{peer}", "namespace": "default"},
        "spec": {
            "podSelector": {"matchLabels": {"app": name}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": peer}}}]}],
        },
    }


class WatchedMap(MemoryMap):
    """Writes down what becomes of the entries that it had when `watch` was called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name
        self.kept: dict[bytes, bytes] = {}
        self.told: list[str] = []

    def watch(self, told: list[str]) -> None:
        self.kept, self.told = dict(self.entries), told

    def set(self, key: bytes, value: bytes) -> None:
        super().set(key, value)
        if self.kept.get(key, value) != value:
            self.told.append(f"{self.name}: {key.hex()} was {self.kept[key].hex()} and is {value.hex()}")

    def remove(self, key: bytes) -> bool:
        if key in self.kept:
            self.told.append(f"{self.name}: {key.hex()} is gone")
        return super().remove(key)


class Quiet:
    """Nobody asks how a service is."""

    def check(self, name: str, ok: bool, detail: str = "") -> None: ...

    def report(self, *, ready: bool, active: bool, revision: Revision) -> None: ...


@dataclass
class World:
    server: Server
    user: NatsBus
    machines: dict[str, Machine]
    changed: list[str] = field(default_factory=list)  # entries of maps that went or became others
    copies: dict[str, Path] = field(default_factory=dict)
    services: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    # -- services

    def start(self, owner: str) -> None:
        self.services[owner] = asyncio.create_task(self._run(owner), name=owner)

    async def stop(self, *owners: str) -> None:
        tasks = [self.services.pop(owner) for owner in owners]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, owner: str) -> None:
        async with connect(self.server.url, name=owner) as bus:
            if owner == "resources":
                await handlers.run(bus, Settings(), Quiet())
            else:
                await run_control(bus, MODELS[owner](), report=Quiet())

    # -- what is asked and seen

    async def apply(self, *manifests: dict[str, Any], delete: bool = False) -> None:
        documents = [Document(source="test", manifest=each) for each in manifests]
        await answered(lambda: self.user.ask(APPLY, message=Apply(documents=documents, delete=delete), timeout=10))

    async def add(self, name: str, where: str) -> None:
        """The container runtime starts a pod that was applied, and its kubelet tells that it is ready."""
        machine = self.machines[where]
        address = await machine.add(f"c-{name}", name)
        known = (await self.said("resources"))[subjects.POD.of("default", name)]
        assert isinstance(known, Pod)
        status = PodStatus(
            namespace="default",
            name=name,
            uid=known.uid,
            phase="Running",
            ready=True,
            address=address,
            node=where,
        )
        await answered(lambda: self.user.ask(POD_STATUS, where, message=status, timeout=10))
        await until(lambda: (entry := machine.entry(address)) is not None and entry.flags != 3 and entry.identity)

    def maps(self) -> dict[tuple[str, str], dict[bytes, bytes]]:
        return {
            (name, table): dict(machine.maps.memory[table].entries)
            for name, machine in self.machines.items()
            for table in TABLES
        }

    async def settled(self, seconds: float = 0.4) -> dict[tuple[str, str], dict[bytes, bytes]]:
        """What the maps hold, once that has not changed for a while."""
        before = self.maps()
        while True:
            await asyncio.sleep(seconds)
            now = self.maps()
            if now == before:
                return now
            before = now

    def watch(self) -> None:
        """From here on every entry that goes or becomes another is written down."""
        for machine in self.machines.values():
            for table in TABLES:
                cast(WatchedMap, machine.maps.memory[table]).watch(self.changed)

    async def said(self, owner: str) -> dict[str, Message]:
        """What the owner's log holds, read by one who knows nothing."""
        families = [family for family in subjects.STATES if family.owner == owner]
        values, _ = await first_synced(self.user.watch_state(*families, direct=True))
        return values

    # -- damage

    def store(self, stream: str) -> Path:
        (found,) = self.server.settings.store.glob(f"jetstream/**/streams/{stream}")
        return found

    async def copy(self, owner: str) -> None:
        """Keep the log as it is now, to be put back later."""
        await self.server.stop()
        self.copies[owner] = self.server.settings.store / f"copy-{owner}"
        shutil.copytree(self.store(stream_of(owner)), self.copies[owner])
        await self.server.start()

    async def damage(self, owner: str, how: str, away: float = 0.0) -> None:
        """`away`: for how long the server is."""
        stream = stream_of(owner)
        if how == "purged":
            await self.user.link.api(f"$JS.API.STREAM.PURGE.{stream}")
            return
        if how == "deleted":
            await self.user.link.api(f"$JS.API.STREAM.DELETE.{stream}")
            return
        if how == "one message":
            subject = max(await self.said(owner))
            last = await self.user.link.api(f"$JS.API.STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
            await self.user.link.api(f"$JS.API.STREAM.MSG.DELETE.{stream}", {"seq": last["message"]["seq"]})
            return
        await self.server.kill()
        place = self.store(stream)
        if how == "truncated":
            for block in sorted((place / "msgs").glob("*.blk")):
                block.write_bytes(block.read_bytes()[: block.stat().st_size // 3])
            for index in place.glob("msgs/index.db"):
                index.unlink()
        else:
            shutil.rmtree(place)
        if how == "older":
            shutil.copytree(self.copies[owner], place)
        await asyncio.sleep(away)
        await self.server.start()


@asynccontextmanager
async def cluster(server: Server, folder: Path) -> AsyncIterator[World]:
    """All services, two nodes, three pods, a Service and a policy; the maps hold all of it."""
    async with AsyncExitStack() as stack:
        user = await stack.enter_async_context(connect(server.url, name="user"))
        world = World(server, user, {})
        try:
            for owner in ("resources", *MODELS):
                world.start(owner)
            await world.apply(*map(node, NODES), service("web"), policy("web", "client"))
            await world.apply(*(pod(name, where) for name, where in PODS.items()))
            for name, address in NODES.items():
                await stack.enter_async_context(await machine(world, folder / name, name, address))
            for name, where in PODS.items():
                await world.add(name, where)
            await until(lambda: all(world.maps()[each, table] for each in NODES for table in ("services", "backends")))
            await until(lambda: world.maps()["node-1", "policy"])
            yield world
            for task in world.services.values():
                if task.done():
                    task.result()
        finally:
            await world.stop(*world.services)


async def machine(world: World, folder: Path, name: str, address: str) -> Any:
    """One node: its process runs for as long as the context lasts."""
    folder.mkdir()
    made = Machine(folder)
    bus = connect(world.server.url, name=name)
    made.settings = replace(made.settings, node=name)
    made.device = replace(DEVICE, address=address)
    for table in TABLES:
        made.maps.memory[table] = made.maps._maps[table] = WatchedMap(table)
    world.machines[name] = made

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        async with bus as connection:
            made.hub = cast(Hub, SimpleNamespace(bus=lambda: connection))
            async with made.running() as running_node:
                await until(lambda: running_node.service.is_ready)
                yield

    return running()


async def answered(ask: Callable[[], Awaitable[Applied]]) -> None:
    """Ask until somebody answers."""
    async with asyncio.timeout(15):
        while True:
            try:
                answer = await ask()
            except Unanswered:
                await asyncio.sleep(0.05)
            else:
                assert not answer.refusals, answer.refusals
                return
