"""Lengths of time as Kubernetes and Helm write them."""

from __future__ import annotations

import pytest

from bus.durations import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h13m20s", 8000),
        ("1h0m0s", 3600),
        ("0s", 0),
        ("0", 0),
        ("1.5h", 5400),
        ("300ms", 0.3),
        ("1m0.5s", 60.5),
        ("15us", 15e-6),
        (".5s", 0.5),
    ],
)
def test_a_duration_is_read_as_go_reads_it(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "60", "s", "-1s", "1 h", "1d", "1h 2m", "h1", "1.2.3s", "1s2", "\u0661s", "nan", "infs"]
)
def test_what_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="2h13m20s"):
        seconds_of(text)
