"""ICMP errors: translated as the packet that they quote was, inside too; refused when the quote is no such packet."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import Ether

from services.dataplane.parts.policy.entries import EGRESS
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS
from tests.bpf.datapath import (
    TC_ACT_REDIRECT,
    TC_ACT_UNSPEC,
    V4,
    V6,
    Datapath,
    Family,
    Routed,
    echo,
    error,
    frame,
    icmp,
    ip,
    tcp,
    udp,
)
from tests.bpf.reading import read, with_right_checksums

INVALID_SOURCE, INVALID, UNKNOWN_CONNECTION, UNKNOWN_TARGET = 132, 134, 163, 150
KINDS = ["udp", "tcp", "echo"]
KINDS_OF_ERRORS = {4: (3, 4, 11, 12), 6: (1, 2, 3, 4)}


@pytest.fixture
def node(routed: Routed) -> Routed:
    for at in (V4, V6):
        routed.endpoint(at.pod, 256)
        routed.endpoint(at.neighbour, 257)
        routed.who(at.remote, 300, at.other_node)
        routed.who(at.second, 301, at.other_node)
        routed.who(at.node, 1)
    routed.maps.raise_epoch()
    return routed


def made(kind: str, source: str, destination: str, sport: int, dport: int, is_reply: bool = False) -> bytes:
    if kind == "echo":
        return echo(source, destination, sport)
    if kind == "udp":
        return udp(source, destination, sport, dport)
    return tcp(source, destination, sport, dport, "A" if is_reply else "S")


def inside(run_packet: bytes) -> tuple[Any, Any]:
    """The error's IP header and the packet that it quotes, as scapy sees them."""
    found = read(run_packet)
    quoted = run_packet[found.l4 + 8 :]
    return Ether(run_packet).payload, (IP if found.version == 4 else IPv6)(quoted)


def ports(packet: Any) -> tuple[int, int]:
    """Source and destination port; of an echo its identifier and 0."""
    raw = bytes(packet.payload)
    if (isinstance(packet, IPv6) and packet.nh == 58) or (isinstance(packet, IP) and packet.proto == 1):
        return int.from_bytes(raw[4:6], "big"), 0
    return int.from_bytes(raw[:2], "big"), int.from_bytes(raw[2:4], "big")


def translated(node: Datapath, program: str, packet: bytes) -> tuple[Any, Any]:
    """Error and quote after `program`; every checksum is right, also that of the header inside."""
    assert with_right_checksums(packet) == packet
    run = node.run(program, packet)
    assert run.result == TC_ACT_REDIRECT
    assert with_right_checksums(run.packet) == run.packet
    return inside(run.packet)


# To a masqueraded pod


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", ["8 bytes", "whole"])
@pytest.mark.parametrize("which", range(4))
def test_a_masqueraded_pod_is_told_of_its_own_packet(
    node: Routed, at: Family, kind: str, length: str, which: int
) -> None:
    port = node.free_port()
    sent = node.passes("from_pod", made(kind, at.pod, at.outside, port, 53))
    message = error(at.outside2, at.node, sent[at.ip], KINDS_OF_ERRORS[at.version][which], whole=length == "whole")
    outer, quoted = translated(node, "from_netdev", message)
    assert (outer.src, outer.dst) == (at.outside2, at.pod)
    assert (quoted.src, quoted.dst, *ports(quoted)) == (at.pod, at.outside, port, 0 if kind == "echo" else 53)


def test_an_error_about_nobodys_port_is_the_nodes_own(node: Routed, at: Family) -> None:
    for about in (
        ip(at.node, at.outside) / UDP(sport=61001, dport=53),
        ip(at.node, at.outside) / TCP(sport=22, dport=53),
        ip(at.outside2, at.outside) / UDP(sport=61001, dport=53),
    ):
        packet = error(at.outside, at.node, about)
        run = node.run("from_netdev", packet)
        assert (run.result, run.packet) == (TC_ACT_UNSPEC, packet)


def test_an_error_about_a_mapping_without_its_connection_is_the_nodes_own(node: Routed, at: Family) -> None:
    sent = node.passes("from_pod", udp(at.pod, at.outside, node.free_port(), 53))
    node.maps["ct_any"].remove_many([key for key, _ in node.maps["ct_any"].items()])
    packet = error(at.outside, at.node, sent[at.ip])
    run = node.run("from_netdev", packet)
    assert (run.result, run.packet) == (TC_ACT_UNSPEC, packet)


def test_an_error_from_who_may_not_be_there_reaches_no_masqueraded_pod(node: Routed, at: Family) -> None:
    sent = node.passes("from_pod", udp(at.pod, at.outside, node.free_port(), 53))
    assert node.dropped_for("from_netdev", error(at.neighbour, at.node, sent[at.ip])) == INVALID_SOURCE


