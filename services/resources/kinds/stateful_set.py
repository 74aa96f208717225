"""apps/v1 StatefulSet."""

from __future__ import annotations

from bus.subjects import NODE, POD, STATEFUL_SET
from services.resources.kind import Form, Kind
from services.resources.kinds.deployment import COLUMNS, status


def manifest() -> Form:
    from services.resources.manifests import pod, words

    return Form(pod.StatefulSetManifest, pod.read_stateful_set, words.dns_label)


KIND = Kind(
    name="StatefulSet",
    api_version="apps/v1",
    plural="statefulsets",
    short=("sts",),
    state=STATEFUL_SET,
    manifest=manifest,
    after=("Service",),
    makes=("Pod",),
    fixed={"selector": "spec.selector"},
    columns=COLUMNS,
    status=status,
    draws_on=(POD, NODE),
)
