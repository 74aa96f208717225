"""What a node says is shown, and obeyed by no terminal: nobody writes over others' rows, or ends a command."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from itertools import product
from typing import Any

import msgspec
import pytest
import yaml

from bus.messages.dataplane import Check, Health
from bus.messages.hubble import Flow
from bus.texts import visible
from cli import monitor, status, tail
from cli.errors import Failed
from cli.output import Column, Format, json_line, show
from tests.contract.samples import sample

HOSTILE = (
    "\x1b[2J\x1b]0;title\x07", "\x9b2J", "a\rb", "a\nb\tc", "\x7f\x08", "\u202egnp.exe", "\u2066x\u2069", "\u2028",
    "\ud800",
)  # fmt: skip
NUMBERS = (math.inf, -math.inf, math.nan, 1e300, -1e308, -1.0, 0.0)
FLOW = Flow(at=0.0, type="drop", verdict="dropped", source="10.0.0.1", destination="10.0.0.2", protocol=6)


def is_plain(text: str) -> bool:
    """A line of characters that are seen."""
    return text.isprintable() or text.replace("\u00a0", "").isprintable()


@pytest.mark.parametrize("words", HOSTILE)
@pytest.mark.parametrize("form", Format)
def test_a_listing_shows_them(words: str, form: Format) -> None:
    out = io.StringIO()
    rows: list[dict[str, Any]] = [{"name": words, "labels": {words: words}, "list": [words]}]
    show(rows, [Column("NAME", "name"), Column("LABELS", "labels"), Column("LIST", "list")], form, file=out)
    lines = out.getvalue().splitlines()
    assert lines == out.getvalue().split("\n")[:-1]
    assert all(map(is_plain, lines))
    if form is Format.TABLE:
        assert len(lines) == 2
    elif words != "\ud800":  # of which YAML has none
        assert (json.loads if form is Format.JSON else yaml.safe_load)(out.getvalue()) == rows


@pytest.mark.parametrize("words", HOSTILE)
def test_a_flow_and_a_message_are_one_line_each(words: str) -> None:
    texts = {field: words for field, kind in Flow.__annotations__.items() if kind == "str"}
    flow = msgspec.structs.replace(FLOW, **texts, policies=[words], source_labels={words: words}, source_identity=300)
    assert is_plain(monitor.line(words, flow))
    assert json.loads(monitor.as_json(words, flow))["reason"] == words
    assert is_plain(monitor.as_json(words, flow))
    assert json.loads(json_line({"a": words})) == {"a": words}


@pytest.mark.parametrize("words", HOSTILE)
def test_an_error_that_quotes_them_is_plain(words: str) -> None:
    (line,) = Failed(f"not healthy: {words}").lines
    assert is_plain(line)


@pytest.mark.parametrize(("at", "form"), [*product(NUMBERS, ("line", "as_json"))])
def test_a_time_that_is_none_ends_nothing(at: float, form: str) -> None:
    assert getattr(monitor, form)("n", msgspec.structs.replace(FLOW, at=at))


@pytest.mark.parametrize("started_at", NUMBERS)
def test_a_health_with_any_numbers_is_a_row(started_at: float) -> None:
    health = sample(Health)
    assert isinstance(health, Health)
    answer = msgspec.structs.replace(health, started_at=started_at, checks=[Check(name="x", ok=False, detail="y")])
    row = status.health_row("dataplane", "n", answer, {"resources": 1})
    assert 0 <= row["seconds_up"] < 4e9


def test_a_key_of_any_bytes_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in HOSTILE[:-1]:
        tail.write(replace(tail.Heard("state.x.y", None, 1, 0.0), subject=words), tail.Form.TEXT)
    assert all(map(is_plain, capsys.readouterr().out.split("\n")))


def test_what_can_be_seen_stays() -> None:
    text = 'plain, "quoted", äöü, 日本, \u00a0, -> {a: 1}'
    assert visible(text) == text
