"""Many short connections of two pods to one address and port outside, masqueraded: how many fail, and how many wait.

Each of them needs a port of the node's that the server does not take for that of another connection: ports are the
scarce thing here, not the processor. Plexus and plain Linux (nftables' masquerade) do the same in the same seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.bars import Figure
from bench.load import LoadFailed, Place

TOOL = Path(__file__).with_name("paced.py")
PYTHON = (sys.executable, "-I", "-S", str(TOOL))
PORT = 7200
A_SECOND = 100.0  # of each pod
SLACK_SECONDS = 60.0  # beyond the connections themselves: starting, those that time out, and a busy machine
FAILED, SLOW = "masquerade: failed connections", "masquerade: slow connections"
PLAIN = ", plain Linux"  # behind the name of the same figure without Plexus


@dataclass(frozen=True, slots=True)
class Side:
    """Who connects, and to whom outside."""

    clients: Sequence[Place]
    outside: Place


@dataclass(frozen=True, slots=True)
class Counted:
    """What became of all connections of one side."""

    count: int
    failed: int
    slow: int


def parse(texts: Sequence[str]) -> Counted:
    """Add up the clients' lines of JSON. Raises LoadFailed when one is not that."""
    try:
        found = [json.loads(text) for text in texts]
        return Counted(*(sum(each[name] for each in found) for name in ("count", "failed", "slow")))
    except (ValueError, KeyError, TypeError) as error:
        raise LoadFailed(f"paced connections: not results: {texts!r}") from error


def measure_masquerade(plexus: Side, plain: Side, seconds: float, tell: Callable[[str], None]) -> Iterator[Figure]:
    """Raises LoadFailed."""
    tell(f"masquerade: {A_SECOND:g} connections a second of each of {len(plexus.clients)} pods for {seconds:g} s")
    found = connect({"": plexus, PLAIN: plain}, A_SECOND, seconds)
    for suffix, counted in found.items():
        unit = f"of {counted.count}"
        yield Figure(FAILED + suffix, unit, (counted.failed,))
        yield Figure(SLOW + suffix, unit, (counted.slow,))


def connect(sides: Mapping[str, Side], a_second: float, seconds: float) -> dict[str, Counted]:
    """The connections of all sides at the same time. Raises LoadFailed."""
    with ExitStack() as started:
        for side in sides.values():
            started.enter_context(server(side.outside))
        clients = {
            name: [started.enter_context(client(each, side.outside, a_second, seconds)) for each in side.clients]
            for name, side in sides.items()
        }
        return {name: parse([output(each, seconds) for each in processes]) for name, processes in clients.items()}


@contextmanager
def running(place: Place, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [*place.enter, *PYTHON, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def server(at: Place) -> Iterator[None]:
    with running(at, "server", at.address, str(PORT)) as process:
        assert process.stdout is not None and process.stderr is not None
        if process.stdout.readline() != "ready\n":
            raise LoadFailed(f"paced server at {at.name}: {process.stderr.read().strip()}")
        yield


@contextmanager
def client(at: Place, to: Place, a_second: float, seconds: float) -> Iterator[subprocess.Popen[str]]:
    with running(at, "client", to.address, str(PORT), str(a_second), str(seconds)) as process:
        yield process


def output(process: subprocess.Popen[str], seconds: float) -> str:
    """What a client says in the end. Raises LoadFailed."""
    try:
        said, complaint = process.communicate(timeout=seconds + SLACK_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"paced client: no result after {error.timeout:g} s") from error
    if process.returncode:
        raise LoadFailed(f"paced client: {complaint.strip()}")
    return said
