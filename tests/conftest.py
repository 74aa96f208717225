"""Several processes run the tests of a layer side by side (`make test`). Which tests stay together is said here: those
of a file, as they share what it sets up, and in tests/lab those that share a lab."""

from __future__ import annotations

import re

import pytest
from xdist.scheduler import LoadScopeScheduling

# As tests/lab/conftest.py names what runs in a shared lab: by mode and families, and by the family of a test's packets.
SHARED_LAB = re.compile(r"tests/lab/.*\[((?:tunnel|native)-(?:dual|v4|v6))\b")


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    def _split_scope(self, nodeid: str) -> str:  # how xdist has groups made
        return group(nodeid)


def group(nodeid: str) -> str:
    """Tests of one group run in one process."""
    shared = SHARED_LAB.match(nodeid)
    return shared[1] if shared else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    return Scheduling(config, log)
