"""plexus bus tail: what travels on the bus, any subject, decoded.

States come with their sequence in the owner's log; events and questions have none, because nothing keeps them.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bus import subjects
from bus.messages import Message
from bus.services import HEALTH
from bus.subjects import State, Subject
from bus.texts import visible
from cli.errors import Failed
from cli.output import json_line, parse_duration, plain
from cli.session import Name, Session, run
from cli.state import settled

if TYPE_CHECKING:
    from bus.interface import Bus

app = typer.Typer(help="The message bus itself.", no_args_is_help=True, rich_markup_mode=None)


class Form(StrEnum):
    TEXT = "text"
    JSON = "json"
    MSGPACK = "msgpack"


@dataclass(frozen=True)
class Heard:
    """One message. `message` None: the key is gone. `sequence` 0: not of a log."""

    subject: str
    message: Message | None
    sequence: int = 0
    at: float = 0.0  # seconds since the epoch: of a state when its cause happened, of others when it was heard
    trace: str = ""  # W3C trace id, the same from `plexus apply` to the last thing that follows from it; "": none


@app.callback()
def group() -> None:
    """Keeps `tail` a word of its own while it is the only one."""


@app.command("tail")
def tail(
    pattern: Annotated[str, typer.Argument(help="A subject; * stands for one token, > for all that follow.")] = ">",
    current: Annotated[bool, typer.Option("--current", help="First the values that states have now.")] = False,
    most: Annotated[int, typer.Option("--max", metavar="N", min=0, help="End after N; 0: never.")] = 0,
    timeout: Annotated[str, typer.Option("--timeout", metavar="TIME", help="End after this time: 10s, 2m.")] = "",
    name: Name = "",
    output: Annotated[
        Form, typer.Option("-o", "--output", help="json: a line each; msgpack: a stream of values.")
    ] = Form.TEXT,
) -> None:
    """Print what travels on the bus, decoded, until Ctrl-C: subject, sequence, message."""
    families = chosen(pattern)
    if not families:
        raise Failed(f"no messages of services on {pattern}; their subjects start with " + ", ".join(heads()))
    seconds = parse_duration(timeout) if timeout else None

    async def main(session: Session) -> None:
        count = 0

        def take(heard: Heard) -> bool:
            nonlocal count
            if matches(pattern, heard.subject):
                write(heard, output)
                count += 1
            return count == most and most > 0

        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await listen(session.bus, families, current, take)

    run(main, name)


def known() -> list[Subject[Any]]:
    """Every family of subjects that is declared."""
    return [*(value for value in vars(subjects).values() if isinstance(value, Subject)), *HEALTH.values()]


def heads() -> list[str]:
    """ "state.ipam", "evt.dataplane"...: what a pattern may start with."""
    return sorted({".".join(family.head.split(".")[:2]) for family in known()})


def chosen(pattern: str) -> list[Subject[Any]]:
    """The families that may have a subject of this pattern."""
    return [
        family for family in known() if overlap(pattern.split("."), family.head.split(".") + ["*"] * len(family.keys))
    ]


def overlap(one: list[str], other: list[str]) -> bool:
    """Two patterns have a subject in common."""
    for mine, yours in zip(one, other, strict=False):
        if ">" in (mine, yours):
            return True
        if mine != yours and "*" not in (mine, yours):
            return False
    return len(one) == len(other)


def matches(pattern: str, subject: str) -> bool:
    """The subject is one of the pattern's."""
    return overlap(pattern.split("."), subject.split("."))


async def listen(bus: Bus, families: list[Subject[Any]], current: bool, take: Callable[[Heard], bool]) -> None:
    """Hand every message of these families to `take`, in the order of hearing, until it says that it has enough.

    Args:
        current: first the values that states have now.
    """
    enough = asyncio.Event()

    def pass_on(heard: Heard) -> None:
        if not enough.is_set() and take(heard):
            enough.set()

    async def states(owner: str) -> None:
        """Every family of one owner in one watch, so that its log's order is kept."""
        of_owner = [family for family in families if isinstance(family, State) and family.owner == owner]
        synced = False
        async for batch in bus.watch_state(*of_owner, direct=True):
            if synced or current:
                for change in sorted(batch.changes, key=lambda change: change.sequence):
                    trace = trace_id(change.trace)
                    pass_on(Heard(change.subject, change.message, change.sequence, change.caused_at, trace))
            synced = batch.synced

    async def others(family: Subject[Any]) -> None:
        async for subject, message in bus.watch_events(family.all() if family.keys else family.head, family.message):
            pass_on(Heard(subject, message, 0, time.time()))

    async with asyncio.TaskGroup() as tasks:
        owners = dict.fromkeys(family.owner for family in families if isinstance(family, State))
        running = [tasks.create_task(states(owner), name=f"states of {owner}") for owner in owners]
        events = [family for family in families if not isinstance(family, State)]
        running += [tasks.create_task(others(family), name=family.head) for family in events]
        await settled(bus)
        print("listening; Ctrl-C ends", file=sys.stderr, flush=True)
        await enough.wait()
        for task in running:
            task.cancel()


def trace_id(headers: Mapping[str, str]) -> str:
    """The id in a W3C traceparent, "00-<trace id>-<span id>-<flags>"; "" when there is none."""
    parts = headers.get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 else ""


def as_value(heard: Heard) -> dict[str, Any]:
    """Subject, sequence, time, trace and message as plain values. `message` None: the key is gone."""
    return {
        "subject": heard.subject,
        "sequence": heard.sequence,
        "at": heard.at,
        "trace": heard.trace,
        "message": None if heard.message is None else plain(heard.message),
    }


def write(heard: Heard, form: Form) -> None:
    """Print one message and let it go at once."""
    if form is Form.MSGPACK:
        import msgpack  # type: ignore[import-untyped]  # it has no types

        sys.stdout.buffer.write(msgpack.packb(as_value(heard)))
        sys.stdout.buffer.flush()
        return
    if form is Form.JSON:
        text = json_line(as_value(heard))
    else:
        body = "gone" if heard.message is None else json_line(heard.message)
        text = f"{visible(heard.subject)}  {heard.sequence or '-'}  {body}"
    print(text, flush=True)
