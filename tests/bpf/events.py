"""The kernel's events for tests: read as the observer reads them, with names for what they say."""

from __future__ import annotations

import os
from dataclasses import dataclass

from services.dataplane.kernel.bpf import Map, possible_cpus
from services.dataplane.shapes import layouts
from services.hubble import records
from services.hubble.flow import address_text
from services.hubble.records import DROP, POLICY_VERDICT, TRACE, Record
from services.hubble.ring import BATCH_MAX
from services.hubble.ring import Ring as Reader
from tests.bpf.datapath import Datapath

TYPES = (DROP, TRACE, POLICY_VERDICT)


@dataclass(frozen=True, slots=True)
class Event:
    """A packet that was dropped or judged. `at` is CLOCK_MONOTONIC in ns."""

    at: int
    source_identity: int
    destination_identity: int
    source: str
    destination: str
    source_port: int
    destination_port: int
    protocol: int
    type: int
    reason: int
    direction: int
    policy: int
    cookie: int
    length: int
    line: int
    file: int

    @classmethod
    def of(cls, record: Record) -> Event:
        at, source_id, destination_id, source, destination, source_port, destination_port, *rest = record
        ends = address_text(source), address_text(destination)
        return cls(
            at, source_id, destination_id, *ends, records.port(source_port), records.port(destination_port), *rest
        )


class Ring:
    """The buffer's one reader. Each event is one of ours, or the test fails."""

    def __init__(self, events: Map) -> None:
        self.reader = Reader(os.dup(events.fd), events.info.max_entries)

    def close(self) -> None:
        self.reader.close()

    def take(self, most: int = BATCH_MAX) -> list[Event]:
        taken = self.reader.take(most)
        assert taken.strange == 0
        return [Event.of(each) for each in taken.records]


def events_lost(datapath: Datapath) -> int:
    """Events that the kernel did not pass on since the maps were made: over the rate, or no room."""
    values = (datapath.maps["event_rate"].get(kind.to_bytes(4, "little")) or b"" for kind in TYPES)
    return sum(row[2] for value in values for row in layouts.EventRate.layout.iter_unpack(value))


def fresh_rate(datapath: Datapath) -> None:
    """As if this window had seen no events."""
    empty = bytes(layouts.EventRate.layout.size * possible_cpus())
    for kind in TYPES:
        datapath.maps["event_rate"].set(kind.to_bytes(4, "little"), empty)
