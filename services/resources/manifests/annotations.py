"""Annotations and labels of others that change packets: honoured, refused, or warned of; none is passed over silently.

Keys are compared without case, as Kubernetes checks them. Sources: Kubernetes, "Well-Known Labels, Annotations and
Taints"; Cilium's documentation of each feature (pkg/annotation lists the keys).
"""

from __future__ import annotations

from bus.labels import SERVED_BY_OTHERS
from services.resources.manifests.exposure import SOURCE_RANGES_POLICY
from services.resources.manifests.load_balancer import ANNOTATIONS as LB_ANNOTATIONS
from services.resources.manifests.meta import ObjectMeta
from services.resources.manifests.strict import Problems, joined, names

ONE_CLUSTER = names(
    "clustermesh.cilium.io/global io.cilium/global-service io.cilium/service-affinity io.cilium/shared-service"
    " service.cilium.io/affinity service.cilium.io/global service.cilium.io/global-sync-endpoint-slices"
    " service.cilium.io/shared"
)
"""They say what is shared between clusters: of one cluster, nothing."""

OF_NODES = ("network.cilium.io/", "io.cilium.network.")
"""What an agent wrote of its node, for other agents."""

BANDWIDTH = ("kubernetes.io/egress-bandwidth", "kubernetes.io/ingress-bandwidth")

STAGE = "plexus.io/stage"
"""Ours: the policy is to be tried, and to enforce nothing."""

_NO_TRACK = "is not supported yet; its connections are tracked as all others are"
_POOL = "address pools are not supported yet; addresses come from the node's own blocks"
_SOURCE = "is not supported yet; packets that do not bear the pod's own address are dropped"
_VISIBILITY = "is not supported; no traffic goes through a proxy"

WARNED = {
    "bandwidth.cilium.io/priority": "priorities are not supported yet; the pod's packets are sent as all others are",
    "cni.cilium.io/mac-address": "a chosen MAC address is not supported yet; the pod gets another one",
    "config.cilium.io/delegate-source-ip-verification": _SOURCE,
    "config.cilium.io/disable-source-ip-verification": _SOURCE,
    "io.cilium.no-track-port": _NO_TRACK,
    "io.cilium.proxy-visibility": _VISIBILITY,
    "ipam.cilium.io/ip-pool": _POOL,
    "ipam.cilium.io/ipv4-pool": _POOL,
    "ipam.cilium.io/ipv6-pool": _POOL,
    "ipam.cilium.io/require-pool-match": _POOL,
    "net.beta.kubernetes.io/network-policy": "isolates nothing since Kubernetes 1.7; apply a NetworkPolicy",
    "network.cilium.io/fib-table-id": "is not supported yet; the pod's packets are routed as all others are",
    "network.cilium.io/no-track-host-ports": _NO_TRACK,
    "policy.cilium.io/no-track-port": _NO_TRACK,
    "policy.cilium.io/proxy-visibility": _VISIBILITY,
    "service.cilium.io/weight": "weights are not supported yet; its endpoints get as much as all others",
}

TOPOLOGY = names("service.kubernetes.io/topology-aware-hints service.kubernetes.io/topology-mode")

_SERVICE_FAMILIES = ("service.cilium.io/", "lbipam.cilium.io/", "io.cilium/")


def check_annotations(kind: str, metadata: ObjectMeta, path: str, problems: Problems) -> None:
    """What the annotations of an object of this kind ask for and do not get."""
    for key, value in metadata.annotations.items():
        where, word = f"{path}.annotations[{key}]", key.lower()
        if word in ONE_CLUSTER or (kind == "Node" and word.startswith(OF_NODES)):
            continue
        if word == STAGE and value.lower() != "false":
            problems.add(where, "staged policies are not supported yet; leave the policy out, for it would be enforced")
        elif kind == "Pod" and word in BANDWIDTH:
            problems.add(where, "bandwidth limits are not supported yet; remove the annotation")
        elif kind == "Service" and word == SOURCE_RANGES_POLICY:
            if value not in ("allow", "deny"):
                problems.add(where, f'"{value}" is not a choice; use allow or deny')
        elif kind == "Service" and word in LB_ANNOTATIONS:
            continue
        elif kind == "Service" and word.startswith(_SERVICE_FAMILIES):
            problems.add(where, "is not supported yet; remove the annotation")
        elif kind == "Service" and word in TOPOLOGY and value.lower() not in ("", "disabled"):
            problems.warn(where, "zones are not looked at; traffic goes to the backends of all zones alike")
        elif word in WARNED:
            problems.warn(where, WARNED[word])
        elif _is_ciliums(word):
            problems.warn(where, "is not known here, and changes nothing")
    if kind == "Service":
        for key in SERVED_BY_OTHERS:
            if key in metadata.labels:
                where = f"{joined(path, 'labels')}[{key}]"
                problems.warn(where, "leaves the Service to another proxy; no frontends are made for it")


def _is_ciliums(key: str) -> bool:
    domain = key.partition("/")[0]
    return domain in ("cilium.io", "io.cilium") or domain.endswith(".cilium.io") or domain.startswith("io.cilium.")
