"""What policy has heard, indexed by the questions that the model asks. Plain dictionaries; no I/O.

Selectors and identities are each indexed by label, so that neither one new identity among ten thousand selectors nor
one new selector among ten thousand identities looks at all the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from bus import labels
from bus.messages.policy import Selector
from bus.messages.resources import LabelSelector, Namespace, Pod, Protocol, Requirement

Term = tuple[str, str | None]
"""A label key with its value, or with None: the key is there, whatever its value."""

ANYTHING: Term = ("", None)
"""Where a selector without any requirement on presence is filed."""

PortName = tuple[str, Protocol, int]
"""Name, transport protocol, number."""

PodKey = tuple[str, str]  # namespace, name

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class _Entry:
    selector: LabelSelector
    filed: tuple[Term, ...]
    members: set[int]
    references: int = 0


class Identities:
    """Label sets by number, and numbers by label."""

    def __init__(self) -> None:
        self._labels: dict[int, Mapping[str, str]] = {}
        self._by_term: dict[Term, set[int]] = {}
        self._text: dict[int, str] = {}
        self._by_text: dict[str, set[int]] = {}

    def put(self, number: int, found: Mapping[str, str]) -> None:
        self.delete(number)
        self._labels[number] = found
        text = self._text[number] = labels.labels_text(found)
        self._by_text.setdefault(text, set()).add(number)
        for term in _terms(found):
            self._by_term.setdefault(term, set()).add(number)

    def delete(self, number: int) -> None:
        gone = self._labels.pop(number, None)
        if gone is not None:
            _remove(self._by_text, self._text.pop(number), number)
            for term in _terms(gone):
                _remove(self._by_term, term, number)

    def labels_of(self, number: int) -> Mapping[str, str] | None:
        return self._labels.get(number)

    def text_of(self, number: int) -> str:
        """The label set of a known identity, as text."""
        return self._text[number]

    def with_text(self, text: str) -> set[int]:
        return self._by_text.get(text, set())

    def all(self) -> Iterable[int]:
        return self._labels

    def selected_by(self, selector: LabelSelector) -> set[int]:
        """Every identity that `selector` selects; looks only at those that have its rarest label."""
        candidates: Iterable[int] = self._labels
        fewest = len(self._labels)
        for requirement in selector.requirements:
            terms = _filing(requirement)
            if terms is not None:
                having = [self._by_term.get(term, set()) for term in terms]
                if (size := sum(map(len, having))) < fewest:
                    candidates, fewest = set[int]().union(*having), size
        return {number for number in candidates if labels.selects(selector, self._labels[number])}


class Selectors:
    """Every selector that some policy refers to, with its members."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities
        self._entries: dict[str, _Entry] = {}
        self._filed: dict[Term, set[str]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def acquire(self, selector: LabelSelector) -> str:
        """One more reference. Returns the selector's id."""
        key = labels.selector_id(selector)
        entry = self._entries.get(key)
        if entry is None:
            entry = _Entry(selector, self._file(key, selector), self._identities.selected_by(selector))
            self._entries[key] = entry
        entry.references += 1
        return key

    def release(self, key: str) -> None:
        """One reference less; the last one takes the selector away."""
        entry = self._entries[key]
        entry.references -= 1
        if not entry.references:
            del self._entries[key]
            for term in entry.filed:
                _remove(self._filed, term, key)

    def members(self, key: str) -> set[int]:
        return self._entries[key].members

    def selector(self, key: str) -> LabelSelector:
        return self._entries[key].selector

    def message(self, key: str) -> Selector:
        entry = self._entries[key]
        return Selector(id=key, selector=entry.selector, members=sorted(entry.members))

    def selecting(self, found: Mapping[str, str]) -> set[str]:
        """The ids of all selectors that select this label set."""
        terms = [*_terms(found), ANYTHING]
        candidates = set[str]().union(*(self._filed.get(term, ()) for term in terms))
        return {key for key in candidates if labels.selects(self._entries[key].selector, found)}

    def put_identity(self, number: int, found: Mapping[str, str]) -> set[str]:
        """Make the identity a member where it belongs. Returns the ids of the selectors that it is or was in."""
        changed = self.delete_identity(number)
        self._identities.put(number, found)
        joined = self.selecting(found)
        for key in joined:
            self._entries[key].members.add(number)
        return changed | joined

    def delete_identity(self, number: int) -> set[str]:
        """Returns the ids of the selectors that changed."""
        before = self._identities.labels_of(number)
        if before is None:
            return set()
        left = self.selecting(before)
        for key in left:
            self._entries[key].members.discard(number)
        self._identities.delete(number)
        return left

    def _file(self, key: str, selector: LabelSelector) -> tuple[Term, ...]:
        """File a selector under the terms of one of its requirements: whatever it selects has one of them.

        The least crowded requirement is taken; of equal ones, one that says what a pod is rather than where.
        """
        choices = [
            (sum(len(self._filed.get(term, ())) for term in terms), requirement.key.startswith(labels.DERIVED), terms)
            for requirement in selector.requirements
            if (terms := _filing(requirement)) is not None
        ]
        terms = min(choices, key=lambda choice: choice[:2])[2] if choices else (ANYTHING,)
        for term in terms:
            self._filed.setdefault(term, set()).add(key)
        return terms


@dataclass(slots=True)
class NamedPorts:
    """The named container ports of every label set, counted over its pods."""

    _namespaces: dict[str, Namespace] = field(default_factory=dict)
    _pods: dict[PodKey, Pod] = field(default_factory=dict)
    _by_namespace: dict[str, set[PodKey]] = field(default_factory=dict)
    _given: dict[PodKey, tuple[str, frozenset[PortName]]] = field(default_factory=dict)
    _ports: dict[str, Counter[PortName]] = field(default_factory=dict)

    def put_namespace(self, namespace: Namespace) -> set[str]:
        """Returns the label sets (as text) whose ports changed."""
        self._namespaces[namespace.name] = namespace
        return self._retake(self._by_namespace.get(namespace.name, ()))

    def delete_namespace(self, name: str) -> set[str]:
        self._namespaces.pop(name, None)
        return self._retake(self._by_namespace.get(name, ()))

    def put_pod(self, pod: Pod) -> set[str]:
        key = (pod.namespace, pod.name)
        if pod.host_network or not any(port.name for port in pod.ports):
            return self.delete_pod(key)
        self._pods[key] = pod
        self._by_namespace.setdefault(pod.namespace, set()).add(key)
        return self._retake((key,))

    def delete_pod(self, key: PodKey) -> set[str]:
        if self._pods.pop(key, None) is None:
            return set()
        _remove(self._by_namespace, key[0], key)
        return self._retake((key,))

    def numbers(self, text: str, name: str, protocol: Protocol) -> set[tuple[Protocol, int]]:
        """(protocol, number) of the ports called `name` in this label set's pods; `protocol` "ANY": in any."""
        return {
            (spoken, number)
            for called, spoken, number in self._ports.get(text, ())
            if called == name and protocol in ("ANY", spoken)
        }

    def _retake(self, keys: Iterable[PodKey]) -> set[str]:
        changed: set[str] = set()
        for key in list(keys):
            before, now = self._given.pop(key, None), self._gives(key)
            if now is not None:
                self._given[key] = now
            if before != now:
                for given, by in ((before, -1), (now, 1)):
                    if given is not None:
                        changed.add(given[0])
                        self._add(*given, by)
        return changed

    def _gives(self, key: PodKey) -> tuple[str, frozenset[PortName]] | None:
        pod, namespace = self._pods.get(key), self._namespaces.get(key[0])
        if pod is None or namespace is None:
            return None
        named = frozenset((port.name, port.protocol, port.port) for port in pod.ports if port.name)
        return labels.labels_text(labels.canonical_labels(pod, namespace)), named

    def _add(self, text: str, ports: frozenset[PortName], by: int) -> None:
        counted = self._ports.setdefault(text, Counter())
        for port in ports:
            counted[port] += by
            if not counted[port]:
                del counted[port]
        if not counted:
            del self._ports[text]


def _terms(found: Mapping[str, str]) -> list[Term]:
    return [*found.items(), *((key, None) for key in found)]


def _filing(requirement: Requirement) -> tuple[Term, ...] | None:
    """Whatever meets the requirement has one of these terms; None when it can be met by absence."""
    match requirement.operator:
        case "In":
            return tuple((requirement.key, value) for value in sorted(set(requirement.values)))
        case "Exists":
            return ((requirement.key, None),)
        case _:
            return None


def _remove(index: dict[K, set[V]], key: K, value: V) -> None:
    """Take `value` out; a key without values is absent."""
    values = index.get(key)
    if values is not None:
        values.discard(value)
        if not values:
            del index[key]
