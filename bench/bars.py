"""What was measured, what was promised, and whether it was reached. Pure.

The bars are those that the project set itself; a bar changes by decision, in `BARS`, never to make a run look better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.harness import Ratio, percentile, ratio


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise about the median of a figure, or, where there is another side, about its ratio to that."""

    limit: float
    at_least: bool  # True: the figure must be `limit` or more; False: it must stay below

    def is_reached_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value < self.limit


BARS = {
    "one node: TCP stream": Bar(0.95, at_least=True),
    "one node: request/response": Bar(0.95, at_least=True),
    "one node: short connections": Bar(0.85, at_least=True),
    "across nodes: TCP stream": Bar(0.95, at_least=True),
    "across nodes: request/response": Bar(0.88, at_least=True),
    "across nodes: short connections": Bar(0.80, at_least=True),
    "CNI ADD: one after the other": Bar(40.0, at_least=False),  # milliseconds
    "CNI ADD: 20 at once": Bar(200.0, at_least=False),  # milliseconds
    "policy: commit to the last node's maps": Bar(100.0, at_least=False),  # milliseconds
    "survival: lost packets": Bar(1, at_least=False),
    "survival: broken streams": Bar(1, at_least=False),
    **{
        f"survival: longest stall, killed, {way}": Bar(50.0, at_least=False)  # milliseconds
        for way in ("one node", "across nodes", "ClusterIP at tc", "masqueraded")
    },
    "memory: idle dataplane process": Bar(90.0, at_least=False),  # MB resident
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured several times.

    Args:
        name: "group: what"; the key of its bar in `BARS`, if it has one.
        unit: of the values, for people: "Gb/s", "1/s", "ms", "MB".
        values: with Plexus, in the order in which they were taken.
        plain: without, taken in turns with `values`; empty where there is nothing to compare with.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    plain: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def ratio(self) -> Ratio | None:
        """To plain Linux; None where there is nothing to compare with."""
        return ratio(self.values, self.plain) if self.plain else None

    @property
    def bar(self) -> Bar | None:
        return BARS.get(self.name)

    @property
    def is_reached(self) -> bool | None:
        """Whether the bar is reached; None without a bar."""
        if self.bar is None:
            return None
        compared = self.ratio
        return self.bar.is_reached_by(self.median if compared is None else compared.of_medians)

    def as_json(self) -> dict[str, Any]:
        """Everything about it, for `-o json`. Keys are stable."""
        compared = self.ratio
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "p90": percentile(self.values, 0.9),
            "values": list(self.values),
            "plain_median": median(self.plain) if self.plain else None,
            "plain_values": list(self.plain),
            "ratio": compared and compared.of_medians,
            "ratio_lowest": compared and compared.lowest,
            "ratio_highest": compared and compared.highest,
            "bar": self.bar and self.bar.limit,
            "bar_is": self.bar and ("at least" if self.bar.at_least else "below"),
            "reached": self.is_reached,
        }


TRAFFIC_COLUMNS = ("pod to pod", "unit", "Plexus", "plain", "ratio", "of pairs", "bar", "reached")
COST_COLUMNS = ("cost", "unit", "median", "lowest", "p90", "highest", "bar", "reached")


def number(value: float) -> str:
    """Three or four digits that mean something: 14.2, 0.953, 140932."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def traffic_rows(figures: Iterable[Figure]) -> list[tuple[str, ...]]:
    """The cells of `TRAFFIC_COLUMNS` for each figure that has another side."""
    rows: list[tuple[str, ...]] = []
    for figure in figures:
        if (compared := figure.ratio) is None:
            continue
        rows.append(
            (
                figure.name,
                figure.unit,
                number(figure.median),
                number(median(figure.plain)),
                f"{compared.of_medians:.3f}",
                f"{compared.lowest:.2f}-{compared.highest:.2f}",
                *bar_cells(figure),
            )
        )
    return rows


def cost_rows(figures: Iterable[Figure]) -> list[tuple[str, ...]]:
    """The cells of `COST_COLUMNS` for each figure that stands alone."""
    return [
        (
            figure.name,
            figure.unit,
            number(figure.median),
            number(min(figure.values)),
            number(percentile(figure.values, 0.9)),
            number(max(figure.values)),
            *bar_cells(figure),
        )
        for figure in figures
        if not figure.plain
    ]


def bar_cells(figure: Figure) -> tuple[str, str]:
    """The bar in words, and "yes", "no" or nothing."""
    if figure.bar is None:
        return "", ""
    sign = "≥" if figure.bar.at_least else "<"
    return f"{sign} {figure.bar.limit:g}", "yes" if figure.is_reached else "no"


def summary(figures: Sequence[Figure]) -> str:
    """One line: how many bars there were and which were missed."""
    judged = [figure for figure in figures if figure.is_reached is not None]
    missed = [figure.name for figure in judged if not figure.is_reached]
    text = f"{len(judged) - len(missed)} of {len(judged)} bars reached"
    return f"{text}; missed: {', '.join(missed)}" if missed else text
