"""What can be set: the rows of settings/rows.py that "resources" reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network

from bus.addresses import Network
from bus.messages.resources import Family
from bus.service import BadSettings
from settings.ports import Ports, node_ports_of
from settings.read import default, read

VARIABLES: Mapping[Family, str] = {"IPv4": "PLEXUS_SERVICE_CIDR", "IPv6": "PLEXUS_SERVICE_CIDR6"}
NODE_PORTS = "PLEXUS_NODE_PORT_RANGE"


def _networks(given: Mapping[str, str]) -> dict[Family, Network]:
    """Empty: Services have no such addresses."""
    found = {
        family: given.get(variable.removeprefix("PLEXUS_").lower(), default(variable, "resources"))
        for family, variable in VARIABLES.items()
    }
    return {family: ip_network(text) for family, text in found.items() if text}


def _node_ports(given: Mapping[str, str]) -> Ports:
    return node_ports_of(given.get("node_port_range", default(NODE_PORTS, "resources")))


@dataclass(frozen=True)
class Settings:
    """`service_networks` is never empty; the first is the family of a Service that names none."""

    service_networks: Mapping[Family, Network] = field(default_factory=lambda: _networks({}))
    node_ports: Ports = field(default_factory=lambda: _node_ports({}))
    source: str = default("PLEXUS_SOURCE", "resources")
    kubeconfig: str = ""  # a path; "": the service account of the pod that this runs in

    @property
    def is_kubernetes(self) -> bool:
        return self.source == "kubernetes"


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Where resources, ClusterIPs and node ports come from. Raises BadSettings."""
    given = read(environment, "resources")
    networks = _networks(given)
    if not networks:
        raise BadSettings("PLEXUS_SERVICE_CIDR and PLEXUS_SERVICE_CIDR6 are both empty; Services need one of them")
    source = given.get("source", default("PLEXUS_SOURCE", "resources"))
    return Settings(networks, _node_ports(given), source, str(given.get("kubeconfig", "")))
