"""Work that is not cut off: to its end for one caller, or in rounds for all who wait (`Batch`); and a process that is.

A round costs the same for one as for twenty: whoever comes while one runs shares the next.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


async def to_the_end(work: Awaitable[T]) -> T:
    """What `work` returns or raises. A caller that is cancelled is so only when `work` is done: what it holds, a lock
    or open files, stays its own for as long as `work` uses it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as reason:
            cancelled = reason
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # seen: the caller is not there to take it
    raise cancelled


async def answered(child: Process, request: bytes | None = None) -> tuple[bytes, bytes]:
    """What a process writes to its output and its error output until it ends. It does not outlive a caller that is
    cancelled."""
    try:
        return await child.communicate(request)
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):  # it may have ended just now
            child.kill()
        await child.wait()
        raise


class Batch(Generic[T]):
    """Rounds of `work(items)` on `thread`, one at a time, each with everything that waited for it, in order of arrival.

    A round that raises fails every item in it; the next round is not touched by that.
    """

    def __init__(self, thread: Executor, work: Callable[[list[T]], object]) -> None:
        self._thread = thread
        self._work = work
        self._waiting: list[tuple[T, asyncio.Future[None]]] = []
        self._running: asyncio.Task[None] | None = None

    async def add(self, item: T) -> None:
        """Returns when the round with `item` is done; a caller that is cancelled leaves its item in the round."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._running is None:
            self._running = asyncio.create_task(self._rounds(), name="batch")
        await done

    async def drain(self) -> None:
        """Returns when nothing waits any more."""
        while self._running is not None:
            await asyncio.wait([self._running])

    async def _rounds(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                items, self._waiting = self._waiting, []
                await self._round(loop, items)
        finally:
            self._running = None

    async def _round(self, loop: asyncio.AbstractEventLoop, items: list[tuple[T, asyncio.Future[None]]]) -> None:
        try:
            await loop.run_in_executor(self._thread, self._work, [item for item, _ in items])
        except Exception as failure:  # noqa: BLE001 (everything that failed goes to who asked)
            for _, done in items:
                if not done.done():
                    done.set_exception(failure)
        except BaseException:
            for _, done in items:
                done.cancel()
            raise
        else:
            for _, done in items:
                if not done.done():
                    done.set_result(None)
