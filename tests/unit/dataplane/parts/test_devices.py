"""The map `devices`: what leaves by each of the node's devices, and who comes by it."""

from __future__ import annotations

from dataclasses import replace

from bus.messages.ipam import Block
from services.dataplane.part import Fact
from services.dataplane.parts.devices import IN_TUNNEL, Devices
from services.dataplane.shapes.devices import DeviceInfo, Route
from services.dataplane.shapes.layouts import DeviceEntry, DeviceKey

ETH0 = DeviceInfo("eth0", 2, "", "192.0.2.1", 1500, "2001:db8::1", (), ("192.0.2.1", "2001:db8::1"))
ETH1 = DeviceInfo("eth1", 3, "", "198.51.100.1", 1500, "", (), ("198.51.100.1",))
ROUTES = (Route("192.0.2.0/24", 254, frozenset({2})), Route("0.0.0.0/0", 254, frozenset({3})))


def held(part: Devices) -> dict[int, DeviceEntry]:
    part.settle()
    return {DeviceKey.unpack(key).index: DeviceEntry.unpack(value) for key, value in part.table.wanted.items()}


def test_each_device_has_its_address_of_each_family() -> None:
    part = Devices()
    part.are((ETH0, ETH1))
    assert held(part) == {2: DeviceEntry("192.0.2.1", "2001:db8::1"), 3: DeviceEntry("198.51.100.1")}
    part.are((ETH1,))
    assert held(part) == {3: DeviceEntry("198.51.100.1")}


def test_pods_come_by_all_devices_until_it_is_known_which_lead_to_other_nodes() -> None:
    elsewhere: Fact[str, str] = Fact("elsewhere").keep()
    part = Devices(elsewhere)
    part.are((ETH0, ETH1), ROUTES)
    assert {index: entry.has_pods for index, entry in held(part).items()} == {2: True, 3: True}
    elsewhere.put("192.0.2.64/26", "")  # by the fabric's route
    assert {index: entry.has_pods for index, entry in held(part).items()} == {2: True, 3: False}
    elsewhere.put("10.0.1.0/24", "")
    assert {index: entry.has_pods for index, entry in held(part).items()} == {2: True, 3: True}
    elsewhere.delete("192.0.2.64/26")
    assert {index: entry.has_pods for index, entry in held(part).items()} == {2: False, 3: True}


def test_pods_come_by_none_while_no_route_leads_to_other_nodes_by_any() -> None:
    elsewhere: Fact[str, str] = Fact("elsewhere").keep()
    part = Devices(elsewhere)
    part.are((ETH0, ETH1), (Route("10.0.0.0/16", 254, frozenset({5})),))
    elsewhere.put("10.0.1.0/24", "")
    assert {index: entry.has_pods for index, entry in held(part).items()} == {2: False, 3: False}


def test_a_restart_believes_pods_where_they_were_believed_and_on_what_is_new_until_all_is_heard() -> None:
    elsewhere: Fact[str, str] = Fact("elsewhere").keep()
    before = Devices(elsewhere)
    before.are((ETH0, ETH1), ROUTES)
    elsewhere.put("192.0.2.64/26", "")
    before.settle()
    part = Devices(Fact[str, str]("elsewhere").keep())
    part.adopt(lambda name: before.table.wanted)
    part.are((ETH0, ETH1, replace(ETH1, name="eth2", index=4)))
    for _ in range(2):
        assert {index: entry.has_pods for index, entry in held(part).items()} == {2: True, 3: False, 4: True}
        part.are((ETH0, ETH1, replace(ETH1, name="eth2", index=4)))


def test_a_neighbours_pods_come_by_the_device_that_it_is_on_though_no_route_leads_to_them_yet() -> None:
    elsewhere: Fact[str, str] = Fact("elsewhere").keep()
    part = Devices(elsewhere)
    part.are((ETH0, ETH1), ROUTES)
    elsewhere.put("10.0.1.0/24", "192.0.2.2")
    assert {index: entry.has_pods for index, entry in held(part).items()} == {2: True, 3: False}


def test_an_address_of_before_stays_over_a_restart() -> None:
    before = Devices()
    before.are((ETH1,))
    before.settle()
    part = Devices()
    part.adopt(lambda name: before.table.wanted)
    part.are((replace(ETH1, address="198.51.100.9", addresses=("198.51.100.9", "198.51.100.1")),))
    assert held(part) == {3: DeviceEntry("198.51.100.1")}


def test_what_the_node_sends_into_the_tunnel_bears_a_router_of_its_own_blocks_that_stays() -> None:
    blocks = [("10.0.3.0/24", "here"), ("10.0.1.0/24", "there"), ("fd00:10::/120", "here")]

    def part(*told: tuple[str, str], before: Devices | None = None) -> Devices:
        made = Devices(None, "here")
        if before is not None:
            made.adopt(lambda name: before.table.wanted)
        made.are((ETH1,))
        for cidr, node in told:
            made.hears[0].put(Block(cidr=cidr, node=node))
        return made

    first = part(*blocks)
    assert held(first)[IN_TUNNEL] == DeviceEntry("10.0.3.1", "fd00:10::1")
    assert held(part(before=first))[IN_TUNNEL] == DeviceEntry("10.0.3.1", "fd00:10::1"), "until blocks are heard"
    second = part(("10.0.2.0/24", "here"), *blocks, before=first)
    assert held(second)[IN_TUNNEL].address == "10.0.3.1", "connections bear it"
    second.hears[0].delete("10.0.3.0/24")
    assert held(second)[IN_TUNNEL].address == "10.0.2.1"
    native = Devices(Fact[str, str]("elsewhere").keep(), "here")
    native.hears[0].put(Block(cidr="10.0.3.0/24", node="here"))
    native.are((ETH1,))
    assert held(native).keys() == {3}
