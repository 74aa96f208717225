"""Looks at what is attached, as audit.py looks at what the maps hold: every two seconds, and when somebody asks.

What was not attached, or not first, is told for some seconds (hooks.py), and no revision counts as realised meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from bus.service import Service
from services.dataplane.audit import ASKED_PER_BUSY, PATIENCE_SECONDS
from services.dataplane.hooks import HEAL_SECONDS, Hooks


class Looks:
    """One look at a time."""

    def __init__(
        self,
        hooks: Hooks,
        service: Service,
        look: Callable[[], Awaitable[None]],
        realised: Callable[[], Awaitable[None]],
    ) -> None:
        """`look`: looks, heals and tells. `realised`: what was held back may be told now."""
        self._hooks = hooks
        self._service = service
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

    async def run(self) -> None:
        async with self._looking:
            now = asyncio.get_running_loop().time
            began = now()
            await self._look()
            self._began, self._took = began, now() - began
            if self._is_held_back and not self._hooks.differing:
                self._is_held_back = False
                await self._realised()

    async def run_for_one_who_waits(self) -> None:
        """A look that began after they asked, if it does not take too long."""
        running = asyncio.create_task(self._run_since(asyncio.get_running_loop().time()), name="compare programs")
        _, late = await asyncio.wait([running], timeout=PATIENCE_SECONDS)
        if not late:
            running.exception()  # `run_for_ever` meets it, too, and ends
        else:
            why = f"the programs were not looked at within {PATIENCE_SECONDS:.0f} s"
            self._service.check("programs", False, why)

    async def _run_since(self, asked_at: float) -> None:
        await asyncio.sleep(max(0.0, self._began + self._took * (1 + ASKED_PER_BUSY) - asked_at))
        if self._began < asked_at:
            await self.run()
