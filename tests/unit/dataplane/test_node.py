"""One node at work, on a bus in memory and a kernel in memory that does what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bus import subjects
from bus.interface import Anew, Batch, Family
from bus.labels import RESERVED, canonical_labels
from bus.messages.dataplane import AppliedRevision
from bus.messages.dataplane import Endpoint as EndpointSaid
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.ipam import Block
from bus.messages.lb import Backend, Frontend, LoadBalancedService
from bus.messages.resources import Namespace, Pod
from bus.messages.resources import Node as NodeResource
from bus.service import Service, Settings
from bus.telemetry import counted
from bus.testing import Hub, MemoryBus
from services.dataplane.keep.recall import Recall
from services.dataplane.kernel.links import DeviceInfo, LinkError, TcProgram
from services.dataplane.kernel.rtnl import NodeRoute
from services.dataplane.node import Node
from services.dataplane.pods import cni
from services.dataplane.pods.addresses import Attachment
from services.dataplane.pods.verbs import NodePods
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.again import Again
from services.dataplane.shapes.devices import Seen
from services.dataplane.shapes.layouts import (
    EndpointEntry,
    IpcacheEntry,
    IpcacheKey,
    ServiceEntry,
    ServiceKey,
    pack_address,
)
from services.dataplane.shapes.table import Table
from services.dataplane.store.journal import Journal
from tests.unit.dataplane.fake_kernel import MemoryHooks, MemoryLinks, MemoryMaps

HERE, THERE = "node-1", "node-2"
WEB = 1000
DEVICE = DeviceInfo("eth0", 2, "02:00:00:00:00:10", "192.0.2.1", 1500, networks=("192.0.2.0/24",))
PROGRAMS = (TcProgram(3, "ingress", "from_pod"), TcProgram(4, "egress", "to_pod"))
SAID = subjects.ENDPOINT.of(HERE, "default", "web")
PATIENCE_SECONDS = 30.0


class Machine:
    """What outlives the process: kernel, disk, bus."""

    def __init__(self, folder: Path) -> None:
        self.hub = Hub()
        self.maps = MemoryMaps()
        self.links = MemoryLinks()
        self.hooks = MemoryHooks(self.links)
        self.folder = folder
        self.settings = NodeSettings(node=HERE, routing_mode="native")
        self.device = DEVICE
        self.node: Node
        self.pods: NodePods

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Node]:
        """The process, from its start to its end."""
        journal = Journal.open(self.folder / "endpoints.journal", durable=False)
        service = Service("dataplane", Settings(instance=HERE), self.hub.bus())
        underlay = self.settings.underlay(bool(self.device.address))
        there = tuple(filter(None, (self.device.address, self.device.address6)))
        self.device = replace(self.device, addresses=there, metric=0)
        if not self.links.seen.devices:
            self.links.seen = Seen((self.device,))
        node = Node(
            self.settings,
            service,
            self.device,
            self.links,
            self.hooks,
            self.maps,
            journal,
            PROGRAMS,
            1500,
            Recall(self.folder / "heard.state", self.folder / "pins" / "ahead"),
            underlay,
        )
        await node.restore()
        self.node, self.pods = node, NodePods(node)
        tasks = [asyncio.ensure_future(each) for each in (node.hear(), node.publish.run())]
        try:
            yield node
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await journal.close()

    def populate(self) -> None:
        """What the control services say of a small cluster."""
        for name, address in ((HERE, "192.0.2.1"), (THERE, "192.0.2.2")):
            self.hub.put(subjects.NODE.of(name), NodeResource(name=name, addresses=[address]))
        for cidr, name in (("10.0.0.0/24", HERE), ("10.0.1.0/24", THERE)):
            self.hub.put(subjects.BLOCK.of(cidr), Block(cidr=cidr, node=name))
        pod, namespace = Pod(namespace="default", name="web", uid="u", node=HERE), Namespace(name="default")
        self.hub.put(subjects.NAMESPACE.of("default"), namespace)
        self.hub.put(subjects.POD.of("default", "web"), pod)
        identity = Identity(number=WEB, labels=canonical_labels(pod, namespace))
        self.hub.put(subjects.IDENTITY.of(str(WEB)), identity)

    def say_service(self, name: str, address: str) -> None:
        front = Frontend(address=address, port=80, protocol="TCP", backends=[Backend(address="10.0.1.7", port=80)])
        message = LoadBalancedService(namespace="default", name=name, frontends=[front])
        self.hub.put(subjects.FRONTEND.of("default", name), message)

    async def add(self, container_id: str = "c1", pod: str = "web") -> str:
        request = cni.Add(Attachment(container_id, "eth0"), "plexus", "default", pod, "", "/x", 0, "1.1.0")
        return (await self.pods.add(request)).ips[0].address

    async def delete(self, container_id: str = "c1") -> None:
        await self.pods.delete(cni.Delete(Attachment(container_id, "eth0"), "plexus"))

    def entry(self, address: str) -> EndpointEntry | None:
        raw = self.maps.memory["endpoints"].entries.get(pack_address(address))
        return EndpointEntry.unpack(raw) if raw else None

    def who(self, address: str, bits: int = 32) -> tuple[int, str] | None:
        raw = self.maps.memory["ipcache"].entries.get(IpcacheKey(address, bits).pack())
        return None if raw is None else (IpcacheEntry.unpack(raw).identity, IpcacheEntry.unpack(raw).node)

    def said(self) -> EndpointSaid | None:
        found = self.hub.states("dataplane").get(SAID)
        assert found is None or isinstance(found, EndpointSaid)
        return found


async def until(claim: Callable[[], object]) -> None:
    """Returns when `claim` holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not claim():
            await asyncio.sleep(0.001)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def test_a_pod_is_closed_when_add_returns_and_open_when_it_is_known(machine: Machine) -> None:
    machine.populate()
    machine.hub.delete(subjects.POD.of("default", "web"))
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        address = await machine.add()
        found = machine.entry(address)
        assert found is not None and (found.policy, found.flags) == (0, 3)
        machine.hub.put(subjects.POD.of("default", "web"), Pod(namespace="default", name="web", uid="u", node=HERE))
        await until(lambda: (entry := machine.entry(address)) and (entry.identity, entry.flags) == (WEB, 0))


