"""Addresses of Services: given once, kept, and of the families that were asked for."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.addresses import family
from bus.control import Claim, Say, Unsay
from bus.messages.resources import Service
from bus.subjects import CLUSTER_ADDRESS
from services.resources.addresses import Networks, choose, outside
from services.resources.model import plan_apply, plan_delete, plan_tidy
from tests.unit.resources.cluster import NETWORK, Cluster
from tests.unit.resources.manifests import service


def test_an_address_is_chosen_by_name_and_stays_over_re_applies(cluster: Cluster) -> None:
    cluster.apply(service())
    address = cluster.address()
    assert address == choose(NETWORK, "default", "svc", lambda _: False)
    cluster.apply(service("ports: [{port: 81}]"))
    assert cluster.address() == address


def test_an_asked_address_is_given_and_kept_from_others(cluster: Cluster) -> None:
    cluster.apply(service("ports: [{port: 80}], clusterIP: 10.96.0.10"))
    assert cluster.address() == "10.96.0.10"
    taken = cluster.refused(service("ports: [{port: 80}], clusterIP: 10.96.0.10", name="b"))
    assert "held by the Service default/svc" in taken["spec.clusterIP"]


def test_who_asks_for_an_address_comes_before_who_takes_any(cluster: Cluster) -> None:
    favourite = choose(NETWORK, "default", "svc", lambda _: False)
    cluster.apply(service(), service(f"ports: [{{port: 80}}], clusterIP: {favourite}", name="b"))
    assert cluster.address("b") == favourite != cluster.address()


@pytest.mark.parametrize("address", ["10.95.0.1", "10.96.0.0", "10.96.0.255"])
def test_an_address_that_no_service_can_have_is_refused(cluster: Cluster, address: str) -> None:
    assert outside(NETWORK, address)
    assert "spec.clusterIP" in cluster.refused(service(f"ports: [{{port: 80}}], clusterIP: {address}"))


def test_a_services_address_is_fixed(cluster: Cluster) -> None:
    cluster.apply(service(), service("clusterIP: None", name="headless"))
    for change in (service("clusterIP: None"), service("ports: [{port: 80}], clusterIP: 10.96.0.77", name="headless")):
        assert "delete the Service first" in cluster.refused(change)["spec.clusterIP"]
    assert cluster.address("headless") == ""
    assert cluster.apply(service(name="headless"))["headless"] == "changed"
    assert cluster.address("headless") == ""


def test_a_deleted_services_address_is_free_again(cluster: Cluster) -> None:
    cluster.apply(service("ports: [{port: 80}], clusterIP: 10.96.0.10"))
    cluster.delete(service())
    cluster.apply(service("ports: [{port: 80}], clusterIP: 10.96.0.10", name="b"))


def test_a_full_range_is_refused_and_says_so(cluster: Cluster) -> None:
    cluster.apply(*(service(name=f"s{at}") for at in range(254)))
    assert "no address is free" in cluster.refused(service())["spec.clusterIP"]


def test_an_address_left_by_a_death_is_used_by_its_service_or_given_back(cluster: Cluster) -> None:
    plan = cluster.plan(service())
    claim = plan.steps[0]
    assert isinstance(claim, Claim)
    cluster.store.put(claim.subject, claim.message)  # and then it died
    again = cluster.plan(service())
    assert [type(step) for step in again.steps] == [Say]
    cluster.do(plan_tidy(cluster.store))
    assert cluster.store.get(claim.subject) is None


NAMES = st.sampled_from([f"s{at}" for at in range(8)])
ADDRESSES = st.sampled_from(["", "", "", "None", "10.96.0.1", "10.96.0.2", "fd00:96::2", "FD00:96:0::3"])
POLICIES = st.sampled_from(["SingleStack", "PreferDualStack", "RequireDualStack"])
SERVICES = st.lists(st.tuples(NAMES, ADDRESSES, POLICIES), min_size=1, max_size=4)
CALLS = st.lists(st.tuples(st.booleans(), SERVICES), max_size=12)


@settings(deadline=None)
@given(CALLS)
def test_no_address_is_ever_held_twice(calls: list[tuple[bool, list[tuple[str, str, str]]]]) -> None:
    """Any sequence of calls in ranges of six and seven addresses: an address is its Service's, which claimed it."""
    cluster = Cluster({"IPv4": IPv4Network("10.96.0.0/29"), "IPv6": IPv6Network("fd00:96::/125")})
    for is_delete, services in calls:
        texts = [
            service(
                f"ports: [{{port: 80}}], ipFamilyPolicy: {policy}" + (f", clusterIP: '{address}'" if address else ""),
                name,
            )
            for name, address, policy in services
        ]
        resources = cluster.resources("\n---\n".join(texts), to_delete=is_delete)
        plan = (
            plan_delete(cluster.store, resources)
            if is_delete
            else plan_apply(cluster.store, resources, cluster.networks, lambda: "uid", cluster.ports)
        )
        cluster.do(plan)
        held = [
            (address, message.name)
            for _, message in cluster.store.items()
            if isinstance(message, Service)
            for address in message.cluster_addresses
        ]
        assert len({address for address, _ in held}) == len(held)
        for address, name in held:
            holder = cluster.store.holder_of(address)
            assert holder is not None and holder.service == name
        claimed = [subject for subject, _ in cluster.store.items() if CLUSTER_ADDRESS.has(subject)]
        assert len(claimed) == len(held)
        services_there = [message for _, message in cluster.store.items() if isinstance(message, Service)]
        for there in services_there:
            if there.cluster_addresses:
                assert [family(ip_address(each)) for each in there.cluster_addresses] == there.ip_families


