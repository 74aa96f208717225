"""Several devices that lead out: what leaves by each, what comes back, and who may speak there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.l2 import Ether

from services.dataplane.shapes.layouts import NatEntry, NatKey, pack_address
from tests.bpf.datapath import (
    DEVICE_INDEX,
    LOOPBACK_INDEX,
    TC_ACT_OK,
    TC_ACT_REDIRECT,
    TC_ACT_UNSPEC,
    V4,
    V6,
    Family,
    Routed,
    error,
    ip,
    tcp,
    udp,
)
from tests.bpf.test_reject import NO_BACKEND, unused

SECOND_INDEX = 78
INVALID_SOURCE = 132
SECOND = {4: "203.0.113.131", 6: "2001:db8:77::1"}  # the node's addresses on the second device
FAR = {4: "198.18.0.7", 6: "2001:db8:78::7"}  # beyond it
UP = (
    f"ip link add out2 index {SECOND_INDEX} type veth peer name far2",
    "ip link set far2 up",
    f"ip address add {SECOND[4]}/26 dev out2",
    f"ip address add {SECOND[6]}/64 dev out2 nodad",
    "ip link set out2 up",
    "ip route add 198.18.0.0/15 via 203.0.113.130",
    "ip -6 route add 2001:db8:78::/48 via 2001:db8:77::fe",
)


@pytest.fixture
def node(routed: Routed) -> Iterator[Routed]:
    for command in UP:
        routed.execute(command)
    for at in (V4, V6):
        routed.endpoint(at.pod, 256)
        routed.who(at.remote, 300, at.other_node)
        routed.who(at.node, 1)
        routed.who(SECOND[at.version], 1)
    routed.device(SECOND_INDEX, SECOND[4], SECOND[6], has_pods=False)
    routed.maps.raise_epoch()
    yield routed
    routed.runs_on(LOOPBACK_INDEX)
    routed.execute("ip link delete out2")


def on(node: Routed, index: int, program: str, packet: bytes) -> Any:
    """`program` on that device, and back to where a pod's packets run."""
    node.runs_on(index)
    try:
        return node.run(program, packet)
    finally:
        node.runs_on(LOOPBACK_INDEX)


def dropped_on(node: Routed, index: int, packet: bytes) -> int:
    node.runs_on(index)
    try:
        return node.dropped_for("from_netdev", packet)
    finally:
        node.runs_on(LOOPBACK_INDEX)


def test_what_leaves_by_a_device_bears_its_address_and_answers_come_by_any(node: Routed, at: Family) -> None:
    own, far = SECOND[at.version], FAR[at.version]
    for comes_by in (SECOND_INDEX, DEVICE_INDEX):
        port = node.free_port()
        out = node.passes("from_pod", tcp(at.pod, far, port, 443))
        mapped = out[TCP].sport
        assert out[at.ip].src == own
        mine = {NatKey.unpack(key): NatEntry.unpack(value) for key, value in node.maps["nat"].items()}
        assert mine[NatKey(far, own, 443, mapped, 6)] == NatEntry(at.pod, port)
        run = on(node, comes_by, "from_netdev", tcp(far, own, 443, mapped, "SA"))
        back = Ether(run.packet)
        assert (run.result, back[at.ip].dst, back[TCP].dport) == (TC_ACT_REDIRECT, at.pod, port)
        again = node.passes("from_pod", tcp(at.pod, far, port, 443, "A"))
        assert (again[at.ip].src, again[TCP].sport) == (own, mapped)
    other = node.passes("from_pod", tcp(at.pod, at.outside, node.free_port(), 443))
    assert other[at.ip].src == at.node, "by the device that has the node's own address"


def test_a_device_without_an_address_of_the_family_lets_out_with_the_nodes_own(node: Routed, at: Family) -> None:
    node.device(SECOND_INDEX)
    out = node.passes("from_pod", udp(at.pod, FAR[at.version], node.free_port(), 53))
    assert out[at.ip].src == at.node


