"""Who is let in from outside, and to whom again: source ranges, session affinity, and host ports."""

from __future__ import annotations

import pytest

from services.dataplane.shapes.layouts import RANGE_ALLOWED, RANGE_DENIED, Prefix, RangeKey, ServiceEntry
from tests.bpf.datapath import TC_ACT_UNSPEC, V4, Family, Routed, tcp
from tests.bpf.test_outside import BALANCER, ready

NOT_IN_RANGE = 177
RANGES, DENY = ServiceEntry.RANGES, ServiceEntry.RANGES_DENY


@pytest.fixture
def node(routed: Routed) -> Routed:
    return ready(routed)


def limit(node: Routed, at: Family, flags: int) -> None:
    backends = [(at.remote, 8080), (at.neighbour, 8080)]
    node.service(BALANCER[at], 80, 6, backends, flags=ServiceEntry.EXTERNAL | flags, outside=2)


def name(node: Routed, number: int, address: str, bits: int, value: bytes) -> None:
    node.maps["source_ranges"].set(RangeKey(number, Prefix(address, bits)).pack(), value)


def whole(at: Family) -> int:
    return 32 if at is V4 else 128


def drop(node: Routed, at: Family, client: str, flags: str = "S", port: int = 0) -> int:
    return node.dropped_for("from_netdev", tcp(client, BALANCER[at], port or node.free_port(), 80, flags))


@pytest.mark.parametrize("denies", [False, True])
def test_ranges_let_in_or_keep_out_by_the_clients_address(node: Routed, at: Family, denies: bool) -> None:
    limit(node, at, RANGES | DENY * denies)
    name(node, 1, at.outside, whole(at), RANGE_DENIED if denies else RANGE_ALLOWED)
    name(node, 2, at.outside2, whole(at), RANGE_DENIED if denies else RANGE_ALLOWED)  # another Service's
    inside, outside = (NOT_IN_RANGE, 0) if denies else (0, NOT_IN_RANGE)
    for _ in range(8):  # a backend here, or one elsewhere
        assert drop(node, at, at.outside) == inside
        assert drop(node, at, at.outside2) == outside
    limit(node, at, 0)
    assert drop(node, at, at.outside) == drop(node, at, at.outside2) == 0, "without the flag nobody is asked"


def test_a_whole_network_is_let_in_and_none_is_let_in_by_none(node: Routed, at: Family) -> None:
    limit(node, at, RANGES)
    assert drop(node, at, at.outside) == NOT_IN_RANGE
    name(node, 1, at.outside, 8, RANGE_ALLOWED)
    assert drop(node, at, at.outside) == 0


def test_a_network_that_was_kept_out_is_not_let_in_by_its_old_entry_nor_the_other_way(node: Routed, at: Family) -> None:
    limit(node, at, RANGES)
    name(node, 1, at.outside, whole(at), RANGE_DENIED)
    assert drop(node, at, at.outside) == NOT_IN_RANGE
    limit(node, at, RANGES | DENY)
    name(node, 1, at.outside, whole(at), RANGE_ALLOWED)
    assert drop(node, at, at.outside) == 0


def test_a_change_of_ranges_ends_what_is_connected_without_judging_anybody_again(node: Routed, at: Family) -> None:
    limit(node, at, RANGES)
    name(node, 1, at.outside, whole(at), RANGE_ALLOWED)
    port = node.free_port()
    assert drop(node, at, at.outside, port=port) == drop(node, at, at.outside, "A", port) == 0
    node.maps["source_ranges"].remove(RangeKey(1, Prefix(at.outside, whole(at))).pack())
    assert drop(node, at, at.outside, "A", port) == NOT_IN_RANGE


def test_who_calls_from_within_is_not_asked(node: Routed, at: Family) -> None:
    limit(node, at, RANGES)
    assert node.dropped_for("from_pod", tcp(at.pod, BALANCER[at], node.free_port(), 80)) == 0


def test_a_client_outside_comes_back_to_its_backend_here_or_elsewhere(node: Routed, at: Family) -> None:
    backends = [at.remote, at.neighbour, at.second]
    for first in backends:
        ends = [(first, 8080)]
        node.service(BALANCER[at], 80, 6, ends, flags=ServiceEntry.EXTERNAL, outside=1, affinity=10)
        assert node.passes("from_netdev", tcp(at.outside, BALANCER[at], node.free_port(), 80))[at.ip].dst == first
        ends = [(each, 8080) for each in backends]
        node.service(BALANCER[at], 80, 6, ends, flags=ServiceEntry.EXTERNAL, outside=3, affinity=10)
        for _ in range(10):
            port = node.free_port()
            for what in "SA":
                led = node.passes("from_netdev", tcp(at.outside, BALANCER[at], port, 80, what))
                assert led[at.ip].dst == first
        ((key, entry),) = node.affinities().items()
        assert (key.client, entry.address) == (at.outside, first)
        node.maps["affinity"].remove_many([key.pack()])


def test_a_host_port_is_called_at_this_nodes_address_and_what_is_anothers_passes_by(node: Routed, at: Family) -> None:
    for number, address in ((1, at.node), (2, at.other_node)):
        node.service(address, 8080, 6, [(at.neighbour, 80)], number, flags=ServiceEntry.HOST_PORT, outside=1)
    led = node.passes("from_netdev", tcp(at.outside, at.node, node.free_port(), 8080))
    assert (led[at.ip].src, led[at.ip].dst) == (at.outside, at.neighbour)
    assert node.run("from_netdev", tcp(at.outside, at.other_node, node.free_port(), 8080)).result == TC_ACT_UNSPEC
