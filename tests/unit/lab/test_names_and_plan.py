"""Labs side by side never touch each other's things."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import names
from lab.errors import LabError
from lab.plan import FAMILIES, MOST_NODES, SLOTS, Family, Plan

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


@pytest.mark.parametrize("family", FAMILIES)
def test_all_networks_of_all_slots_are_disjoint(family: Family) -> None:
    plans = [Plan(slot) for slot in range(SLOTS)]
    everything = [
        network for plan in plans for network in (plan.pods(family), plan.services(family), *plan.networks(family))
    ]
    assert len(everything) >= 5 * SLOTS
    assert not [pair for pair in combinations(everything, 2) if pair[0].overlaps(pair[1])]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("subnets", [1, 2])
def test_every_host_has_an_address_of_its_own_in_a_lan_of_the_lab(family: Family, subnets: int) -> None:
    plan = Plan(3, subnets)
    nodes = [plan.node(number, family) for number in range(1, MOST_NODES + 1)]
    routers = [plan.router(family, subnet) for subnet in range(subnets)]
    hosts = [*routers, plan.control(family), plan.lan_host(family), *nodes]
    lans = [plan.lan(family, subnet) for subnet in range(subnets)]
    assert len({host.ip for host in hosts}) == len(hosts)
    assert all(host.network in lans and host.ip != host.network.broadcast_address for host in hosts)
    assert [node.network for node in nodes[:4]] == [lans[number % subnets] for number in range(4)]


def test_a_host_has_the_same_digits_in_both_families() -> None:
    assert [str(Plan(12).node(2, family).ip) for family in FAMILIES] == ["172.20.12.12", "fd00:20:12::12"]


@pytest.mark.parametrize("number", [0, MOST_NODES + 1])
def test_there_is_no_address_for_a_node_beyond_the_limits(number: int) -> None:
    with pytest.raises(ValueError, match="1 to 200"):
        Plan(0).node(number, 4)
