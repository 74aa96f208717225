"""One renderer: tables that a person reads, JSON and YAML that a program reads."""

from __future__ import annotations

import io
import json
from enum import StrEnum

import pytest
import typer
import yaml

from bus.messages.resources import Outcome
from cli.output import Column, Format, duration, parse_duration, plain, show, size, table, text

ROWS = [
    {
        "pod": "default/netpod",
        "address": "10.0.1.2",
        "identity": 4711,
        "ready": True,
        "labels": {"app": "web", "x": ""},
    },
    {"pod": "default/w", "address": "", "identity": 7, "ready": False, "labels": {}},
]
COLUMNS = [
    Column("POD", "pod"),
    Column("ADDRESS", "address"),
    Column("IDENTITY", "identity"),
    Column("READY", "ready"),
    Column("LABELS", "labels"),
]

GOLDEN = """\
POD              ADDRESS    IDENTITY   READY   LABELS
default/netpod   10.0.1.2       4711   yes     app=web,x
default/w        -                 7   no      -
"""


def test_a_table_is_set_as_it_always_was() -> None:
    assert table(ROWS, COLUMNS, terminal=False) == GOLDEN


def test_without_a_terminal_nothing_is_wrapped_cut_or_coloured() -> None:
    found = table([{"a": "x" * 500}], [Column("A", "a")], terminal=False)
    assert "x" * 500 + "\n" in found
    assert "\x1b" not in found


def test_markup_in_a_value_is_shown_as_it_is() -> None:
    assert "[red]x[/red]" in table([{"a": "[red]x[/red]"}], [Column("A", "a")], terminal=False)


@pytest.mark.parametrize(("form", "load"), [(Format.JSON, json.loads), (Format.YAML, yaml.safe_load)])
def test_programs_get_every_key_of_every_row(form: Format, load: object) -> None:
    out = io.StringIO()
    show(ROWS, COLUMNS[:1], form, file=out)
    assert load(out.getvalue()) == ROWS  # type: ignore[operator]  # one of two loaders


def test_an_empty_listing_is_an_empty_list_for_programs_and_a_word_for_people(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show([], COLUMNS, Format.JSON)
    show([], COLUMNS, Format.TABLE, empty="no pods")
    captured = capsys.readouterr()
    assert captured.out == "[]\n"
    assert captured.err == "no pods\n"


def test_structs_and_bytes_become_plain_values() -> None:
    class Word(StrEnum):
        A = "a"

    found = plain({"o": Outcome(kind="Pod", name="a", change="created"), "b": b"\x01\xff", 1: (Word.A,)})
    assert found == {"o": {"kind": "Pod", "name": "a", "change": "created"}, "b": "01ff", "1": ["a"]}


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), ([], "-"), (0, "0"), (["a", 1], "a, 1"), (1.5, "1.5"), (2.0, "2"), (False, "no")]
)
def test_a_cell_is_short(value: object, shown: str) -> None:
    assert text(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.00035, "350 us"),
        (0.042, "42 ms"),
        (1.25, "1.2 s"),
        (0.9996, "1.0 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 0 s"),
        (185, "3 min 5 s"),
        (659.6, "10 min 59 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_lengths_of_time_are_for_people(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_memory_is_for_people() -> None:
    assert (size(81_000_000), size(0)) == ("81 MB", "-")


@pytest.mark.parametrize(("given", "seconds"), [("30s", 30), ("500ms", 0.5), ("2m", 120), ("1.5", 1.5), ("1h", 3600)])
def test_lengths_of_time_are_understood(given: str, seconds: float) -> None:
    assert parse_duration(given) == seconds


@pytest.mark.parametrize("given", ["", "s", "-1s", "3 days", "1msm", "inf", "nan"])
def test_what_is_no_length_of_time_is_a_usage_error(given: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_duration(given)
