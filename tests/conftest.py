"""Two or more processes run the tests of a layer side by side (`make test`), each a share of the groups that say what
must lie in one: a file's tests share what it sets up, and in tests/lab those of one cluster do."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        cluster = (
            item.callspec.params.get("lab") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
        )
        item.add_marker(pytest.mark.xdist_group(cluster.name if cluster else item.path.stem))
