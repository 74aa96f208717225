"""Every way to set the datapath up carries the same traffic: a short tour in a small lab with both families."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import pytest

from lab.plan import FAMILIES, Family
from tests.lab.conftest import EXPECTED_DROPS, fresh_space
from tests.lab.space import Space, curl
from tests.lab.test_exposures import node_port, service
from tests.lab.test_outside import answers
from tests.lab.test_policy import DENY
from tests.labs import Lab

MODES: Mapping[str, Mapping[str, object]] = {
    "endpoint-routes": {"routingMode": "native", "endpointRoutes.enabled": True},
    "host-routing": {"routingMode": "native", "bpf.hostLegacyRouting": True},
    "host-routing-tunnel": {"routingMode": "tunnel", "bpf.hostLegacyRouting": True},
    "clsact": {"routingMode": "tunnel", "bpf.enableTCX": False},
    "underlay-v6": {"routingMode": "tunnel", "underlayProtocol": "ipv6"},
    "by-the-router": {"routingMode": "native", "autoDirectNodeRoutes": False},
    "another-port": {"routingMode": "tunnel", "tunnelPort": 14789, "MTU": 1400},
}


@pytest.fixture(scope="module", params=MODES)
def small(request: pytest.FixtureRequest) -> Iterator[Lab]:
    values = {"ipv6.enabled": True, **MODES[request.param]}
    by_router = request.param == "by-the-router"
    # The router tells nodes of a nearer way to a backend elsewhere; nobody but a node routes for whom it relays.
    drops = (*EXPECTED_DROPS, "Invalid packet dropped") if by_router else EXPECTED_DROPS
    with Lab("test-modes", 2, values, drops, fabric_routes=by_router) as made:
        yield made


@pytest.fixture(params=FAMILIES, ids=["v4", "v6"])
def tour(small: Lab, request: pytest.FixtureRequest) -> Iterator[Space]:
    with fresh_space(small, request.param, request.node.nodeid) as made:
        yield made


def test_a_tour_of_all_that_pods_and_nodes_reach(tour: Space) -> None:
    tour.apply(
        tour.pod("a"),
        tour.pod("near"),
        tour.pod("far", "node2"),
        tour.service("svc", "far"),
        *(tour.pod(f"on-{node}", node, label="web") for node in ("node1", "node2")),
        service(tour, "web", "type: NodePort"),
        tour.pod("closed", "node2"),
        DENY.format(namespace=tour.name, app="closed", direction="Ingress"),
    )
    for target, name in (
        (tour.address("near"), "near"),
        (tour.address("far"), "far"),
        (tour.cluster_address("svc"), "far"),
    ):
        assert f"Hostname: {name}" in tour.get("a", target)
        assert f"Hostname: {name}" in tour.lab.exec_node("node1", *curl(target)).stdout
    for node in ("node1", "node2"):
        found = answers(tour.lab.exec_outside, tour.node_address(node), node_port(tour, "web"), 24)
        assert len(found) == 24 and {name for name, _ in found} == {"on-node1", "on-node2"}
        assert {name for name, seen in found if seen == tour.outside} == {f"on-{node}"}
    assert not tour.get("a", tour.address("closed"), seconds=1)
    with tour.lab.capture("outside", "icmp or icmp6") as wire:
        assert tour.exec("a", "ping", "-c", "1", "-W", "2", tour.outside).returncode == 0
    assert [line for line in wire.lines() if f"{tour.node_address('node1')} > {tour.outside}: " in line]
    assert tour.exec("a", "ping", "-c", "1", "-W", "2", tour.node_address("node2")).returncode == 0
    tour.exec("a", "/bin/sh", "-c", "head -c 200000 /dev/zero > /tmp/plexus-test-body")
    body = tour.get("a", tour.address("far"), "--data-binary", "@/tmp/plexus-test-body", seconds=5)
    assert "Content-Length: 200000" in body


def test_what_was_asked_for_is_what_is_there(tour: Space) -> None:
    asked = tour.lab.record.values
    if "bpf.enableTCX" in asked:
        assert tour.lab.checks("node1")["programs"].detail == "clsact"
    tour.apply(tour.pod("a"), tour.pod("far", "node2"))
    if "MTU" in asked:
        assert f"mtu {asked['MTU']} " in tour.exec("a", "ip", "link", "show", "eth0").stdout
    if "autoDirectNodeRoutes" in asked:
        version = "-6" if tour.family == 6 else "-4"
        route = tour.lab.exec_node("node1", "ip", version, "route", "get", tour.address("far")).stdout
        assert f"via {tour.node_address('node2')} " not in route


def test_the_tunnels_outer_packets_are_of_the_family_and_port_that_was_chosen(tour: Space) -> None:
    settings = tour.lab.record.settings
    if settings.get("routingMode") != "tunnel":
        pytest.skip("there is no tunnel")
    outer: Family = 6 if settings.get("underlayProtocol") == "ipv6" else 4
    port = settings.get("tunnelPort") or 8472
    tour.apply(tour.pod("a"), tour.pod("far", "node2"))
    with tour.lab.capture("node2", f"udp port {port}") as wire:
        assert "Hostname: far" in tour.get("a", tour.address("far"))
    ends = [tour.lab.node_address(node, outer) for node in ("node1", "node2")]
    assert [line for line in wire.lines() if all(end in line.partition(": ")[0] for end in ends)]


# Of somebody else, on a node: what is forwarded is counted, and dropped where it does not fit what was seen before.
STATEFUL = """
add table inet others
add chain inet others forward { type filter hook forward priority 0; }
add rule inet others forward ct state invalid counter drop
add rule inet others forward counter
"""


def test_rules_of_others_see_pods_packets_only_where_the_stack_forwards_and_find_them_in_order(tour: Space) -> None:
    nodes = ("node1", "node2")
    is_legacy = bool(tour.lab.record.settings.get("bpf.hostLegacyRouting"))
    is_tunnel = tour.lab.record.settings.get("routingMode") == "tunnel"
    tour.apply(tour.pod("a"), tour.pod("near"), tour.pod("far", "node2"), tour.service("svc", "near"))
    for node in nodes:
        assert tour.lab.exec_node(node, "nft", STATEFUL).returncode == 0
    try:
        for target, name in ((tour.address("near"), "near"), (tour.cluster_address("svc"), "near")):
            assert f"Hostname: {name}" in tour.get("a", target)
        assert tour.exec("a", "ping", "-c", "1", "-W", "2", tour.outside).returncode == 0
        seen_by_own_node = [forwarded(tour, node)[1] for node in nodes]
        assert "Hostname: far" in tour.get("a", tour.address("far"))
        seen = [forwarded(tour, node) for node in nodes]
    finally:
        for node in nodes:
            tour.lab.exec_node(node, "nft", "delete table inet others")
    assert [invalid for invalid, _ in seen] == [0, 0]
    assert [bool(passed) for passed in seen_by_own_node] == [is_legacy, False]
    assert bool(seen[1][1]) == (is_legacy and not is_tunnel)


def forwarded(tour: Space, node: str) -> tuple[int, int]:
    """Packets that `STATEFUL` has dropped, and passed."""
    found = re.findall(r"counter packets (\d+)", tour.lab.exec_node(node, "nft", "list table inet others").stdout)
    dropped, passed = map(int, found)
    return dropped, passed


UNMASQUERADED: Mapping[str, Mapping[str, object]] = {
    "switched-off": {"enableIPv4Masquerade": False, "enableIPv6Masquerade": False},
    "listed": {
        "ipMasqAgent.enabled": True,
        "ipMasqAgent.config.nonMasqueradeCIDRs": ["172.16.0.0/12", "fd00:21::/32"],  # the outside is in these
    },
    "natively-routed": {"ipv4NativeRoutingCIDR": "172.16.0.0/12", "ipv6NativeRoutingCIDR": "fd00:21::/32"},
}


@pytest.fixture(scope="module", params=UNMASQUERADED)
def unmasqueraded(request: pytest.FixtureRequest) -> Iterator[Lab]:
    values = {"ipv6.enabled": True, **UNMASQUERADED[request.param]}
    with Lab("test-nomasq", 1, values, EXPECTED_DROPS) as made:
        yield made


@pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
def test_what_is_not_masqueraded_bears_the_pods_address_outside(unmasqueraded: Lab, family: Family) -> None:
    with fresh_space(unmasqueraded, family, f"unmasqueraded {family}") as space:
        space.apply(space.pod("a"))
        with space.lab.capture("outside", "icmp or icmp6") as wire:
            space.exec("a", "ping", "-c", "1", "-W", "1", space.outside)  # the outside knows no way back
        assert [line for line in wire.lines() if f"{space.address('a')} > {space.outside}: " in line]
