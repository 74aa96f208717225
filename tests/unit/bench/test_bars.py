"""What was promised, and whether it was reached."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from bench.bars import BARS, Bar, Figure, cost_rows, number, summary, traffic_rows
from bench.machine import Machine, processor
from bench.report import as_json, show

STREAM = Figure("one node: TCP stream", "Gb/s", (13.0, 13.5, 13.6), (14.0, 14.2, 14.1))
SLOW = Figure("across nodes: request/response", "1/s", (40000.0,) * 3, (50000.0,) * 3)
ADD = Figure("CNI ADD: one after the other", "ms", (31.0, 35.0, 50.0))
OTHER = Figure("CNI DEL: one after the other", "ms", (8.0, 9.0, 10.0))
MACHINE = Machine("2026-01-01T00:00:00+00:00", "Some CPU", 2, 24.0, "6.18.0", 0.1)


def test_a_figure_with_another_side_is_judged_by_its_ratio() -> None:
    assert STREAM.ratio is not None
    assert STREAM.ratio.median == pytest.approx(13.5 / 14.2)
    assert STREAM.is_reached is True
    assert SLOW.is_reached is False


def test_a_figure_that_stands_alone_is_judged_by_its_median() -> None:
    assert ADD.is_reached is True
    assert Figure(ADD.name, "ms", (39.0, 41.0, 45.0)).is_reached is False


@pytest.mark.parametrize("name", ["survival: lost packets", "survival: broken streams"])
def test_what_must_never_be_is_judged_by_every_round(name: str) -> None:
    assert Figure(name, "", (0.0,) * 5).is_reached is True
    assert Figure(name, "", (0.0, 0.0, 0.0, 1.0, 0.0)).is_reached is False


def test_where_others_were_busy_a_rate_is_not_judged_and_what_a_processor_carries_is() -> None:
    busy = replace(STREAM, others=(0.02, 0.4, 0.5))
    assert busy.is_reached is None
    assert traffic_rows([busy])[0][-3:] == ("40%", "≥ 0.95 (0.95)", "noisy")
    assert summary([busy, SLOW]).endswith("others were too busy to judge: one node: TCP stream")
    assert replace(STREAM, others=(0.02, 0.03, 0.5)).is_reached is True
    assert "one node: TCP stream, per CPU" in BARS


def test_a_figure_without_a_bar_is_not_judged() -> None:
    assert OTHER.is_reached is None
    assert cost_rows([OTHER])[0][-2:] == ("", "")


def test_a_bar_to_stay_below_is_missed_at_its_limit_and_one_to_reach_is_reached_at_it() -> None:
    assert not Bar(40, at_least=False).is_reached_by(40)
    assert Bar(0.95, at_least=True).is_reached_by(0.95)


def test_every_row_has_as_many_cells_as_its_table_has_columns() -> None:
    from bench.bars import COST_COLUMNS, TRAFFIC_COLUMNS

    figures = [STREAM, SLOW, ADD, OTHER]
    assert {len(row) for row in traffic_rows(figures)} == {len(TRAFFIC_COLUMNS)}
    assert {len(row) for row in cost_rows(figures)} == {len(COST_COLUMNS)}
    assert len(traffic_rows(figures)) + len(cost_rows(figures)) == len(figures)


def test_the_summary_names_what_was_missed() -> None:
    assert summary([STREAM, SLOW, ADD, OTHER]) == "2 of 3 bars reached; missed: across nodes: request/response"
    assert summary([STREAM]) == "1 of 1 bars reached"


def test_numbers_keep_the_digits_that_mean_something() -> None:
    assert [number(value) for value in (140932.4, 14.23, 0.953)] == ["140932", "14.2", "0.95"]


def test_the_json_holds_every_value_bar_and_judgement() -> None:
    document = json.loads(as_json(MACHINE, [STREAM, ADD], ["it: 1 -> 2"], ["policy: no lab"]))
    stream, add = document["figures"]
    assert stream["values"] == [13.0, 13.5, 13.6]
    assert (stream["bar"], stream["bar_is"], stream["reached"]) == (0.95, "at least", True)
    assert (add["ratio"], add["plain_median"], add["bar_is"]) == (None, None, "below")
    assert document["since_record"] == ["it: 1 -> 2"]
    assert document["not_measured"] == ["policy: no lab"]
    assert document["machine"]["cores"] == 2


def test_the_tables_show_each_bar_beside_its_figure() -> None:
    out = StringIO()
    show(Console(file=out, width=140), MACHINE, [STREAM, ADD], ["it: 1 -> 2"], [])
    text = out.getvalue()
    row = next(line for line in text.splitlines() if "TCP stream" in line)
    assert "≥ 0.95 (0.95)" in row
    assert "yes" in row
    assert "Some CPU" in text.splitlines()[0]
    assert "since the record: it: 1 -> 2" in text


def test_there_is_a_bar_for_each_promise() -> None:
    assert len(BARS) == 3 * 2 * 4 + 5 * 2 + 5 + 2 + 6  # ways, families, loads; packets; the rest; L2; survival
    assert all(":" in name for name in BARS)


def test_the_processor_is_named_where_the_kernel_names_it() -> None:
    assert processor("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n") == "Some CPU @ 3 GHz"
    assert processor("cpu family : 6\nmodel : 143\nmodel name : Some CPU\nstepping : 8\n" * 2) == "Some CPU (6-143-8)"
    assert processor("") != ""
