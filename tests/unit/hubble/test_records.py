"""Bytes of the kernel's ring buffer become records, whatever else lies between them."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from services.hubble import records
from tests.unit.hubble.made import record, ring

SIZE = 1 << 12


def twice(data: bytes) -> bytes:
    """As the kernel maps a ring: its bytes two times in a row."""
    assert len(data) <= SIZE
    whole = data + bytes(SIZE - len(data))
    return whole + whole


def test_records_come_out_in_order_and_the_position_is_behind_the_last() -> None:
    wanted = [record(at=1), record(at=2, source="fd00::1", destination="fd00::2")]
    data = ring(*wanted)
    assert records.take(twice(data), 0, len(data), SIZE, 10) == (wanted, len(data), 0)


def test_no_more_are_taken_than_asked_and_the_rest_is_there_the_next_time() -> None:
    wanted = [record(at=each) for each in range(5)]
    data = ring(*wanted)
    first = records.take(twice(data), 0, len(data), SIZE, 2)
    rest = records.take(twice(data), first.position, len(data), SIZE, 10)
    assert first.records + rest.records == wanted


def test_what_is_reserved_and_not_yet_written_ends_the_batch_and_is_waited_for() -> None:
    data = ring(record(at=1), record(at=2), record(at=3), busy=1)
    taken = records.take(twice(data), 0, len(data), SIZE, 10)
    assert [each[records.AT] for each in taken.records] == [1] and taken.position == len(ring(record()))


def test_what_was_discarded_is_passed_over_and_what_is_of_another_layout_is_counted() -> None:
    data = ring(record(at=1), record(at=2), b"another", record(at=4), discarded=frozenset({1}))
    taken = records.take(twice(data), 0, len(data), SIZE, 10)
    assert [each[records.AT] for each in taken.records] == [1, 4] and taken.strange == 1


def test_a_record_over_the_end_of_the_ring_is_whole() -> None:
    """The ring is 4096 bytes and a record takes 80: the 52nd begins 16 bytes before the end."""
    wanted = record(at=7)
    raw = ring(wanted)
    start = SIZE - 16
    whole = bytearray(SIZE)
    for number, byte in enumerate(raw):
        whole[(start + number) % SIZE] = byte
    taken = records.take(bytes(whole) * 2, start + 3 * SIZE, start + 3 * SIZE + len(raw), SIZE, 10)
    assert taken == ([wanted], start + 3 * SIZE + len(raw), 0)


@given(st.integers(0, 65535))
def test_a_port_reads_as_people_write_it(port: int) -> None:
    assert records.port(socket.htons(port)) == port


@given(st.lists(st.one_of(st.integers(0, 1 << 40), st.binary(min_size=1, max_size=60)), max_size=20), st.integers(1, 7))
def test_in_whatever_batches_every_record_comes_once_and_in_order(bodies: list[int | bytes], most: int) -> None:
    data = ring(*(record(at=each) if isinstance(each, int) else each for each in bodies))
    whole = data + bytes(SIZE - len(data))
    found, position, strange = [], 0, 0
    while position < len(data):
        taken = records.take(whole + whole, position, len(data), SIZE, most)
        assert taken.position > position, "a turn that takes nothing would never end"
        found += [each[records.AT] for each in taken.records]
        position, strange = taken.position, strange + taken.strange
    assert found == [each for each in bodies if isinstance(each, int)]
    assert strange == sum(isinstance(each, bytes) for each in bodies)
