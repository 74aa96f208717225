"""Connections in the kernel: judged when new, kept, judged again after a change, forgotten; and ICMP about them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from scapy.layers.inet import TCP, UDP

from services.dataplane.parts.policy.entries import EGRESS, INGRESS
from services.dataplane.shapes.layouts import (
    CT_FLAGS,
    FLAG_ENFORCE_EGRESS,
    FLAG_ENFORCE_INGRESS,
    TICK_NS,
    Connection,
    ConnectionKey,
)
from tests.bpf.datapath import V4, V6, Datapath, Family, echo, echo_message, error, icmp, ip, tcp, udp

POLICY_DENIED, INVALID, UNKNOWN_CONNECTION = 133, 134, 163
CLIENT_POLICY, SERVER_POLICY = 9, 10
TICKS_TCP, TICKS_SYN, TICKS_CLOSING = (int(seconds * 1e9 / TICK_NS) for seconds in (8000, 60, 10))
TICKS_WEEK = int(7 * 86_400 * 1e9 / TICK_NS)


@pytest.fixture
def pair(datapath: Datapath) -> Datapath:
    """A client that may call the server at port 80 and nothing else; a server that may call nobody."""
    for at in (V4, V6):
        datapath.endpoint(at.pod, 256, policy=CLIENT_POLICY, flags=FLAG_ENFORCE_EGRESS | FLAG_ENFORCE_INGRESS)
        datapath.endpoint(at.neighbour, 257, policy=SERVER_POLICY, flags=FLAG_ENFORCE_EGRESS | FLAG_ENFORCE_INGRESS)
        datapath.who(at.remote, 300, at.other_node)
        datapath.who(at.node, 1)
    datapath.allow(CLIENT_POLICY, 257, EGRESS, 6, 80, 24)
    datapath.allow(SERVER_POLICY, 256, INGRESS)
    datapath.maps.raise_epoch()
    return datapath


def forbid(datapath: Datapath) -> None:
    """Nobody may call, or be called, where that is enforced."""
    datapath.maps["policy"].remove_many([key for key, _ in datapath.maps["policy"].items()])


def only(datapath: Datapath) -> tuple[ConnectionKey, Connection]:
    [found] = datapath.connections().items()
    return found


def flags(connection: Connection) -> set[str]:
    return {name for bit, name in CT_FLAGS.items() if connection.flags & bit}


def open_connection(datapath: Datapath, at: Family) -> int:
    """A handshake from the client to the server; returns the client's port."""
    port = datapath.free_port()
    assert datapath.dropped_for("from_pod", tcp(at.pod, at.neighbour, port, 80, "S")) == 0
    assert datapath.dropped_for("from_pod", tcp(at.neighbour, at.pod, 80, port, "SA")) == 0
    assert datapath.dropped_for("from_pod", tcp(at.pod, at.neighbour, port, 80, "A")) == 0
    return port


def test_one_entry_serves_both_directions(pair: Datapath, at: Family) -> None:
    port = open_connection(pair, at)
    key, connection = only(pair)
    assert {(key.low, key.low_port), (key.high, key.high_port)} == {(at.pod, port), (at.neighbour, 80)}
    assert flags(connection) - {"origin-low"} == {"replied", "both-here"}
    origin = (key.low, key.low_port) if "origin-low" in flags(connection) else (key.high, key.high_port)
    assert origin == (at.pod, port)


@pytest.mark.parametrize("ports", [(1000, 80), (80, 1000)])
@pytest.mark.parametrize("turned", [False, True])
def test_the_entry_knows_who_began_whichever_end_is_low(
    datapath: Datapath, at: Family, ports: tuple[int, int], turned: bool
) -> None:
    one, other = (at.neighbour, at.pod) if turned else (at.pod, at.neighbour)
    datapath.endpoint(at.pod, 256)
    datapath.endpoint(at.neighbour, 257)
    datapath.passes("from_pod", tcp(one, other, ports[0], ports[1]))
    assert "replied" not in flags(only(datapath)[1])
    datapath.passes("from_pod", tcp(other, one, ports[1], ports[0], "SA"))
    assert "replied" in flags(only(datapath)[1])


def test_a_reply_passes_where_its_sender_might_not_call(pair: Datapath, at: Family) -> None:
    open_connection(pair, at)
    assert pair.dropped_for("from_pod", tcp(at.neighbour, at.pod, pair.free_port(), 80)) == POLICY_DENIED


