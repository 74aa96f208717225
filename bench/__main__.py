"""`python -m bench`: wiring, and nothing else."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from bench import cluster, datapath, plain, recorded
from bench.machine import this_machine
from bench.report import as_json, show
from bench.run import QUICK, Part, Size, run

WIDTH_CHARACTERS = 140  # of the tables, where the output is not a terminal


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"


def main(
    output: Annotated[Output, typer.Option("--output", "-o", help="How to print the figures.")] = Output.TABLE,
    quick: Annotated[bool, typer.Option("--quick", help="A first look: fewer and shorter rounds.")] = False,
    only: Annotated[list[Part] | None, typer.Option("--only", help="Measure this part; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each traffic figure; the medians are of these.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one traffic measurement.")] = 1.5,
    record: Annotated[bool, typer.Option("--record", help="Write what packets cost to bench/packets.json.")] = False,
) -> None:
    """Measure what Plexus costs on this machine, and print it beside what was promised.

    Exit status 0 when everything was measured, whatever the figures are; 1 when something could not be.
    """
    if record and Part.PACKETS not in (only or Part):
        raise typer.BadParameter("packets are not measured; add --only packets", param_hint="--record")
    if record and quick:
        raise typer.BadParameter("a first look is nothing to go by; leave --quick out", param_hint="--record")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    plain.remove_leftovers()
    cluster.remove_leftovers()
    datapath.remove_leftovers()
    machine = this_machine()
    progress = Console(stderr=True)

    def tell(text: str) -> None:
        progress.print(f"bench: {text}", soft_wrap=True, highlight=False)

    found = run(set(only or Part), QUICK if quick else Size(rounds=rounds, seconds=seconds), tell)
    changed = recorded.since_record(machine, found.figures)
    if output is Output.JSON:
        print(as_json(machine, found.figures, changed, found.problems))
    else:
        console = Console(width=None if sys.stdout.isatty() else WIDTH_CHARACTERS)
        show(console, machine, found.figures, changed, found.problems)
    if record and not found.problems and (why_not := recorded.record(machine, found.figures)):
        progress.print(f"bench: not recorded: {why_not}", soft_wrap=True, highlight=False)
        raise typer.Exit(1)
    raise typer.Exit(1 if found.problems else 0)


def leave(number: int, _: FrameType | None) -> NoReturn:
    """End by the usual way, so that every namespace and lab is taken down."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    typer.run(main)
