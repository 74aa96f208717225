"""IPv6's extension headers: walked to the transport header, or refused; and addresses that may not be in IPv6."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import Ether

from services.dataplane.parts.policy.entries import EGRESS, INGRESS
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS
from tests.bpf.datapath import (
    NODE6,
    OTHER_NODE6,
    OUTSIDE6,
    POD6,
    REMOTE6,
    SERVICE6,
    V4,
    Datapath,
    Routed,
    frame,
    tcp,
)

POLICY_DENIED, INVALID, UNKNOWN_L4, EXTENSION = 133, 134, 137, 156
BOTH = FLAG_ENFORCE_EGRESS | FLAG_ENFORCE_INGRESS
EXTENSIONS_MAX = 6  # bpf/include/parse.h
HEADERS = {
    "hop by hop": IPv6ExtHdrHopByHop(),
    "options": IPv6ExtHdrDestOpt(),
    "long options": IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(250))]),
    "unknown option": IPv6ExtHdrHopByHop(options=[HBHOptUnknown(otype=0x1E, optdata=b"abcd")]),
    "both": IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
    "an atomic fragment": IPv6ExtHdrFragment(m=0, offset=0, id=5),  # RFC 6946
}
PROGRAMS = {"from_pod": (POD6, REMOTE6), "to_pod": (REMOTE6, POD6), "from_netdev": (REMOTE6, POD6)}


@pytest.fixture
def node(datapath: Datapath) -> Datapath:
    """A pod that may speak TCP with port 443 of the other and nothing else, both ways."""
    datapath.endpoint(POD6, 256, policy=9, flags=BOTH)
    datapath.who(REMOTE6, 300, OTHER_NODE6)
    datapath.who(NODE6, 1)
    for direction in (INGRESS, EGRESS):
        datapath.allow(9, 300, direction, 6, 443, 24)
    datapath.maps.raise_epoch()
    return datapath


def with_headers(program: str, headers: Any, port: int, sport: int = 1000) -> bytes:
    source, destination = PROGRAMS[program]
    packet = IPv6(src=source, dst=destination)
    for header in headers if isinstance(headers, list) else [headers]:
        packet = packet / header.copy()
    return frame(packet / TCP(sport=sport, dport=port, flags="S") / b"hello")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("kind", HEADERS)
def test_the_ports_are_read_behind_the_headers(node: Datapath, program: str, kind: str) -> None:
    node.passes(program, with_headers(program, HEADERS[kind], 443, node.free_port()))
    assert node.dropped_for(program, with_headers(program, HEADERS[kind], 80, node.free_port())) == POLICY_DENIED


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_routing_header_is_refused(node: Datapath, program: str) -> None:
    """The address that policy sees would not be the last one."""
    for kind in (0, 2, 3, 4):
        routing = IPv6ExtHdrRouting(type=kind, addresses=["fd00::9"])
        assert node.dropped_for(program, with_headers(program, routing, 443)) == EXTENSION
        behind = [IPv6ExtHdrHopByHop(), routing]
        assert node.dropped_for(program, with_headers(program, behind, 443)) == EXTENSION


@pytest.mark.parametrize("program", PROGRAMS)
def test_more_headers_than_there_are_kinds_are_refused(node: Datapath, program: str) -> None:
    most = [IPv6ExtHdrDestOpt()] * EXTENSIONS_MAX
    assert node.dropped_for(program, with_headers(program, most, 443, node.free_port())) == 0
    assert node.dropped_for(program, with_headers(program, [*most, IPv6ExtHdrDestOpt()], 443)) == EXTENSION


@pytest.mark.parametrize("program", PROGRAMS)
def test_two_fragment_headers_are_refused(node: Datapath, program: str) -> None:
    twice = [IPv6ExtHdrFragment(m=1, id=5), IPv6ExtHdrFragment(m=1, id=6)]
    assert node.dropped_for(program, with_headers(program, twice, 443)) == EXTENSION


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_are_cut_anywhere_let_nothing_pass(node: Datapath, kind: str) -> None:
    packet = with_headers("from_pod", HEADERS[kind], 443, node.free_port())
    transport = len(packet) - 20 - 5
    for length in range(14 + 40, transport + 20):
        assert node.dropped_for("from_pod", packet[:length]) in (INVALID, EXTENSION), length
    assert node.dropped_for("from_pod", packet[: transport + 20]) == 0


def test_a_header_that_leads_out_of_the_packet_lets_nothing_pass(node: Datapath) -> None:
    packet = bytearray(with_headers("from_pod", IPv6ExtHdrDestOpt(), 443))
    for units in range(1, 256):
        packet[14 + 40 + 1] = units
        assert node.dropped_for("from_pod", bytes(packet)) == INVALID, units


def test_headers_longer_than_anybodys_let_nothing_pass(node: Datapath) -> None:
    long = [IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(250))] * 4)]
    assert node.dropped_for("from_pod", with_headers("from_pod", long, 443)) == INVALID


@pytest.mark.parametrize("following", [59, 50, 51, 4, 41, 47, 1, 2, 135, 139, 140, 255])
def test_no_other_header_follows(node: Datapath, following: int) -> None:
    """No next header, ESP, AH, tunnels, IPv4's ICMP, what is not assigned."""
    for packet in (
        IPv6(src=POD6, dst=REMOTE6, nh=following) / bytes(40),
        IPv6(src=POD6, dst=REMOTE6) / IPv6ExtHdrDestOpt(nh=following) / bytes(40),
    ):
        assert node.dropped_for("from_pod", frame(packet)) == UNKNOWN_L4


