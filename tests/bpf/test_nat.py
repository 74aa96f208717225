"""Masquerade: pods leave the cluster as their node, and what answers finds its way back."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether

from services.dataplane.layouts import Connection, NatEntry, NatKey
from tests.bpf.datapath import (
    NODE,
    OTHER_NODE,
    OUTSIDE,
    POD,
    POD_MAC,
    REMOTE,
    TC_ACT_REDIRECT,
    TC_ACT_UNSPEC,
    Routed,
    echo,
    key_between,
    tcp,
    udp,
    with_right_checksums,
)

NO_MAPPING = 167
PORTS = range(61000, 65536)  # bpf/include/limits.h
NEVER = (1 << 32) - 1


@pytest.fixture
def node(routed: Routed) -> Routed:
    routed.endpoint(POD, 256)
    routed.who(REMOTE, 300, OTHER_NODE)
    routed.who(NODE, 1)
    routed.maps.raise_epoch()
    return routed


def mappings(node: Routed) -> dict[NatKey, NatEntry]:
    return {NatKey.unpack(key): NatEntry.unpack(value) for key, value in node.maps["nat"].items()}


def test_tcp_leaves_as_the_node_and_its_answer_reaches_the_pod(node: Routed) -> None:
    port = node.free_port()
    out = node.passes("from_pod", tcp(POD, OUTSIDE, port, 443))
    mapped = out[TCP].sport
    assert (out[IP].src, out[IP].dst, out[TCP].dport, out[IP].ttl) == (NODE, OUTSIDE, 443, 63)
    assert mapped in PORTS
    assert with_right_checksums(bytes(out)) == bytes(out)
    assert mappings(node) == {NatKey(OUTSIDE, NODE, 443, mapped, 6): NatEntry(POD, port)}

    run = node.run("from_netdev", tcp(OUTSIDE, NODE, 443, mapped, "SA"))
    back = Ether(run.packet)
    assert run.result == TC_ACT_REDIRECT
    assert (back[IP].src, back[IP].dst, back[TCP].sport, back[TCP].dport) == (OUTSIDE, POD, 443, port)
    assert back.dst == POD_MAC.hex(":")
    assert with_right_checksums(run.packet) == run.packet
    assert node.passes("from_pod", tcp(POD, OUTSIDE, port, 443, "A"))[TCP].sport == mapped


@pytest.mark.parametrize("checksum", [None, 0])
def test_udp_too_with_a_checksum_or_without(node: Routed, checksum: int | None) -> None:
    port = node.free_port()
    fields = {} if checksum is None else {"chksum": checksum}
    out = node.passes("from_pod", udp(POD, OUTSIDE, port, 53, **fields))
    back = node.passes("from_netdev", udp(OUTSIDE, NODE, 53, out[UDP].sport, **fields))
    assert (out[IP].src, back[IP].dst, back[UDP].dport) == (NODE, POD, port)
    for packet in (out, back):
        assert with_right_checksums(bytes(packet)) == bytes(packet)
        assert checksum is None or packet[UDP].chksum == 0


def test_an_echo_has_its_identifier_mapped(node: Routed) -> None:
    out = node.passes("from_pod", echo(POD, OUTSIDE, 7))
    assert out[IP].src == NODE and out[ICMP].id in PORTS
    assert with_right_checksums(bytes(out)) == bytes(out)
    back = node.passes("from_netdev", echo(OUTSIDE, NODE, out[ICMP].id, reply=True))
    assert (back[IP].dst, back[ICMP].id) == (POD, 7)
    assert with_right_checksums(bytes(back)) == bytes(back)


def test_another_host_does_not_reach_the_pod_by_the_same_port(node: Routed) -> None:
    mapped = node.passes("from_pod", udp(POD, OUTSIDE, node.free_port(), 53))[UDP].sport
    for packet in (udp("198.51.100.8", NODE, 53, mapped), udp(OUTSIDE, NODE, 54, mapped)):
        run = node.run("from_netdev", packet)
        assert (run.result, run.packet) == (TC_ACT_UNSPEC, packet)


def test_two_pods_with_one_port_get_two(node: Routed) -> None:
    node.endpoint("10.0.0.2", 257)
    port = node.free_port()
    sources = [node.passes("from_pod", udp(pod, OUTSIDE, port, 53))[UDP].sport for pod in (POD, "10.0.0.2")]
    assert len(set(sources)) == 2
    for pod, mapped in zip((POD, "10.0.0.2"), sources, strict=True):
        assert node.passes("from_netdev", udp(OUTSIDE, NODE, 53, mapped))[IP].dst == pod


def test_to_pods_and_nodes_of_the_cluster_a_pod_bears_its_own_address(node: Routed) -> None:
    node.who(OTHER_NODE, 6)
    assert node.passes("from_pod", udp(POD, REMOTE, node.free_port(), 53))[IP].src == POD
    assert node.passes("from_pod", udp(POD, OTHER_NODE, node.free_port(), 53))[IP].src == POD
    assert mappings(node) == {}


def test_with_a_tunnel_other_nodes_see_the_node_and_the_native_network_sees_the_pod(tunnelled: Routed) -> None:
    tunnelled.endpoint(POD, 256)
    tunnelled.who(OTHER_NODE, 6)
    assert tunnelled.passes("from_pod", udp(POD, OTHER_NODE, tunnelled.free_port(), 53))[IP].src == NODE
    assert tunnelled.passes("from_pod", udp(POD, "198.51.100.7", tunnelled.free_port(), 53))[IP].src == POD
    assert tunnelled.passes("from_pod", udp(POD, "198.51.100.200", tunnelled.free_port(), 53))[IP].src == NODE


def test_a_mapping_that_was_evicted_is_taken_back(node: Routed) -> None:
    port = node.free_port()
    before = node.passes("from_pod", udp(POD, OUTSIDE, port, 53))[UDP].sport
    held = mappings(node)
    node.maps["nat"].remove_many([key for key, _ in node.maps["nat"].items()])
    assert node.passes("from_pod", udp(POD, OUTSIDE, port, 53))[UDP].sport == before
    assert mappings(node) == held


def test_a_mapping_that_another_took_meanwhile_is_not_shared(node: Routed) -> None:
    port = node.free_port()
    node.passes("from_pod", udp(POD, OUTSIDE, port, 53))
    [(key, _)] = node.maps["nat"].items()
    node.maps["nat"].set(key, NatEntry("10.0.0.2", port).pack())
    assert node.dropped_for("from_pod", udp(POD, OUTSIDE, port, 53)) == NO_MAPPING


def fill(node: Routed, expires: int) -> None:
    """Another pod holds every port towards `OUTSIDE`:53, by connections that end at the tick `expires`."""
    other = "10.0.0.2"
    for port in PORTS:  # each is held by a connection of its own, from the same port of the pod
        node.maps["nat"].set(NatKey(OUTSIDE, NODE, 53, port, 17).pack(), NatEntry(other, port).pack())
        held = Connection(expires, 0, 0, 0, 0, "", "", 0, port)
        node.maps["ct_any"].set(key_between((other, port), (OUTSIDE, 53), 17).pack(), held.pack())


def test_when_every_port_is_held_the_connection_is_dropped_with_that_reason(node: Routed) -> None:
    fill(node, NEVER)
    assert node.dropped_for("from_pod", udp(POD, OUTSIDE, node.free_port(), 53)) == NO_MAPPING
    assert node.dropped_for("from_pod", udp(POD, OUTSIDE, node.free_port(), 54)) == 0


def test_the_ports_of_connections_that_are_over_are_used_again(node: Routed) -> None:
    """Nothing else removes a mapping: without this a node could speak to one address 4536 times and then no more."""
    fill(node, 0)
    port = node.free_port()
    out = node.passes("from_pod", udp(POD, OUTSIDE, port, 53))
    assert mappings(node)[NatKey(OUTSIDE, NODE, 53, out[UDP].sport, 17)] == NatEntry(POD, port)
    assert node.passes("from_netdev", udp(OUTSIDE, NODE, 53, out[UDP].sport))[IP].dst == POD
