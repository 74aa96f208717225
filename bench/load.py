"""Runs build/load (bench/load.c) between two places and reads its figure."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from bench.processors import busy_seconds, ran_seconds, softirq_threads, usable_processors

TOOL = Path(__file__).resolve().parent.parent / "build" / "load"
SLACK_SECONDS = 20.0  # beyond the measurement itself: starting, connecting, and a busy machine


class Load(StrEnum):
    """What the tool does; the values are its own words."""

    STREAM = "stream"
    RR = "rr"
    CRR = "crr"

    def processors(self, usable: Sequence[int]) -> tuple[int, int]:
        """Where the client and the server run. Exchanges wait for each other, so that one processor is enough and
        spares the hand-over. The ends of a stream work at the same time, each on its own: left to the scheduler they
        share one for a while, which moves a third fewer bits but spends a fifth less on each, and no two runs compare.
        """
        return usable[0], usable[-1] if self is Load.STREAM else usable[0]


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
    cpu_seconds: float  # processor time of both ends, with what the kernel did for packets
    others: float = 0.0  # share of the processors' time that went to somebody else meanwhile, 0 to 1

    @property
    def rate(self) -> float:
        """Gb/s of a stream, exchanges or connections per second otherwise."""
        return self._work / self.seconds

    @property
    def rate_per_processor(self) -> float:
        """The same per second that a processor worked on it: another's load takes nothing away from this."""
        return self._work / self.cpu_seconds

    @property
    def _work(self) -> float:
        return self.bytes * 8 / 1e9 if self.load is Load.STREAM else self.count


def total(results: Sequence[Result]) -> Result:
    """Several runs of one load as if they were one."""
    seconds = sum(each.seconds for each in results)
    return Result(
        results[0].load,
        sum(each.count for each in results),
        sum(each.bytes for each in results),
        seconds,
        max(each.worst_seconds for each in results),
        sum(each.cpu_seconds for each in results),
        sum(each.others * each.seconds for each in results) / seconds,
    )


def parse_result(load: Load, line: str) -> Result:
    """Read the client's line of JSON. Raises LoadFailed when it is not one."""
    try:
        fields = json.loads(line)
        names = ("count", "bytes", "seconds", "worst_seconds", "cpu_seconds")
        return Result(load, *(fields[name] for name in names))
    except (ValueError, KeyError, TypeError) as error:
        raise LoadFailed(f"{load}: not a result: {line!r}") from error


@contextmanager
def server(load: Load, at: Place, port: int) -> Iterator[int]:
    """A server of one kind, until the block ends: its pid. Raises LoadFailed when it cannot listen."""
    _, cpu = load.processors(usable_processors())
    command = [*at.enter, str(TOOL), "server", load, at.address, str(port), str(cpu)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            if process.stdout.readline() != "ready\n":
                raise LoadFailed(f"{load} server at {at.name}: {process.stderr.read().strip()}")
            yield process.pid
        finally:
            process.kill()


def run_client(load: Load, at: Place, to: Place, port: int, seconds: float) -> Result:
    """Load `to`'s server from `at` for `seconds`. Raises LoadFailed with what the client said.

    Of the processor time it knows the client's alone: `run_both` knows more.
    """
    cpu, _ = load.processors(usable_processors())
    command = [*at.enter, str(TOOL), "client", load, to.address, str(port), str(seconds), str(cpu)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + SLACK_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"{load} from {at.name} to {to.name}: no result after {error.timeout:g} s") from error
    if done.returncode:
        raise LoadFailed(f"{load} from {at.name} to {to.name}: {done.stderr.strip()}")
    result = parse_result(load, done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "")
    if not result.bytes:
        raise LoadFailed(f"{load} from {at.name} to {to.name}: nothing in {seconds:g} s; is this machine too busy?")
    return result


def run_both(load: Load, at: Place, to: Place, port: int, seconds: float, server_pid: int) -> Result:
    """`run_client`, with the processor time of the server, and what the processors did beside.

    The kernel handles a packet in the time of whoever sent it, or, when there is too much, in that of its own threads:
    theirs counts as that of the ends.
    """
    deferring = softirq_threads()
    before, began = busy_seconds(), [ran_seconds(pid) for pid in (server_pid, *deferring)]
    result = run_client(load, at, to, port, seconds)
    ended, after = [ran_seconds(pid) for pid in (server_pid, *deferring)], busy_seconds()
    own = result.cpu_seconds + sum(ended) - sum(began)
    others = (after - before - own) / (result.seconds * len(usable_processors()))
    return replace(result, cpu_seconds=own, others=min(1.0, max(0.0, others)))
