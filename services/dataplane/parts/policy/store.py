"""Rules and selectors as heard, and which local identities each concerns. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Set

from bus.labels import selects
from bus.messages.policy import PolicyRules, Selector
from services.dataplane.parts.policy.entries import (
    ENTRIES_MAX,
    VERSIONS,
    EndpointPolicy,
    amended,
    denied,
    entries_for,
    governs,
    referred,
)
from services.dataplane.parts.policy.learned import Learned
from services.dataplane.parts.policy.networks import Networks
from services.dataplane.shapes.mode import DEFAULT_MODE

MOST_MOVED = 1000  # peers, at which it is cheaper to expand anew
PolicyName = tuple[str, str, str]  # kind, namespace, name


class PolicyStore:
    """Every change returns the local identities whose `policy_of` may be another now, and looks only at those."""

    def __init__(self) -> None:
        self.entries_max = ENTRIES_MAX
        self.mode = DEFAULT_MODE
        self.networks = Networks()
        self._learned = Learned()
        self._rules: dict[PolicyName, PolicyRules] = {}
        self._selectors: dict[str, Selector] = {}
        self._by_subject: dict[str, set[PolicyName]] = defaultdict(set)
        self._by_rule: dict[str, set[PolicyName]] = defaultdict(set)
        self._labels: dict[int, Mapping[str, str]] = {}  # by local identity
        self._governing: dict[int, set[PolicyName]] = {}  # by local identity
        self._governed: dict[PolicyName, set[int]] = defaultdict(set)
        self._moved: dict[int, set[int] | None] = {}  # local identity -> peers that are other since it was expanded
        """None: anything may be."""
        self._expanded: dict[int, EndpointPolicy] = {}  # as it was the last time

    @property
    def identities(self) -> frozenset[int]:
        """The local identities."""
        return frozenset(self._governing)

    def add_identity(self, identity: int, labels: Mapping[str, str]) -> set[int]:
        """A pod of this identity, which stands for `labels`, lives here."""
        if self._labels.get(identity) == labels:
            return set()
        self.remove_identity(identity)
        self._labels[identity] = labels
        self._governing[identity] = set()
        for subject, names in self._by_subject.items():
            selector = self._selectors.get(subject)
            if selector is None or selects(selector.selector, labels):
                for name in names:
                    self._bind(name, identity)
        return {identity}

    def remove_identity(self, identity: int) -> set[int]:
        """The last pod of this identity is gone."""
        if self._labels.pop(identity, None) is None:
            return set()
        self._moved.pop(identity, None)
        self._expanded.pop(identity, None)
        for name in self._governing.pop(identity):
            self._governed[name].discard(identity)
        return {identity}

    def put_rules(self, rules: PolicyRules) -> set[int]:
        name = (rules.kind, rules.namespace, rules.name)
        if self._rules.get(name) == rules:
            return set()
        governed = [each for each, labels in self._labels.items() if governs(rules, each, self._selectors, labels)]
        touched = self.delete_rules(*name)  # from here on nothing fails: it is all of the old rules or all of the new
        self._rules[name] = rules
        self._by_subject[rules.subject].add(name)
        for key in _named_in(rules):
            self._by_rule[key].add(name)
        for identity in governed:
            self._bind(name, identity)
        return self._anew(touched | self._governed[name])

    def delete_rules(self, kind: str, namespace: str, name: str) -> set[int]:
        key = (kind, namespace, name)
        rules = self._rules.pop(key, None)
        if rules is None:
            return set()
        _forget(self._by_subject, rules.subject, key)
        for named in _named_in(rules):
            _forget(self._by_rule, named, key)
        touched = self._governed.pop(key, set())
        for identity in touched:
            self._governing[identity].discard(key)
        return self._anew(touched)

    def put_selector(self, selector: Selector) -> set[int]:
        before = self._selectors.get(selector.id)
        self._selectors[selector.id] = selector
        if before == selector:
            return set()
        named = self._named_by(selector.id)
        if before is None or before.selector != selector.selector or before.partial != selector.partial:
            touched = self._anew(self._reselect(selector.id) | named)
        else:
            touched = self._move(named, set(before.members) ^ set(selector.members))
        self._learned.put_selector(selector.id, selector.names)
        return touched | self._mean(selector.id)

    def delete_selector(self, key: str) -> set[int]:
        """Its members are nobody's peers any more; policies for it (there should be none) now deny all."""
        if self._selectors.pop(key, None) is None:
            return set()
        self._learned.put_selector(key, [])
        return self._anew(self._reselect(key) | self._named_by(key)) | self._mean(key)

    def put_name(self, name: str, addresses: Iterable[str]) -> set[int]:
        """A DNS name has these addresses here; without any it is forgotten. Raises: ValueError: one is no address."""
        return set[int]().union(*map(self._mean, self._learned.put_name(name, addresses)))

    def policy_of(self, identity: int, closed: Collection[int] = ()) -> EndpointPolicy:
        """All that holds for a local identity; for one that is not local, `denied`. `closed`: as for `entries_for`.

        Where only a few peers have moved since the last time, it costs little more than they.
        """
        names = self._governing.get(identity)
        if names is None:
            return denied(identity)
        moved, before = self._moved.get(identity), self._expanded.get(identity)
        found = None
        if before is not None and moved is not None and not closed and len(moved) <= MOST_MOVED:
            found = amended(before, self._expand(identity, names, (), moved), moved, self.entries_max)
        if found is None:
            found = self._expand(identity, names, closed)
        self._expanded[identity] = found
        self._moved[identity] = set()
        return found

    def _expand(
        self, identity: int, names: Iterable[PolicyName], closed: Collection[int], only: Set[int] | None = None
    ) -> EndpointPolicy:
        return entries_for(
            identity,
            [self._rules[name] for name in names],
            self._selectors,
            self._labels[identity],
            networks=self.networks,
            limit=self.entries_max,
            closed=closed,
            only=only,
            mode=self.mode,
        )

    def _anew(self, identities: set[int]) -> set[int]:
        """Of these, anything may be other than before."""
        self._moved.update(dict.fromkeys(identities))
        return identities

    def _move(self, identities: set[int], peers: set[int]) -> set[int]:
        """To these, only what is for these peers; but whom a rule is for may have changed with them."""
        for identity in identities:
            moved = self._moved.get(identity)
            if moved is not None:
                self._moved[identity] = None if identity in peers else moved | peers
        return identities

    def _mean(self, key: str) -> set[int]:
        """What networks the selector means, for itself and by names. Others around them may mean more or fewer numbers
        by that."""
        said = self._selectors[key].networks if key in self._selectors else []
        changed = self.networks.put(key, [*said, *self._learned.networks(key)])
        touched: set[int] = set()
        for each, before in changed.items():
            named = self._named_by(each)
            if before is None:
                touched |= self._anew(named)
            elif named:
                touched |= self._move(named, set(before ^ self.networks.meant_by(each)))
        if changed:
            touched |= self._anew(set[int]().union(*(self._named_by(each) for each in VERSIONS)))
        return touched

    def _named_by(self, key: str) -> set[int]:
        """Whom the policies govern whose rules name this selector."""
        return set().union(*(self._governed[name] for name in self._by_rule.get(key, ())))

    def _reselect(self, key: str) -> set[int]:
        """Judge anew who is governed through this selector, which came, went or says something else. Those whom its
        policies govern before and after count too: what the policies say of them is another thing now."""
        touched: set[int] = set()
        names = self._by_subject.get(key, ())
        selector = self._selectors.get(key)
        for identity, labels in self._labels.items() if names else ():
            now = selector is None or selects(selector.selector, labels)
            for name in names:
                if now or identity in self._governed[name]:
                    touched.add(identity)
                    (self._bind if now else self._unbind)(name, identity)
        return touched

    def _bind(self, name: PolicyName, identity: int) -> None:
        self._governed[name].add(identity)
        self._governing[identity].add(name)

    def _unbind(self, name: PolicyName, identity: int) -> None:
        self._governed[name].discard(identity)
        self._governing[identity].discard(name)


def _named_in(rules: PolicyRules) -> set[str]:
    """Selectors that its rules are about, and entities that are more than their number."""
    every = [*rules.rules, *rules.denies]
    return {key for rule in every for key in (*referred(rule), *VERSIONS.keys() & set(rule.entities))}


def _forget(index: dict[str, set[PolicyName]], key: str, name: PolicyName) -> None:
    names = index.get(key)
    if names is not None:
        names.discard(name)
        if not names:
            del index[key]
