"""LoadBalancer pools: which addresses they hold, which overlap, and which Services they are for. Pure."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

from bus.addresses import Address, family, parse
from bus.labels import selects, service_labels
from bus.messages.resources import Family, LoadBalancerPool, Service


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Addresses of one family by number, both ends included."""

    family: Family
    first: int
    last: int
    written: str = ""

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    def has(self, address: Address) -> bool:
        return family(address) == self.family and self.first <= int(address) <= self.last

    def address(self, number: int) -> str:
        return str(IPv4Address(number) if self.family == "IPv4" else IPv6Address(number))

    def overlaps(self, other: Range) -> bool:
        return self.family == other.family and self.first <= other.last and other.first <= self.last


class Pool:
    """A pool as it was asked for. Raises: ValueError: a range of it is none."""

    def __init__(self, asked: LoadBalancerPool) -> None:
        self.asked = asked
        self.name = asked.name
        self.ranges = sorted(_range(each.first, each.last, each.written) for each in asked.ranges)
        if any(one.overlaps(other) for one, other in pairwise(self.ranges)):
            raise ValueError(f"ranges of the pool {asked.name} overlap")
        self.conflict = ""  # with which other pool it overlaps, for people

    @property
    def age(self) -> tuple[int, str]:
        """The lower the older; the same for all who know the same pools."""
        return self.asked.place, self.name

    @property
    def gives(self) -> bool:
        """New addresses; those that were given stay in any case."""
        return not self.asked.disabled and not self.conflict

    @property
    def total(self) -> int:
        return sum(each.size for each in self.ranges)

    def has(self, address: Address) -> bool:
        return range_of(address, self.ranges) is not None

    def selects(self, service: Service) -> bool:
        if self.asked.selector is None:
            return True
        return selects(self.asked.selector, service_labels(service))


def range_of(address: Address, among: Sequence[Range]) -> Range | None:
    """The range that holds the address, of ranges that are sorted and do not overlap."""
    at = bisect_right(among, (family(address), int(address)), key=lambda each: (each.family, each.first))
    return among[at - 1] if at and among[at - 1].has(address) else None


def mark_conflicts(pools: Iterable[Pool]) -> None:
    """Of pools that overlap the oldest gives addresses, the others say with which they conflict."""
    good: list[Range] = []
    owner: dict[Range, str] = {}
    for pool in sorted(pools, key=lambda each: each.age):
        pool.conflict = ""
        for each in pool.ranges:
            at = bisect_right(good, each)
            other = next((one for one in good[max(at - 1, 0) : at + 1] if one.overlaps(each)), None)
            if other is not None:
                pool.conflict = f"{each.written} overlaps {other.written} of the pool {owner[other]}, which is older"
                break
        else:
            for each in pool.ranges:
                insort(good, each)
                owner[each] = pool.name


class FirstFree:
    """The lowest address of a range that nobody has, found again without looking at all those below it."""

    def __init__(self) -> None:
        self._from: dict[Range, int] = {}  # below it everything is held
        self._next: dict[Range, int] = {}  # the same, with what was found since `begin`

    def begin(self) -> None:
        """What was found and is not held by now is free again."""
        self._next = {}

    def find(self, among: Range, is_taken: Callable[[str], bool], held: Container[str]) -> str | None:
        """It is given to nobody else before the next `begin`. None: none is free.

        Args:
            is_taken: somebody is to have it, or it is no Service's to have.
            held: addresses that somebody has already; of these long runs are passed over the next time.
        """
        lowest = self._from.get(among, among.first)
        while lowest <= among.last and among.address(lowest) in held:
            lowest += 1
        self._from[among] = lowest
        number = max(lowest, self._next.get(among, lowest))
        while number <= among.last and is_taken(among.address(number)):
            number += 1
        self._next[among] = number + 1
        return among.address(number) if number <= among.last else None

    def free(self, address: Address) -> None:
        """Nobody has it any more."""
        for among, number in self._from.items():
            if among.has(address):
                self._from[among] = min(number, int(address))

    def keep(self, known: Iterable[Range]) -> None:
        """What was learned of other ranges is forgotten."""
        kept = set(known)
        self._from = {among: number for among, number in self._from.items() if among in kept}


def _range(first: str, last: str, written: str) -> Range:
    low, high = parse(first), parse(last)
    if low is None or high is None or family(low) != family(high) or int(high) < int(low):
        raise ValueError(f"{first} to {last} is not a range of addresses")
    return Range(family(low), int(low), int(high), written or f"{first}-{last}")
