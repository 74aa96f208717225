"""What was measured, what was promised, and whether it was reached. Pure.

The bars are those that the project set itself; a bar changes by decision, in `BARS`, never to make a run look better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.harness import Ratio, percentile, ratio
from lab.plan import FAMILIES, Family


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise about the median of a figure, or, where there is another side, about its ratio to that."""

    limit: float
    at_least: bool  # True: the figure must be `limit` or more; False: it must stay below
    peer: float | None = None  # the same of Cilium 1.19.4 on a machine like those that build this; for people
    always: bool = False  # the promise is about every value: one lost packet in one of many rounds breaks it

    def is_reached_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value < self.limit


def least(limit: float, peer: float | None = None) -> Bar:
    """`limit` or more."""
    return Bar(limit, at_least=True, peer=peer)


def below(limit: float, peer: float | None = None) -> Bar:
    """Less than `limit`."""
    return Bar(limit, at_least=False, peer=peer)


def never(limit: float, peer: float | None = None) -> Bar:
    """Not once `limit` or more."""
    return Bar(limit, at_least=False, peer=peer, always=True)


FAMILY_NAMES: dict[Family, str] = {4: "", 6: ", IPv6"}  # behind a group's name
_WAYS = {  # TCP stream, request/response, short connections; the peer was measured with IPv4 only
    "one node": (least(0.95, 0.95), least(0.95, 0.91), least(0.85, 0.81)),
    "across nodes": (least(0.97, 0.94), least(0.90, 0.83), least(0.85, 0.76)),
    "tunnel": (least(0.90, 0.84), least(0.80, 0.69), least(0.72, 0.60)),
}
_LOADS = ("TCP stream", "request/response", "short connections")
NOISY = 0.1  # of the processors' time: where others had more, a rate says how busy they were
_PACKETS = {  # nanoseconds
    "pod to a pod of its node": below(330.0, 387.0),
    "pod to a pod of another node": below(230.0, 238.0),
    "from the wire to a pod": below(270.0, 288.0),
}

BARS = {
    **{
        f"{way}{suffix}: {load}": bar
        for way, bars in _WAYS.items()
        for suffix in FAMILY_NAMES.values()
        for load, bar in zip(_LOADS, bars, strict=True)
    },
    **{  # the promise about the rate, where others' load takes nothing away from it
        f"{way}{suffix}: TCP stream, per CPU": Bar(bars[0].limit, at_least=True)
        for way, bars in _WAYS.items()
        for suffix in FAMILY_NAMES.values()
    },
    **{
        f"packet, {mode} v{family}: {path}": bar
        for mode in ("native", "tunnel")
        for family in FAMILIES
        for path, bar in _PACKETS.items()
        if mode == "native" or "wire" not in path
    },
    "CNI ADD: one after the other": below(40.0, 144.0),  # milliseconds
    "CNI ADD: 20 at once": below(200.0),  # milliseconds
    "policy: commit to the last node's maps": below(100.0),  # milliseconds
    "masquerade: failed connections": never(1),
    "survival: lost packets": never(1),
    "survival: broken streams": never(1),
    **{
        f"survival: longest stall, killed, {way}": never(50.0, 200.0)  # milliseconds
        for way in ("one node", "across nodes", "ClusterIP at tc", "masqueraded")
    },
    "announcements: 1000 addresses, 100 nodes, messages": below(400.0),  # a second; a lease a Service makes 5000 of it
    "announcements: 1000 addresses, 100 nodes, l2announce": below(10.0),  # % of a CPU
    "memory: idle dataplane process": below(90.0, 208.0),  # MB resident
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured several times.

    Args:
        name: "group: what"; the key of its bar in `BARS`, if it has one.
        unit: of the values, for people: "Gb/s", "1/s", "ms", "MB".
        values: with Plexus, in the order in which they were taken.
        plain: without, taken in turns with `values`; empty where there is nothing to compare with.
        beside: what the yardstick took right after each of `values`, in ns (bench/recorded.py).
        others: the share of the processors' time that somebody else had during each of `values` or its pair; empty
            where that does not matter or is not known.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    plain: tuple[float, ...] = ()
    beside: tuple[float, ...] = ()
    others: tuple[float, ...] = ()

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
    def is_noisy(self) -> bool:
        """Whether others were too busy for this to be judged."""
        return bool(self.others) and median(self.others) > NOISY

    @property
    def is_reached(self) -> bool | None:
        """Whether the bar is reached; None without a bar, and where the machine was too noisy to tell."""
        if self.bar is None or self.is_noisy:
            return None
        if self.bar.always:
            return all(map(self.bar.is_reached_by, self.values))
        compared = self.ratio
        return self.bar.is_reached_by(self.median if compared is None else compared.median)

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
            "ratio": compared and compared.median,
            "ratio_lowest": compared and compared.lowest,
            "ratio_highest": compared and compared.highest,
            "bar": self.bar and self.bar.limit,
            "peer": self.bar and self.bar.peer,
            "bar_is": self.bar and ("at least" if self.bar.at_least else "below"),
            "reached": self.is_reached,
            "others": list(self.others),
            "noisy": self.is_noisy,
        }


TRAFFIC_COLUMNS = ("pod to pod", "unit", "Plexus", "plain", "ratio", "of pairs", "others", "bar (peer)", "reached")
COST_COLUMNS = ("cost", "unit", "median", "lowest", "p90", "highest", "bar (peer)", "reached")


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
                f"{compared.median:.3f}",
                f"{compared.lowest:.2f}-{compared.highest:.2f}",
                f"{median(figure.others):.0%}" if figure.others else "",
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
    """The bar in words, its peer's figure in brackets, and "yes", "no", "noisy" or nothing."""
    if figure.bar is None:
        return "", ""
    sign = "≥" if figure.bar.at_least else "<"
    peer = "" if figure.bar.peer is None else f" ({figure.bar.peer:g})"
    return f"{sign} {figure.bar.limit:g}{peer}", "noisy" if figure.is_noisy else "yes" if figure.is_reached else "no"


def summary(figures: Sequence[Figure]) -> str:
    """One line: how many bars there were, which were missed, and which could not be judged."""
    judged = [figure for figure in figures if figure.is_reached is not None]
    missed = [figure.name for figure in judged if not figure.is_reached]
    noisy = [figure.name for figure in figures if figure.bar is not None and figure.is_noisy]
    text = f"{len(judged) - len(missed)} of {len(judged)} bars reached"
    if missed:
        text += f"; missed: {', '.join(missed)}"
    return f"{text}; others were too busy to judge: {', '.join(noisy)}" if noisy else text
