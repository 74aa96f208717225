"""Tells the bus what the kernel saw: its ring's events, with names, in batches."""

from __future__ import annotations

from bus import subjects
from bus.codec import TooLarge
from bus.interface import Bus, BusError
from bus.messages.dataplane import Flow, FlowBatch
from bus.telemetry import count
from services.dataplane.flows.names import flows, monotonic_offset
from services.dataplane.flows.ring import Ring
from services.dataplane.kernel.maps import Maps
from services.dataplane.model import NodeModel


async def tell_flows(bus: Bus, node: str, maps: Maps, model: NodeModel) -> None:
    """For ever. What is lost on the way to the ring is told with what is not."""
    ring = Ring(maps["events"])
    lost_before = maps.events_lost()
    try:
        async for batch in ring.batches():
            lost = maps.events_lost()
            named = flows(batch, model, monotonic_offset())
            for flow in named:
                if flow.type == "drop":
                    count("drop_events", reason=flow.reason)
            await _tell(bus, node, named, lost - lost_before)
            lost_before = lost
    finally:
        ring.close()


async def _tell(bus: Bus, node: str, named: list[Flow], lost: int) -> None:
    """In as many messages as it takes: pods have as many labels as they like, and cause as many flows."""
    try:
        await bus.publish_event(subjects.FLOWS.of(node), FlowBatch(node=node, flows=named, lost=lost))
    except TooLarge:
        half = len(named) // 2
        if half:
            await _tell(bus, node, named[:half], lost)
            await _tell(bus, node, named[half:], 0)
        else:
            count("flows_lost", len(named))
    except BusError:
        count("flows_lost", len(named))
