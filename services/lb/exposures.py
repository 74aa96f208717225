"""Where a Service is reached from outside: node ports, external addresses, those of load balancers. Pure.

Source: Kubernetes, "Service" (types, externalIPs); Cilium, "Kubernetes Without kube-proxy" (annotations of a Service).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from bus.addresses import by_family, family, order, parse, plain, with_port
from bus.messages.lb import Exposure
from bus.messages.resources import Family, Service
from services.lb.places import NOT_AN_ADDRESS

NOT_OF_ITS_FAMILIES = "not of the Service's families"

ALGORITHM = "service.cilium.io/lb-algorithm"
FORWARDING = "service.cilium.io/forwarding-mode"


def exposures(service: Service, balancers: Iterable[str], left_out: dict[str, str]) -> list[Exposure]:
    """In their order. Adds to `left_out` what cannot be.

    Args:
        balancers: addresses that the Service has as a LoadBalancer.
    """
    families = by_family(map(plain, service.cluster_addresses))
    found = [
        *_at_nodes(service, families),
        *_at(service, "ExternalIP", service.external_addresses, families, left_out),
        *_at(service, "LoadBalancer", balancers if service.type == "LoadBalancer" else (), families, left_out),
    ]
    return sorted(found, key=lambda each: (each.kind, each.family, order(each.address), each.port, each.protocol))


def _at_nodes(service: Service, families: Iterable[Family]) -> Iterator[Exposure]:
    for each in families:
        for port in service.ports:
            if 0 < port.node_port < 65536:
                yield Exposure(
                    kind="NodePort", family=each, port=port.node_port, protocol=port.protocol, port_name=port.name
                )


def _at(
    service: Service,
    kind: Literal["ExternalIP", "LoadBalancer"],
    addresses: Iterable[str],
    families: Mapping[Family, str],
    left_out: dict[str, str],
) -> Iterator[Exposure]:
    for address in dict.fromkeys(map(plain, addresses)):
        place = parse(address)
        for port in service.ports:
            if place is None or family(place) not in families:
                left_out[with_port(address, port.port)] = NOT_AN_ADDRESS if place is None else NOT_OF_ITS_FAMILIES
            elif 0 < port.port < 65536:
                yield Exposure(
                    kind=kind,
                    address=address,
                    family=family(place),
                    port=port.port,
                    protocol=port.protocol,
                    port_name=port.name,
                )


def behaviour(service: Service) -> dict[str, Any]:
    """By the names of the message's fields: what its manifest says beside addresses and backends."""
    said = {key.lower(): value for key, value in service.annotations.items()}
    algorithm, forwarding = said.get(ALGORITHM, ""), said.get(FORWARDING, "")
    return {
        "affinity_seconds": service.affinity_seconds,
        "internal_traffic_policy": service.internal_traffic_policy,
        "external_traffic_policy": service.external_traffic_policy,
        "health_check_port": service.health_check_port,
        "source_ranges": service.source_ranges,
        "denies_sources": service.denies_sources,
        "algorithm": algorithm if algorithm in ("random", "maglev") else "",
        "forwarding": forwarding if forwarding in ("snat", "dsr") else "",
        "distribution": service.distribution,
    }
