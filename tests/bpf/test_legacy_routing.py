"""The node's own stack forwards (bpf.hostLegacyRouting): what each hook does then, and leaves to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether

from services.dataplane.parts.policy.entries import INGRESS
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS
from tests.bpf.conftest import loaded
from tests.bpf.datapath import (
    DEVICE_INDEX,
    LOOPBACK_INDEX,
    NEIGHBOUR,
    NEIGHBOUR6,
    NODE,
    NODE6,
    OTHER_NODE,
    OUTSIDE,
    OUTSIDE6,
    POD,
    POD6,
    REMOTE,
    REMOTE6,
    TC_ACT_OK,
    TC_ACT_SHOT,
    TC_ACT_UNSPEC,
    Routed,
    echo,
    frame,
    ip,
    tcp,
    udp,
)
from tests.bpf.reading import with_right_checksums

INVALID_SOURCE, POLICY_DENIED, UNKNOWN_CT, NO_MAPPING = 132, 133, 163, 167
SERVICES = {4: "10.96.0.10", 6: "fd00:96::10"}
ELSEWHERE = 99  # a device without a program
TTL = 64


class Ends:
    """Addresses of one family."""

    def __init__(self, family: int) -> None:
        self.pod, self.near, self.remote, self.outside, self.node = {
            4: (POD, NEIGHBOUR, REMOTE, OUTSIDE, NODE),
            6: (POD6, NEIGHBOUR6, REMOTE6, OUTSIDE6, NODE6),
        }[family]
        self.service = SERVICES[family]
        self.unreachable = {4: ICMP(type=3, code=3), 6: ICMPv6DestUnreach(code=4)}[family]
        self.layer = {4: IP, 6: IPv6}[family]


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def ends(request: pytest.FixtureRequest) -> Ends:
    return Ends(request.param)


class Stack(Routed):
    """`run`, and what the node's stack does in between: nothing but routing."""

    def ends(self) -> None:
        for pod, near, remote in ((POD, NEIGHBOUR, REMOTE), (POD6, NEIGHBOUR6, REMOTE6)):
            self.endpoint(pod, 256)
            self.endpoint(near, 257)
            self.who(remote, 300, OTHER_NODE)
        for node in (NODE, NODE6):
            self.who(node, 1)
        self.maps.raise_epoch()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with (
        loaded("legacy", tmp_path_factory.mktemp("state"), switches={"LEGACY_ROUTING": 1}) as pin_dir,
        closing(Stack(pin_dir)) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    state = tmp_path_factory.mktemp("state")
    with (
        loaded("legacy-tunnel", state, switches={"LEGACY_ROUTING": 1}, tunnel_index=LOOPBACK_INDEX) as pin_dir,
        closing(Stack(pin_dir)) as found,
    ):
        yield found


@pytest.fixture
def node(native: Stack) -> Stack:
    native.clear()
    native.came_from(LOOPBACK_INDEX)
    native.ends()
    return native


@pytest.fixture
def tunnelled(tunnel: Stack) -> Stack:
    tunnel.clear()
    tunnel.came_from(LOOPBACK_INDEX)
    tunnel.ends()
    return tunnel


def goes_on(node: Stack, program: str, packet: bytes) -> bytes:
    """What the stack gets, which must be right in every checksum and have lost no hop."""
    run = node.run(program, packet)
    assert run.result == TC_ACT_OK
    seen, sent = Ether(run.packet), Ether(packet)
    assert with_right_checksums(run.packet) == run.packet
    for layer, field in ((IP, "ttl"), (IPv6, "hlim")):
        if layer in seen:
            assert getattr(seen[layer], field) == getattr(sent[layer], field)
    return run.packet


def leaves(node: Stack, packet: bytes) -> bytes:
    """The packet on the wire."""
    run = node.run("to_netdev", packet)
    assert run.result == TC_ACT_UNSPEC
    assert with_right_checksums(run.packet) == run.packet
    return run.packet


def test_packets_to_pods_go_to_the_stack_as_they_are(node: Stack, ends: Ends) -> None:
    for target in (ends.near, ends.remote):
        packet = tcp(ends.pod, target, node.free_port(), 80)
        assert goes_on(node, "from_pod", packet) == packet
        assert leaves(node, packet) == packet


def test_a_pods_packet_is_masqueraded_after_the_stack_and_its_answer_before_it(node: Stack, ends: Ends) -> None:
    """So netfilter of others sees the pod's own address both ways."""
    port = node.free_port()
    packet = tcp(ends.pod, ends.outside, port, 443)
    assert goes_on(node, "from_pod", packet) == packet
    out = Ether(leaves(node, packet))
    assert (out[ends.layer].src, out[ends.layer].dst) == (ends.node, ends.outside)
    mapped = out[TCP].sport
    assert mapped != port and mapped >= 61000

    back = goes_on(node, "from_netdev", tcp(ends.outside, ends.node, 443, mapped, "SA"))
    assert back == tcp(ends.outside, ends.pod, 443, port, "SA")
    assert goes_on(node, "to_pod", back) == back
    assert Ether(leaves(node, tcp(ends.pod, ends.outside, port, 443, "A")))[TCP].sport == mapped


def test_an_echo_and_an_error_about_it_find_their_way(node: Stack) -> None:
    packet = echo(POD6, OUTSIDE6, 7)
    goes_on(node, "from_pod", packet)
    out = Ether(leaves(node, packet))
    assert out[IPv6].src == NODE6 and out[ICMPv6EchoRequest].id != 7
    error = frame(IPv6(src="2001:db8::fe", dst=NODE6) / ICMPv6DestUnreach() / bytes(out[IPv6]))
    told = goes_on(node, "from_netdev", error)
    quoted = IPv6(told[-len(bytes(out[IPv6])) :])
    assert (Ether(told)[IPv6].dst, quoted.src, quoted[ICMPv6EchoRequest].id) == (POD6, POD6, 7)
    assert goes_on(node, "to_pod", told) == told


def test_a_pods_error_about_an_answer_names_the_node_outside(node: Stack) -> None:
    port = node.free_port()
    packet = udp(POD, OUTSIDE, port, 53)
    goes_on(node, "from_pod", packet)
    mapped = Ether(leaves(node, packet))[UDP].sport
    answer = udp(OUTSIDE, NODE, 53, mapped)
    got = goes_on(node, "from_netdev", answer)
    goes_on(node, "to_pod", got)
    error = frame(IP(src=POD, dst=OUTSIDE) / ICMP(type=3, code=3) / bytes(Ether(got)[IP]))
    assert goes_on(node, "from_pod", error) == error
    out = Ether(leaves(node, error))
    quoted = IP(bytes(out[ICMP].payload))
    assert (out[IP].src, quoted.dst, quoted[UDP].dport) == (NODE, NODE, mapped)


def test_a_packet_whose_connection_is_gone_does_not_leave_with_the_pods_address(node: Stack, ends: Ends) -> None:
    packet = udp(ends.pod, ends.outside, node.free_port(), 53)
    assert node.dropped_for("to_netdev", packet) == UNKNOWN_CT


def test_what_is_not_a_pods_leaves_untouched_and_uncounted(node: Stack, ends: Ends) -> None:
    for packet in (tcp(ends.node, ends.outside, 40000, 443), tcp(ends.outside, ends.remote, 1, 2)):
        assert leaves(node, packet) == packet


def test_a_service_is_translated_before_the_stack_and_its_backends_answer_after_it(node: Stack, ends: Ends) -> None:
    for number, backend in enumerate((ends.near, ends.remote), 1):
        node.service(ends.service, number, 6, [(backend, 8080)], number)
        client = node.free_port()
        there = goes_on(node, "from_pod", tcp(ends.pod, ends.service, client, number))
        assert there == tcp(ends.pod, backend, client, 8080)
        if backend == ends.near:
            assert goes_on(node, "to_pod", there) == there
        answer = tcp(backend, ends.pod, 8080, client, "SA")
        assert goes_on(node, "from_pod" if backend == ends.near else "from_netdev", answer) == answer
        node.came_from(LOOPBACK_INDEX if backend == ends.near else DEVICE_INDEX)
        back = goes_on(node, "to_pod", answer)
        assert back == tcp(ends.service, ends.pod, number, client, "SA")


@pytest.mark.parametrize("backend", [NEIGHBOUR, REMOTE, NODE])
def test_an_error_about_a_backend_tells_the_pod_of_the_service(node: Stack, backend: str) -> None:
    """From the backend, from another node, or from this node's own stack, which has routed the packet."""
    node.service(SERVICES[4], 53, 17, [(NEIGHBOUR if backend == NODE else backend, 5353)])
    client = node.free_port()
    there = goes_on(node, "from_pod", udp(POD, SERVICES[4], client, 53))
    error = frame(IP(src=backend, dst=POD) / ICMP(type=3, code=3) / bytes(Ether(there)[IP]))
    if backend != NODE:
        assert goes_on(node, "from_pod" if backend == NEIGHBOUR else "from_netdev", error) == error
    node.came_from({NEIGHBOUR: LOOPBACK_INDEX, REMOTE: DEVICE_INDEX, NODE: 0}[backend])
    told = Ether(goes_on(node, "to_pod", error))
    assert told[IP].src == (NODE if backend == NODE else SERVICES[4])
    quoted = IP(bytes(told[ICMP].payload))
    assert (quoted.dst, quoted[UDP].dport) == (SERVICES[4], 53)


def test_an_error_of_the_node_about_what_it_sent_itself_still_arrives(node: Stack) -> None:
    about = bytes(ip(POD, NODE) / UDP(sport=1, dport=2))
    packet = frame(IP(src=NODE, dst=POD) / ICMP(type=3, code=3) / about)
    node.came_from(0)
    assert goes_on(node, "to_pod", packet) == packet


def test_later_fragments_are_masqueraded_as_the_first_was(node: Stack) -> None:
    head = IP(src=POD, dst=OUTSIDE, id=77, flags="MF") / UDP(sport=1000, dport=53, len=40, chksum=0) / bytes(16)
    tail = IP(src=POD, dst=OUTSIDE, id=77, frag=3, proto=17) / bytes(16)
    for each in (head, tail):
        assert node.run("from_pod", frame(each)).result == TC_ACT_OK
    seen = [Ether(node.run("to_netdev", frame(each)).packet)[IP].src for each in (head, tail)]
    assert seen == [NODE, NODE]


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_what_policy_denies_never_reaches_the_stack(node: Stack, ends: Ends, side: str) -> None:
    if side == "sender":
        node.endpoint(ends.pod, 256, policy=9, flags=FLAG_ENFORCE_EGRESS)
    else:
        node.endpoint(ends.near, 257, policy=9, flags=FLAG_ENFORCE_INGRESS)
    assert node.dropped_for("from_pod", tcp(ends.pod, ends.near, node.free_port(), 80)) == POLICY_DENIED


def test_a_sender_denied_while_its_packet_is_in_the_stack_stays_denied(node: Stack) -> None:
    """to_pod judges anew after a change, and must not forget who sent it."""
    packet = tcp(POD, NEIGHBOUR, node.free_port(), 80)
    goes_on(node, "from_pod", packet)
    node.endpoint(POD, 256, policy=9, flags=FLAG_ENFORCE_EGRESS)
    node.maps.raise_epoch()
    assert node.dropped_for("to_pod", packet) == POLICY_DENIED
    assert node.dropped_for("from_pod", packet) == POLICY_DENIED


def test_what_comes_to_the_pod_by_another_device_is_judged_there(node: Stack) -> None:
    node.endpoint(POD, 256, policy=9, flags=FLAG_ENFORCE_INGRESS)
    node.came_from(99)
    packet = tcp(OUTSIDE, POD, 1000, 80)
    assert node.dropped_for("to_pod", packet) == POLICY_DENIED
    node.allow(9, 9, INGRESS)  # the world of IPv4
    node.maps.raise_epoch()
    assert goes_on(node, "to_pod", packet) == packet


@pytest.mark.parametrize("device", [0, LOOPBACK_INDEX, DEVICE_INDEX, ELSEWHERE])
def test_a_pod_speaks_only_by_the_device_where_it_was_asked(node: Stack, ends: Ends, device: int) -> None:
    """Which is its own, or one that pods of other nodes come by; at any other nobody is asked who he is."""
    node.device(LOOPBACK_INDEX, has_pods=False)
    node.came_from(device)
    for source, own in ((ends.near, LOOPBACK_INDEX), (ends.remote, DEVICE_INDEX), (ends.node, 0)):
        port = node.free_port()
        expected = 0 if device == own else INVALID_SOURCE
        is_its_own = source == ends.node and device == LOOPBACK_INDEX  # by way of rules
        assert node.dropped_for("to_pod", tcp(source, ends.pod, port, 80)) == (0 if is_its_own else expected)
        goes_on(node, "from_pod", udp(ends.pod, source, port, 53))
        about = ip(ends.pod, source) / UDP(sport=port, dport=53)
        packet = frame(ip(source, ends.pod) / ends.unreachable / bytes(about))
        assert node.dropped_for("to_pod", packet) == expected


def test_with_a_tunnel_no_pod_of_another_node_comes_by_the_stack(tunnelled: Stack, ends: Ends) -> None:
    for device in (0, LOOPBACK_INDEX, DEVICE_INDEX):
        tunnelled.came_from(device)
        assert tunnelled.dropped_for("to_pod", tcp(ends.remote, ends.pod, 1000, 80)) == INVALID_SOURCE
    tunnelled.came_from(LOOPBACK_INDEX)
    assert tunnelled.dropped_for("to_pod", tcp(ends.near, ends.pod, 1000, 80)) == 0


def test_through_the_tunnel_a_pod_goes_by_the_tunnel_and_not_by_the_stack(tunnelled: Stack) -> None:
    run = tunnelled.run("from_pod", tcp(POD, REMOTE, tunnelled.free_port(), 80))
    assert run.result not in (TC_ACT_OK, TC_ACT_SHOT)
    assert Ether(run.packet)[IP].ttl == TTL - 1
    packet = tcp(POD, NEIGHBOUR, tunnelled.free_port(), 80)
    assert goes_on(tunnelled, "from_pod", packet) == packet


def test_without_the_switch_nothing_happens_as_packets_leave(routed: Routed) -> None:
    routed.endpoint(POD, 256)
    packet = udp(POD, OUTSIDE, routed.free_port(), 53)
    run = routed.run("to_netdev", packet)
    assert (run.result, run.packet) == (TC_ACT_UNSPEC, packet)
