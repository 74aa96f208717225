"""Labels in their canonical form: what a pod's identity is made of, and what selectors in messages are over. Pure.

Keys are spelt as Cilium spells them (docs/glossary.md), so that its manifests mean the same here:

    k8s:<key>                                            a label of the pod
    k8s:io.kubernetes.pod.namespace                      its namespace
    k8s:io.cilium.k8s.namespace.labels.<key>             a label of its namespace
    k8s:io.cilium.k8s.policy.serviceaccount              its service account
    k8s:io.cilium.k8s.policy.cluster                     the cluster, always "default" so far
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256

from bus.messages.resources import LabelSelector, Namespace, Pod, Requirement, Service

NAMESPACE = "k8s:io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "k8s:io.cilium.k8s.namespace.labels."
SERVICE_ACCOUNT = "k8s:io.cilium.k8s.policy.serviceaccount"
CLUSTER = "k8s:io.cilium.k8s.policy.cluster"

DERIVED = (NAMESPACE, NAMESPACE_LABELS, SERVICE_ACCOUNT, CLUSTER)
"""Heads of the keys that say where a pod is rather than what it is; many pods share each of their values."""

RESERVED = {
    "host": 1,
    "world": 2,
    "unmanaged": 3,
    "health": 4,
    "init": 5,
    "remote-node": 6,
    "kube-apiserver": 7,
    "world-ipv4": 9,  # what is outside, where nodes have both families; with one family all of it is "world"
    "world-ipv6": 10,
}
"""Identities that no label set has."""

SERVED_BY_OTHERS = ("service.kubernetes.io/headless", "service.kubernetes.io/service-proxy-name")
"""Labels of a Service that leave it to another proxy, or to none (Kubernetes, "Well-Known Labels")."""

SERVICE_NAME, SERVICE_NAMESPACE = "io.kubernetes.service.name", "io.kubernetes.service.namespace"
"""Keys by which a selector of Services may ask for these, as if they were labels."""

IDENTITY_MIN = 256
IDENTITY_MAX = 2**24 - 1
"""Numbers of label sets, both included: a number fits the 24 bits that a tunnel header has for it."""

NETWORK_MIN = 2**24
NETWORK_MAX = 2**25 - 1
"""Numbers of networks that policies name, both included. Each node gives its own; they never leave it."""

_IGNORED_HEADS = (
    # What Cilium leaves out by default (its documentation, "Limiting Identity-Relevant Labels"; patterns there are
    # anchored at the start of the key only): labels that differ from pod to pod or tell nothing about its role.
    "io.kubernetes",
    "kubernetes.io",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/controller-uid",
    "beta.kubernetes.io",
    "k8s.io",
    "pod-template-generation",
    "pod-template-hash",
    "controller-revision-hash",
    "annotation",
    "controller-uid",
    "etcd_node",
    # A pod may not say these of itself: they are derived below.
    "io.cilium.k8s",
    # Copied from the node to each pod since Kubernetes 1.35 (KEP-4742): where a pod landed is not who it is.
    "topology.kubernetes.io/",
)


def is_relevant(key: str) -> bool:
    """A pod label of this key, as in the manifest, is part of the pod's identity."""
    return not key.startswith(_IGNORED_HEADS)


def canonical_labels(pod: Pod, namespace: Namespace) -> dict[str, str]:
    """The label set that `pod`'s identity stands for; keys are canonical.

    Args:
        namespace: the pod's own. Its name counts as its label kubernetes.io/metadata.name, as the API server sees to.
    """
    labels = {f"k8s:{key}": value for key, value in pod.labels.items() if is_relevant(key)}
    labels |= {NAMESPACE_LABELS + key: value for key, value in namespace.labels.items()}
    labels[NAMESPACE_LABELS + "kubernetes.io/metadata.name"] = namespace.name
    labels[NAMESPACE] = pod.namespace
    labels[SERVICE_ACCOUNT] = pod.service_account
    labels[CLUSTER] = "default"
    return labels


def service_labels(service: Service) -> dict[str, str]:
    """What selectors of Services are over."""
    return {**service.labels, SERVICE_NAME: service.name, SERVICE_NAMESPACE: service.namespace}


def selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Every requirement holds. As in Kubernetes `NotIn` also holds where the key is absent; `In` of nothing never."""
    return all(_holds(requirement, labels) for requirement in selector.requirements)


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    match requirement.operator:
        case "In":
            return labels.get(requirement.key) in requirement.values
        case "NotIn":
            return labels.get(requirement.key) not in requirement.values
        case "Exists":
            return requirement.key in labels
        case "DoesNotExist":
            return requirement.key not in labels


def labels_text(labels: Mapping[str, str]) -> str:
    """One text for one label set, whatever the order in the mapping."""
    return json.dumps(sorted(labels.items()), separators=(",", ":"))


def selector_text(selector: LabelSelector) -> str:
    """One text for all selectors that say the same requirements, whatever their order and repetition."""
    wanted = {(each.key, each.operator, tuple(sorted(set(each.values)))) for each in selector.requirements}
    return json.dumps(sorted(wanted), separators=(",", ":"))


def selector_id(selector: LabelSelector) -> str:
    """The first 16 hex digits of SHA-256 over `selector_text`."""
    return sha256(selector_text(selector).encode()).hexdigest()[:16]


def number_of(text: str) -> int:
    """The identity number that a label set (as `labels_text`) would like: evenly spread, the same always."""
    return IDENTITY_MIN + int.from_bytes(sha256(text.encode()).digest()[:8], "big") % (IDENTITY_MAX - IDENTITY_MIN + 1)


def network_number_of(cidr: str) -> int:
    """The number that a network would like, on every node."""
    return NETWORK_MIN + int.from_bytes(sha256(cidr.encode()).digest()[:8], "big") % (NETWORK_MAX - NETWORK_MIN + 1)


def numbers_from(first: int) -> Iterator[int]:
    """Every identity number once, counting up from `first` and round to `first` - 1."""
    yield from range(first, IDENTITY_MAX + 1)
    yield from range(IDENTITY_MIN, first)
