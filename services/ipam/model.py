"""Nodes, endpoints and blocks -> who holds which block. Pure.

The pools of one family are cut into blocks of one size, numbered through all of them. Everything is counted in these
numbers, each family by itself: a node has blocks of every family that has pools.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from bus.addresses import Address, Network, all_of, family, parse, parse_network
from bus.control import Action, Claim, Unsay
from bus.messages import Message
from bus.messages.dataplane import Endpoint
from bus.messages.ipam import Block
from bus.messages.resources import Family, Node
from bus.subjects import BLOCK, ENDPOINT, NODE, State, check_subject
from bus.texts import is_subdomain

RESERVED_ADDRESSES = 3  # of each block no pod has: the network's, the node's router, the broadcast address
FULL_SHARE = 0.75  # of its addresses in use, and a node gets another block
FEWEST_BITS = 2  # of a block; with less it would leave no address for a pod
MOST_BLOCKS_BITS = 22  # of a pool, as of a /8 in blocks of /30: each is counted, and perhaps looked at
NEAR_BLOCKS = 1024  # looked at from where a node's name points


class Pools:
    """Where blocks of one family come from.

    Raises: ValueError: pools that overlap or are of both families, none at all, or a block size that does not fit them.
    """

    def __init__(self, networks: Sequence[Network], mask: int) -> None:
        if not networks:
            raise ValueError("there is no pool")
        self.family = family(networks[0])
        self._bits = networks[0].max_prefixlen
        for at, network in enumerate(networks):
            if family(network) != self.family:
                raise ValueError(f"{network} is not {self.family}")
            last = min(self._bits - FEWEST_BITS, network.prefixlen + MOST_BLOCKS_BITS)
            if not network.prefixlen <= mask <= last:
                raise ValueError(f"a block of /{mask} does not fit {network}; use {network.prefixlen} to {last}")
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
        return f"{self._networks[at][(number - self._first[at]) << (self._bits - self._mask)]}/{self._mask}"

    def numbers(self, cidr: Network) -> Iterator[int]:
        """The blocks that a network touches, in every pool; none when it is outside them. It may be of another size."""
        for first, network in zip(self._first, self._networks, strict=True):
            if family(cidr) == self.family and network.overlaps(cidr):
                start = max(int(cidr.network_address), int(network.network_address))
                end = min(int(cidr.broadcast_address), int(network.broadcast_address))
                base, shift = int(network.network_address), self._bits - self._mask
                yield from range(first + ((start - base) >> shift), first + ((end - base) >> shift) + 1)


class BlockAllocation:
    """`bus.control.Model`."""

    owner: ClassVar[str] = "ipam"
    hears: ClassVar[tuple[State[Message], ...]] = (NODE, ENDPOINT, BLOCK)
    says: ClassVar[tuple[State[Message], ...]] = (BLOCK,)
    cure: ClassVar[str] = "the pools are exhausted; widen PLEXUS_CLUSTER_POOL_CIDRS or _CIDRS6, or remove nodes"
    """What to do about nodes that are short."""

    def __init__(self, *pools: Pools) -> None:
        """`pools`: one for each family that pods have."""
        self._pools = {each.family: each for each in pools}
        self._nodes: set[str] = set()
        self._blocks: dict[str, Block] = {}  # subject -> block
        self._networks: dict[str, Network] = {}  # of the same
        self._blocks_of: dict[str, set[str]] = defaultdict(set)  # node -> subjects
        self._unreadable: set[str] = set()  # subjects of blocks that somebody has, though not known who
        self._taken: dict[Family, Counter[int]] = {each: Counter() for each in self._pools}  # what all of these touch
        self._found: dict[Family, int] = dict.fromkeys(self._pools, 0)  # where the last long search ended
        self._addresses: dict[str, dict[str, list[Address]]] = defaultdict(
            dict
        )  # node -> endpoint's subject -> its own
        self._has_acted = False
        self._dirty: set[str] = set()  # nodes whose need, or whose end, is to be looked at
        self._short: dict[str, set[Family]] = {}  # nodes that need a block and could not get one, of these families

    @property
    def short(self) -> list[str]:
        """Nodes that need a block when the pools have none left, "node1 (IPv6)". For health and the log."""
        return [f"{node} ({each})" for node in sorted(self._short) for each in sorted(self._short[node])]

    def put(self, subject: str, message: Message) -> None:
        """`subject` has this value now.

        Raises: ValueError: it makes no sense. A block then counts as taken, by nobody known; else nothing is changed.
        """
        try:
            check_subject(subject, message)
            network = _network(message) if isinstance(message, Block) else None
            if isinstance(message, Node) and not is_subdomain(message.name):
                raise ValueError(f"{message.name!r} is not a node's name")
        except ValueError:
            if BLOCK.has(subject):
                self.taken(subject)
            raise
        match message:
            case Node():
                self._nodes.add(message.name)
                self._dirty.add(message.name)
            case Endpoint():
                self._locate(message.node, subject, all_of(message))
                self._dirty.add(message.node)
            case Block() if network is not None:
                self.delete(subject)
                self._blocks[subject] = message
                self._networks[subject] = network
                self._blocks_of[message.node].add(subject)
                self._take(network)
                self._dirty |= {message.node} & self._nodes

    def delete(self, subject: str) -> None:
        if NODE.has(subject):
            (node,) = NODE.parse(subject)
            self._nodes.discard(node)
            self._dirty.add(node)
        elif ENDPOINT.has(subject):
            node = ENDPOINT.parse(subject)[0]
            self._locate(node, subject, [])
            self._dirty.add(node)
        elif subject in self._unreadable:
            self._unreadable.discard(subject)
            self._give_back(_subject_network(subject))
            self._dirty |= self._short.keys()
        elif (block := self._blocks.pop(subject, None)) is not None:
            self._blocks_of[block.node].discard(subject)
            self._give_back(self._networks.pop(subject))
            self._dirty |= {block.node, *self._short}

    def taken(self, subject: str) -> None:
        """The block has a value that cannot be read here: it is somebody's, until its subject is put or deleted."""
        if subject not in self._unreadable:
            self.delete(subject)
            self._unreadable.add(subject)
            self._take(_subject_network(subject))

    def act(self) -> Iterable[Action]:
        """Free what has no use any more, then claim what is needed. After a lost claim the next block is tried.

        All is worked out before anything is taken as done, so that nothing is lost on the way. A block of a node that
        nobody knows is free the first time, when everything was heard. Later another replica may have given it, as a
        lost claim shows, to a node that is still to be heard of: it stays.
        """
        if not self._has_acted:
            self._dirty |= self._blocks_of.keys()
            self._has_acted = True
        freed = [
            subject
            for node in sorted(self._dirty - self._nodes)
            for subject in sorted(self._blocks_of.get(node, ()))
            if self._is_free(subject)
        ]
        looked_at = self._dirty | (self._short.keys() if freed else set())
        # Actions are carried out side by side: a block that is freed now is given to nobody before the next call.
        claimed: dict[Family, set[int]] = {each: set() for each in self._pools}
        claims: list[Claim] = []
        claimants: set[str] = set()
        short: dict[str, set[Family]] = {}
        for node in sorted(looked_at & self._nodes):
            for pools in self._pools.values():
                if not self._needs_block(node, pools.family):
                    continue
                number = self._candidate(node, pools, claimed[pools.family])
                if number is None:
                    short.setdefault(node, set()).add(pools.family)
                    continue
                claimed[pools.family].add(number)
                claimants.add(node)
                cidr = pools.block(number)
                claims.append(Claim(BLOCK.of(cidr), Block(cidr=cidr, node=node)))
        self._short = {node: kept for node, kept in self._short.items() if node not in looked_at} | short
        for subject in freed:
            self.delete(subject)
        for node in looked_at - self._nodes:
            self._forget(node)
        self._dirty = claimants | (self._short.keys() if freed else set())  # looked at again
        return [*map(Unsay, freed), *claims]

    def said(self) -> Iterable[str]:
        """Every block that is known: none is taken away but by `act`."""
        return list(self._blocks)

    def _needs_block(self, node: str, wanted: Family) -> bool:
        """It has none of the family, or more than FULL_SHARE of its addresses of the family are in use. What it says of
        addresses that it does not hold counts for nothing."""
        blocks = self._blocks_on(node, wanted)
        room = sum(max(1, block.num_addresses - RESERVED_ADDRESSES) for block in blocks)
        told = {each for known in self._addresses.get(node, {}).values() for each in known}
        used = sum(any(each in block for block in blocks) for each in told)
        return used > FULL_SHARE * room or room == 0

    def _candidate(self, node: str, pools: Pools, claimed: set[int]) -> int | None:
        """A free block, the first from where the hash of the node's name and blocks points; None: none is.

        Where that is not near, it is the next from where the last such search ended: who asks in a pool of millions
        that is nearly full goes on where others have looked.
        """
        taken = self._taken[pools.family]
        if len(taken) + len(claimed) >= pools.count:
            return None
        digest = hashlib.sha256(f"{node}/{len(self._blocks_on(node, pools.family))}".encode()).digest()
        start = int.from_bytes(digest[:8], "big") % pools.count

        def free(first: int, length: int) -> Iterator[int]:
            numbers = (at % pools.count for at in range(first, first + length))
            return (number for number in numbers if number not in taken and number not in claimed)

        near = next(free(start, NEAR_BLOCKS), None)
        if near is None:
            self._found[pools.family] = next(free(self._found[pools.family], pools.count))
        return self._found[pools.family] if near is None else near

    def _blocks_on(self, node: str, wanted: Family) -> list[Network]:
        networks = (self._networks[subject] for subject in self._blocks_of.get(node, ()))
        return [network for network in networks if family(network) == wanted]

    def _is_free(self, subject: str) -> bool:
        """No endpoint of any node has an address in the block."""
        block = self._networks[subject]
        known = (addresses for on_node in self._addresses.values() for addresses in on_node.values())
        return not any(address in block for addresses in known for address in addresses)

    def _take(self, network: Network | None) -> None:
        """The blocks of the pools that a network touches are somebody's."""
        if network is not None and family(network) in self._pools:
            self._taken[family(network)].update(self._pools[family(network)].numbers(network))

    def _give_back(self, network: Network | None) -> None:
        if network is not None and family(network) in self._pools:
            taken = self._taken[family(network)]
            for number in self._pools[family(network)].numbers(network):
                if taken[number] > 1:
                    taken[number] -= 1
                else:
                    del taken[number]

    def _locate(self, node: str, subject: str, texts: list[str]) -> None:
        """The node's endpoint has these addresses; what is no address is in no block."""
        found = [address for text in texts if (address := parse(text)) is not None]
        if found:
            self._addresses[node][subject] = found
        elif node in self._addresses:
            self._addresses[node].pop(subject, None)
            if not self._addresses[node]:
                del self._addresses[node]

    def _forget(self, node: str) -> None:
        for index in (self._blocks_of, self._addresses):
            if node in index and not index[node]:
                del index[node]


def _network(block: Block) -> Network:
    """Raises: ValueError: it is none."""
    network = parse_network(block.cidr)
    if network is None:
        raise ValueError(f"{block.cidr} is not a block of addresses")
    return network


def _subject_network(subject: str) -> Network | None:
    """What a block's subject is about, whatever its value."""
    return parse_network(BLOCK.parse(subject)[0])
