"""Which addresses DNS names have on this node, and what selectors of names mean by that. Pure.

An address is a network of itself alone, so it gets its number as any network does (networks.py), and rules for networks
around it go on to hold. What is a pod's, a node's or in a block stays that, whatever names it has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from bus.addresses import parse
from bus.messages.policy import PeerName, PeerNetwork
from bus.patterns import Patterns

NETWORK_BITS = {4: 32, 6: 128}


class Learned:
    """Every change returns the selectors that mean other addresses now, and looks only at the names concerned."""

    def __init__(self) -> None:
        self._selectors: dict[str, Patterns] = {}
        self._said: dict[str, list[PeerName]] = {}
        self._addresses: dict[str, frozenset[str]] = {}  # name -> its networks
        self._names: dict[str, set[str]] = defaultdict(set)  # selector -> names that it has, of those with addresses

    def put_selector(self, key: str, names: list[PeerName]) -> bool:
        """The selector is of these names; none: of no names. Returns whether it was of others."""
        if self._said.get(key, []) == names:
            return False
        self._said.pop(key, None)
        self._selectors.pop(key, None)
        self._names.pop(key, None)
        if names:
            self._said[key] = names
            self._selectors[key] = Patterns(
                [each.name for each in names if each.name], [each.pattern for each in names if each.pattern]
            )
            self._names[key] = {name for name in self._addresses if self._selectors[key].has(name)}
        return True

    def put_name(self, name: str, addresses: Iterable[str]) -> set[str]:
        """The name has these addresses; without any it is forgotten. Raises: ValueError: one is no address."""
        after = frozenset(map(_network, addresses))
        if self._addresses.get(name, frozenset()) == after:
            return set()
        if after:
            self._addresses[name] = after
        else:
            del self._addresses[name]
        meaning = {key for key, patterns in self._selectors.items() if patterns.has(name)}
        for key in meaning:
            (self._names[key].add if after else self._names[key].discard)(name)
        return meaning

    def networks(self, key: str) -> list[PeerNetwork]:
        """What the selector means, of names."""
        found = {cidr for name in self._names.get(key, ()) for cidr in self._addresses[name]}
        return [PeerNetwork(cidr=cidr) for cidr in sorted(found)]


def _network(address: str) -> str:
    found = parse(address)
    if found is None or str(found) != address:
        raise ValueError(f"{address} is no address, or not in its one form")
    return f"{address}/{NETWORK_BITS[found.version]}"