def test_a_denied_packet_leaves_no_connection(pair: Datapath, at: Family) -> None:
    port = pair.free_port()
    assert pair.dropped_for("from_pod", tcp(at.pod, at.neighbour, port, 81)) == POLICY_DENIED
    assert pair.connections() == {}
    assert pair.dropped_for("from_pod", tcp(at.neighbour, at.pod, 81, port, "SA")) == POLICY_DENIED


def test_what_was_judged_is_not_judged_again_until_something_changed(pair: Datapath, at: Family) -> None:
    port = open_connection(pair, at)
    forbid(pair)
    assert pair.dropped_for("from_pod", tcp(at.pod, at.neighbour, port, 80, "A")) == 0
    assert pair.dropped_for("from_pod", tcp(at.neighbour, at.pod, 80, port, "A")) == 0


@pytest.mark.parametrize("first", ["origin", "reply"])
def test_after_a_change_a_connection_that_is_denied_now_ends_in_both_directions(
    pair: Datapath, at: Family, first: str
) -> None:
    port = open_connection(pair, at)
    forbid(pair)
    pair.maps.raise_epoch()
    packets = {"origin": tcp(at.pod, at.neighbour, port, 80, "A"), "reply": tcp(at.neighbour, at.pod, 80, port, "A")}
    kept = pair.connections()
    for packet in (packets.pop(first), *packets.values()):
        assert pair.dropped_for("from_pod", packet) == POLICY_DENIED
        assert pair.connections() == kept  # it ages


@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("denied", ["egress", "ingress"])
@pytest.mark.parametrize("place", ["neighbour", "remote"])
def test_a_denied_connection_is_not_begun_by_the_answers_of_an_end_that_may_speak(
    datapath: Datapath, at: Family, kind: str, denied: str, place: str
) -> None:
    """The pod's policy has the one direction only, and of the other end nothing is asked."""
    other = getattr(at, place)
    if place == "neighbour":
        datapath.endpoint(other, 300)
    is_client = denied == "egress"
    enforced = FLAG_ENFORCE_EGRESS if is_client else FLAG_ENFORCE_INGRESS
    datapath.endpoint(at.pod, 257, policy=SERVER_POLICY, flags=enforced)
    datapath.who(at.remote, 300, at.other_node)
    datapath.allow(SERVER_POLICY, 300, EGRESS if is_client else INGRESS)
    datapath.maps.raise_epoch()
    port = datapath.free_port()
    client, server = (at.pod, other) if is_client else (other, at.pod)

    def dropped(sender: str, flags: str) -> int:
        ends = (client, server, port, 80) if sender == client else (server, client, 80, port)
        program = "from_netdev" if sender == at.remote else "from_pod"
        return datapath.dropped_for(program, tcp(*ends, flags) if kind == "tcp" else udp(*ends))

    assert [dropped(client, "S"), dropped(server, "SA"), dropped(client, "A")] == [0, 0, 0]
    forbid(datapath)
    datapath.maps.raise_epoch()
    assert [dropped(sender, "A") for sender in (client, server, client)] == [POLICY_DENIED] * 3
    datapath.maps.raise_epoch()
    assert [dropped(sender, "A") for sender in (server, client, server)] == [POLICY_DENIED] * 3
    datapath.allow(SERVER_POLICY, 300, EGRESS if is_client else INGRESS)
    datapath.maps.raise_epoch()
    assert [dropped(client, "A"), dropped(server, "A")] == [0, 0]


@pytest.mark.parametrize("first", ["origin", "reply"])
def test_after_a_change_a_connection_that_is_still_allowed_goes_on(pair: Datapath, at: Family, first: str) -> None:
    port = open_connection(pair, at)
    pair.maps.raise_epoch()
    packets = {"origin": tcp(at.pod, at.neighbour, port, 80, "A"), "reply": tcp(at.neighbour, at.pod, 80, port, "A")}
    assert pair.dropped_for("from_pod", packets.pop(first)) == 0
    assert pair.dropped_for("from_pod", *packets.values()) == 0
    assert "replied" in flags(only(pair)[1])


def test_a_change_reaches_connections_with_other_nodes_in_both_directions(pair: Datapath, at: Family) -> None:
    pair.allow(CLIENT_POLICY, 300, EGRESS, 17, 53, 24)
    port = pair.free_port()
    pair.passes("from_pod", udp(at.pod, at.remote, port, 53))
    pair.passes("from_netdev", udp(at.remote, at.pod, 53, port))
    forbid(pair)
    pair.maps.raise_epoch()
    assert pair.dropped_for("from_netdev", udp(at.remote, at.pod, 53, port)) == POLICY_DENIED
    assert pair.dropped_for("from_pod", udp(at.pod, at.remote, port, 53)) == POLICY_DENIED


