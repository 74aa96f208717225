"""The service on a bus (in memory): nodes ask, are granted what is theirs, and lose it when they ask no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bus.control import Leading, run_control
from bus.interface import Unanswered
from bus.messages.l2announce import Announcement, Granted, Renewal
from bus.messages.resources import L2AnnouncementPolicy, Node, Service, ServicePort
from bus.subjects import ANNOUNCEMENT, L2_POLICY, L2_RENEW, NODE, SERVICE
from bus.testing import Hub, MemoryLease
from services.l2announce.handlers import NOBODY, Leases
from services.l2announce.model import Announcing

ADDRESS = "192.0.2.9"
LEASE = 0.2


def world() -> Hub:
    hub = Hub()
    hub.put(L2_POLICY.of("p"), L2AnnouncementPolicy(name="p", external_addresses=True))
    service = Service(
        namespace="d",
        name="s",
        cluster_addresses=["10.96.0.1"],
        ports=[ServicePort(port=80, target_port=80)],
        external_addresses=[ADDRESS],
    )
    hub.put(SERVICE.of("d", "s"), service)
    for name in ("n1", "n2"):
        hub.put(NODE.of(name), Node(name=name, addresses=[]))
    return hub


@asynccontextmanager
async def announcing(hub: Hub, name: str = "one") -> AsyncIterator[Announcing]:
    model = Announcing(LEASE)
    bus = hub.bus(name)

    async def beside(leading: Leading) -> None:
        await Leases(model, leading, LEASE).run(bus)

    task = asyncio.create_task(run_control(bus, model, beside=beside))
    try:
        yield model
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Asker:
    """A node that asks as it is told; its kernel holds what it was granted last."""

    def __init__(self, hub: Hub, name: str) -> None:
        self._bus = hub.bus(name)
        self.name = name
        self.number = 0
        self.term = ""
        self.holds: list[str] = []

    async def ask(self) -> Granted:
        self.number += 1
        question = Renewal(node=self.name, process="p", number=self.number, term=self.term, holds=self.holds)
        answer = await self._bus.ask(L2_RENEW, self.name, message=question)
        self.term = answer.term
        granted = [each.address for each in answer.addresses if each.granted]
        self.holds = [each.address for each in answer.addresses if each.address in {*granted, *self.holds}]
        return answer

    async def until_granted(self) -> None:
        async with asyncio.timeout(10):
            while True:
                try:
                    answer = await self.ask()
                except Unanswered:  # nobody leads yet
                    answer = NOBODY
                if [each.address for each in answer.addresses if each.granted] == [ADDRESS]:
                    return
                await asyncio.sleep(0.01)


def holder(hub: Hub) -> str:
    found = hub.states("l2announce").get(ANNOUNCEMENT.of(ADDRESS))
    return found.node if isinstance(found, Announcement) else ""


async def test_a_node_that_asks_is_granted_and_one_that_asks_no_more_is_replaced() -> None:
    hub = world()
    first, second = Asker(hub, "n1"), Asker(hub, "n2")
    async with announcing(hub):
        await first.until_granted()
        assert holder(hub) == "n1"
        assert not (await second.ask()).addresses
        await second.until_granted()
        assert holder(hub) == "n2"
        assert not (await first.ask()).addresses, "it is told at its next question"


async def test_who_leads_next_grants_at_once_what_a_node_holds() -> None:
    hub = world()
    node = Asker(hub, "n1")
    async with announcing(hub):
        await node.until_granted()
        term = node.term
    async with announcing(hub, "other"):
        async with asyncio.timeout(5):
            while node.term in ("", term):
                try:
                    answer = await node.ask()
                except Unanswered:
                    await asyncio.sleep(0.001)
            assert [(each.address, each.granted) for each in answer.addresses] == [(ADDRESS, False)]
            assert [(each.address, each.granted) for each in (await node.ask()).addresses] == [(ADDRESS, True)]
    assert holder(hub) == "n1"


async def test_one_who_has_lost_the_lease_without_noticing_grants_nothing() -> None:
    lease = MemoryLease()
    model = Announcing(LEASE)
    model.put(ANNOUNCEMENT.of(ADDRESS), Announcement(address=ADDRESS, node="n1", services=[], policies=[]))
    leases = Leases(model, Leading(lease, asyncio.Event()), LEASE)
    question = Renewal(node="n1", process="p", number=1)
    assert (await leases.renew(question)).term
    lease.take_away()
    assert await leases.renew(Renewal(node="n1", process="p", number=2)) == NOBODY


async def test_a_failure_beside_the_model_ends_the_service() -> None:
    async def beside(leading: Leading) -> None:
        raise RuntimeError("the clock is gone")

    with pytest.raises(ExceptionGroup) as found:
        async with asyncio.timeout(10):
            await run_control(Hub().bus(), Announcing(LEASE), beside=beside)
    assert found.group_contains(RuntimeError, match="the clock is gone")
