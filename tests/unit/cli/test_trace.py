"""A trace begins where somebody asks for a change."""

from __future__ import annotations

import asyncio

from bus.messages.resources import Applied, Apply
from bus.subjects import APPLY
from bus.telemetry import current_cause
from bus.testing import Hub
from cli.apply import carried_out
from cli.tail import trace_id


async def test_every_apply_begins_a_trace_of_its_own() -> None:
    hub, traces = Hub(), []

    async def answer(_: Apply) -> Applied:
        traces.append(trace_id(current_cause().trace))
        return Applied()

    answering = asyncio.create_task(hub.bus("resources").answer(APPLY, handler=answer))
    asker = hub.bus("asker")
    await carried_out(asker, Apply(documents=[]))
    await carried_out(asker, Apply(documents=[]))
    answering.cancel()
    assert all(len(each) == 32 for each in traces) and len(set(traces)) == 2


def test_the_id_of_a_trace_is_read_from_its_header() -> None:
    assert trace_id({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})[:4] == "0af7"
    assert trace_id({}) == trace_id({"traceparent": "nonsense"}) == ""
