"""What packets cost in terms of the yardstick, as recorded in packets.json beside this file: a change of 5 % is seen.

`make bench` compares and prints what changed; `make packets` measures packets alone and records them anew, so that the
difference is reviewed with the change that made it. Ratios differ from processor to processor and from kernel to
kernel, so the record says of which it is, and is compared with nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.bars import Figure
from bench.machine import Machine
from bench.packets import ALONE, YARDSTICK

RECORD = Path(__file__).with_name("packets.json")
SEEN = 0.05  # a share; less than this is not told


@dataclass(frozen=True)
class Costs:
    """Of each path that is run many times in a row: the median ratio to the yardstick of the same round."""

    processor: str
    kernel: str  # "6.18"
    ratios: dict[str, float]  # by the figure's name

    def is_comparable(self, other: Costs) -> bool:
        return (self.processor, self.kernel) == (other.processor, other.kernel)


def costs(machine: Machine, figures: Sequence[Figure]) -> Costs:
    """Out of all figures of a run."""
    yardsticks = {figure.name.removesuffix(YARDSTICK): figure for figure in figures if figure.name.endswith(YARDSTICK)}
    ratios: dict[str, float] = {}
    for start, yardstick in yardsticks.items():
        for figure in figures:
            way = start.removesuffix(": ")
            if figure.name.startswith((f"{way} ", start)) and figure is not yardstick and ALONE not in figure.name:
                pairs = zip(figure.values, yardstick.values, strict=True)
                ratios[figure.name] = round(median(value / its for value, its in pairs), 3)
    return Costs(machine.processor, ".".join(machine.kernel.split(".")[:2]), ratios)


def changes(before: Costs, now: Costs) -> list[str]:
    """What costs 5 % more or less than recorded, the largest growth first, or is not in both; in words."""
    if not now.ratios:
        return []
    if not before.is_comparable(now):
        return [f"packets are on record for {before.processor}, Linux {before.kernel}: nothing to compare with here"]
    found = {name: now.ratios[name] / before.ratios[name] - 1 for name in now.ratios.keys() & before.ratios.keys()}
    told = [
        f"{name}: {before.ratios[name]:.2f} -> {now.ratios[name]:.2f} times {YARDSTICK} ({share:+.1%})"
        for name, share in sorted(found.items(), key=lambda each: -each[1])
        if abs(share) >= SEEN
    ]
    told += [f"{name}: not on record" for name in now.ratios if name not in before.ratios]
    told += [f"{name}: on record, not measured" for name in before.ratios if name not in now.ratios]
    return told or [f"no packet costs {SEEN:.0%} more or less than recorded ({len(found)} paths)"]


def as_text(found: Costs) -> str:
    """The record: a line for each path."""
    return json.dumps({"processor": found.processor, "kernel": found.kernel, "ratios": found.ratios}, indent=1) + "\n"


def of_text(text: str) -> Costs:
    """What `as_text` wrote."""
    raw = json.loads(text)
    return Costs(raw["processor"], raw["kernel"], raw["ratios"])


def since_record(machine: Machine, figures: Sequence[Figure]) -> list[str]:
    """What changed since the record was written; nothing where no packets were measured."""
    if not RECORD.exists():
        return ["nothing is on record; make packets writes it"]
    return changes(of_text(RECORD.read_text()), costs(machine, figures))
