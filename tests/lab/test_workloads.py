"""StatefulSets and DaemonSets run in a lab as Deployments do, with real pods that answer."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.conftest import EXPECTED_DROPS
from tests.labs import Lab

WORKLOADS = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, version: "1"}}
    spec: {containers: [{name: c, image: traefik/whoami}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {containers: [{name: c, image: traefik/whoami}]}
"""


@pytest.fixture(scope="module")
def small() -> Iterator[Lab]:
    with Lab("test-work", 2, {}, EXPECTED_DROPS) as made:
        yield made


def pods(lab: Lab) -> dict[str, dict[str, object]]:
    found = json.loads(lab.plexus("get", "pods", "-o", "json").stdout)["items"]
    return {each["metadata"]["name"]: each["plexus"] | each["metadata"] for each in found}


def test_a_stateful_set_keeps_its_names_and_a_daemon_set_is_on_every_node(small: Lab) -> None:
    small.apply(WORKLOADS)
    small.wait()
    first = pods(small)
    assert {"web-0", "web-1"} < first.keys() and len(first) == 4
    assert sorted(str(pod["node"]) for name, pod in first.items() if name.startswith("agent-")) == ["node1", "node2"]
    assert first["web-0"]["identity"] == first["web-1"]["identity"], "which pod it is, is not who it is"
    answer = small.exec("web-1", "curl", "-s", "-m", "5", f"http://{first['web-0']['address']}/")
    assert "Hostname: web-0" in answer.stdout
    small.apply(WORKLOADS.replace('version: "1"', 'version: "2"'))
    small.wait()
    second = pods(small)
    assert second.keys() == first.keys()
    assert all(second[name]["uid"] != first[name]["uid"] for name in ("web-0", "web-1")), "wait waited for the new ones"
    small.delete(WORKLOADS)
    small.wait()
    assert pods(small) == {}
