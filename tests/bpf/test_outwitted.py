"""Ways round the datapath that were found by looking for them: each was open once."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_LSRR, IPOption_NOP, IPOption_SSRR

from services.dataplane.kernel.rtnl import LOOPBACK_INDEX
from services.dataplane.load import loader
from services.dataplane.parts.policy.entries import EGRESS, INGRESS
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS
from tests.bpf.conftest import loaded
from tests.bpf.datapath import DEVICE_INDEX, NODE, SIZES, V4, V6, Datapath, Family, Routed, error, frame, ip, tcp, udp

INVALID_SOURCE, POLICY_DENIED, INVALID, UNKNOWN_TARGET = 132, 133, 134, 150
UNKNOWN_CONNECTION, ENCAP = 163, 170
VXLAN, ELSEWHERE = 8472, 99
POLICY = 9


@pytest.fixture
def tunnel(tunnelled: Routed, at: Family) -> Routed:
    tunnelled.endpoint(at.pod, 256)
    tunnelled.who(at.remote, 300, V4.other_node)
    tunnelled.who(at.other_node, 6)
    tunnelled.who(at.node, 1)
    tunnelled.maps.raise_epoch()
    return tunnelled


@pytest.fixture
def node(routed: Routed) -> Routed:
    for each in (V4, V6):
        routed.endpoint(each.pod, 256)
        routed.who(each.remote, 300, each.other_node)
        routed.who(each.node, 1)
    routed.maps.raise_epoch()
    return routed


def test_a_pod_sends_no_tunnel_packet_in_its_nodes_name(tunnel: Routed, at: Family) -> None:
    for target in (at.other_node, at.outside2):
        assert tunnel.dropped_for("from_pod", udp(at.pod, target, tunnel.free_port(), VXLAN)) == ENCAP
        assert tunnel.dropped_for("from_pod", udp(at.pod, target, tunnel.free_port(), 53)) == 0


def test_the_tunnels_port_is_the_one_that_was_chosen() -> None:
    config = loader.DatapathConfig(node_address=NODE, device_index=1, tunnel_index=2, tunnel_port=6081, sizes=SIZES)
    assert config.constants()["TUNNEL_PORT"] == socket.htons(6081)


def test_nobody_speaks_for_a_pod_by_way_of_the_nodes_stack(tunnel: Routed, at: Family) -> None:
    tunnel.endpoint(at.neighbour, 257, interface=ELSEWHERE)
    for source in (at.remote, at.neighbour):
        assert tunnel.dropped_for("to_pod", tcp(source, at.pod, tunnel.free_port(), 80)) == INVALID_SOURCE
    assert tunnel.dropped_for("to_pod", tcp(at.node, at.pod, tunnel.free_port(), 80)) == 0


def test_nobody_speaks_for_the_node_by_another_device(node: Routed, at: Family) -> None:
    """Whom every pod lets in. With IPv4 the stack itself takes its own address for a martian; with IPv6 it does not."""
    node.endpoint(at.pod, 256, policy=POLICY, flags=FLAG_ENFORCE_INGRESS)
    node.maps.raise_epoch()
    port = node.free_port()
    call = tcp(at.node, at.pod, port, 80)
    about = ip(at.pod, at.node) / UDP(sport=port, dport=53)
    node.came_from(ELSEWHERE)
    assert node.dropped_for("to_pod", call) == INVALID_SOURCE
    assert node.dropped_for("to_pod", error(at.node, at.pod, about)) == INVALID_SOURCE
    node.came_from(0)
    assert node.dropped_for("to_pod", call) == 0
    assert node.dropped_for("to_pod", error(at.node, at.pod, about)) == 0
    node.came_from(ELSEWHERE)  # nor within the node's connection
    assert node.dropped_for("to_pod", call) == INVALID_SOURCE


def test_what_a_pod_sends_to_the_node_may_be_answered_by_way_of_another_device(node: Routed, at: Family) -> None:
    """The node's own rules may have sent it on, and turn the answer back into their own."""
    port = node.free_port()
    node.passes("from_pod", tcp(at.pod, at.node, port, 30080))
    node.came_from(ELSEWHERE)
    for _ in range(2):
        assert node.dropped_for("to_pod", tcp(at.node, at.pod, 30080, port, "SA")) == 0
        node.maps.raise_epoch()


