"""One holder at a time, whatever dies."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from bus.client import NatsBus
from bus.server import Server
from tests.bus.watcher import buses

SECONDS = 1.0


@dataclass
class Belief:
    """Who believed when to hold the lease: sampled each time anyone could have changed its mind."""

    holders: dict[str, float] = field(default_factory=dict)
    overlaps: int = 0
    changes: list[str] = field(default_factory=list)


async def hold_again_and_again(bus: NatsBus, name: str, belief: Belief, hold_seconds: float) -> None:
    while True:
        async with bus.lease("test", seconds=SECONDS) as lease:
            belief.changes.append(name)
            until = time.monotonic() + hold_seconds
            while lease.held and time.monotonic() < until:
                belief.holders = {holder: at for holder, at in belief.holders.items() if time.monotonic() < at}
                if set(belief.holders) - {name}:
                    belief.overlaps += 1
                belief.holders[name] = lease.deadline  # type: ignore[attr-defined]  # until then it may act
                await asyncio.sleep(0.005)
            belief.holders.pop(name, None)  # it acts no longer; another may have the lease before the release returns


async def test_a_lease_given_back_is_taken_at_once_and_never_held_twice(server: Server) -> None:
    async with buses(server, "a", "b", "c") as replicas:
        belief = Belief()
        tasks = [
            asyncio.create_task(hold_again_and_again(bus, name, belief, 0.1))
            for bus, name in zip(replicas, "abc", strict=True)
        ]
        await asyncio.sleep(2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert belief.overlaps == 0
        assert len(belief.changes) >= 10, "a release wakes those who wait"


async def test_a_holder_cut_off_has_let_go_before_another_takes_over(server: Server) -> None:
    async with buses(server, "a", "b") as (a, b), a.lease("test", seconds=SECONDS) as mine:
        theirs = b.lease("test", seconds=SECONDS)
        taking = asyncio.create_task(theirs.__aenter__())
        await asyncio.sleep(0.2)
        assert not taking.done()
        a.link.client._max_payload = 0  # nothing that it sends gets out any more
        ends = mine.deadline  # type: ignore[attr-defined]
        async with asyncio.timeout(SECONDS + 2.5):
            taken = await taking
        asked = taken.deadline - SECONDS  # type: ignore[attr-defined]  # when the write that took it was sent
        assert ends <= asked < ends + SECONDS + 1.5
        assert [mine.held, taken.held] == [False, True]
        async with asyncio.timeout(1):
            await mine.lost()
        await theirs.__aexit__(None, None, None)


async def test_a_lease_survives_a_server_that_is_restarted_in_time(server: Server) -> None:
    async with buses(server, "a", "b") as (a, b):
        async with a.lease("test", seconds=3.0) as mine:
            theirs = b.lease("test", seconds=3.0)
            taking = asyncio.create_task(theirs.__aenter__())
            await asyncio.sleep(0.2)
            await server.kill()
            await server.start()
            await asyncio.sleep(3.0)
            assert mine.held and not taking.done()
        async with asyncio.timeout(2):
            assert (await taking).held
            await theirs.__aexit__(None, None, None)


async def test_a_server_away_for_longer_ends_the_lease(server: Server) -> None:
    async with buses(server, "a") as (a,), a.lease("test", seconds=SECONDS) as mine:
        await server.kill()
        async with asyncio.timeout(SECONDS + 0.5):
            await mine.lost()
        assert not mine.held
        await server.start()
        async with asyncio.timeout(5), a.lease("test", seconds=SECONDS) as again:
            assert again.held and not mine.held
