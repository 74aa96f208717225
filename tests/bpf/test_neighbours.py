"""Neighbour discovery of pods: whatever a pod asks for is at the gateway, and nobody speaks for another."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6MLQuery,
    ICMPv6MLReport,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether

from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS
from tests.bpf.datapath import (
    GATEWAY_MAC,
    NEIGHBOUR6,
    NODE6,
    OTHER_NODE6,
    POD6,
    REMOTE6,
    TC_ACT_OK,
    TC_ACT_REDIRECT,
    TC_ACT_UNSPEC,
    Datapath,
)
from tests.bpf.reading import with_right_checksums

INVALID_SOURCE, INVALID, UNKNOWN_TARGET, EXTENSION, FORBIDDEN = 132, 134, 150, 156, 176
ELSEWHERE = 99
MAC, GATEWAY = "02:00:00:00:00:01", GATEWAY_MAC.hex(":")
ROUTER = "fe80::1"
SOLICITED, OVERRIDE = 0x40000000, 0x20000000  # RFC 4861, 4.4


@pytest.fixture
def node(datapath: Datapath) -> Datapath:
    """Pods that no policy lets speak: neighbour discovery asks none."""
    closed = FLAG_ENFORCE_EGRESS | FLAG_ENFORCE_INGRESS
    datapath.endpoint(POD6, 256, policy=9, flags=closed)
    datapath.endpoint(NEIGHBOUR6, 257, policy=9, flags=closed, interface=ELSEWHERE)
    datapath.who(REMOTE6, 300, OTHER_NODE6)
    datapath.who(NODE6, 1)
    datapath.maps.raise_epoch()
    return datapath


def link(message: Any, source: str = POD6, destination: str = "ff02::1:ff00:1", hops: int = 255) -> bytes:
    return bytes(Ether(src=MAC, dst="33:33:ff:00:00:01") / IPv6(src=source, dst=destination, hlim=hops) / message)


def asks(target: str = ROUTER, **fields: Any) -> bytes:
    return link(ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=MAC), **fields)


@pytest.mark.parametrize("target", [ROUTER, NEIGHBOUR6, REMOTE6, NODE6, "2001:db8::99"])
@pytest.mark.parametrize("option", ["with its address", "without", "with more"])
def test_whatever_a_pod_asks_for_is_at_the_gateway(node: Datapath, target: str, option: str) -> None:
    question: Any = ICMPv6ND_NS(tgt=target)
    if option != "without":
        question /= ICMPv6NDOptSrcLLAddr(lladdr=MAC)
    if option == "with more":
        question /= ICMPv6NDOptSrcLLAddr(lladdr=MAC, len=1) / (b"\xfd\x02" + bytes(14))
    run = node.run("from_pod", link(question))
    assert run.result == TC_ACT_REDIRECT
    assert with_right_checksums(run.packet) == run.packet
    answer = Ether(run.packet)
    assert len(run.packet) == 14 + 40 + 24 + 8
    assert (answer.src, answer.dst) == (GATEWAY, MAC)
    assert (answer[IPv6].src, answer[IPv6].dst, answer[IPv6].hlim) == (target, POD6, 255)
    said = answer[ICMPv6ND_NA]
    assert (said.tgt, said.R, said.S, said.O) == (target, 0, 1, 1)
    assert said[ICMPv6NDOptDstLLAddr].lladdr == GATEWAY


def test_what_was_routed_is_no_neighbours(node: Datapath) -> None:
    for hops in (254, 64, 1, 0):
        assert node.dropped_for("from_pod", asks(hops=hops)) == INVALID


def test_a_pod_that_probes_for_its_own_address_hears_nothing(node: Datapath) -> None:
    """Or it would take the address for a double (RFC 4862, 5.4)."""
    assert node.dropped_for("from_pod", link(ICMPv6ND_NS(tgt=POD6), source="::")) == UNKNOWN_TARGET
    assert node.dropped_for("from_pod", asks(POD6)) == UNKNOWN_TARGET


def test_nobody_asks_or_answers_for_another(node: Datapath) -> None:
    for source in ("fd00:99::9", NEIGHBOUR6):
        assert node.dropped_for("from_pod", asks(source=source)) == INVALID_SOURCE
        assert node.dropped_for("from_pod", link(ICMPv6ND_NA(tgt=source), source=source)) == INVALID_SOURCE


def test_a_true_advertisement_goes_to_the_host_as_it_is(node: Datapath) -> None:
    packet = link(ICMPv6ND_NA(tgt=POD6, S=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC), destination=ROUTER)
    run = node.run("from_pod", packet)
    assert (run.result, run.packet) == (TC_ACT_OK, packet)


@pytest.mark.parametrize("target", [NEIGHBOUR6, REMOTE6, ROUTER])
def test_a_false_one_does_not(node: Datapath, target: str) -> None:
    packet = link(ICMPv6ND_NA(tgt=target, S=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC), destination=ROUTER)
    assert node.dropped_for("from_pod", packet) == INVALID_SOURCE


OF_ROUTERS_AND_LISTENERS = {
    "router solicitation": ICMPv6ND_RS(),
    "router advertisement": ICMPv6ND_RA(),
    "redirect": ICMPv6ND_Redirect(tgt=ROUTER, dst=REMOTE6),
    "listener query": ICMPv6MLQuery(),
    "listener report": ICMPv6MLReport(),
}


@pytest.mark.parametrize("kind", OF_ROUTERS_AND_LISTENERS)
def test_a_pod_is_no_router_and_listens_to_no_group(node: Datapath, kind: str) -> None:
    message = OF_ROUTERS_AND_LISTENERS[kind]
    for hops in (1, 255):
        assert node.dropped_for("from_pod", link(message, hops=hops)) == FORBIDDEN
        assert node.dropped_for("to_pod", link(message, source=ROUTER, destination=POD6, hops=hops)) == FORBIDDEN
        assert node.dropped_for("from_netdev", link(message, source=ROUTER, destination=POD6, hops=hops)) == FORBIDDEN


def test_the_host_may_look_for_its_pod(node: Datapath) -> None:
    for message in (ICMPv6ND_NS(tgt=POD6), ICMPv6ND_NA(tgt=ROUTER)):
        packet = link(message, source=ROUTER, destination=POD6)
        assert node.run("to_pod", packet).result == TC_ACT_OK


def test_nobody_on_the_wire_is_a_pods_neighbour(node: Datapath) -> None:
    for message in (ICMPv6ND_NS(tgt=POD6), ICMPv6ND_NA(tgt=REMOTE6)):
        assert node.dropped_for("from_netdev", link(message, source=REMOTE6, destination=POD6)) == FORBIDDEN


def test_the_nodes_own_discovery_is_left_to_it(node: Datapath) -> None:
    for destination in (NODE6, "ff02::1:ff00:1"):
        packet = link(ICMPv6ND_NS(tgt=NODE6), source=OTHER_NODE6, destination=destination)
        run = node.run("from_netdev", packet)
        assert (run.result, run.packet) == (TC_ACT_UNSPEC, packet)


def test_a_code_that_does_not_exist_is_dropped(node: Datapath) -> None:
    assert node.dropped_for("from_pod", link(ICMPv6ND_NS(tgt=ROUTER, code=1))) == INVALID


def test_extension_headers_and_fragments_hide_no_neighbour_discovery(node: Datapath) -> None:
    """RFC 6980."""
    question = ICMPv6ND_NS(tgt=ROUTER)
    assert node.dropped_for("from_pod", link(IPv6ExtHdrDestOpt() / question)) == INVALID
    assert node.dropped_for("from_pod", link(IPv6ExtHdrFragment(m=1, id=7) / question)) == INVALID
    assert node.dropped_for("from_pod", link(IPv6ExtHdrFragment(m=0, id=7) / question)) == INVALID


def test_a_cut_question_is_dropped(node: Datapath) -> None:
    question = asks()
    whole = 14 + 40 + 24
    for length in range(14 + 40, len(question)):
        reason = node.dropped_for("from_pod", question[:length])
        assert reason == (INVALID if length < whole else 0), length
