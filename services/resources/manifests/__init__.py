"""Manifests as people write them -> checked messages, or refusals that name document, kind, name and path.

Read `read_document` here, then the module of a kind. Nothing valid is passed over in silence where it would change
what packets do: it is done, or refused as "not supported yet".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bus.messages.resources import Document, Refusal
from services.resources.manifests import words
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
from services.resources.manifests.meta import Key, Manifest, Resource, check_metadata
from services.resources.manifests.network_policy import NetworkPolicy, read_network_policy
from services.resources.manifests.pod import DeploymentManifest, PodManifest, read_deployment, read_pod
from services.resources.manifests.strict import DEEPEST, Problem, Problems, depth_exceeds, names, nearest, read

DEFAULT_NAMESPACE = "default"

__all__ = ["DEFAULT_NAMESPACE", "KINDS", "Key", "Resource", "read_document"]


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
    "EndpointSlice": Kind("discovery.k8s.io/v1", SliceManifest, read_endpoint_slice, words.dns_subdomain),
    "NetworkPolicy": Kind("networking.k8s.io/v1", NetworkPolicy, read_network_policy, words.dns_subdomain),
    "CiliumNetworkPolicy": Kind("cilium.io/v2", CiliumNetworkPolicy, read_cilium_policy, words.dns_subdomain),
}

LATER_KINDS = names(
    "CiliumBGPClusterConfig CiliumCIDRGroup CiliumClusterwideNetworkPolicy CiliumEgressGatewayPolicy CiliumEnvoyConfig"
    " CiliumL2AnnouncementPolicy CiliumLoadBalancerIPPool CiliumLocalRedirectPolicy CiliumNodeConfig CiliumPodIPPool"
    " ConfigMap CronJob DaemonSet Endpoints Gateway HTTPRoute HorizontalPodAutoscaler Ingress IngressClass Job"
    " PersistentVolumeClaim ReplicaSet ReplicationController Role RoleBinding Secret ServiceAccount StatefulSet"
)


def read_document(document: Document, to_delete: bool = False) -> Resource | list[Refusal]:
    """One document, checked by itself.

    Args:
        to_delete: only what names the resource is read; a manifest that is refused today can be deleted.
    Returns: the resource, or every reason why not, at least one.
    """
    raw = document.manifest
    kind_name, meta = raw.get("kind"), raw.get("metadata")
    name = meta.get("name") if isinstance(meta, dict) else None
    problems = Problems()
    resource = _read(document, problems, to_delete)
    if resource is not None and not problems:
        return resource
    shown_kind, shown_name = (value if isinstance(value, str) else "" for value in (kind_name, name))
    return [_refusal(document.source, shown_kind, shown_name, problem) for problem in problems]


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
    if kind is None and name in LATER_KINDS:
        problems.add("kind", f"{name} is not supported yet; supported are {', '.join(sorted(KINDS))}")
    elif kind is None:
        hint = nearest(name, KINDS.keys() | LATER_KINDS) or f"; supported are {', '.join(sorted(KINDS))}"
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


def _refusal(source: str, kind: str, name: str, problem: Problem) -> Refusal:
    return Refusal(source=source, kind=kind, name=name, path=problem.path, problem=problem.text)
