"""Which address a Service gets: counted from a hash of its name, so that losing the log gives the same ones again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network


def usable(network: IPv4Network) -> range:
    """Offsets within the network that a Service may have: not the first and last, where there are more than two."""
    return range(1, network.num_addresses - 1) if network.num_addresses > 2 else range(network.num_addresses)


def choose(network: IPv4Network, namespace: str, name: str, is_taken: Callable[[str], bool]) -> str | None:
    """The first free address from where the hash of "namespace/name" points, around the end; None: none is free."""
    offsets = usable(network)
    digest = hashlib.sha256(f"{namespace}/{name}".encode()).digest()
    start = int.from_bytes(digest[:8], "big") % len(offsets)
    for step in range(len(offsets)):
        address = str(network.network_address + offsets[(start + step) % len(offsets)])
        if not is_taken(address):
            return address
    return None


def outside(network: IPv4Network, address: str) -> str | None:
    """Why a Service cannot have this IPv4 address of its own choice; None: it can, if it is free."""
    if IPv4Address(address) not in network:
        return f"{address} is outside the cluster's Service range {network}; choose one inside, or leave it out"
    if int(IPv4Address(address)) - int(network.network_address) not in usable(network):
        return f"{address} is the first or last of the Service range {network}; choose another, or leave it out"
    return None
