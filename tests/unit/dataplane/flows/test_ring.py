"""Reading a ring buffer whose every byte the test writes: a file laid out as the kernel lays one out."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import cast

import pytest

from services.dataplane.flows.ring import Ring
from services.dataplane.kernel.bpf import Map, MapInfo
from services.dataplane.shapes.events import Event

SIZE = mmap.PAGESIZE
BUSY, DISCARDED = 1 << 31, 1 << 30
RECORD = (8 + Event.layout.size + 7) // 8 * 8


class MemoryRing:
    """The producer's side. The kernel maps the data twice in a row; here every byte is written at both places."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.info = MapInfo(27, 1, 0, 0, SIZE)
        self.produced = 0

    def header(self, at: int, length: int) -> None:
        self._write(at, struct.pack("=II", length, 0))

    def add(self, number: int, flags: int = 0, body: bytes | None = None) -> int:
        """One record, whose event has `number` as its length of packet; returns where it is."""
        fields = (0, 0, 0, bytes(4), bytes(4), bytes(2), bytes(2), 6, 1, 133, 0, 0, 0, number, 1, 1)
        record = Event.layout.pack(*fields) if body is None else body
        at = self.produced
        self.header(at, len(record) | flags)
        self._write(at + 8, record)
        self.produced += (8 + len(record) + 7) // 8 * 8
        os.pwrite(self.fd, struct.pack("=Q", self.produced), mmap.PAGESIZE)
        return at

    def consumed(self) -> int:
        return int(struct.unpack("=Q", os.pread(self.fd, 8, 0))[0])

    def _write(self, at: int, data: bytes) -> None:
        for offset, byte in enumerate(data):
            place = 2 * mmap.PAGESIZE + (at + offset) % SIZE
            for copy in (place, place + SIZE):
                os.pwrite(self.fd, bytes([byte]), copy)


@pytest.fixture
def memory() -> Iterator[MemoryRing]:
    made = MemoryRing()
    yield made
    os.close(made.fd)


@pytest.fixture
def ring(memory: MemoryRing) -> Iterator[Ring]:
    made = Ring(cast(Map, memory))
    yield made
    made.close()


def numbers(events: list[Event]) -> list[int]:
    return [event.length for event in events]


def test_events_come_in_order_and_make_room(memory: MemoryRing, ring: Ring) -> None:
    for number in range(3):
        memory.add(number)
    assert numbers(ring.take()) == [0, 1, 2]
    assert memory.consumed() == memory.produced == 3 * RECORD
    assert ring.take() == []


def test_no_more_are_taken_than_asked_for(memory: MemoryRing, ring: Ring) -> None:
    for number in range(5):
        memory.add(number)
    assert numbers(ring.take(2)) == [0, 1]
    assert memory.consumed() == 2 * RECORD
    assert numbers(ring.take()) == [2, 3, 4]


def test_a_record_across_the_end_is_whole(memory: MemoryRing, ring: Ring) -> None:
    crossed = 0
    for number in range(5 * SIZE // RECORD):
        at = memory.add(number)
        crossed += at % SIZE + RECORD > SIZE
        assert numbers(ring.take()) == [number]
    assert crossed


def test_a_record_that_is_being_written_is_waited_for(memory: MemoryRing, ring: Ring) -> None:
    memory.add(1)
    busy = memory.add(2, BUSY)
    memory.add(3)
    assert numbers(ring.take()) == [1]
    assert ring.take() == []
    assert memory.consumed() == busy
    memory.header(busy, Event.layout.size)
    assert numbers(ring.take()) == [2, 3]


def test_what_is_discarded_or_not_an_event_is_passed_over(memory: MemoryRing, ring: Ring) -> None:
    memory.add(1, DISCARDED)
    memory.add(2)
    memory.add(3, body=b"short")
    memory.add(4, body=bytes(Event.layout.size + 8))
    memory.add(5)
    assert numbers(ring.take()) == [2, 5]
    assert memory.consumed() == memory.produced


def test_a_new_reader_goes_on_where_the_last_one_was(memory: MemoryRing, ring: Ring) -> None:
    memory.add(1)
    ring.take()
    memory.add(2)
    again = Ring(cast(Map, memory))
    assert numbers(again.take()) == [2]
    again.close()
