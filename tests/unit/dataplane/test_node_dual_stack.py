"""A node of both families, or of IPv6 alone, at work on a kernel in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bus import subjects
from bus.messages.ipam import Block
from bus.messages.resources import Node as NodeResource
from bus.service import BadSettings
from services.dataplane.kernel.links import NodeRoute
from services.dataplane.load.datapath import check_own_addresses
from services.dataplane.pods import cni
from services.dataplane.pods.addresses import Attachment
from services.dataplane.pods.endpoints import Endpoint, record_key
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.ip import PodIp
from services.dataplane.store.journal import Journal
from tests.unit.dataplane.test_node import DEVICE, HERE, THERE, Machine, until

BOTH = replace(DEVICE, address6="2001:db8::1", networks=("192.0.2.0/24", "2001:db8::/64"))
IPS = (PodIp("10.0.0.2", "10.0.0.1"), PodIp("fd00:10::2", "fd00:10::1"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A node of both families, native routing, beside one that has an address of each."""
    made = Machine(tmp_path)
    made.settings = NodeSettings(node=HERE, routing_mode="native", ipv6_enabled=True)
    made.device = BOTH
    made.populate()
    for name, addresses in ((HERE, ["192.0.2.1", "2001:db8::1"]), (THERE, ["192.0.2.2", "2001:db8::2"])):
        made.hub.put(subjects.NODE.of(name), NodeResource(name=name, addresses=addresses))
    for cidr, name in (("fd00:10::/120", HERE), ("fd00:10:1::/120", THERE)):
        made.hub.put(subjects.BLOCK.of(cidr), Block(cidr=cidr, node=name))
    return made


def ask(container_id: str = "c1") -> cni.Add:
    return cni.Add(Attachment(container_id, "eth0"), "plexus", "default", "web", "", "/x", 0, "1.1.0")


def check(*addresses: str) -> cni.Check:
    believed = cni.Previous(
        [cni.Interface("lxcc1", "02:00:00:00:00:02"), cni.Interface("eth0", "02:00:00:00:00:01", "/x")],
        [cni.Address(each) for each in addresses],
    )
    return cni.Check(Attachment("c1", "eth0"), "plexus", 0, believed)