def test_what_a_pod_sent_to_the_node_others_rules_may_send_to_a_pod_of_the_node(node: Routed, at: Family) -> None:
    """It comes in by the device where the sender was asked who it is, and both are judged. Answers go back that way."""
    node.endpoint(at.neighbour, 257, interface=ELSEWHERE)
    node.endpoint(at.pod, 256, policy=POLICY, flags=FLAG_ENFORCE_INGRESS)
    node.maps.raise_epoch()
    port = node.free_port()
    call, answer = tcp(at.neighbour, at.pod, port, 80), tcp(at.pod, at.neighbour, 80, port, "SA")
    for device, reason in ((0, INVALID_SOURCE), (DEVICE_INDEX, INVALID_SOURCE), (ELSEWHERE, POLICY_DENIED)):
        node.came_from(device)
        assert node.dropped_for("to_pod", call) == reason
    node.allow(POLICY, 257, INGRESS)
    node.endpoint(at.neighbour, 257, policy=POLICY + 1, flags=FLAG_ENFORCE_EGRESS, interface=ELSEWHERE)
    node.maps.raise_epoch()
    assert node.dropped_for("to_pod", call) == POLICY_DENIED
    node.allow(POLICY + 1, 256, EGRESS)
    node.maps.raise_epoch()
    for _ in range(2):
        assert node.dropped_for("to_pod", call) == 0
        for _ in range(2):
            went = node.run("from_pod", answer)
            assert (went.result, went.packet) == (0, bytes(answer)), "not straight to who never called this pod"
            node.maps.raise_epoch()
    node.came_from(DEVICE_INDEX)  # nor does anybody slip in
    assert node.dropped_for("to_pod", call) == INVALID_SOURCE


def test_what_a_pod_sends_to_itself_by_way_of_the_node_may_bear_the_nodes_address(node: Routed, at: Family) -> None:
    port = node.free_port()
    node.came_from(LOOPBACK_INDEX)  # the pod's own
    assert node.dropped_for("to_pod", tcp(at.node, at.pod, port, 80)) == 0
    node.came_from(ELSEWHERE)
    assert node.dropped_for("to_pod", tcp(at.node, at.pod, port, 80)) == INVALID_SOURCE


def test_nor_slips_into_its_connection_that_way(tunnel: Routed, at: Family) -> None:
    port = tunnel.free_port()
    tunnel.passes("from_pod", tcp(at.pod, at.remote, port, 80))
    assert tunnel.dropped_for("to_pod", tcp(at.remote, at.pod, 80, port, "SA")) == INVALID_SOURCE


def test_what_the_stack_brought_is_answered_by_the_stack(node: Routed, at: Family) -> None:
    port = node.free_port()
    node.passes("to_pod", tcp(at.stranger, at.pod, port, 80))
    for _ in range(2):
        assert node.run("from_pod", tcp(at.pod, at.stranger, 80, port, "SA")).result == 0
        node.maps.raise_epoch()  # rules of others may have translated it, and know it still


def test_a_call_against_a_living_connection_does_not_turn_it_round(node: Routed, at: Family) -> None:
    port = node.free_port()
    node.passes("from_pod", tcp(at.pod, at.remote, port, 80))
    node.passes("from_netdev", tcp(at.remote, at.pod, 80, port, "SA"))
    before = node.connections()
    assert node.dropped_for("from_netdev", tcp(at.remote, at.pod, 80, port, "S")) == UNKNOWN_CONNECTION
    assert {key: each.flags for key, each in node.connections().items()} == {
        key: each.flags for key, each in before.items()
    }


def test_a_fragment_with_anothers_source_says_nothing_of_its_datagram(node: Routed) -> None:
    node.endpoint(V4.neighbour, 257, interface=ELSEWHERE)
    forged = frame(IP(src=V4.neighbour, dst=V4.remote, flags="MF", id=7) / UDP(sport=1, dport=53) / bytes(16))
    assert node.dropped_for("from_pod", forged) == INVALID_SOURCE
    assert not dict(node.maps["fragments"].items())


def test_a_fragment_from_outside_that_answers_nothing_is_not_remembered(node: Routed) -> None:
    mine = frame(IP(src=V4.outside, dst=V4.node, flags="MF", id=7) / UDP(sport=53, dport=62000) / bytes(16))
    node.run("from_netdev", mine)
    assert not dict(node.maps["fragments"].items())


