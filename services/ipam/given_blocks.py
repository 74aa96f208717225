"""Blocks that Nodes bring along: `spec.podCIDRs`, which Kubernetes' own controller gives out. Pure.

A node holds what its Node says, and no other. What it held before (another mode, a Node that was made anew with another
range) it keeps for as long as endpoints have addresses there. Of two nodes whose ranges overlap the second one waits
until the first has gone: no address is ever held twice. (Ranges that are not the same and overlap are seen by who is
active; compare-and-set, which holds also for two that believe to be, sees those that are the same. The controller
manager gives out no others.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import ClassVar

from bus.addresses import Network, family, parse_network
from bus.control import Action, Claim, Unsay
from bus.messages import Message
from bus.messages.ipam import Block
from bus.messages.resources import Family, Node
from bus.subjects import BLOCK, NODE
from services.ipam.model import BlockAllocation


class GivenBlocks(BlockAllocation):
    """`bus.control.Model`. `families`: of which each node needs a block."""

    cure: ClassVar[str] = (
        "a node has no spec.podCIDRs, or they overlap another's: have the controller manager give them out "
        "(--allocate-node-cidrs, --cluster-cidr), or set ipam.mode=cluster-pool"
    )

    def __init__(self, families: Iterable[Family]) -> None:
        super().__init__()
        self._families = tuple(families)
        self._given: dict[str, dict[str, Network]] = {}  # node -> by subject
        self._held: dict[tuple[Family, int], dict[int, int]] = defaultdict(dict)
        """By family and length of prefix: how many blocks have this first address. One, but for those of an old log."""

    def put(self, subject: str, message: Message) -> None:
        """Raises: ValueError: as `BlockAllocation.put`."""
        super().put(subject, message)
        if isinstance(message, Node):
            networks = [found for text in message.pod_cidrs if (found := parse_network(text)) is not None]
            self._given[message.name] = {
                BLOCK.of(str(each)): each for each in networks if family(each) in self._families
            }

    def delete(self, subject: str) -> None:
        super().delete(subject)
        if NODE.has(subject):
            self._given.pop(NODE.parse(subject)[0], None)

    def act(self) -> Iterable[Action]:
        """Free what is no Node's any more and empty, then claim what Nodes say. What is freed now is claimed by nobody
        before the next call: actions are carried out side by side."""
        if not self._has_acted:
            self._dirty |= self._blocks_of.keys()
            self._has_acted = True
        looked_at, self._dirty = self._dirty, set()
        freed = [
            subject
            for node in sorted(looked_at)
            for subject in sorted(self._blocks_of.get(node, ()))
            if subject not in self._given.get(node, ()) and self._is_free(subject)
        ]
        claims: list[Claim] = []
        for node in sorted(looked_at & self._nodes):
            for subject, network in self._given.get(node, {}).items():
                if subject not in self._blocks_of.get(node, ()) and not self._is_in_the_way(network):
                    claims.append(Claim(subject, Block(cidr=str(network), node=node)))
                    self._take(network)
                    self._dirty.add(node)  # looked at again, when it is known who has it
        for claim in claims:
            self._give_back(parse_network(BLOCK.parse(claim.subject)[0]))
        for subject in freed:
            self.delete(subject)  # and who waits is looked at again
        for node in looked_at:
            missing = set(self._families) - {family(self._networks[each]) for each in self._blocks_of.get(node, ())}
            if missing and node in self._nodes:
                self._short[node] = missing
            else:
                self._short.pop(node, None)
            if node not in self._nodes:
                self._forget(node)
        return [*map(Unsay, freed), *claims]

    def _is_in_the_way(self, network: Network) -> bool:
        """A block that somebody holds overlaps it."""
        for (of, length), first in self._held.items():
            if of != family(network) or not first:
                continue
            if length <= network.prefixlen:
                if int(network.supernet(new_prefix=length).network_address) in first:
                    return True
            elif any(int(network[0]) <= each <= int(network[-1]) for each in first):
                return True
        return False

    def _take(self, network: Network | None) -> None:
        if network is not None:
            held, first = self._held[family(network), network.prefixlen], int(network.network_address)
            held[first] = held.get(first, 0) + 1

    def _give_back(self, network: Network | None) -> None:
        if network is not None:
            held, first = self._held[family(network), network.prefixlen], int(network.network_address)
            held[first] -= 1
            if not held[first]:
                del held[first]
