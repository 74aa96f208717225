"""Numbers that only the dataplane can name: asked for before their flows are told, and no longer than it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from bus import subjects
from bus.labels import NETWORK_MIN
from bus.messages.dataplane import Deciders, WhoDecided
from bus.testing import Hub
from services.hubble import naming
from services.hubble.api import flow_pb2 as pb
from services.hubble.flow import Flow
from services.hubble.joiner import Joiner
from services.hubble.names import PolicyName
from services.hubble.naming import Naming
from services.hubble.records import Record
from services.hubble.telling import message
from tests.unit.hubble.made import PLACE, names, record

RULE = "CiliumNetworkPolicy/default/rule1"
SEEN = record(policy=7, cookie=9, direction=1)


class Dataplane:
    """Of node1. Every cookie is of `policy`, every network is `cidr`."""

    def __init__(self) -> None:
        self.questions: list[WhoDecided] = []
        self.started_at, self.policy, self.cidr = 1.0, RULE, "198.51.100.0/24"
        self.audited = ""

    async def answer(self, question: WhoDecided) -> Deciders:
        self.questions.append(question)
        policies = [[self.policy] if self.policy else []] * len(question.decisions)
        return Deciders(
            node="node1",
            started_at=self.started_at,
            policies=policies,
            networks=[self.cidr] * len(question.networks),
            audited=[self.audited] * len(question.decisions),
        )


class Observer:
    def __init__(self, hub: Hub) -> None:
        self.names = names()
        self.joiner = Joiner(self.names, PLACE)
        self.naming = Naming(hub.bus(), "node1", self.names, self.joiner)

    async def see(self, *batch: Record) -> list[Flow]:
        flows = self.joiner.join(batch, 0)
        if self.joiner.has_unnamed:
            await self.naming.name(flows)
        return flows

    async def policies(self, seen: Record = SEEN) -> tuple[PolicyName, ...]:
        (flow,) = await self.see(seen)
        return flow.policies


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def observer(hub: Hub) -> Observer:
    return Observer(hub)


@asynccontextmanager
async def answering(hub: Hub, dataplane: Dataplane) -> AsyncIterator[None]:
    task = asyncio.create_task(hub.bus().answer(subjects.DECIDERS, "node1", handler=dataplane.answer))
    await asyncio.sleep(0)
    yield
    task.cancel()


@contextmanager
def at(monkeypatch: pytest.MonkeyPatch, now: float) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr("services.hubble.naming.time.monotonic", lambda: now)
        yield


async def test_the_first_flow_of_a_policy_has_its_name_and_the_next_asks_nobody(hub: Hub, observer: Observer) -> None:
    async with answering(hub, dataplane := Dataplane()):
        assert await observer.policies() == await observer.policies() == (PolicyName.of(RULE),)
    (question,) = dataplane.questions
    (asked,) = question.decisions
    assert (asked.policy, asked.cookie, asked.direction) == (7, 9, "egress")


async def test_who_denies_what_no_entry_matched_is_asked_each_time(hub: Hub, observer: Observer) -> None:
    nothing_matched = record(policy=7, cookie=0)
    async with answering(hub, dataplane := Dataplane()):
        assert await observer.policies(nothing_matched) == (PolicyName.of(RULE),)
        dataplane.policy = "CiliumNetworkPolicy/default/rule2"
        assert await observer.policies(nothing_matched) == (PolicyName.of(dataplane.policy),)


async def test_what_nobody_knew_is_asked_again(hub: Hub, observer: Observer) -> None:
    async with answering(hub, dataplane := Dataplane()):
        dataplane.policy = ""
        assert await observer.policies() == ()
        dataplane.policy = RULE
        assert await observer.policies() == (PolicyName.of(RULE),)


async def test_what_passes_only_because_the_node_looks_is_audited(hub: Hub, observer: Observer) -> None:
    async with answering(hub, dataplane := Dataplane()):
        dataplane.audited = "Policy denied"
        for _ in range(2):  # asked, and remembered
            (flow,) = await observer.see(SEEN)
            assert (flow.verdict, message(flow).verdict, message(flow).reason) == (pb.AUDIT, "audited", "Policy denied")
            assert [each.name for each in flow.message().egress_denied_by] == ["rule1"]
    assert len(dataplane.questions) == 1


async def test_a_network_outside_is_called_by_its_cidr(hub: Hub, observer: Observer) -> None:
    async with answering(hub, dataplane := Dataplane()):
        for _ in range(2):
            (flow,) = await observer.see(record(identities=(NETWORK_MIN + 5, 0)))
            assert flow.source.labels == ("cidr:198.51.100.0/24", "reserved:world")
    assert [each.networks for each in dataplane.questions] == [[NETWORK_MIN + 5]]


async def test_a_dataplane_that_started_anew_may_mean_something_else(
    hub: Hub, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = record(policy=7, cookie=10, direction=1)
    async with answering(hub, dataplane := Dataplane()):
        await observer.policies()
        dataplane.started_at, dataplane.policy = 2.0, "CiliumNetworkPolicy/default/rule2"
        await observer.policies(other)
        assert await observer.policies() == (PolicyName.of(dataplane.policy),)


async def test_without_an_answer_flows_go_without_names_and_nobody_is_asked_for_a_while(
    hub: Hub, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at(monkeypatch, 100.0):
        assert await observer.policies() == ()
    async with answering(hub, dataplane := Dataplane()):
        with at(monkeypatch, 100.0 + naming.PAUSE_SECONDS / 2):
            assert await observer.policies() == () and not dataplane.questions
        with at(monkeypatch, 100.0 + naming.PAUSE_SECONDS):
            assert await observer.policies() == (PolicyName.of(RULE),)
