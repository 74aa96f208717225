"""Rounds, medians and ratios. Pure: what is measured is passed in as a function.

A shared machine drifts by tens of percent within minutes. Two sides that are to be compared therefore take turns in one
run, and each round gives one pair; medians and ratios are quoted, single values never.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median


def interleave(sides: Mapping[str, Callable[[], float]], rounds: int, slices: int = 1) -> dict[str, list[float]]:
    """Measure every side in turns: A B A B.

    Args:
        rounds: values of each side.
        slices: measurements that make up one value, which is their mean. The sides take turns slice by slice, so a
            disturbance that is longer than a slice hits all sides.
    Returns: for each side its values, one per round, in order; the n-th values of all sides were taken together.
    """
    if rounds < 1 or slices < 1:
        raise ValueError(f"rounds and slices must be at least 1, not {rounds} and {slices}")
    values: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        taken = [{name: measure() for name, measure in sides.items()} for _ in range(slices)]
        for name, each in values.items():
            each.append(fmean(slice_[name] for slice_ in taken))
    return values


@dataclass(frozen=True, slots=True)
class Ratio:
    """`ours / theirs`: of the medians, and of the pair that came out worst and best."""

    of_medians: float
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
    return Ratio(median(ours) / median(theirs), min(pairs), max(pairs))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of all values do not exceed (nearest rank)."""
    if not values or not 0 <= share <= 1:
        raise ValueError(f"no percentile {share} of {len(values)} values")
    rank = max(1, -(-len(values) * round(share * 1000) // 1000))
    return sorted(values)[rank - 1]
