"""`plexus observe` against an observer at a socket."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.hubble import records
from services.hubble.observed import Observed
from services.hubble.server import ObserverServer
from tests.unit.cli.cluster import plexus
from tests.unit.hubble.served import observed, see, served


@contextmanager
def serving(path: Path, observer: Observed) -> Iterator[None]:
    """On a loop of its own, as in another process."""
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        async with served(path, ObserverServer(observer)):
            ready.set()
            await stopped.wait()

    stopped = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    yield
    loop.call_soon_threadsafe(stopped.set)
    thread.join()
    loop.close()


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[str]:
    observer = observed()
    see(observer, 10**9, type_=records.DROP, reason=133)
    see(observer, 2 * 10**9)
    with serving(tmp_path / "h.sock", observer):
        yield f"unix:{tmp_path}/h.sock"


def test_flows_of_a_server(socket: str) -> None:
    lines = plexus("observe", "--server", socket).stdout.splitlines()
    assert [each.partition(": ")[0] for each in lines] == ["Jan  1 00:00:01.000", "Jan  1 00:00:02.000"]
    (only,) = plexus("observe", "--server", socket, "--verdict", "DROPPED", "-o", "json").stdout.splitlines()
    assert json.loads(only)["flow"]["drop_reason_desc"] == "POLICY_DENIED"
    assert len(plexus("observe", "--server", socket, "-o", "table").stdout.splitlines()) == 3


def test_what_the_server_refuses_is_said(socket: str) -> None:
    assert "is not a port" in plexus("observe", "--server", socket, "--to-port", "x", status=1).stderr


def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert "does not answer" in plexus("observe", "--server", f"unix:{tmp_path}/nobody", status=1).stderr


def test_wrong_flags_are_usage(socket: str) -> None:
    for flags in (["--first", "1", "-f"], ["-o", "table", "-f"], ["--time-format", "x"], ["--bad"]):
        plexus("observe", "--server", socket, *flags, status=2)
    assert "--print-policy-names" in plexus("observe", "--help").stdout


def test_filters_can_be_seen_before_they_are_used() -> None:
    shown = plexus("observe", "--not", "--from-pod", "x", "--print-raw-filters").stdout
    assert shown == 'denylist:\n    - \'{"source_pod": ["x"]}\'\n'
