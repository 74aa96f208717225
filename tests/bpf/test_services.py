"""Services packet by packet: what the socket hooks did not see."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from services.dataplane.parts.policy.entries import EGRESS
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS, ServiceKey
from tests.bpf.datapath import (
    POD,
    REMOTE,
    SERVICE,
    TC_ACT_OK,
    TC_ACT_REDIRECT,
    V4,
    V6,
    Datapath,
    Family,
    Routed,
    echo,
    tcp,
    udp,
)
from tests.bpf.reading import with_right_checksums

POLICY_DENIED, UNROUTABLE, NO_BACKEND = 133, 151, 158


@pytest.fixture
def node(datapath: Datapath) -> Datapath:
    for at in (V4, V6):
        datapath.endpoint(at.pod, 256)
        datapath.endpoint(at.neighbour, 257)
        datapath.who(at.remote, 300, at.other_node)
        datapath.who(at.second, 301, at.other_node)
        datapath.who(at.node, 1)
    datapath.maps.raise_epoch()
    return datapath


@pytest.mark.parametrize("ports", [(80, 8080), (80, 80)])
@pytest.mark.parametrize("is_remote", [True, False])
def test_a_packet_to_a_service_goes_to_its_backend_and_comes_back_as_the_service(
    node: Datapath, at: Family, is_remote: bool, ports: tuple[int, int]
) -> None:
    backend = at.remote if is_remote else at.neighbour
    port, backend_port = ports
    node.service(at.service, port, 6, [(backend, backend_port)])
    client = node.free_port()
    there = node.passes("from_pod", tcp(at.pod, at.service, client, port))
    assert (there[at.ip].src, there[at.ip].dst, there[TCP].sport, there[TCP].dport) == (
        at.pod,
        backend,
        client,
        backend_port,
    )
    assert with_right_checksums(bytes(there)) == bytes(there)
    way_back = "from_netdev" if is_remote else "from_pod"
    back = node.passes(way_back, tcp(backend, at.pod, backend_port, client, "SA"))
    assert (back[at.ip].src, back[at.ip].dst, back[TCP].sport, back[TCP].dport) == (at.service, at.pod, port, client)
    assert with_right_checksums(bytes(back)) == bytes(back)


AT_NODES = {V4: "0.0.0.0", V6: "::"}


def test_a_node_port_is_served_at_every_address_of_a_node_and_answers_as_the_one_that_was_called(
    node: Datapath, at: Family
) -> None:
    node.who(at.other_node, 6)
    node.service(AT_NODES[at], 30_080, 6, [(at.remote, 8080)])
    for called in (at.node, at.other_node):
        client = node.free_port()
        there = node.passes("from_pod", tcp(at.pod, called, client, 30_080))
        assert (there[at.ip].dst, there[TCP].dport) == (at.remote, 8080)
        back = node.passes("from_netdev", tcp(at.remote, at.pod, 8080, client, "SA"))
        assert (back[at.ip].src, back[TCP].sport) == (called, 30_080)
        again = node.passes("from_pod", tcp(at.pod, called, client, 30_080, "A"))
        assert (again[at.ip].dst, again[TCP].dport) == (at.remote, 8080)


def test_a_node_port_is_no_port_of_others_and_a_services_own_address_comes_first(node: Datapath, at: Family) -> None:
    for port in (30_080, 29_999, 32_768):
        node.service(AT_NODES[at], port, 6, [(at.remote, 8080)])
    node.service(at.node, 30_080, 6, [(at.second, 8080)], number=2)
    for called, port in ((at.neighbour, 30_080), (at.node, 29_999), (at.node, 32_768)):
        there = node.passes("from_pod", tcp(at.pod, called, node.free_port(), port))
        assert (there[at.ip].dst, there[TCP].dport) == (called, port)
    there = node.passes("from_pod", tcp(at.pod, at.node, node.free_port(), 30_080))
    assert there[at.ip].dst == at.second


def test_udp_checksums_stay_right(node: Datapath, at: Family) -> None:
    node.service(at.service, 53, 17, [(at.remote, 5353)])
    client = node.free_port()
    there = node.passes("from_pod", udp(at.pod, at.service, client, 53))
    assert (there[at.ip].dst, there[UDP].dport) == (at.remote, 5353)
    assert with_right_checksums(bytes(there)) == bytes(there)
    back = node.passes("from_netdev", udp(at.remote, at.pod, 5353, client))
    assert (back[at.ip].src, back[UDP].sport) == (at.service, 53)
    assert with_right_checksums(bytes(back)) == bytes(back)


def test_udp_without_a_checksum_stays_without(node: Datapath) -> None:
    node.service(SERVICE, 53, 17, [(REMOTE, 5353)])
    client = node.free_port()
    there = node.passes("from_pod", udp(POD, SERVICE, client, 53, chksum=0))
    back = node.passes("from_netdev", udp(REMOTE, POD, 5353, client, chksum=0))
    for packet in (there, back):
        assert packet[UDP].chksum == 0
        assert with_right_checksums(bytes(packet)) == bytes(packet)
    assert (there[IP].dst, back[IP].src) == (REMOTE, SERVICE)


def test_a_udp_checksum_never_becomes_none(node: Datapath, at: Family) -> None:
    """One that comes out as 0 is sent as 0xffff (RFC 768)."""
    node.service(at.service, 53, 17, [(at.remote, 5353)])
    sum_at = 14 + len(bytes(at.ip())) + 6
    for client in range(1024, 1024 + 3000):
        packet = node.run("from_pod", udp(at.pod, at.service, client, 53)).packet
        assert packet[sum_at : sum_at + 2] != b"\0\0"


def test_a_connection_stays_with_its_backend_and_connections_are_spread(node: Datapath, at: Family) -> None:
    node.service(at.service, 80, 6, [(at.remote, 8080), (at.second, 8080)])
    chosen = set()
    for _ in range(30):
        client = node.free_port()
        backends = {
            node.passes("from_pod", tcp(at.pod, at.service, client, 80, what))[at.ip].dst
            for what in ("S", "A", "PA", "A")
        }
        assert len(backends) == 1
        chosen |= backends
    assert chosen == {at.remote, at.second}


def test_a_connection_stays_with_its_backend_when_another_takes_the_slot(node: Datapath, at: Family) -> None:
    node.service(at.service, 80, 6, [(at.remote, 8080)])
    client = node.free_port()
    node.passes("from_pod", tcp(at.pod, at.service, client, 80))
    node.service(at.service, 80, 6, [(at.second, 8080)])
    node.maps.raise_epoch()
    assert node.passes("from_pod", tcp(at.pod, at.service, client, 80, "A"))[at.ip].dst == at.remote
    assert node.passes("from_pod", tcp(at.pod, at.service, node.free_port(), 80))[at.ip].dst == at.second


def test_a_connection_stays_at_its_backend_when_that_leaves_the_service(node: Datapath, at: Family) -> None:
    node.service(at.service, 80, 6, [(at.remote, 8080)])
    client = node.free_port()
    node.passes("from_pod", tcp(at.pod, at.service, client, 80))
    node.passes("from_netdev", tcp(at.remote, at.pod, 8080, client, "SA"))
    node.service(at.service, 80, 6, [(at.second, 8080)])
    node.maps.raise_epoch()
    assert node.passes("from_pod", tcp(at.pod, at.service, client, 80, "A"))[at.ip].dst == at.remote
    assert (
        node.passes("from_pod", tcp(at.pod, at.service, client, 80, "S"))[at.ip].dst == at.second
    )  # the ports are used again


def test_a_datagram_goes_to_no_backend_that_has_left(node: Datapath, at: Family) -> None:
    node.service(at.service, 53, 17, [(at.remote, 5353)])
    client = node.free_port()
    assert node.passes("from_pod", udp(at.pod, at.service, client, 53))[at.ip].dst == at.remote
    node.service(at.service, 53, 17, [(at.second, 5353)])
    node.maps.raise_epoch()
    assert node.passes("from_pod", udp(at.pod, at.service, client, 53))[at.ip].dst == at.second


def test_a_datagram_stays_with_its_backend_whatever_slot_that_has(node: Datapath, at: Family) -> None:
    """Backends are sorted: one that comes before moves all others by a slot."""
    node.service(at.service, 53, 17, [(at.second, 5353)])
    clients = [node.free_port() for _ in range(8)]
    for client in clients:
        assert node.passes("from_pod", udp(at.pod, at.service, client, 53))[at.ip].dst == at.second
    node.service(at.service, 53, 17, [(at.remote, 5353), (at.second, 5353)])
    node.maps.raise_epoch()
    for client in clients:
        assert node.passes("from_pod", udp(at.pod, at.service, client, 53))[at.ip].dst == at.second


def test_datagrams_that_were_answered_go_to_the_service_once_there_is_one(routed: Routed, at: Family) -> None:
    """A client that never changes its port would else speak to the address for good."""
    routed.endpoint(at.pod, 256)
    routed.who(at.remote, 300, at.other_node)
    routed.who(at.second, 301, at.other_node)
    routed.maps.raise_epoch()
    client = routed.free_port()
    routed.passes("from_pod", udp(at.pod, at.remote, client, 53))
    routed.passes("from_netdev", udp(at.remote, at.pod, 53, client))
    routed.service(at.remote, 53, 17, [(at.second, 5353)])
    routed.maps.raise_epoch()
    assert routed.passes("from_pod", udp(at.pod, at.remote, client, 53))[at.ip].dst == at.second
    assert routed.passes("from_netdev", udp(at.second, at.pod, 5353, client))[at.ip].src == at.remote


@pytest.mark.parametrize("make", [tcp, udp])
def test_who_called_before_the_service_was_known_reaches_it_by_calling_again(
    node: Datapath, at: Family, make: Any
) -> None:
    """One with an address of its own: what is of the Services' range goes nowhere before."""
    node.who(at.native, 2, at.other_node)  # somewhere to go meanwhile
    client = node.free_port()
    number = 6 if make is tcp else 17
    assert node.passes("from_pod", make(at.pod, at.native, client, 80))[at.ip].dst == at.native
    node.service(at.native, 80, number, [(at.remote, 8080)])
    node.maps.raise_epoch()
    assert node.passes("from_pod", make(at.pod, at.native, client, 80))[at.ip].dst == at.remote


