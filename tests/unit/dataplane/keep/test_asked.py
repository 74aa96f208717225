"""Looks that somebody asks for: shared by all who ask meanwhile, waited for no longer than is told, and owned."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from bus.service import Service, Settings
from bus.testing import Hub
from services.dataplane.keep import asked as module
from services.dataplane.keep.asked import Asked
from services.dataplane.keep.looks import Looks
from tests.unit.dataplane.fake_kernel import MemoryHooks, MemoryLinks


class Looking:
    """`Looks` whose look takes a turn of the event loop, or for as long as it is held up."""

    def __init__(self) -> None:
        self.began = self.ended = 0
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.looks = Looks(MemoryHooks(MemoryLinks()), self._look, self._realised)
        self.service = Service("dataplane", Settings(), Hub().bus())
        self.asked = Asked(self.service)

    async def _look(self) -> None:
        self.began += 1
        await asyncio.sleep(0)
        await self.goes_on.wait()
        self.ended += 1

    async def _realised(self) -> None:
        """Nothing was held back."""

    async def ask(self) -> None:
        await self.asked.wait(self.looks.run, "programs", "programs")

    def wrong(self) -> dict[str, str]:
        return {each.name: each.detail for each in self.service.health().checks if not each.ok}


@pytest.fixture
async def looking() -> Looking:
    return Looking()


async def test_all_who_ask_while_programs_are_looked_at_share_the_next_look(looking: Looking) -> None:
    """One that began before they asked is of no use to them."""
    looking.goes_on.clear()
    own = asyncio.create_task(looking.looks.run())
    while not looking.began:
        await asyncio.sleep(0)
    asking = [asyncio.create_task(looking.ask()) for _ in range(20)]
    await asyncio.sleep(0)
    looking.goes_on.set()
    await asyncio.gather(own, *asking)
    assert looking.began == looking.ended == 2
    await looking.ask()
    assert looking.ended == 3


async def test_who_asks_waits_no_longer_than_is_told_and_the_look_goes_on(
    looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    looking.goes_on.clear()
    await looking.ask()
    assert looking.wrong() == {"programs": "the programs were not looked at within 0 s"}
    gc.collect()
    looking.goes_on.set()
    while not looking.ended:
        await asyncio.sleep(0)


async def test_a_late_look_that_fails_leaves_nothing_unretrieved(
    looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    unretrieved: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unretrieved.append(context))
    fail, failed = asyncio.Event(), asyncio.Event()

    async def look(since: float) -> None:
        await fail.wait()
        failed.set()
        raise RuntimeError("no")

    await looking.asked.wait(look, "maps", "drift")
    fail.set()
    await failed.wait()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gc.collect()
    assert unretrieved == []


@pytest.mark.parametrize("patience", [0.0, 60.0])
async def test_none_outlives_the_end_and_none_begins_after_it(
    looking: Looking, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", patience)
    looking.goes_on.clear()
    asking = asyncio.create_task(looking.ask())
    await until(lambda: looking.began and (patience or asking.done()))
    await looking.asked.end()
    await asking
    assert not [each for each in asyncio.all_tasks() if each.get_name() == "compare programs"]
    looking.goes_on.set()
    await looking.ask()
    assert (looking.began, looking.ended) == (1, 0)


async def until(claim: Callable[[], object]) -> None:
    while not claim():
        await asyncio.sleep(0)
