"""How a Service is reached, and by whom: the fields of ServiceSpec on traffic -> fields of the message.

Source: the Kubernetes API reference of ServiceSpec; Kubernetes, "Virtual IPs and Service Proxies" (traffic policies,
session affinity, traffic distribution).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bus.addresses import plain
from services.resources.manifests import words
from services.resources.manifests.strict import Problems, Schema, nearest

if TYPE_CHECKING:
    from services.resources.manifests.core import ServiceSpec

EXPOSED_TYPES = ("LoadBalancer", "NodePort")
AFFINITY_SECONDS, AFFINITY_SECONDS_MAX = 10_800, 86_400
DISTRIBUTIONS = {
    "PreferClose": "PreferSameZone",  # its first name
    "PreferSameNode": "PreferSameNode",
    "PreferSameZone": "PreferSameZone",
}
POLICIES = ("Cluster", "Local")
NOBODY = "255.255.255.255/32"  # no packet comes from there
SOURCE_RANGES_POLICY = "service.cilium.io/src-ranges-policy"


class ClientIPConfig(Schema, frozen=True, kw_only=True):
    timeout_seconds: int | None = None


class AffinityConfig(Schema, frozen=True, kw_only=True):
    client_ip: ClientIPConfig = ClientIPConfig()


def read_exposure(
    spec: ServiceSpec, annotations: dict[str, str], has_frontends: bool, problems: Problems
) -> dict[str, Any]:
    """By the names of the message's fields."""
    is_exposed = spec.type in EXPOSED_TYPES
    for field, value, needed, allowed in (
        ("externalTrafficPolicy", spec.external_traffic_policy, is_exposed or bool(spec.external_ips), POLICIES),
        ("internalTrafficPolicy", spec.internal_traffic_policy, True, POLICIES),
        ("sessionAffinity", spec.session_affinity, True, ("None", "ClientIP")),
        ("trafficDistribution", spec.traffic_distribution, True, tuple(DISTRIBUTIONS)),
    ):
        if value and value not in allowed:
            hint = nearest(value, allowed)
            problems.add(f"spec.{field}", f'"{value}" is not a choice; use {" or ".join(allowed)}{hint}')
        elif value and not needed:
            problems.add(f"spec.{field}", f"is of what comes from outside, and a {spec.type} is not reached from there")
    if has_frontends and spec.traffic_distribution:
        problems.warn("spec.trafficDistribution", "zones are not looked at; traffic goes to all backends alike")
    return {
        "external_traffic_policy": _policy(spec.external_traffic_policy),
        "internal_traffic_policy": _policy(spec.internal_traffic_policy),
        "external_addresses": _external_addresses(spec, problems),
        "health_check_port": _health_check_port(spec, problems),
        "allocates_node_ports": spec.allocate_load_balancer_node_ports,
        "affinity_seconds": _affinity_seconds(spec, problems),
        **_source_ranges(spec, annotations, problems),
        "publishes_not_ready": spec.publish_not_ready_addresses,
        "distribution": DISTRIBUTIONS.get(spec.traffic_distribution, ""),
    }


def _policy(text: str) -> str:
    return text if text in POLICIES else "Cluster"


def _source_ranges(spec: ServiceSpec, annotations: dict[str, str], problems: Problems) -> dict[str, Any]:
    """Who may call. What cannot be read lets nobody in whom it might have kept out."""
    found, is_read = set(), True
    for index, text in enumerate(spec.load_balancer_source_ranges):
        wrong = words.cidr(text.strip())
        problems.add_if(f"spec.loadBalancerSourceRanges[{index}]", wrong)
        if wrong is None:
            found.add(words.plain_cidr(text.strip()))
        is_read &= wrong is None
    said = {value.strip().lower() for key, value in annotations.items() if key.lower() == SOURCE_RANGES_POLICY}
    denies = said == {"deny"}
    is_known = denies or said <= {"allow"}
    if (not is_read and (denies or not found)) or (spec.load_balancer_source_ranges and not is_known):
        return {"source_ranges": [NOBODY], "denies_sources": False}
    return {"source_ranges": sorted(found), "denies_sources": denies}


def _external_addresses(spec: ServiceSpec, problems: Problems) -> list[str]:
    found = []
    for index, text in enumerate(spec.external_ips):
        wrong = words.endpoint_address(text)
        problems.add_if(f"spec.externalIPs[{index}]", wrong)
        if wrong is None:
            found.append(plain(text))
    return sorted(set(found))


def _health_check_port(spec: ServiceSpec, problems: Problems) -> int:
    port = spec.health_check_node_port
    if not port:
        return 0
    problems.add_if("spec.healthCheckNodePort", words.port_number(port))
    if not has_health_check(spec.type, spec.external_traffic_policy):
        text = "is for a LoadBalancer whose externalTrafficPolicy is Local; remove it"
        problems.add("spec.healthCheckNodePort", text)
    return port


def has_health_check(kind: str, external_traffic_policy: str) -> bool:
    """Whoever balances outside must know which nodes have backends."""
    return kind == "LoadBalancer" and external_traffic_policy == "Local"


def _affinity_seconds(spec: ServiceSpec, problems: Problems) -> int:
    said = spec.session_affinity_config.client_ip.timeout_seconds
    if spec.session_affinity != "ClientIP":
        if said is not None:
            problems.add("spec.sessionAffinityConfig", "is for sessionAffinity ClientIP only; remove it")
        return 0
    seconds = AFFINITY_SECONDS if said is None else said
    if not 1 <= seconds <= AFFINITY_SECONDS_MAX:
        where = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        problems.add(where, f"{seconds} is not within 1 and {AFFINITY_SECONDS_MAX} seconds")
        return AFFINITY_SECONDS
    return seconds
