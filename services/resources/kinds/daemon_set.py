"""apps/v1 DaemonSet."""

from __future__ import annotations

from typing import Any

from bus.messages.resources import DaemonSet
from bus.subjects import DAEMON_SET, NODE, POD
from services.resources.kind import Form, Kind, Known
from services.resources.kinds.deployment import COLUMNS, counted


def manifest() -> Form:
    from services.resources.manifests import pod, words

    return Form(pod.DaemonSetManifest, pod.read_daemon_set, words.dns_subdomain)


def status(daemon_set: DaemonSet, known: Known) -> dict[str, Any]:
    return counted(daemon_set, known, ("currentNumberScheduled", "numberReady", "numberAvailable"))


KIND = Kind(
    name="DaemonSet",
    api_version="apps/v1",
    plural="daemonsets",
    short=("ds",),
    state=DAEMON_SET,
    manifest=manifest,
    after=("Service",),
    makes=("Pod",),
    fixed={"selector": "spec.selector"},
    columns=COLUMNS,
    status=status,
    draws_on=(POD, NODE),
)
