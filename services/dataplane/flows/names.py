"""From the kernel's events to flows with names: which pods, which labels, which policies decided. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable

from bus.messages.dataplane import Flow
from services.dataplane.model import NodeModel
from services.dataplane.shapes import layouts, reasons
from services.dataplane.shapes.events import EVENT_DROP, Event


def monotonic_offset() -> float:
    """Seconds to add to CLOCK_MONOTONIC to get the time since the epoch."""
    return time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)


def flows(events: Iterable[Event], model: NodeModel, offset: float) -> list[Flow]:
    """Events in words, in their order. `offset`: see `monotonic_offset`."""
    return [_flow(event, model, offset) for event in events]


def _flow(event: Event, model: NodeModel, offset: float) -> Flow:
    source_pod, source_identity = _who(event.source, event.source_identity, model)
    destination_pod, destination_identity = _who(event.destination, event.destination_identity, model)
    is_drop = event.type == EVENT_DROP
    audited = "" if is_drop else _audited(event, model)
    by_policy = event.reason in (reasons.POLICY_DENIED, reasons.POLICY_DENIED_BY_DENYLIST)
    return Flow(
        at=event.at / 1e9 + offset,
        type="drop" if is_drop else "policy-verdict",
        verdict="dropped" if is_drop else "audited" if audited else "forwarded",
        reason=reasons.reason_name(event.reason) if is_drop else audited,
        reason_code=event.reason,
        direction=layouts.DIRECTIONS[event.direction & 1],  # type: ignore[arg-type]
        source=event.source,
        destination=event.destination,
        protocol=event.protocol,
        source_port=event.source_port,
        destination_port=event.destination_port,
        source_identity=source_identity,
        destination_identity=destination_identity,
        source_pod=source_pod,
        destination_pod=destination_pod,
        source_labels=_labels(source_identity, model),
        destination_labels=_labels(destination_identity, model),
        policies=_policies(event, model) if by_policy or not is_drop else [],
        file=reasons.file_name(event.file) if is_drop else "",
        line=event.line if is_drop else 0,
    )


def _who(address: str, identity: int, model: NodeModel) -> tuple[str, int]:
    """The pod that has the address, and an identity: the kernel's where it looked, else the one that is known."""
    local = model.pods.get(address)
    if local is not None:
        return f"{local.namespace}/{local.name}", identity or model.identity_of(address)
    known = model.network.addresses.get(address)
    if known is not None:
        return known.pod, identity or known.identity
    return "", identity


def _labels(identity: int, model: NodeModel) -> dict[str, str]:
    known = model.people.identities.get(identity)
    network = model.policy.store.networks.cidr_of(identity)
    if network:
        return {f"cidr:{network}": "", "reserved:world": ""}
    return known.labels if known is not None else {}


def _audited(event: Event, model: NodeModel) -> str:
    """Why it would have been dropped, did the node not only look."""
    policy = model.policy_of(event.policy)
    return policy.audited.get(event.cookie, "") if policy else ""


def _policies(event: Event, model: NodeModel) -> list[str]:
    """Who decided: the policies of the entry that matched, or, when none did, those that make the pod deny."""
    policy = model.policy_of(event.policy)
    if policy is None:
        return []
    if event.cookie:
        return list(policy.cookies.get(event.cookie, ()))
    return list(policy.deciders(event.direction))
