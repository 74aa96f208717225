"""The observer reads, by the pins alone, what the programs wrote: from a packet to a flow on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS
from services.hubble.api import flow_pb2 as pb
from services.hubble.flow import Place
from services.hubble.joiner import Joiner
from services.hubble.names import Names
from services.hubble.ring import Events
from tests.bpf.datapath import OTHER_NODE, POD, REMOTE, Datapath, tcp
from tests.bpf.events import fresh_rate

EVENTS_PER_WINDOW = 128  # bpf/include/limits.h


@pytest.fixture
def events(datapath: Datapath) -> Iterator[Events]:
    """Nothing waits in the buffer, and this window has seen no events."""
    with closing(Events(datapath.pin_dir)) as found:
        while found.ring.take().records:
            pass
        fresh_rate(datapath)
        datapath.endpoint(POD, 256, policy=9, flags=FLAG_ENFORCE_EGRESS)
        datapath.who(REMOTE, 300, OTHER_NODE)
        datapath.maps.raise_epoch()
        yield found


def test_a_dropped_packet_is_a_flow_with_both_ends_reason_and_place(datapath: Datapath, events: Events) -> None:
    datapath.run("from_pod", tcp(POD, REMOTE, 1234, 80))
    taken = events.ring.take()
    assert taken.strange == 0
    (flow,) = Joiner(Names("node1"), Place("node1")).join(taken.records, 0)
    found = flow.message()
    assert (found.IP.source, found.IP.destination) == (POD, REMOTE)
    assert (found.l4.TCP.source_port, found.l4.TCP.destination_port) == (1234, 80)
    assert (found.source.identity, found.destination.identity) == (256, 300)
    assert found.verdict == pb.DROPPED and found.drop_reason_desc == pb.POLICY_DENIED
    assert found.traffic_direction == pb.EGRESS and found.file.name == "policy.h" and found.file.line > 0


def test_what_the_kernel_does_not_tell_is_counted(datapath: Datapath, events: Events) -> None:
    before, sent = events.lost(), 10 * EVENTS_PER_WINDOW
    datapath.run("from_pod", tcp(POD, REMOTE, 1234, 80), repeat=sent)
    told = 0
    while records := events.ring.take().records:
        told += len(records)
    lost = events.lost() - before
    assert lost > 0 and told + lost == sent
