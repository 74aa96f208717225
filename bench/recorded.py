"""What packets cost in terms of the yardstick, as recorded in packets.json beside this file: a change of 5 % is seen.

`make bench` compares and prints what changed; `make packets` measures packets alone and records them anew, so that the
difference is reviewed with the change that made it. Ratios differ from processor to processor and from kernel to
kernel, so the record says of which it is, and is compared with nothing else. They differ a little with its speed too:
what a neighbour on the same core takes away costs large programs more. So only values at full speed count, and of those
the best: whatever disturbs only adds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.bars import Figure
from bench.machine import Machine

RECORD = Path(__file__).with_name("packets.json")
SEEN = 0.05  # a share; less than this is not told
SLOW = 1.1  # times what it takes at its best: then the yardstick says that a value is not at full speed
ENOUGH = 1 / 3  # of the values


@dataclass(frozen=True)
class Costs:
    """Of each path that is run many times in a row: its best time by the best of the yardstick, which took turns."""

    processor: str
    kernel: str  # "6.18"
    yardstick_ns: float  # at its best
    ratios: dict[str, float]  # by the figure's name
    slow: tuple[str, ...] = ()  # paths without enough values at full speed

    def is_comparable(self, other: Costs) -> bool:
        return (self.processor, self.kernel) == (other.processor, other.kernel)


def costs(machine: Machine, figures: Sequence[Figure], best_ns: float = math.inf) -> Costs:
    """Out of all figures of a run. `best_ns`: what the yardstick is known to take at full speed."""
    timed = [figure for figure in figures if figure.beside]
    best_ns = min([best_ns, *(min(figure.beside) for figure in timed)])
    ratios: dict[str, float] = {}
    slow: list[str] = []
    for figure in timed:
        pairs = zip(figure.values, figure.beside, strict=True)
        fast = [(value, its) for value, its in pairs if its <= SLOW * best_ns]
        if len(fast) >= ENOUGH * len(figure.values):
            ratios[figure.name] = round(min(value for value, _ in fast) / min(its for _, its in fast), 3)
        else:
            slow.append(figure.name)
    kernel = ".".join(machine.kernel.split(".")[:2])
    return Costs(machine.processor, kernel, best_ns, ratios, tuple(slow))


def changes(before: Costs, now: Costs) -> list[str]:
    """What costs 5 % more or less than recorded, the largest growth first, or is not in both; in words."""
    if not before.is_comparable(now):
        return [f"packets are on record for {before.processor}, Linux {before.kernel}: nothing to compare with here"]
    found = {name: now.ratios[name] / before.ratios[name] - 1 for name in now.ratios.keys() & before.ratios.keys()}
    told = [
        f"{name}: {before.ratios[name]:.2f} -> {now.ratios[name]:.2f} times the yardstick ({share:+.1%})"
        for name, share in sorted(found.items(), key=lambda each: -each[1])
        if abs(share) >= SEEN
    ]
    told += [f"{name}: not on record" for name in (*now.ratios, *now.slow) if name not in before.ratios]
    told += [f"{name}: on record, not measured" for name in before.ratios if name not in (*now.ratios, *now.slow)]
    if found and not told:
        told = [f"no packet costs {SEEN:.0%} more or less than recorded ({len(found)} paths)"]
    return told + ([too_slow(now)] if now.slow else [])


def too_slow(now: Costs) -> str:
    """Which paths say nothing, and what to do."""
    return f"the processor was too slow to judge {len(now.slow)} paths ({now.slow[0]} first): try again"


def as_text(found: Costs) -> str:
    """The record: a line for each path."""
    said = {"processor": found.processor, "kernel": found.kernel, "yardstick_ns": found.yardstick_ns}
    return json.dumps({**said, "ratios": found.ratios}, indent=1) + "\n"


def of_text(text: str) -> Costs:
    """What `as_text` wrote."""
    raw = json.loads(text)
    return Costs(raw["processor"], raw["kernel"], raw["yardstick_ns"], raw["ratios"])


def since_record(machine: Machine, figures: Sequence[Figure]) -> list[str]:
    """What changed since the record was written; nothing where no packets were measured."""
    if not any(figure.beside for figure in figures):
        return []
    try:
        before = of_text(RECORD.read_text())
    except (OSError, ValueError, KeyError) as problem:
        return [f"{RECORD.name} cannot be read; make packets writes it anew ({problem})"]
    now = costs(machine, figures)
    if before.is_comparable(now):
        now = costs(machine, figures, before.yardstick_ns)
    return changes(before, now)


def record(machine: Machine, figures: Sequence[Figure]) -> str:
    """Write the record anew. Returns why not; "" when it is written."""
    now = costs(machine, figures)
    if now.slow:
        return too_slow(now)
    RECORD.write_text(as_text(now))
    return ""
