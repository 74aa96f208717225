"""Networks that rules name, by themselves or by groups of them, become selectors. Pure.

A rule refers to all of its networks by one selector. When a group changes, that is one delta for each selector that
means it, and no rule is said again. Who has an address in such a network is each node's own affair (docs/adr/0033).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from bus import labels
from bus.addresses import parse_network
from bus.messages.policy import PeerNetwork, Selector
from bus.messages.resources import CIDRGroup, LabelSelector, Peer, Requirement

NOBODY = LabelSelector(requirements=[Requirement(key="cidr:", operator="Exists")])
"""Selects no label set: no key of one begins so."""


@dataclass(slots=True)
class _Entry:
    peers: tuple[Peer, ...]
    references: int = 0


class NetworkSelectors:
    """Those that policies refer to. A group that nobody has applied has no networks."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._grouped: set[str] = set()  # of those, the ones that name groups
        self._groups: dict[str, CIDRGroup] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def acquire(self, peers: Sequence[Peer]) -> str:
        """One more reference to the selector of these networks. Returns its id."""
        key = _id(peers)
        entry = self._entries.setdefault(key, _Entry(tuple(peers)))
        entry.references += 1
        if any(not peer.cidr for peer in peers):
            self._grouped.add(key)
        return key

    def release(self, key: str) -> None:
        """One reference less; the last one takes the selector away."""
        entry = self._entries[key]
        entry.references -= 1
        if not entry.references:
            del self._entries[key]
            self._grouped.discard(key)

    def message(self, key: str) -> Selector:
        found = {text_of(each): each for peer in self._entries[key].peers for each in self._networks(peer)}
        return Selector(id=key, selector=NOBODY, networks=[found[text] for text in sorted(found)])

    def put_group(self, group: CIDRGroup) -> set[str]:
        """Returns the ids of selectors that may mean other networks now. Raises: ValueError: one of its is none."""
        for cidr in group.cidrs:
            if not is_plain_network(cidr):
                raise ValueError(f"{cidr} is no network")
        if self._groups.get(group.name) == group:
            return set()
        self._groups[group.name] = group
        return set(self._grouped)

    def delete_group(self, name: str) -> set[str]:
        return set(self._grouped) if self._groups.pop(name, None) is not None else set()

    def _networks(self, peer: Peer) -> Iterator[PeerNetwork]:
        without = sorted(set(peer.except_cidrs))
        for cidr in [peer.cidr] if peer.cidr else self._in_groups(peer):
            yield PeerNetwork(cidr=cidr, except_cidrs=without)

    def _in_groups(self, peer: Peer) -> Iterable[str]:
        if peer.cidr_groups is None:
            named = [self._groups[peer.cidr_group]] if peer.cidr_group in self._groups else []
        else:
            named = [each for each in self._groups.values() if labels.selects(peer.cidr_groups, each.labels)]
        return {cidr for group in named for cidr in group.cidrs}


def is_network(peer: Peer) -> bool:
    return bool(peer.cidr or peer.cidr_group or peer.cidr_groups is not None)


def is_plain_network(cidr: str) -> bool:
    """It is a network, in its one form."""
    return (network := parse_network(cidr)) is not None and str(network) == cidr


def text_of(network: PeerNetwork) -> str:
    return json.dumps([network.cidr, network.except_cidrs])


def _id(peers: Iterable[Peer]) -> str:
    """As a selector's, over what makes this one: no list of requirements has this form."""
    said = sorted(
        {
            json.dumps(
                [
                    peer.cidr,
                    peer.cidr_group,
                    labels.selector_text(peer.cidr_groups) if peer.cidr_groups is not None else "",
                    sorted(set(peer.except_cidrs)),
                ]
            )
            for peer in peers
        }
    )
    return sha256(json.dumps({"networks": said}).encode()).hexdigest()[:16]
