"""A connection's calls end when their task is told to, whatever nats-py is doing at that moment."""

from __future__ import annotations

import asyncio
import contextlib

from bus.link import Link, open_link
from bus.server import Server

MOMENTS = 40  # turns of the loop: three calls take fewer, and a connection is made in about as many


async def busy(link: Link) -> None:
    while True:
        await link.unsubscribe(await link.subscribe("evt.test.link.>"))
        await link.publish("evt.test.link.a", b"")


async def test_a_task_that_is_told_to_end_at_any_moment_of_its_calls_ends(server: Server) -> None:
    async with open_link(server.url, name="calls") as link:
        for moment in range(MOMENTS):
            task = asyncio.create_task(busy(link))
            for _ in range(moment):
                await asyncio.sleep(0)
            task.cancel()
            _, still = await asyncio.wait([task], timeout=1)
            assert not still, f"at moment {moment}"
            assert task.cancelled()
        assert link.client._subs.keys() == {1}  # that of answers


async def test_a_task_that_is_told_to_end_while_it_connects_ends(server: Server) -> None:
    async def connected_for_ever() -> None:
        async with open_link(server.url, name="connects"):
            await asyncio.Event().wait()

    before = asyncio.all_tasks()
    for moment in range(MOMENTS):
        task = asyncio.create_task(connected_for_ever())
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        _, still = await asyncio.wait([task], timeout=1)
        assert not still, f"at moment {moment}"
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert asyncio.all_tasks() == before
