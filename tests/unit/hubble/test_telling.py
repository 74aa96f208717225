"""What was observed, as the bus has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bus import subjects
from bus.messages import hubble
from bus.telemetry import counted
from bus.testing import Hub
from services.hubble import records
from services.hubble.api import flow_pb2 as pb
from services.hubble.names import Party, PolicyName
from services.hubble.observed import Observed
from services.hubble.telling import TOLD_MAX, message, tell
from tests.unit.hubble.made import flow, record
from tests.unit.hubble.served import observed, see

RULE = PolicyName("CiliumNetworkPolicy", "default", "rule1")


def test_a_drop_names_pods_labels_reason_place_and_policies() -> None:
    seen = record(type_=records.DROP, reason=133, direction=1, line=80, file=6)
    found = message(flow(time_ns=5_000_000_000, policies=(RULE,), seen=seen))
    assert (found.type, found.verdict, found.reason, found.reason_code) == ("drop", "dropped", "Policy denied", 133)
    assert (found.source_pod, found.destination_pod) == ("default/xwing", "empire/deathstar-1")
    assert found.source_labels == {"k8s:class": "xwing", "k8s:org": "alliance"}
    assert (found.source_port, found.destination_port, found.protocol) == (40000, 80, 6)
    assert found.policies == ["CiliumNetworkPolicy/default/rule1"]
    assert (found.file, found.line, found.direction, found.at) == ("policy.h", 80, "egress", 5.0)


def test_a_verdict_has_no_reason_and_a_stranger_no_pod() -> None:
    found = message(flow(source=Party(2, labels=("reserved:world",)), policies=(RULE,), seen=record(line=3, file=6)))
    assert (found.type, found.verdict, found.reason, found.file, found.line) == (
        "policy-verdict", "forwarded", "", "", 0,
    )  # fmt: skip
    assert (found.source_pod, found.source_identity, found.source_labels) == ("", 2, {"reserved:world": ""})


def test_a_drop_that_no_policy_decided_names_none() -> None:
    found = message(flow(policies=(RULE,), seen=record(type_=records.DROP, reason=132, file=1)))
    assert (found.reason, found.policies, found.file) == ("Invalid source ip", [], "pod.bpf.c")


@asynccontextmanager
async def told(observer: Observed) -> AsyncIterator[asyncio.Queue[hubble.FlowBatch]]:
    """What a listener hears."""
    hub, heard = Hub(), asyncio.Queue[hubble.FlowBatch]()

    async def listen() -> None:
        async for _, batch in hub.bus().watch_events(subjects.FLOWS.all(), hubble.FlowBatch):
            heard.put_nowait(batch)

    tasks = [asyncio.create_task(each) for each in (listen(), tell(hub.bus(), "node1", observer))]
    await asyncio.sleep(0)
    yield heard
    for task in tasks:
        task.cancel()


async def test_what_is_seen_is_told_with_what_was_lost() -> None:
    observer = observed()
    see(observer, 1)
    async with told(observer) as heard:
        see(observer, 2, 3)
        batch = await heard.get()
        assert (batch.node, [each.at for each in batch.flows], batch.lost) == ("node1", [2e-9, 3e-9], 0)
        observer.lose(pb.PERF_EVENT_RING_BUFFER, 7, 0.0)
        batch = await heard.get()
        assert (batch.flows, batch.lost) == ([], 7)


async def test_a_connection_that_no_policy_was_asked_about_is_for_those_who_ask() -> None:
    observer = observed()
    async with told(observer) as heard:
        see(observer, 1, type_=records.TRACE)
        see(observer, 2)
        batch = await heard.get()
        assert [each.at for each in batch.flows] == [2e-9]


async def test_what_is_written_over_before_it_is_told_is_told_as_lost() -> None:
    observer = observed(capacity=7)
    async with told(observer) as heard:
        see(observer, *range(20))
        batch = await heard.get()
        assert (len(batch.flows), batch.lost) == (7, 13)


async def test_of_a_flood_some_are_told_and_the_others_counted() -> None:
    observer = observed(capacity=2047)
    async with told(observer) as heard:
        see(observer, *range(TOLD_MAX + 5))
        batch = await heard.get()
        assert (len(batch.flows), batch.lost) == (TOLD_MAX, 5)


@pytest.mark.parametrize(("label_bytes", "flows", "lost"), [(40, TOLD_MAX, 0), (40_000, 16, 16)])
async def test_flows_of_pods_with_many_labels_are_told_in_several_messages(
    label_bytes: int, flows: int, lost: int
) -> None:
    labels = tuple(f"k8s:app.kubernetes.io/label-number-{number}={'v' * label_bytes}" for number in range(8))
    many = [flow(source=Party(1001, labels=labels), destination=Party(1001, labels=labels))] * flows
    observer, before = observed(capacity=2047), counted("flows_untold")
    async with told(observer) as heard:
        observer.keep(many, 0.0)
        observer.lose(pb.PERF_EVENT_RING_BUFFER, 7, 0.0)
        batches: list[hubble.FlowBatch] = []
        while sum(len(batch.flows) for batch in batches) < flows - lost:
            batches.append(await heard.get())
        while lost and counted("flows_untold") - before < lost:
            await asyncio.sleep(0)
    assert lost or (len(batches) > 1 and sum(batch.lost for batch in batches) == 7)
