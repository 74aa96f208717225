"""Who tries to get past: each of these packets looks like part of something that is allowed, and is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from scapy.layers.inet import TCP, UDP

from services.dataplane.parts.policy.entries import AGGREGATE_CLUSTER, EGRESS, INGRESS
from services.dataplane.shapes import layouts
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS
from tests.bpf.datapath import TC_ACT_UNSPEC, V4, V6, Datapath, Family, Routed, echo, error, icmp, ip, sctp, tcp, udp

INVALID_SOURCE, POLICY_DENIED, INVALID, NO_MAPPING, NAT_PROTOCOL, ENCAP = 132, 133, 134, 167, 168, 170
CLOSED = FLAG_ENFORCE_EGRESS | FLAG_ENFORCE_INGRESS
POLICY = 9
TUNNEL_PORT = 8472  # of `tunnelled`


@pytest.fixture
def node(datapath: Datapath) -> Datapath:
    """A pod that may do nothing, an open neighbour, and a pod of another node."""
    for at in (V4, V6):
        datapath.endpoint(at.pod, 256, policy=POLICY, flags=CLOSED)
        datapath.endpoint(at.neighbour, 257)
        datapath.who(at.remote, 300, at.other_node)
        datapath.who(at.node, 1)
    datapath.maps.raise_epoch()
    return datapath


def test_a_denied_call_to_a_service_opens_nothing_to_who_bears_its_address(node: Datapath, at: Family) -> None:
    node.service(at.service, 80, 6, [(at.remote, 8080)])
    port = node.free_port()
    assert node.dropped_for("from_pod", tcp(at.pod, at.service, port, 80)) == POLICY_DENIED
    for flags in ("S", "SA", "A"):
        assert node.dropped_for("from_netdev", tcp(at.service, at.pod, 80, port, flags)) == POLICY_DENIED
    assert not dict(node.maps["choices"].items())  # nor does it fill the map


def test_an_allowed_call_to_a_service_opens_nothing_to_who_bears_its_address(node: Datapath, at: Family) -> None:
    node.service(at.service, 80, 6, [(at.remote, 8080)])
    node.allow(POLICY, 300, EGRESS)
    port = node.free_port()
    assert node.dropped_for("from_pod", tcp(at.pod, at.service, port, 80)) == 0
    assert node.dropped_for("from_netdev", tcp(at.service, at.pod, 80, port, "SA")) == POLICY_DENIED


@pytest.mark.parametrize("program", ["native", "tunnel"])
def test_nobody_slips_into_a_connection_of_two_pods_of_the_node(
    node: Datapath, at: Family, tunnelled: Routed, program: str
) -> None:
    on = node if program == "native" else tunnelled
    on.endpoint(at.pod, 256)
    on.endpoint(at.neighbour, 257)
    on.maps.raise_epoch()
    port = on.free_port()
    assert on.dropped_for("from_pod", tcp(at.neighbour, at.pod, port, 80)) == 0
    assert on.dropped_for("from_pod", tcp(at.pod, at.neighbour, 80, port, "SA")) == 0
    assert on.dropped_for("from_netdev", tcp(at.neighbour, at.pod, port, 80, "A")) == INVALID_SOURCE
    assert on.dropped_for("from_netdev", tcp(at.pod, at.neighbour, 80, port, "A")) == INVALID_SOURCE
    assert on.dropped_for("from_pod", tcp(at.neighbour, at.pod, port, 80, "A")) == 0


def test_nobody_slips_into_a_connection_through_the_tunnel(tunnelled: Routed, at: Family) -> None:
    tunnelled.endpoint(at.pod, 256)
    tunnelled.who(at.remote, 300, at.other_node)
    port = tunnelled.free_port()
    assert tunnelled.dropped_for("from_pod", tcp(at.pod, at.remote, port, 80)) == 0
    assert tunnelled.dropped_for("from_netdev", tcp(at.remote, at.pod, 80, port, "SA")) == INVALID_SOURCE


def test_a_node_lets_nobody_into_its_tunnel(tunnelled: Routed, at: Family) -> None:
    """Its own outer address would vouch for whatever address the stranger bears."""
    tunnelled.who(at.remote, 300, at.other_node)
    assert tunnelled.dropped_for("from_netdev", tcp(at.outside, at.remote, 1000, 80)) == ENCAP


def test_a_pod_sends_no_tunnels_packets_and_answers_who_calls_from_that_port(tunnelled: Routed, at: Family) -> None:
    """What it begins would bear the node's address, which others believe there; what answers bears its own."""
    tunnelled.endpoint(at.pod, 256)
    tunnelled.maps.raise_epoch()
    assert tunnelled.dropped_for("from_pod", udp(at.pod, at.stranger, 1053, TUNNEL_PORT)) == ENCAP
    assert tunnelled.dropped_for("from_netdev", udp(at.stranger, at.pod, TUNNEL_PORT, 53)) == 0
    assert tunnelled.dropped_for("from_pod", udp(at.pod, at.stranger, 53, TUNNEL_PORT)) == 0


