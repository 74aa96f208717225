"""Scheduler and Deployment controller: the same cluster always gives the same answer."""

from __future__ import annotations

from typing import Any

import msgspec

from bus.messages.resources import Deployment, LabelSelector, Node, Pod
from lab import deployments, scheduler

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
    made, removed = deployments.reconcile([deployment()], [])
    assert len(made) == 2
    assert removed == []
    assert made[0]["metadata"]["labels"] == {"app": "web"}
    assert made[0]["metadata"]["namespace"] == "shop"
    assert made[0]["metadata"]["ownerReferences"][0]["name"] == "web"


def test_asking_again_makes_nothing_twice() -> None:
    made, _ = deployments.reconcile([deployment()], [])
    assert deployments.reconcile([deployment()], running(made)) == ([], [])
    assert deployments.reconcile([deployment()], [])[0] == made


def test_fewer_replicas_remove_the_surplus() -> None:
    made, _ = deployments.reconcile([deployment(3)], [])
    _, removed = deployments.reconcile([deployment(1)], running(made))
    assert {each["metadata"]["name"] for each in removed} == {each["metadata"]["name"] for each in made[1:]}


def test_a_new_template_replaces_pods_only_when_the_new_ones_are_ready() -> None:
    old, _ = deployments.reconcile([deployment()], [])
    changed = deployment(image="nginx")
    new, removed = deployments.reconcile([changed], running(old))
    assert len(new) == 2
    assert removed == []
    _, removed = deployments.reconcile([changed], running(old) + running(new, ready=False))
    assert removed == []
    _, removed = deployments.reconcile([changed], running(old) + running(new))
    assert {each["metadata"]["name"] for each in removed} == {each["metadata"]["name"] for each in old}


def test_pods_of_a_deployment_that_is_gone_go_too() -> None:
    made, _ = deployments.reconcile([deployment()], [])
    _, removed = deployments.reconcile([], running(made))
    assert len(removed) == 2


def test_pods_that_no_deployment_made_are_left_alone() -> None:
    alone = msgspec.structs.replace(pod("web-1"), owner="")
    assert deployments.reconcile([], [alone]) == ([], [])
