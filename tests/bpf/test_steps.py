"""Steps: while one is not in its slot, what needs it is dropped and counted, and what does not goes on (ADR 22)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import TCP, UDP

from services.dataplane.kernel import bpf
from services.dataplane.kernel.bpf import Map
from services.dataplane.kernel.steps import Steps, paths
from services.dataplane.shapes import limits
from services.dataplane.shapes.layouts import SERVES_OUTSIDE, ServiceEntry
from tests.bpf.conftest import loaded
from tests.bpf.datapath import (
    NO_BACKEND,
    TC_ACT_SHOT,
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

MISSED_TAIL_CALL = 140
Packet = tuple[str, bytes]  # the program that gets it


@pytest.fixture
def node(routed: Routed) -> Routed:
    return ready(routed)


def ready(node: Routed) -> Routed:
    for at in (V4, V6):
        node.endpoint(at.pod, 256)
        node.who(at.remote, 300, at.other_node)
        node.who(at.node, 1)
    node.maps.raise_epoch()
    return node


def array_of(pin_dir: Path) -> Path:
    [found] = (pin_dir / "maps").glob("steps_*")
    return found


@contextmanager
def kept(pin_dir: Path) -> Iterator[tuple[Map, Steps]]:
    """The array, and who looks after it."""
    generation = array_of(pin_dir).name.removeprefix("steps_")
    assert paths(pin_dir, generation)[0] == array_of(pin_dir)
    with closing(Map.open(array_of(pin_dir))) as array, closing(Steps(pin_dir, generation)) as steps:
        yield array, steps


def to_no_service(node: Routed, at: Family) -> Packet:
    return "from_pod", tcp(at.pod, at.service.removesuffix("10") + "77", node.free_port(), 80)


def to_outside(node: Routed, at: Family) -> Packet:
    return "from_pod", tcp(at.pod, at.outside, node.free_port(), 80)


def of_a_pod(node: Routed, at: Family) -> Packet:
    port = node.free_port()
    node.passes("from_netdev", udp(at.remote, at.pod, 53, port))
    return "from_pod", error(at.pod, at.remote, ip(at.remote, at.pod) / UDP(sport=53, dport=port))


def for_a_pod(node: Routed, at: Family) -> Packet:
    port = node.free_port()
    node.passes("from_pod", udp(at.pod, at.remote, port, 53))
    return "from_netdev", error(at.remote, at.pod, ip(at.pod, at.remote) / UDP(sport=port, dport=53))


def for_a_masqueraded_pod(node: Routed, at: Family) -> Packet:
    sent = node.passes("from_pod", udp(at.pod, at.outside, node.free_port(), 53))
    return "from_netdev", error(at.outside2, at.node, sent[at.ip])


def routed_by_the_stack(node: Routed, at: Family) -> Packet:
    port = node.free_port()
    node.passes("from_pod", udp(at.pod, at.remote, port, 53))
    return "to_pod", error(at.outside2, at.pod, ip(at.pod, at.remote) / UDP(sport=port, dport=53))


def from_outside(node: Routed, at: Family) -> Packet:
    node.maps.serve(SERVES_OUTSIDE)
    node.service(at.outside2, 80, 6, [(at.remote, 8080)], flags=ServiceEntry.EXTERNAL, outside=1)
    return "from_netdev", tcp(at.outside, at.outside2, node.free_port(), 80)


def back_to_outside(node: Routed, at: Family) -> Packet:
    sent = node.passes(*from_outside(node, at))
    return "from_netdev", tcp(at.remote, at.node, 8080, sent[TCP].sport, "SA")


def to_who_wants_it_back(node: Routed, at: Family) -> Packet:
    node.service(at.service, 80, 6, [(at.remote, 8080)], affinity=10)
    return "from_pod", tcp(at.pod, at.service, node.free_port(), 80)


NEED = [
    ("reject", to_no_service, NO_BACKEND),
    ("masquerade_port", to_outside, 0),
    ("icmp_error", of_a_pod, 0),
    ("icmp_error", for_a_pod, 0),
    ("icmp_error", for_a_masqueraded_pod, 0),
    ("icmp_error", routed_by_the_stack, 0),
    ("serve", from_outside, 0),
    ("answer", back_to_outside, 0),
    ("come_back", to_who_wants_it_back, 0),
    ("from_pod", to_who_wants_it_back, 0),
]


@pytest.mark.parametrize(("step", "made", "usual"), NEED, ids=[f"{step}, {made.__name__}" for step, made, _ in NEED])
def test_without_its_step_a_packet_is_dropped_and_the_look_puts_the_step_back(
    node: Routed,
    programs: Path,
    at: Family,
    step: str,
    made: Callable[[Routed, Family], Packet],
    usual: int,
) -> None:
    with kept(programs) as (array, steps):
        slot = limits.steps()[step].to_bytes(4, "little")
        program, packet = made(node, at)
        try:
            array.remove(slot)
            assert node.dropped_for(program, packet) == MISSED_TAIL_CALL
        finally:
            steps.look()
        assert node.dropped_for(program, packet) == usual
        stranger = bpf.open_pinned(programs / "programs/from_overlay")
        array.set(slot, stranger.to_bytes(4, "little"))
        os.close(stranger)
        steps.look()
        assert node.dropped_for(*made(node, at)) == usual


ANSWERS = "answer_link"  # without it nothing is dropped: tests/bpf/test_announcements.py


def test_every_step_is_tested(programs: Path) -> None:
    assert {step for step, _, _ in NEED} | {ANSWERS} == limits.steps().keys()


def test_established_connections_need_no_step(node: Routed, programs: Path, at: Family) -> None:
    """One with a pod elsewhere, one that is masqueraded and one with a Service; both ways."""
    port = node.free_port()
    node.service(at.service, 80, 6, [(at.remote, 8080)])
    mapped = node.passes("from_pod", tcp(at.pod, at.outside, port, 443))[TCP].sport
    ways = [
        ("from_netdev", tcp(at.outside, at.node, 443, mapped, "SA")),
        ("from_pod", tcp(at.pod, at.outside, port, 443, "A")),
        ("from_pod", tcp(at.pod, at.remote, port, 80)),
        ("from_netdev", tcp(at.remote, at.pod, 80, port, "SA")),
        ("from_pod", tcp(at.pod, at.service, port, 80)),
        ("from_netdev", tcp(at.remote, at.pod, 8080, port, "SA")),
    ]
    with kept(programs) as (array, steps):
        try:
            array.remove_many(slot.to_bytes(4, "little") for slot in limits.steps().values())
            assert [node.dropped_for(*way) for way in ways] == [0] * len(ways)
        finally:
            steps.look()


def test_where_the_stack_forwards_what_leaves_without_its_step_is_dropped(tmp_path: Path, at: Family) -> None:
    with (
        loaded("steps", tmp_path, switches={"LEGACY_ROUTING": 1}) as pin_dir,
        closing(Routed(pin_dir)) as node,
        kept(pin_dir) as (
            array,
            steps,
        ),
    ):
        ready(node)
        port = node.free_port()
        packet = tcp(at.pod, at.outside, port, 80)
        came = udp(at.outside, at.pod, 53, port)
        node.passes("from_netdev", came)
        node.passes("from_pod", packet)
        complaint = error(at.pod, at.outside, ip(at.outside, at.pod) / UDP(sport=53, dport=port))
        array.remove_many(slot.to_bytes(4, "little") for slot in limits.steps().values())
        assert [node.dropped_for("to_netdev", each) for each in (packet, complaint)] == [MISSED_TAIL_CALL] * 2
        assert node.run("to_netdev", packet).result == TC_ACT_SHOT
        steps.look()
        assert node.run("to_netdev", packet).result == node.run("to_netdev", complaint).result == TC_ACT_UNSPEC
