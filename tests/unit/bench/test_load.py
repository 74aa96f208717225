"""Reading the load tool's figures, and the names of what a bench makes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.load import Load, LoadFailed, Result, parse_result, total
from bench.masquerade import Counted, parse
from bench.plain import namespace, owner_of
from bench.processors import busy_of


def test_a_stream_is_told_in_gigabits_and_the_others_in_exchanges_per_second() -> None:
    line = '{"count": 500, "bytes": 1000000000, "seconds": 2.0, "worst_seconds": 0.001, "cpu_seconds": 1.6}'
    assert parse_result(Load.STREAM, line).rate == pytest.approx(4.0)
    assert parse_result(Load.RR, line).rate == pytest.approx(250.0)
    assert parse_result(Load.CRR, line).rate == pytest.approx(250.0)


@pytest.mark.parametrize("line", ["", "{}", "[]", "ready", '{"count": 1}'])
def test_what_is_no_result_is_an_error_that_shows_it(line: str) -> None:
    with pytest.raises(LoadFailed, match="rr: not a result"):
        parse_result(Load.RR, line)


def test_the_ends_of_a_stream_run_apart_and_those_of_exchanges_together() -> None:
    assert Load.STREAM.processors([0, 1]) == (0, 1)
    assert Load.STREAM.processors([2, 5, 7]) == (2, 7)
    assert {load.processors([2, 5, 7]) for load in Load if load is not Load.STREAM} == {(2, 2)}


def test_what_a_processor_carries_does_not_depend_on_how_long_it_waited() -> None:
    stream = Result(Load.STREAM, 500, 1_000_000_000, seconds=2.0, worst_seconds=0.0, cpu_seconds=1.6)
    assert stream.rate_per_processor == pytest.approx(5.0)
    assert replace(stream, seconds=20.0).rate_per_processor == pytest.approx(5.0)


def test_several_runs_count_as_one_of_their_whole_length() -> None:
    quiet = Result(Load.STREAM, 10, 1_000_000_000, 1.0, 0.0, cpu_seconds=1.0, others=0.0)
    busy = Result(Load.STREAM, 20, 1_000_000_000, 3.0, 0.5, cpu_seconds=1.5, others=0.5)
    assert total([quiet, busy]) == Result(Load.STREAM, 30, 2_000_000_000, 4.0, 0.5, 2.5, 0.375)


def test_a_processor_is_busy_with_whatever_it_does_not_wait_with_and_a_guest_is_counted_once() -> None:
    stat = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 20 30 400 50 6 7 8 90 20\ncpu1 1 1 1 1 1 1 1 1 1 1\nintr 5\n"
    assert busy_of(stat, [0], 100) == pytest.approx(1.71)
    assert busy_of(stat, [0, 1], 100) == pytest.approx(1.77)


def test_a_namespace_names_the_bench_that_made_it() -> None:
    assert owner_of(namespace("pod1", 4711)) == 4711
    assert [owner_of(name) for name in ("plx-lab.node1", "plxb-", "plxb-x-pod", "other-12-pod")] == [None] * 4


def test_paced_clients_are_added_up_and_what_is_no_result_is_an_error() -> None:
    line = '{"count": 10, "failed": 1, "slow": 2}'
    assert parse([line, line]) == Counted(20, 2, 4)
    with pytest.raises(LoadFailed, match="not results"):
        parse([line, ""])
