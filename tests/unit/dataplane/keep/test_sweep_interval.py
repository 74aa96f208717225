"""How often what is over is swept away."""

from __future__ import annotations

import itertools

import pytest

from services.dataplane.keep.sweep import FIRST_SECONDS, interval_after
from services.dataplane.shapes.sizes import SWEEP_SECONDS_LEAST, SWEEP_SECONDS_MOST


@pytest.mark.parametrize(
    ("share", "then"),
    [(0.0, 450), (0.049, 450), (0.05, 300), (0.25, 300), (0.26, 222), (0.5, 150), (0.9, 30), (1.0, 10)],
)
def test_much_found_brings_the_next_sweep_sooner_and_little_later(share: float, then: float) -> None:
    assert interval_after(FIRST_SECONDS, share) == pytest.approx(then)


def test_an_idle_node_comes_to_twelve_hours_and_no_further() -> None:
    seconds = list(
        itertools.accumulate(range(30), lambda before, _: interval_after(before, 0.0), initial=FIRST_SECONDS)
    )
    assert seconds[-1] == SWEEP_SECONDS_MOST == 12 * 3600
    assert seconds == sorted(seconds)


def test_one_under_load_comes_to_ten_seconds_and_no_further() -> None:
    seconds = FIRST_SECONDS
    for _ in range(30):
        seconds = interval_after(seconds, 0.4)
    assert seconds == SWEEP_SECONDS_LEAST == 10


def test_the_longest_interval_can_be_set() -> None:
    assert interval_after(FIRST_SECONDS, 0.0, most=60) == 60
