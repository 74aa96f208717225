"""What the bus says becomes names, and, once all was heard, events of the node that clients may ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from bus import subjects
from bus.interface import Batch, Change
from bus.messages import Message
from bus.messages.dataplane import Endpoint
from bus.messages.identity import AddressIdentity
from bus.messages.policy import PolicyRules
from bus.subjects import State
from services.hubble import names
from services.hubble.api import flow_pb2 as pb
from services.hubble.flow import timestamp
from services.hubble.observed import Observed

HEARS: tuple[State[Message], ...] = (*names.HEARS, subjects.RULES)
SHOWN_MAX = 3  # problems in words; the others are counted


class Hearing:
    """`now`: seconds since the epoch."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._is_synced = False
        self.synced = asyncio.Event()
        self._known: dict[str, Message] = {}  # of what makes events: the last value, by subject
        self._problems: dict[str, str] = {}

    def hear(self, batch: Batch, now: float) -> None:
        """What makes no sense is passed over, and is a problem until it is said right or gone."""
        network = False
        for change in batch.changes:
            try:
                if change.message is None:
                    self._observed.names.delete(change.subject)
                else:
                    self._observed.names.put(change.subject, change.message)
            except ValueError as problem:
                self._problems[change.subject] = str(problem)
                continue
            self._problems.pop(change.subject, None)
            network = network or subjects.NODE.has(change.subject)
            for event in self._events(change):
                if self._is_synced:
                    self._observed.happened(event, now)
        self._observed.is_of_node(self._observed.names.node_labels)
        if batch.synced and not self._is_synced:
            self._is_synced = True
            started = pb.TimeNotification(time=timestamp(int(self._observed.started * 1e9)))
            self._observed.happened(pb.AgentEvent(type=pb.AGENT_STARTED, agent_start=started), now)
            self.synced.set()
        if network:
            self._observed.network.beat()

    @property
    def is_synced(self) -> bool:
        return self._is_synced

    @property
    def problem(self) -> str:
        """What could not be taken, in words; "" when all was."""
        shown = [f"{subject}: {self._problems[subject]}" for subject in sorted(self._problems)[:SHOWN_MAX]]
        more = len(self._problems) - len(shown)
        return "; ".join(shown) + (f"; and {more} more" if more else "")

    def _events(self, change: Change) -> Iterator[pb.AgentEvent]:
        before = self._known.pop(change.subject, None)
        now = change.message
        match now or before:
            case PolicyRules() as rules:
                kind = pb.POLICY_UPDATED if now else pb.POLICY_DELETED
                told = pb.PolicyUpdateNotification(
                    labels=[f"{rules.kind}/{rules.namespace}/{rules.name}"],
                    revision=change.sequence,
                    rule_count=len(rules.rules),
                )
                yield pb.AgentEvent(type=kind, policy_update=told)
            case Endpoint(node=self._observed.names.node) as here:
                if before is None or now is None:
                    kind = pb.ENDPOINT_CREATED if now else pb.ENDPOINT_DELETED
                    endpoint = pb.EndpointUpdateNotification(
                        id=here.interface_index, pod_name=here.pod, namespace=here.namespace
                    )
                    yield pb.AgentEvent(type=kind, endpoint_update=endpoint)
            case AddressIdentity() as who:
                yield pb.AgentEvent(
                    type=pb.IPCACHE_UPSERTED if now else pb.IPCACHE_DELETED, ipcache_update=_ipcache(who, before)
                )
            case _:
                return
        if now is not None:
            self._known[change.subject] = now


def _ipcache(who: AddressIdentity, before: Message | None) -> pb.IPCacheNotification:
    namespace, _, pod = who.pod.partition("/")
    told = pb.IPCacheNotification(
        cidr=f"{who.address}/{128 if ':' in who.address else 32}",
        identity=who.identity,
        host_ip=who.node_address,
        namespace=namespace,
        pod_name=pod,
    )
    if isinstance(before, AddressIdentity) and before is not who:
        told.old_identity.value, told.old_host_ip = before.identity, before.node_address
    return told
