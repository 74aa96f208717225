"""Services that are called from outside, packet by packet: at node ports, external and balancers' addresses."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP

from services.dataplane.parts.policy.entries import INGRESS
from services.dataplane.shapes.layouts import (
    FLAG_ENFORCE_INGRESS,
    RANGE_ALLOWED,
    RANGE_DENIED,
    SERVES_ITSELF,
    SERVES_OUTSIDE,
    NatEntry,
    NatKey,
    Prefix,
    RangeKey,
    ServiceEntry,
)
from tests.bpf.datapath import (
    POD_MAC,
    TC_ACT_OK,
    TC_ACT_REDIRECT,
    TC_ACT_SHOT,
    TC_ACT_UNSPEC,
    V4,
    V6,
    Family,
    Routed,
    error,
    frame,
    ip,
    sctp,
    tcp,
    udp,
)
from tests.bpf.fragmented import cut, datagram
from tests.bpf.reading import read, with_right_checksums

INVALID_SOURCE, POLICY_DENIED, NO_BACKEND, NO_MAPPING, NAT_PROTOCOL = 132, 133, 158, 167, 168
SOURCE_RANGE = 177
NODE_PORT, EXTERNAL = ServiceEntry.NODE_PORT, ServiceEntry.EXTERNAL
AT_NODES = {V4: "0.0.0.0", V6: "::"}
BALANCER = {V4: "203.0.113.200", V6: "2001:db8:200::7"}  # nobody's: the fabric leads it here
PORTS = range(61000, 65536)  # conftest.py


@pytest.fixture
def node(routed: Routed) -> Routed:
    return ready(routed)


def ready(node: Routed) -> Routed:
    for at in (V4, V6):
        node.endpoint(at.pod, 256)
        node.endpoint(at.neighbour, 257)
        node.who(at.remote, 300, at.other_node)
        node.who(at.second, 301, at.other_node)
        node.who(at.node, 1)
        node.who(at.other_node, 6)
    node.maps.serve(SERVES_OUTSIDE)
    node.maps.raise_epoch()
    return node


def expose(node: Routed, at: Family, backends: list[str], protocol: int = 6, *, local: int | None = None) -> None:
    """Port 30080 of each node and port 80 of an address outside lead to port 8080 of `backends`, of which the first
    `local` serve who calls from outside."""
    ends = [(each, 8080) for each in backends]
    outside = len(ends) if local is None else local
    node.service(AT_NODES[at], 30_080, protocol, ends, flags=NODE_PORT, outside=outside)
    node.service(BALANCER[at], 80, protocol, ends, flags=EXTERNAL, outside=outside)


def ends(packet: Any, at: Family, layer: Any = TCP) -> tuple[str, int, str, int]:
    return packet[at.ip].src, packet[layer].sport, packet[at.ip].dst, packet[layer].dport


def called(at: Family) -> list[tuple[str, int]]:
    return [(at.node, 30_080), (BALANCER[at], 80)]


def mappings(node: Routed) -> dict[NatKey, NatEntry]:
    return {NatKey.unpack(key): NatEntry.unpack(value) for key, value in node.maps["nat"].items()}


@pytest.mark.parametrize(("protocol", "make", "layer"), [(6, tcp, TCP), (17, udp, UDP)])
def test_a_backend_of_this_node_sees_the_client_and_answers_in_the_name_of_what_was_called(
    node: Routed, at: Family, protocol: int, make: Any, layer: Any
) -> None:
    expose(node, at, [at.pod], protocol)
    for address, port in called(at):
        client = node.free_port()
        there = node.passes("from_netdev", make(at.outside, address, client, port))
        assert ends(there, at, layer) == (at.outside, client, at.pod, 8080)
        assert (there.dst, getattr(there, at.hops)) == (POD_MAC.hex(":"), 63)
        run = node.run("from_pod", make(at.pod, at.outside, 8080, client, *("SA",) * (make is tcp)))
        back = Ether(run.packet)
        assert (run.result, ends(back, at, layer)) == (TC_ACT_REDIRECT, (address, port, at.outside, client))
        assert with_right_checksums(run.packet) == run.packet
    assert mappings(node) == {}


@pytest.mark.parametrize(("protocol", "make", "layer"), [(6, tcp, TCP), (17, udp, UDP)])
def test_a_backend_elsewhere_sees_this_node_and_its_answer_goes_back_by_it(
    node: Routed, at: Family, protocol: int, make: Any, layer: Any
) -> None:
    expose(node, at, [at.remote], protocol)
    for address, port in called(at):
        client = node.free_port()
        there = node.passes("from_netdev", make(at.outside, address, client, port))
        mapped = there[layer].sport
        assert ends(there, at, layer) == (at.node, mapped, at.remote, 8080)
        assert mapped in PORTS and getattr(there, at.hops) == 63
        assert mappings(node)[NatKey(at.remote, at.node, 8080, mapped, protocol)] == NatEntry(
            at.outside, client, NatEntry.RELAYED
        )
        for _ in range(2):  # the second finds the way there
            run = node.run("from_netdev", make(at.remote, at.node, 8080, mapped, *("SA",) * (make is tcp)))
            back = Ether(run.packet)
            assert (run.result, ends(back, at, layer)) == (TC_ACT_REDIRECT, (address, port, at.outside, client))
            assert with_right_checksums(run.packet) == run.packet and getattr(back, at.hops) == 63
        again = node.passes("from_netdev", make(at.outside, address, client, port, *("A",) * (make is tcp)))
        assert ends(again, at, layer) == (at.node, mapped, at.remote, 8080)


def test_after_a_change_both_directions_go_on(node: Routed, at: Family) -> None:
    expose(node, at, [at.remote])
    client = node.free_port()
    mapped = node.passes("from_netdev", tcp(at.outside, at.node, client, 30_080))[TCP].sport
    for _ in range(2):
        node.maps.raise_epoch()
        back = node.passes("from_netdev", tcp(at.remote, at.node, 8080, mapped, "SA"))
        assert ends(back, at) == (at.node, 30_080, at.outside, client)
        there = node.passes("from_netdev", tcp(at.outside, at.node, client, 30_080, "A"))
        assert ends(there, at) == (at.node, mapped, at.remote, 8080)


def test_connections_are_spread_and_each_stays_with_its_backend(node: Routed, at: Family) -> None:
    expose(node, at, [at.pod, at.remote, at.second])
    chosen = set()
    for _ in range(40):
        client = node.free_port()
        found = {
            node.passes("from_netdev", tcp(at.outside, at.node, client, 30_080, what))[at.ip].dst
            for what in ("S", "A", "PA")
        }
        assert len(found) == 1
        chosen |= found
    assert chosen == {at.pod, at.remote, at.second}


def test_a_connection_stays_where_it_is_when_its_backend_leaves_and_new_ones_go_elsewhere(
    node: Routed, at: Family
) -> None:
    expose(node, at, [at.remote])
    client = node.free_port()
    mapped = node.passes("from_netdev", tcp(at.outside, at.node, client, 30_080))[TCP].sport
    node.passes("from_netdev", tcp(at.remote, at.node, 8080, mapped, "SA"))
    expose(node, at, [at.second])
    node.maps.raise_epoch()
    assert node.passes("from_netdev", tcp(at.outside, at.node, client, 30_080, "A"))[at.ip].dst == at.remote
    assert node.passes("from_netdev", tcp(at.outside, at.node, node.free_port(), 30_080))[at.ip].dst == at.second


def test_where_only_backends_of_this_node_serve_all_go_there(node: Routed, at: Family) -> None:
    expose(node, at, [at.pod, at.remote, at.second], local=1)
    for _ in range(20):
        there = node.passes("from_netdev", tcp(at.outside, at.node, node.free_port(), 30_080))
        assert (there[at.ip].src, there[at.ip].dst) == (at.outside, at.pod)


def test_where_only_backends_of_this_node_serve_and_there_is_none_the_call_is_dropped_in_silence(
    node: Routed, at: Family
) -> None:
    expose(node, at, [at.remote], local=0)
    for address, port in called(at):
        before = node.drops()[NO_BACKEND]
        assert node.run("from_netdev", tcp(at.outside, address, node.free_port(), port)).result == TC_ACT_SHOT
        assert node.drops()[NO_BACKEND] == before + 1


@pytest.mark.parametrize("protocol", [6, 17])
def test_a_service_without_backends_refuses(node: Routed, at: Family, protocol: int) -> None:
    expose(node, at, [], protocol)
    for address, port in called(at):
        client = node.free_port()
        asked = TCP if protocol == 6 else UDP
        run = node.run("from_netdev", frame(ip(at.outside, address) / asked(sport=client, dport=port)))
        back = Ether(run.packet)
        assert run.result == TC_ACT_REDIRECT
        assert (back[at.ip].src, back[at.ip].dst) == (address, at.outside)
        assert back.dst == "02:00:00:00:00:aa"  # whoever sent it
        assert with_right_checksums(run.packet) == run.packet
        if protocol == 6:
            assert (back[TCP].sport, back[TCP].dport, back[TCP].flags) == (port, client, "RA")
        else:
            assert bytes(back[at.ip].payload)[0] == at.unreachable


def test_the_policy_of_a_pod_judges_the_client_itself(node: Routed, at: Family) -> None:
    node.endpoint(at.pod, 256, policy=256, flags=FLAG_ENFORCE_INGRESS)
    expose(node, at, [at.pod])
    assert node.dropped_for("from_netdev", tcp(at.outside, at.node, node.free_port(), 30_080)) == POLICY_DENIED
    node.allow(256, at.world, INGRESS, 6, 8080, 24)
    assert node.dropped_for("from_netdev", tcp(at.outside, at.node, node.free_port(), 30_080)) == 0


@pytest.mark.parametrize("what", ["a cluster's own", "nobody calls from outside", "another node's", "another protocol"])
def test_all_else_is_left_to_the_stack(node: Routed, at: Family, what: str) -> None:
    expose(node, at, [at.pod])
    node.service(at.service, 80, 6, [(at.pod, 8080)], number=2)
    packet = tcp(at.outside, at.node, node.free_port(), 30_080)
    if what == "a cluster's own":
        packet = tcp(at.outside, at.service, node.free_port(), 80)
    elif what == "nobody calls from outside":
        node.maps.serve(0)
    elif what == "another node's":
        packet = tcp(at.outside, at.other_node, node.free_port(), 30_080)
    else:
        packet = udp(at.outside, at.node, node.free_port(), 30_080)
    run = node.run("from_netdev", packet)
    assert (run.result, run.packet) == (TC_ACT_UNSPEC, packet)


@pytest.mark.parametrize("what", ["a pod here", "this node"])
def test_nobody_outside_calls_in_the_name_of_this_node(node: Routed, at: Family, what: str) -> None:
    expose(node, at, [at.remote, at.pod])
    source = at.neighbour if what == "a pod here" else at.node
    assert node.dropped_for("from_netdev", tcp(source, at.node, node.free_port(), 30_080)) == INVALID_SOURCE
    assert {NatKey.unpack(key) for key, _ in node.maps["nat"].items()} == set()


def test_an_answer_is_believed_from_the_backend_alone(node: Routed, at: Family) -> None:
    expose(node, at, [at.remote])
    mapped = node.passes("from_netdev", udp(at.outside, BALANCER[at], node.free_port(), 80))
    assert mapped[at.ip].dst == BALANCER[at]  # of UDP there is no Service: the stack has it
    port = node.passes("from_netdev", tcp(at.outside, at.node, node.free_port(), 30_080))[TCP].sport
    for packet in (
        tcp(at.second, at.node, 8080, port, "SA"),
        tcp(at.remote, at.node, 8081, port, "SA"),
        tcp(at.outside2, at.node, 8080, port, "SA"),
    ):
        run = node.run("from_netdev", packet)
        assert (run.result, run.packet) == (TC_ACT_UNSPEC, packet)
    assert node.dropped_for("from_netdev", tcp(at.remote, at.node, 8080, port)) == NO_MAPPING  # begins, the wrong way


def test_a_pods_host_port_is_served_at_this_nodes_address_and_passes_at_anothers(node: Routed, at: Family) -> None:
    for address, number in ((at.node, 1), (at.other_node, 2)):
        node.service(address, 8088, 6, [(at.pod, 8080)], number, flags=ServiceEntry.HOST_PORT, outside=1)
    client = node.free_port()
    there = node.passes("from_netdev", tcp(at.outside, at.node, client, 8088))
    assert ends(there, at) == (at.outside, client, at.pod, 8080)
    back = node.passes("from_pod", tcp(at.pod, at.outside, 8080, client, "SA"))
    assert ends(back, at) == (at.node, 8088, at.outside, client)
    packet = tcp(at.outside, at.other_node, client, 8088)
    run = node.run("from_netdev", packet)
    assert (run.result, run.packet) == (TC_ACT_UNSPEC, packet)


@pytest.mark.parametrize("denies", [False, True])
def test_a_range_of_sources_says_who_may_call_at_each_packet(node: Routed, at: Family, denies: bool) -> None:
    flags = EXTERNAL | ServiceEntry.RANGES | ServiceEntry.RANGES_DENY * denies
    node.service(BALANCER[at], 80, 6, [(at.remote, 8080)], flags=flags, outside=1)
    key = RangeKey(1, Prefix(at.outside, 32 if at is V4 else 128)).pack()
    node.maps["source_ranges"].set(key, RANGE_DENIED if denies else RANGE_ALLOWED)
    packets = [tcp(source, BALANCER[at], node.free_port(), 80) for source in (at.outside, at.outside2)]
    found = [node.dropped_for("from_netdev", each) for each in packets]
    assert found == ([SOURCE_RANGE, 0] if denies else [0, SOURCE_RANGE])
    node.maps["source_ranges"].remove_many([key])
    found = [node.dropped_for("from_netdev", each) for each in packets]
    assert found == ([0, 0] if denies else [SOURCE_RANGE, SOURCE_RANGE])


def test_a_client_outside_comes_back_to_its_backend_where_the_service_wants_it(node: Routed, at: Family) -> None:
    ends_ = [(at.remote, 8080), (at.second, 8080), (at.pod, 8080)]
    node.service(BALANCER[at], 80, 6, ends_, flags=EXTERNAL, outside=3, affinity=100)
    found = {
        client: {
            node.passes("from_netdev", tcp(client, BALANCER[at], node.free_port(), 80))[at.ip].dst for _ in range(12)
        }
        for client in (at.outside, at.outside2)
    }
    assert all(len(each) == 1 for each in found.values())
    [key] = [each for each in node.affinities() if each.client == at.outside]
    assert {node.affinities()[key].address} == found[at.outside]


def test_two_clients_with_one_port_are_two_to_the_backend(node: Routed, at: Family) -> None:
    expose(node, at, [at.remote])
    port = node.free_port()
    sent = {
        client: node.passes("from_netdev", tcp(client, at.node, port, 30_080))[TCP].sport
        for client in (at.outside, at.outside2)
    }
    assert len(set(sent.values())) == 2
    for client, mapped in sent.items():
        back = node.passes("from_netdev", tcp(at.remote, at.node, 8080, mapped, "SA"))
        assert ends(back, at) == (at.node, 30_080, client, port)


def test_two_services_with_one_backend_are_told_apart_though_the_client_has_one_port(node: Routed, at: Family) -> None:
    for backend, program in ((at.pod, "from_pod"), (at.remote, "from_netdev")):
        expose(node, at, [backend])
        client = node.free_port()
        for address, port in called(at):
            there = node.passes("from_netdev", tcp(at.outside, address, client, port))
            answered = there[at.ip].src
            back = node.passes(program, tcp(backend, answered, 8080, there[TCP].sport, "SA"))
            assert ends(back, at) == (address, port, at.outside, client)


def test_a_mapping_that_was_evicted_is_taken_back(node: Routed, at: Family) -> None:
    expose(node, at, [at.remote])
    client = node.free_port()
    before = node.passes("from_netdev", tcp(at.outside, at.node, client, 30_080))[TCP].sport
    held = mappings(node)
    node.maps["nat"].remove_many([key for key, _ in node.maps["nat"].items()])
    assert node.passes("from_netdev", tcp(at.outside, at.node, client, 30_080, "A"))[TCP].sport == before
    assert mappings(node) == held


def test_sctp_goes_where_no_port_changes(node: Routed, at: Family) -> None:
    """Nobody can mend its checksum for another port."""
    for backend in (at.pod, at.remote):
        node.service(BALANCER[at], 132, 132, [(backend, 132)], flags=EXTERNAL, outside=1)
        client = node.free_port()
        there = node.passes("from_netdev", sctp(at.outside, BALANCER[at], client, 132))
        source = at.outside if backend == at.pod else at.node
        assert ends(there, at, SCTP) == (source, client, backend, 132)
        program = "from_pod" if backend == at.pod else "from_netdev"
        back = node.passes(program, sctp(backend, source, 132, client))
        assert ends(back, at, SCTP) == (BALANCER[at], 132, at.outside, client)
    expose(node, at, [at.pod], 132)
    assert node.dropped_for("from_netdev", sctp(at.outside, at.node, node.free_port(), 30_080)) == NAT_PROTOCOL


def complaint(at: Family, source: str, about: Any) -> bytes:
    """An ICMP error of `source` to who sent the packet `about`, about it."""
    return error(source, about[at.ip].src, about[at.ip])


def quoted(packet: Any, at: Family) -> tuple[str, int, str, int]:
    """What an ICMP error quotes: its ends."""
    raw = bytes(packet[at.ip].payload)[8:]
    inner = at.ip(raw)
    source, destination = struct.unpack_from("!HH", raw, 20 if at is V4 else 40)
    return inner.src, source, inner.dst, destination


def plain(made: bytes) -> Any:
    return Ether(made)


@pytest.mark.parametrize("is_local", [True, False])
def test_an_error_about_an_answer_is_told_to_the_backend_of_what_it_has_sent(
    node: Routed, at: Family, is_local: bool
) -> None:
    """Of a router outside, or of the client itself."""
    expose(node, at, [at.pod if is_local else at.remote], 17)
    for address, port in called(at):
        client = node.free_port()
        there = node.passes("from_netdev", udp(at.outside, address, client, port))
        source, mapped, backend, _ = ends(there, at, UDP)
        node.passes("from_pod" if is_local else "from_netdev", udp(backend, source, 8080, mapped))
        answer = plain(udp(address, at.outside, port, client))
        for router in (at.outside2, at.outside):
            told = node.passes("from_netdev", complaint(at, router, answer))
            assert (told[at.ip].src, told[at.ip].dst) == (router if is_local else at.node, backend)
            assert quoted(told, at) == (backend, 8080, source, mapped)


@pytest.mark.parametrize("is_local", [True, False])
def test_an_error_about_a_call_is_told_to_the_client_of_what_it_has_called(
    node: Routed, at: Family, is_local: bool
) -> None:
    """By the backend itself; by a router on the way to one elsewhere."""
    expose(node, at, [at.pod if is_local else at.remote], 17)
    for address, port in called(at):
        client = node.free_port()
        there = node.passes("from_netdev", udp(at.outside, address, client, port))
        backend = there[at.ip].dst
        told = node.passes("from_pod" if is_local else "from_netdev", complaint(at, backend, there))
        assert (told[at.ip].src, told[at.ip].dst) == (address, at.outside)
        assert quoted(told, at) == (at.outside, client, address, port)
        if not is_local:
            told = node.passes("from_netdev", complaint(at, at.outside2, there))
            assert (told[at.ip].src, told[at.ip].dst) == (at.outside2, at.outside)
            assert quoted(told, at) == (at.outside, client, address, port)


def test_an_error_about_nothing_that_was_called_is_the_stacks(node: Routed, at: Family) -> None:
    expose(node, at, [at.pod], 17)
    answer = plain(udp(at.node, at.outside, 30_080, node.free_port()))
    packet = complaint(at, at.outside, answer)
    run = node.run("from_netdev", packet)
    assert (run.result, run.packet) == (TC_ACT_UNSPEC, packet)


@pytest.mark.parametrize("is_local", [True, False])
def test_fragments_go_where_the_first_went_and_so_do_those_of_answers(node: Routed, at: Family, is_local: bool) -> None:
    expose(node, at, [at.pod if is_local else at.remote], 17)
    client = node.free_port()
    backend = at.pod if is_local else at.remote
    there = [node.passes("from_netdev", each) for each in cut(datagram(at.outside, at.node, client, 30_080), at)]
    source = at.outside if is_local else at.node
    assert {(each[at.ip].src, each[at.ip].dst) for each in there} == {(source, backend)}
    (port,) = struct.unpack_from("!H", bytes(there[0]), read(bytes(there[0])).l4)
    back = [
        node.passes("from_pod" if is_local else "from_netdev", each)
        for each in cut(datagram(backend, source, 8080, port), at)
    ]
    assert {(each[at.ip].src, each[at.ip].dst) for each in back} == {(at.node, at.outside)}


@pytest.mark.parametrize("port", [80, 8080])
def test_this_host_as_a_backend_gets_the_call_and_its_answer_is_what_was_called(
    node: Routed, at: Family, port: int
) -> None:
    """A pod on the host's own network."""
    node.maps.serve(SERVES_OUTSIDE | SERVES_ITSELF)
    for address, called_port in called(at):
        flags = NODE_PORT if called_port == 30_080 else EXTERNAL
        at_service = AT_NODES[at] if flags == NODE_PORT else address
        node.service(at_service, called_port, 6, [(at.node, port)], flags=flags, outside=1)
        client = node.free_port()
        for _ in range(2):
            run = node.run("from_netdev", tcp(at.outside, address, client, called_port))
            assert (run.result, ends(Ether(run.packet), at)) == (TC_ACT_OK, (at.outside, client, at.node, port))
            run = node.run("to_netdev", tcp(at.node, at.outside, port, client, "SA"))
            assert (run.result, ends(Ether(run.packet), at)) == (
                TC_ACT_UNSPEC,
                (address, called_port, at.outside, client),
            )
            node.maps.raise_epoch()
        told = plain(
            node.run("to_netdev", complaint(at, at.node, plain(tcp(at.outside, at.node, client, port)))).packet
        )
        assert (told[at.ip].src, quoted(told, at)) == (address, (at.outside, client, address, called_port))
        own = tcp(at.node, at.outside, port, node.free_port(), "SA")
        run = node.run("to_netdev", own)
        assert (run.result, run.packet) == (TC_ACT_UNSPEC, own), "whom nobody has called"


