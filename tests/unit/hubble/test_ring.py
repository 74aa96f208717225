"""Reading a ring buffer whose every byte the test writes: a file laid out as the kernel lays one out."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from services.hubble import records
from services.hubble.ring import Ring
from tests.unit.hubble.made import record, ring

SIZE = mmap.PAGESIZE
STEP = len(ring(record()))


class Kernel:
    """The producer's side. The kernel maps the data twice in a row; here every byte is written at both places."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.produced = 0

    def add(self, at: int, *, is_busy: bool = False) -> None:
        self.write(self.produced, ring(record(at=at), busy=0 if is_busy else -1))
        self.produced += STEP
        os.pwrite(self.fd, struct.pack("=Q", self.produced), mmap.PAGESIZE)

    def write(self, position: int, data: bytes) -> None:
        for offset, byte in enumerate(data):
            place = 2 * mmap.PAGESIZE + (position + offset) % SIZE
            for copy in (place, place + SIZE):
                os.pwrite(self.fd, bytes([byte]), copy)

    def consumed(self) -> int:
        return int(struct.unpack("=Q", os.pread(self.fd, 8, 0))[0])


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    os.close(made.fd)


@pytest.fixture
def reader(kernel: Kernel) -> Iterator[Ring]:
    made = Ring(os.dup(kernel.fd), SIZE)
    yield made
    made.close()


def ats(reader: Ring, most: int = 1024) -> list[int]:
    return [each[records.AT] for each in reader.take(most).records]


def test_records_come_in_order_and_make_room(kernel: Kernel, reader: Ring) -> None:
    for number in range(3):
        kernel.add(number)
    assert ats(reader, 2) == [0, 1] and kernel.consumed() == 2 * STEP
    assert ats(reader) == [2] and kernel.consumed() == kernel.produced
    assert ats(reader) == []


def test_a_record_across_the_end_is_whole(kernel: Kernel, reader: Ring) -> None:
    crossed = 0
    for number in range(5 * SIZE // STEP):
        crossed += kernel.produced % SIZE + STEP > SIZE
        kernel.add(number)
        assert ats(reader) == [number]
    assert crossed


def test_a_record_that_is_being_written_is_waited_for(kernel: Kernel, reader: Ring) -> None:
    kernel.add(1)
    kernel.add(2, is_busy=True)
    kernel.add(3)
    assert ats(reader) == [1] and ats(reader) == [] and kernel.consumed() == STEP
    kernel.write(STEP, ring(record(at=2)))
    assert ats(reader) == [2, 3]


def test_a_new_reader_goes_on_where_the_last_one_was(kernel: Kernel, reader: Ring) -> None:
    kernel.add(1)
    assert ats(reader) == [1]
    kernel.add(2)
    again = Ring(os.dup(kernel.fd), SIZE)
    assert ats(again) == [2]
    again.close()
