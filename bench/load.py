"""Runs build/load (bench/load.c) between two places and reads its figure."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

TOOL = Path(__file__).resolve().parent.parent / "build" / "load"
SLACK_SECONDS = 20.0  # beyond the measurement itself: starting, connecting, and a busy machine
PINNED_CPU = 0  # where client and server of rr and crr run, both on this one


class Load(StrEnum):
    """What the tool does; the values are its own words."""

    STREAM = "stream"
    RR = "rr"
    CRR = "crr"

    @property
    def is_pinned(self) -> bool:
        """Exchanges wait for each other, so that one CPU is enough and spares the hand-over; a stream uses two."""
        return self is not Load.STREAM


class LoadFailed(Exception):
    """The load tool did not give a figure; the text has what it said."""


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere to run a program: `enter` is the command that runs its further arguments there."""

    name: str
    address: str
    enter: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pods:
    """Three pods between which traffic is measured, the same on every side that is compared."""

    client: Place  # on the first node
    near: Place  # on the first node
    far: Place  # on the second node


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of the client gave."""

    load: Load
    count: int  # exchanges (rr), connections (crr), writes (stream)
    bytes: int  # that arrived
    seconds: float
    worst_seconds: float  # the longest exchange or connection; 0 for a stream

    @property
    def rate(self) -> float:
        """Gb/s of a stream, exchanges or connections per second otherwise."""
        return self.bytes * 8 / self.seconds / 1e9 if self.load is Load.STREAM else self.count / self.seconds


def parse_result(load: Load, line: str) -> Result:
    """Read the client's line of JSON. Raises LoadFailed when it is not one."""
    try:
        fields = json.loads(line)
        return Result(load, fields["count"], fields["bytes"], fields["seconds"], fields["worst_seconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise LoadFailed(f"{load}: not a result: {line!r}") from error


@contextmanager
def server(load: Load, at: Place, port: int) -> Iterator[None]:
    """A server of one kind, until the block ends. Raises LoadFailed when it cannot listen."""
    command = [*at.enter, str(TOOL), "server", load, at.address, str(port), *cpu(load)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            if process.stdout.readline() != "ready\n":
                raise LoadFailed(f"{load} server at {at.name}: {process.stderr.read().strip()}")
            yield
        finally:
            process.kill()


def run_client(load: Load, at: Place, to: Place, port: int, seconds: float) -> Result:
    """Load `to`'s server from `at` for `seconds`. Raises LoadFailed with what the client said."""
    command = [*at.enter, str(TOOL), "client", load, to.address, str(port), str(seconds), *cpu(load)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + SLACK_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"{load} from {at.name} to {to.name}: no result after {error.timeout:g} s") from error
    if done.returncode:
        raise LoadFailed(f"{load} from {at.name} to {to.name}: {done.stderr.strip()}")
    return parse_result(load, done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "")


def cpu(load: Load) -> list[str]:
    return [str(PINNED_CPU)] if load.is_pinned else []