# -- two families

NETWORK6 = IPv6Network("fd00:96::/112")
DUAL: Networks = {"IPv4": NETWORK, "IPv6": NETWORK6}


@pytest.fixture
def dual() -> Cluster:
    return Cluster(DUAL)


def families(cluster: Cluster, name: str = "svc") -> list[str]:
    """Of the addresses themselves, which must be those that the Service says."""
    found = cluster.service(name)
    own = [family(ip_address(each)) for each in found.cluster_addresses]
    assert own == found.ip_families
    return list(own)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("", ["IPv4"]),
        ("ipFamilyPolicy: SingleStack", ["IPv4"]),
        ("ipFamilies: [IPv6]", ["IPv6"]),
        ("ipFamilyPolicy: PreferDualStack", ["IPv4", "IPv6"]),
        ("ipFamilyPolicy: RequireDualStack", ["IPv4", "IPv6"]),
        ("ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6]", ["IPv6", "IPv4"]),
        ("ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4]", ["IPv6", "IPv4"]),
        ("clusterIP: 'fd00:96::9'", ["IPv6"]),
        ("ipFamilyPolicy: PreferDualStack, clusterIPs: ['fd00:96::9', 10.96.0.9]", ["IPv6", "IPv4"]),
    ],
)
def test_a_service_has_an_address_of_each_family_that_its_policy_gives_it(
    dual: Cluster, spec: str, wanted: list[str]
) -> None:
    dual.apply(service(f"ports: [{{port: 80}}], {spec}"))
    assert families(dual) == wanted
    assert dual.held() == set(dual.service().cluster_addresses)


def test_a_service_without_a_wish_has_the_clusters_only_family() -> None:
    cluster = Cluster({"IPv6": NETWORK6})
    cluster.apply(service(), service("ports: [{port: 80}], ipFamilyPolicy: PreferDualStack", name="b"))
    assert families(cluster) == families(cluster, "b") == ["IPv6"]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("ipFamilies: [IPv6]", "spec.ipFamilies[0]"),
        ("ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv4, IPv6]", "spec.ipFamilies[1]"),
        ("ipFamilyPolicy: RequireDualStack", "spec.ipFamilyPolicy"),
        ("clusterIP: 'fd00:96::9'", "spec.clusterIP"),
    ],
)
def test_a_family_that_is_off_is_refused_and_says_which_is_on(cluster: Cluster, spec: str, path: str) -> None:
    refused = cluster.refused(service(f"ports: [{{port: 80}}], {spec}"))
    assert "IPv4" in refused[path]


def test_an_ipv6_address_is_held_in_its_one_form_however_it_is_written(dual: Cluster) -> None:
    dual.apply(service("ports: [{port: 80}], clusterIP: 'FD00:0096:0::000a'"))
    assert dual.address() == "fd00:96::a"
    other = dual.refused(service("ports: [{port: 80}], clusterIP: 'fd00:96:0:0::a'", name="b"))
    assert "held by the Service default/svc" in other["spec.clusterIP"]
    assert dual.apply(service("ports: [{port: 80}], clusterIP: 'fd00:96::a'"))["svc"] == "changed"  # its manifest


def test_a_second_address_comes_and_goes_and_the_first_stays(dual: Cluster) -> None:
    dual.apply(service())
    first = dual.address()
    dual.apply(service("ports: [{port: 80}], ipFamilyPolicy: PreferDualStack"))
    assert dual.service().cluster_addresses == [first, choose(NETWORK6, "default", "svc", lambda _: False)]
    plan = dual.do(dual.plan(service()))
    assert [type(step) for step in plan.steps] == [Say, Unsay]  # given back after nobody shows it any more
    assert dual.service().cluster_addresses == [first] and dual.held() == {first}
    second = dual.refused(service("ports: [{port: 80}], ipFamilies: [IPv6]"))
    assert "cannot be changed from IPv4" in second["spec.ipFamilies[0]"]
    assert "spec.ipFamilies[0]" in dual.refused(service("ports: [{port: 80}], clusterIP: 'fd00:96::9'"))


def test_a_headless_service_has_families_and_no_address(dual: Cluster) -> None:
    dual.apply(service("clusterIP: None, ipFamilyPolicy: RequireDualStack"))
    found = dual.service()
    assert (found.cluster_addresses, found.ip_families, dual.held()) == ([], ["IPv4", "IPv6"], set())


def test_of_an_ipv6_range_only_the_first_address_stands_for_the_network(dual: Cluster) -> None:
    assert outside(NETWORK6, "fd00:96::") and outside(NETWORK6, "fd00:97::1")
    dual.apply(service("ports: [{port: 80}], clusterIP: 'fd00:96::ffff'"))
    given = {choose(IPv6Network("fd00::/126"), "default", "a", held.__contains__) for held in ([], ["fd00::1"])}
    assert given <= {"fd00::1", "fd00::2", "fd00::3"}


def test_a_whole_site_may_be_the_service_range() -> None:
    cluster = Cluster({"IPv6": IPv6Network("fd00::/32")})
    cluster.apply(service())
    assert ip_address(cluster.address()) in IPv6Network("fd00::/32")