async def test_an_endpoint_is_said_as_it_becomes_and_unsaid_when_it_is_gone(machine: Machine) -> None:
    machine.populate()
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        address = await machine.add()
        await until(lambda: (said := machine.said()) and said.state == "ready")
        said = machine.said()
        assert said is not None and (said.address, said.identity, said.interface) == (address, WEB, "lxcc1")
        await machine.delete()
        assert machine.entry(address) is None
        assert machine.links.pods == {}
        await until(lambda: machine.said() is None)


async def test_what_the_bus_holds_of_this_node_and_is_not_so_is_taken_back(machine: Machine) -> None:
    machine.populate()
    stale = EndpointSaid(
        node=HERE, namespace="default", pod="web", address="10.0.0.9", mac="", interface="x", interface_index=1,
        identity=WEB, state="ready",
    )  # fmt: skip
    machine.hub.put(SAID, stale)
    other = subjects.ENDPOINT.of(THERE, "default", "web")
    machine.hub.put(other, stale)
    async with machine.running():
        await until(lambda: machine.said() is None)
    assert other in machine.hub.states("dataplane")


async def test_a_link_that_cannot_be_made_gives_its_address_back(machine: Machine) -> None:
    machine.populate()
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        machine.links.broken = "no"
        with pytest.raises(cni.CniError):
            await machine.add()
        machine.links.broken = ""
        assert node.addresses.leases == {}
        assert len(node.endpoints) == 0


