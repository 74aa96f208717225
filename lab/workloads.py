"""The controllers of Deployments, StatefulSets and DaemonSets: which pods to make and which to remove. Pure.

Names are computed, so whoever asks gets the same ones: nothing has to be remembered, and asking twice makes nothing
twice.

    Deployment    the name, a hash of the template, a hash of a number. A new template makes new pods beside the old
                  ones, which go when all the new ones are ready.
    DaemonSet     the name, a hash of the template, a hash of the node; the pod is bound to that node. An old pod goes
                  when the new one on its node is ready.
    StatefulSet   web-0, web-1... A pod is made when those before it are ready, removed from the last, and replaced by
                  one of a new template under its own name, the last first, one at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from bus.messages.resources import DaemonSet, Deployment, Node, Pod, StatefulSet
from lab import scheduler

Manifest = dict[str, Any]
Workload = Deployment | StatefulSet | DaemonSet
Step = tuple[list[Manifest], list[Manifest]]  # to apply, to delete

KINDS = ("deployment", "statefulset", "daemonset")  # what Pod.owner begins with
REVISION = "controller-revision-hash"  # label of a StatefulSet's pod: which template it was made of


def owner(workload: Workload) -> str:
    """What Pod.owner says of its pods: "deployment/default/web"."""
    return f"{type(workload).__name__.lower()}/{workload.namespace}/{workload.name}"


def digest(value: object, length: int) -> str:
    """The first hexadecimal digits of a value's SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def pod_names(workload: Workload, nodes: Iterable[Node]) -> list[str]:
    """The names of the pods that there ought to be."""
    match workload:
        case StatefulSet():
            return [f"{workload.name}-{workload.first + number}" for number in range(workload.replicas)]
        case DaemonSet():
            return list(on_nodes(workload, nodes))
        case Deployment():
            head, template = _head(workload), digest(workload.template, 10)
            return [head + digest([template, number], 5) for number in range(workload.replicas)]


def on_nodes(daemon_set: DaemonSet, nodes: Iterable[Node]) -> dict[str, str]:
    """Pod's name -> node, for every node that the template's nodeName and nodeSelector fit."""
    head, template = _head(daemon_set), digest(daemon_set.template, 10)
    wanted = daemon_set.template["spec"].get("nodeName") or ""
    fitting = [each.name for each in nodes if scheduler.selects(daemon_set.template["spec"], each)]
    return {head + digest([template, node], 5): node for node in fitting if wanted in ("", node)}


def pod_manifest(workload: Workload, name: str, node: str = "") -> Manifest:
    """A pod of the workload's template, bound to `node` unless that is ""."""
    template = workload.template
    metadata = dict(template.get("metadata") or {})
    kind = type(workload).__name__
    metadata |= {
        "name": name,
        "namespace": workload.namespace,
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": workload.name, "controller": True}],
    }
    if isinstance(workload, StatefulSet):
        own = {
            "statefulset.kubernetes.io/pod-name": name,
            "apps.kubernetes.io/pod-index": name.rpartition("-")[2],
            REVISION: digest(template, 10),
        }
        metadata["labels"] = {**(metadata.get("labels") or {}), **own}
    spec = {**template["spec"], **({"nodeName": node} if node else {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def reconcile(workloads: Iterable[Workload], pods: Iterable[Pod], nodes: Iterable[Node]) -> Step:
    """What to apply and what to delete, as manifests; nothing of pods that no workload made."""
    known = list(nodes)
    by_owner: dict[str, dict[str, Pod]] = {}
    for pod in pods:
        if pod.owner.partition("/")[0] in KINDS:
            by_owner.setdefault(pod.owner, {})[pod.name] = pod
    apply: list[Manifest] = []
    delete: list[Manifest] = []
    for workload in workloads:
        made, removed = one(workload, by_owner.pop(owner(workload), {}), known)
        apply += made
        delete += removed
    for orphans in by_owner.values():
        delete += [reference(pod) for pod in orphans.values()]
    return apply, delete


def one(workload: Workload, have: Mapping[str, Pod], nodes: Iterable[Node] = ()) -> Step:
    """What to apply and delete for one workload. `have`: its pods by name."""
    match workload:
        case Deployment():
            return _of_deployment(workload, have)
        case DaemonSet():
            return _of_daemon_set(workload, have, nodes)
        case StatefulSet():
            return _of_stateful_set(workload, have)


def _of_deployment(deployment: Deployment, have: Mapping[str, Pod]) -> Step:
    wanted = pod_names(deployment, ())
    made = [pod_manifest(deployment, name) for name in wanted if name not in have]
    replaced = all(name in have and have[name].ready for name in wanted)
    head = _head(deployment)
    surplus = [pod for name, pod in have.items() if name not in wanted and (replaced or name.startswith(head))]
    return made, [reference(pod) for pod in surplus]


def _of_daemon_set(daemon_set: DaemonSet, have: Mapping[str, Pod], nodes: Iterable[Node]) -> Step:
    wanted = on_nodes(daemon_set, nodes)
    made = [pod_manifest(daemon_set, name, node) for name, node in wanted.items() if name not in have]
    coming = {node for name, node in wanted.items() if name not in have or not have[name].ready}
    surplus = [pod for name, pod in have.items() if name not in wanted and pod.node not in coming]
    return made, [reference(pod) for pod in surplus]


def _of_stateful_set(wanted: StatefulSet, have: Mapping[str, Pod]) -> Step:
    """One step at a time where order matters: each is taken when the one before it shows in `have`."""
    names = pod_names(wanted, ())
    missing = [name for name in names if name not in have]
    surplus = sorted((pod for name, pod in have.items() if name not in names), key=_number, reverse=True)
    if missing or surplus:
        if wanted.is_ordered:
            missing = [
                name for name in missing if all(each in have and have[each].ready for each in _before(names, name))
            ]
            surplus = surplus[:1]
        return [pod_manifest(wanted, name) for name in missing], [reference(pod) for pod in surplus]
    revision = digest(wanted.template, 10)
    old = [pod for pod in have.values() if pod.labels.get(REVISION) != revision and _number(pod) >= wanted.renewed_from]
    if not wanted.renews or not old:
        return [], []
    last = max(old, key=_number)
    others_are_ready = all(pod.ready for pod in have.values() if pod is not last)
    return [], [reference(last)] if others_are_ready else []


def _head(workload: Workload) -> str:
    """What the names of the template's pods begin with."""
    return f"{workload.name}-{digest(workload.template, 10)}-"


def _before(names: list[str], name: str) -> list[str]:
    return names[: names.index(name)]


def _number(pod: Pod) -> int:
    """The number in a StatefulSet's pod's name; another name, which nobody here gave, is below all."""
    number = pod.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def reference(pod: Pod) -> Manifest:
    """Enough of a manifest to delete by."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name, "namespace": pod.namespace}}