async def test_a_pod_has_both_addresses_and_the_bus_the_runtime_and_a_restart_know_them(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        made = await machine.pods.add(ask())
        assert made.ips == IPS
        assert (await machine.pods.add(ask())).ips == IPS
        await until(lambda: (said := machine.said()) and said.state == "ready")
        said = machine.said()
        assert said is not None and (said.address, said.addresses) == ("10.0.0.2", ["10.0.0.2", "fd00:10::2"])
        assert await machine.pods.check(check("10.0.0.2/32", "fd00:10::2/128")) == ()
        assert "fd00:10::2" in (await machine.pods.check(check("10.0.0.2/32")))[0]
        assert machine.links.routers == {4: "10.0.0.1", 6: "fd00:10::1"}
    async with machine.running() as node:
        assert node.addresses.leases == {Attachment("c1", "eth0"): ("10.0.0.2", "fd00:10::2")}
        await until(lambda: node.service.is_ready)
        assert [machine.entry(each.address) is not None for each in IPS] == [True, True]
        await machine.delete()
        assert [machine.entry(each.address) for each in IPS] == [None, None]
        assert node.addresses.leases == {}


async def test_a_pod_from_before_the_second_family_keeps_its_one_address(machine: Machine) -> None:
    """The record is one that a version of IPv4 alone has written."""
    old = Endpoint(
        container_id="c1", ifname="eth0", namespace="default", pod="web", address="10.0.0.2", gateway="10.0.0.1",
        mac="02:00:00:00:00:01", interface="lxcc1", interface_index=10, interface_mac="02:00:00:00:00:02",
        mtu_bytes=1500, created=1,
    )  # fmt: skip
    assert "more" not in old.to_record()
    await machine.links.create_pod_link(0, "c1", "eth0", IPS[:1], 1500)
    journal = Journal.open(machine.folder / "endpoints.journal", durable=False)
    await journal.put(record_key("c1"), old.to_record())
    await journal.close()
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert (await machine.pods.add(ask())).ips == IPS[:1]
        assert machine.entry("10.0.0.2") is not None


def test_a_record_with_two_addresses_is_read_as_it_was_written() -> None:
    endpoint = Endpoint(
        container_id="c", ifname="eth0", namespace="default", pod="web", address=IPS[0].address, gateway=IPS[0].gateway,
        more=IPS[1:], mac="", interface="", interface_index=1, interface_mac="", mtu_bytes=1500, created=1,
    )  # fmt: skip
    record = msgspec.msgpack.decode(msgspec.msgpack.encode(endpoint.to_record()))
    assert Endpoint.from_record(record).ips == IPS


async def test_without_a_block_of_each_family_no_pod_starts_and_the_missing_one_is_named(machine: Machine) -> None:
    machine.hub.delete(subjects.BLOCK.of("fd00:10::/120"))
    async with machine.running() as node:
        await until(lambda: node.is_synced)
        with pytest.raises(cni.CniError, match="no block of IPv6") as problem:
            await machine.pods.add(ask())
        assert problem.value.code == cni.TRY_AGAIN
        assert not node.service.is_ready
        machine.hub.put(subjects.BLOCK.of("fd00:10::/120"), Block(cidr="fd00:10::/120", node=HERE))
        await until(lambda: node.service.is_ready)
        assert (await machine.pods.add(ask())).ips == IPS


async def test_routes_to_other_nodes_go_by_their_address_of_the_same_family(machine: Machine) -> None:
    async with machine.running():
        await until(lambda: len(machine.links.routes) == 2)
    assert list(machine.links.routes.values()) == [
        NodeRoute("10.0.1.0/24", "192.0.2.2", "eth0"),
        NodeRoute("fd00:10:1::/120", "2001:db8::2", "eth0"),
    ]


async def test_routes_through_a_tunnel_go_by_one_address_for_both_families(machine: Machine) -> None:
    machine.settings = NodeSettings(node=HERE, ipv6_enabled=True, tunnel_protocol="geneve")
    async with machine.running():
        await until(
            lambda: len(machine.links.routes) == 2 and all(each.source for each in machine.links.routes.values())
        )
    assert list(machine.links.routes.values()) == [
        NodeRoute("10.0.1.0/24", "192.0.2.2", "plexus_geneve", 1, 1500, "10.0.0.1"),
        NodeRoute("fd00:10:1::/120", "192.0.2.2", "plexus_geneve", 1, 1500, "fd00:10::1"),
    ]


@pytest.mark.parametrize("skip", [False, True])
async def test_a_node_behind_a_router_is_named_unless_the_fabric_is_said_to_carry_its_pods(
    machine: Machine, skip: bool
) -> None:
    machine.settings = NodeSettings(
        node=HERE, routing_mode="native", ipv6_enabled=True, direct_routing_skip_unreachable=skip
    )
    machine.hub.put(subjects.NODE.of("far"), NodeResource(name="far", addresses=["198.51.100.9"]))
    machine.hub.put(subjects.BLOCK.of("10.0.9.0/24"), Block(cidr="10.0.9.0/24", node="far"))
    async with machine.running() as node:
        await until(lambda: len(machine.links.routes) == 2)
        told = {each.name: each for each in node.service.health().checks}["routes"]
        assert told.ok == skip
        assert ("far: 198.51.100.9" in told.detail and "directRoutingSkipUnreachable" in told.detail) == (not skip)


async def test_a_node_of_ipv6_alone_gives_ipv6_alone(machine: Machine) -> None:
    machine.settings = NodeSettings(node=HERE, ipv4_enabled=False, ipv6_enabled=True)
    machine.hub.put(subjects.NODE.of(THERE), NodeResource(name=THERE, addresses=["2001:db8::2"]))
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert (await machine.pods.add(ask())).ips == IPS[1:]
        await until(lambda: machine.links.routers == {6: "fd00:10::1"})
        await until(lambda: (said := machine.said()) and said.addresses == ["fd00:10::2"])
        assert set(machine.links.routes) == {"fd00:10:1::/120"}
        assert machine.links.routes["fd00:10:1::/120"].node_address == "2001:db8::2"


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        (NodeSettings(node=HERE), None),
        (NodeSettings(node=HERE, ipv6_enabled=True), None),
        (NodeSettings(node=HERE, ipv4_enabled=False, ipv6_enabled=True), "IPv6"),
        (NodeSettings(node=HERE, ipv6_enabled=True, routing_mode="native"), "IPv6"),
    ],
)
def test_a_device_without_the_address_that_others_need_is_refused(settings: NodeSettings, missing: str | None) -> None:
    underlay = settings.underlay(bool(DEVICE.address))
    if missing is None:
        check_own_addresses(settings, DEVICE, underlay)
    else:
        with pytest.raises(BadSettings, match=f"eth0 has no global {missing} address"):
            check_own_addresses(settings, DEVICE, underlay)