def test_an_answered_connection_lives_longest(pair: Datapath, at: Family) -> None:
    port = pair.free_port()
    pair.passes("from_pod", tcp(at.pod, at.neighbour, port, 80, "S"))
    began = only(pair)[1].expires
    pair.passes("from_pod", tcp(at.neighbour, at.pod, 80, port, "SA"))
    assert only(pair)[1].expires - began >= TICKS_TCP - TICKS_SYN - 1


@pytest.mark.parametrize(
    ("packets", "expected"),
    [
        ([("client", "FA")], {"origin-fin"}),
        ([("server", "FA")], {"reply-fin"}),
        ([("client", "FA"), ("server", "FA")], {"origin-fin", "reply-fin"}),
        ([("server", "FA"), ("client", "FA"), ("server", "A")], {"origin-fin", "reply-fin"}),
        ([("client", "R")], {"reset"}),
        ([("server", "RA")], {"reset"}),
    ],
)
def test_the_end_of_a_connection_is_noticed(
    pair: Datapath, at: Family, packets: list[tuple[str, str]], expected: set[str]
) -> None:
    port = open_connection(pair, at)
    alive = only(pair)[1].expires
    for sender, what in packets:
        ends = (at.pod, at.neighbour, port, 80) if sender == "client" else (at.neighbour, at.pod, 80, port)
        pair.passes("from_pod", tcp(*ends, what))
    connection = only(pair)[1]
    assert flags(connection) & {"origin-fin", "reply-fin", "reset"} == expected
    is_over = "reset" in expected or len(expected) == 2
    assert (alive - connection.expires >= TICKS_TCP - TICKS_CLOSING - 60) == is_over