# From a masqueraded pod


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_outside_a_pods_complaint_is_the_nodes_about_what_came_to_the_node(node: Routed, at: Family, kind: str) -> None:
    port = node.free_port()
    sent = node.passes("from_pod", made(kind, at.pod, at.outside, port, 53))
    mapped = sent[at.ip].payload.sport
    reply = node.passes("from_netdev", made(kind, at.outside, at.node, 53, mapped, True))
    outer, quoted = translated(node, "from_pod", error(at.pod, at.outside, reply[at.ip]))
    assert (outer.src, outer.dst) == (at.node, at.outside)
    assert (quoted.src, quoted.dst, *ports(quoted)) == (at.outside, at.node, 53, mapped)


# About a service


@pytest.mark.parametrize("backend_port", [8080, 80])
@pytest.mark.parametrize("where", ["remote", "neighbour"])
def test_a_client_of_a_service_is_told_of_the_service(node: Routed, at: Family, where: str, backend_port: int) -> None:
    """By the backend itself, whose address the client has never seen."""
    backend = getattr(at, where)
    node.service(at.service, 80, 17, [(backend, backend_port)])
    port = node.free_port()
    there = node.passes("from_pod", udp(at.pod, at.service, port, 80))
    program = "from_netdev" if where == "remote" else "from_pod"
    outer, quoted = translated(node, program, error(backend, at.pod, there[at.ip]))
    assert (outer.src, outer.dst) == (at.service, at.pod)
    assert (quoted.src, quoted.dst, *ports(quoted)) == (at.pod, at.service, port, 80)


def test_by_a_router_on_the_way_too(node: Routed, at: Family) -> None:
    node.service(at.service, 80, 6, [(at.remote, 8080)])
    port = node.free_port()
    there = node.passes("from_pod", tcp(at.pod, at.service, port, 80))
    too_big = 3 if at is V4 else 2
    outer, quoted = translated(node, "from_netdev", error(at.outside, at.pod, there[at.ip], too_big))
    assert (outer.src, outer.dst) == (at.outside, at.pod)
    assert (quoted.src, quoted.dst, *ports(quoted)) == (at.pod, at.service, port, 80)


@pytest.mark.parametrize("where", ["remote", "neighbour"])
def test_a_backend_is_told_of_its_own_reply(node: Routed, at: Family, where: str) -> None:
    """The client complains about what came from the service; no backend knows that it is one."""
    backend = getattr(at, where)
    node.service(at.service, 53, 17, [(backend, 5353)])
    port = node.free_port()
    node.passes("from_pod", udp(at.pod, at.service, port, 53))
    program = "from_netdev" if where == "remote" else "from_pod"
    reply = node.passes(program, udp(backend, at.pod, 5353, port))
    assert reply[at.ip].src == at.service
    outer, quoted = translated(node, "from_pod", error(at.pod, at.service, reply[at.ip]))
    assert (outer.src, outer.dst) == (at.pod, backend)
    assert (quoted.src, quoted.dst, *ports(quoted)) == (backend, at.pod, 5353, port)


def test_a_complaint_about_a_service_that_was_not_called_goes_nowhere(node: Routed, at: Family) -> None:
    node.service(at.service, 53, 17, [(at.remote, 5353)])
    about = ip(at.service, at.pod) / UDP(sport=53, dport=1000)
    assert node.dropped_for("from_pod", error(at.pod, at.service, about)) == UNKNOWN_CONNECTION


# What passes without being changed


@pytest.mark.parametrize("kind", KINDS)
def test_between_pods_an_error_passes_as_it_is(node: Routed, at: Family, kind: str) -> None:
    port = node.free_port()
    for program, source, destination, back in (
        ("from_pod", at.pod, at.neighbour, "from_pod"),
        ("from_pod", at.pod, at.remote, "from_netdev"),
        ("from_netdev", at.remote, at.pod, "from_pod"),
    ):
        sent = node.passes(program, made(kind, source, destination, port, 80))
        packet = error(destination, source, sent[at.ip])
        outer, quoted = translated(node, back, packet)
        assert (outer.src, outer.dst) == (destination, source)
        assert bytes(quoted) == bytes(sent[at.ip])[: len(bytes(quoted))]


