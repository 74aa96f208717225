from __future__ import annotations

import pytest

from tests.unit.resources.cluster import Cluster


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()
