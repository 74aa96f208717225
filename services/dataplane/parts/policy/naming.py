"""The map `named_ports`, kept as pods, addresses and policies are. Pure."""

from __future__ import annotations

from typing import Final

from bus import subjects
from bus.messages.identity import AddressIdentity
from services.dataplane.part import Fact, Facts, Hears, Part
from services.dataplane.parts.policy.entries import EndpointPolicy
from services.dataplane.parts.policy.named_ports import NamedPorts, names_in


class Naming(Part):
    """What pods call their ports. Of its own pods the node knows it without the bus.

    Args:
        policies: what holds for each local identity (`Policy.expanded`).
    """

    by_rules = True

    def __init__(self, facts: Facts, policies: Fact[int, EndpointPolicy]) -> None:
        super().__init__()
        self.hears = (Hears(subjects.ADDRESS, self._put_address, self._delete_address),)
        self._named = NamedPorts()
        self.table = self._named.table
        self.tables = (self.table,)
        self._policies = policies
        self._pods, self._identity, self._ports = facts.pods, facts.identity, facts.ports
        self._changed = (facts.pods.follow(), facts.identity.follow(), facts.ports.follow())
        self._said: dict[str, AddressIdentity] = {}  # by address, of pods that name ports
        self._stale_addresses: set[str] = set()
        self._stale: Final = policies.follow()

    def settle(self) -> None:
        for changed in self._changed:
            self._stale_addresses |= changed
            changed.clear()
        self.settle_each(self._stale_addresses, "ports named at", self._call)
        self.settle_each(self._stale, "named ports of", self._settle_rows)

    def _put_address(self, entry: AddressIdentity) -> None:
        if entry.ports:
            self._said[entry.address] = entry
        else:
            self._said.pop(entry.address, None)
        self._stale_addresses.add(entry.address)

    def _delete_address(self, address: str) -> None:
        self._said.pop(address, None)
        self._stale_addresses.add(address)

    def _call(self, address: str) -> None:
        said = self._said.get(address)
        if address in self._pods:
            identity, ports = self._identity.get(address, 0), self._ports.get(address, ())
        else:
            identity, ports = (said.identity, said.ports) if said else (0, ())
        if self._named.put(address, identity, names_in(ports)):
            self._stale.update(self._named.concerned)

    def _settle_rows(self, identity: int) -> None:
        self._named.settle(identity, self._policies.get(identity), self._pods.keys())
