"""Rounds, medians and ratios."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness import interleave, percentile, ratio


def test_sides_take_turns_in_every_round() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    values = interleave({"a": lambda: side("a"), "b": lambda: side("b")}, rounds=3)

    assert order == ["a", "b", "a", "b", "a", "b"]
    assert values == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}


def test_no_round_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="rounds"):
        interleave({"a": lambda: 1.0}, rounds=0)


def test_a_machine_that_slows_down_changes_no_ratio() -> None:
    speeds = [1.0, 0.8, 0.6, 0.5, 0.4]
    found = ratio([90 * speed for speed in speeds], [100 * speed for speed in speeds])
    assert found.median == pytest.approx(0.9)
    assert found.lowest == pytest.approx(0.9)
    assert found.highest == pytest.approx(0.9)


def test_sides_that_are_slowed_down_together_compare_as_if_they_were_not() -> None:
    """The ratio of the medians would be 1.1."""
    found = ratio([90, 45, 44], [100, 50, 40])
    assert found.median == pytest.approx(0.9)


def test_one_disturbed_round_shows_in_the_pairs_and_not_in_the_median() -> None:
    found = ratio([95, 95, 10, 95, 95], [100, 100, 100, 100, 100])
    assert found.median == pytest.approx(0.95)
    assert found.lowest == pytest.approx(0.1)


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_what_cannot_be_compared_is_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match=r"pair|above zero"):
        ratio(ours, theirs)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.integers(0, 100))
def test_a_percentile_is_a_value_that_enough_others_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(values, percent / 100)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)


def test_the_ends_of_the_scale_are_the_lowest_and_the_highest_value() -> None:
    assert percentile([3.0, 1.0, 2.0], 0) == 1.0
    assert percentile([3.0, 1.0, 2.0], 1) == 3.0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
