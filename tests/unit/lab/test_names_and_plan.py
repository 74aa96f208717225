"""Labs side by side never touch each other's things."""

from __future__ import annotations

from ipaddress import IPv4Network
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import names
from lab.errors import LabError
from lab.plan import MOST_NODES, SLOTS, Plan

LAB = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)


@given(LAB, LAB)
def test_no_lab_takes_another_labs_namespaces_for_its_own(one: str, other: str) -> None:
    name = names.pod_namespace(other, "node1", "default", "xwing", "uid")
    assert name.startswith(names.namespace_prefix(one)) == (one == other)


@given(LAB)
def test_the_management_links_name_is_not_too_long_for_the_kernel(lab: str) -> None:
    assert len(names.management_link(lab)) <= 15


def test_a_long_pod_name_makes_a_file_name_that_fits() -> None:
    long = names.pod_namespace("a" * 12, "node200", "n" * 63, "p" * 253, "uid")
    assert len(long) <= 255
    assert long != names.pod_namespace("a" * 12, "node200", "n" * 63, "p" * 253, "another")


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a.b", "a/b", "a" * 13, "ü"])
def test_a_name_that_could_be_misread_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="lab's name"):
        names.check(name)


def networks(plan: Plan) -> list[IPv4Network]:
    return [plan.pods, plan.services, *plan.networks()]


def test_all_networks_of_all_slots_are_disjoint() -> None:
    everything = [network for slot in range(SLOTS) for network in networks(Plan(slot))]
    assert not [pair for pair in combinations(everything, 2) if pair[0].overlaps(pair[1])]


def test_every_host_has_an_address_of_its_own_in_the_lan() -> None:
    plan = Plan(3)
    hosts = [plan.router, plan.control, plan.lan_host, *(plan.node(number) for number in range(1, MOST_NODES + 1))]
    assert len({host.ip for host in hosts}) == len(hosts)
    assert all(host.network == plan.lan and host.ip != plan.lan.broadcast_address for host in hosts)


@pytest.mark.parametrize("number", [0, MOST_NODES + 1])
def test_there_is_no_address_for_a_node_beyond_the_limits(number: int) -> None:
    with pytest.raises(ValueError, match="1 to 200"):
        Plan(0).node(number)
