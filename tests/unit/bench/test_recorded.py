"""A packet that costs 5 % more than recorded is told, whatever the processor's speed is meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.bars import Figure
from bench.machine import Machine
from bench.recorded import Costs, as_text, changes, costs, of_text

MACHINE = Machine("2026-01-01T00:00:00+00:00", "Some CPU", 2, 24.0, "6.18.5-x", 0.1)
TO_A_POD, REPLY = "packet, native v4: pod to a pod of its node", "packet, native dual v6: its reply"
BEFORE = Costs("Some CPU", "6.18", {TO_A_POD: 1.0, REPLY: 0.5})
SAME = "no packet costs 5% more or less than recorded (2 paths)"


def figures(to_a_pod: float = 100.0, reply: float = 50.0, speed: float = 1.0) -> list[Figure]:
    """Three rounds, in which the processor is ever slower."""

    def rounds(value: float) -> tuple[float, ...]:
        return tuple(value * slower / speed for slower in (1.0, 1.2, 1.5))

    return [
        Figure(TO_A_POD, "ns", rounds(to_a_pod)),
        Figure("packet, native v4: to a Service, alone", "ns", rounds(700)),
        Figure(REPLY, "ns", rounds(reply)),
        Figure("packet, native: the yardstick", "ns", rounds(100)),
        Figure("packet, connect4: a Service", "ns", (1.0, 2.0)),
        Figure("policy: commit to the last node's maps", "ms", (1.0, 2.0)),
    ]


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
def test_what_did_not_change_is_not_told_at_any_speed(speed: float) -> None:
    assert costs(MACHINE, figures(speed=speed)) == BEFORE
    assert changes(BEFORE, costs(MACHINE, figures(speed=speed))) == [SAME]


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
def test_five_percent_are_told_the_largest_growth_first(speed: float) -> None:
    assert changes(BEFORE, costs(MACHINE, figures(to_a_pod=94, reply=53, speed=speed))) == [
        f"{REPLY}: 0.50 -> 0.53 times the yardstick (+6.0%)",
        f"{TO_A_POD}: 1.00 -> 0.94 times the yardstick (-6.0%)",
    ]
    assert changes(BEFORE, costs(MACHINE, figures(to_a_pod=104, reply=48, speed=speed))) == [SAME]


def test_a_path_that_is_not_in_both_is_told() -> None:
    now = costs(MACHINE, figures())
    assert changes(replace(BEFORE, ratios={TO_A_POD: 1.0}), now) == [f"{REPLY}: not on record"]
    assert changes(replace(BEFORE, ratios={**BEFORE.ratios, "gone": 1.0}), now) == ["gone: on record, not measured"]


@pytest.mark.parametrize("other", [replace(BEFORE, processor="Another"), replace(BEFORE, kernel="6.1")])
def test_ratios_of_another_machine_are_not_compared(other: Costs) -> None:
    (told,) = changes(other, costs(MACHINE, figures(to_a_pod=1000)))
    assert "nothing to compare with here" in told


def test_a_run_without_packets_compares_nothing() -> None:
    assert changes(BEFORE, costs(MACHINE, figures()[-1:])) == []


def test_the_record_says_what_was_measured() -> None:
    assert of_text(as_text(BEFORE)) == BEFORE
