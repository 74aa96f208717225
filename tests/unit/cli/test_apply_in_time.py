"""How long `plexus apply` waits, for whom, and what it says when that was not long enough."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bus.interface import Unanswered
from bus.messages.resources import Applied, Apply, Document
from bus.subjects import APPLY
from bus.testing import Hub
from cli import apply
from cli.errors import Failed


def call(documents: int = 1, **manifest: str) -> Apply:
    return Apply(documents=[Document(source="a.yaml", manifest={"kind": "Pod", **manifest})] * documents)


@asynccontextmanager
async def resources(hub: Hub, begins: float = 0.0, takes: float = 0.0) -> AsyncIterator[None]:
    """Somebody who answers from `begins` on, each question after `takes` seconds."""

    async def answer(question: Apply) -> Applied:
        await asyncio.sleep(takes)
        return Applied(revision=7)

    async def serve() -> None:
        await asyncio.sleep(begins)
        await hub.bus("resources").answer(APPLY, handler=answer)

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    try:
        yield
    finally:
        serving.cancel()


async def test_while_nobody_answers_a_successor_is_waited_for() -> None:
    hub = Hub()
    async with resources(hub, begins=0.5):
        assert (await apply.carried_out(hub.bus(), call())).revision == 7


async def test_when_nobody_comes_the_wait_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "TAKEOVER_SECONDS", 0.2)
    with pytest.raises(Unanswered, match="nobody answers"):
        await apply.carried_out(Hub().bus(), call())


async def test_an_answer_that_is_late_is_not_told_as_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "SECONDS", 0.1)
    hub = Hub()
    async with resources(hub, takes=60):
        with pytest.raises(Failed, match="it may still be carried out: plexus wait tells"):
            await apply.carried_out(hub.bus(), call())


async def test_time_for_an_answer_grows_with_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "SECONDS", 0.1)
    hub = Hub()
    async with resources(hub, takes=0.3):
        assert (await apply.carried_out(hub.bus(), call(documents=100))).revision == 7


async def test_more_than_a_call_takes_is_told_in_bytes() -> None:
    hub = Hub()
    async with resources(hub):
        with pytest.raises(Failed, match=r"50000\d\d bytes together, more than one call takes; split them"):
            await apply.carried_out(hub.bus(), call(a="x" * 5_000_000))