def test_an_unused_address_of_the_nodes_own_block_is_not_believed_from_the_wire(node: Datapath, at: Family) -> None:
    node.who(at.block, 3, at.node, bits=at.block_bits)
    node.allow(POLICY, AGGREGATE_CLUSTER, INGRESS)
    assert node.dropped_for("from_netdev", tcp(at.nobody, at.pod, 1000, 80)) == INVALID_SOURCE


def test_a_pod_may_not_complain_about_others_connections(node: Datapath, at: Family) -> None:
    node.endpoint(at.pod, 256)
    node.endpoint(at.nobody, 258, policy=1, flags=CLOSED)
    node.maps.raise_epoch()
    port = node.free_port()
    assert node.dropped_for("from_pod", udp(at.pod, at.neighbour, port, 53)) == 0
    about = ip(at.pod, at.neighbour) / UDP(sport=port, dport=53) / b"12345678"
    for sender, expected in ((at.nobody, INVALID), (at.neighbour, 0)):
        assert node.dropped_for("from_pod", error(sender, at.pod, about)) == expected


def test_nobody_redirects_a_pod(node: Datapath) -> None:
    """In IPv6 a redirect belongs to neighbour discovery."""
    at = V4
    node.allow(POLICY, 300, EGRESS)
    port = node.free_port()
    assert node.dropped_for("from_pod", udp(at.pod, at.remote, port, 53)) == 0
    about = ip(at.pod, at.remote) / UDP(sport=port, dport=53) / b"12345678"
    assert node.dropped_for("from_netdev", error(at.outside, at.pod, about, 5)) == INVALID


@pytest.mark.parametrize("kind", ["udp", "tcp", "echo", "question"])
@pytest.mark.parametrize("is_called", [False, True])
def test_an_error_after_a_change_passes_while_the_connection_that_it_is_about_is_allowed(
    node: Datapath, at: Family, kind: str, is_called: bool
) -> None:
    """The first packet after any change in the cluster may be the router's: paths would swallow what is too big."""
    client, server = (at.remote, at.pod) if is_called else (at.pod, at.remote)
    message = {
        "udp": (17, 53, udp(client, server, 1000, 53)),
        "tcp": (6, 53, tcp(client, server, 1000, 53)),
        "echo": (at.icmp, at.echo + 1, echo(client, server, 7)),
        "question": (at.icmp, at.question + 1, icmp(client, server, at.question)),
    }
    protocol, port, call = message[kind]
    node.allow(POLICY, 300, INGRESS if is_called else EGRESS, protocol, port, 24)
    assert node.dropped_for("from_netdev" if is_called else "from_pod", call) == 0
    complain = ("from_pod" if is_called else "from_netdev", error(server, client, call[14:]))
    before = node.connections()
    node.maps.raise_epoch()
    assert node.dropped_for(*complain) == 0
    node.maps["policy"].remove_many([key for key, _ in node.maps["policy"].items()])
    assert node.dropped_for(*complain) == POLICY_DENIED
    assert node.connections() == before


@pytest.mark.parametrize("kind", ["udp", "echo"])
def test_nor_does_an_answers_error_wait_after_a_change(node: Datapath, at: Family, kind: str) -> None:
    """About what the called end has sent: the connection is judged in its own direction."""
    protocol, port = (17, 53) if kind == "udp" else (at.icmp, at.echo + 1)
    node.allow(POLICY, 300, EGRESS, protocol, port, 24)
    if kind == "udp":
        call, answer = udp(at.pod, at.remote, 1000, 53), udp(at.remote, at.pod, 53, 1000)
    else:
        call, answer = echo(at.pod, at.remote, 7), echo(at.remote, at.pod, 7, reply=True)
    assert node.dropped_for("from_pod", call) == node.dropped_for("from_netdev", answer) == 0
    node.maps.raise_epoch()
    assert node.dropped_for("from_pod", error(at.pod, at.remote, answer[14:])) == 0


