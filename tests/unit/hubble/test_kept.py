"""The ring keeps the last flows; who reads too slowly is told how many it missed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.hubble.api import flow_pb2 as pb
from services.hubble.kept import Kept, Losses, Namespaces, Rate


@dataclass(frozen=True)
class Item:
    time_ns: int


def items(*times: int) -> list[Item]:
    return [Item(each) for each in times]


def anything(item: Item) -> bool:
    return True


@pytest.mark.parametrize("capacity", [0, 2, 4094, 4096, 131071])
def test_a_capacity_that_is_not_one_below_a_power_of_two_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match=f"not {capacity}"):
        Kept(capacity)


@given(st.sampled_from([1, 3, 7]), st.lists(st.integers(0, 20), max_size=12))
def test_whatever_the_batches_the_last_ones_are_here_at_their_positions(capacity: int, sizes: list[int]) -> None:
    kept: Kept[Item] = Kept(capacity)
    count = 0
    for size in sizes:
        kept.add(items(*range(count, count + size)))
        count += size
        wanted = list(range(max(0, count - capacity), count))
        found = kept.read(0, 1000)
        assert [each.time_ns for each in found.items] == wanted
        assert (found.position, found.lost, len(kept), kept.seen) == (
            count,
            max(0, count - capacity),
            len(wanted),
            count,
        )


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_a_reader_gets_or_is_told_of_every_item_once(turns: list[tuple[int, int]]) -> None:
    kept: Kept[Item] = Kept(7)
    position, count, read, lost = 0, 0, [], 0
    for more, most in turns:
        kept.add(items(*range(count, count + more)))
        count += more
        found = kept.read(position, most)
        read += [each.time_ns for each in found.items]
        lost += found.lost
        position = found.position
    assert read == sorted(set(read)) and len(read) + lost == position <= count


def test_the_last_and_the_first_of_those_that_match() -> None:
    kept: Kept[Item] = Kept(7)
    kept.add(items(*range(10)))

    def even(item: Item) -> bool:
        return item.time_ns % 2 == 0

    assert kept.last(2, even) == items(6, 8) and kept.first(2, even) == items(4, 6)
    assert kept.last(0, even) == kept.first(0, even) == items(4, 6, 8)
    assert kept.last(0, anything, 4, 6) == kept.first(0, anything, 4, 6) == items(4, 5, 6)


def test_each_reader_is_told_of_each_loss_once() -> None:
    losses, one, other = Losses(), {}, {}  # type: ignore[var-annotated]  # by source
    losses.add(pb.PERF_EVENT_RING_BUFFER, 3, 100)
    assert [(each.count, each.last_ns) for each in losses.since(one)] == [(3, 100)]
    losses.add(pb.PERF_EVENT_RING_BUFFER, 2, 200)
    losses.add(pb.OBSERVER_EVENTS_QUEUE, 0, 300)
    assert [each.count for each in losses.since(one)] == [2] and losses.since(one) == []
    assert [(each.source, each.count) for each in losses.since(other)] == [(pb.PERF_EVENT_RING_BUFFER, 5)]


def test_a_rate_is_of_the_last_minute_or_since_the_start() -> None:
    rate = Rate(100.0)
    rate.add(50, 100.5)
    rate.add(50, 109.0)
    assert rate.per_second(110.0) == 10.0
    assert rate.per_second(165.0) == pytest.approx(50 / 60)
    assert rate.per_second(200.0) == 0.0


def test_a_namespace_is_forgotten_an_hour_after_it_was_seen() -> None:
    seen = Namespaces()
    seen.add({"b", "a"}, 0.0)
    seen.add({"a"}, 3000.0)
    assert seen.seen(3500.0) == ["a", "b"] and seen.seen(3600.0) == ["a"] and seen.seen(6600.0) == []
