"""Masquerade: pods leave the cluster as their node, and what answers finds its way back."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether

from services.dataplane.shapes.layouts import TICK_NS, Connection, NatEntry, NatKey
from tests.bpf.datapath import (
    POD_MAC,
    TC_ACT_REDIRECT,
    TC_ACT_UNSPEC,
    V4,
    V6,
    Datapath,
    Family,
    Routed,
    echo,
    key_between,
    tcp,
    udp,
)
from tests.bpf.reading import with_right_checksums

NO_MAPPING = 167
PORTS = range(61000, 65536)  # conftest.py
LONG = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // TICK_NS + 500_000  # nearly a week: no connection's is longer
REPLY_FIN, RESET, FINISHED = 0x08, 0x10, 0x0C  # bpf/include/types.h


@pytest.fixture
def node(routed: Routed) -> Routed:
    for at in (V4, V6):
        routed.endpoint(at.pod, 256)
        routed.who(at.remote, 300, at.other_node)
        routed.who(at.node, 1)
    routed.maps.raise_epoch()
    return routed


def mappings(node: Routed) -> dict[NatKey, NatEntry]:
    return {NatKey.unpack(key): NatEntry.unpack(value) for key, value in node.maps["nat"].items()}


def test_tcp_leaves_as_the_node_and_its_answer_reaches_the_pod(node: Routed, at: Family) -> None:
    port = node.free_port()
    out = node.passes("from_pod", tcp(at.pod, at.outside, port, 443))
    mapped = out[TCP].sport
    assert (out[at.ip].src, out[at.ip].dst, out[TCP].dport, getattr(out, at.hops)) == (at.node, at.outside, 443, 63)
    assert mapped in PORTS
    assert with_right_checksums(bytes(out)) == bytes(out)
    assert mappings(node) == {NatKey(at.outside, at.node, 443, mapped, 6): NatEntry(at.pod, port)}

    run = node.run("from_netdev", tcp(at.outside, at.node, 443, mapped, "SA"))
    back = Ether(run.packet)
    assert run.result == TC_ACT_REDIRECT
    assert (back[at.ip].src, back[at.ip].dst, back[TCP].sport, back[TCP].dport) == (at.outside, at.pod, 443, port)
    assert back.dst == POD_MAC.hex(":")
    assert with_right_checksums(run.packet) == run.packet
    assert node.passes("from_pod", tcp(at.pod, at.outside, port, 443, "A"))[TCP].sport == mapped


@pytest.mark.parametrize("checksum", [None, 0])
def test_udp_too_with_a_checksum_or_without(node: Routed, at: Family, checksum: int | None) -> None:
    if at is V6 and checksum == 0:
        pytest.skip("UDP over IPv6 has a checksum (RFC 8200, 8.1)")
    port = node.free_port()
    fields = {} if checksum is None else {"chksum": checksum}
    out = node.passes("from_pod", udp(at.pod, at.outside, port, 53, **fields))
    back = node.passes("from_netdev", udp(at.outside, at.node, 53, out[UDP].sport, **fields))
    assert (out[at.ip].src, back[at.ip].dst, back[UDP].dport) == (at.node, at.pod, port)
    for packet in (out, back):
        assert with_right_checksums(bytes(packet)) == bytes(packet)
        assert checksum is None or packet[UDP].chksum == 0


def test_an_echo_has_its_identifier_mapped(node: Routed, at: Family) -> None:
    out = node.passes("from_pod", echo(at.pod, at.outside, 7))
    assert out[at.ip].src == at.node and out[at.ip].payload.id in PORTS
    assert with_right_checksums(bytes(out)) == bytes(out)
    back = node.passes("from_netdev", echo(at.outside, at.node, out[at.ip].payload.id, reply=True))
    assert (back[at.ip].dst, back[at.ip].payload.id) == (at.pod, 7)
    assert with_right_checksums(bytes(back)) == bytes(back)


def test_another_host_does_not_reach_the_pod_by_the_same_port(node: Routed, at: Family) -> None:
    mapped = node.passes("from_pod", udp(at.pod, at.outside, node.free_port(), 53))[UDP].sport
    for packet in (udp(at.outside2, at.node, 53, mapped), udp(at.outside, at.node, 54, mapped)):
        run = node.run("from_netdev", packet)
        assert (run.result, run.packet) == (TC_ACT_UNSPEC, packet)


def test_two_pods_with_one_port_get_two(node: Routed, at: Family) -> None:
    node.endpoint(at.neighbour, 257)
    port = node.free_port()
    sources = [node.passes("from_pod", udp(pod, at.outside, port, 53))[UDP].sport for pod in (at.pod, at.neighbour)]
    assert len(set(sources)) == 2
    for pod, mapped in zip((at.pod, at.neighbour), sources, strict=True):
        assert node.passes("from_netdev", udp(at.outside, at.node, 53, mapped))[at.ip].dst == pod


def test_to_pods_and_nodes_of_the_cluster_a_pod_bears_its_own_address(node: Routed, at: Family) -> None:
    node.who(at.other_node, 6)
    assert node.passes("from_pod", udp(at.pod, at.remote, node.free_port(), 53))[at.ip].src == at.pod
    assert node.passes("from_pod", udp(at.pod, at.other_node, node.free_port(), 53))[at.ip].src == at.pod
    assert mappings(node) == {}


def test_with_a_tunnel_other_nodes_see_the_node_and_the_native_network_sees_the_pod(
    tunnelled: Routed, at: Family
) -> None:
    tunnelled.endpoint(at.pod, 256)
    tunnelled.who(at.other_node, 6)
    assert tunnelled.passes("from_pod", udp(at.pod, at.other_node, tunnelled.free_port(), 53))[at.ip].src == at.node
    assert tunnelled.passes("from_pod", udp(at.pod, at.native, tunnelled.free_port(), 53))[at.ip].src == at.pod
    assert tunnelled.passes("from_pod", udp(at.pod, at.outside2, tunnelled.free_port(), 53))[at.ip].src == at.node


def test_a_mapping_that_was_evicted_is_taken_back(node: Routed, at: Family) -> None:
    port = node.free_port()
    before = node.passes("from_pod", udp(at.pod, at.outside, port, 53))[UDP].sport
    held = mappings(node)
    node.maps["nat"].remove_many([key for key, _ in node.maps["nat"].items()])
    assert node.passes("from_pod", udp(at.pod, at.outside, port, 53))[UDP].sport == before
    assert mappings(node) == held


def test_a_mapping_that_another_took_meanwhile_is_not_shared(node: Routed, at: Family) -> None:
    port = node.free_port()
    node.passes("from_pod", udp(at.pod, at.outside, port, 53))
    [(key, _)] = node.maps["nat"].items()
    node.maps["nat"].set(key, NatEntry(at.neighbour, port).pack())
    assert node.dropped_for("from_pod", udp(at.pod, at.outside, port, 53)) == NO_MAPPING


def test_who_lost_its_port_to_another_finds_a_new_one_with_its_next_packet(node: Routed, at: Family) -> None:
    port = node.free_port()
    lost = node.passes("from_pod", udp(at.pod, at.outside, port, 53))[UDP].sport
    [(key, _)] = node.maps["nat"].items()
    node.maps["nat"].set(key, NatEntry(at.neighbour, port).pack())
    holder = Connection(LONG, 0, 0, 0, 0, "", "", 0, lost)
    node.maps["ct_any"].set(key_between((at.neighbour, port), (at.outside, 53), 17).pack(), holder.pack())
    assert node.dropped_for("from_pod", udp(at.pod, at.outside, port, 53)) == NO_MAPPING
    found = node.passes("from_pod", udp(at.pod, at.outside, port, 53))[UDP].sport
    assert found != lost and found in PORTS
    assert node.passes("from_netdev", udp(at.outside, at.node, 53, found))[at.ip].dst == at.pod


def fill(node: Routed, at: Family, expires: int, over: int = 0, *, protocol: int = 17, flags: int = 0) -> None:
    """Another pod holds every port towards `at.outside`:53, by connections that end at the tick `expires`, but for
    `over` of every ten, which have ended."""
    other = at.neighbour
    connections = node.maps["ct_tcp" if protocol == 6 else "ct_any"]
    for port in PORTS:  # each is held by a connection of its own, from the same port of the pod
        node.maps["nat"].set(NatKey(at.outside, at.node, 53, port, protocol).pack(), NatEntry(other, port).pack())
        held = Connection(0 if port % 10 < over else expires, 0, flags, 0, 0, "", "", 0, port)
        connections.set(key_between((other, port), (at.outside, 53), protocol).pack(), held.pack())


def empty(node: Routed, at: Family, ports: Sequence[int], protocol: int) -> None:
    """Nobody holds these any more."""
    for port in ports:
        node.maps["nat"].remove_many([NatKey(at.outside, at.node, 53, port, protocol).pack()])


def test_when_every_port_is_held_the_connection_is_dropped_with_that_reason(node: Routed, at: Family) -> None:
    fill(node, at, LONG)
    assert node.dropped_for("from_pod", udp(at.pod, at.outside, node.free_port(), 53)) == NO_MAPPING
    assert node.dropped_for("from_pod", udp(at.pod, at.outside, node.free_port(), 54)) == 0


def test_the_ports_of_connections_that_are_over_are_used_again(node: Routed, at: Family) -> None:
    """Nothing else removes a mapping: without this a node could speak to one address as often as it has ports, and then
    no more."""
    fill(node, at, 0)
    port = node.free_port()
    out = node.passes("from_pod", udp(at.pod, at.outside, port, 53))
    assert mappings(node)[NatKey(at.outside, at.node, 53, out[UDP].sport, 17)] == NatEntry(at.pod, port)
    assert node.passes("from_netdev", udp(at.outside, at.node, 53, out[UDP].sport))[at.ip].dst == at.pod


@pytest.mark.parametrize("ticks", [(1 << 31), (1 << 32) - 1])
def test_the_ports_of_entries_that_no_program_has_made_are_used(node: Routed, at: Family, ticks: int) -> None:
    fill(node, at, ticks)
    out = node.passes("from_pod", udp(at.pod, at.outside, node.free_port(), 53))
    assert out[UDP].sport in PORTS


def test_one_port_in_ten_that_is_held_keeps_nobody_from_the_others(node: Routed, at: Family) -> None:
    """Each of the last tries may find one whose connection is over, not only the very last."""
    fill(node, at, LONG, over=9)
    held = {key: entry for key, entry in mappings(node).items() if key.node_port % 10 == 9}
    for client in range(20000, 20300):
        assert node.dropped_for("from_pod", udp(at.pod, at.outside, client, 53)) == 0, client
    assert held.items() <= mappings(node).items()
    assert sum(entry.pod == at.pod for entry in mappings(node).values()) == 300


@pytest.mark.parametrize("flags", [FINISHED, RESET])
def test_a_port_whose_connection_has_finished_is_to_be_had_at_once(node: Routed, at: Family, flags: int) -> None:
    """Not after the seconds in which its last packets may be repeated. A reset that anybody may have sent is no end."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // TICK_NS
    fill(node, at, LONG, protocol=6, flags=flags)
    assert node.dropped_for("from_pod", tcp(at.pod, at.outside, node.free_port(), 53)) == NO_MAPPING
    fill(node, at, now + 9, protocol=6, flags=flags)
    for _ in range(50):
        assert node.dropped_for("from_pod", tcp(at.pod, at.outside, node.free_port(), 53)) == 0
    fill(node, at, LONG, protocol=6, flags=FINISHED & ~REPLY_FIN)  # one end goes on
    assert node.dropped_for("from_pod", tcp(at.pod, at.outside, node.free_port(), 53)) == NO_MAPPING


