"""Nodes on two LANs with a router between them: node1 and node3 on one, node2 on the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.plan import FAMILIES
from tests.lab.conftest import EXPECTED_DROPS, fresh_space
from tests.lab.space import Space, host
from tests.labs import Lab

NATIVE = {"routingMode": "native", "directRoutingSkipUnreachable": True, "ipv6.enabled": True}
TUNNEL = {"routingMode": "tunnel", "ipv6.enabled": True}


@pytest.fixture(scope="module", params=["native", "tunnel"], ids=["routed-natively", "by-tunnel"])
def subnets(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Native routing needs a router that knows the pods, a tunnel does not."""
    native = request.param == "native"
    with Lab(
        "test-subnets",
        values=NATIVE if native else TUNNEL,
        subnets=2,
        fabric_routes=native,
        expected_drops=EXPECTED_DROPS,
    ) as made:
        yield made


@pytest.fixture(params=FAMILIES, ids=["v4", "v6"])
def routed(subnets: Lab, request: pytest.FixtureRequest) -> Iterator[Space]:
    with fresh_space(subnets, request.param, request.node.nodeid) as made:
        yield made


def test_pods_reach_each_other_across_the_router_and_keep_their_addresses(routed: Space) -> None:
    routed.apply(
        *(routed.pod(name, f"node{number}") for number, name in enumerate("abc", 1)), routed.service("svc", "b")
    )
    for source, target in (("a", "b"), ("b", "a"), ("a", "c"), ("b", "c")):
        answer = routed.get(source, routed.address(target))
        assert f"Hostname: {target}" in answer
        assert f"RemoteAddr: {host(routed.address(source))}:" in answer
    assert "Hostname: b" in routed.get("c", routed.cluster_address("svc"))


def test_a_full_segment_passes_the_router(routed: Space) -> None:
    routed.apply(routed.pod("a"), routed.pod("b", "node2"))
    routed.exec("a", "/bin/sh", "-c", "head -c 200000 /dev/zero > /tmp/plexus-test-body")
    body = routed.get("a", routed.address("b"), "--data-binary", "@/tmp/plexus-test-body", seconds=5)
    assert "Content-Length: 200000" in body


def test_the_outside_sees_the_address_of_a_node_of_the_second_lan(routed: Space) -> None:
    routed.apply(routed.pod("b", "node2"))
    with routed.lab.capture("outside", "icmp or icmp6") as wire:
        assert routed.exec("b", "ping", "-c", "1", "-W", "2", routed.outside).returncode == 0
    assert [line for line in wire.lines() if f"{routed.node_address('node2')} > {routed.outside}: " in line]
    assert not [line for line in wire.lines() if routed.address("b") in line]


def test_nodes_of_one_lan_send_to_each_other_and_those_of_two_by_the_router(routed: Space) -> None:
    """In native mode; with a tunnel only the outer packets take these ways."""
    if routed.lab.record.settings.get("routingMode") == "tunnel":
        pytest.skip("a tunnel's inner packets are not on the wire")
    routed.apply(routed.pod("a"), routed.pod("b", "node2"), routed.pod("c", "node3"))
    near, far = (hops(routed, target) for target in ("c", "b"))
    assert far == near - 1


def hops(space: Space, target: str) -> int:
    """The hops that are left of an echo request from the pod "a" when it is on its target's node's wire."""
    node = {"b": "node2", "c": "node3"}[target]
    with space.lab.capture(node, f"dst host {space.address(target)}") as wire:
        assert space.exec("a", "ping", "-c", "1", "-W", "2", space.address(target)).returncode == 0
    told = next(line for line in wire.lines("-v") if "ttl" in line or "hlim" in line)
    return int(told.split("ttl " if space.family == 4 else "hlim ")[1].split(",")[0].split()[0].rstrip(","))