def test_a_service_without_backends_is_dropped(node: Datapath, at: Family) -> None:
    node.service(at.service, 80, 6, [])
    assert node.dropped_for("from_pod", tcp(at.pod, at.service, node.free_port(), 80)) == NO_BACKEND


def test_policy_is_about_the_backend(node: Datapath, at: Family) -> None:
    node.service(at.service, 80, 6, [(at.remote, 8080)])
    node.endpoint(at.pod, 256, policy=9, flags=FLAG_ENFORCE_EGRESS)
    node.maps.raise_epoch()
    assert node.dropped_for("from_pod", tcp(at.pod, at.service, node.free_port(), 80)) == POLICY_DENIED
    node.allow(9, 300, EGRESS, 6, 80, 24)
    assert node.dropped_for("from_pod", tcp(at.pod, at.service, node.free_port(), 80)) == POLICY_DENIED
    node.allow(9, 300, EGRESS, 6, 8080, 24)
    assert node.dropped_for("from_pod", tcp(at.pod, at.service, node.free_port(), 80)) == 0


def test_protocols_and_ports_are_services_of_their_own(node: Datapath, at: Family) -> None:
    node.service(at.service, 53, 17, [(at.remote, 5353)])
    assert node.dropped_for("from_pod", tcp(at.pod, at.service, node.free_port(), 53)) == NO_BACKEND
    assert node.dropped_for("from_pod", udp(at.pod, at.service, node.free_port(), 54)) == NO_BACKEND