async def test_a_del_that_fails_is_done_by_the_next_one(machine: Machine) -> None:
    machine.populate()
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add()
        machine.links.broken = "no"
        with pytest.raises(LinkError):
            await machine.delete()
        machine.links.broken = ""
        await machine.delete()
        assert machine.links.pods == {}
        assert node.addresses.leases == {}
        assert node.journal.items("endpoint/") == {}
        await until(lambda: machine.said() is None)


async def test_without_a_block_the_runtime_is_asked_to_come_again(machine: Machine) -> None:
    async with machine.running() as node:
        with pytest.raises(cni.CniError) as problem:
            await machine.add()
        assert problem.value.code == cni.TRY_AGAIN
        with pytest.raises(cni.CniError, match="no block of IPv4") as problem:
            await machine.pods.status()
        assert problem.value.code == cni.NOT_AVAILABLE
        assert not node.service.is_ready


async def test_other_nodes_blocks_have_routes_and_what_was_realised_is_told(machine: Machine) -> None:
    machine.populate()
    told: list[AppliedRevision] = []

    async def listen() -> None:
        async for _, event in machine.hub.bus().watch_events(subjects.APPLIED.all(), AppliedRevision):
            told.append(event)

    listener = asyncio.ensure_future(listen())
    await asyncio.sleep(0)
    async with machine.running() as node:
        await until(lambda: set(machine.links.routes) == {"10.0.1.0/24"})
        assert machine.links.routers == {4: "10.0.0.1"}
        assert machine.who("10.0.1.0", 24) == (RESERVED["unmanaged"], "192.0.2.2")
        sequence = machine.hub.put(subjects.NODE.of("node-3"), NodeResource(name="node-3", addresses=["192.0.2.3"]))
        machine.hub.put(subjects.BLOCK.of("10.0.2.0/24"), Block(cidr="10.0.2.0/24", node="node-3"))
        await until(lambda: "10.0.2.0/24" in machine.links.routes)
        machine.hub.delete(subjects.BLOCK.of("10.0.1.0/24"))
        await until(lambda: set(machine.links.routes) == {"10.0.2.0/24"})
        await until(lambda: told)
        assert told[-1].node == HERE and told[-1].revision == node.service.revision
        assert set(told[-1].revision) <= {"resources", "dataplane"}
        assert told[-1].revision.get("resources", 0) <= sequence
    listener.cancel()


# A restart


async def test_before_all_is_heard_nothing_of_the_kernel_is_touched_but_new_pods(machine: Machine) -> None:
    machine.populate()
    machine.say_service("web", "10.96.0.1")
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        address = await machine.add()
        await until(lambda: (entry := machine.entry(address)) and entry.identity == WEB)
    before = {name: dict(each.entries) for name, each in machine.maps.memory.items()}

    # Nobody speaks yet: as when the bus is away, or its answer is on the way.
    machine.hub = SilentHub()
    async with machine.running() as node:
        assert not node.is_synced
        new = await machine.add("c9", "other")
        after = {name: dict(each.entries) for name, each in machine.maps.memory.items()}
        added = after["endpoints"].pop(pack_address(new))
        assert EndpointEntry.unpack(added).flags == 3
        assert {**after, "node_state": {}} == {**before, "node_state": {}}


class SilentHub(Hub):
    """Nobody on it says anything, not even that there is nothing."""

    def bus(self, name: str = "test") -> MemoryBus:
        return SilentBus(self, name)


class SilentBus(MemoryBus):
    async def watch_state(
        self, *families: Family, direct: bool = False, anew: Anew | None = None
    ) -> AsyncIterator[Batch]:
        await asyncio.Event().wait()
        yield Batch([], synced=False)


