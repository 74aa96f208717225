"""Where packets go and why they do not, program by program: sources, ARP, ways, and what is no good packet."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import ARP, Ether

from services.dataplane.parts.counters import counted
from services.dataplane.parts.policy.entries import (
    AGGREGATE_CLUSTER,
    AGGREGATE_WORLD,
    ALLOW,
    EGRESS,
    INGRESS,
    PolicyEntry,
    PolicyKey,
    precedence,
)
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS
from tests.bpf.datapath import (
    GATEWAY_MAC,
    NEIGHBOUR,
    POD,
    POD6,
    POD_MAC,
    REMOTE,
    TC_ACT_OK,
    TC_ACT_REDIRECT,
    TC_ACT_SHOT,
    TC_ACT_UNSPEC,
    V4,
    V6,
    Datapath,
    Family,
    Routed,
    tcp,
    udp,
)
from tests.bpf.reading import with_right_checksums

INVALID_SOURCE, POLICY_DENIED, INVALID, UNKNOWN_L4, UNSUPPORTED_L3 = 132, 133, 134, 137, 139
NO_TUNNEL_KEY, UNKNOWN_TARGET, UNROUTABLE, FIB, DENIED_BY_RULE, TTL = 147, 150, 151, 169, 181, 196
BOTH = FLAG_ENFORCE_INGRESS | FLAG_ENFORCE_EGRESS
ELSEWHERE = 99  # an interface that is not the one packets come from


@pytest.fixture
def node(datapath: Datapath) -> Datapath:
    """Two pods here, one at the other node, and the node itself, without any policy."""
    return populate(datapath)


def populate(datapath: Datapath) -> Datapath:
    for at in (V4, V6):
        datapath.endpoint(at.pod, 256)
        datapath.endpoint(at.neighbour, 257)
        datapath.who(at.remote, 300, at.other_node)
        datapath.who(at.node, 1)
        datapath.who(at.block, 3, at.node, bits=at.block_bits)
    datapath.maps.raise_epoch()
    return datapath


# Who sends


def test_a_pod_may_only_send_from_its_own_address(node: Datapath, at: Family) -> None:
    assert node.dropped_for("from_pod", tcp(at.stranger, at.remote, 1000, 80)) == INVALID_SOURCE


def test_a_pod_may_not_send_from_another_pods_address(node: Datapath, at: Family) -> None:
    node.endpoint(at.neighbour, 257, interface=ELSEWHERE)
    assert node.dropped_for("from_pod", tcp(at.neighbour, at.remote, 1000, 80)) == INVALID_SOURCE


def test_nobody_on_the_wire_is_this_node_or_one_of_its_pods(node: Datapath, at: Family) -> None:
    for source in (at.pod, at.node):
        assert node.dropped_for("from_netdev", tcp(source, at.neighbour, node.free_port(), 80)) == INVALID_SOURCE


def test_with_a_tunnel_pods_of_other_nodes_do_not_come_by_the_bare_wire(tunnelled: Routed, at: Family) -> None:
    populate(tunnelled)
    assert tunnelled.dropped_for("from_netdev", tcp(at.remote, at.pod, 1000, 80)) == INVALID_SOURCE
    assert tunnelled.dropped_for("from_netdev", tcp(at.outside, at.pod, 1000, 80)) == 0


def test_without_a_tunnel_they_do(node: Datapath, at: Family) -> None:
    assert node.run("from_netdev", tcp(at.remote, at.pod, 1000, 80)).result == TC_ACT_REDIRECT


def test_what_comes_out_of_the_tunnel_device_without_a_key_is_dropped(node: Datapath, at: Family) -> None:
    assert node.dropped_for("from_overlay", tcp(at.remote, at.pod, 1000, 80)) == NO_TUNNEL_KEY


# What is no good packet


@pytest.mark.parametrize("program", ["from_pod", "to_pod", "from_overlay"])
def test_what_is_no_ip_is_dropped(node: Datapath, program: str) -> None:
    packet = bytes(Ether(src="02:00:00:00:00:aa", dst="02:00:00:00:00:bb", type=0x8847)) + bytes(60)
    assert node.dropped_for(program, packet) == UNSUPPORTED_L3


def test_what_is_no_ip_on_the_wire_is_the_nodes_own_affair(node: Datapath) -> None:
    packet = bytes(Ether(src="02:00:00:00:00:aa", dst="02:00:00:00:00:bb", type=0x8847)) + bytes(60)
    assert node.run("from_netdev", packet).result == TC_ACT_UNSPEC


# ARP


def arp(**fields: object) -> bytes:
    return bytes(Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc="02:00:00:00:00:01", **fields))


def test_whatever_a_pod_asks_for_is_at_the_gateway(node: Datapath) -> None:
    run = node.run("from_pod", arp(op=1, psrc=POD, pdst="169.254.1.1"))
    answer = Ether(run.packet)
    assert run.result == TC_ACT_REDIRECT
    assert (answer.src, answer.dst) == (GATEWAY_MAC.hex(":"), "02:00:00:00:00:01")
    assert (answer[ARP].op, answer[ARP].psrc, answer[ARP].pdst) == (2, "169.254.1.1", POD)
    assert (answer[ARP].hwsrc, answer[ARP].hwdst) == (GATEWAY_MAC.hex(":"), "02:00:00:00:00:01")


def test_a_pod_that_probes_for_its_own_address_hears_nothing(node: Datapath) -> None:
    assert node.dropped_for("from_pod", arp(op=1, psrc=POD, pdst=POD)) == UNKNOWN_TARGET


@pytest.mark.parametrize("operation", [1, 2])
def test_nobody_speaks_arp_for_another(node: Datapath, operation: int) -> None:
    node.endpoint(NEIGHBOUR, 257, interface=ELSEWHERE)
    assert node.dropped_for("from_pod", arp(op=operation, psrc="10.9.9.9", pdst="10.0.0.254")) == INVALID_SOURCE
    assert node.dropped_for("from_pod", arp(op=operation, psrc=NEIGHBOUR, pdst="10.0.0.254")) == INVALID_SOURCE


def test_a_true_answer_to_the_host_passes(node: Datapath) -> None:
    packet = arp(op=2, psrc=POD, pdst="10.0.0.254")
    run = node.run("from_pod", packet)
    assert (run.result, run.packet) == (TC_ACT_OK, packet)
    assert node.run("to_pod", arp(op=1, psrc="10.0.0.254", pdst=POD)).result == TC_ACT_OK


@pytest.mark.parametrize("fields", [{"op": 3}, {"hwtype": 6}, {"ptype": 0x86DD}, {"hwlen": 8}, {"plen": 16}])
def test_other_arp_is_dropped(node: Datapath, fields: dict[str, int]) -> None:
    packet = bytearray(arp(op=1, psrc=POD, pdst="10.0.0.254"))
    for name, value in fields.items():
        at, size = {"hwtype": (14, 2), "ptype": (16, 2), "hwlen": (18, 1), "plen": (19, 1), "op": (20, 2)}[name]
        packet[at : at + size] = value.to_bytes(size, "big")
    assert node.dropped_for("from_pod", bytes(packet)) == INVALID


@pytest.mark.parametrize("length", range(15, 42))
def test_a_short_arp_is_dropped(node: Datapath, length: int) -> None:
    assert node.dropped_for("from_pod", arp(op=1, psrc=POD, pdst="10.0.0.254")[:length]) == INVALID


# Ways


def test_to_a_pod_of_this_node_a_packet_gets_its_addresses_and_loses_a_hop(node: Datapath, at: Family) -> None:
    run = node.run("from_pod", tcp(at.pod, at.neighbour, node.free_port(), 80, **at.hop(64)))
    packet = Ether(run.packet)
    assert run.result == TC_ACT_REDIRECT
    assert (packet.dst, packet.src, getattr(packet, at.hops)) == (POD_MAC.hex(":"), GATEWAY_MAC.hex(":"), 63)
    assert with_right_checksums(run.packet) == run.packet


@pytest.mark.parametrize("ttl", [2, 64, 128, 255])
def test_the_checksum_stays_right_when_a_hop_is_lost(node: Datapath, ttl: int) -> None:
    for identification in range(0, 65536, 4099):
        run = node.run("from_pod", tcp(POD, REMOTE, 1000, 80, ttl=ttl, id=identification))
        assert Ether(run.packet)[IP].ttl == ttl - 1
        assert with_right_checksums(run.packet) == run.packet


@pytest.mark.parametrize(
    ("program", "ends"),
    [("from_pod", ("pod", "neighbour")), ("from_pod", ("pod", "remote")), ("from_netdev", ("remote", "pod"))],
)
@pytest.mark.parametrize("hops", [0, 1])
def test_the_last_hop_is_not_routed(node: Datapath, at: Family, program: str, ends: tuple[str, str], hops: int) -> None:
    source, destination = (getattr(at, end) for end in ends)
    packet = tcp(source, destination, node.free_port(), 80, **at.hop(hops))
    assert node.dropped_for(program, packet) == TTL


def test_to_the_node_itself_the_stack_takes_the_packet_as_it_is(node: Datapath, at: Family) -> None:
    packet = tcp(at.pod, at.node, node.free_port(), 80, **at.hop(1))
    run = node.run("from_pod", packet)
    assert (run.result, run.packet) == (TC_ACT_OK, packet)


def test_an_address_of_this_nodes_blocks_that_no_pod_has_is_nowhere(node: Datapath, at: Family) -> None:
    assert node.dropped_for("from_pod", tcp(at.pod, at.nobody, node.free_port(), 80)) == UNROUTABLE


def test_to_pod_carries_only_what_is_for_that_pod(node: Datapath, at: Family) -> None:
    node.endpoint(at.neighbour, 257, interface=ELSEWHERE)
    assert node.dropped_for("to_pod", tcp(at.node, at.nobody, 1000, 80)) == UNROUTABLE
    assert node.dropped_for("to_pod", tcp(at.node, at.neighbour, 1000, 80)) == UNROUTABLE


NOWHERE4 = ["224.0.0.1", "255.255.255.255", "127.0.0.1", "0.0.0.0", "240.0.0.1"]
NOWHERE6 = ["ff02::1", "ff05::2", "::1", "::", "fe80::1", "febf::1"]


@pytest.mark.parametrize("destination", NOWHERE4 + NOWHERE6)
def test_addresses_of_nobody_are_dropped(node: Datapath, destination: str) -> None:
    source = POD6 if ":" in destination else POD
    assert node.dropped_for("from_pod", udp(source, destination, node.free_port(), 80)) == UNKNOWN_TARGET


def test_what_has_no_route_is_dropped_with_that_reason(routed: Routed, at: Family) -> None:
    populate(routed)
    assert routed.dropped_for("from_pod", udp(at.pod, at.prohibited, 1000, 80)) == FIB
    assert routed.dropped_for("from_pod", udp(at.pod, at.outside, 1000, 80)) == 0


def test_a_broadcast_has_no_route(routed: Routed) -> None:
    populate(routed)
    assert routed.dropped_for("from_pod", udp(POD, "192.0.2.255", 1000, 80)) == FIB


@pytest.mark.parametrize("packets", [1, 2])
def test_through_a_tunnel_packets_to_another_node_are_sent_on(tunnelled: Routed, at: Family, packets: int) -> None:
    populate(tunnelled)
    for _ in range(packets):
        run = tunnelled.run("from_pod", tcp(at.pod, at.remote, 1000, 80))
        assert run.result == TC_ACT_REDIRECT
        assert Ether(run.packet)[at.ip].src == at.pod


def test_what_is_for_nobody_here_is_left_to_the_node(node: Datapath, at: Family) -> None:
    before = counted(node.maps["counters"])
    for destination in (at.node, at.stranger, at.remote):
        packet = tcp(at.outside, destination, 1000, 80)
        run = node.run("from_netdev", packet)
        assert (run.result, run.packet) == (TC_ACT_UNSPEC, packet)
    assert counted(node.maps["counters"]) == before


# Policy


def pod_with(node: Datapath, flags: int, entries: list[tuple[PolicyKey, PolicyEntry]]) -> None:
    for at in (V4, V6):
        node.endpoint(at.pod, 256, policy=9, flags=flags)
    node.policy(9, entries)
    node.maps.raise_epoch()


def test_without_an_entry_an_enforced_direction_is_closed(node: Datapath, at: Family) -> None:
    pod_with(node, BOTH, [])
    assert node.dropped_for("from_pod", tcp(at.pod, at.remote, node.free_port(), 80)) == POLICY_DENIED
    assert node.dropped_for("from_netdev", tcp(at.remote, at.pod, node.free_port(), 80)) == POLICY_DENIED


def test_a_direction_that_is_not_enforced_is_open(node: Datapath, at: Family) -> None:
    pod_with(node, FLAG_ENFORCE_EGRESS, [])
    assert node.dropped_for("from_netdev", tcp(at.remote, at.pod, node.free_port(), 80)) == 0
    assert node.dropped_for("from_pod", tcp(at.pod, at.remote, node.free_port(), 80)) == POLICY_DENIED


def test_a_deny_entry_has_a_reason_of_its_own(node: Datapath, at: Family) -> None:
    pod_with(
        node,
        BOTH,
        [
            (PolicyKey(300, EGRESS, 0, 0, 0), PolicyEntry(ALLOW, 1)),
            (PolicyKey(300, EGRESS, 6, 80, 24), PolicyEntry(precedence("deny"), 2, deny=True)),
        ],
    )
    assert node.dropped_for("from_pod", tcp(at.pod, at.remote, node.free_port(), 80)) == DENIED_BY_RULE
    assert node.dropped_for("from_pod", tcp(at.pod, at.remote, node.free_port(), 81)) == 0


DENY, LATER_DENY = precedence("deny"), precedence("deny", 1)


@pytest.mark.parametrize(
    ("specific", "group", "expected"),
    [
        # (l4 bits, precedence, deny) of the entry for the identity and of the one for its group
        ((24, ALLOW, False), (24, DENY, True), DENIED_BY_RULE),
        ((8, DENY, True), (24, ALLOW, False), DENIED_BY_RULE),
        ((0, ALLOW, False), (24, LATER_DENY, True), 0),
        ((8, ALLOW, False), (24, ALLOW, True), DENIED_BY_RULE),
        ((24, ALLOW, False), (8, ALLOW, True), 0),
        ((24, ALLOW, True), (24, ALLOW, False), DENIED_BY_RULE),
        ((24, ALLOW, False), (24, ALLOW, True), 0),
        (None, (0, ALLOW, False), 0),
        ((0, ALLOW, False), None, 0),
    ],
)
def test_precedence_then_the_narrower_port_then_the_identity_itself(
    node: Datapath,
    at: Family,
    specific: tuple[int, int, bool] | None,
    group: tuple[int, int, bool] | None,
    expected: int,
) -> None:
    entries = []
    for identity, entry in ((300, specific), (AGGREGATE_CLUSTER, group)):
        if entry is not None:
            bits, wins, deny = entry
            key = PolicyKey(identity, EGRESS, 6 if bits else 0, 80 if bits > 8 else 0, bits)
            entries.append((key, PolicyEntry(wins, 1, deny=deny)))
    pod_with(node, BOTH, entries)
    assert node.dropped_for("from_pod", tcp(at.pod, at.remote, node.free_port(), 80)) == expected


def test_an_address_that_nobody_knows_is_the_world(node: Datapath, at: Family) -> None:
    pod_with(node, BOTH, [(PolicyKey(AGGREGATE_WORLD, INGRESS, 0, 0, 0), PolicyEntry(ALLOW, 1))])
    assert node.dropped_for("from_netdev", tcp(at.outside, at.pod, node.free_port(), 80)) == 0
    assert node.dropped_for("from_netdev", tcp(at.remote, at.pod, node.free_port(), 80)) == POLICY_DENIED


def test_a_pod_that_is_not_ready_is_closed_to_all_but_its_node(node: Datapath, at: Family) -> None:
    node.endpoint(at.pod, 5, policy=0, flags=BOTH)
    node.maps.raise_epoch()
    assert node.dropped_for("from_pod", tcp(at.pod, at.remote, node.free_port(), 80)) == POLICY_DENIED
    assert node.dropped_for("from_pod", tcp(at.neighbour, at.pod, node.free_port(), 80)) == POLICY_DENIED
    assert node.dropped_for("from_netdev", tcp(at.outside, at.pod, node.free_port(), 80)) == POLICY_DENIED
    port = node.free_port()
    assert node.dropped_for("to_pod", tcp(at.node, at.pod, port, 80)) == 0
    assert node.dropped_for("from_pod", tcp(at.pod, at.node, 80, port, "SA")) == 0


def test_between_two_pods_of_a_node_both_are_asked(node: Datapath, at: Family) -> None:
    pod_with(node, FLAG_ENFORCE_EGRESS, [(PolicyKey(257, EGRESS, 6, 80, 24), PolicyEntry(ALLOW, 1))])
    assert node.dropped_for("from_pod", tcp(at.pod, at.neighbour, node.free_port(), 80)) == 0
    node.endpoint(at.neighbour, 257, policy=10, flags=FLAG_ENFORCE_INGRESS)
    node.maps.raise_epoch()
    assert node.dropped_for("from_pod", tcp(at.pod, at.neighbour, node.free_port(), 80)) == POLICY_DENIED
    node.allow(10, 256, INGRESS)
    assert node.dropped_for("from_pod", tcp(at.pod, at.neighbour, node.free_port(), 80)) == 0
    assert node.run("from_pod", tcp(at.pod, at.neighbour, node.free_port(), 443)).result == TC_ACT_SHOT
