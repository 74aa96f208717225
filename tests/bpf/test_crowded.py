"""Maps that traffic fills, full under the real programs: the latest connections go on, what is left of an evicted one
is judged anew and never trusted, and it is whole again with its next packet."""

from __future__ import annotations

from collections import Counter

import pytest
from scapy.layers.inet import TCP, UDP

from services.dataplane.parts.policy.entries import EGRESS
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS, NatKey, pack_address
from tests.bpf.conftest import CROWDED
from tests.bpf.datapath import TC_ACT_SHOT, TC_ACT_UNSPEC, V4, V6, Family, Routed, key_between, tcp, udp

MANY = 6 * CROWDED
LATEST = 8  # the kernel's order is not exact, but these are surely there
POLICY_DENIED = 133


@pytest.fixture
def node(crowded: Routed) -> Routed:
    """Its first pod may reach its second, and nobody may reach the first."""
    for at in (V4, V6):
        crowded.endpoint(at.pod, 256, policy=9, flags=FLAG_ENFORCE_INGRESS | FLAG_ENFORCE_EGRESS)
        crowded.endpoint(at.neighbour, 257)
        crowded.who(at.remote, 300, at.other_node)
        crowded.who(at.node, 1)
    for identity in (257, 300, 2, 9, 10):
        crowded.allow(9, identity, EGRESS)
    crowded.maps.raise_epoch()
    return crowded


@pytest.mark.parametrize("protocol", [6, 17])
def test_more_connections_than_there_is_room_for_all_pass_and_answers_of_the_latest_too(
    node: Routed, at: Family, protocol: int
) -> None:
    def there(port: int) -> bytes:
        return tcp(at.pod, at.neighbour, port, 80) if protocol == 6 else udp(at.pod, at.neighbour, port, 80)

    def back(port: int) -> bytes:
        return tcp(at.neighbour, at.pod, 80, port, "SA") if protocol == 6 else udp(at.neighbour, at.pod, 80, port)

    ports = [node.free_port() for _ in range(MANY)]
    assert {node.dropped_for("from_pod", there(port)) for port in ports} == {0}
    assert {node.dropped_for("from_pod", back(port)) for port in ports[-LATEST:]} == {0}
    evicted = [
        port for port in ports if key_between((at.pod, port), (at.neighbour, 80), protocol) not in node.connections()
    ]
    assert len(evicted) > CROWDED

    # Nobody knows any more that the pod asked for this: the policy decides, until the pod sends again.
    assert node.dropped_for("from_pod", back(evicted[0])) == POLICY_DENIED
    assert node.dropped_for("from_pod", there(evicted[0])) == 0
    assert node.dropped_for("from_pod", back(evicted[0])) == 0


def test_more_mappings_than_there_is_room_for_and_an_evicted_one_is_taken_back(node: Routed, at: Family) -> None:
    ports = [node.free_port() for _ in range(MANY)]
    mapped = {port: node.passes("from_pod", udp(at.pod, at.outside, port, 53))[UDP].sport for port in ports}
    for port in ports[-LATEST:]:
        back = node.passes("from_netdev", udp(at.outside, at.node, 53, mapped[port]))
        assert (back[at.ip].dst, back[UDP].dport) == (at.pod, port)

    # What answers an evicted one is the node's own, as it came; the pod's next packet leaves by the same port again,
    # unless another connection has that by now.
    times = Counter(mapped.values())
    held = {NatKey.unpack(key).node_port for key, _ in node.maps["nat"].items()}
    early = next(port for port in ports if times[mapped[port]] == 1 and mapped[port] not in held)
    answer = udp(at.outside, at.node, 53, mapped[early])
    run = node.run("from_netdev", answer)
    assert (run.result, run.packet) == (TC_ACT_UNSPEC, answer)
    assert node.passes("from_pod", udp(at.pod, at.outside, early, 53))[UDP].sport == mapped[early]
    assert node.passes("from_netdev", answer)[at.ip].dst == at.pod


def test_more_connections_to_a_service_than_choices_have_room_for(node: Routed, at: Family) -> None:
    node.service(at.service, 80, 6, [(at.neighbour, 8080)])
    ports = [node.free_port() for _ in range(MANY)]
    for port in ports:
        there = node.passes("from_pod", tcp(at.pod, at.service, port, 80))
        assert (there[at.ip].dst, there[TCP].dport) == (at.neighbour, 8080)
    for port in ports[-LATEST:]:
        back = node.passes("from_pod", tcp(at.neighbour, at.pod, 8080, port, "SA"))
        assert (back[at.ip].src, back[TCP].sport) == (at.service, 80)

    # An answer that nobody knows the Service of any more does not reach the pod as a stranger's.
    held = node.connections()
    gone = next(port for port in ports if key_between((at.pod, port), (at.neighbour, 8080), 6) not in held)
    assert node.run("from_pod", tcp(at.neighbour, at.pod, 8080, gone, "SA")).result == TC_ACT_SHOT
    assert node.passes("from_pod", tcp(at.pod, at.service, gone, 80))[at.ip].dst == at.neighbour
    assert node.passes("from_pod", tcp(at.neighbour, at.pod, 8080, gone, "SA"))[at.ip].src == at.service


@pytest.mark.parametrize("protocol", [6, 17])
def test_flows_of_one_pod_take_no_other_pods_connection_to_another_backend(
    node: Routed, at: Family, protocol: int
) -> None:
    """Choices are shared by all pods: a client that lost its own finds the same backend again."""
    node.service(at.service, 80, protocol, [(at.neighbour, port) for port in range(8080, 8088)])
    node.service(at.service, 53, 17, [(at.neighbour, 53)], number=2)

    def goes_to(client: int, flags: str) -> int:
        made = tcp(at.pod, at.service, client, 80, flags) if protocol == 6 else udp(at.pod, at.service, client, 80)
        return int(node.passes("from_pod", made)[at.ip].payload.dport)

    clients = [node.free_port() for _ in range(LATEST)]
    before = {client: goes_to(client, "S") for client in clients}
    assert len(set(before.values())) > 1
    for _ in range(MANY):
        node.passes("from_pod", udp(at.neighbour, at.service, node.free_port(), 53))
    kept = {key[:16] for key, _ in node.maps["choices"].items()}  # whose they are
    assert pack_address(at.pod) not in kept
    assert {client: goes_to(client, "A") for client in clients} == before
