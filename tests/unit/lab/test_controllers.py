"""Scheduler and Deployment controller: the same cluster always gives the same answer."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from bus.messages.resources import DaemonSet, Deployment, LabelSelector, Node, Pod, StatefulSet
from lab import scheduler, workloads

NODES = [Node(name=f"node{number}", addresses=[f"172.20.0.{10 + number}"]) for number in (10, 2, 1, 3)]


def pod(name: str, node: str = "", owner: str = "", ready: bool = True, **spec: Any) -> Pod:
    manifest = {"spec": {"containers": [{"name": "c", "image": "i"}], **spec}}
    return Pod(namespace="default", name=name, uid=name, node=node, owner=owner, ready=ready, manifest=manifest)


def test_pods_are_spread_and_the_first_goes_to_the_first_node() -> None:
    load = scheduler.load([], [])
    chosen = []
    for name in ("netpod", "webpod1", "webpod2", "other"):
        node = scheduler.choose(pod(name), NODES, load)
        assert node is not None
        load[node] += 1
        chosen.append(node)
    assert chosen == ["node1", "node2", "node3", "node10"]


def test_a_node_selector_by_hostname_is_honoured() -> None:
    pinned = pod("a", nodeSelector={"kubernetes.io/hostname": "node3"})
    assert scheduler.choose(pinned, NODES, {"node3": 100}) == "node3"


def test_a_pod_that_fits_nowhere_waits() -> None:
    assert scheduler.choose(pod("a", nodeSelector={"disk": "ssd"}), NODES, {}) is None
    assert scheduler.choose(pod("a"), [], {}) is None


def test_bindings_that_are_on_their_way_count() -> None:
    load = scheduler.load([pod("a", node="node1")], ["node2", "node3"])
    assert scheduler.choose(pod("b"), NODES, load) == "node10"


def deployment(replicas: int = 2, image: str = "traefik/whoami") -> Deployment:
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}
    return Deployment(namespace="shop", name="web", replicas=replicas, selector=LabelSelector(), template=template)


def running(manifests: list[dict[str, Any]], ready: bool = True) -> list[Pod]:
    return [
        Pod(
            namespace="shop",
            name=each["metadata"]["name"],
            uid=each["metadata"]["name"],
            owner="deployment/shop/web",
            ready=ready,
            manifest=each,
        )
        for each in manifests
    ]


def test_missing_replicas_are_made_with_the_templates_labels_and_an_owner() -> None:
    made, removed = workloads.reconcile([deployment()], [], [])
    assert len(made) == 2
    assert removed == []
    assert made[0]["metadata"]["labels"] == {"app": "web"}
    assert made[0]["metadata"]["namespace"] == "shop"
    assert made[0]["metadata"]["ownerReferences"][0]["name"] == "web"


def test_asking_again_makes_nothing_twice() -> None:
    made, _ = workloads.reconcile([deployment()], [], [])
    assert workloads.reconcile([deployment()], running(made), []) == ([], [])
    assert workloads.reconcile([deployment()], [], [])[0] == made


def test_fewer_replicas_remove_the_surplus() -> None:
    made, _ = workloads.reconcile([deployment(3)], [], [])
    _, removed = workloads.reconcile([deployment(1)], running(made), [])
    assert {each["metadata"]["name"] for each in removed} == {each["metadata"]["name"] for each in made[1:]}


def test_a_new_template_replaces_pods_only_when_the_new_ones_are_ready() -> None:
    old, _ = workloads.reconcile([deployment()], [], [])
    changed = deployment(image="nginx")
    new, removed = workloads.reconcile([changed], running(old), [])
    assert len(new) == 2
    assert removed == []
    _, removed = workloads.reconcile([changed], running(old) + running(new, ready=False), [])
    assert removed == []
    _, removed = workloads.reconcile([changed], running(old) + running(new), [])
    assert {each["metadata"]["name"] for each in removed} == {each["metadata"]["name"] for each in old}


def test_pods_of_a_deployment_that_is_gone_go_too() -> None:
    made, _ = workloads.reconcile([deployment()], [], [])
    _, removed = workloads.reconcile([], running(made), [])
    assert len(removed) == 2


def test_pods_that_no_deployment_made_are_left_alone() -> None:
    alone = msgspec.structs.replace(pod("web-1"), owner="")
    assert workloads.reconcile([], [alone], []) == ([], [])


TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"app": "web"}},
    "spec": {"containers": [{"name": "c", "image": "nginx"}]},
}


def daemon_set(**spec: Any) -> DaemonSet:
    template = {**TEMPLATE, "spec": {**TEMPLATE["spec"], **spec}}
    return DaemonSet(namespace="shop", name="agent", selector=LabelSelector(), template=template)


def stateful_set(**fields: Any) -> StatefulSet:
    values: dict[str, Any] = {"replicas": 3, "template": TEMPLATE} | fields
    return StatefulSet(namespace="shop", name="db", selector=LabelSelector(), **values)


class Kubernetes:
    """Does what a controller asks for; `ready` says which pods are."""

    def __init__(self) -> None:
        self.pods: dict[str, Pod] = {}

    def step(self, workload: workloads.Workload, nodes: list[Node] | None = None) -> tuple[list[str], list[str]]:
        """Names of the pods that were made, and of those that were removed."""
        apply, delete = workloads.reconcile([workload], self.pods.values(), nodes or [])
        made, removed = ([each["metadata"]["name"] for each in some] for some in (apply, delete))
        for each in apply:
            name = each["metadata"]["name"]
            assert name not in self.pods
            self.pods[name] = Pod(
                namespace="shop",
                name=name,
                uid=name,
                owner=workloads.owner(workload),
                labels=each["metadata"]["labels"],
                node=each["spec"].get("nodeName", ""),
                manifest=each,
            )
        for name in removed:
            del self.pods[name]
        return made, removed

    def ready(self, *names: str) -> None:
        for name in names or list(self.pods):
            self.pods[name] = replace(self.pods[name], ready=True)


def test_a_daemon_set_has_one_pod_on_every_node_also_on_those_that_come_later() -> None:
    cluster = Kubernetes()
    made, _ = cluster.step(daemon_set(), NODES[:2])
    assert [cluster.pods[name].node for name in made] == [each.name for each in NODES[:2]]
    assert cluster.step(daemon_set(), NODES[:2]) == ([], [])
    (late,), _ = cluster.step(daemon_set(), NODES[:3])
    assert cluster.pods[late].node == NODES[2].name
    assert cluster.step(daemon_set(), NODES[1:3]) == ([], [made[0]])


def test_a_daemon_set_goes_where_its_template_says() -> None:
    cluster = Kubernetes()
    for where in ({"nodeSelector": {"kubernetes.io/hostname": NODES[1].name}}, {"nodeName": NODES[1].name}):
        made, _ = cluster.step(daemon_set(**where), NODES)
        assert [cluster.pods[name].node for name in made] == [NODES[1].name]


def test_a_new_template_of_a_daemon_set_replaces_each_node_s_pod_when_the_new_one_is_ready() -> None:
    cluster, nodes = Kubernetes(), NODES[:2]
    old, _ = cluster.step(daemon_set(), nodes)
    cluster.ready()
    new, removed = cluster.step(daemon_set(hostNetwork=True), nodes)
    assert len(new) == 2 and removed == []
    cluster.ready(new[1])
    assert cluster.step(daemon_set(hostNetwork=True), nodes) == ([], [old[1]])
    cluster.ready(new[0])
    assert cluster.step(daemon_set(hostNetwork=True), nodes) == ([], [old[0]])


def test_a_stateful_set_makes_its_pods_in_order_and_under_names_that_stay() -> None:
    cluster = Kubernetes()
    for name in ("db-0", "db-1", "db-2"):
        assert cluster.step(stateful_set()) == ([name], [])
        assert cluster.step(stateful_set()) == ([], []), "the one before is not ready yet"
        cluster.ready(name)
    assert cluster.step(stateful_set()) == ([], [])
    del cluster.pods["db-1"]
    assert cluster.step(stateful_set()) == (["db-1"], [])
    labels = cluster.pods["db-1"].labels
    assert (labels["statefulset.kubernetes.io/pod-name"], labels["apps.kubernetes.io/pod-index"]) == ("db-1", "1")
    assert labels["app"] == "web" and "labels" not in TEMPLATE["spec"]


def test_a_stateful_set_in_parallel_does_not_wait() -> None:
    cluster = Kubernetes()
    assert cluster.step(stateful_set(is_ordered=False, first=5)) == (["db-5", "db-6", "db-7"], [])
    assert cluster.step(stateful_set(is_ordered=False, first=5, replicas=1)) == ([], ["db-7", "db-6"])


def test_a_smaller_stateful_set_goes_from_its_last_pod() -> None:
    cluster = Kubernetes()
    for _ in range(11):
        cluster.step(stateful_set(replicas=11))
        cluster.ready()
    assert [cluster.step(stateful_set(replicas=9))[1] for _ in range(3)] == [["db-10"], ["db-9"], []]


def test_a_new_template_of_a_stateful_set_replaces_one_pod_at_a_time_the_last_first() -> None:
    cluster = Kubernetes()
    newer: dict[str, Any] = {"template": {**TEMPLATE, "metadata": {"labels": {"app": "web", "v": "2"}}}}
    for _ in range(3):
        cluster.step(stateful_set())
        cluster.ready()
    steps = []
    for _ in range(6):
        steps.append(cluster.step(stateful_set(**newer, renewed_from=1)))
        cluster.ready()
    assert steps == [([], ["db-2"]), (["db-2"], []), ([], ["db-1"]), (["db-1"], []), ([], []), ([], [])]
    assert cluster.step(stateful_set(**newer, renews=False)) == ([], [])
    assert cluster.step(stateful_set(**newer)) == ([], ["db-0"])


def test_a_stateful_set_replaces_nothing_while_another_of_its_pods_is_not_ready() -> None:
    cluster = Kubernetes()
    for _ in range(3):
        cluster.step(stateful_set())
        cluster.ready()
    cluster.pods["db-0"] = replace(cluster.pods["db-0"], ready=False)
    assert cluster.step(stateful_set(template={**TEMPLATE, "metadata": {"labels": {"v": "2"}}})) == ([], [])


@pytest.mark.parametrize("workload", [daemon_set(), stateful_set()], ids=["daemonset", "statefulset"])
def test_pods_go_with_what_made_them(workload: workloads.Workload) -> None:
    cluster = Kubernetes()
    made, _ = cluster.step(workload, NODES)
    _, removed = workloads.reconcile([], cluster.pods.values(), NODES)
    assert [each["metadata"]["name"] for each in removed] == made
