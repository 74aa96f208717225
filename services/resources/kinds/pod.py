"""v1 Pod."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from bus.addresses import all_of, by_family, plain
from bus.messages.resources import Pod
from bus.subjects import ENDPOINT, NODE, POD
from bus.texts import shortened
from services.resources.kind import Form, Kind, Known, Object

if TYPE_CHECKING:
    from services.resources.manifests.meta import Resource

PHASES = ("Pending", "Running", "Succeeded", "Failed")
ENDED = ("Succeeded", "Failed")
LONGEST_REASON = 400  # characters


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


def from_api(pod: Pod, found: Object, _: Resource) -> Pod:
    """What its kubelet reported. A pod that has ended has given its addresses back; those of a pod on its node's
    network are the node's, whatever it says (`mirror.py`)."""
    from services.resources.manifests.words import address as wrong_address

    said = found.get("status")
    status = said if isinstance(said, Mapping) else {}
    phase: Any = status.get("phase") or "Pending"
    ready = next((each for each in _listed(status, "conditions") if each.get("type") == "Ready"), {})
    told = [each.get("ip") for each in _listed(status, "podIPs")] or [status.get("podIP")]
    right = [each for each in told if isinstance(each, str) and wrong_address(each) is None]
    addresses = [] if phase in ENDED or pod.host_network else [plain(each) for each in by_family(right).values()]
    is_ready = ready.get("status") == "True" and phase == "Running" and "deletionTimestamp" not in found["metadata"]
    why = next((text for each in (ready, status) if isinstance(text := each.get("message"), str) and text), "")
    return replace(
        pod,
        uid=str(found["metadata"].get("uid") or ""),
        phase=phase if phase in PHASES else "other",
        ready=is_ready,
        address=next(iter(addresses), ""),
        addresses=addresses if len(addresses) > 1 else [],
        reason="" if is_ready else shortened(why, LONGEST_REASON),
        owner="",
    )


def _listed(found: Object, field: str) -> list[Object]:
    values = found.get(field)
    return [each for each in values if isinstance(each, Mapping)] if isinstance(values, list) else []


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
    from_api=from_api,
    draws_on=(ENDPOINT, NODE),
)