def test_what_leaves_by_a_device_that_is_not_taken_is_the_stacks_with_the_pods_address(
    node: Routed, at: Family
) -> None:
    node.maps["devices"].remove(SECOND_INDEX.to_bytes(4, sys.byteorder))
    run = node.run("from_pod", udp(at.pod, FAR[at.version], node.free_port(), 53))
    assert (run.result, Ether(run.packet)[at.ip].src) == (TC_ACT_OK, at.pod)


def test_an_error_about_what_left_by_a_device_reaches_the_pod_and_a_pods_own_bears_that_address(
    node: Routed, at: Family
) -> None:
    own, far, port = SECOND[at.version], FAR[at.version], node.free_port()
    sent = node.passes("from_pod", udp(at.pod, far, port, 5000))
    run = on(
        node, SECOND_INDEX, "from_netdev", error("2001:db8:77::fe" if at is V6 else "203.0.113.130", own, sent[at.ip])
    )
    assert (run.result, Ether(run.packet)[at.ip].dst) == (TC_ACT_REDIRECT, at.pod)
    on(node, SECOND_INDEX, "from_netdev", udp(far, own, 5000, sent[UDP].sport))
    told = node.passes("from_pod", error(at.pod, far, ip(far, at.pod) / UDP(sport=5000, dport=port) / b"12345678"))
    assert told[at.ip].src == own
    quoted = told[ICMP].payload if at is V4 else told[at.ip].payload.payload
    assert quoted.dst == own


def test_nobody_speaks_for_the_node_or_its_pods_on_any_device(node: Routed, at: Family) -> None:
    for index in (DEVICE_INDEX, SECOND_INDEX):
        for source in (at.node, SECOND[at.version], at.pod):
            assert dropped_on(node, index, tcp(source, at.pod, node.free_port(), 80)) == INVALID_SOURCE


def test_pods_of_other_nodes_come_only_by_devices_that_lead_to_some(node: Routed, at: Family) -> None:
    port = node.free_port()
    assert dropped_on(node, DEVICE_INDEX, tcp(at.remote, at.pod, port, 80)) == 0
    assert dropped_on(node, SECOND_INDEX, tcp(at.remote, at.pod, node.free_port(), 80)) == INVALID_SOURCE
    assert dropped_on(node, SECOND_INDEX, tcp(at.remote, at.pod, port, 80, "A")) == INVALID_SOURCE, "nor slips one in"
    assert dropped_on(node, DEVICE_INDEX, tcp(at.remote, at.pod, port, 80, "A")) == 0
    node.device(SECOND_INDEX, SECOND[4], SECOND[6], has_pods=True)
    assert dropped_on(node, SECOND_INDEX, tcp(at.remote, at.pod, node.free_port(), 80)) == 0


def test_what_answers_a_call_from_outside_goes_where_the_routes_lead(node: Routed, at: Family) -> None:
    port, far = node.free_port(), FAR[at.version]
    assert dropped_on(node, SECOND_INDEX, tcp(far, at.pod, port, 80)) == 0
    run = node.run("from_pod", tcp(at.pod, far, 80, port, "SA"))
    assert (run.result, Ether(run.packet)[at.ip].src) == (TC_ACT_REDIRECT, at.pod)
    kept = [pack_address(each.hop) for each in node.connections().values() if each.hop]
    assert kept == [bytes(12) + SECOND_INDEX.to_bytes(4, sys.byteorder)]


def test_the_nodes_own_calls_for_no_service_are_refused_on_each_device(node: Routed, at: Family) -> None:
    for index in (DEVICE_INDEX, SECOND_INDEX):
        own = at.node if index == DEVICE_INDEX else SECOND[at.version]
        before = node.drops()[NO_BACKEND]
        run = on(node, index, "to_netdev", tcp(own, unused(at), node.free_port(), 80))
        assert (run.result, Ether(run.packet)[TCP].flags) == (TC_ACT_REDIRECT, "RA")
        assert node.drops()[NO_BACKEND] == before + 1


def test_what_is_for_another_address_of_the_node_and_answers_nothing_is_its_stacks(node: Routed, at: Family) -> None:
    run = on(node, SECOND_INDEX, "from_netdev", tcp(FAR[at.version], SECOND[at.version], 443, 22))
    assert run.result == TC_ACT_UNSPEC
