"""What maps hold is what counts: an entry that someone else touched is told, named and put back, and meanwhile nothing
is called ready or realised."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from lab import processes, state
from services.dataplane.kernel.bpf import Map
from services.dataplane.shapes.limits import map_path
from tests.lab.space import Space
from tests.labs import Lab, eventually

NODE = "node2"
ALLOW = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: rule1, namespace: {namespace}}}
spec:
  endpointSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: client}}}}]
"""


@contextmanager
def pinned(lab: Lab, table: str) -> Iterator[Map]:
    """A map of NODE's, as whoever may write to the bpf file system has it."""
    with closing(Map.open(map_path(lab.record.pins(NODE), table))) as found:
        yield found


def meddle(found: Map, deed: str) -> None:
    """Touch one entry."""
    key, value = min(found.items())
    if deed == "removed":
        assert found.remove(key)
    elif deed == "changed":
        found.set(key, bytes(byte ^ 0xFF for byte in value))
    else:
        found.set(key[:4] + b"\x7f" * (len(key) - 4), value)  # of a trie the first four bytes are the prefix's length


def status(lab: Lab) -> dict[str, Any]:
    """By node: how its dataplane is."""
    rows = json.loads(lab.plexus("status", "-o", "json", check=False).stdout)["services"]
    return {row["instance"]: row for row in rows if row["service"] == "dataplane"}


def realised(space: Space) -> list[str]:
    (found,) = space.lab.get("cnp", space.name)
    on: list[str] = found["plexus"]["realised"]
    return on


@pytest.fixture
def governed(space: Space) -> Space:
    """A policy and a Service, realised."""
    space.apply(
        space.pod("client"),
        space.pod("server", NODE),
        ALLOW.format(namespace=space.name),
        space.service("web", "server"),
    )
    assert space.get("client", space.cluster_address("web"))
    return space


@pytest.mark.parametrize("table", ["policy", "ipcache", "services"])
@pytest.mark.parametrize("deed", ["removed", "changed", "added"])
def test_an_entry_that_someone_else_touched_is_noticed_named_and_put_back(
    governed: Space, table: str, deed: str
) -> None:
    lab = governed.lab
    with pinned(lab, table) as found:
        before = dict(found.items())
        meddle(found, deed)
        told = status(lab)
        assert told[NODE]["problem"].startswith(f"drift: {table} did not hold "), told[NODE]
        assert not told["node1"]["problem"]
        assert dict(found.items()) == before, "put back before status answered"
    assert NODE not in realised(governed), "told for some seconds"
    lab.wait()
    assert not status(lab)[NODE]["problem"]
    assert realised(governed) == lab.nodes
    assert governed.get("client", governed.cluster_address("web"))


def test_nobody_has_to_ask(governed: Space) -> None:
    with pinned(governed.lab, "policy") as found:
        before = dict(found.items())
        meddle(found, "removed")
        assert eventually(lambda: dict(found.items()) == before, 10)


def test_a_node_that_cannot_look_at_its_maps_has_realised_nothing(governed: Space) -> None:
    lab = governed.lab
    dataplane = state.read(lab.record.directory.process(f"{NODE}.dataplane"), state.ProcessId)
    assert dataplane is not None
    processes.kill(dataplane, signal.SIGSTOP)
    try:
        with pinned(lab, "policy") as found:
            before = dict(found.items())
            meddle(found, "removed")
            waited = lab.plexus("wait", "--timeout", "2s", check=False)
            assert waited.returncode == 1 and f"{NODE}: does not answer" in waited.stderr, waited
            assert NODE not in realised(governed)
    finally:
        processes.kill(dataplane, signal.SIGCONT)
    lab.wait()
    with pinned(lab, "policy") as found:
        assert dict(found.items()) == before
    assert NODE in realised(governed)