def test_who_was_asked_may_answer_but_not_ask(node: Datapath, at: Family) -> None:
    node.allow(POLICY, 300, EGRESS, at.icmp, at.echo + 1, 24)
    assert node.dropped_for("from_pod", echo(at.pod, at.remote, 7)) == 0
    assert node.dropped_for("from_netdev", echo(at.remote, at.pod, 7, reply=True)) == 0
    assert node.dropped_for("from_netdev", echo(at.remote, at.pod, 7)) == POLICY_DENIED


def test_an_answer_that_nobody_asked_for_lets_no_question_through(node: Datapath, at: Family) -> None:
    node.allow(POLICY, 300, EGRESS, at.icmp, at.reply + 1, 24)
    assert node.dropped_for("from_pod", echo(at.pod, at.remote, 7)) == POLICY_DENIED
    assert node.dropped_for("from_pod", echo(at.pod, at.remote, 7, reply=True)) == 0
    assert node.dropped_for("from_pod", echo(at.pod, at.remote, 7)) == POLICY_DENIED
    assert node.dropped_for("from_netdev", echo(at.remote, at.pod, 7)) == POLICY_DENIED


def test_a_stray_segment_from_outside_opens_no_way_out(node: Datapath, at: Family) -> None:
    node.endpoint(at.pod, 256, policy=POLICY, flags=FLAG_ENFORCE_EGRESS)
    node.maps.raise_epoch()
    assert node.dropped_for("from_pod", tcp(at.pod, at.remote, 1000, 80)) == POLICY_DENIED
    assert node.dropped_for("from_netdev", tcp(at.remote, at.pod, 80, 1000, "A")) == 0
    assert node.dropped_for("from_pod", tcp(at.pod, at.remote, 1000, 80)) == POLICY_DENIED


def test_a_mapping_without_its_connection_lets_nobody_in(routed: Routed, at: Family) -> None:
    routed.endpoint(at.pod, 256)
    routed.who(at.node, 1)
    port = routed.free_port()
    mapped = routed.passes("from_pod", udp(at.pod, at.outside, port, 53))[UDP].sport
    connections = routed.maps["ct_any"]
    connections.remove_many([key for key, _ in connections.items()])
    stray = udp(at.outside, at.node, 53, mapped)
    run = routed.run("from_netdev", stray)
    assert (run.result, run.packet) == (TC_ACT_UNSPEC, stray)  # the node's own stack answers, as it does any stranger
    assert not routed.connections()
    assert routed.passes("from_pod", udp(at.pod, at.outside, port, 53))[at.ip].src == at.node


@pytest.mark.parametrize("make", [sctp, partial(tcp, flags="SA"), partial(tcp, flags="S")], ids=["sctp", "SA", "S"])
def test_a_mapping_without_its_connection_takes_nothing_from_the_node(
    routed: Routed, at: Family, make: Callable[..., bytes]
) -> None:
    """SCTP keeps its port, which may be one of the node's own; nothing removes a mapping until its port is wanted."""
    routed.endpoint(at.pod, 256)
    routed.who(at.node, 1)
    packet = make(at.pod, at.outside, 36412, 36412)
    mapped = int.from_bytes(bytes(routed.passes("from_pod", packet)[at.ip].payload)[:2], "big")
    for name in layouts.CT_MAPS:
        routed.maps[name].remove_many([key for key, _ in routed.maps[name].items()])
    own = make(at.outside, at.node, 36412, mapped)
    run = routed.run("from_netdev", own)
    assert (run.result, run.packet) == (TC_ACT_UNSPEC, own)


def test_what_cannot_be_masqueraded_does_not_leave(routed: Routed, at: Family) -> None:
    routed.endpoint(at.pod, 256)
    assert routed.dropped_for("from_pod", icmp(at.pod, at.outside, at.question)) == NAT_PROTOCOL


def test_nobody_outside_begins_a_connection_by_a_masqueraded_port(routed: Routed, at: Family) -> None:
    """The pod would answer in a connection that is not masqueraded, with its own address."""
    routed.endpoint(at.pod, 256)
    routed.who(at.node, 1)
    port = routed.free_port()
    mapped = routed.passes("from_pod", tcp(at.pod, at.outside, port, 443))[TCP].sport
    assert routed.dropped_for("from_netdev", tcp(at.outside, at.node, 443, mapped, "S")) == NO_MAPPING
    assert routed.passes("from_netdev", tcp(at.outside, at.node, 443, mapped, "SA"))[TCP].dport == port
    assert routed.dropped_for("from_netdev", tcp(at.outside, at.node, 443, mapped, "S")) == NO_MAPPING
    assert routed.passes("from_pod", tcp(at.pod, at.outside, port, 443, "A"))[at.ip].src == at.node