def test_padding_is_not_taken_for_the_rest_of_a_first_fragment(node: Routed) -> None:
    tiny = IP(src=V4.pod, dst=V4.remote, flags="MF", id=7, len=28) / TCP(sport=1000, dport=80)
    assert node.dropped_for("from_pod", frame(tiny)) == INVALID


@pytest.mark.parametrize("option", [IPOption_LSRR, IPOption_SSRR])
@pytest.mark.parametrize("before", [0, 3, 7])
def test_a_packet_that_asks_to_be_sent_by_others_is_refused(node: Routed, option: type, before: int) -> None:
    options = [*[IPOption_NOP()] * before, option(routers=["198.51.100.9"])]
    assert node.dropped_for("from_pod", tcp(V4.pod, V4.remote, 1000, 80, options=options)) == INVALID


def test_an_option_that_only_looks_like_that_inside_passes(node: Routed) -> None:
    record_route = bytes([7, 11, 4, 131, 137, 131, 137, 0, 0, 0, 0, 0])  # 131 and 137 are parts of addresses
    packet = IP(src=V4.pod, dst=V4.remote, ihl=8) / record_route / TCP(sport=1000, dport=80)
    packet[IP].proto = 6
    assert node.dropped_for("from_pod", frame(packet)) == 0


def test_a_node_without_an_address_of_ipv6_takes_no_other_for_its_own(tmp_path: Path) -> None:
    with loaded("no6", tmp_path, node_address6="") as pins:
        routed = Routed(pins)
        try:
            routed.clear()
            routed.endpoint(V4.pod, 256)
            routed.who("198.51.100.0", 1 << 24, bits=24)  # as CIDR identities will be: of no node
            routed.maps.raise_epoch()
            assert routed.dropped_for("from_pod", udp(V4.pod, V4.outside, 1000, 53)) == 0
        finally:
            routed.close()


def test_what_leaves_by_another_device_is_the_stacks(node: Routed, at: Family) -> None:
    network = "198.18.0.0/24" if at.version == 4 else "2001:db8:77::/64"
    target = "198.18.0.9" if at.version == 4 else "2001:db8:77::9"
    node.execute(f"ip -{at.version} route add {network} dev far")
    try:
        run = node.run("from_pod", sent := udp(at.pod, target, node.free_port(), 53))
        assert (run.result, run.packet) == (0, sent)
    finally:
        node.execute(f"ip -{at.version} route delete {network} dev far")


def test_a_connection_that_was_evicted_finds_its_port_again(node: Routed, at: Family) -> None:
    port = node.free_port()
    before = node.passes("from_pod", tcp(at.pod, at.outside, port, 443))[TCP].sport
    node.maps["ct_tcp"].remove_many([key for key, _ in node.maps["ct_tcp"].items()])
    assert node.passes("from_pod", tcp(at.pod, at.outside, port, 443, "A"))[TCP].sport == before


def test_a_packet_to_nowhere_leaves_no_entry(node: Routed, at: Family) -> None:
    group = "224.0.0.251" if at.version == 4 else "ff02::fb"
    assert node.dropped_for("from_pod", udp(at.pod, group, 5353, 5353)) == UNKNOWN_TARGET
    assert node.connections() == {}


def test_where_ingress_is_closed_such_a_call_is_denied_first(datapath: Datapath, at: Family) -> None:
    datapath.endpoint(at.pod, 256, policy=POLICY, flags=FLAG_ENFORCE_INGRESS)
    datapath.who(at.remote, 300, at.other_node)
    datapath.maps.raise_epoch()
    port = datapath.free_port()
    datapath.passes("from_pod", tcp(at.pod, at.remote, port, 80))
    datapath.passes("from_netdev", tcp(at.remote, at.pod, 80, port, "SA"))
    assert datapath.dropped_for("from_netdev", tcp(at.remote, at.pod, 80, port, "S")) == POLICY_DENIED
    datapath.allow(POLICY, 300, INGRESS)
    datapath.maps.raise_epoch()
    assert datapath.dropped_for("from_netdev", tcp(at.remote, at.pod, 80, port, "S")) == UNKNOWN_CONNECTION
