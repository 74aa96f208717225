"""Named ports become selectors: of a selector's members, those whose pods give a port this name. Pure.

Rules refer to such a selector as to any other, so who has a port is written once, however many rules name the port.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from bus.messages.policy import NamedPort, Selector
from bus.messages.resources import LabelSelector, PortRange, Protocol
from services.policy.store import Identities, NamedPorts, Selectors

EVERYONE = ""
"""Stands for a selector of all identities, which need not be said to be narrowed."""


@dataclass(slots=True)
class _Entry:
    message: Selector
    users: set[str] = field(default_factory=set)


class NamedSelectors:
    """Those that policies refer to, with who does."""

    def __init__(self, identities: Identities, selectors: Selectors, ports: NamedPorts) -> None:
        self._identities = identities
        self._selectors = selectors
        self._ports = ports
        self._entries: dict[str, _Entry] = {}
        self._of: dict[str, set[str]] = {}  # policy -> ids
        self._resolved: dict[tuple[str, str, Protocol], list[Selector]] = {}

    def message(self, key: str) -> Selector | None:
        entry = self._entries.get(key)
        return entry.message if entry else None

    def of(self, policy: str) -> set[str]:
        """The ids that the policy refers to."""
        return self._of.get(policy, set())

    def refer(self, policy: str, wanted: Mapping[str, Selector]) -> tuple[set[str], set[str]]:
        """The policy refers to these and to no others. Returns the ids of those new or changed, and of those left."""
        left = self.of(policy) - wanted.keys()
        for key in left:
            self._entries[key].users.discard(policy)
            if not self._entries[key].users:
                del self._entries[key]
        changed = set[str]()
        for key, message in wanted.items():
            entry = self._entries.get(key)
            if entry is None or entry.message != message:
                changed.add(key)
            entry = self._entries.setdefault(key, _Entry(message))
            entry.message = message
            entry.users.add(policy)
        self._of[policy] = set(wanted)
        if not wanted:
            del self._of[policy]
        return changed, left

    def anew(self) -> None:
        """What was heard may have changed what `having` answers."""
        self._resolved.clear()

    def having(self, base: str, ports: Iterable[PortRange]) -> list[Selector]:
        """What the names among `ports` stand for at the members of the selector `base`: one selector for each number.

        A number is open for exactly those who give it the name: another pod that the policy governs cannot open a port
        here by calling a port of its own so. In the order of protocol, number, name; none for a name that nobody has.
        """
        found = {each.id: each for name, protocol in _wanted(ports) for each in self._resolve(base, name, protocol)}
        return sorted(found.values(), key=_order)

    def _resolve(self, base: str, name: str, protocol: Protocol) -> list[Selector]:
        question = (base, name, protocol)
        if question not in self._resolved:
            having: dict[tuple[Protocol, int], list[int]] = {}
            for identity in sorted(self._identities.all() if base == EVERYONE else self._selectors.members(base)):
                for number in self._ports.numbers(self._identities.text_of(identity), name, protocol):
                    having.setdefault(number, []).append(identity)
            selector = LabelSelector() if base == EVERYONE else self._selectors.selector(base)
            self._resolved[question] = [
                Selector(
                    id=_id(base, name, spoken, port),
                    selector=selector,
                    members=members,
                    having=NamedPort(name=name, protocol=spoken, port=port),
                )
                for (spoken, port), members in having.items()
            ]
        return self._resolved[question]


def _wanted(ports: Iterable[PortRange]) -> set[tuple[str, Protocol]]:
    return {(port.name, port.protocol) for port in ports if port.name}


def _id(base: str, name: str, protocol: Protocol, port: int) -> str:
    """As a selector's, over what makes this one: no list of requirements has this form."""
    return sha256(json.dumps({"of": base, "port": [name, protocol, port]}).encode()).hexdigest()[:16]


def _order(selector: Selector) -> tuple[str, int, str]:
    port = selector.having
    return (port.protocol, port.port, port.name) if port else ("", 0, "")
