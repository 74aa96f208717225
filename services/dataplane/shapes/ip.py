"""Addresses and blocks, as they are written. Pure."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

Network = IPv4Network | IPv6Network

EVERYTHING = {4: "0.0.0.0/0", 6: "::/0"}
MIN_BLOCK_BITS = {4: 8, 6: 32}
NO_BLOCKS = tuple(map(IPv6Network, ("::/32", "fe80::/10", "ff00::/8")))
"""IPv6 that no pod can have: unspecified, loopback and IPv4 in IPv6 clothes, one link's, groups."""


class PodIp(NamedTuple):
    """An address of a pod, and its way out."""

    address: str  # "10.0.1.2" or "fd00::2"
    gateway: str  # of the same family


def plain(address: str) -> str:
    """An address in the one form that it has in maps and among names: "FD00:0::2" is "fd00::2".

    Raises: ValueError: none, or nobody's ("::", which the maps have for "none"), or one that is not the same
        everywhere: of one link ("fe80::1%eth0"), or IPv4 in IPv6 clothes, which the maps could not tell from the IPv4
        address.
    """
    parsed = ip_address(address)
    if parsed.is_unspecified:
        raise ValueError(f"{address} is nobody's address")
    if isinstance(parsed, IPv6Address) and (parsed.scope_id or parsed.ipv4_mapped):
        raise ValueError(f"{address} has no meaning here: write the IPv4 address, or an IPv6 one without a zone")
    return str(parsed)


def block_of(cidr: str) -> Network:
    """The network of a block.

    Raises: ValueError: not a network, without room for a pod beside the router, no addresses of pods, or more than a
        cluster can have: routes to it would take in the addresses of others.
    """
    network = ip_network(cidr)
    least, most = MIN_BLOCK_BITS[network.version], network.max_prefixlen - 2
    if not least <= network.prefixlen <= most:
        raise ValueError(f"{cidr} is no block: its length is /{least} to /{most}")
    if isinstance(network, IPv6Network) and any(network.overlaps(each) for each in NO_BLOCKS):
        raise ValueError(f"{cidr} is no block: pods cannot have such addresses; use one of fd00::/8")
    return network


def router_of(block: Network) -> str:
    """The address of a block that stands for its node, on every node (model.py): never a pod's, in any block.

    It is its own pods' gateway, and the source of the node's own traffic to pods.
    """
    return str(block[1])