@pytest.mark.parametrize(
    ("in_ticks", "is_alive"),
    [(-9, False), (9, True), (TICKS_WEEK - 9, True), (TICKS_WEEK + 9, False), (1 << 31, False), (-1 << 31, False)],
)
def test_an_entry_that_expires_later_than_any_connection_can_is_as_good_as_absent(
    pair: Datapath, at: Family, in_ticks: int, is_alive: bool
) -> None:
    """No program has made it: its ends' packets are judged as what they are, and what comes takes its place."""
    port = open_connection(pair, at)
    [(key, value)] = pair.maps["ct_tcp"].items()

    def verdict(packet: bytes) -> int:
        expires = (time.clock_gettime_ns(time.CLOCK_MONOTONIC) // TICK_NS + in_ticks) % (1 << 32)
        pair.maps["ct_tcp"].set(key, expires.to_bytes(4, "little") + value[4:])
        return pair.dropped_for("from_pod", packet)

    answer = tcp(at.neighbour, at.pod, 80, port, "A")
    complaint = error(at.neighbour, at.pod, ip(at.pod, at.neighbour) / TCP(sport=port, dport=80))
    assert verdict(answer) == (0 if is_alive else POLICY_DENIED)
    assert verdict(complaint) == (0 if is_alive else UNKNOWN_CONNECTION)
    assert verdict(tcp(at.pod, at.neighbour, port, 80, "S")) == 0
    assert pair.dropped_for("from_pod", answer) == 0


@pytest.mark.parametrize("ending", ["FA", "R"])
def test_the_ports_of_a_closing_connection_used_again_are_a_new_connection(
    pair: Datapath, at: Family, ending: str
) -> None:
    port = open_connection(pair, at)
    pair.passes("from_pod", tcp(at.pod, at.neighbour, port, 80, ending))
    forbid(pair)  # without a raised epoch: only a new connection is judged
    if ending == "FA":
        assert pair.dropped_for("from_pod", tcp(at.pod, at.neighbour, port, 80, "A")) == 0
    assert pair.dropped_for("from_pod", tcp(at.pod, at.neighbour, port, 80, "S")) == POLICY_DENIED


def across(
    pair: Datapath, at: Family, outside_begins: bool
) -> tuple[bytes, Callable[[str], bytes], Callable[[str], bytes]]:
    """An answered connection of a pod with one of another node, and what makes the packets of either."""
    port = pair.free_port()
    pair.endpoint(at.pod, 256)  # without a policy
    ends = (80, port) if outside_begins else (port, 80)

    def from_pod(what: str) -> bytes:
        return tcp(at.pod, at.remote, *ends, what)

    def from_wire(what: str) -> bytes:
        return tcp(at.remote, at.pod, ends[1], ends[0], what)

    if outside_begins:
        pair.passes("from_netdev", from_wire("S"))
        pair.passes("from_pod", from_pod("SA"))
        pair.passes("from_netdev", from_wire("A"))
    else:
        pair.passes("from_pod", from_pod("S"))
        pair.passes("from_netdev", from_wire("SA"))
        pair.passes("from_pod", from_pod("A"))
    [(key, _)] = pair.maps["ct_tcp"].items()
    return key, from_pod, from_wire


@pytest.mark.parametrize("outside_begins", [False, True])
def test_a_reset_that_anybody_may_have_sent_ends_nothing(pair: Datapath, at: Family, outside_begins: bool) -> None:
    """It passes: the pod knows whether its sequence number is right (RFC 5961), and falls silent if it is."""
    _, from_pod, from_wire = across(pair, at, outside_begins)
    alive = only(pair)[1].expires
    pair.passes("from_netdev", from_wire("R"))
    assert "reset" in flags(only(pair)[1])
    assert only(pair)[1].expires - alive in (0, 1, 2)
    if not outside_begins:
        assert pair.dropped_for("from_netdev", from_wire("S")) == UNKNOWN_CONNECTION  # nor is it turned round
    pair.passes("from_pod", from_pod("A"))
    assert "reset" not in flags(only(pair)[1])


def test_a_reset_counts_from_the_pod_itself_and_before_an_answer_and_after_the_pods_end(
    pair: Datapath, at: Family
) -> None:
    def is_short() -> bool:
        left = only(pair)[1].expires - time.clock_gettime_ns(time.CLOCK_MONOTONIC) // TICK_NS
        return left <= TICKS_CLOSING + 1

    key, from_pod, from_wire = across(pair, at, outside_begins=False)
    pair.passes("from_pod", from_pod("R"))
    assert is_short()
    pair.passes("from_netdev", from_wire("A"))  # the other end goes on, until it hears of that
    assert not is_short() and "reset" not in flags(only(pair)[1])
    pair.passes("from_pod", from_pod("FA"))
    pair.passes("from_netdev", from_wire("R"))
    assert is_short()
    pair.maps["ct_tcp"].remove_many([key])
    pair.passes("from_pod", from_pod("S"))
    pair.passes("from_netdev", from_wire("RA"))  # nobody listens there
    assert is_short()


def test_a_new_connection_on_the_ports_of_a_closing_one_begins_anew(pair: Datapath, at: Family) -> None:
    port = open_connection(pair, at)
    pair.passes("from_pod", tcp(at.pod, at.neighbour, port, 80, "R"))
    pair.passes("from_pod", tcp(at.pod, at.neighbour, port, 80, "S"))
    assert flags(only(pair)[1]) - {"origin-low"} == {"both-here"}


def test_an_expired_entry_is_as_good_as_absent(pair: Datapath, at: Family) -> None:
    port = open_connection(pair, at)
    [(key, value)] = pair.maps["ct_tcp"].items()
    pair.maps["ct_tcp"].set(key, bytes(4) + value[4:])
    assert pair.dropped_for("from_pod", tcp(at.neighbour, at.pod, 80, port, "A")) == POLICY_DENIED
    assert pair.dropped_for("from_pod", tcp(at.pod, at.neighbour, port, 80, "A")) == 0


# ICMP


def test_an_echo_opens_the_way_for_its_answer_alone(pair: Datapath, at: Family) -> None:
    pair.allow(CLIENT_POLICY, 300, EGRESS, at.icmp, at.echo + 1, 24)
    assert pair.dropped_for("from_pod", echo(at.pod, at.remote, 7)) == 0
    assert pair.dropped_for("from_netdev", echo(at.remote, at.pod, 7, reply=True)) == 0
    assert pair.dropped_for("from_netdev", echo(at.remote, at.pod, 8, reply=True)) == POLICY_DENIED
    assert pair.dropped_for("from_pod", echo(at.pod, at.outside, 7)) == POLICY_DENIED


def test_an_answered_echo_survives_a_change_that_still_allows_it(pair: Datapath, at: Family) -> None:
    pair.allow(CLIENT_POLICY, 300, EGRESS, at.icmp, at.echo + 1, 24)
    pair.passes("from_pod", echo(at.pod, at.remote, 7))
    pair.maps.raise_epoch()
    assert pair.dropped_for("from_netdev", echo(at.remote, at.pod, 7, reply=True)) == 0


@pytest.mark.parametrize(("one", "other"), [(0, 0), (7, 7), (7, 8), (8, 7), (0, 65535), (65535, 0), (7, 65528)])
def test_two_pods_ask_each_other_at_once_whatever_their_identifiers(
    datapath: Datapath, at: Family, one: int, other: int
) -> None:
    datapath.endpoint(at.pod, 256)
    datapath.endpoint(at.neighbour, 257)
    for source, destination, number in ((at.pod, at.neighbour, one), (at.neighbour, at.pod, other)):
        assert datapath.dropped_for("from_pod", echo(source, destination, number)) == 0
        assert datapath.dropped_for("from_pod", echo(destination, source, number, reply=True)) == 0
    assert len(datapath.connections()) == 2


def test_one_icmp_type_opens_no_other(pair: Datapath, at: Family) -> None:
    pair.allow(CLIENT_POLICY, 300, EGRESS, at.icmp, at.question + 1, 24)
    assert pair.dropped_for("from_pod", icmp(at.pod, at.remote, at.question)) == 0
    assert pair.dropped_for("from_pod", icmp(at.pod, at.remote, at.question + 2)) == POLICY_DENIED
    assert pair.dropped_for("from_netdev", icmp(at.remote, at.pod, at.question)) == POLICY_DENIED


@pytest.mark.parametrize(
    "kinds", [(3, 1), (4, 2), (11, 3), (12, 4)], ids=["unreachable", "quench or too big", "time exceeded", "parameter"]
)
def test_an_error_about_a_connection_passes_from_whichever_router(
    pair: Datapath, at: Family, kinds: tuple[int, int]
) -> None:
    kind = kinds[at is V6]
    pair.allow(CLIENT_POLICY, 300, EGRESS, 17, 53, 24)
    port = pair.free_port()
    pair.passes("from_pod", udp(at.pod, at.remote, port, 53))
    about = ip(at.pod, at.remote) / UDP(sport=port, dport=53) / b"12345678"
    assert pair.dropped_for("from_netdev", error(at.outside, at.pod, about, kind)) == 0
    assert pair.dropped_for("to_pod", error(at.node, at.pod, about, kind)) == 0


def test_an_error_about_an_echo_is_known_by_its_identifier(pair: Datapath, at: Family) -> None:
    pair.allow(CLIENT_POLICY, 300, EGRESS, at.icmp, at.echo + 1, 24)
    pair.passes("from_pod", echo(at.pod, at.remote, 7))
    about = ip(at.pod, at.remote) / echo_message(at.pod, 7)
    assert pair.dropped_for("from_netdev", error(at.outside, at.pod, about)) == 0
    about = ip(at.pod, at.remote) / echo_message(at.pod, 8)
    assert pair.dropped_for("from_netdev", error(at.outside, at.pod, about)) == UNKNOWN_CONNECTION


@pytest.mark.parametrize("program", ["from_netdev", "to_pod"])
def test_an_error_about_nothing_known_is_dropped(pair: Datapath, at: Family, program: str) -> None:
    about = ip(at.pod, at.remote) / UDP(sport=pair.free_port(), dport=53) / b"12345678"
    assert pair.dropped_for(program, error(at.outside, at.pod, about)) == UNKNOWN_CONNECTION


def test_the_node_may_tell_its_pod_of_anything(pair: Datapath, at: Family) -> None:
    about = ip(at.pod, at.outside) / UDP(sport=pair.free_port(), dport=53) / b"12345678"
    assert pair.dropped_for("to_pod", error(at.node, at.pod, about)) == 0


def test_an_error_goes_only_to_who_sent_the_packet_it_is_about(pair: Datapath, at: Family) -> None:
    """Or a pod could disturb the connections of others, whose ports it guessed."""
    port = open_connection(pair, at)
    about = ip(at.neighbour, at.pod) / TCP(sport=80, dport=port)
    assert pair.dropped_for("from_netdev", error(at.outside, at.pod, about)) == INVALID
    assert pair.dropped_for("from_netdev", error(at.outside, at.neighbour, about)) == 0


def test_a_pods_error_about_what_it_got_passes(pair: Datapath, at: Family) -> None:
    port = open_connection(pair, at)
    about = ip(at.pod, at.neighbour) / TCP(sport=port, dport=80)
    assert pair.dropped_for("from_pod", error(at.neighbour, at.pod, about)) == 0
    about[TCP].sport = port + 1
    assert pair.dropped_for("from_pod", error(at.neighbour, at.pod, about)) == UNKNOWN_CONNECTION
