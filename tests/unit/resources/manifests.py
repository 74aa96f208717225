"""Manifests in YAML -> what the service makes of them."""

from __future__ import annotations

from typing import Any

import yaml

from bus.messages import Message
from bus.messages.resources import Document, Policy, Refusal
from services.resources.manifests.document import read_document
from services.resources.manifests.meta import Resource


def documents(text: str) -> list[Document]:
    return [
        Document(source=f"test.yaml, document {at}", manifest=manifest)
        for at, manifest in enumerate(yaml.safe_load_all(text), 1)
    ]


def taken(text: str) -> Resource:
    """The one document's resource; it must not be refused."""
    found = read_document(documents(text)[0])
    assert isinstance(found, Resource), found
    return found


def message(text: str) -> Any:
    """The one document's one message."""
    resource = taken(text)
    messages: list[Message] = [each for _, each in resource.messages]
    assert len(messages) == 1
    return messages[0]


def refusals(text: str) -> list[Refusal]:
    found = read_document(documents(text)[0])
    return [] if isinstance(found, Resource) else found


def problems(text: str) -> dict[str, str]:
    """Path -> problem of the one document; empty when it is taken."""
    return {each.path: each.problem for each in refusals(text)}


def cilium(rule: str, namespace: str = "default") -> str:
    """A CiliumNetworkPolicy around the body of `spec`, in flow style: 'ingress: [{}]'."""
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: rule1, namespace: {namespace}}}
spec: {{endpointSelector: {{}}, {rule}}}
"""


def clusterwide(rule: str) -> str:
    """A CiliumClusterwideNetworkPolicy around the body of `spec`."""
    return f"""
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {{name: rule1}}
spec: {{endpointSelector: {{}}, {rule}}}
"""


def cidr_group(cidrs: str, version: str = "v2") -> str:
    """A CiliumCIDRGroup of these networks."""
    return f"""
apiVersion: cilium.io/{version}
kind: CiliumCIDRGroup
metadata: {{name: office, labels: {{tier: a}}}}
spec: {{externalCIDRs: [{cidrs}]}}
"""


def network(rule: str) -> str:
    """A NetworkPolicy around the body of `spec`."""
    return f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: rule1}}
spec: {{{rule}}}
"""


def pod(extra: str = "", containers: str = "[{name: c, image: i}]", metadata: str = "") -> str:
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: p{metadata}}}
spec: {{containers: {containers}{extra}}}
"""


def service(spec: str = "ports: [{port: 80}]", name: str = "svc", metadata: str = "") -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}{metadata}}}
spec: {{{spec}}}
"""


def peers_of(policy: Policy, rule: int = 0) -> list[list[tuple[str, str, list[str]]]]:
    """Each peer's requirements as (key, operator, values)."""
    return [
        [(each.key, each.operator, each.values) for each in peer.selector.requirements] if peer.selector else []
        for peer in policy.rules[rule].peers
    ]