@pytest.mark.parametrize("program", ["from_pod", "to_pod", "from_overlay"])
def test_an_ipv4_address_in_an_ipv6_packet_is_refused(node: Datapath, tunnelled: Routed, program: str) -> None:
    """It would be that IPv4 address to every map."""
    node.endpoint(V4.pod, 256)
    mapped = f"::ffff:{V4.pod}"
    for source, destination in ((mapped, REMOTE6), (REMOTE6, mapped), (POD6, f"::ffff:{V4.remote}"), (mapped, mapped)):
        packet = tcp(source, destination, 1000, 443)
        expected = 147 if program == "from_overlay" else INVALID  # it looks for the tunnel key first
        assert node.dropped_for(program, packet) == expected


def test_from_the_wire_such_a_packet_reaches_nobody(node: Datapath) -> None:
    node.endpoint(V4.pod, 256)
    assert node.dropped_for("from_netdev", tcp(REMOTE6, f"::ffff:{V4.pod}", 1000, 443)) == INVALID
    assert node.dropped_for("from_netdev", tcp(f"::ffff:{V4.remote}", POD6, 1000, 443)) == INVALID


def test_translation_writes_behind_the_headers(routed: Routed) -> None:
    routed.endpoint(POD6, 256)
    routed.who(REMOTE6, 300, OTHER_NODE6)
    routed.service(SERVICE6, 80, 6, [(REMOTE6, 8080)])
    headers = IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(20))])
    there = routed.passes("from_pod", frame(IPv6(src=POD6, dst=SERVICE6) / headers / TCP(sport=99, dport=80)))
    assert (there[IPv6].dst, there[TCP].dport) == (REMOTE6, 8080)
    out = routed.passes("from_pod", frame(IPv6(src=POD6, dst=OUTSIDE6) / headers / UDP(sport=99, dport=53) / b"hello"))
    assert (out[IPv6].src, out[UDP].dport) == (NODE6, 53)
    back = IPv6(src=OUTSIDE6, dst=NODE6) / headers / UDP(sport=53, dport=out[UDP].sport) / b"world"
    assert Ether(routed.run("from_netdev", frame(back)).packet)[UDP].dport == 99
