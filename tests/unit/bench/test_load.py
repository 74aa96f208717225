"""Reading the load tool's figures, and the names of what a bench makes."""

from __future__ import annotations

import pytest

from bench.load import Load, LoadFailed, parse_result
from bench.plain import namespace, owner_of


def test_a_stream_is_told_in_gigabits_and_the_others_in_exchanges_per_second() -> None:
    line = '{"count": 500, "bytes": 1000000000, "seconds": 2.0, "worst_seconds": 0.001}'
    assert parse_result(Load.STREAM, line).rate == pytest.approx(4.0)
    assert parse_result(Load.RR, line).rate == pytest.approx(250.0)
    assert parse_result(Load.CRR, line).rate == pytest.approx(250.0)


@pytest.mark.parametrize("line", ["", "{}", "[]", "ready", '{"count": 1}'])
def test_what_is_no_result_is_an_error_that_shows_it(line: str) -> None:
    with pytest.raises(LoadFailed, match="rr: not a result"):
        parse_result(Load.RR, line)


def test_only_a_stream_may_use_both_ends_cpus() -> None:
    assert [load for load in Load if not load.is_pinned] == [Load.STREAM]


def test_a_namespace_names_the_bench_that_made_it() -> None:
    assert owner_of(namespace("pod1", 4711)) == 4711
    assert [owner_of(name) for name in ("plx-lab.node1", "plxb-", "plxb-x-pod", "other-12-pod")] == [None] * 4
