"""The addresses of one node: leased out of the blocks that ipam gave it, so starting a pod asks nobody.

A lease belongs to one attachment (an interface of a sandbox) and ends only by `release`. The first address of every
block stands for the node (`router_of`); that of the first block is the gateway of every pod here. Plain state, no I/O,
no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple

Network = IPv4Network | IPv6Network

MIN_BLOCK_BITS = 8


class Attachment(NamedTuple):
    """One interface of one sandbox; what a lease belongs to."""

    container_id: str
    ifname: str


class PoolExhausted(Exception):
    """No block has a free address; the text says how many blocks there are, and how large."""


class AddressTaken(Exception):
    """Another attachment holds the address."""


class Addresses:
    """Which attachment holds which address."""

    def __init__(self) -> None:
        self._blocks: dict[str, Network] = {}  # in order of arrival
        self._untouched: dict[str, int] = {}  # block -> the first offset that was never looked at
        self._freed: dict[str, None] = {}  # longest ago first
        self._address_of: dict[Attachment, str] = {}
        self._holder_of: dict[str, Attachment] = {}
        self._router = ""

    @property
    def router(self) -> str:
        """The gateway's address; "" until there is a block. It stays while any pod is here that knows it."""
        return self._router

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(self._blocks)

    @property
    def leases(self) -> Mapping[Attachment, str]:
        return dict(self._address_of)

    @property
    def free(self) -> int:
        """How many more leases the blocks have room for: what tells when to ask for another block."""
        held = sum(1 for address in self._holder_of if self._block_of(address))
        return sum(len(_usable(block)) for block in self._blocks.values()) - held

    def holder(self, address: str) -> Attachment | None:
        return self._holder_of.get(address)

    def set_blocks(self, cidrs: Iterable[str]) -> None:
        """These are the node's blocks now. A block that is gone gives no new leases; leases out of it stay.

        Raises: ValueError: not a block ("10.0.1.0/24"), or it overlaps another of them; nothing is changed.
        """
        wanted = {cidr: block_of(cidr) for cidr in cidrs}
        for cidr, block in wanted.items():
            for other, network in wanted.items():
                if other != cidr and network.version == block.version and network.overlaps(block):
                    raise ValueError(f"block {cidr} overlaps block {other}")
        kept = {cidr: block for cidr, block in self._blocks.items() if cidr in wanted}
        self._blocks = kept | {cidr: block for cidr, block in wanted.items() if cidr not in kept}
        self._untouched = {cidr: self._untouched.get(cidr, 0) for cidr in self._blocks}
        self._choose_router()

    def lease(self, owner: Attachment) -> str:
        """The address of `owner`; asking twice gives the same. What was freed last is given last.

        Raises: PoolExhausted: nothing is free; nothing is changed.
        """
        held = self._address_of.get(owner)
        if held is not None:
            return held
        address = self._next()
        self._hold(owner, address)
        return address

    def release(self, owner: Attachment) -> str | None:
        """`owner` needs its address no more. Returns the address; None when it held none."""
        address = self._address_of.pop(owner, None)
        if address is not None:
            del self._holder_of[address]
            self._freed[address] = None
            self._choose_router()
        return address

    def restore(self, owner: Attachment, address: str) -> None:
        """`owner` held `address` before a restart; blocks need not be known yet.

        Raises: AddressTaken: another holds it; ValueError: not an address.
        """
        address = str(ip_address(address))
        holder = self._holder_of.get(address)
        if holder is not None and holder != owner:
            raise AddressTaken(f"{address} is held by {holder.container_id} ({holder.ifname})")
        if self._address_of.get(owner, address) != address:
            raise AddressTaken(f"{owner.container_id} ({owner.ifname}) holds {self._address_of[owner]} already")
        self._hold(owner, address)

    def restore_router(self, address: str) -> None:
        """The router had `address` before a restart, and pods know it by that."""
        self._router = str(ip_address(address))

    def _hold(self, owner: Attachment, address: str) -> None:
        self._address_of[owner] = address
        self._holder_of[address] = owner
        self._freed.pop(address, None)

    def _next(self) -> str:
        for cidr, block in self._blocks.items():
            usable = _usable(block)
            while self._untouched[cidr] < len(usable):
                address = str(block[usable[self._untouched[cidr]]])
                self._untouched[cidr] += 1
                if address not in self._holder_of and address not in self._freed:
                    return address
        for address in self._freed:
            if self._block_of(address):
                return address
        sizes = ", ".join(self._blocks) or "none yet"
        raise PoolExhausted(f"no free address on this node: its blocks are {sizes}, {len(self._holder_of)} leases")

    def _block_of(self, address: str) -> Network | None:
        parsed = ip_address(address)
        return next((block for block in self._blocks.values() if parsed in block), None)

    def _choose_router(self) -> None:
        """A router's address whose block is gone moves when no pod is left that has it as its gateway."""
        if self._router and (self._holder_of or self._block_of(self._router)):
            return
        self._router = ""
        for block in self._blocks.values():
            self._router = router_of(block)
            return


def block_of(cidr: str) -> Network:
    """The network of a block.

    Raises: ValueError: not a network, without room for a pod beside the router, or more than a cluster can have:
        routes to it would take in the addresses of others.
    """
    network = ip_network(cidr)
    if not MIN_BLOCK_BITS <= network.prefixlen <= network.max_prefixlen - 2:
        raise ValueError(f"{cidr} is no block: its length is /{MIN_BLOCK_BITS} to /{network.max_prefixlen - 2}")
    return network


def router_of(block: Network) -> str:
    """The address of a block that stands for its node, on every node (model.py): never a pod's, in any block.

    It is its own pods' gateway, and the source of the node's own traffic to pods.
    """
    return str(block[1])


def _usable(block: Network) -> range:
    """Offsets that pods may get: not the network's address, the router's, nor the last."""
    return range(2, block.num_addresses - 1)
