"""The addresses of one node: leased out of the blocks that ipam gave it, so starting a pod asks nobody.

A lease belongs to one attachment (an interface of a sandbox) and ends only by `release`. It is one address of each
family that the node serves, or none at all. The first address of every block stands for the node (`router_of`); that
of a family's first block is the gateway of every pod here. Plain state, no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import NamedTuple

from services.dataplane.shapes.ip import Network, PodIp, block_of, router_of


class Attachment(NamedTuple):
    """One interface of one sandbox; what a lease belongs to."""

    container_id: str
    ifname: str


class PoolExhausted(Exception):
    """No block of a family has a free address; the text says which blocks there are."""


class AddressTaken(Exception):
    """Another attachment holds the address."""


class Addresses:
    """Which attachment holds which addresses.

    Args:
        families: IP versions of which a new lease has one address each, in this order.
    """

    def __init__(self, families: Iterable[int] = (4,)) -> None:
        self.families = tuple(families)
        self._pools = {4: _Pool(4), 6: _Pool(6)}

    @property
    def routers(self) -> tuple[str, ...]:
        """The gateways, one a family that has one. Each stays while any pod is here that knows it."""
        return tuple(pool.router for pool in self._pools.values() if pool.router)

    def router(self, version: int) -> str:
        """A family's gateway; "" until there is a block."""
        return self._pools[version].router

    @property
    def missing(self) -> str:
        """Why no pod can be given addresses yet; "" when there is a block of each family."""
        without = [f"IPv{family}" for family in self.families if not self._pools[family].blocks]
        return f"the node has no block of {' and '.join(without)} pod addresses yet" if without else ""

    @property
    def exhausted(self) -> str:
        """Which family has no address left for another pod; "" when all have."""
        full = [f"IPv{family}" for family in self.families if not self._pools[family].free]
        blocks = ", ".join(self.blocks) or "none yet"
        return f"no free {' and '.join(full)} address on this node: its blocks are {blocks}" if full else ""

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(cidr for pool in self._pools.values() for cidr in pool.blocks)

    @property
    def leases(self) -> Mapping[Attachment, tuple[str, ...]]:
        held: dict[Attachment, tuple[str, ...]] = {}
        for pool in self._pools.values():
            for owner, address in pool.address_of.items():
                held[owner] = (*held.get(owner, ()), address)
        return held

    @property
    def free(self) -> int:
        """How many more leases the blocks have room for: what tells when to ask for another block."""
        return min((self._pools[family].free for family in self.families), default=0)

    def holder(self, address: str) -> Attachment | None:
        parsed = ip_address(address)
        return self._pools[parsed.version].holder_of.get(str(parsed))

    def set_blocks(self, cidrs: Iterable[str]) -> None:
        """These are the node's blocks now. A block that is gone gives no new leases; leases out of it stay.

        Raises: ValueError: not a block ("10.0.1.0/24"), or it overlaps another of them; nothing is changed.
        """
        wanted = {cidr: block_of(cidr) for cidr in cidrs}
        for cidr, block in wanted.items():
            for other, network in wanted.items():
                if other != cidr and network.version == block.version and network.overlaps(block):
                    raise ValueError(f"block {cidr} overlaps block {other}")
        for version, pool in self._pools.items():
            pool.set_blocks({cidr: block for cidr, block in wanted.items() if block.version == version})

    def lease(self, owner: Attachment) -> tuple[PodIp, ...]:
        """The addresses of `owner`; asking twice gives the same. What was freed last is given last.

        Who holds any keeps just those, also when the node serves another family by now.

        Raises: PoolExhausted: nothing is free in one of the families; nothing is changed.
        """
        if not any(owner in pool.address_of for pool in self._pools.values()):
            found = {family: self._pools[family].next() for family in self.families}
            for family, address in found.items():
                self._pools[family].hold(owner, address)
        return tuple(
            PodIp(pool.address_of[owner], pool.router) for pool in self._pools.values() if owner in pool.address_of
        )

    def release(self, owner: Attachment) -> tuple[str, ...]:
        """`owner` needs its addresses no more. Returns them; empty when it held none."""
        return tuple(filter(None, [pool.release(owner) for pool in self._pools.values()]))

    def restore(self, owner: Attachment, address: str) -> None:
        """`owner` held `address` before a restart; blocks need not be known yet.

        Raises: AddressTaken: another holds it, or `owner` another of its family; ValueError: not an address.
        """
        parsed = ip_address(address)
        pool = self._pools[parsed.version]
        holder = pool.holder_of.get(str(parsed))
        if holder is not None and holder != owner:
            raise AddressTaken(f"{parsed} is held by {holder.container_id} ({holder.ifname})")
        if pool.address_of.get(owner, str(parsed)) != str(parsed):
            raise AddressTaken(f"{owner.container_id} ({owner.ifname}) holds {pool.address_of[owner]} already")
        pool.hold(owner, str(parsed))

    def rename(self, owner: Attachment, known: Attachment) -> None:
        """What `owner` holds is held by `known`, who holds nothing."""
        for pool in self._pools.values():
            address = pool.address_of.pop(owner, None)
            if address is not None:
                pool.hold(known, address)

    def avoid(self, used: Iterable[str]) -> None:
        """Something on this node uses these addresses: they are not given out, unless they are held, until the next
        call says otherwise."""
        for version, pool in self._pools.items():
            pool.avoided = {each for each in used if ip_address(each).version == version} - pool.holder_of.keys()

    def restore_router(self, address: str) -> None:
        """The router had `address` before a restart, and pods know it by that."""
        parsed = ip_address(address)
        self._pools[parsed.version].router = str(parsed)


