"""Who tries to get past: each of these packets looks like part of something that is allowed, and is not."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, UDP

from services.dataplane.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS
from services.dataplane.policy import AGGREGATE_CLUSTER, EGRESS, INGRESS
from tests.bpf.datapath import (
    NEIGHBOUR,
    NODE,
    OTHER_NODE,
    OUTSIDE,
    POD,
    REMOTE,
    Datapath,
    Routed,
    echo,
    frame,
    tcp,
    udp,
)

INVALID_SOURCE, POLICY_DENIED, INVALID, NO_MAPPING, NAT_PROTOCOL, ENCAP = 132, 133, 134, 167, 168, 170
CLOSED = FLAG_ENFORCE_EGRESS | FLAG_ENFORCE_INGRESS
SERVICE = "10.96.0.10"
POLICY = 9


@pytest.fixture
def node(datapath: Datapath) -> Datapath:
    """A pod that may do nothing, an open neighbour, and a pod of another node."""
    datapath.endpoint(POD, 256, policy=POLICY, flags=CLOSED)
    datapath.endpoint(NEIGHBOUR, 257)
    datapath.who(REMOTE, 300, OTHER_NODE)
    datapath.who(NODE, 1)
    datapath.maps.raise_epoch()
    return datapath


def test_a_denied_call_to_a_service_opens_nothing_to_who_bears_its_address(node: Datapath) -> None:
    node.service(SERVICE, 80, 6, [(REMOTE, 8080)])
    port = node.free_port()
    assert node.dropped_for("from_pod", tcp(POD, SERVICE, port, 80)) == POLICY_DENIED
    for flags in ("S", "SA", "A"):
        assert node.dropped_for("from_netdev", tcp(SERVICE, POD, 80, port, flags)) == POLICY_DENIED
    assert not dict(node.maps["choices"].items())  # nor does it fill the map


def test_an_allowed_call_to_a_service_opens_nothing_to_who_bears_its_address(node: Datapath) -> None:
    node.service(SERVICE, 80, 6, [(REMOTE, 8080)])
    node.allow(POLICY, 300, EGRESS)
    port = node.free_port()
    assert node.dropped_for("from_pod", tcp(POD, SERVICE, port, 80)) == 0
    assert node.dropped_for("from_netdev", tcp(SERVICE, POD, 80, port, "SA")) == POLICY_DENIED


@pytest.mark.parametrize("program", ["native", "tunnel"])
def test_nobody_slips_into_a_connection_of_two_pods_of_the_node(
    node: Datapath, tunnelled: Routed, program: str
) -> None:
    on = node if program == "native" else tunnelled
    on.endpoint(POD, 256)
    on.endpoint(NEIGHBOUR, 257)
    on.maps.raise_epoch()
    port = on.free_port()
    assert on.dropped_for("from_pod", tcp(NEIGHBOUR, POD, port, 80)) == 0
    assert on.dropped_for("from_pod", tcp(POD, NEIGHBOUR, 80, port, "SA")) == 0
    assert on.dropped_for("from_netdev", tcp(NEIGHBOUR, POD, port, 80, "A")) == INVALID_SOURCE
    assert on.dropped_for("from_netdev", tcp(POD, NEIGHBOUR, 80, port, "A")) == INVALID_SOURCE
    assert on.dropped_for("from_pod", tcp(NEIGHBOUR, POD, port, 80, "A")) == 0


def test_nobody_slips_into_a_connection_through_the_tunnel(tunnelled: Routed) -> None:
    tunnelled.endpoint(POD, 256)
    tunnelled.who(REMOTE, 300, OTHER_NODE)
    port = tunnelled.free_port()
    assert tunnelled.dropped_for("from_pod", tcp(POD, REMOTE, port, 80)) == 0
    assert tunnelled.dropped_for("from_netdev", tcp(REMOTE, POD, 80, port, "SA")) == INVALID_SOURCE


def test_a_node_lets_nobody_into_its_tunnel(tunnelled: Routed) -> None:
    """Its own outer address would vouch for whatever address the stranger bears."""
    tunnelled.who(REMOTE, 300, OTHER_NODE)
    assert tunnelled.dropped_for("from_netdev", tcp(OUTSIDE, REMOTE, 1000, 80)) == ENCAP


def test_an_unused_address_of_the_nodes_own_block_is_not_believed_from_the_wire(node: Datapath) -> None:
    node.who("10.0.0.0", 3, NODE, bits=24)
    node.allow(POLICY, AGGREGATE_CLUSTER, INGRESS)
    assert node.dropped_for("from_netdev", tcp("10.0.0.99", POD, 1000, 80)) == INVALID_SOURCE


def test_a_pod_may_not_complain_about_others_connections(node: Datapath) -> None:
    node.endpoint(POD, 256)
    node.endpoint("10.0.0.3", 258, policy=1, flags=CLOSED)
    node.maps.raise_epoch()
    port = node.free_port()
    assert node.dropped_for("from_pod", udp(POD, NEIGHBOUR, port, 53)) == 0
    about = IP(src=POD, dst=NEIGHBOUR) / UDP(sport=port, dport=53) / b"12345678"
    for sender, expected in (("10.0.0.3", INVALID), (NEIGHBOUR, 0)):
        error = frame(IP(src=sender, dst=POD) / ICMP(type=3, code=3) / about)
        assert node.dropped_for("from_pod", error) == expected


def test_nobody_redirects_a_pod(node: Datapath) -> None:
    node.allow(POLICY, 300, EGRESS)
    port = node.free_port()
    assert node.dropped_for("from_pod", udp(POD, REMOTE, port, 53)) == 0
    about = IP(src=POD, dst=REMOTE) / UDP(sport=port, dport=53) / b"12345678"
    assert node.dropped_for("from_netdev", frame(IP(src=OUTSIDE, dst=POD) / ICMP(type=5, code=1) / about)) == INVALID


def test_an_error_about_a_connection_that_is_to_be_judged_again_waits(node: Datapath) -> None:
    node.allow(POLICY, 300, EGRESS)
    port = node.free_port()
    assert node.dropped_for("from_pod", udp(POD, REMOTE, port, 53)) == 0
    node.maps.raise_epoch()
    about = IP(src=POD, dst=REMOTE) / UDP(sport=port, dport=53) / b"12345678"
    assert node.dropped_for("from_netdev", frame(IP(src=OUTSIDE, dst=POD) / ICMP(type=3, code=4) / about)) != 0


def test_who_was_asked_may_answer_but_not_ask(node: Datapath) -> None:
    node.allow(POLICY, 300, EGRESS, 1, 8 + 1, 24)
    assert node.dropped_for("from_pod", echo(POD, REMOTE, 7)) == 0
    assert node.dropped_for("from_netdev", echo(REMOTE, POD, 7, reply=True)) == 0
    assert node.dropped_for("from_netdev", echo(REMOTE, POD, 7)) == POLICY_DENIED


def test_an_answer_that_nobody_asked_for_lets_no_question_through(node: Datapath) -> None:
    node.allow(POLICY, 300, EGRESS, 1, 0 + 1, 24)
    assert node.dropped_for("from_pod", echo(POD, REMOTE, 7)) == POLICY_DENIED
    assert node.dropped_for("from_pod", echo(POD, REMOTE, 7, reply=True)) == 0
    assert node.dropped_for("from_pod", echo(POD, REMOTE, 7)) == POLICY_DENIED
    assert node.dropped_for("from_netdev", echo(REMOTE, POD, 7)) == POLICY_DENIED


def test_a_stray_segment_from_outside_opens_no_way_out(node: Datapath) -> None:
    node.endpoint(POD, 256, policy=POLICY, flags=FLAG_ENFORCE_EGRESS)
    node.maps.raise_epoch()
    assert node.dropped_for("from_pod", tcp(POD, REMOTE, 1000, 80)) == POLICY_DENIED
    assert node.dropped_for("from_netdev", tcp(REMOTE, POD, 80, 1000, "A")) == 0
    assert node.dropped_for("from_pod", tcp(POD, REMOTE, 1000, 80)) == POLICY_DENIED


def test_a_mapping_without_its_connection_lets_nobody_in(routed: Routed) -> None:
    routed.endpoint(POD, 256)
    routed.who(NODE, 1)
    port = routed.free_port()
    mapped = IP(bytes(routed.passes("from_pod", udp(POD, OUTSIDE, port, 53)))[14:])[UDP].sport
    connections = routed.maps["ct_any"]
    connections.remove_many([key for key, _ in connections.items()])
    assert routed.dropped_for("from_netdev", udp(OUTSIDE, NODE, 53, mapped)) == NO_MAPPING
    assert routed.passes("from_pod", udp(POD, OUTSIDE, port, 53))[IP].src == NODE


def test_what_cannot_be_masqueraded_does_not_leave(routed: Routed) -> None:
    routed.endpoint(POD, 256)
    timestamp = frame(IP(src=POD, dst=OUTSIDE) / ICMP(type=13, id=7))
    assert routed.dropped_for("from_pod", timestamp) == NAT_PROTOCOL
