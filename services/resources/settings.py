"""What can be set, from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network

from bus.service import BadSettings

SERVICE_NETWORK = IPv4Network("10.96.0.0/16")  # ClusterIPs: room for 65 534 Services


@dataclass(frozen=True)
class Settings:
    service_network: IPv4Network = SERVICE_NETWORK


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """PLEXUS_SERVICE_CIDR: where ClusterIPs come from. Raises BadSettings."""
    text = environment.get("PLEXUS_SERVICE_CIDR", "")
    if not text:
        return Settings()
    try:
        return Settings(service_network=IPv4Network(text))
    except ValueError as error:
        raise BadSettings(f'PLEXUS_SERVICE_CIDR: "{text}" is not an IPv4 CIDR such as 10.96.0.0/16') from error