def test_a_backend_that_is_the_node_itself_answers_as_the_service(node: Datapath, at: Family) -> None:
    node.service(at.service, 443, 6, [(at.node, 6443)])
    client = node.free_port()
    there = node.run("from_pod", tcp(at.pod, at.service, client, 443))
    assert there.result == TC_ACT_OK
    back = node.passes("to_pod", tcp(at.node, at.pod, 6443, client, "SA"))
    assert (back[at.ip].src, back[TCP].sport) == (at.service, 443)
    assert with_right_checksums(bytes(back)) == bytes(back)


@pytest.mark.parametrize("make", [tcp, udp])
def test_a_pod_whose_service_leads_to_itself_is_called_by_the_service(node: Datapath, at: Family, make: Any) -> None:
    """And answers to that; policy has no say, as a pod that speaks to itself leaves nobody's network."""
    number, layer = (6, TCP) if make is tcp else (17, UDP)
    node.service(at.service, 80, number, [(at.pod, 8080)])
    node.endpoint(at.pod, 256, policy=9, flags=FLAG_ENFORCE_INGRESS | FLAG_ENFORCE_EGRESS)
    client = node.free_port()
    for _ in range(2):
        node.maps.raise_epoch()  # and what was let through once is let through again
        there = node.run("from_pod", make(at.pod, at.service, client, 80))
        assert there.result == TC_ACT_REDIRECT
        seen = Ether(there.packet)
        assert (seen[at.ip].src, seen[layer].sport) == (at.service, client)
        assert (seen[at.ip].dst, seen[layer].dport) == (at.pod, 8080)
        assert with_right_checksums(there.packet) == there.packet
        node.maps.raise_epoch()
        answer = make(at.pod, at.service, 8080, client, *(["SA"] if make is tcp else []))
        back = node.run("from_pod", answer)
        assert back.result == TC_ACT_REDIRECT
        seen = Ether(back.packet)
        assert (seen[at.ip].src, seen[layer].sport) == (at.service, 80)
        assert (seen[at.ip].dst, seen[layer].dport) == (at.pod, client)
        assert with_right_checksums(back.packet) == back.packet


