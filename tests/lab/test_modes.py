"""Every way to set the datapath up carries the same traffic: a short tour in a small lab with both families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from lab.plan import FAMILIES, Family
from lab.testing import Lab
from tests.lab.conftest import EXPECTED_DROPS, fresh_space
from tests.lab.space import Space, curl
from tests.lab.test_policy import DENY

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
    with Lab("test-modes", 2, values, EXPECTED_DROPS, fabric_routes=by_router) as made:
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
    assert not tour.get("a", tour.address("closed"), seconds=1)
    with tour.lab.capture("outside", "icmp or icmp6") as wire:
        assert tour.exec("a", "ping", "-c", "1", "-W", "2", tour.outside).returncode == 0
    assert [line for line in wire.lines() if f"{tour.node_address('node1')} > {tour.outside}: " in line]
    assert tour.exec("a", "ping", "-c", "1", "-W", "2", tour.node_address("node2")).returncode == 0
    tour.exec("a", "/bin/sh", "-c", "head -c 200000 /dev/zero > /tmp/plexus-test-body")
    body = tour.get("a", tour.address("far"), "--data-binary", "@/tmp/plexus-test-body", seconds=5)
    assert "Content-Length: 200000" in body


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


UNMASQUERADED: Mapping[str, Mapping[str, object]] = {
    "switched-off": {"enableIPv4Masquerade": False, "enableIPv6Masquerade": False},
    "listed": {
        "ipMasqAgent.enabled": True,
        "ipMasqAgent.config.nonMasqueradeCIDRs": ["172.16.0.0/12", "fd00:21::/32"],  # the outside is in these
    },
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
