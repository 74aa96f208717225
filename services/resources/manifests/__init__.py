"""Manifests as people write them -> checked messages, or refusals that name document, kind, name and path.

Read `read_document` here, then the module of a kind. Nothing valid is passed over in silence where it would change
what packets do: it is done, or refused as "not supported yet".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from bus.messages.resources import Document, Notice, Refusal
from bus.texts import shortened
from services.resources.manifests import kinds, words
from services.resources.manifests.annotations import check_annotations
from services.resources.manifests.cilium_policy import read_cilium_policy
from services.resources.manifests.cilium_schema import CiliumNetworkPolicy
from services.resources.manifests.core import (
    NamespaceManifest,
    NodeManifest,
    ServiceManifest,
    SliceManifest,
    read_endpoint_slice,
    read_namespace,
    read_node,
    read_service,
)
from services.resources.manifests.meta import LONGEST_TEXT, Key, Manifest, Resource, check_metadata, notice, refusal
from services.resources.manifests.network_policy import NetworkPolicy, read_network_policy
from services.resources.manifests.pod import (
    DaemonSetManifest,
    DeploymentManifest,
    PodManifest,
    StatefulSetManifest,
    read_daemon_set,
    read_deployment,
    read_pod,
    read_stateful_set,
)
from services.resources.manifests.strict import DEEPEST, Problem, Problems, depth_exceeds, nearest, read

DEFAULT_NAMESPACE = "default"

__all__ = ["DEFAULT_NAMESPACE", "KINDS", "Key", "Resource", "read_document", "skipped"]


@dataclass(frozen=True)
class Kind:
    """How to read one kind of manifest."""

    api_version: str
    schema: type[Manifest]
    read: Callable[[Any, dict[str, Any], Key, str, Problems], Resource]
    name_problem: Callable[[str], str | None]
    namespaced: bool = True


KINDS = {
    "Namespace": Kind("v1", NamespaceManifest, read_namespace, words.dns_label, namespaced=False),
    "Node": Kind("v1", NodeManifest, read_node, words.dns_subdomain, namespaced=False),
    "Pod": Kind("v1", PodManifest, read_pod, words.dns_subdomain),
    "Service": Kind("v1", ServiceManifest, read_service, words.service_name),
    "Deployment": Kind("apps/v1", DeploymentManifest, read_deployment, words.dns_subdomain),
    "StatefulSet": Kind("apps/v1", StatefulSetManifest, read_stateful_set, words.dns_label),
    "DaemonSet": Kind("apps/v1", DaemonSetManifest, read_daemon_set, words.dns_subdomain),
    "EndpointSlice": Kind("discovery.k8s.io/v1", SliceManifest, read_endpoint_slice, words.dns_subdomain),
    "NetworkPolicy": Kind("networking.k8s.io/v1", NetworkPolicy, read_network_policy, words.dns_subdomain),
    "CiliumNetworkPolicy": Kind("cilium.io/v2", CiliumNetworkPolicy, read_cilium_policy, words.dns_subdomain),
}

NOT_READ = kinds.LATER | kinds.WORKLOADS | kinds.NO_CONCERN

MOST_WARNINGS = 20  # of one document; as many are kept with the resource


def read_document(document: Document, to_delete: bool = False) -> Resource | list[Refusal]:
    """One document, checked by itself.

    Args:
        to_delete: only what names the resource is read; a manifest that is refused today can be deleted.
    Returns: the resource, or every reason why not, at least one.
    """
    problems = Problems()
    resource = _read(document, problems, to_delete)
    if resource is not None and not problems:
        return _warned(resource, problems.warnings) if problems.warnings else resource
    kind, name = _names(document)
    return [refusal(document.source, kind, name, problem.path, problem.text) for problem in problems]


def skipped(document: Document) -> tuple[str, list[Notice]] | None:
    """The kind of a document that may be passed over, and what is to be said of that; None: it is to be read."""
    kind, name = _names(document)
    api_version = document.manifest.get("apiVersion")
    if not kind or not isinstance(api_version, str) or not kinds.may_be_skipped(kind, api_version):
        return None
    if kind in KINDS and KINDS[kind].api_version == api_version:
        return None
    missing = kinds.what_is_missing(kind)
    return kind, [] if missing is None else [notice(document.source, kind, name, "", missing)]


def _names(document: Document) -> tuple[str, str]:
    """Kind and name as far as they are text."""
    meta = document.manifest.get("metadata")
    found = document.manifest.get("kind"), meta.get("name") if isinstance(meta, dict) else None
    kind, name = (value if isinstance(value, str) else "" for value in found)
    return kind, name


def _warned(resource: Resource, warnings: list[Problem]) -> Resource:
    """With what was taken and is not done, kept in the first of its messages too."""
    kept = warnings[:MOST_WARNINGS]
    if len(warnings) > MOST_WARNINGS:
        kept[-1] = Problem("", f"{len(warnings) - MOST_WARNINGS + 1} more places ask for what is not done")
    (subject, first), *others = resource.messages
    told = [shortened(f"{path}: {text}" if path else text, LONGEST_TEXT) for path, text in kept]
    first = msgspec.structs.replace(first, warnings=told)  # each kind of message has the field
    return replace(resource, messages=((subject, first), *others), warnings=tuple(kept))


def _read(document: Document, problems: Problems, to_delete: bool) -> Resource | None:
    raw = document.manifest
    if depth_exceeds(raw, DEEPEST):
        problems.add("", f"is nested more than {DEEPEST} levels deep")
        return None
    kind = _kind(raw, problems)
    if kind is None:
        return None
    if to_delete:
        key = _key_to_delete(raw, kind, problems)
        return Resource(key, document.source) if key is not None else None
    manifest = read(kind.schema, raw, problems)
    if manifest is None:
        return None
    check_metadata(manifest.metadata, problems)
    check_annotations(manifest.kind, manifest.metadata, "metadata", problems)
    key = _key(manifest.kind, kind, manifest.metadata.name, manifest.metadata.namespace, problems)
    return kind.read(manifest, raw, key, document.source, problems)


def _kind(raw: dict[str, Any], problems: Problems) -> Kind | None:
    name, api_version = raw.get("kind"), raw.get("apiVersion")
    for field, value in (("kind", name), ("apiVersion", api_version)):
        if not isinstance(value, str) or not value:
            problems.add(field, "is required, and missing" if not value else "must be text")
    if not isinstance(name, str) or not isinstance(api_version, str) or problems:
        return None
    kind = KINDS.get(name)
    supported = ", ".join(sorted(KINDS))
    if kind is None and name in NOT_READ:
        problems.add("kind", kinds.why_refused(name, supported))
    elif kind is None:
        hint = nearest(name, KINDS.keys() | NOT_READ) or f"; supported are {supported}"
        if kinds.may_be_skipped(name, api_version):
            hint = f" of this version; leave it out, or let --skip-unsupported pass over it{nearest(name, KINDS)}"
        problems.add("kind", f'"{name}" is not a known kind{hint}')
    elif kind.api_version != api_version:
        problems.add("apiVersion", f"{name} is of {kind.api_version}, not {api_version}")
        return None
    return kind


def _key(kind_name: str, kind: Kind, name: str, namespace: str, problems: Problems) -> Key:
    if not name:
        problems.add("metadata.name", "is required, and missing")
    else:
        problems.add_if("metadata.name", kind.name_problem(name))
    if not kind.namespaced:
        if namespace:
            problems.add("metadata.namespace", f"must be left out; a {kind_name} is in no namespace")
        return Key(kind_name, "", name)
    if namespace:
        problems.add_if("metadata.namespace", words.dns_label(namespace))
    return Key(kind_name, namespace or DEFAULT_NAMESPACE, name)


def _key_to_delete(raw: dict[str, Any], kind: Kind, problems: Problems) -> Key | None:
    metadata = raw.get("metadata")
    if not isinstance(metadata, dict):
        problems.add("metadata", "is required, and missing" if metadata is None else "must be a map of fields")
        return None
    words_ = {field: metadata.get(field) or "" for field in ("name", "namespace")}
    for field, value in words_.items():
        if not isinstance(value, str):
            problems.add(f"metadata.{field}", "must be text")
    if problems:
        return None
    return _key(raw["kind"], kind, words_["name"], words_["namespace"], problems)
