"""The last flows of a node, and what was lost on the way to whom. Pure.

Losses take no place among the flows: a node that loses many would lose the others by it. They are counted by source,
and each client is told what came to the count since it last heard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.hubble.api import flow_pb2 as pb

CAPACITY_DEFAULT = 4095
CAPACITY_MAX = 65535
RATE_SECONDS = 60
NAMESPACE_SECONDS = 3600.0  # how long a namespace counts as seen


class Timed(Protocol):
    @property
    def time_ns(self) -> int: ...


T = TypeVar("T", bound=Timed)


class Read(Generic[T]):
    """What a reader gets: `items`, where it goes on, and how many were written over before it came."""

    __slots__ = ("items", "position", "lost")

    def __init__(self, items: list[T], position: int, lost: int) -> None:
        self.items = items
        self.position = position
        self.lost = lost


class Kept(Generic[T]):
    """A ring of the last `capacity` items. A position counts all that were ever added; its place is the remainder."""

    def __init__(self, capacity: int = CAPACITY_DEFAULT) -> None:
        """Raises: ValueError: the capacity is not 2^n - 1, from 1 to 65535."""
        if not 1 <= capacity <= CAPACITY_MAX or capacity & (capacity + 1):
            raise ValueError(f"a ring holds 2^n - 1 flows, {CAPACITY_MAX} at most, not {capacity}")
        self.capacity = capacity
        self.seen = 0
        self._items: list[T | None] = [None] * capacity

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    @property
    def oldest(self) -> int:
        """The position of the first item that is still here."""
        return self.seen - len(self)

    def add(self, items: Sequence[T]) -> None:
        self.seen += len(items)
        items = items[-self.capacity :]
        place = (self.seen - len(items)) % self.capacity
        room = self.capacity - place
        self._items[place : place + len(items)] = items[:room]
        if len(items) > room:
            self._items[: len(items) - room] = items[room:]

    def _at(self, position: int) -> T:
        item = self._items[position % self.capacity]
        assert item is not None, "positions from `oldest` to `seen` are filled"
        return item

    def read(self, position: int, most: int) -> Read[T]:
        """From `position` on, oldest first, `most` at most."""
        start = max(position, self.oldest)
        end = min(self.seen, start + most)
        return Read([self._at(each) for each in range(start, end)], max(end, start), start - position)

    def last(self, number: int, matches: Callable[[T], bool], since_ns: int = 0, until_ns: int = 1 << 63) -> list[T]:
        """The newest `number` (0: all) that match and are of this span of time, oldest first."""
        found: list[T] = []
        for position in range(self.seen - 1, self.oldest - 1, -1):
            item = self._at(position)
            if since_ns <= item.time_ns <= until_ns and matches(item):
                found.append(item)
                if len(found) == number:
                    break
        found.reverse()
        return found

    def first(self, number: int, matches: Callable[[T], bool], since_ns: int = 0, until_ns: int = 1 << 63) -> list[T]:
        """The oldest `number` (0: all) of these, oldest first."""
        found: list[T] = []
        for position in range(self.oldest, self.seen):
            item = self._at(position)
            if since_ns <= item.time_ns <= until_ns and matches(item):
                found.append(item)
                if len(found) == number:
                    break
        return found


@dataclass(frozen=True, slots=True)
class Loss:
    """How many were lost at `source`, and when the last of them was (ns since the epoch)."""

    source: pb.LostEventSource
    count: int
    last_ns: int


class Losses:
    """Counted by source since the start."""

    def __init__(self) -> None:
        self.counts: dict[pb.LostEventSource, int] = {}
        self._last_ns: dict[pb.LostEventSource, int] = {}

    def add(self, source: pb.LostEventSource, count: int, now_ns: int) -> None:
        if count > 0:
            self.counts[source] = self.counts.get(source, 0) + count
            self._last_ns[source] = now_ns

    def since(self, told: dict[pb.LostEventSource, int]) -> list[Loss]:
        """What came to the counts since `told`, which the same reader keeps; it is brought up to date."""
        found = []
        for source, count in self.counts.items():
            if new := count - told.get(source, 0):
                found.append(Loss(source, new, self._last_ns[source]))
                told[source] = count
        return found


class Rate:
    """How many a second, over the last minute or since the start."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._seconds: deque[tuple[int, int]] = deque()

    def add(self, count: int, now: float) -> None:
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            count += self._seconds.pop()[1]
        self._seconds.append((second, count))
        self._forget(now)

    def per_second(self, now: float) -> float:
        self._forget(now)
        return sum(count for _, count in self._seconds) / max(1.0, min(RATE_SECONDS, now - self._started))

    def _forget(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] <= now - RATE_SECONDS:
            self._seconds.popleft()


class Namespaces:
    """Those seen lately."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}

    def add(self, found: set[str], now: float) -> None:
        for namespace in found:
            self._seen[namespace] = now

    def seen(self, now: float) -> list[str]:
        self._seen = {name: at for name, at in self._seen.items() if now - at < NAMESPACE_SECONDS}
        return sorted(self._seen)
