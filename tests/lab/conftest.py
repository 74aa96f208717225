"""Two labs for the whole layer, one for each routing mode; a Kubernetes namespace of its own for each test."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import state
from lab.testing import Lab
from tests.lab.space import Space

# What the tests provoke. Everything else that a node drops fails the run.
EXPECTED_DROPS = ("Policy denied", "Invalid source ip", "Service backend not found")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root nothing here can run; say so instead of failing."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="labs need root: namespaces and BPF")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def alone() -> Iterator[None]:
    """The labs' names are fixed, so that what a killed run left is found: two runs at once would take each other's."""
    state.RUN.mkdir(parents=True, exist_ok=True)
    with (state.RUN / ".tests").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.exit("another run of tests/lab is at work on this machine; wait for its end", 1)
        yield


@pytest.fixture(scope="session", params=["tunnel", "native"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab of three nodes that many tests share."""
    mode = request.param
    with Lab(f"test-{mode}", values={"routingMode": mode}, expected_drops=EXPECTED_DROPS) as made:
        yield made


@pytest.fixture
def space(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Space]:
    """A fresh Kubernetes namespace, removed with all that is in it."""
    digest = format(abs(hash(request.node.nodeid)) % 16**8, "08x")
    made = Space(lab, f"t-{digest}")
    manifest = f"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {made.name}\n"
    lab.apply(manifest)
    yield made
    lab.delete(manifest)
