"""A bus that may come later: for a service that works while there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

from bus.interface import Anew, Batch, Bus, Family, Lease, Outbox
from bus.messages import Message
from bus.subjects import Request
from bus.telemetry import count

M = TypeVar("M", bound=Message)
A = TypeVar("A", bound=Message)


class LateBus:
    """`interface.Bus` from the start: what is asked of it before `arrived` waits, and events are lost, counted."""

    def __init__(self) -> None:
        self._arrival: asyncio.Future[Bus] = asyncio.get_running_loop().create_future()

    def arrived(self, bus: Bus) -> None:
        self._arrival.set_result(bus)

    async def _bus(self) -> Bus:
        return await asyncio.shield(self._arrival)  # of many who wait, one that is cancelled takes it from none

    def stuck(self) -> str:
        return self._arrival.result().stuck() if self._arrival.done() else ""

    async def watch_state(
        self, *families: Family, direct: bool = False, anew: Anew | None = None
    ) -> AsyncIterator[Batch]:
        async for batch in (await self._bus()).watch_state(*families, direct=direct, anew=anew):
            yield batch

    async def own(self, owner: str, *, vouch: bool = True) -> Outbox:
        return await (await self._bus()).own(owner, vouch=vouch)

    async def publish_state(self, subject: str, message: Message, *, expected: int | None = None) -> int:
        return await (await self._bus()).publish_state(subject, message, expected=expected)

    async def compare_and_set(self, subject: str, message: Message | None, expected: int) -> int | None:
        return await (await self._bus()).compare_and_set(subject, message, expected)

    async def delete_state(self, subject: str) -> int:
        return await (await self._bus()).delete_state(subject)

    async def publish_event(self, subject: str, message: Message) -> None:
        if self._arrival.done():
            await (await self._bus()).publish_event(subject, message)
        else:
            count("bus_event_lost", subject=".".join(subject.split(".")[:3]))

    async def watch_events(self, pattern: str, kind: type[M]) -> AsyncIterator[tuple[str, M]]:
        async for event in (await self._bus()).watch_events(pattern, kind):
            yield event

    async def ask(self, request: Request[M, A], *tokens: str, message: M, timeout: float = 2.0) -> A:
        return await (await self._bus()).ask(request, *tokens, message=message, timeout=timeout)

    async def answer(self, request: Request[M, A], *tokens: str, handler: Callable[[M], Awaitable[A]]) -> None:
        await (await self._bus()).answer(request, *tokens, handler=handler)

    def lease(self, name: str, *, seconds: float = 3.0) -> AbstractAsyncContextManager[Lease]:
        return self._lease(name, seconds)

    @asynccontextmanager
    async def _lease(self, name: str, seconds: float) -> AsyncIterator[Lease]:
        async with (await self._bus()).lease(name, seconds=seconds) as held:
            yield held

    async def ensure_streams(self) -> None:
        await (await self._bus()).ensure_streams()

    async def keep_streams(self) -> None:
        await (await self._bus()).keep_streams()