def test_a_packet_too_big_says_the_same_size_behind_translation(node: Routed) -> None:
    """Or paths of less than 1500 bytes would swallow what pods send (RFC 8201)."""
    at = V6
    sent = node.passes("from_pod", udp(at.pod, at.outside, node.free_port(), 53))
    packet = bytearray(error(at.outside2, at.node, sent[at.ip], 2))
    packet[14 + 40 + 4 : 14 + 40 + 8] = (1280).to_bytes(4, "big")
    outer, _ = translated(node, "from_netdev", with_right_checksums(bytes(packet)))
    assert int.from_bytes(bytes(outer.payload)[4:8], "big") == 1280


def test_fragmentation_needed_says_the_same_size_behind_translation(node: Routed) -> None:
    at = V4
    sent = node.passes("from_pod", udp(at.pod, at.outside, node.free_port(), 53))
    message = ICMP(type=3, code=4, nexthopmtu=1400) / bytes(sent[IP])[:28]
    outer, _ = translated(node, "from_netdev", frame(IP(src=at.outside2, dst=at.node) / message))
    assert int.from_bytes(bytes(outer.payload)[6:8], "big") == 1400


# Hostile quotes


@pytest.fixture
def spoken(node: Routed) -> Routed:
    """A pod that may do nothing but what it has done: speak from port 1000 to a remote pod and to the outside."""
    for at in (V4, V6):
        node.endpoint(at.pod, 256, policy=9, flags=FLAG_ENFORCE_EGRESS | FLAG_ENFORCE_INGRESS)
    node.allow(9, 300, EGRESS)
    node.maps.raise_epoch()
    for at in (V4, V6):
        node.passes("from_pod", udp(at.pod, at.remote, 1000, 53))
    return node


def about(at: Family, **fields: Any) -> Any:
    return ip(at.pod, at.remote, **fields) / UDP(sport=1000, dport=53) / b"12345678"


def test_a_quote_that_is_cut_is_no_quote(spoken: Routed, at: Family) -> None:
    for program, source in (("from_netdev", at.remote), ("to_pod", at.remote)):
        packet = error(source, at.pod, about(at))
        start = 14 + len(bytes(at.ip())) + 8
        for length in range(start, len(packet)):
            assert spoken.dropped_for(program, packet[:length]) == INVALID, length
        assert spoken.dropped_for(program, packet) == 0


def test_a_complaint_that_is_cut_is_none(node: Routed, at: Family) -> None:
    got = node.passes("from_netdev", udp(at.remote, at.pod, 53, 1000))
    packet = error(at.pod, at.remote, got[at.ip])
    for length in range(14 + len(bytes(at.ip())) + 8, len(packet)):
        assert node.dropped_for("from_pod", packet[:length]) == INVALID, length
    assert node.dropped_for("from_pod", packet) == 0


def test_a_quote_of_another_version_is_none(spoken: Routed, at: Family) -> None:
    other = V6 if at is V4 else V4
    for quote in (about(other), about(at, version=0), about(at, version=15)):
        packet = error(at.remote, at.pod, bytes(quote), whole=True)
        assert spoken.dropped_for("from_netdev", packet) == INVALID


def test_a_quoted_header_shorter_than_a_header_is_none(spoken: Routed) -> None:
    packet = error(V4.remote, V4.pod, about(V4, ihl=4), whole=True)
    assert spoken.dropped_for("from_netdev", packet) == INVALID


def test_a_quoted_header_longer_than_the_packet_is_none(spoken: Routed) -> None:
    packet = error(V4.remote, V4.pod, about(V4, ihl=15), whole=True)
    assert spoken.dropped_for("from_netdev", packet) == INVALID


def test_an_error_about_an_error_goes_nowhere(spoken: Routed, at: Family) -> None:
    inner = error(at.pod, at.remote, ip(at.remote, at.pod) / UDP(sport=53, dport=1000))[14:]
    assert spoken.dropped_for("from_netdev", error(at.remote, at.pod, inner, whole=True)) == UNKNOWN_CONNECTION


def test_an_error_about_a_later_fragment_goes_nowhere(spoken: Routed) -> None:
    quote = about(V4, frag=10)
    assert spoken.dropped_for("from_netdev", error(V4.remote, V4.pod, quote)) == UNKNOWN_CONNECTION


@pytest.mark.parametrize(("offset", "reason"), [(0, 0), (1, UNKNOWN_CONNECTION)])
def test_an_error_about_a_fragment_of_ipv6_arrives_if_it_names_ports(spoken: Routed, offset: int, reason: int) -> None:
    quote = IPv6(src=V6.pod, dst=V6.remote) / IPv6ExtHdrFragment(m=1, id=7, offset=offset) / UDP(sport=1000, dport=53)
    assert spoken.dropped_for("from_netdev", error(V6.remote, V6.pod, quote, whole=True)) == reason


