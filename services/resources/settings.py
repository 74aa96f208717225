"""What can be set, from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network

from bus.addresses import FAMILIES, Network, family, parse_network
from bus.messages.resources import Family
from bus.service import BadSettings

SERVICE_CIDR = "10.96.0.0/16"  # ClusterIPs: room for 65 534 Services
SERVICE_NETWORK = IPv4Network(SERVICE_CIDR)

VARIABLES: Mapping[Family, tuple[str, str, str]] = {
    "IPv4": ("PLEXUS_SERVICE_CIDR", SERVICE_CIDR, SERVICE_CIDR),
    "IPv6": ("PLEXUS_SERVICE_CIDR6", "", "fd00:96::/112"),
}
"""Family -> its variable, the value when it is not set, and an example. Empty: Services have no such addresses."""


def _networks() -> dict[Family, Network]:
    return {"IPv4": SERVICE_NETWORK}


@dataclass(frozen=True)
class Settings:
    """`service_networks` is never empty; the first is the family of a Service that names none."""

    service_networks: Mapping[Family, Network] = field(default_factory=_networks)


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """PLEXUS_SERVICE_CIDR, PLEXUS_SERVICE_CIDR6: where ClusterIPs come from. Raises BadSettings."""
    networks: dict[Family, Network] = {}
    for wanted in FAMILIES:
        variable, default, example = VARIABLES[wanted]
        text = environment.get(variable, default)
        if text:
            networks[wanted] = _network(variable, text, wanted, example)
    if not networks:
        raise BadSettings("PLEXUS_SERVICE_CIDR and PLEXUS_SERVICE_CIDR6 are both empty; Services need one of them")
    return Settings(networks)


def _network(variable: str, text: str, wanted: Family, example: str) -> Network:
    network = parse_network(text)
    if network is None or family(network) != wanted:
        raise BadSettings(f'{variable}: "{text}" is not an {wanted} CIDR such as {example}')
    return network
