"""Which devices lead out of a node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.dataplane.shapes.devices import (
    DeviceInfo,
    NoDevice,
    Route,
    address_of,
    choose,
    device_toward,
    devices_toward,
    main_of,
)

ETH0 = DeviceInfo(
    "eth0", 2, "", "192.0.2.1", 1500, "2001:db8::1", ("192.0.2.0/24",), ("192.0.2.1", "2001:db8::1"), metric=100
)
ETH1 = DeviceInfo("eth1", 3, "", "198.51.100.1", 1500, "", ("198.51.100.0/24",), ("198.51.100.1",))
LO = DeviceInfo("lo", 1, "", "10.0.0.1", 65536, "", (), ("10.0.0.1",), why_not="loopback")
DOCKER = DeviceInfo("docker0", 9, "", "172.17.0.1", 1500, "", ("172.17.0.0/16",), ("172.17.0.1",), kind="bridge")
VETH = DeviceInfo("veth12ab", 10, "", "", 1500, kind="veth", why_not="a port of docker0")
DUMMY = DeviceInfo("dummy0", 11, "", "192.0.2.77", 1500, "", (), ("192.0.2.77",), kind="dummy")
BOND = replace(ETH0, name="bond0", index=5, kind="bond")
PORT = DeviceInfo("eth5", 6, "", "", 1500, why_not="a port of bond0")
ALL = (LO, ETH0, ETH1, DOCKER, VETH, DUMMY)


def names(*asked: str, seen: tuple[DeviceInfo, ...] = ALL, **more: object) -> list[str]:
    return [each.name for each in choose(seen, asked, **more)]  # type: ignore[arg-type]  # what each test gives


def test_unnamed_are_those_with_a_default_route_or_the_nodes_address() -> None:
    assert names() == ["eth0"]
    assert names(node=["198.51.100.1"]) == ["eth0", "eth1"]
    assert names(seen=(LO, PORT, BOND, DOCKER)) == ["bond0"], "a bond and not its ports"
    assert names(node=["192.0.2.77"]) == ["eth0"], "what is sent by a dummy is gone"
    assert names("!eth9") == ["eth0"]


def test_named_are_all_that_match_but_those_left_out() -> None:
    assert names("eth+") == ["eth0", "eth1"]
    assert names("eth1", "docker0") == ["docker0", "eth1"]
    assert names("+", "!docker0", "!dummy+") == ["eth0", "eth1"]
    assert names("eth+", "!eth0") == ["eth1"]


def test_a_route_that_is_gone_for_a_moment_takes_no_device_away_and_no_address_does() -> None:
    gone = replace(ETH0, metric=1 << 32)
    assert names(seen=(gone, replace(ETH1, metric=0)), before=[2]) == ["eth1", "eth0"]
    assert names(seen=(replace(gone, addresses=()), replace(ETH1, metric=0)), before=[2]) == ["eth1"]


@pytest.mark.parametrize("asked", [("eth7",), (), ("eth5",)])
def test_where_there_is_none_it_is_said_which_there_are_and_why_each_is_not(asked: tuple[str, ...]) -> None:
    with pytest.raises(NoDevice) as told:
        choose((LO, ETH1, PORT), asked)
    assert "eth5 (a port of bond0)" in str(told.value)
    assert "eth1 (not named)" in str(told.value) or "eth1 (no default route and no address of the node)" in str(
        told.value
    )
    assert "lo " not in str(told.value)


def test_the_nodes_own_end_has_an_address_of_each_family_and_the_first_default_route() -> None:
    other = replace(ETH1, metric=50)
    chosen = choose((ETH0, other), ())
    assert [each.name for each in chosen] == ["eth1", "eth0"]
    assert main_of(chosen, [4]) == other
    assert main_of(chosen, [4, 6]) == ETH0
    assert main_of((other,), [6]) == other


def test_an_address_stays_the_one_that_packets_bear_as_long_as_the_device_has_it() -> None:
    more = replace(ETH1, address="198.51.100.9", addresses=("198.51.100.9", "198.51.100.1"))
    assert address_of(more, 4, "") == "198.51.100.9"
    assert address_of(more, 4, "198.51.100.1") == "198.51.100.1"
    assert address_of(more, 4, "198.51.100.2") == "198.51.100.9"
    assert address_of(more, 6, "198.51.100.1") == ""


def test_a_neighbour_is_on_the_most_particular_network() -> None:
    within = replace(ETH1, networks=("192.0.2.128/25",))
    assert device_toward("192.0.2.200", (ETH0, within)) == within
    assert device_toward("192.0.2.2", (ETH0, within)) == ETH0
    assert device_toward("203.0.113.1", (ETH0, within)) is None


def test_a_destination_is_reached_by_its_most_particular_route_in_each_table_and_all_of_its_next_hops() -> None:
    main = (
        Route("0.0.0.0/0", 254, frozenset({2})),
        Route("10.0.0.0/8", 254, frozenset({3})),
        Route("10.0.7.0/24", 254, frozenset({4, 5})),
        Route("::/0", 254, frozenset({8})),
    )
    assert devices_toward(["10.0.7.0/24"], main) == {4, 5}
    assert devices_toward(["10.0.0.0/16", "10.0.7.9"], main) == {3, 4, 5}
    assert devices_toward(["192.0.2.9"], main) == {2}
    assert devices_toward(["10.0.7.0/24"], (*main, Route("0.0.0.0/0", 100, frozenset({6})))) == {4, 5, 6}
    assert devices_toward(["fd00::/120"], main) == {8}
    assert devices_toward(["10.0.7.0/24"], ()) == set()
