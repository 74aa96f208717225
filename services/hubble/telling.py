"""Tells the bus what was observed, for `plexus monitor` and whoever else listens to events.

It reads the kept flows as any client does: when it is too slow it misses flows, and says how many.
"""

from __future__ import annotations

import asyncio

from bus import subjects
from bus.codec import TooLarge
from bus.interface import Bus, BusError
from bus.messages import hubble
from bus.telemetry import count
from services.hubble import records
from services.hubble.api import flow_pb2 as pb
from services.hubble.flow import FILES, POLICY_REASONS, Flow
from services.hubble.observed import Observed
from services.hubble.reasons import reason_name

TOLD_MAX = 1024  # at a time; of more, as in a flood, the rest counts as lost
PAUSE_SECONDS = 0.1  # between two times: a flow takes 10 us to tell, so it is a tenth of a processor at most
TYPES = {records.DROP: "drop", records.POLICY_VERDICT: "policy-verdict"}


async def tell(bus: Bus, node: str, observed: Observed) -> None:
    """For ever, drops and verdicts that come from now on. What was lost is told with what was not."""
    flows, position, losses = observed.flows, observed.flows.seen, dict(observed.losses.counts)
    while True:
        read = flows.read(position, flows.capacity)
        position = read.position
        chosen = [each for each in read.items if each.record[records.TYPE] in TYPES]
        lost = read.lost + sum(loss.count for loss in observed.losses.since(losses)) + max(0, len(chosen) - TOLD_MAX)
        if chosen or lost:
            await _tell(bus, node, [message(each) for each in chosen[:TOLD_MAX]], lost)
            await asyncio.sleep(PAUSE_SECONDS)
        elif position == flows.seen:
            await observed.pulse.wait()


async def _tell(bus: Bus, node: str, told: list[hubble.Flow], lost: int) -> None:
    """In as many messages as it takes: pods have as many labels as they like, and cause as many flows."""
    try:
        await bus.publish_event(subjects.FLOWS.of(node), hubble.FlowBatch(node=node, flows=told, lost=lost))
    except TooLarge:
        half = len(told) // 2
        if half:
            await _tell(bus, node, told[:half], lost)
            await _tell(bus, node, told[half:], 0)
        else:
            count("flows_untold", len(told))
    except BusError:
        count("flows_untold", len(told))


def message(flow: Flow) -> hubble.Flow:
    """As the bus has it."""
    record, is_drop = flow.record, flow.is_drop
    file = record[records.FILE] if is_drop else 0
    by_policy = not is_drop or flow.reason in POLICY_REASONS
    return hubble.Flow(
        at=flow.time_ns / 1e9,
        type=TYPES.get(record[records.TYPE], "other"),  # type: ignore[arg-type]  # it is one of the words
        verdict="dropped" if is_drop else "audited" if flow.audited else "forwarded",
        reason=reason_name(flow.reason) if is_drop else flow.audited,
        reason_code=flow.reason,
        direction="ingress" if flow.direction == pb.INGRESS else "egress",
        source=flow.source_address,
        destination=flow.destination_address,
        protocol=flow.protocol,
        source_port=records.port(record[records.SOURCE_PORT]),
        destination_port=records.port(record[records.DESTINATION_PORT]),
        source_identity=flow.source.identity,
        destination_identity=flow.destination.identity,
        source_pod=_pod(flow.source.namespace, flow.source.pod),
        destination_pod=_pod(flow.destination.namespace, flow.destination.pod),
        source_labels=_labels(flow.source.labels),
        destination_labels=_labels(flow.destination.labels),
        policies=[_policy(each.kind, each.namespace, each.name) for each in flow.policies] if by_policy else [],
        file=FILES[file] if file < len(FILES) else "",
        line=record[records.LINE] if is_drop else 0,
    )


def _pod(namespace: str, name: str) -> str:
    return f"{namespace}/{name}" if name else ""


def _policy(*parts: str) -> str:
    return "/".join(parts)


def _labels(labels: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for label in labels:
        key, _, value = label.partition("=")
        found[key] = value
    return found