async def test_a_restart_rewrites_nothing_that_is_right_and_removes_what_is_not(machine: Machine) -> None:
    machine.populate()
    for number in range(1, 4):
        machine.say_service(f"web{number}", f"10.96.0.{number}")
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        address = await machine.add()
        await until(lambda: (entry := machine.entry(address)) and entry.identity == WEB)
        await until(lambda: len(machine.maps.memory["services"].entries) == 3)
    before = {name: dict(each.entries) for name, each in machine.maps.memory.items()}
    machine.hub.delete(subjects.FRONTEND.of("default", "web1"))
    machine.hub.put(
        subjects.ADDRESS.of("10.0.1.7"),
        AddressIdentity(address="10.0.1.7", identity=5, node=THERE, node_address="192.0.2.2", pod="default/x"),
    )
    machine.maps.memory["ipcache"].entries[IpcacheKey("10.7.7.7").pack()] = IpcacheEntry(9).pack()
    machine.links.pods["lxcorphan"] = replace(machine.links.pods["lxcc1"], name="lxcorphan")

    async with machine.running() as node:
        assert set(machine.links.pods) == {"lxcc1"}
        await until(lambda: node.is_synced and machine.who("10.0.1.7") is not None)
        await until(lambda: machine.who("10.7.7.7") is None)
        await until(lambda: len(machine.maps.memory["services"].entries) == 2)
        assert machine.maps.memory["endpoints"].entries == before["endpoints"]
        kept = machine.maps.memory["services"].entries
        assert kept.items() <= before["services"].items(), "numbers stay"
        numbers = {ServiceEntry.unpack(raw).number for raw in kept.values()}
        assert {int.from_bytes(key[:4], "little") for key in machine.maps.memory["backends"].entries} == numbers
        machine.say_service("web2", "10.96.0.2")
        machine.hub.delete(subjects.FRONTEND.of("default", "web3"))
        await until(lambda: len(machine.maps.memory["services"].entries) == 1)
        assert len(machine.maps.memory["backends"].entries) == 1
        assert await machine.add() == address, "its address is its own"


async def test_an_endpoint_whose_link_is_gone_is_forgotten(machine: Machine) -> None:
    machine.populate()
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        address = await machine.add()
        await until(lambda: machine.said() is not None)
    machine.links.pods.clear()
    async with machine.running() as node:
        assert len(node.endpoints) == 0
        await until(lambda: machine.said() is None)
        await until(lambda: machine.entry(address) is None)


async def test_programs_are_attached_anew_to_what_was_here(machine: Machine) -> None:
    machine.populate()
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add()
    machine.links.attached.clear()
    async with machine.running() as node:
        [endpoint] = node.endpoints.all()
        assert machine.links.attached == {endpoint.interface_index: {"ingress": "from_pod", "egress": "to_pod"}}


# Drift


async def test_what_someone_else_changed_is_put_back(machine: Machine) -> None:
    machine.populate()
    machine.say_service("web", "10.96.0.1")
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add()
        await until(lambda: (said := machine.said()) and said.state == "ready")
        before = {name: dict(each.entries) for name, each in machine.maps.memory.items()}
        for name in ("endpoints", "ipcache", "services", "backends"):
            entries = machine.maps.memory[name].entries
            key = next(iter(entries))
            entries[key] = bytes(len(entries[key]))
            entries[bytes(len(key))] = bytes(len(entries[key]))
        machine.links.routes.clear()
        machine.links.attached.clear()
        await node.heal.everything()
        await node.looks.run()
        after = {name: dict(each.entries) for name, each in machine.maps.memory.items()}
        assert {**after, "node_state": {}} == {**before, "node_state": {}}
        assert set(machine.links.routes) == {"10.0.1.0/24"}
        assert set(machine.links.attached) == {each.interface_index for each in node.endpoints.all()}


async def test_a_rate_on_a_pods_link_that_packets_go_past_is_told(machine: Machine) -> None:
    machine.populate()
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add()
        await node.heal.everything()
        assert node.service.failing("rates") == ""
        machine.links.pods["lxcc1"] = replace(machine.links.pods["lxcc1"], queue="tbf")
        await node.heal.everything()
        assert "lxcc1 (tbf)" in node.service.failing("rates")


