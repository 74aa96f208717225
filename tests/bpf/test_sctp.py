"""SCTP: its checksum covers the ports and no address, and cannot be mended: addresses change, ports never."""

from __future__ import annotations

import pytest
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP

from services.dataplane.parts.policy.entries import EGRESS
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS, NatEntry, NatKey
from tests.bpf.datapath import TC_ACT_REDIRECT, TC_ACT_UNSPEC, V4, V6, Datapath, Family, Routed, sctp

POLICY_DENIED, INVALID, NO_MAPPING, NAT_PROTOCOL = 133, 134, 167, 168
NUMBER = 132  # IANA
BOTH = FLAG_ENFORCE_EGRESS | FLAG_ENFORCE_INGRESS


@pytest.fixture
def node(routed: Routed) -> Routed:
    for at in (V4, V6):
        routed.endpoint(at.pod, 256)
        routed.endpoint(at.neighbour, 257)
        routed.who(at.remote, 300, at.other_node)
        routed.who(at.node, 1)
    routed.maps.raise_epoch()
    return routed


def crosses(node: Datapath, at: Family, program: str, packet: bytes) -> tuple[str, str, int, int]:
    """Addresses and ports after `program`; what SCTP's checksum is about must be as it was."""
    run = node.run(program, packet)
    assert run.result == TC_ACT_REDIRECT
    before, after = Ether(packet), Ether(run.packet)
    assert bytes(after[SCTP]) == bytes(before[SCTP])
    return after[at.ip].src, after[at.ip].dst, after[SCTP].sport, after[SCTP].dport


def test_between_pods_it_passes_as_it_is(node: Routed, at: Family) -> None:
    assert crosses(node, at, "from_pod", sctp(at.pod, at.neighbour, 1000, 38412)) == (
        at.pod,
        at.neighbour,
        1000,
        38412,
    )
    assert crosses(node, at, "from_pod", sctp(at.pod, at.remote, 1000, 38412)) == (at.pod, at.remote, 1000, 38412)
    assert crosses(node, at, "from_netdev", sctp(at.remote, at.pod, 38412, 1000)) == (at.remote, at.pod, 38412, 1000)


def test_policy_knows_its_ports(node: Routed, at: Family) -> None:
    node.endpoint(at.pod, 256, policy=9, flags=BOTH)
    node.allow(9, 300, EGRESS, NUMBER, 38412, 24)
    node.maps.raise_epoch()
    assert node.dropped_for("from_pod", sctp(at.pod, at.remote, 1000, 38412)) == 0
    assert node.dropped_for("from_netdev", sctp(at.remote, at.pod, 38412, 1000)) == 0
    assert node.dropped_for("from_pod", sctp(at.pod, at.remote, 1000, 38413)) == POLICY_DENIED
    assert node.dropped_for("from_netdev", sctp(at.remote, at.pod, 38412, 1001)) == POLICY_DENIED


def test_a_service_with_its_backends_port_works_both_ways(node: Routed, at: Family) -> None:
    node.service(at.service, 38412, NUMBER, [(at.remote, 38412)])
    there = crosses(node, at, "from_pod", sctp(at.pod, at.service, 1000, 38412))
    assert there == (at.pod, at.remote, 1000, 38412)
    back = crosses(node, at, "from_netdev", sctp(at.remote, at.pod, 38412, 1000))
    assert back == (at.service, at.pod, 38412, 1000)


def test_a_service_with_another_port_than_its_backends_is_refused(node: Routed, at: Family) -> None:
    node.service(at.service, 38412, NUMBER, [(at.remote, 5000)])
    assert node.dropped_for("from_pod", sctp(at.pod, at.service, 1000, 38412)) == NAT_PROTOCOL
    assert node.connections() == {}


def test_masquerade_keeps_the_port(node: Routed, at: Family) -> None:
    port = 1234  # outside the range of masqueraded ports
    assert crosses(node, at, "from_pod", sctp(at.pod, at.outside, port, 38412)) == (at.node, at.outside, port, 38412)
    assert [(NatKey.unpack(key), NatEntry.unpack(value)) for key, value in node.maps["nat"].items()] == [
        (NatKey(at.outside, at.node, 38412, port, NUMBER), NatEntry(at.pod, port))
    ]
    assert crosses(node, at, "from_netdev", sctp(at.outside, at.node, 38412, port)) == (
        at.outside,
        at.pod,
        38412,
        port,
    )


def test_two_pods_with_one_port_to_one_address_are_one_too_many(node: Routed, at: Family) -> None:
    port = 1235
    assert node.dropped_for("from_pod", sctp(at.pod, at.outside, port, 38412)) == 0
    assert node.dropped_for("from_pod", sctp(at.neighbour, at.outside, port, 38412)) == NO_MAPPING
    assert node.dropped_for("from_pod", sctp(at.neighbour, at.outside, port, 38413)) == 0
    assert node.dropped_for("from_pod", sctp(at.neighbour, at.outside2, port, 38412)) == 0


def test_what_nobody_called_is_the_nodes_own(node: Routed, at: Family) -> None:
    packet = sctp(at.outside, at.node, 38412, 1236)
    run = node.run("from_netdev", packet)
    assert (run.result, run.packet) == (TC_ACT_UNSPEC, packet)


def test_a_cut_header_is_dropped(node: Routed, at: Family) -> None:
    packet = sctp(at.pod, at.remote, 1000, 38412)
    header = 14 + len(bytes(at.ip()))
    for length in range(header, header + 8):
        assert node.dropped_for("from_pod", packet[:length]) == INVALID
