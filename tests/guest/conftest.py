"""What needs a kernel that this machine has not: run inside the guest by `make test-guest`, one boot for all.

Emulation is slow: a second here is twenty there. Keep this folder small, and leave to tests/bpf and tests/lab all that
any kernel can show. What the guest needs ready (compiled programs) is made outside, before it boots.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PLEXUS_GUEST" in os.environ:
        return
    skip = pytest.mark.skip(reason="needs the guest kernel: run 'make test-guest'")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)
