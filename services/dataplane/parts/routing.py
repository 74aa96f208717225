"""How this node sends to the pods of others, and what must make sense of nodes and their blocks for that. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from bus.messages.ipam import Block
from bus.messages.resources import Node
from services.dataplane.shapes.ip import Network, block_of, plain


@dataclass(frozen=True, slots=True)
class Routing:
    """How this node sends to the pods of others."""

    families: tuple[int, ...] = (4,)  # of pods' addresses that this node serves
    tunnel: int = 0  # the family of tunnel endpoints; 0: native
    is_direct: bool = True  # native: nodes are next hops of each other; else the fabric routes pods' addresses
    networks: tuple[Network, ...] | None = None  # where next hops are, on the node's own device; None: everywhere
    near: tuple[Network, ...] = ()  # the same on other devices, to which its routes lead

    def choose(self, addresses: Iterable[str], version: int) -> str:
        """Of a node's addresses the one to send to for a pod address of family `version`; "" when it has none."""
        wanted = self.tunnel or version
        return next((each for each in addresses if ipaddress.ip_address(each).version == wanted), "")

    def is_next_hop(self, address: str) -> bool:
        """Is it sent to without asking the routes: as a tunnel endpoint, or as a neighbour?"""
        if self.tunnel or not self.is_direct:
            return bool(self.tunnel)
        if self.networks is None:
            return True
        found = _bits(address, self.networks)
        return found >= 0 and found >= _bits(address, self.near)

    def is_neighbour(self, address: str) -> bool:
        """Can a route of the node's own lead by way of it?"""
        return self.is_next_hop(address) or (self.is_direct and _bits(address, self.near) >= 0)


def _bits(address: str, networks: Iterable[Network]) -> int:
    """Of the most particular that it is in; -1: it is in none."""
    parsed = ipaddress.ip_address(address)
    return max((network.prefixlen for network in networks if parsed in network), default=-1)


ONE_FAMILY_ANYWHERE = Routing()


def check_node(node: Node) -> None:
    for address in node.addresses:
        plain(address)


def check_block(block: Block) -> None:
    block_of(block.cidr)
