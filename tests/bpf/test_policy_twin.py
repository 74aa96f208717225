"""The BPF program and the oracle that reads the rules directly, asked the same questions, must agree."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether

from bus import labels
from bus.messages.resources import Pod
from services.dataplane.parts.policy.entries import EndpointPolicy, entries_for
from services.dataplane.parts.policy.named_ports import Named, NamedPorts, names_in
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS
from tests.bpf.datapath import OTHER_NODE, TC_ACT_SHOT, Datapath
from tests.oracle import allowed_by_rules
from tests.strategies import Packet, World, worlds
from tests.unit.dataplane.parts.policy.test_policy_twin import compile_world, number_at, numbered

POD, PEER = "10.0.0.1", "10.0.0.2"
ASKED = 3000
ICMP_ERRORS = {3, 4, 5, 11, 12}  # these are judged by the packet that they are about


def frame(packet: Packet, source_port: int) -> bytes | None:
    """The first packet of a connection as a pod's policy sees it; None for what is no connection to the datapath."""
    source, destination = (POD, PEER) if packet.direction == "egress" else (PEER, POD)
    ip = Ether() / IP(src=source, dst=destination)
    if packet.protocol == 6:
        return bytes(ip / TCP(sport=source_port, dport=packet.port, flags="S"))
    if packet.protocol == 17:
        return bytes(ip / UDP(sport=source_port, dport=packet.port) / b"x")
    if packet.protocol == 1 and 1 <= packet.port <= 256 and packet.port - 1 not in ICMP_ERRORS:
        return bytes(ip / ICMP(type=packet.port - 1, id=source_port) / b"12345678")
    return None


def install(
    datapath: Datapath, identity: int, policy: EndpointPolicy, peer: int, ports: dict[str, frozenset[Named]]
) -> None:
    flags = FLAG_ENFORCE_INGRESS * policy.ingress_enforced | FLAG_ENFORCE_EGRESS * policy.egress_enforced
    datapath.endpoint(POD, identity, policy=identity, flags=flags)
    # Behind another node, so that only this pod's policy is asked, and the way of an allowed packet needs no route.
    datapath.who(PEER, peer, OTHER_NODE)
    named = NamedPorts()
    named.put(POD, identity, ports[POD])
    named.put(PEER, peer, ports[PEER])
    named.settle(identity, policy, {POD})
    table = datapath.maps["named_ports"]
    table.remove_many([key for key, _ in table.items() if key not in named.table.wanted])
    table.set_many(named.table.wanted.items())
    datapath.maps.raise_epoch()


def ask_world(datapath: Datapath, world: World) -> int:
    rules, selectors, numbers = compile_world(world)
    networks = numbered(selectors)
    expanded = {number: entries_for(number, rules, selectors, networks=networks) for number in numbers.values()}
    datapath.clear()
    for number, policy in expanded.items():
        datapath.policy(number, policy.entries.items())
    asked = 0
    for subject, peer, packet in world.questions():
        packet_bytes = frame(packet, datapath.free_port())
        if packet_bytes is None:
            continue
        own = world.labels_of(subject)
        other = world.labels_of(peer) if isinstance(peer, Pod) else peer
        if isinstance(other, dict):
            number = numbers[labels.labels_text(other)]
        else:
            number = other if isinstance(other, int) else number_at(other, networks)
        own_number = numbers[labels.labels_text(own)]
        install(
            datapath,
            own_number,
            expanded[own_number],
            number,
            {POD: names_in(subject.ports), PEER: names_in(peer.ports) if isinstance(peer, Pod) else frozenset()},
        )
        expected = allowed_by_rules(
            own,
            other,
            world.policies,
            packet.direction,
            packet.protocol,
            packet.port,
            groups=world.groups,
            subject_ports=world.named_ports(subject),
            peer_ports=world.named_ports(peer),
            kin_ports=world.kin_ports(subject if packet.direction == "ingress" else peer),
        )
        program = "from_pod" if packet.direction == "egress" else "to_pod"
        result = datapath.run(program, packet_bytes).result
        assert (result != TC_ACT_SHOT) == expected, (subject, peer, packet)
        asked += 1
    return asked


@pytest.mark.timeout(300)
def test_the_kernel_judges_as_the_rules_read(datapath: Datapath) -> None:
    asked = 0

    # Without the phase that explains a failure: it traces every line that runs, scapy's too.
    phases = [Phase.generate, Phase.shrink]

    @settings(max_examples=150, phases=phases, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(world=worlds())
    def check(world: World) -> None:
        nonlocal asked
        asked += ask_world(datapath, world)

    check()
    assert asked >= ASKED
