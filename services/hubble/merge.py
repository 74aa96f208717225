"""Several nodes' flows in one order of time. Pure.

Each node says its own in order. One is passed on when every node that takes part has said something at least as late,
so that none of them can come before it; or when it has waited for `hold` seconds, so that a silent node holds nobody
up.
Then a flow may come too late: it is passed on at once, as it is better out of order than lost.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")

HOLD_SECONDS = 0.25  # above what separates two nodes' batches (0.1 s), below what a person notices
WAITING_MAX = 16384  # items; beyond them the oldest is passed on at once


class Merge(Generic[T]):
    """`now`: seconds on any clock that only grows."""

    def __init__(self, hold: float = HOLD_SECONDS, waiting_max: int = WAITING_MAX) -> None:
        self._hold = hold
        self._waiting_max = waiting_max
        self._heap: list[tuple[int, int, T]] = []  # time, order of arrival, item
        self._arrivals: deque[tuple[float, int]] = deque()  # when it must go, time; in order of arrival
        self._due = -1  # the latest time of one that has waited long enough: what is older goes before it
        self._count = 0
        self._latest: dict[str, int] = {}  # of each node that takes part, the latest time it has said

    def __len__(self) -> int:
        return len(self._heap)

    def join(self, node: str) -> None:
        """It takes part: the others' flows wait for its own."""
        self._latest.setdefault(node, -1)

    def leave(self, node: str) -> None:
        """It says nothing more; what it said stays."""
        self._latest.pop(node, None)

    def put(self, node: str, time_ns: int, item: T, now: float) -> None:
        if node in self._latest:
            self._latest[node] = max(self._latest[node], time_ns)
        heappush(self._heap, (time_ns, self._count, item))
        self._arrivals.append((now + self._hold, time_ns))
        self._count += 1

    def take(self, now: float) -> list[T]:
        """What may be passed on now, in order."""
        safe = min(self._latest.values(), default=1 << 63)
        while self._arrivals and self._arrivals[0][0] <= now:
            self._due = max(self._due, self._arrivals.popleft()[1])
        found = []
        while self._heap:
            if self._heap[0][0] > max(safe, self._due) and len(self._heap) <= self._waiting_max:
                break
            found.append(heappop(self._heap)[2])
        if not self._heap:
            self._arrivals.clear()
        return found

    def wait(self, now: float) -> float | None:
        """Seconds until it is worth while to take again, if nothing comes; None: nothing waits."""
        return max(0.0, self._arrivals[0][0] - now) if self._heap else None
