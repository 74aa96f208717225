"""The Deployment controller: which pods to make and which to remove. Pure.

A pod's name is the Deployment's, a hash of the template, and a number's hash: whoever computes it, it is the same, so
nothing has to be remembered and asking twice makes nothing twice. A new template makes new pods beside the old ones,
which go when all the new ones are ready.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from bus.messages.resources import Deployment, Pod

Manifest = dict[str, Any]


def owner(deployment: Deployment) -> str:
    """What Pod.owner says of its pods."""
    return f"deployment/{deployment.namespace}/{deployment.name}"


def digest(value: object, length: int) -> str:
    """The first hexadecimal digits of a value's SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def pod_names(deployment: Deployment) -> list[str]:
    """The names of the pods that there ought to be."""
    template = digest(deployment.template, 10)
    return [f"{deployment.name}-{template}-{digest([template, number], 5)}" for number in range(deployment.replicas)]


def pod_manifest(deployment: Deployment, name: str) -> Manifest:
    """A pod of the Deployment's template."""
    metadata = dict(deployment.template.get("metadata") or {})
    metadata |= {
        "name": name,
        "namespace": deployment.namespace,
        "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment.name, "controller": True}
        ],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": deployment.template["spec"]}


def reconcile(deployments: Iterable[Deployment], pods: Iterable[Pod]) -> tuple[list[Manifest], list[Manifest]]:
    """What to apply and what to delete, as manifests; nothing of pods that no Deployment made."""
    by_owner: dict[str, dict[str, Pod]] = {}
    for pod in pods:
        if pod.owner.startswith("deployment/"):
            by_owner.setdefault(pod.owner, {})[pod.name] = pod
    apply: list[Manifest] = []
    delete: list[Manifest] = []
    for deployment in deployments:
        have = by_owner.pop(owner(deployment), {})
        made, removed = one(deployment, have)
        apply += made
        delete += removed
    for orphans in by_owner.values():
        delete += [reference(pod) for pod in orphans.values()]
    return apply, delete


def one(deployment: Deployment, have: Mapping[str, Pod]) -> tuple[list[Manifest], list[Manifest]]:
    """What to apply and delete for one Deployment. `have`: its pods by name."""
    wanted = pod_names(deployment)
    made = [pod_manifest(deployment, name) for name in wanted if name not in have]
    replaced = all(name in have and have[name].ready for name in wanted)
    template = f"{deployment.name}-{digest(deployment.template, 10)}-"
    surplus = [pod for name, pod in have.items() if name not in wanted and (replaced or name.startswith(template))]
    return made, [reference(pod) for pod in surplus]


def reference(pod: Pod) -> Manifest:
    """Enough of a manifest to delete by."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name, "namespace": pod.namespace}}