async def test_a_pods_route_that_the_kernel_says_is_gone_is_put_back_and_counted(machine: Machine) -> None:
    machine.populate()
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        address = await machine.add()
        machine.links.pod_routes.clear()
        await node.looks.run()
        assert machine.links.pod_routes == {}, "nobody said that one is gone"
        before = counted("drift", kind="route")
        machine.hooks.routes_gone = True
        await node.looks.run()
        [endpoint] = node.endpoints.all()
        assert machine.links.pod_routes == {address: endpoint.interface_index}
        assert counted("drift", kind="route") == before + 1


async def test_the_routers_address_that_someone_removed_is_put_back(machine: Machine) -> None:
    machine.populate()
    async with machine.running() as node:
        await until(lambda: node.service.is_ready and machine.links.routers)
        before = dict(machine.links.routers)
        machine.links.routers.clear()
        machine.hooks.addresses_changed = True
        await node.looks.run()
        assert machine.links.routers == before


def host_at(machine: Machine, address: str) -> bool:
    found = machine.maps.memory["ipcache"].entries.get(IpcacheKey(address).pack())
    return found == IpcacheEntry(RESERVED["host"], unadvertised=True).pack()


async def test_whatever_the_node_answers_to_is_the_host_to_its_pods(machine: Machine) -> None:
    machine.populate()
    machine.links.addresses = {"169.254.20.10": "resolver"}
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert host_at(machine, "169.254.20.10")
        machine.links.addresses = {"172.17.0.1": "docker0", "fd00:172::1": "docker0"}  # IPv6 is not served here
        await node.looks.run()
        assert not host_at(machine, "172.17.0.1"), "nobody said that there is another"
        machine.hooks.addresses_changed = True
        await node.looks.run()
        assert host_at(machine, "172.17.0.1")
        assert not host_at(machine, "fd00:172::1") and not host_at(machine, "169.254.20.10")


async def test_addresses_that_cannot_be_asked_for_stay_as_they_were_and_are_asked_for_again(machine: Machine) -> None:
    machine.populate()
    machine.links.addresses = {"172.17.0.1": "docker0"}
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        machine.links.addresses = {"172.18.0.1": "docker0"}
        machine.links.broken = "busy"
        machine.hooks.addresses_changed = True
        await node.looks.run()
        assert host_at(machine, "172.17.0.1")
    async with machine.running() as node:  # after a restart too
        await until(lambda: node.is_synced)
        assert host_at(machine, "172.17.0.1")
        machine.links.broken = ""
        await node.looks.run()  # nobody has to say it again
        assert host_at(machine, "172.18.0.1") and not host_at(machine, "172.17.0.1")


async def test_an_address_that_the_bus_gives_to_another_is_not_the_host(machine: Machine) -> None:
    machine.populate()
    machine.links.addresses = {"192.0.2.2": "eth1", "10.0.1.1": "cni0", "10.0.1.99": "cni0", "172.17.0.1": "docker0"}
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert host_at(machine, "172.17.0.1")
        assert not any(host_at(machine, each) for each in ("192.0.2.2", "10.0.1.1", "10.0.1.99"))
        [check] = [each for each in node.service.health().checks if each.name == "own addresses"]
        assert not check.ok
        for told in ("eth1 has 192.0.2.2, which is the node node-2's", "cni0 has 10.0.1.99, which is in a block of"):
            assert told in check.detail
        machine.links.addresses = {"172.17.0.1": "docker0"}
        machine.hooks.addresses_changed = True
        await node.looks.run()
        assert [each.ok for each in node.service.health().checks if each.name == "own addresses"] == [True]


async def test_what_found_no_room_is_written_when_there_is_some(machine: Machine) -> None:
    machine.populate()
    machine.maps.memory["services"].room = 1
    machine.say_service("web1", "10.96.0.1")
    machine.say_service("web2", "10.96.0.2")
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert len(machine.maps.memory["services"].entries) == 1
        assert not node.service.revision, "what is not there is not said to be applied"
        machine.maps.memory["services"].room = 10
        await node.heal.everything()
        assert len(machine.maps.memory["services"].entries) == 2
        assert node.service.revision


