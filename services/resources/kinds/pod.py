"""v1 Pod."""

from __future__ import annotations

from typing import Any

from bus.addresses import all_of, by_family
from bus.messages.resources import Pod
from bus.subjects import ENDPOINT, NODE, POD
from services.resources.kind import Form, Kind, Known


def manifest() -> Form:
    from services.resources.manifests import pod, words

    return Form(pod.PodManifest, pod.read_pod, words.dns_subdomain)


def status(pod: Pod, known: Known) -> dict[str, Any]:
    endpoint = known.of(ENDPOINT).get((pod.node, pod.namespace, pod.name))
    addresses = all_of(pod) or (all_of(endpoint) if endpoint else [])
    node = known.of(NODE).get((pod.node,))
    hosts = list(by_family(node.addresses).values()) if node else []
    condition = {"type": "Ready", "status": "True" if pod.ready else "False"}
    told = {
        "phase": pod.phase,
        "conditions": [{**condition, "message": pod.reason} if pod.reason else condition],
        **({"podIP": addresses[0], "podIPs": [{"ip": each} for each in addresses]} if addresses else {}),
        **({"hostIP": hosts[0], "hostIPs": [{"ip": each} for each in hosts]} if hosts else {}),
    }
    plexus = {
        "address": next(iter(addresses), ""),
        "addresses": addresses,
        "identity": endpoint.identity if endpoint else 0,
        "node": pod.node,
        "endpoint": endpoint.state if endpoint else "",
        "interface": endpoint.interface if endpoint else "",
        "ready": pod.ready,
        "reason": pod.reason,
        "owner": pod.owner,
    }
    return {
        "metadata": {"uid": pod.uid, **({"labels": pod.labels} if pod.labels else {})},
        **({"spec": {"nodeName": pod.node}} if pod.node else {}),
        "status": told,
        "plexus": plexus,
    }


KIND = Kind(
    name="Pod",
    api_version="v1",
    plural="pods",
    short=("po",),
    state=POD,
    manifest=manifest,
    after=("Node", "Service"),
    columns={
        "READY": "plexus.ready",
        "STATUS": "status.phase",
        "ADDRESS": "plexus.addresses",
        "IDENTITY": "plexus.identity",
        "NODE": "plexus.node",
        "ENDPOINT": "plexus.endpoint",
        "REASON": "plexus.reason",
    },
    status=status,
    draws_on=(ENDPOINT, NODE),
)
