"""Looks at what is attached, as audit.py looks at what the maps hold: every two seconds, and when somebody asks.

What was not attached, or not first, is told for some seconds (hooks.py), and no revision counts as realised meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from services.dataplane.keep.asked import PER_BUSY
from services.dataplane.kernel.hooks import HEAL_SECONDS, Hooks


class Looks:
    """One look at a time."""

    def __init__(
        self,
        hooks: Hooks,
        look: Callable[[], Awaitable[None]],
        realised: Callable[[], Awaitable[None]],
    ) -> None:
        """`look`: looks, heals and tells. `realised`: what was held back may be told now."""
        self._hooks = hooks
        self._look = look
        self._realised = realised
        self._looking = asyncio.Lock()
        self._began, self._took = -1e9, 0.0  # the last look, in loop time
        self._is_held_back = False

    def holds_back(self) -> bool:
        """Whether something was not judged as it should be a moment ago. Then `realised` is called when it is over."""
        differs = bool(self._hooks.differing)
        self._is_held_back |= differs
        return differs

    async def run_for_ever(self) -> None:
        """Raises: whatever a look does."""
        while True:
            await asyncio.sleep(HEAL_SECONDS)
            await self.run()

    async def run(self, asked_at: float | None = None) -> None:
        """`asked_at` (loop time): unless a look has begun since then."""
        now = asyncio.get_running_loop().time
        async with self._looking:
            if asked_at is not None:
                if self._began >= asked_at:
                    return
                await asyncio.sleep(max(0.0, self._began + self._took * (1 + PER_BUSY) - now()))
            began = now()
            await self._look()
            self._began, self._took = began, now() - began
            if self._is_held_back and not self._hooks.differing:
                self._is_held_back = False
                await self._realised()
