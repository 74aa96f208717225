"""Where the entries of policy hold that are for named ports: the map `named_ports`. Pure.

A policy's entry is for an identity and a number. Pods of one identity may give a name to different numbers (in every
rolling update that changes one), so such an entry says that it is named, and holds only at the addresses whose pod
calls the port so. An address that nobody is known to have said a name of has none: it stays closed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set

from bus.messages.resources import ContainerPort
from services.dataplane.parts.policy.entries import EGRESS, EndpointPolicy
from services.dataplane.shapes.layouts import NamedPortKey
from services.dataplane.shapes.protocols import numbers_of
from services.dataplane.shapes.table import Table

Named = tuple[str, int, int]
"""What a pod calls a port: name, IANA number of the protocol, port."""

HOLDS = b"\x01"


def names_in(ports: Iterable[ContainerPort]) -> frozenset[Named]:
    return frozenset(
        (each.name, protocol, each.port) for each in ports if each.name for protocol in numbers_of(each.protocol)
    )


class NamedPorts:
    """Who calls which port how, and the rows that follow for each local identity."""

    def __init__(self) -> None:
        self.table = Table("named_ports")
        self._at: dict[str, tuple[int, frozenset[Named]]] = {}  # address -> its identity, and what it calls ports
        self._with: defaultdict[int, set[str]] = defaultdict(set)  # identity -> addresses
        self._rows: dict[int, set[bytes]] = {}  # by local identity that has entries for named ports

    @property
    def concerned(self) -> Set[int]:
        """The local identities whose policies name ports."""
        return self._rows.keys()

    def put(self, address: str, identity: int, named: frozenset[Named]) -> bool:
        """The pod at `address` calls its ports so. Whether that is new."""
        before = self._at.get(address)
        after = (identity, named) if named else None
        if before == after:
            return False
        if before is not None:
            del self._at[address]
            self._with[before[0]].discard(address)
            if not self._with[before[0]]:
                del self._with[before[0]]
        if after is not None:
            self._at[address] = after
            self._with[identity].add(address)
        return True

    def settle(self, identity: int, policy: EndpointPolicy | None, local: Set[str]) -> None:
        """Bring the rows of a local identity up to date.

        Args:
            policy: what holds for it; None: it is not local any more.
            local: the addresses of this node's pods.
        """
        wanted = {row.pack() for row in self._wanted(identity, policy, local)} if policy else set[bytes]()
        before = self._rows.pop(identity, set())
        for row in before - wanted:
            self.table.delete(row)
        for row in wanted:
            self.table.put(row, HOLDS)
        if policy and policy.port_names:
            self._rows[identity] = wanted

    def _wanted(self, identity: int, policy: EndpointPolicy, local: Set[str]) -> Iterable[NamedPortKey]:
        """Of a pod here that is called, whoever calls; else of the peer's pods. Of groups nobody has a name."""
        asked = {
            (entry.cookie, key.protocol, key.port, key.identity if key.direction == EGRESS else None)
            for key, entry in (policy.entries.items() if policy.port_names else ())
            if entry.named
        }
        for cookie, protocol, port, peer in asked:
            names = {(name, protocol, port) for name in policy.port_names[cookie]}
            for address in self._with.get(identity if peer is None else peer, ()):
                if (peer is not None or address in local) and names & self._at[address][1]:
                    yield NamedPortKey(identity, cookie, address, port, protocol)
