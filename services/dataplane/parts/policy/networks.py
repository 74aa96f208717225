"""Numbers for the networks that policies name, and which of them a selector means. Pure.

An address is who the longest network around it is that any policy here names. So a selector of 10.0.0.0/8 means that
network and every longer one within it, and an exception takes out its own and all within that.

A number is given to one network only as long as this process runs, and to those that maps still know from the process
before it: while a write is under way, nobody is judged by rules for another (docs/adr/0033).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from bus.addresses import parse_network
from bus.labels import NETWORK_MAX, NETWORK_MIN, network_number_of
from bus.messages.policy import PeerNetwork, Selector
from services.dataplane.shapes.layouts import ADDRESS_BYTES, IpcacheEntry, Prefix

MOST_REMEMBERED = 1 << 20
"""Networks without a number of their own now, that get theirs back when they are named again."""

MAPPED = 0xFFFF << 32  # ::ffff:0:0/96, where maps have IPv4
MAPPED_BITS = 96
ALL_BITS = 8 * ADDRESS_BYTES


class Network(NamedTuple):
    """In the order of which all within one follow it."""

    version: int
    first: int
    bits: int

    @property
    def last(self) -> int:
        return self.first | (1 << _bits_of(self.version) - self.bits) - 1

    def cut(self, bits: int) -> Network:
        """The network of so many bits around this one."""
        rest = _bits_of(self.version) - bits
        return Network(self.version, self.first >> rest << rest, bits)


@lru_cache(maxsize=1 << 16)
def network_of(cidr: str) -> Network:
    """Raises: ValueError: it is none, or not written in its one form."""
    found = parse_network(cidr)
    if found is None or str(found) != cidr:
        raise ValueError(f"{cidr} is no network")
    return Network(found.version, int(found.network_address), found.prefixlen)


def check_networks(selector: Selector) -> None:
    """Raises: ValueError: one of them is none."""
    for each in selector.networks:
        network_of(each.cidr)
        for cidr in each.except_cidrs:
            network_of(cidr)


def prefixes_of(cidr: str) -> Iterator[bytes]:
    """The keys of maps that stand for a network: one. A network of IPv6 around the addresses that stand for IPv4 is
    all that it is made of besides those, which it is not about."""
    network = network_of(cidr)
    if not (network.version == 6 and network.first <= MAPPED <= network.last):
        yield Prefix.of(cidr).pack()
        return
    for bits in range(network.bits + 1, MAPPED_BITS + 1):
        around = MAPPED >> ALL_BITS - bits << ALL_BITS - bits
        beside = around ^ 1 << ALL_BITS - bits
        yield Prefix.layout.pack(bits, beside.to_bytes(ADDRESS_BYTES, "big"))


def _bits_of(version: int) -> int:
    return 32 if version == 4 else ALL_BITS


def networks_in(ipcache: Mapping[bytes, bytes]) -> dict[str, int]:
    """The numbers of networks that the map holds, by CIDR. Of several with one number it is the network around them."""
    found: dict[int, list[bytes]] = {}
    for key, value in ipcache.items():
        number: int = IpcacheEntry.layout.unpack(value)[0]
        if number >= NETWORK_MIN:
            found.setdefault(number, []).append(key)
    return {_around(keys): number for number, keys in found.items()}


def _around(keys: list[bytes]) -> str:
    firsts = [int.from_bytes(key[-ADDRESS_BYTES:], "big") for key in keys]
    in_common = ALL_BITS - (min(firsts) ^ max(firsts)).bit_length()
    bits = min(in_common, *(Prefix.layout.unpack(key)[0] for key in keys))
    first = firsts[0] >> ALL_BITS - bits << ALL_BITS - bits
    return str(Prefix.unpack(Prefix.layout.pack(bits, first.to_bytes(ADDRESS_BYTES, "big"))))


class Networks:
    """Which networks the selectors here name, by number, and what each selector means."""

    def __init__(self) -> None:
        self.changed: set[str] = set()
        """CIDRs that are named now and were not, or the other way round; for the reader to empty."""
        self._selectors: dict[str, list[PeerNetwork]] = {}
        self._meant: dict[str, frozenset[int]] = {}  # by selector, as far as it was asked
        self._naming: dict[Network, set[str]] = {}  # -> selectors that mean what is within
        self._uses: dict[str, int] = {}  # CIDR -> how often it is named
        self._order: list[Network] = []
        self._number: dict[Network, int] = {}
        self._given: dict[str, int] = {}  # CIDR -> number, of those named now and before
        self._taken: dict[int, str] = {}
        self._resting: dict[str, None] = {}  # of `_given`, those not named now; the first longest

    def remember(self, numbers: Mapping[str, int]) -> None:
        """Maps know these numbers of networks, of a process before this one. Of two with one number neither is known:
        it is nobody's."""
        for cidr, number in numbers.items():
            if not NETWORK_MIN <= number <= NETWORK_MAX or cidr in self._given:
                continue
            if number in self._taken:
                self._given.pop(self._taken[number], None)
                self._resting.pop(self._taken[number], None)
                self._taken[number] = ""
            else:
                self._given[cidr] = number
                self._taken[number] = cidr
                self._resting[cidr] = None

    def put(self, selector: str, networks: Iterable[PeerNetwork]) -> dict[str, frozenset[int] | None]:
        """The selector means these. Returns the selectors, this one or others, that mean other numbers now, and what
        they meant before; None: nobody has asked."""
        after, before = list(networks), self._selectors.get(selector, [])
        if after == before:
            return {}
        changed = {selector}
        for each in after:
            for cidr in (each.cidr, *each.except_cidrs):
                changed |= self._name(cidr)
            self._naming.setdefault(network_of(each.cidr), set()).add(selector)
        still = {each.cidr for each in after}
        for each in before:
            if each.cidr not in still:
                naming = self._naming.get(network_of(each.cidr), set())
                naming.discard(selector)
                if not naming:
                    self._naming.pop(network_of(each.cidr), None)
            for cidr in (each.cidr, *each.except_cidrs):
                changed |= self._leave(cidr)
        if after:
            self._selectors[selector] = after
        else:
            self._selectors.pop(selector, None)
        return {key: self._meant.pop(key, None) for key in changed}

    def number(self, cidr: str) -> int | None:
        """Of a network that is named; None: it is not."""
        return self._given[cidr] if cidr in self._uses else None

    def cidr_of(self, number: int) -> str:
        """The network that has the number, or had it last; "": none has."""
        return self._taken.get(number, "")

    def meant_by(self, selector: str) -> frozenset[int]:
        """The numbers of all networks that the selector means."""
        found = self._meant.get(selector)
        if found is None:
            meant: set[int] = set()
            for each in self._selectors.get(selector, ()):
                inside = set(self._inside(network_of(each.cidr)))
                for cidr in each.except_cidrs:
                    inside.difference_update(self._inside(network_of(cidr)))
                meant.update(self._number[network] for network in inside)
            found = self._meant[selector] = frozenset(meant)
        return found

    def of_version(self, version: int) -> Iterator[int]:
        """The numbers of all networks of a family."""
        return (self._number[network] for network in self._order if network.version == version)

    def is_of_version(self, number: int, version: int) -> bool:
        """The number is of a network of this family that is named."""
        cidr = self._taken.get(number, "")
        return cidr in self._uses and network_of(cidr).version == version

    def _inside(self, network: Network) -> list[Network]:
        first = bisect_left(self._order, network)
        return self._order[first : bisect_right(self._order, Network(network.version, network.last, ALL_BITS))]

    def _name(self, cidr: str) -> set[str]:
        """Returns the selectors that mean it too, if nobody has named it so far."""
        self._uses[cidr] = self._uses.get(cidr, 0) + 1
        if self._uses[cidr] > 1:
            return set()
        network = network_of(cidr)
        insort(self._order, network)
        self._number[network] = self._give(cidr)
        self.changed.add(cidr)
        return self._meaning(network)

    def _leave(self, cidr: str) -> set[str]:
        self._uses[cidr] -= 1
        if self._uses[cidr]:
            return set()
        del self._uses[cidr]
        network = network_of(cidr)
        del self._order[bisect_left(self._order, network)]
        del self._number[network]
        self._resting[cidr] = None
        if len(self._resting) > MOST_REMEMBERED:
            oldest = next(iter(self._resting))
            del self._resting[oldest], self._taken[self._given.pop(oldest)]
        self.changed.add(cidr)
        return self._meaning(network)

    def _meaning(self, network: Network) -> set[str]:
        """The selectors that name a network around this one."""
        around = (self._naming.get(network.cut(bits), ()) for bits in range(network.bits + 1))
        return set[str]().union(*around)

    def _give(self, cidr: str) -> int:
        self._resting.pop(cidr, None)
        number = self._given.get(cidr)
        if number is None:
            number = network_number_of(cidr)
            while number in self._taken:
                number = number + 1 if number < NETWORK_MAX else NETWORK_MIN
            self._given[cidr] = number
            self._taken[number] = cidr
        return number