def test_another_host_as_a_backend_sees_this_node(node: Routed, at: Family) -> None:
    node.service(BALANCER[at], 80, 6, [(at.other_node, 8080)], flags=EXTERNAL, outside=1)
    client = node.free_port()
    there = node.passes("from_netdev", tcp(at.outside, BALANCER[at], client, 80))
    assert (there[at.ip].src, there[at.ip].dst, there[TCP].dport) == (at.node, at.other_node, 8080)
    back = node.passes("from_netdev", tcp(at.other_node, at.node, 8080, there[TCP].sport, "SA"))
    assert ends(back, at) == (BALANCER[at], 80, at.outside, client)


def test_a_pod_that_calls_its_own_service_by_a_node_port_or_an_address_outside_is_answered_by_itself(
    node: Routed, at: Family
) -> None:
    node.who(at.other_node, 6)
    expose(node, at, [at.pod])
    for address, port in (*called(at), (at.other_node, 30_080)):
        client = node.free_port()
        there = node.passes("from_pod", tcp(at.pod, address, client, port))
        assert (there[at.ip].src, there[at.ip].dst, there[TCP].dport) == (address, at.pod, 8080)
        back = node.passes("from_pod", tcp(at.pod, address, 8080, there[TCP].sport, "SA"))
        assert ends(back, at) == (address, port, at.pod, client)


def test_by_the_tunnel_goes_what_bears_a_router_that_others_know(tunnelled: Routed, at: Family) -> None:
    node = ready(tunnelled)
    router = {V4: "10.0.0.254", V6: "fd00:10::fe"}
    node.device(0, router[V4], router[V6], has_pods=False)
    expose(node, at, [at.remote])
    client = node.free_port()
    there = node.passes("from_netdev", tcp(at.outside, at.node, client, 30_080))
    assert ends(there, at)[:1] + ends(there, at)[2:] == (router[at], at.remote, 8080)
    assert NatKey(at.remote, router[at], 8080, there[TCP].sport, 6) in mappings(node)
    expose(node, at, [at.pod])
    there = node.passes("from_netdev", tcp(at.outside, at.node, client + 1, 30_080))
    assert ends(there, at) == (at.outside, client + 1, at.pod, 8080)
    back = node.passes("from_pod", tcp(at.pod, at.outside, 8080, client + 1, "SA"))
    assert ends(back, at) == (at.node, 30_080, at.outside, client + 1)
