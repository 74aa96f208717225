"""Questions that wait, each asker's in their order and the askers by turns, so that none waits for another's crowd.

What waits of one asker is bounded in bytes, and what is answered of it in rate; both are its own loss alone.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")

ITEM_BYTES = 1024  # what a message costs in memory beside its body, with room to spare


@dataclass(frozen=True, slots=True)
class Rate:
    """So many at once, and so many a second afterwards."""

    at_once: float
    per_second: float


@dataclass(slots=True)
class Asker(Generic[T]):
    allowed: float  # how many more, as of `at` (loop time)
    at: float
    waiting: deque[tuple[T, int, float]] = field(default_factory=deque)  # size of each; until when (loop time) it may
    size: int = 0


class Turns(Generic[T]):
    """Args: `limit_bytes`: of one asker, but a first item always fits. `rate` None: as fast as they are taken."""

    def __init__(self, limit_bytes: int, rate: Rate | None = None) -> None:
        self._limit = limit_bytes
        self._rate = rate or Rate(float("inf"), 0.0)
        self._askers: OrderedDict[str, Asker[T]] = OrderedDict()  # whose turn it is comes first
        self._news = asyncio.Event()
        self.late = 0
        """How many had waited for too long when it would have been their turn."""

    def put(self, name: str, item: T, size: int, until: float = inf) -> bool:
        """One more waits, `until` (loop time) it is of no use any more. False: no room for it."""
        asker = self._askers.get(name)
        if asker is None:
            asker = self._askers[name] = Asker(self._rate.at_once, asyncio.get_running_loop().time())
        size += ITEM_BYTES
        if asker.waiting and asker.size + size > self._limit:
            return False
        asker.waiting.append((item, size, until))
        asker.size += size
        self._news.set()
        return True

    async def next(self) -> T:
        """The next in turn, as soon as there is one that may."""
        now = asyncio.get_running_loop().time
        while True:
            self._news.clear()
            soonest: float | None = None
            for name, asker in list(self._askers.items()):
                self._earn(asker, now())
                self._forget_late(asker, now())
                if asker.waiting and asker.allowed >= 1:
                    self._askers.move_to_end(name)
                    return self._take(asker)
                if asker.waiting:
                    at = asker.at + (1 - asker.allowed) / self._rate.per_second
                    soonest = at if soonest is None else min(soonest, at)
                elif asker.allowed >= self._rate.at_once:
                    del self._askers[name]
            with suppress(TimeoutError):
                async with asyncio.timeout_at(soonest):
                    await self._news.wait()

    def _earn(self, asker: Asker[T], now: float) -> None:
        earned = (now - asker.at) * self._rate.per_second
        asker.allowed, asker.at = min(self._rate.at_once, asker.allowed + earned), now

    def _forget_late(self, asker: Asker[T], now: float) -> None:
        """They pay for no turn: else one who asks too fast would get all his answers too late."""
        while asker.waiting and asker.waiting[0][2] < now:
            asker.size -= asker.waiting.popleft()[1]
            self.late += 1

    def _take(self, asker: Asker[T]) -> T:
        item, size, _ = asker.waiting.popleft()
        asker.size -= size
        asker.allowed -= 1
        return item
