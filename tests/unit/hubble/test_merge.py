"""Several nodes' flows come out in order of time, once each, and no silent node holds them up for long."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from services.hubble.merge import Merge


def test_a_flow_waits_for_what_another_node_may_still_say() -> None:
    merge: Merge[str] = Merge(hold=1.0)
    merge.join("a")
    merge.join("b")
    merge.put("a", 10, "a10", 0.0)
    assert merge.take(0.1) == []
    merge.put("b", 5, "b5", 0.2)
    assert merge.take(0.2) == ["b5"]
    merge.put("b", 12, "b12", 0.3)
    assert merge.take(0.3) == ["a10"]


def test_a_silent_node_holds_the_others_up_for_so_long_and_no_longer() -> None:
    merge: Merge[str] = Merge(hold=1.0)
    merge.join("a")
    merge.join("silent")
    merge.put("a", 10, "a10", 5.0)
    assert merge.wait(5.5) == 0.5 and merge.take(5.9) == []
    assert merge.take(6.0) == ["a10"] and merge.wait(6.0) is None


def test_nobody_waits_for_a_node_that_left() -> None:
    merge: Merge[str] = Merge(hold=9.0)
    merge.join("a")
    merge.join("b")
    merge.put("a", 10, "a10", 0.0)
    merge.leave("b")
    assert merge.take(0.0) == ["a10"]


def test_with_no_node_left_all_goes_in_order() -> None:
    merge: Merge[str] = Merge(hold=9.0)
    for node in ("a", "b"):
        merge.join(node)
    merge.put("a", 10, "a10", 0.0)
    merge.put("b", 3, "b3", 0.0)
    merge.leave("a")
    merge.leave("b")
    assert merge.take(0.0) == ["b3", "a10"]


def test_what_comes_too_late_is_passed_on_at_once() -> None:
    merge: Merge[str] = Merge(hold=1.0)
    merge.join("a")
    merge.join("b")
    merge.put("a", 10, "a10", 0.0)
    assert merge.take(1.0) == ["a10"]
    merge.put("b", 4, "b4", 1.1)
    assert merge.take(1.1) == ["b4"]


def test_more_than_may_wait_does_not() -> None:
    merge: Merge[int] = Merge(hold=99.0, waiting_max=3)
    merge.join("a")
    merge.join("silent")
    for time in range(5):
        merge.put("a", time, time, 0.0)
    assert merge.take(0.0) == [0, 1] and len(merge) == 3


streams = st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 50), max_size=15).map(sorted), min_size=1)


@given(streams, st.randoms())
def test_ordered_streams_come_out_ordered_and_whole(said: dict[str, list[int]], random: Random) -> None:
    """Without the hold: nothing is passed on before what another node still says."""
    merge: Merge[tuple[int, str, int]] = Merge(hold=1e9)
    waiting = {node: list(enumerate(times)) for node, times in said.items()}
    for node in said:
        merge.join(node)
    found = []
    while waiting:
        node = random.choice(sorted(waiting))
        if waiting[node]:
            number, time = waiting[node].pop(0)
            merge.put(node, time, (time, node, number), 0.0)
        else:
            del waiting[node]
            merge.leave(node)
        found += merge.take(0.0)
    assert [each[0] for each in found] == sorted(each[0] for each in found)
    for node, times in said.items():
        assert [number for _, who, number in found if who == node] == list(range(len(times)))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.floats(0, 0.5)), max_size=30))
def test_every_flow_leaves_once_and_within_the_hold(said: list[tuple[str, int, float]]) -> None:
    merge: Merge[int] = Merge(hold=1.0)
    for node in "abc":  # c says nothing ever
        merge.join(node)
    now = 0.0
    arrived: dict[int, float] = {}
    left: list[int] = []
    for number, (node, time, pause) in enumerate(said):
        now += pause
        merge.put(node, time, number, now)
        arrived[number] = now
        left += merge.take(now)
        assert all(number in left for number, at in arrived.items() if at + 1.0 <= now)
    left += merge.take(now + 1.0)
    assert sorted(left) == list(range(len(said))) and len(merge) == 0
