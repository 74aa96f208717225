"""`plexus wait` knows who is behind and why, and measures from the commit to the last node's maps."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from bus.messages.dataplane import CONTAINERS, Endpoint, Health, ReachedRevision
from bus.messages.resources import DaemonSet, Deployment, LabelSelector, Node, Pod, StatefulSet
from bus.subjects import NODE, POD
from cli.state import Picture
from cli.wait import Progress, Realised, committed_at, history, in_words, took, unready
from lab import workloads

NODES = {name: Node(name=name, addresses=[]) for name in ("node1", "node2")}


def pod(name: str = "web", **values: object) -> Pod:
    known = {"namespace": "default", "name": name, "uid": "u1", "node": "node1", "ready": True, "phase": "Running"}
    return Pod(**{**known, **values})  # type: ignore[arg-type]  # a test's shorthand


def endpoint(name: str = "web", **values: object) -> Endpoint:
    known = {"node": "node1", "namespace": "default", "pod": name, "uid": "u1", "address": "10.0.1.2", "mac": ""}
    rest = {"interface": "px1", "interface_index": 7, "identity": 300, "state": "ready"}
    return Endpoint(**{**known, **rest, **values})  # type: ignore[arg-type]  # a test's shorthand


def missing(one_pod: Pod, one_endpoint: Endpoint | None = None) -> list[str]:
    endpoints: dict[tuple[str, ...], Endpoint] = {("node1", "default", "web"): one_endpoint} if one_endpoint else {}
    return unready({("default", "web"): one_pod}, endpoints, [], NODES)


def test_a_ready_pod_with_a_ready_endpoint_is_not_missing() -> None:
    assert missing(pod(), endpoint()) == []


@pytest.mark.parametrize(
    ("one_pod", "one_endpoint", "why"),
    [
        (pod(node=""), None, "not bound to a node"),
        (pod(ready=False, phase="Pending"), None, "Pending, not ready on node1"),
        (pod(ready=False, reason="no address is free"), None, "no address is free"),
        (pod(), None, "no endpoint on node1"),
        (pod(), endpoint(uid="older"), "no endpoint on node1"),
        (pod(), endpoint(state="waiting-for-policy"), "its endpoint on node1 is waiting-for-policy"),
    ],
)
def test_a_pod_that_is_not_there_yet_says_why(one_pod: Pod, one_endpoint: Endpoint | None, why: str) -> None:
    assert missing(one_pod, one_endpoint) == [f"pod default/web: {why}"]


def test_finished_pods_and_pods_in_the_hosts_network_need_no_endpoint() -> None:
    assert missing(pod(phase="Succeeded", ready=False)) == []
    assert missing(pod(host_network=True)) == []


def test_an_endpoint_whose_pod_is_gone_is_not_settled() -> None:
    left_over: dict[tuple[str, ...], Endpoint] = {("node1", "default", "web"): endpoint()}
    gone = ["pod default/web: it is gone, and its endpoint on node1 is still there"]
    assert unready({}, left_over, [], NODES) == gone
    elsewhere: dict[tuple[str, ...], Pod] = {("default", "web"): pod(node="node2", host_network=True)}
    assert unready(elsewhere, left_over, [], NODES) == gone


def test_nobody_waits_for_the_container_of_another_runtime() -> None:
    assert unready({}, {("node1", CONTAINERS, "4f5e"): endpoint("4f5e", namespace=CONTAINERS)}, [], NODES) == []


def test_a_node_that_is_gone_is_not_waited_for() -> None:
    assert unready({}, {("node9", "default", "web"): endpoint()}, [], NODES) == []


def test_what_makes_pods_wants_all_of_them_to_exist() -> None:
    fields: dict[str, Any] = {
        "namespace": "default",
        "name": "d",
        "selector": LabelSelector(),
        "template": {"spec": {}},
    }
    for maker, noun in (
        (Deployment(replicas=2, **fields), "deployment"),
        (StatefulSet(replicas=2, **fields), "statefulset"),
        (DaemonSet(**fields), "daemonset"),
    ):
        only = pod("d-1", owner=f"{noun}/default/d", host_network=True)
        pods: dict[tuple[str, ...], Pod] = {("default", "d-1"): only}
        assert unready(pods, {}, [maker], NODES) == [f"{noun} default/d: 1 of 2 pods exist"]


def test_pods_of_an_older_template_are_waited_for() -> None:
    template: dict[str, Any] = {"spec": {}}
    db = StatefulSet(namespace="default", name="db", selector=LabelSelector(), template=template)
    old = pod("db-0", owner="statefulset/default/db", host_network=True)
    pods: dict[tuple[str, ...], Pod] = {("default", "db-0"): old}
    assert unready(pods, {}, [db], NODES) == [
        "statefulset default/db: pods of an older template are still to be replaced"
    ]
    label = workloads.pod_manifest(db, "db-0")["metadata"]["labels"]
    assert unready({("default", "db-0"): replace(old, labels=label)}, {}, [db], NODES) == []


def test_a_node_is_there_when_both_roots_are_and_the_time_of_the_resources_counts() -> None:
    progress = Progress(wanted={"resources": 10, "dataplane": 4}, behind={"node1": "does not answer"})
    assert not progress.heard("node1", [({"resources": 9, "dataplane": 4}, 1.0)])
    assert progress.problem() == "node1: applied resources 9 of 10"
    reached = [({"resources": 11, "dataplane": 3}, 2.0), ({"resources": 12, "dataplane": 4}, 3.0)]
    assert progress.heard("node1", reached)
    assert progress.reached_at == {"node1": 2.0}
    progress.compared("node1", ["drift: policy did not hold it"])
    assert progress.problem() == "node1: drift: policy did not hold it"
    assert progress.heard("node1", reached), "it stays behind until it holds what was said"
    progress.compared("node1", [])
    assert progress.behind == {}
    assert not progress.heard("node1", [({"resources": 12, "dataplane": 5}, 9.0)])
    assert progress.reached_at == {"node1": 2.0}


def test_a_node_nobody_waits_for_changes_nothing() -> None:
    progress = Progress(wanted={"resources": 1}, behind={"node1": "does not answer"})
    assert not progress.heard("node9", [({"resources": 5}, 1.0)])
    assert progress.reached_at == {}


def test_a_nodes_history_ends_with_what_it_has_now() -> None:
    health = Health(
        service="dataplane",
        instance="node1",
        ready=True,
        started_at=0.0,
        version="1",
        revision={"resources": 9},
        revision_at=5.0,
        reached=[ReachedRevision(revision={"resources": 8}, at=4.0)],
    )
    assert history(health) == [({"resources": 8}, 4.0), ({"resources": 9}, 5.0)]


def test_the_commit_is_that_of_the_last_known_change_up_to_the_revision() -> None:
    seen = Picture(
        sequences={POD.of("a", "b"): 7, NODE.of("n"): 9, "state.dataplane.endpoint.n.a.b": 8},
        caused_at={POD.of("a", "b"): 100.0, NODE.of("n"): 200.0, "state.dataplane.endpoint.n.a.b": 300.0},
    )
    assert committed_at(seen, 8) == (7, 100.0)
    assert committed_at(seen, 9) == (9, 200.0)
    assert committed_at(Picture(), 9) == (0, 0.0)


def test_the_slowest_node_is_the_time() -> None:
    assert Realised(7, {"node1": 0.01, "node2": 0.04}).seconds == 0.04
    assert Realised(7, {}).seconds == 0.0


def test_a_time_that_nobody_knows_is_not_made_up() -> None:
    unknown = Realised(7, took({"node2": 5.0, "node1": 4.0}, 0.0))
    assert (unknown.nodes, unknown.seconds) == ({"node1": None, "node2": None}, None)
    assert in_words(unknown) == "revision 7 is realised on every node (node1, node2)"
    known = Realised(7, took({"node1": 5.25}, 5.0))
    assert in_words(known) == "revision 7 is realised on every node after 250 ms (node1 250 ms)"


def test_only_the_first_few_are_named() -> None:
    progress = Progress(wanted={"resources": 1}, behind={f"node{n}": "does not answer" for n in range(1, 10)})
    assert progress.problem().endswith("node3: does not answer; and 6 more")
