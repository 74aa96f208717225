"""What a Service of type LoadBalancer asks for -> a part of its message.

Source: Cilium's documentation, "LoadBalancer IP Address Management"; Kubernetes, "Service" (load balancer class).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bus.addresses import plain
from bus.messages.resources import LoadBalancerRequest
from services.resources.manifests import words
from services.resources.manifests.strict import Problems

if TYPE_CHECKING:
    from services.resources.manifests.core import ServiceSpec

IPS = ("lbipam.cilium.io/ips", "io.cilium/lb-ipam-ips")
SHARING_KEY = ("lbipam.cilium.io/sharing-key", "io.cilium/lb-ipam-sharing-key")
SHARING_NAMESPACES = ("lbipam.cilium.io/sharing-cross-namespace", "io.cilium/lb-ipam-sharing-cross-namespace")
ANNOTATIONS = frozenset((*IPS, *SHARING_KEY, *SHARING_NAMESPACES))
"""Of a Service. The second spelling of each is an older one, and means the same."""


def read_request(spec: ServiceSpec, annotations: Mapping[str, str], problems: Problems) -> LoadBalancerRequest | None:
    """What a Service asks for. None, where it is no LoadBalancer: then it may ask for nothing."""
    if spec.type != "LoadBalancer":
        for field, value in (
            ("loadBalancerClass", spec.load_balancer_class),
            ("loadBalancerIP", spec.load_balancer_ip),
        ):
            if value:
                problems.add(f"spec.{field}", "is for the type LoadBalancer only; remove it, or set spec.type")
        return None
    asked: dict[str, None] = {}
    if spec.load_balancer_ip:
        problems.add_if("spec.loadBalancerIP", words.endpoint_address(spec.load_balancer_ip))
        asked[plain(spec.load_balancer_ip)] = None
    where, value = _annotation(annotations, IPS, problems)
    for text in _listed(value):
        problems.add_if(where, words.endpoint_address(text))
        asked[plain(text)] = None
    _, key = _annotation(annotations, SHARING_KEY, problems)
    where, value = _annotation(annotations, SHARING_NAMESPACES, problems)
    namespaces = sorted(set(_listed(value)))
    for text in namespaces:
        problems.add_if(where, None if text == "*" else words.dns_label(text))
    name = spec.load_balancer_class
    problems.add_if("spec.loadBalancerClass", words.label_key(name) if name else None)
    return LoadBalancerRequest(
        load_balancer_class=name, addresses=list(asked), sharing_key=key, sharing_namespaces=namespaces
    )


def _annotation(annotations: Mapping[str, str], spellings: tuple[str, str], problems: Problems) -> tuple[str, str]:
    """(where it is, its value): of both spellings together, which must agree; "" when it is not there."""
    found = [(key, value.strip()) for key, value in annotations.items() if key.lower() in spellings]
    if len({value for _, value in found}) > 1:
        keys = " and ".join(key for key, _ in found)
        problems.add(f"metadata.annotations[{found[-1][0]}]", f"{keys} mean the same and differ; keep one of them")
    key, value = found[0] if found else ("", "")
    return f"metadata.annotations[{key}]", value


def _listed(value: str) -> list[str]:
    return [word for each in value.split(",") if (word := each.strip())]
