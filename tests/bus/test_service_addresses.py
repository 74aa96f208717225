"""Two replicas of ipam on a real server that both believe to lead, all the time: no address is ever given twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bus.control import run_control
from bus.messages import Message
from bus.messages.ipam import ServiceAddress
from bus.outbox import NatsOutbox
from bus.server import Server
from bus.subjects import SERVICE, SERVICE_ADDRESS
from services.ipam.service_addresses import ServiceAddresses
from tests.bus.watcher import Watcher, buses, watching
from tests.unit.ipam.service_log import check_apart, pool, service

SERVICES = 40
BURSTS = 40


class NeverLost:
    """A lease that everybody has."""

    held = True

    async def lost(self) -> None:
        await asyncio.Event().wait()


@asynccontextmanager
async def lease(*_: object, **__: object) -> AsyncIterator[NeverLost]:
    yield NeverLost()


def given(watcher: Watcher) -> dict[str, list[str]]:
    """By Service, its addresses."""
    found: dict[str, list[str]] = {}
    for held in watcher.values.values():
        if isinstance(held, ServiceAddress):
            for each in held.services:
                found.setdefault(each.name, []).append(held.address)
    return found


async def test_two_replicas_that_both_write_give_no_address_twice(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, lost_races, amend = random.Random(5), 0, NatsOutbox.amend

    async def counted(self: NatsOutbox, subject: str, before: Message | None, after: Message | None) -> Message | None:
        nonlocal lost_races
        found = await amend(self, subject, before, after)
        lost_races += found != after
        return found

    monkeypatch.setattr(NatsOutbox, "amend", counted)
    async with buses(server, "resources", "one", "two", "node") as (resources, one, two, node):
        box, models = await resources.own("resources"), [ServiceAddresses(), ServiceAddresses()]
        await box.say(*pool("blue", "10.0.0.1-10.0.0.30"))
        for bus in (one, two):
            monkeypatch.setattr(bus, "lease", lease)
        running = [asyncio.create_task(run_control(bus, model)) for bus, model in zip((one, two), models, strict=True)]
        try:
            async with watching(node, SERVICE_ADDRESS, direct=True) as watcher:
                alive: set[str] = set()
                for _ in range(BURSTS):
                    names = {f"s{at}" for at in rng.sample(range(SERVICES), 10)}
                    ended = {name for name in names & alive if rng.random() < 0.4}
                    alive = (alive | names) - ended
                    said = [
                        service(
                            name,
                            ports=(rng.randrange(80, 86),),
                            **({"sharing_key": "k"} if rng.random() < 0.5 else {}),
                        )
                        for name in sorted(names - ended)
                    ]
                    await asyncio.gather(
                        *(box.unsay(SERVICE.of("default", name)) for name in ended), *(box.say(*each) for each in said)
                    )
                for name in sorted(alive)[25:]:  # so that there is an address for everybody
                    alive.discard(name)
                    await box.unsay(SERVICE.of("default", name))
                await watcher.until(
                    lambda told: given(told).keys() == alive and all(len(each) == 1 for each in given(told).values())
                )
                for _, value in watcher.told:
                    if isinstance(value, ServiceAddress):
                        check_apart(value)
                assert lost_races > 0, "else they did not race"
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
