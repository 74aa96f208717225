"""Figures as aligned tables, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.bars import COST_COLUMNS, TRAFFIC_COLUMNS, Figure, cost_rows, summary, traffic_rows
from bench.machine import Machine

LEFT = 2  # the first columns, name and unit, are text; the others are set to the right


def as_json(machine: Machine, figures: Sequence[Figure], changed: Sequence[str], skipped: Sequence[str]) -> str:
    """One JSON document: the machine, every figure with all its values, what changed, what could not be measured."""
    document = {
        "machine": machine.as_json(),
        "figures": [figure.as_json() for figure in figures],
        "since_record": list(changed),
        "not_measured": list(skipped),
    }
    return json.dumps(document, indent=2)


def show(
    console: Console, machine: Machine, figures: Sequence[Figure], changed: Sequence[str], skipped: Sequence[str]
) -> None:
    """Print the tables that have rows, what changed since the record, then which bars were reached."""
    console.print(machine.line(), soft_wrap=True, highlight=False)
    for columns, rows in ((TRAFFIC_COLUMNS, traffic_rows(figures)), (COST_COLUMNS, cost_rows(figures))):
        if rows:
            console.print(table(columns, rows))
    for text in changed:
        console.print(f"since the record: {text}", soft_wrap=True, highlight=False)
    for text in skipped:
        console.print(f"not measured: {text}", soft_wrap=True, highlight=False)
    console.print(summary(figures), soft_wrap=True, highlight=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for position, name in enumerate(columns):
        drawn.add_column(name, justify="left" if position < LEFT else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    return drawn
