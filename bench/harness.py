"""Rounds, medians and ratios. Pure: what is measured is passed in as a function.

A shared machine drifts by tens of percent within minutes. Two sides that are to be compared therefore take turns in one
run, and each round gives one pair; medians and ratios are quoted, single values never.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

Value = TypeVar("Value")


def interleave(sides: Mapping[str, Callable[[], Value]], rounds: int) -> dict[str, list[Value]]:
    """Measure every side in turns: A B A B. A disturbance that is longer than one measurement hits all sides.

    Returns: for each side its values, one per round, in order; the n-th values of all sides were taken together.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    values: dict[str, list[Value]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            values[name].append(measure())
    return values


@dataclass(frozen=True, slots=True)
class Ratio:
    """`ours / theirs`, pair by pair: the median, the worst and the best.

    The median of the pairs' ratios, not the ratio of the medians: what slows both values of a pair down changes
    nothing.
    """

    median: float
    lowest: float
    highest: float


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Compare the values of two sides that took turns.

    Args: equally many values, in the order in which they were taken; `theirs` all above zero.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"cannot pair {len(ours)} values with {len(theirs)}")
    if min(theirs) <= 0:
        raise ValueError("the other side has a value that is not above zero")
    pairs = [mine / its for mine, its in zip(ours, theirs, strict=True)]
    return Ratio(median(pairs), min(pairs), max(pairs))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of all values do not exceed (nearest rank)."""
    if not values or not 0 <= share <= 1:
        raise ValueError(f"no percentile {share} of {len(values)} values")
    rank = max(1, -(-len(values) * round(share * 1000) // 1000))
    return sorted(values)[rank - 1]