@pytest.mark.parametrize("make", [tcp, udp, lambda pod, to, number, _: echo(pod, to, number)])
def test_an_address_of_the_services_range_that_no_service_has_is_nobodys(routed: Routed, at: Family, make: Any) -> None:
    """Nor an unused port of one, nor a ping to one: the world must not get it, with the node's address on it."""
    routed.endpoint(at.pod, 256)
    routed.who(at.remote, 300, at.other_node)
    routed.service(at.service, 80, 6, [(at.remote, 8080)])
    unused = at.service.removesuffix("10") + "77"
    for target, port in ((at.service, 81), (unused, 80)):
        assert routed.dropped_for("from_pod", make(at.pod, target, routed.free_port(), port)) == NO_BACKEND
    assert not routed.connections(), "nothing is kept of them"
    just_outside = "10.97.0.1" if at.version == 4 else "fd00:96::1:1"
    assert routed.dropped_for("from_pod", make(at.pod, just_outside, routed.free_port(), 80)) == 0


def test_when_the_service_is_gone_its_packets_go_nowhere(routed: Routed, at: Family) -> None:
    routed.endpoint(at.pod, 256)
    routed.who(at.remote, 300, at.other_node)
    routed.service(at.service, 80, 6, [(at.remote, 8080)])
    client = routed.free_port()
    routed.passes("from_pod", tcp(at.pod, at.service, client, 80))
    routed.maps["services"].remove(ServiceKey(at.service, 80, 6).pack())
    routed.maps.raise_epoch()
    assert routed.dropped_for("from_pod", tcp(at.pod, at.service, client, 80, "A")) == NO_BACKEND


def test_a_backend_that_has_left_this_node_is_not_found(node: Datapath, at: Family) -> None:
    node.who(at.block, 3, at.node, bits=at.block_bits)
    node.service(at.service, 80, 6, [(at.nobody, 8080)])
    assert node.dropped_for("from_pod", tcp(at.pod, at.service, node.free_port(), 80)) == UNROUTABLE
