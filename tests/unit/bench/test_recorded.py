"""A packet that costs 5 % more than recorded is told, whatever the processor's speed is meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import recorded
from bench.bars import Figure
from bench.machine import Machine
from bench.recorded import Costs, as_text, changes, costs, of_text

MACHINE = Machine("2026-01-01T00:00:00+00:00", "Some CPU", 2, 24.0, "6.18.5-x", 0.1)
TO_A_POD, REPLY = "packet, native v4: pod to a pod of its node", "packet, native dual v6: its reply"
BEFORE = Costs("Some CPU", "6.18", 100.0, {TO_A_POD: 1.0, REPLY: 0.5})
SAME = "no packet costs 5% more or less than recorded (2 paths)"


def figures(to_a_pod: float = 100.0, reply: float = 50.0, slower: tuple[float, ...] = (1.0,) * 6) -> list[Figure]:
    """`slower`: how many times each round takes what it takes at full speed. What is slow costs programs a bit more."""

    def rounds(value: float, more: float = 1.0) -> tuple[float, ...]:
        return tuple(value * each * (more if each > 1.2 else 1.0) for each in slower)

    return [
        Figure(TO_A_POD, "ns", rounds(to_a_pod, 1.1), beside=rounds(100)),
        Figure("packet, native v4: to a Service, alone", "ns", rounds(700)),
        Figure(REPLY, "ns", rounds(reply, 1.1), beside=rounds(100)),
        Figure("policy: commit to the last node's maps", "ms", (1.0, 2.0)),
    ]


SPEEDS = [(1.0,) * 6, (1.05,) * 6, (1.0, 1.02, 1.04, 1.06, 1.08, 2.0, 2.2, 1.9)]


@pytest.mark.parametrize("slower", SPEEDS)
def test_what_did_not_change_is_not_told_at_any_speed(slower: tuple[float, ...]) -> None:
    now = costs(MACHINE, figures(slower=slower))
    assert now.ratios == BEFORE.ratios
    assert changes(BEFORE, now) == [SAME]


@pytest.mark.parametrize("slower", SPEEDS)
def test_five_percent_are_told_the_largest_growth_first(slower: tuple[float, ...]) -> None:
    assert changes(BEFORE, costs(MACHINE, figures(94, 53, slower))) == [
        f"{REPLY}: 0.50 -> 0.53 times the yardstick (+6.0%)",
        f"{TO_A_POD}: 1.00 -> 0.94 times the yardstick (-6.0%)",
    ]
    assert changes(BEFORE, costs(MACHINE, figures(104, 48, slower))) == [SAME]


def test_what_a_slow_processor_says_is_not_judged_and_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "RECORD", tmp_path / "packets.json")
    assert recorded.record(MACHINE, figures()) == ""
    slow = figures(slower=(2.0,) * 6)
    told = "the processor was too slow to judge 2 paths (packet, native v4: pod to a pod of its node first): try again"
    assert recorded.since_record(MACHINE, slow) == [told]
    assert recorded.record(MACHINE, figures(slower=(1.0, *(2.0,) * 5))) == told
    assert of_text((tmp_path / "packets.json").read_text()) == BEFORE


def test_a_path_that_is_not_in_both_is_told() -> None:
    now = costs(MACHINE, figures())
    assert changes(replace(BEFORE, ratios={TO_A_POD: 1.0}), now) == [f"{REPLY}: not on record"]
    assert changes(replace(BEFORE, ratios={**BEFORE.ratios, "gone": 1.0}), now) == ["gone: on record, not measured"]


@pytest.mark.parametrize("other", [replace(BEFORE, processor="Another"), replace(BEFORE, kernel="6.1")])
def test_ratios_of_another_machine_are_not_compared(other: Costs) -> None:
    (told,) = changes(other, costs(MACHINE, figures(to_a_pod=1000)))
    assert "nothing to compare with here" in told


def test_a_run_without_packets_compares_nothing() -> None:
    assert recorded.since_record(MACHINE, figures()[-1:]) == []


def test_the_record_says_what_was_measured() -> None:
    assert of_text(as_text(BEFORE)) == BEFORE
