"""A pod that no node has says why."""

from __future__ import annotations

from typing import Any

import pytest

from bus.messages.resources import Node, Pod
from lab.cluster import Cluster, stuck

NODES: dict[tuple[str, ...], Node] = {
    (name,): Node(name=name, addresses=[], labels={"disk": "hdd"}) for name in ("node1", "node2")
}


def cluster(node: str = "", reason: str = "", **spec: Any) -> Cluster:
    made = Cluster()
    made.nodes = dict(NODES)
    pod = Pod(namespace="default", name="a", uid="a", node=node, reason=reason, manifest={"spec": spec})
    made.pods = {("default", "a"): pod}
    return made


@pytest.mark.parametrize(
    ("pod", "why"),
    [
        ({"nodeSelector": {"disk": "ssd"}}, "no node has what its nodeSelector asks for: disk=ssd"),
        ({"node": "node3"}, "there is no node node3, which its nodeName asks for"),
    ],
)
def test_a_pod_that_no_node_has_says_what_is_missing_and_says_it_once(pod: dict[str, Any], why: str) -> None:
    assert [found for _, found in stuck(cluster(**pod))] == [why]
    assert stuck(cluster(reason=why, **pod)) == []


@pytest.mark.parametrize("pod", [{}, {"nodeSelector": {"disk": "hdd"}}, {"node": "node2"}])
def test_a_pod_that_a_node_has_or_may_have_is_left_alone(pod: dict[str, Any]) -> None:
    assert stuck(cluster(**pod)) == []


def test_before_any_node_is_heard_of_nothing_is_said() -> None:
    early = cluster(nodeSelector={"disk": "ssd"})
    early.nodes = {}
    assert stuck(early) == []