class _Pool:
    """The blocks and leases of one family. A block may be larger than any list: offsets are counted, never listed."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.blocks: dict[str, Network] = {}  # in order of arrival
        self.router = ""
        self.address_of: dict[Attachment, str] = {}
        self.holder_of: dict[str, Attachment] = {}
        self._untouched: dict[str, int] = {}  # block -> the first offset that was never looked at
        self._freed: dict[str, None] = {}  # longest ago first
        self.avoided: set[str] = set()

    @property
    def free(self) -> int:
        held = sum(1 for address in self.holder_of if self._block_of(address))
        return sum(_last(block) - FIRST_OFFSET + 1 for block in self.blocks.values()) - held

    def set_blocks(self, wanted: Mapping[str, Network]) -> None:
        kept = {cidr: block for cidr, block in self.blocks.items() if cidr in wanted}
        self.blocks = kept | {cidr: block for cidr, block in wanted.items() if cidr not in kept}
        self._untouched = {cidr: self._untouched.get(cidr, FIRST_OFFSET) for cidr in self.blocks}
        self._choose_router()

    def next(self) -> str:
        """The address to lease next. Raises: PoolExhausted."""
        for cidr, block in self.blocks.items():
            while self._untouched[cidr] <= _last(block):
                address = str(block[self._untouched[cidr]])
                if address in self.avoided:
                    self._freed[address] = None
                if address not in self.holder_of and address not in self._freed:
                    return address
                self._untouched[cidr] += 1
        for address in self._freed:
            if self._block_of(address) and address not in self.avoided:
                return address
        sizes = ", ".join(self.blocks) or "none yet"
        raise PoolExhausted(
            f"no free IPv{self.version} address on this node: its blocks are {sizes}, {len(self.holder_of)} leases"
        )

    def hold(self, owner: Attachment, address: str) -> None:
        self.address_of[owner] = address
        self.holder_of[address] = owner
        self._freed.pop(address, None)

    def release(self, owner: Attachment) -> str | None:
        address = self.address_of.pop(owner, None)
        if address is not None:
            del self.holder_of[address]
            self._freed[address] = None
            self._choose_router()
        return address

    def _block_of(self, address: str) -> Network | None:
        parsed = ip_address(address)
        return next((block for block in self.blocks.values() if parsed in block), None)

    def _choose_router(self) -> None:
        """A router's address whose block is gone moves when no pod is left that has it as its gateway."""
        if self.router and (self.holder_of or self._block_of(self.router)):
            return
        self.router = next(map(router_of, self.blocks.values()), "")


FIRST_OFFSET = 2
"""Pods get neither the network's address nor the router's..."""


def _last(block: Network) -> int:
    """...nor the last of a block."""
    return block.num_addresses - 2
