"""The map `endpoints`: which pods are here, behind which interface, and under which policy. Pure.

A pod whose identity or policy is not known is denied: its entry enforces both directions with the policy 0, which has
no entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal

from bus.labels import RESERVED
from bus.messages.dataplane import ClosedDirection
from services.dataplane.part import Facts, Maps, Part, Row, Shows
from services.dataplane.shapes.layouts import (
    FLAG_ENFORCE_EGRESS,
    FLAG_ENFORCE_INGRESS,
    NO_POLICY,
    EndpointEntry,
    EndpointKey,
)
from services.dataplane.shapes.table import Table

EndpointState = Literal["waiting-for-identity", "waiting-for-policy", "ready"]


class Endpoints(Part):
    """Written last: what an entry refers to is there before it opens anything."""

    by_rules = True

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.table = Table("endpoints", last=True, stamp_at=EndpointEntry.epoch_at)
        self.tables = (self.table,)
        self.shows = (Shows("endpoints", "Local pods.", self._rows),)
        self.changed: set[str] = set()
        """Addresses of pods of which something may have changed with the last `settle`."""
        self._pods, self._identity, self._enforced = facts.pods, facts.identity, facts.enforced
        self._come_or_gone: Final = facts.pods.follow()
        self._other_identity: Final = facts.identity.follow()
        self._other_policy: Final = facts.enforced.follow()
        self._closed = facts.closed
        self._other_closed: Final = facts.closed.follow()
        self._stale: set[str] = set()
        self._restored: set[str] = set()  # pods whose entry in the kernel stays until all has been heard
        self._is_synced = False

    def synced(self) -> None:
        """From here on "no policy" may mean "open"."""
        if not self._is_synced:
            self._is_synced = True
            self._restored.clear()
            self._stale.update(self._pods)

    def restored(self, addresses: Iterable[str]) -> None:
        """Of a pod that was here before a restart: what the kernel holds of it stays until all has been heard."""
        if not self._is_synced:
            self._restored.update(addresses)

    def made(self, addresses: Iterable[str]) -> None:
        """Of a pod that has its link now, or is gone."""
        self._restored.difference_update(addresses)
        self._stale.update(addresses)

    def _rows(self, maps: Maps, now: int) -> Iterator[Row]:
        for key, value in maps["endpoints"].items():
            address, v = EndpointKey.unpack(key).address, EndpointEntry.unpack(value)
            pod = self._pods.get(address)
            yield {
                "address": address,
                "pod": f"{pod.namespace}/{pod.name}" if pod else "",
                "interface": pod.interface if pod else "",
                "interface_index": v.interface,
                "identity": v.identity,
                "policy": v.policy,
                "ingress": "enforced" if v.flags & FLAG_ENFORCE_INGRESS else "open",
                "egress": "enforced" if v.flags & FLAG_ENFORCE_EGRESS else "open",
                "mac": v.mac.hex(":"),
            }

    def state_of(self, address: str) -> EndpointState:
        """How far the pod at `address` has come, as of the last `settle`."""
        if not self._identity.get(address):
            return "waiting-for-identity"
        return "ready" if self._is_synced else "waiting-for-policy"

    def closed_of(self, address: str) -> tuple[ClosedDirection, ...]:
        """Directions of the pod at `address` that are denied as a whole, whatever policy says."""
        return self._closed.get(self._identity.get(address, 0), ())

    def settle(self) -> None:
        other = self._other_policy | self._other_closed
        if other:
            self._stale.update(each for each, number in self._identity.items() if number in other)
            self._other_policy.clear()
            self._other_closed.clear()
        for changed in (self._come_or_gone, self._other_identity):
            self._stale |= changed
            changed.clear()
        self.changed = set(self._stale)
        self.settle_each(self._stale, "pod", self._settle_one)

    def _settle_one(self, address: str) -> None:
        key = EndpointKey(address).pack()
        pod = self._pods.get(address)
        if pod is None:
            self.table.delete(key)
            if not self._is_synced:  # the kernel may hold one from before a restart, which the table does not know
                self.table.owe([key])
            return
        if address in self._restored:
            return
        identity = self._identity.get(address, 0)
        enforced = self._enforced.get(identity) if self._is_synced else None
        ingress, egress = enforced or (True, True)
        self.table.put(
            key,
            EndpointEntry(
                interface=pod.interface_index,
                identity=identity or RESERVED["init"],
                policy=identity if enforced else NO_POLICY,
                flags=FLAG_ENFORCE_INGRESS * ingress | FLAG_ENFORCE_EGRESS * egress,
                mac=bytes.fromhex(pod.mac.replace(":", "")),
                gateway_mac=bytes.fromhex(pod.gateway_mac.replace(":", "")),
            ).pack(),
        )
