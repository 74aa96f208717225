"""Events out of the kernel: what they say, how many there are, and that the ring gives them all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.dataplane.kernel.bpf import possible_cpus
from services.dataplane.parts.policy.entries import EGRESS, INGRESS
from services.dataplane.shapes import layouts, reasons
from services.dataplane.shapes.layouts import (
    FLAG_ENFORCE_EGRESS,
    FLAG_ENFORCE_INGRESS,
)
from services.hubble import records
from services.hubble.records import DROP, POLICY_VERDICT, TRACE
from tests.bpf.conftest import loaded
from tests.bpf.datapath import NEIGHBOUR, NODE, OTHER_NODE, OUTSIDE, POD, REMOTE, Datapath, echo, frame, tcp, udp
from tests.bpf.events import Event, Ring, events_lost, fresh_rate

BPF = Path(layouts.__file__).parents[1] / "bpf"
CLOCK_MONOTONIC_COARSE = 6  # linux/time.h
WINDOW_SHIFT, EVENTS_PER_WINDOW = 27, 128  # bpf/include/limits.h


@pytest.fixture
def ring(datapath: Datapath) -> Iterator[Ring]:
    with closing(Ring(datapath.maps["events"])) as found:
        while found.take():
            pass
        fresh_rate(datapath)
        datapath.endpoint(POD, 256)
        datapath.endpoint(NEIGHBOUR, 257)
        datapath.who(REMOTE, 300, OTHER_NODE)
        datapath.who(NODE, 1)
        datapath.maps.raise_epoch()
        yield found


def source_line(event: Event) -> str:
    name = reasons.file_name(event.file)
    folder = BPF / "programs" if name.endswith(".bpf.c") else BPF / "include"
    return (folder / name).read_text().splitlines()[event.line - 1]


def test_a_drop_says_who_what_why_and_where(datapath: Datapath, ring: Ring) -> None:
    datapath.endpoint(POD, 256, policy=9, flags=FLAG_ENFORCE_EGRESS)
    datapath.maps.raise_epoch()
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    packet = tcp(POD, REMOTE, 1234, 80)
    datapath.run("from_pod", packet)
    [event] = ring.take()
    assert (event.source, event.source_port, event.destination, event.destination_port) == (POD, 1234, REMOTE, 80)
    assert (event.source_identity, event.destination_identity) == (256, 300)
    assert (event.protocol, event.type, event.reason, event.direction) == (6, DROP, 133, EGRESS)
    assert (event.policy, event.cookie, event.length) == (9, 0, len(packet))
    assert reasons.reason_name(event.reason) == "Policy denied"
    assert reasons.file_name(event.file) == "policy.h"
    assert abs(event.at - before) < 60e9
    assert "DROP_POLICY" in source_line(event)


def test_every_drop_names_the_line_that_decided(datapath: Datapath, ring: Ring) -> None:
    datapath.who("10.0.0.0", 3, NODE, bits=24)
    packets = {
        "from_pod": [
            tcp("10.9.9.9", REMOTE, 1, 80),
            tcp(POD, REMOTE, 1, 80, ttl=1),
            tcp(POD, REMOTE, 1, 80, flags="S", version=5),
            frame(b"\0" * 60),
            udp(POD, "224.0.0.1", 1, 80),
            tcp(POD, "10.0.0.99", 1, 80),
        ],
        "to_pod": [tcp(NODE, "10.0.0.99", 1, 80)],
        "from_netdev": [tcp(POD, NEIGHBOUR, 1, 80)],
        "from_overlay": [tcp(REMOTE, POD, 1, 80)],
    }
    files = set()
    for program, each in packets.items():
        for packet in each:
            reason = datapath.dropped_for(program, packet)
            [event] = ring.take()
            assert event.reason == reason
            line = source_line(event)
            assert "DROP(" in line or "REFUSE(" in line, (program, line)
            files.add(reasons.file_name(event.file))
    assert files == {"pod.bpf.c", "forward.h", "parse.h", "sender.h", "overlay.bpf.c"}


def test_a_reply_that_is_dropped_names_both_ends_the_right_way_round(datapath: Datapath, ring: Ring) -> None:
    datapath.endpoint(POD, 256, policy=9, flags=FLAG_ENFORCE_EGRESS)
    datapath.endpoint(NEIGHBOUR, 257, policy=10, flags=FLAG_ENFORCE_INGRESS)
    datapath.allow(9, 257, EGRESS)
    datapath.allow(10, 256, INGRESS)
    datapath.allow(9, 300, EGRESS)
    datapath.maps.raise_epoch()
    datapath.passes("from_pod", udp(POD, NEIGHBOUR, 1000, 53))
    datapath.passes("from_pod", udp(POD, REMOTE, 1000, 53))
    datapath.maps["policy"].remove_many([key for key, _ in datapath.maps["policy"].items()])
    datapath.allow(9, 257, EGRESS)
    datapath.maps.raise_epoch()
    ring.take()
    for program, replier, identity in (("from_pod", NEIGHBOUR, 257), ("from_netdev", REMOTE, 300)):
        assert datapath.dropped_for(program, udp(replier, POD, 53, 1000)) == 133
        [event] = ring.take()
        assert (event.source, event.source_identity) == (replier, identity)
        assert (event.destination, event.destination_identity) == (POD, 256 if replier == NEIGHBOUR else 0)


def test_a_new_connection_that_a_policy_allowed_is_told_once(datapath: Datapath, ring: Ring) -> None:
    datapath.endpoint(POD, 256, policy=9, flags=FLAG_ENFORCE_EGRESS)
    datapath.allow(9, 300, EGRESS)
    datapath.maps.raise_epoch()
    for _ in range(3):
        datapath.run("from_pod", tcp(POD, REMOTE, 1234, 80))
    datapath.run("from_netdev", tcp(REMOTE, POD, 80, 1234, "SA"))
    [event] = ring.take()
    assert (event.type, event.reason, event.direction) == (POLICY_VERDICT, 0, EGRESS)
    assert (event.policy, event.cookie) == (9, 77)


def test_an_open_pods_connection_is_told_once_when_it_begins(datapath: Datapath, ring: Ring) -> None:
    for to in (REMOTE, NEIGHBOUR):
        datapath.run("from_pod", tcp(POD, to, 1234, 80))
        datapath.run("from_pod", tcp(POD, to, 1234, 80, "A"))
        datapath.run("from_netdev" if to == REMOTE else "from_pod", tcp(to, POD, 80, 1234, "SA"))
        [event] = ring.take()
        assert (event.type, event.reason, event.policy, event.direction) == (TRACE, 0, 0, EGRESS)
        assert (event.source, event.destination, event.destination_port) == (POD, to, 80)
    datapath.maps.raise_epoch()
    datapath.run("from_pod", tcp(POD, REMOTE, 1234, 80, "A"))
    assert ring.take() == [], "it is judged again, and has begun before"
    datapath.run("from_netdev", tcp(REMOTE, POD, 1235, 80))
    [event] = ring.take()
    assert (event.type, event.direction, event.source) == (TRACE, INGRESS, REMOTE)


def test_many_connections_are_all_told_where_as_many_drops_are_a_sample(datapath: Datapath, ring: Ring) -> None:
    before, many = events_lost(datapath), 10 * EVENTS_PER_WINDOW
    for number in range(many):
        datapath.run("from_pod", udp(POD, REMOTE, 1000 + number, 53))
    told = []
    while batch := ring.take():
        told += [event.source_port for event in batch]
    assert told == [1000 + number for number in range(many)] and events_lost(datapath) == before


def test_where_nobody_observes_nothing_is_told_and_all_is_counted(tmp_path: Path) -> None:
    with (
        loaded("dark", tmp_path, switches={"OBSERVED": 0}) as pins,
        closing(Datapath(pins)) as dark,
        closing(Ring(dark.maps["events"])) as ring,
    ):
        dark.endpoint(POD, 256)
        dark.who(REMOTE, 300, OTHER_NODE)
        dark.maps.raise_epoch()
        dark.run("from_pod", tcp(POD, REMOTE, 1234, 80))
        assert dark.dropped_for("from_pod", tcp("10.9.9.9", REMOTE, 1, 80)) == 132
        assert ring.take() == [] and events_lost(dark) == 0


def test_an_icmp_event_bears_the_type_where_the_port_is(datapath: Datapath, ring: Ring) -> None:
    datapath.run("from_pod", echo("10.9.9.9", REMOTE, 5))
    [event] = ring.take()
    assert (event.protocol, event.destination_port) == (1, 8)


def test_ten_thousand_drops_are_few_events_and_the_rest_is_accounted_for(datapath: Datapath, ring: Ring) -> None:
    lost = events_lost(datapath)
    dropped = datapath.drops()[132]
    first_window = time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE) >> WINDOW_SHIFT
    datapath.run("from_pod", tcp("10.9.9.9", REMOTE, 1, 80), repeat=10_000)
    windows = (time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE) >> WINDOW_SHIFT) - first_window + 1
    told = 0
    while batch := ring.take():
        told += len(batch)
    assert datapath.drops()[132] - dropped == 10_000
    assert 0 < told <= EVENTS_PER_WINDOW * windows * possible_cpus()
    assert told + events_lost(datapath) - lost == 10_000


def test_drops_do_not_use_up_what_verdicts_may_say(datapath: Datapath, ring: Ring) -> None:
    datapath.run("from_pod", tcp("10.9.9.9", REMOTE, 1, 80), repeat=1000)
    datapath.endpoint(POD, 256, policy=9, flags=FLAG_ENFORCE_EGRESS)
    datapath.allow(9, 300, EGRESS)
    datapath.maps.raise_epoch()
    while ring.take():
        pass
    datapath.run("from_pod", tcp(POD, REMOTE, 1234, 80))
    assert [event.type for event in ring.take()] == [POLICY_VERDICT]


def test_events_come_in_order_and_whole_when_the_ring_wraps(datapath: Datapath, ring: Ring) -> None:
    """The ring is filled more than twice over; each event bears its number where the port is."""
    capacity = datapath.maps["events"].info.max_entries // (records.LAYOUT.size + 8)
    sent: list[int] = []
    told: list[int] = []
    while len(sent) < 2 * capacity:
        number = len(sent) // EVENTS_PER_WINDOW
        before = events_lost(datapath)
        fresh_rate(datapath)
        datapath.run("from_pod", udp("10.9.9.9", OUTSIDE, 1, number), repeat=EVENTS_PER_WINDOW)
        assert events_lost(datapath) in (0, before)
        sent += [number] * EVENTS_PER_WINDOW
        told += [event.destination_port for event in ring.take(2 * EVENTS_PER_WINDOW)]
    assert told == sent


def test_a_full_ring_loses_the_newest_and_counts_them(datapath: Datapath, ring: Ring) -> None:
    capacity = datapath.maps["events"].info.max_entries // (records.LAYOUT.size + 8)
    lost = rounds = 0
    while not lost:
        fresh_rate(datapath)
        datapath.run("from_pod", tcp("10.9.9.9", REMOTE, 1, 80), repeat=EVENTS_PER_WINDOW)
        rounds += 1
        lost = events_lost(datapath)
    told = 0
    while batch := ring.take():
        told += len(batch)
    assert told + lost == rounds * EVENTS_PER_WINDOW
    assert capacity - 1 <= told <= capacity


async def test_a_reader_is_woken_and_polls_only_while_it_waits(datapath: Datapath, ring: Ring) -> None:
    loop = asyncio.get_running_loop()
    waiting = asyncio.ensure_future(ring.reader.readable(60))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    datapath.run("from_pod", tcp("10.9.9.9", REMOTE, 1, 80))
    await asyncio.wait_for(waiting, 30)
    assert len(ring.take()) == 1
    datapath.run("from_pod", tcp("10.9.9.9", REMOTE, 2, 80))
    assert not loop.remove_reader(ring.reader.fd), "what comes while nobody waits must not turn the loop"
    assert [event.source_port for event in ring.take()] == [2]
