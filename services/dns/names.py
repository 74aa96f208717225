"""What is known of names: which addresses each has, and until when. Pure: the clock is the caller's.

An address that a name has twice holds as long as the later answer says, and at least for the minimum. Of a name that
has more than the limit, those go first whose time is over first.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping

from bus.patterns import Patterns
from services.dns.wire import Found


class Names:
    """Of the names that some policy means; of others nothing is kept."""

    def __init__(self, minimum_ttl: float, most_addresses: int) -> None:
        self._minimum_ttl = minimum_ttl
        self._most_addresses = most_addresses
        self._wanted = Patterns()
        self._until: dict[str, dict[str, float]] = {}
        self._ends: list[tuple[float, str, str]] = []  # a heap; what does not agree with `_until` is out of date

    def want(self, patterns: Patterns) -> set[str]:
        """Names that policies mean now. Returns those that were known and are wanted no more; they are forgotten."""
        self._wanted = patterns
        gone = {name for name in self._until if not patterns.has(name)}
        for name in gone:
            del self._until[name]
        return gone

    def is_wanted(self, name: str | None) -> bool:
        return name is not None and self._wanted.has(name)

    def learn(self, name: str, found: Iterable[Found], now: float) -> set[str]:
        """An answer. Returns the addresses that the name did not have; those it cannot have, by the limit, are none."""
        if not self.is_wanted(name):
            return set()
        known = self._until.setdefault(name, {})
        new: set[str] = set()
        for address, ttl in found:
            until = now + max(ttl, self._minimum_ttl)
            if until > known.get(address, 0.0):
                if address not in known:
                    new.add(address)
                self._hold(name, address, until)
        for address in heapq.nsmallest(len(known) - self._most_addresses, known, key=lambda each: (known[each], each)):
            del known[address]
            new.discard(address)
        if not known:
            del self._until[name]
        return new

    def restore(self, name: str, until: Mapping[str, float]) -> None:
        """As a file had it."""
        if self.is_wanted(name):
            for address, end in until.items():
                self._hold(name, address, end)

    def _hold(self, name: str, address: str, until: float) -> None:
        self._until.setdefault(name, {})[address] = until
        heapq.heappush(self._ends, (until, name, address))

    def over(self, now: float) -> dict[str, set[str]]:
        """Name -> the addresses whose time is over; they are forgotten."""
        gone: dict[str, set[str]] = {}
        while self._ends and self._ends[0][0] <= now:
            until, name, address = heapq.heappop(self._ends)
            known = self._until.get(name, {})
            if known.get(address) == until:
                del known[address]
                gone.setdefault(name, set()).add(address)
                if not known:
                    del self._until[name]
        return gone

    def next_end(self) -> float | None:
        """When `over` may have something to say."""
        return self._ends[0][0] if self._ends else None

    def addresses(self, name: str) -> Mapping[str, float]:
        """Address -> until when."""
        return self._until.get(name, {})

    def __iter__(self) -> Iterator[str]:
        return iter(self._until)

    def __len__(self) -> int:
        return len(self._until)
