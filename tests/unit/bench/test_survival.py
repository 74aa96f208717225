"""Reading what the load tool of restarts says."""

from __future__ import annotations

import json

import pytest

from bench.load import LoadFailed
from bench.survival import parse

PHASE = {
    "exchanges": 9,
    "longest_exchange_seconds": 0.25,
    "sent": 100,
    "lost": 2,
    "twice": 1,
    "longest_silence_seconds": 0.5,
}


def test_counts_are_summed_over_phases_and_the_longest_pause_is_of_streams_or_packets() -> None:
    found = parse(json.dumps({"streams": 5, "broken": 1, "phases": {"a": PHASE, "b": PHASE}}))
    assert (found.streams, found.broken, found.lost, found.twice) == (5, 1, 4, 2)
    assert found.phases["a"].stall_seconds == 0.5


@pytest.mark.parametrize("text", ["", "ready", "{}", '{"streams": 1, "broken": 0, "phases": {"a": {}}}'])
def test_anything_else_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(LoadFailed, match="not a result"):
        parse(text)
