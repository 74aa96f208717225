"""One Envoy for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proxy.running import Running, running_envoy


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_envoy(Path(tmp_path_factory.mktemp("envoy"))) as found:
        yield found


@pytest.fixture(autouse=True)
def _forgets(request: pytest.FixtureRequest) -> None:
    if "running" in request.fixturenames:
        found: Running = request.getfixturevalue("running")
        found.recorder.requests.clear()
        found.recorder.other.clear()
