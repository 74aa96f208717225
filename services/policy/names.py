"""DNS names that rules have as peers become selectors. Pure.

A rule refers to all of its names by one selector, the same for all nodes. Which addresses a name stands for is each
node's own affair, by the answers that its pods got (docs/adr/0036-layer-7.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import sha256

from bus.messages.policy import PeerName, Selector
from bus.messages.resources import Peer
from services.policy.networks import NOBODY


class NameSelectors:
    """Those that policies refer to."""

    def __init__(self) -> None:
        self._names: dict[str, list[PeerName]] = {}
        self._references: dict[str, int] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._names

    def acquire(self, peers: Sequence[Peer]) -> str:
        """One more reference to the selector of these names. Returns its id."""
        names = _names(peers)
        key = _id(names)
        self._names[key] = names
        self._references[key] = self._references.get(key, 0) + 1
        return key

    def release(self, key: str) -> None:
        """One reference less; the last one takes the selector away."""
        self._references[key] -= 1
        if not self._references[key]:
            del self._references[key], self._names[key]

    def message(self, key: str) -> Selector:
        return Selector(id=key, selector=NOBODY, names=self._names[key])


def is_named(peer: Peer) -> bool:
    return bool(peer.dns_name or peer.dns_pattern)


def _names(peers: Iterable[Peer]) -> list[PeerName]:
    said = {(peer.dns_name.lower().rstrip("."), peer.dns_pattern.lower().rstrip(".")) for peer in peers}
    return [PeerName(name=name, pattern=pattern) for name, pattern in sorted(said)]


def _id(names: Iterable[PeerName]) -> str:
    """As a selector's, over what makes this one: no list of requirements, and none of networks, has this form."""
    return sha256(json.dumps({"names": [[each.name, each.pattern] for each in names]}).encode()).hexdigest()[:16]
