"""Nodes, endpoints and blocks -> who holds which block. Pure.

A pool is cut into blocks of one size, numbered through all pools. Everything is counted in these numbers.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import ClassVar

from bus.control import Action, Claim, Unsay
from bus.messages import Message
from bus.messages.dataplane import Endpoint
from bus.messages.ipam import Block
from bus.messages.resources import Node
from bus.subjects import BLOCK, ENDPOINT, NODE, State, check_subject

RESERVED_ADDRESSES = 3  # of each block no pod has: the network's, the node's router, the broadcast address
FULL_SHARE = 0.75  # of its addresses in use, and a node gets another block
SMALLEST_PREFIX = 30  # a longer one would leave no address for a pod


class Pools:
    """Where blocks come from.

    Raises: ValueError: pools that overlap, none at all, or a block size that does not fit them.
    """

    def __init__(self, networks: Sequence[IPv4Network], mask: int) -> None:
        if not networks:
            raise ValueError("there is no pool")
        for at, network in enumerate(networks):
            if not network.prefixlen <= mask <= SMALLEST_PREFIX:
                raise ValueError(
                    f"a block of /{mask} does not fit {network}; use {network.prefixlen} to {SMALLEST_PREFIX}"
                )
            for other in networks[:at]:
                if network.overlaps(other):
                    raise ValueError(f"{network} and {other} overlap")
        self._networks = list(networks)
        self._mask = mask
        self._first: list[int] = []  # number of each pool's first block
        self.count = 0
        for network in networks:
            self._first.append(self.count)
            self.count += 1 << (mask - network.prefixlen)

    def block(self, number: int) -> str:
        """The CIDR of a block, "10.244.3.0/24"."""
        at = next(at for at in reversed(range(len(self._first))) if self._first[at] <= number)
        start = int(self._networks[at].network_address) + ((number - self._first[at]) << (32 - self._mask))
        return f"{IPv4Address(start)}/{self._mask}"

    def numbers(self, cidr: IPv4Network) -> range:
        """The blocks that a network touches; empty when it is outside the pools. It may be of another size."""
        for first, network in zip(self._first, self._networks, strict=True):
            if network.overlaps(cidr):
                start = max(int(cidr.network_address), int(network.network_address))
                end = min(int(cidr.broadcast_address), int(network.broadcast_address))
                base, shift = int(network.network_address), 32 - self._mask
                return range(first + ((start - base) >> shift), first + ((end - base) >> shift) + 1)
        return range(0)


class BlockAllocation:
    """`bus.control.Model`."""

    owner: ClassVar[str] = "ipam"
    hears: ClassVar[tuple[State[Message], ...]] = (NODE, ENDPOINT, BLOCK)
    says: ClassVar[tuple[State[Message], ...]] = (BLOCK,)

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._nodes: set[str] = set()
        self._blocks: dict[str, Block] = {}  # subject -> block
        self._networks: dict[str, IPv4Network] = {}  # of the same
        self._blocks_of: dict[str, set[str]] = defaultdict(set)  # node -> subjects
        self._unreadable: set[str] = set()  # subjects of blocks that somebody has, though not known who
        self._taken: Counter[int] = Counter()  # block numbers that all of these touch
        self._addresses: dict[str, dict[str, IPv4Address]] = defaultdict(dict)  # node -> endpoint's subject -> address
        self._dirty: set[str] = set()  # nodes whose need, or whose end, is to be looked at
        self._short: set[str] = set()  # nodes that need a block and could not get one

    @property
    def short(self) -> list[str]:
        """Nodes that need a block when the pools have none left. For health and the log."""
        return sorted(self._short)

    def put(self, subject: str, message: Message) -> None:
        """`subject` has this value now.

        Raises: ValueError: it makes no sense. A block then counts as taken, by nobody known; else nothing is changed.
        """
        try:
            check_subject(subject, message)
            network = IPv4Network(message.cidr) if isinstance(message, Block) else None
        except ValueError:
            if BLOCK.has(subject):
                self.taken(subject)
            raise
        match message:
            case Node():
                self._nodes.add(message.name)
                self._dirty.add(message.name)
            case Endpoint():
                self._locate(message.node, subject, message.address)
                self._dirty.add(message.node)
            case Block() if network is not None:
                self.delete(subject)
                self._blocks[subject] = message
                self._networks[subject] = network
                self._blocks_of[message.node].add(subject)
                self._taken.update(self._pools.numbers(network))
                self._dirty.add(message.node)

    def delete(self, subject: str) -> None:
        if NODE.has(subject):
            (node,) = NODE.parse(subject)
            self._nodes.discard(node)
            self._dirty.add(node)
        elif ENDPOINT.has(subject):
            node = ENDPOINT.parse(subject)[0]
            self._locate(node, subject, "")
            self._dirty.add(node)
        elif subject in self._unreadable:
            self._unreadable.discard(subject)
            self._taken -= Counter(self._numbers_of(subject))
            self._dirty |= self._short
        elif (block := self._blocks.pop(subject, None)) is not None:
            self._blocks_of[block.node].discard(subject)
            self._taken -= Counter(self._pools.numbers(self._networks.pop(subject)))  # drops counts of zero
            self._dirty |= {block.node} | self._short

    def taken(self, subject: str) -> None:
        """The block has a value that cannot be read here: it is somebody's, until its subject is put or deleted."""
        if subject not in self._unreadable:
            self.delete(subject)
            self._unreadable.add(subject)
            self._taken.update(self._numbers_of(subject))

    def act(self) -> Iterable[Action]:
        """Free what has no use any more, then claim what is needed. After a lost claim the next block is tried.

        All is worked out before anything is taken as done, so that nothing is lost on the way.
        """
        freed = [
            subject
            for node in sorted(self._dirty - self._nodes)
            for subject in sorted(self._blocks_of.get(node, ()))
            if self._is_free(subject)
        ]
        looked_at = self._dirty | (self._short if freed else set())
        # Actions are carried out side by side: a block that is freed now is given to nobody before the next call.
        reserved = {number for subject in freed for number in self._pools.numbers(self._networks[subject])}
        claims: list[Claim] = []
        claimants: set[str] = set()
        short: set[str] = set()
        for node in sorted(looked_at & self._nodes):
            if not self._needs_block(node):
                continue
            number = self._candidate(node, reserved)
            if number is None:
                short.add(node)
                continue
            reserved.add(number)
            claimants.add(node)
            cidr = self._pools.block(number)
            claims.append(Claim(BLOCK.of(cidr), Block(cidr=cidr, node=node)))
        self._short = (self._short - looked_at) | short
        for subject in freed:
            self.delete(subject)
        for node in looked_at - self._nodes:
            self._forget(node)
        self._dirty = claimants | (self._short if freed else set())  # looked at again
        return [*map(Unsay, freed), *claims]

    def said(self) -> Iterable[str]:
        """Every block that is known: none is taken away but by `act`."""
        return list(self._blocks)

    def _needs_block(self, node: str) -> bool:
        """It has none, or more than FULL_SHARE of its addresses are in use."""
        sizes = (self._networks[subject].num_addresses for subject in self._blocks_of.get(node, ()))
        room = sum(max(1, size - RESERVED_ADDRESSES) for size in sizes)
        return len(self._addresses.get(node, ())) > FULL_SHARE * room or room == 0

    def _candidate(self, node: str, reserved: set[int]) -> int | None:
        """The first free block from where the hash of the node's name and count of blocks points; None: none is."""
        digest = hashlib.sha256(f"{node}/{len(self._blocks_of.get(node, ()))}".encode()).digest()
        start = int.from_bytes(digest[:8], "big") % self._pools.count
        for step in range(self._pools.count):
            number = (start + step) % self._pools.count
            if number not in self._taken and number not in reserved:
                return number
        return None

    def _is_free(self, subject: str) -> bool:
        """No endpoint of any node has an address in the block."""
        block = self._networks[subject]
        return not any(address in block for known in self._addresses.values() for address in known.values())

    def _numbers_of(self, subject: str) -> range:
        """The blocks that a block's subject is about, whatever its value."""
        try:
            return self._pools.numbers(IPv4Network(BLOCK.parse(subject)[0]))
        except ValueError:
            return range(0)

    def _locate(self, node: str, subject: str, address: str) -> None:
        """The node's endpoint has this address; what is no IPv4 address is in no block here."""
        try:
            self._addresses[node][subject] = IPv4Address(address)
        except AddressValueError:
            self._addresses[node].pop(subject, None)
            if not self._addresses[node]:
                del self._addresses[node]

    def _forget(self, node: str) -> None:
        for index in (self._blocks_of, self._addresses):
            if node in index and not index[node]:
                del index[node]
