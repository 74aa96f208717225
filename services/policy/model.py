"""Policies become rules that name selectors; selectors name their members. Pure: no I/O, no clock.

A new identity is matched against the selectors once and changes only those that select it, so it is one small delta
each and no rule is said again. Named ports are resolved here, to selectors of those who have them (`named.py`), and
groups of networks to selectors of these (`networks.py`), and Services to whoever is behind them (`services.py`).

A policy that cannot be compiled, or whose rules the bus does not take, is said as nothing but the default deny that it
asks for; where it has rules that deny, it denies everyone, whatever others allow. So it never becomes "no rule
applies". It stays so, in `failed`, until the policy is changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import msgspec

from bus import labels
from bus.control import Action, Say, Unsay
from bus.messages import Message
from bus.messages.identity import Identity
from bus.messages.policy import PolicyRules, Selector, SelectorRule
from bus.messages.resources import (
    CIDRGroup,
    EndpointSlice,
    LabelSelector,
    Namespace,
    Peer,
    Pod,
    Policy,
    PortRange,
    Requirement,
    Rule,
    Service,
)
from bus.subjects import (
    CIDR_GROUP,
    ENDPOINT_SLICE,
    IDENTITY,
    NAMESPACE,
    POD,
    POLICY,
    RULES,
    SELECTOR,
    SERVICE,
    State,
    check_subject,
)
from services.policy.named import EVERYONE, NamedSelectors
from services.policy.names import NameSelectors, is_named
from services.policy.networks import NetworkSelectors, is_network, is_plain_network
from services.policy.services import Services
from services.policy.store import Identities, NamedPorts, Selectors

ENTITIES = frozenset({*labels.RESERVED, "all", "cluster", "none"})
POD_ENTITIES = frozenset({"all", "cluster"})
"""Entities among which every pod is, and so whoever has a named port."""

NOT_TAKEN = "the bus does not take its rules"
"""Why a policy fails that compiles, but to more than one message may hold."""

Report = Callable[[str, str], None]
"""Told about each policy that does not compile: why, and which, as "CiliumNetworkPolicy/default/rule1"."""


@dataclass(slots=True)
class _Compiled:
    """A policy as it was taken: its selectors are referred to, by place."""

    policy: Policy
    subject: str
    peers: list[list[str]]  # for each of `policy.rules`, then for each of `policy.denies`
    failed: bool


def _quiet(reason: str, policy: str) -> None:
    pass


class PolicyModel:
    """What `run_control` runs. `failed` says, by subject, why a policy does not compile; `failures` counts them."""

    owner: ClassVar[str] = "policy"
    hears: ClassVar[tuple[State[Message], ...]] = (
        *(POLICY, IDENTITY, POD, NAMESPACE),
        *(CIDR_GROUP, SERVICE, ENDPOINT_SLICE),
    )
    says: ClassVar[tuple[State[Message], ...]] = (RULES, SELECTOR)

    def __init__(self, report: Report = _quiet) -> None:
        self._report = report
        self._identities = Identities()
        self._selectors = Selectors(self._identities)
        self._networks = NetworkSelectors()
        self._names = NameSelectors()
        self._services = Services()
        self._ports = NamedPorts()
        self._named = NamedSelectors(self._identities, self._selectors, self._ports)
        self._policies: dict[str, Policy] = {}
        self._compiled: dict[str, _Compiled] = {}
        self._said_rules: dict[str, PolicyRules | None] = {}  # None: there may be any value, for ours was refused
        self._said_selectors: dict[str, Selector | None] = {}
        self._next_rules: dict[str, PolicyRules | None] = {}  # compiled, and waiting for the selectors; None: gone
        self._naming: dict[str, set[str]] = {}  # selector id -> policies with named ports that depend on its members
        self._naming_any: set[str] = set()  # policies with named ports that depend on every identity
        self._naming_services: set[str] = set()  # policies that name Services
        self._dirty_policies: set[str] = set()
        self._dirty_rules: set[str] = set()
        self._dirty_selectors: set[str] = set()
        self._released: set[str] = set()  # selectors that lost a reference and may have none left
        self._not_taken: set[str] = set()  # policies whose rules, or selectors, were refused
        self._unsayable: set[str] = set()  # selectors that were refused, and go without members
        self.failed: dict[str, str] = {}
        self.failures: Counter[str] = Counter()

    # hearing

    def put(self, subject: str, message: Message) -> None:
        """`subject` has this value now. Raises: ValueError: it makes no sense; nothing is changed."""
        check_subject(subject, message)
        match message:
            case Policy():
                if self._policies.get(subject) != message:
                    self._policies[subject] = message
                    self._not_taken.discard(subject)
                    self._dirty_policies.add(subject)
            case Identity():
                if not labels.IDENTITY_MIN <= message.number <= labels.IDENTITY_MAX:
                    raise ValueError(f"{message.number} is not the number of a label set")
                if self._identities.labels_of(message.number) != message.labels:
                    self._moved(self._selectors.put_identity(message.number, message.labels))
            case Pod():
                self._renamed(self._ports.put_pod(message))
            case Namespace():
                self._renamed(self._ports.put_namespace(message))
            case CIDRGroup():
                self._dirty_selectors |= self._networks.put_group(message)
            case Service():
                self._services.put_service(message)
                self._dirty_policies |= self._naming_services
            case EndpointSlice():
                self._services.put_slice(message)
                self._dirty_policies |= self._naming_services
            case _:
                raise ValueError(f"{subject} is not heard by policy")

    def delete(self, subject: str) -> None:
        if POLICY.has(subject):
            if self._policies.pop(subject, None) is not None:
                self._not_taken.discard(subject)
                self._dirty_policies.add(subject)
        elif IDENTITY.has(subject):
            number = IDENTITY.parse(subject)[0]
            if number.isdecimal():
                self._moved(self._selectors.delete_identity(int(number)))
        elif POD.has(subject):
            namespace, name = POD.parse(subject)
            self._renamed(self._ports.delete_pod((namespace, name)))
        elif NAMESPACE.has(subject):
            self._renamed(self._ports.delete_namespace(*NAMESPACE.parse(subject)))
        elif CIDR_GROUP.has(subject):
            self._dirty_selectors |= self._networks.delete_group(*CIDR_GROUP.parse(subject))
        elif SERVICE.has(subject):
            namespace, name = SERVICE.parse(subject)
            self._services.delete_service((namespace, name))
            self._dirty_policies |= self._naming_services
        elif ENDPOINT_SLICE.has(subject):
            namespace, name = ENDPOINT_SLICE.parse(subject)
            self._services.delete_slice((namespace, name))
            self._dirty_policies |= self._naming_services
        else:
            raise ValueError(f"{subject} is not heard by policy")

    def _moved(self, selectors: set[str]) -> None:
        """The members of these changed."""
        self._dirty_selectors |= selectors
        for key in selectors:
            self._dirty_rules |= self._naming.get(key, set())
        self._dirty_rules |= self._naming_any

    def _renamed(self, texts: set[str]) -> None:
        """The named ports of these label sets changed."""
        for text in texts:
            for number in self._identities.with_text(text):
                found = self._identities.labels_of(number)
                for key in self._selectors.selecting(found or {}):
                    self._dirty_rules |= self._naming.get(key, set())
                self._dirty_rules |= self._naming_any

    # acting

    def act(self) -> Iterable[Action]:
        """One stage of what is to be done; the next call, made when this one is written, goes on.

        Rules wait for selectors never said before, and selectors named no more for the rules that named them: so at
        every moment all that rules name is there, in whatever order the writes of one stage arrive.
        """
        for subject in sorted(self._dirty_policies):
            self._dirty_rules.add(subject)
            before = self._take(subject)
            for key in before:
                next(known for known in self._known_selectors() if key in known).release(key)
            self._released.update(before)
        self._dirty_policies.clear()
        self._compile_rules()
        known = set(self._said_selectors)
        selectors = list(self._changed_selectors())
        if any(say.message.id not in known for say in selectors if isinstance(say.message, Selector)):
            return selectors
        return [*selectors, *self._changed_rules()] or list(self._gone_selectors())

    def said(self) -> Iterable[str]:
        yield from self._said_rules
        for key in self._said_selectors:
            yield SELECTOR.of(key)

    def refused(self, subject: str, why: str) -> None:
        """What was said of `subject` was not written, nor will be. The policy fails, and only denies.

        A selector that is refused is said without members, and fails the policies whose rules name it. As the subject
        of a policy it does: nodes judge by the labels whom a policy governs.
        """
        if RULES.has(subject):
            self._said_rules[subject] = None
            self._give_up(POLICY.of(*RULES.parse(subject)))
        elif SELECTOR.has(subject):
            (key,) = SELECTOR.parse(subject)
            self._said_selectors[key] = None
            if key not in self._unsayable:
                self._unsayable.add(key)
                self._dirty_selectors.add(key)
                for policy, taken in self._compiled.items():
                    if key in self._named.of(policy) or any(key in keys for keys in taken.peers):
                        self._give_up(policy)

    def _give_up(self, subject: str) -> None:
        """Once for each policy, so that a default deny that is refused as well is not tried for ever."""
        compiled = self._compiled.get(subject)
        if compiled is not None and not compiled.failed:
            self._not_taken.add(subject)
            self._dirty_policies.add(subject)

    def _changed_selectors(self) -> Iterator[Say]:
        for key in sorted(self._dirty_selectors):
            message = self._message(key)
            if message is not None and key in self._unsayable:
                message = msgspec.structs.replace(message, members=[], networks=[], names=[], partial=True)
            if message is not None and self._said_selectors.get(key) != message:
                self._said_selectors[key] = message
                yield Say(SELECTOR.of(key), message)
        self._dirty_selectors.clear()

    def _message(self, key: str) -> Selector | None:
        """What to say of a selector that is referred to; None: none is."""
        for known in self._known_selectors():
            if key in known:
                return known.message(key)
        return self._named.message(key)

    def _known_selectors(self) -> tuple[Selectors, NetworkSelectors, NameSelectors]:
        """No id is of two of them."""
        return self._selectors, self._networks, self._names

    def _gone_selectors(self) -> Iterator[Unsay]:
        for key in sorted(self._released):
            if self._message(key) is None:
                self._unsayable.discard(key)
                if key in self._said_selectors:
                    del self._said_selectors[key]
                    yield Unsay(SELECTOR.of(key))
        self._released.clear()

    def _compile_rules(self) -> None:
        """Compile what has changed; it waits in `_next_rules` until what it names is said."""
        self._named.anew()
        for subject in sorted(self._dirty_rules):
            compiled = self._compiled.get(subject)
            named: dict[str, Selector] = {}
            self._next_rules[RULES.of(*POLICY.parse(subject))] = (
                None if compiled is None else self._rules(compiled, named)
            )
            changed, left = self._named.refer(subject, named)
            self._dirty_selectors |= changed
            self._released |= left
        self._dirty_rules.clear()

    def _changed_rules(self) -> Iterator[Say | Unsay]:
        for subject, message in sorted(self._next_rules.items()):
            if message is None:
                if subject in self._said_rules:
                    del self._said_rules[subject]
                    yield Unsay(subject)
            elif self._said_rules.get(subject) != message:
                self._said_rules[subject] = message
                yield Say(subject, message)
        self._next_rules.clear()

    # compiling

    def _take(self, subject: str) -> list[str]:
        """Refer to the selectors of the policy as it is now. Returns those referred to before, to be released."""
        before = self._compiled.pop(subject, None)
        held = [] if before is None else [before.subject, *(key for keys in before.peers for key in keys)]
        for key in held:
            naming = self._naming.get(key)
            if naming is not None:
                naming.discard(subject)
                if not naming:
                    del self._naming[key]
        self._naming_any.discard(subject)
        self._naming_services.discard(subject)
        self.failed.pop(subject, None)
        policy = self._policies.get(subject)
        if policy is not None:
            self._compiled[subject] = self._compile(subject, policy)
        return held

    def _compile(self, subject: str, policy: Policy) -> _Compiled:
        wrong = NOT_TAKEN if subject in self._not_taken else _problem(policy)
        if wrong is not None:
            self.failed[subject] = wrong
            self.failures[wrong] += 1
            self._report(wrong, f"{policy.kind}/{policy.namespace}/{policy.name}")
            return _Compiled(policy, self._acquire(_governed(policy)), [], failed=True)
        compiled = _Compiled(policy, self._acquire(policy.subject), [], failed=False)
        for rule in (*policy.rules, *policy.denies):
            peers = list(rule.peers)
            for peer in rule.peers:
                if peer.services is not None:
                    self._naming_services.add(subject)
                    peers += self._services.behind(peer.services)
            keys = [self._acquire(peer.selector) for peer in peers if peer.selector is not None]
            networks = [peer for peer in peers if is_network(peer)]
            if networks:
                keys.append(self._referred(self._networks.acquire(networks)))
            names = [peer for peer in peers if is_named(peer)]
            if names:
                keys.append(self._referred(self._names.acquire(names)))
            compiled.peers.append(keys)
            if any(port.name for port in rule.ports):
                for key in [compiled.subject] if rule.direction == "ingress" else keys:
                    self._naming.setdefault(key, set()).add(subject)
                if rule.direction == "egress" and _reaches_every_pod(rule):
                    self._naming_any.add(subject)
        return compiled

    def _acquire(self, selector: LabelSelector) -> str:
        return self._referred(self._selectors.acquire(selector))

    def _referred(self, key: str) -> str:
        if self._said_selectors.get(key) is None or key in self._unsayable:  # which may fit by now
            self._unsayable.discard(key)
            self._dirty_selectors.add(key)
        return key

    def _rules(self, compiled: _Compiled, named: dict[str, Selector]) -> PolicyRules:
        """What to say of a policy. Adds the selectors for its named ports to `named`."""
        policy = compiled.policy
        deny_ingress, deny_egress = policy.deny_ingress_by_default, policy.deny_egress_by_default
        rules: list[SelectorRule] = []
        denies: list[SelectorRule] = []
        if compiled.failed:
            directions = {rule.direction for rule in (*policy.rules, *policy.denies)}
            deny_ingress |= "ingress" in directions
            deny_egress |= "egress" in directions
            if not deny_ingress and not deny_egress:
                deny_ingress = deny_egress = True
            denied = sorted({rule.direction for rule in policy.denies})
            denies = [SelectorRule(direction=direction, any_peer=True) for direction in denied]
        else:
            allowing = len(policy.rules)
            for rule, keys in zip(policy.rules, compiled.peers[:allowing], strict=True):
                rules += self._rule(rule, sorted(set(keys)), compiled.subject, named)
            for rule, keys in zip(policy.denies, compiled.peers[allowing:], strict=True):
                denies += self._rule(rule, sorted(set(keys)), compiled.subject, named)
        return PolicyRules(
            kind=policy.kind,
            namespace=policy.namespace,
            name=policy.name,
            subject=compiled.subject,
            rules=rules,
            deny_ingress_by_default=deny_ingress,
            deny_egress_by_default=deny_egress,
            denies=denies,
        )

    def _rule(
        self, rule: Rule, selectors: list[str], subject: str, named: dict[str, Selector]
    ) -> Iterator[SelectorRule]:
        """One section. None at all when it is for named ports that nobody has: no ports would mean every port."""
        numbered = [port for port in rule.ports if not port.name]
        entities = sorted({peer.entity for peer in rule.peers if peer.entity})
        if numbered or not rule.ports:
            yield SelectorRule(
                direction=rule.direction,
                selectors=selectors,
                entities=entities,
                any_peer=rule.any_peer,
                ports=numbered,
            )
        if rule.direction == "ingress":
            bases = [subject]
        elif _reaches_every_pod(rule):
            bases = [EVERYONE]
        else:
            bases = [key for key in selectors if key in self._selectors]  # elsewhere nobody has a name for a port
        having = {each.id: each for base in bases for each in self._named.having(base, rule.ports)}
        named |= having
        for each in having.values():
            if rule.direction == "ingress":
                yield SelectorRule(
                    direction="ingress",
                    selectors=selectors,
                    entities=entities,
                    any_peer=rule.any_peer,
                    ports=_numbers(each),
                    subject=each.id,
                )
            else:
                yield SelectorRule(direction="egress", selectors=[each.id], ports=_numbers(each))


def _numbers(selector: Selector) -> list[PortRange]:
    """The number of the named port that makes `selector`, with its name: not every pod of a member calls it so."""
    port = selector.having
    return [] if port is None else [PortRange(protocol=port.protocol, port=port.port, name=port.name)]


def _reaches_every_pod(rule: Rule) -> bool:
    return rule.any_peer or any(peer.entity in POD_ENTITIES for peer in rule.peers)


def _governed(policy: Policy) -> LabelSelector:
    """Whom a policy that does not compile denies: those that it selects, or, where that is unclear, its namespace, or,
    where it has none, everyone."""
    if _selector_problem(policy.subject) is None:
        return policy.subject
    if not policy.namespace:
        return LabelSelector()
    return LabelSelector(requirements=[Requirement(key=labels.NAMESPACE, operator="In", values=[policy.namespace])])


def _problem(policy: Policy) -> str | None:
    """Why the policy has no meaning; None when it has one."""
    wrong = _selector_problem(policy.subject)
    if wrong is not None:
        return wrong
    allowing_egress = [rule for rule in policy.rules if rule.direction == "egress"]
    for rule in (*policy.rules, *policy.denies):
        if rule not in allowing_egress and any(map(is_named, rule.peers)):
            return "a DNS name stands elsewhere than where egress is allowed"  # nobody knows all that it stands for
        for peer in rule.peers:
            if (wrong := _peer_problem(peer)) is not None:
                return wrong
        for port in rule.ports:
            if (wrong := _port_problem(port)) is not None:
                return wrong
    return None


def _peer_problem(peer: Peer) -> str | None:
    by_name = (bool(peer.cidr), bool(peer.cidr_group), bool(peer.dns_name), bool(peer.dns_pattern))
    said = (*by_name, *(each is not None for each in (peer.selector, peer.cidr_groups, peer.services)))
    if sum(said) + bool(peer.entity) > 1:
        return "a peer is two things"
    if not any(said):
        return None if peer.entity in ENTITIES else "unknown entity"
    if not all(map(is_plain_network, [*([peer.cidr] if peer.cidr else []), *peer.except_cidrs])):
        return "not a network"
    for selector in (peer.selector, peer.cidr_groups, peer.services.selector if peer.services else None):
        if selector is not None and (wrong := _selector_problem(selector)) is not None:
            return wrong
    return None


def _selector_problem(selector: LabelSelector) -> str | None:
    for requirement in selector.requirements:
        if (requirement.operator in ("In", "NotIn")) != bool(requirement.values):
            return "an expression's values do not fit its operator"
    return None


def _port_problem(port: PortRange) -> str | None:
    if port.name:
        return "a named port has a number as well" if port.port or port.end_port else None
    if not 0 <= port.port <= 65535 or (port.end_port and not max(port.port, 1) <= port.end_port <= 65535):
        return "not a port range"
    return None
