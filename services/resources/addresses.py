"""Which addresses a Service gets: counted from a hash of its name, so that losing the log gives the same ones again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, ip_address

from bus.addresses import Network
from bus.messages.resources import Family

Networks = Mapping[Family, Network]
"""Where Services' addresses come from, by family; the first is the family of a Service that names none."""


def usable(network: Network) -> tuple[int, int]:
    """First and last offset within the network that a Service may have, both included.

    Not the first, which stands for the network (RFC 4291 section 2.6.1: for any router there), and of IPv4 not the
    last, the broadcast address, where there are more than two.
    """
    last = network.num_addresses - 1
    if last < 2:
        return 0, last
    return 1, last - 1 if isinstance(network, IPv4Network) else last


def choose(network: Network, namespace: str, name: str, is_taken: Callable[[str], bool]) -> str | None:
    """The first free address from where the hash of "namespace/name" points, around the end; None: none is free."""
    first, last = usable(network)
    count = last - first + 1
    digest = hashlib.sha256(f"{namespace}/{name}".encode()).digest()
    start = int.from_bytes(digest[:8], "big") % count
    step = 0
    while step < count:
        address = str(network[first + (start + step) % count])
        if not is_taken(address):
            return address
        step += 1
    return None


def outside(network: Network, address: str) -> str | None:
    """Why a Service cannot have this address, of the network's family, of its own choice; None: it can, if free."""
    where = ip_address(address)
    if where not in network:
        return f"{address} is outside the cluster's Service range {network}; choose one inside, or leave it out"
    first, last = usable(network)
    if not first <= int(where) - int(network.network_address) <= last:
        return f"{address} is the first or last of the Service range {network}; choose another, or leave it out"
    return None
