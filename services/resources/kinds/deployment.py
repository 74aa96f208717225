"""apps/v1 Deployment; what is shown of it is shown of the other workloads too."""

from __future__ import annotations

from typing import Any

from bus.messages.resources import Deployment, StatefulSet
from bus.subjects import DEPLOYMENT, NODE, POD
from services.resources.kind import Form, Kind, Known

COLUMNS = {"READY": "plexus.ready", "PODS": "plexus.pods"}
COUNTS = ("replicas", "readyReplicas", "availableReplicas")


def manifest() -> Form:
    from services.resources.manifests import pod, words

    return Form(pod.DeploymentManifest, pod.read_deployment, words.dns_subdomain)


def status(workload: Deployment | StatefulSet, known: Known) -> dict[str, Any]:
    return counted(workload, known, COUNTS)


def counted(workload: Any, known: Known, counts: tuple[str, str, str]) -> dict[str, Any]:
    """Its pods. `counts`: what their number, and that of those that are ready and available, are called."""
    owner = f"{type(workload).__name__.lower()}/{workload.namespace}/{workload.name}"
    pods = [pod for pod in known.of(POD).values() if pod.owner == owner]
    ready = sum(pod.ready for pod in pods)
    told = dict(zip(counts, (len(pods), ready, ready), strict=True))
    shown = {"ready": f"{ready}/{known.pods_wanted(workload)}", "pods": [pod.name for pod in pods]}
    return {"status": told, "plexus": shown}


KIND = Kind(
    name="Deployment",
    api_version="apps/v1",
    plural="deployments",
    short=("deploy",),
    state=DEPLOYMENT,
    manifest=manifest,
    after=("Service",),
    makes=("Pod",),
    fixed={"selector": "spec.selector"},
    columns=COLUMNS,
    status=status,
    draws_on=(POD, NODE),
)
