"""v1 Namespace."""

from __future__ import annotations

from typing import Any

from bus.messages.resources import Namespace
from bus.subjects import NAMESPACE, POD
from services.resources.kind import Form, Kind, Known


def manifest() -> Form:
    from services.resources.manifests import core, words

    return Form(core.NamespaceManifest, core.read_namespace, words.dns_label)


def status(namespace: Namespace, known: Known) -> dict[str, Any]:
    pods = sum(key[0] == namespace.name for key in known.of(POD))
    filled = {"labels": namespace.labels} if namespace.labels else {}
    return {"metadata": filled, "status": {"phase": "Active"}, "plexus": {"pods": pods}}


KIND = Kind(
    name="Namespace",
    api_version="v1",
    plural="namespaces",
    short=("ns",),
    state=NAMESPACE,
    manifest=manifest,
    is_namespaced=False,
    columns={"PODS": "plexus.pods", "LABELS": "metadata.labels"},
    status=status,
    draws_on=(POD,),
)