async def test_a_route_that_cannot_be_made_is_told_and_tried_again(machine: Machine) -> None:
    machine.populate()
    async with machine.running() as node:
        await until(lambda: "10.0.1.0/24" in machine.links.routes)
        machine.links.broken = "no way"
        machine.links.ensure_router_address = _pass  # type: ignore[method-assign]
        machine.hub.put(subjects.NODE.of(THERE), NodeResource(name=THERE, addresses=["192.0.2.22"]))
        await until(lambda: any(not each.ok for each in node.service.health().checks))
        machine.links.broken = ""
        machine.hub.put(subjects.NODE.of("node-3"), NodeResource(name="node-3", addresses=["192.0.2.3"]))
        await until(lambda: machine.links.routes["10.0.1.0/24"].node_address == "192.0.2.22")


async def _pass(address: str) -> None:
    """It is there already."""


async def test_routes_are_made_anew_only_when_what_they_follow_from_has_changed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.populate()
    async with machine.running() as node:
        await until(lambda: machine.links.routes)
        made: list[str] = []
        make = node.routes._route

        def counted_route(cidr: str, address: str) -> NodeRoute:
            made.append(cidr)
            return make(cidr, address)

        monkeypatch.setattr(node.routes, "_route", counted_route)
        await node.hear_batch(Batch([], synced=True, revision={"resources": 90}))
        machine.hub.put(subjects.NAMESPACE.of("other"), Namespace(name="other"))
        await node.hear_batch(Batch([], synced=True, revision={"resources": 91}))
        assert made == []
        machine.hub.put(subjects.NODE.of(THERE), NodeResource(name=THERE, addresses=["192.0.2.23"]))
        await until(lambda: machine.links.routes["10.0.1.0/24"].node_address == "192.0.2.23")
        assert made == ["10.0.1.0/24"]
        machine.links.broken = "no"
        machine.hub.put(subjects.NODE.of(THERE), NodeResource(name=THERE, addresses=["192.0.2.24"]))
        await until(lambda: len(made) == 2)
        machine.links.broken = ""
        await node.hear_batch(Batch([], synced=True, revision={"resources": 92}))
        assert machine.links.routes["10.0.1.0/24"].node_address == "192.0.2.24", "what failed is tried with the next"


async def test_what_comes_while_a_write_is_held_up_is_settled_and_written_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.populate()
    async with machine.running() as node:
        await until(lambda: node.service.revision)
        write, may_write = node.maps.write, asyncio.Event()
        writes: list[int] = []

        async def held_up(tables: tuple[Table, ...], again: Callable[[], Again]) -> int:
            writes.append(len(tables))
            await may_write.wait()
            return await write(tables, again)

        monkeypatch.setattr(node.maps, "write", held_up)
        machine.say_service("first", "10.96.1.1")
        await until(lambda: writes)
        for number in range(100):
            machine.say_service("web", f"10.96.0.{number}")
            if number % 3 == 2:
                machine.hub.delete(subjects.FRONTEND.of("default", "web"))
        last = machine.hub.put(subjects.NODE.of("node-3"), NodeResource(name="node-3", addresses=["192.0.2.3"]))
        for owner in {family.owner for family in node.model.hears} - {"resources"}:
            machine.hub.log(owner).revision = {"resources": last}  # they have heard it, too
            machine.hub.log(owner).tell([])
        assert len(writes) == 1
        may_write.set()
        await until(lambda: node.service.revision["resources"] == last)
        assert len(writes) == 2
        services = {ServiceKey.unpack(key).address for key in machine.maps.memory["services"].entries}
        assert services == {"10.96.1.1", "10.96.0.99"}