def test_a_port_that_the_far_end_may_remember_is_taken_only_at_need(node: Routed, at: Family) -> None:
    """What closed first keeps the connection for a minute (TIME-WAIT), and does not know one pod from another."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // TICK_NS
    fill(node, at, now - 10, over=9, protocol=6, flags=FINISHED)  # one in ten, twenty seconds after its end
    held = {key: entry for key, entry in mappings(node).items() if key.node_port % 10 == 9}
    for client in range(20000, 20300):
        assert node.dropped_for("from_pod", tcp(at.pod, at.outside, client, 53)) == 0, client
    assert held.items() <= mappings(node).items()
    fill(node, at, now - 10, protocol=6, flags=FINISHED)
    for client in range(20300, 20350):
        assert node.dropped_for("from_pod", tcp(at.pod, at.outside, client, 53)) == 0, client


def test_a_repeated_packet_looks_for_its_port_elsewhere(node: Routed, at: Family) -> None:
    fill(node, at, LONG)
    empty(node, at, [port for port in PORTS if port % 40 == 0], 17)
    for client in range(20000, 20030):
        packet = udp(at.pod, at.outside, client, 53)
        assert 0 in {node.dropped_for("from_pod", packet) for _ in range(100)}, client


@pytest.mark.parametrize(
    ("protocol", "kind"),
    [(6, "listens"), (6, "listens anywhere"), (17, "listens"), (17, "listens anywhere"), (17, "is connected")],
)
def test_a_port_of_a_socket_of_the_nodes_own_is_not_taken(node: Routed, at: Family, protocol: int, kind: str) -> None:
    """Of a program that asked for it by number, or was there before."""
    fill(node, at, LONG, protocol=protocol)
    own = [port for port in PORTS if port % 90 == 0]
    empty(node, at, own, protocol)
    make = tcp if protocol == 6 else udp
    client = node.free_port()

    def tries() -> set[int]:
        return {node.dropped_for("from_pod", make(at.pod, at.outside, client, 53)) for _ in range(200)}

    with ExitStack() as sockets:

        def open_all(_: Datapath) -> None:
            for port in own:
                sockets.enter_context(own_socket(at, protocol, port, kind))

        node.inside(open_all)
        assert tries() == {NO_MAPPING}
    assert 0 in tries()


def own_socket(at: Family, protocol: int, port: int, kind: str) -> socket.socket:
    family = socket.AF_INET if at is V4 else socket.AF_INET6
    made = socket.socket(family, socket.SOCK_STREAM if protocol == 6 else socket.SOCK_DGRAM)
    made.bind(("" if kind == "listens anywhere" else at.node, port))
    if protocol == 6:
        made.listen()
    if kind == "is connected":
        made.connect((at.outside, 53))
    return made
