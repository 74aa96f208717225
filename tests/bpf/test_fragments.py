"""Fragments: the others go the way of the first one, which has the ports; without it they go nowhere."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether

from services.dataplane.parts.policy.entries import EGRESS
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS
from tests.bpf.datapath import TC_ACT_UNSPEC, V4, V6, Datapath, Family, Routed, echo_message, error, frame, ip
from tests.bpf.fragmented import cut, datagram, transport
from tests.bpf.reading import whole, with_right_checksums

POLICY_DENIED, INVALID, NOT_FOUND = 133, 134, 175


@pytest.fixture
def node(routed: Routed) -> Routed:
    for at in (V4, V6):
        routed.endpoint(at.pod, 256)
        routed.endpoint(at.neighbour, 257)
        routed.who(at.remote, 300, at.other_node)
        routed.who(at.node, 1)
    routed.maps.raise_epoch()
    return routed


def passed(node: Datapath, program: str, frames: list[bytes]) -> bytes:
    """What the receiver puts together of what the program lets pass."""
    return whole([bytes(node.passes(program, each)) for each in frames])


WAYS = {
    "from_pod to a pod": ("from_pod", "pod", "neighbour"),
    "from_pod to another node": ("from_pod", "pod", "remote"),
    "from_netdev": ("from_netdev", "remote", "pod"),
    "to_pod": ("to_pod", "node", "pod"),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_others_pass_after_the_first(node: Routed, at: Family, way: str) -> None:
    program, source, destination = WAYS[way]
    packet = datagram(getattr(at, source), getattr(at, destination), node.free_port(), 53)
    together = passed(node, program, cut(packet, at))
    assert transport(together) == transport(packet)
    assert with_right_checksums(together) == together


@pytest.mark.parametrize("way", WAYS)
def test_one_without_its_first_is_dropped(node: Routed, at: Family, way: str) -> None:
    program, source, destination = WAYS[way]
    packet = datagram(getattr(at, source), getattr(at, destination), node.free_port(), 53)
    first, second, third = cut(packet, at)
    assert node.dropped_for(program, second) == NOT_FOUND
    assert node.dropped_for(program, third) == NOT_FOUND
    assert node.dropped_for(program, first) == 0
    assert node.dropped_for(program, third) == 0  # among themselves they may be in any order
    assert node.dropped_for(program, second) == 0


def test_the_first_is_that_of_the_same_datagram(node: Routed, at: Family) -> None:
    packet = datagram(at.remote, at.pod, 1000, 53)
    node.passes("from_netdev", cut(packet, at, identification=7)[0])
    strange = [
        cut(packet, at, identification=8)[1],
        cut(datagram(at.second, at.pod, 1000, 53), at, identification=7)[1],
        cut(datagram(at.remote, at.neighbour, 1000, 53), at, identification=7)[1],
    ]
    for each in strange:
        assert node.dropped_for("from_netdev", each) == NOT_FOUND
    if at is V4:  # where each fragment says its protocol
        other = frame(ip(at.remote, at.pod) / TCP(sport=1000, dport=53) / bytes(40))
        assert node.dropped_for("from_netdev", cut(other, at, identification=7)[1]) == NOT_FOUND
    assert node.dropped_for("from_netdev", cut(packet, at, identification=7)[1]) == 0


def test_fragments_of_a_denied_datagram_are_denied(node: Routed, at: Family) -> None:
    node.endpoint(at.pod, 256, policy=9, flags=FLAG_ENFORCE_EGRESS | FLAG_ENFORCE_INGRESS)
    node.allow(9, 300, EGRESS, 17, 53, 24)
    node.maps.raise_epoch()
    for each in cut(datagram(at.pod, at.remote, 1000, 54), at):
        assert node.dropped_for("from_pod", each) == POLICY_DENIED
    for each in cut(datagram(at.remote, at.pod, 54, 1000), at):
        assert node.dropped_for("from_netdev", each) == POLICY_DENIED
    for each in cut(datagram(at.pod, at.remote, 1000, 53), at):
        assert node.dropped_for("from_pod", each) == 0


def test_a_first_fragment_that_hides_tcps_flags_is_dropped(node: Routed, at: Family) -> None:
    """RFC 1858; and nothing follows it."""
    segment = frame(ip(at.pod, at.remote) / TCP(sport=1000, dport=80) / bytes(40))
    for size in (8, 16):
        first, second = cut(segment, at, [size])
        assert node.dropped_for("from_pod", first) == INVALID
        assert node.dropped_for("from_pod", second) == NOT_FOUND
    first, second = cut(segment, at, [24])
    assert node.dropped_for("from_pod", first) == 0
    assert node.dropped_for("from_pod", second) == 0


def test_a_first_fragment_without_room_for_ports_is_dropped(node: Routed, at: Family) -> None:
    first = cut(datagram(at.pod, at.remote, 1000, 53), at, [8])[0]
    for length in range(len(first) - 8, len(first)):
        assert node.dropped_for("from_pod", first[:length]) == INVALID


def test_a_fragmented_echo_passes_and_is_answered(node: Routed, at: Family) -> None:
    for source, destination, program, reply in (
        (at.pod, at.outside, "from_pod", False),
        (at.remote, at.pod, "from_netdev", False),
    ):
        message = echo_message(source, 7, reply=reply)
        packet = with_right_checksums(frame(ip(source, destination) / message / bytes(range(32))))
        together = passed(node, program, cut(packet, at))
        assert with_right_checksums(together) == together


def test_a_fragmented_error_is_dropped(node: Routed, at: Family) -> None:
    """They are short enough to need no fragments, and nobody can say what a later one is about."""
    node.passes("from_pod", datagram(at.pod, at.remote, 1000, 53))
    message = error(at.outside, at.pod, ip(at.pod, at.remote) / UDP(sport=1000, dport=53) / bytes(40), whole=True)
    frames = cut(message, at, [56])
    assert node.dropped_for("from_netdev", frames[0]) == INVALID
    assert node.dropped_for("from_netdev", frames[1]) == NOT_FOUND


@pytest.mark.parametrize("kind", ["udp", "echo", "tcp"])
def test_masqueraded_fragments_are_right_when_put_together(node: Routed, at: Family, kind: str) -> None:
    port = node.free_port()

    def packet(source: str, destination: str, sport: int, dport: int, reply: bool) -> bytes:
        if kind == "echo":
            made: Any = echo_message(source, dport if reply else sport, reply=reply) / bytes(range(32))
        elif kind == "udp":
            made = UDP(sport=sport, dport=dport) / bytes(range(40))
        else:
            made = TCP(sport=sport, dport=dport, flags="A" if reply else "S") / bytes(range(40))
        return with_right_checksums(frame(ip(source, destination) / made))

    out = passed(node, "from_pod", cut(packet(at.pod, at.outside, port, 53, False), at, [24, 8]))
    assert with_right_checksums(out) == out
    sent = Ether(out)
    assert (sent[at.ip].src, sent[at.ip].dst) == (at.node, at.outside)
    mapped = sent[at.ip].payload.id if kind == "echo" else sent[at.ip].payload.sport
    back = passed(node, "from_netdev", cut(packet(at.outside, at.node, 53, mapped, True), at, [24, 8]))
    assert with_right_checksums(back) == back
    got = Ether(back)
    assert (got[at.ip].src, got[at.ip].dst) == (at.outside, at.pod)
    assert (got[at.ip].payload.id if kind == "echo" else got[at.ip].payload.dport) == port


def test_fragments_to_a_service_are_right_when_put_together(node: Routed, at: Family) -> None:
    node.service(at.service, 53, 17, [(at.remote, 5353)])
    there = passed(node, "from_pod", cut(datagram(at.pod, at.service, 1000, 53), at))
    back = passed(node, "from_netdev", cut(datagram(at.remote, at.pod, 5353, 1000), at))
    for packet in (there, back):
        assert with_right_checksums(packet) == packet
    assert (Ether(there)[at.ip].dst, Ether(there)[UDP].dport) == (at.remote, 5353)
    assert (Ether(back)[at.ip].src, Ether(back)[UDP].sport) == (at.service, 53)


def test_what_an_earlier_datagram_said_does_not_take_the_nodes_own_elsewhere(node: Routed, at: Family) -> None:
    """Identifications repeat: what a pod got under this one is long over."""
    port = node.free_port()
    mapped = node.passes("from_pod", datagram(at.pod, at.outside, port, 53))[UDP].sport
    for each in cut(datagram(at.outside, at.node, 53, mapped), at, identification=9):
        assert node.passes("from_netdev", each)[at.ip].dst == at.pod
    for each in cut(datagram(at.outside, at.node, 53, 999), at, identification=9):
        run = node.run("from_netdev", each)
        assert (run.result, run.packet) == (TC_ACT_UNSPEC, each)


def test_a_later_fragment_may_be_of_any_length(node: Routed, at: Family) -> None:
    packet = datagram(at.pod, at.remote, 1000, 53)
    first, second, third = cut(packet, at)
    node.passes("from_pod", first)
    bare = len(third) - (len(packet) - (14 + len(bytes(at.ip()))) - 32)
    for length in range(bare, len(third)):
        assert node.dropped_for("from_pod", third[:length]) == 0
    assert node.dropped_for("from_pod", second) == 0


def test_a_later_fragment_with_options_before_it_is_found(node: Routed) -> None:
    def made(offset: int, more: int, payload: bytes) -> bytes:
        head = IPv6(src=V6.pod, dst=V6.remote) / IPv6ExtHdrDestOpt()
        return frame(head / IPv6ExtHdrFragment(nh=17, offset=offset, m=more, id=77) / payload)

    ports = struct.pack("!HHHH", 1000, 53, 24, 0)
    assert node.dropped_for("from_pod", made(0, 1, ports + bytes(8))) == 0
    assert node.dropped_for("from_pod", made(2, 0, bytes(8))) == 0


def test_in_a_full_map_the_latest_datagrams_pass_and_the_others_of_an_old_one_are_dropped(
    crowded: Routed, at: Family
) -> None:
    crowded.endpoint(at.pod, 256)
    crowded.endpoint(at.neighbour, 257)
    crowded.maps.raise_epoch()
    datagrams = [cut(datagram(at.pod, at.neighbour, 1000, 53), at) for _ in range(400)]
    for first, second, third in datagrams:
        assert [crowded.dropped_for("from_pod", each) for each in (first, second, third)] == [0, 0, 0]
    assert crowded.dropped_for("from_pod", datagrams[0][1]) == NOT_FOUND
