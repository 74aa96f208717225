"""Looks that somebody asks for and waits for: at the maps (audit.py) and at what is attached (looks.py).

Who asks waits for two seconds at most. A look that takes longer goes on and is owned here: it is ended before what it
looks at is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from bus.service import Service
from services.dataplane.batch import to_the_end

PATIENCE_SECONDS = 2.0  # of whoever asks
PER_BUSY = 3.0  # a look that is asked for begins so much longer after the one before than that took


class Asked:
    """Those of one life of the node."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._looks: set[asyncio.Task[None]] = set()
        self._is_over = False

    async def wait(self, look: Callable[[float], Coroutine[None, None, None]], what: str, check: str) -> None:
        """A look that began after they asked, if it does not take too long; if it does, `check` says so.

        Args:
            look: given when it was asked for, in loop time. What it raises is passed over: the look that comes without
                being asked for meets it, too, and ends this life.
        """
        if self._is_over:
            return
        task = asyncio.create_task(look(asyncio.get_running_loop().time()), name=f"compare {what}")
        self._looks.add(task)
        task.add_done_callback(self._done)
        _, late = await asyncio.wait([task], timeout=PATIENCE_SECONDS)
        if late:
            self._service.check(check, False, f"the {what} were not looked at within {PATIENCE_SECONDS:.0f} s")

    def _done(self, look: asyncio.Task[None]) -> None:
        self._looks.discard(look)
        if not look.cancelled():
            look.exception()

    async def end(self) -> None:
        """None runs when this returns, and none begins."""
        self._is_over = True
        for each in self._looks:
            each.cancel()
        if self._looks:
            await to_the_end(asyncio.wait(self._looks))