QUOTED_EXTENSIONS = {
    "options": [IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])],
    "hop by hop": [IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(12))])],
    "three": [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrFragment(m=1, id=7)],
    "six": [IPv6ExtHdrHopByHop(), *[IPv6ExtHdrDestOpt()] * 5],
}


@pytest.mark.parametrize("headers", QUOTED_EXTENSIONS.values(), ids=QUOTED_EXTENSIONS)
@pytest.mark.parametrize("to", ["remote", "outside"])
def test_an_error_about_a_packet_with_extension_headers_arrives(node: Routed, headers: list[Any], to: str) -> None:
    """Such a packet may leave; what is too big for its path must be told, behind masquerade too."""
    at = V6
    packet = ip(at.pod, getattr(at, to))
    for header in headers:
        packet /= header
    sent = node.passes("from_pod", frame(packet / UDP(sport=1000, dport=53) / bytes(80)))
    complaint = error(at.outside2, sent[IPv6].src, sent[IPv6], 2, whole=True)
    outer, quoted = translated(node, "from_netdev", complaint)
    assert (outer.dst, quoted.src, quoted[UDP].sport) == (at.pod, at.pod, 1000)


@pytest.mark.parametrize(
    "headers", [[IPv6ExtHdrDestOpt()] * 7, [IPv6ExtHdrRouting(addresses=[])]], ids=["seven", "routing"]
)
def test_an_error_about_a_packet_with_headers_that_may_not_leave_goes_nowhere(
    spoken: Routed, headers: list[Any]
) -> None:
    packet = ip(V6.pod, V6.remote)
    for header in headers:
        packet /= header
    complaint = error(V6.remote, V6.pod, packet / UDP(sport=1000, dport=53), whole=True)
    assert spoken.dropped_for("from_netdev", complaint) == UNKNOWN_CONNECTION


def test_an_error_about_extension_headers_that_are_cut_goes_nowhere(spoken: Routed) -> None:
    packet = ip(V6.pod, V6.remote) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(sport=1000, dport=53)
    complaint = error(V6.remote, V6.pod, packet, whole=True)
    for length in range(14 + 40 + 8 + 40, len(complaint)):
        assert spoken.dropped_for("from_netdev", complaint[:length]) == INVALID, length
    assert spoken.dropped_for("from_netdev", complaint) == 0


def test_an_error_about_a_first_fragment_arrives(spoken: Routed) -> None:
    quote = about(V4, flags="MF")
    assert spoken.dropped_for("from_netdev", error(V4.remote, V4.pod, quote)) == 0


@pytest.mark.parametrize("program", ["from_netdev", "to_pod"])
def test_an_error_for_another_than_who_sent_it_goes_nowhere(spoken: Routed, at: Family, program: str) -> None:
    packet = error(at.remote, at.pod, ip(at.neighbour, at.remote) / UDP(sport=1000, dport=53))
    assert spoken.dropped_for(program, packet) == INVALID


def test_a_pod_complains_only_of_what_came_to_it(node: Routed, at: Family) -> None:
    node.passes("from_netdev", udp(at.remote, at.neighbour, 53, 1000))
    quote = ip(at.remote, at.neighbour) / UDP(sport=53, dport=1000)
    assert node.dropped_for("from_pod", error(at.pod, at.remote, quote)) == INVALID


@pytest.mark.parametrize("change", ["port", "other port", "protocol", "address"])
def test_an_error_about_another_connection_goes_nowhere(spoken: Routed, at: Family, change: str) -> None:
    quote = {
        "port": ip(at.pod, at.remote) / UDP(sport=1001, dport=53),
        "other port": ip(at.pod, at.remote) / UDP(sport=1000, dport=54),
        "protocol": ip(at.pod, at.remote) / TCP(sport=1000, dport=53),
        "address": ip(at.pod, at.second) / UDP(sport=1000, dport=53),
    }[change]
    for program in ("from_netdev", "to_pod"):
        assert spoken.dropped_for(program, error(at.remote, at.pod, quote)) == UNKNOWN_CONNECTION


def test_what_is_no_error_may_quote_what_it_likes(spoken: Routed, at: Family) -> None:
    """A message of another type is judged by policy alone."""
    packet = icmp(at.remote, at.pod, at.question)
    assert spoken.dropped_for("from_netdev", packet) == 133


def test_nobody_complains_to_nowhere(node: Routed, at: Family) -> None:
    """The connection is known, and its other end's address leads nowhere now."""
    node.passes("from_netdev", udp(at.outside, at.pod, 53, 1000))
    quote = ip(at.outside, at.pod) / UDP(sport=53, dport=1000)
    node.who(at.outside, 3, at.node)
    assert node.dropped_for("from_pod", error(at.pod, at.outside, quote)) == 151
