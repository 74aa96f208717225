"""Services, their addresses, Nodes and policies -> which node announces which address. Pure.

An address keeps its node as long as that lives and a policy selects both. Else it goes to the node with the fewest, of
those that may have it; of equals to the one that a hash of both says: who begins anew spreads them the same way.

Source: Cilium's documentation, "L2 Announcements" (what a policy selects, which classes of load balancers are meant).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import ClassVar, TypeVar

from bus.addresses import order, parse, plain
from bus.control import Action, Amend, Say, Unsay
from bus.labels import selects, service_labels
from bus.messages import Message
from bus.messages.ipam import ServiceAddress
from bus.messages.l2announce import Announcement, HeldAddress, Lease, PolicyUse
from bus.messages.resources import L2AnnouncementPolicy, Node, Service
from bus.subjects import (
    ANNOUNCEMENT,
    L2_LEASE,
    L2_POLICY,
    L2_POLICY_USE,
    NODE,
    SERVICE,
    SERVICE_ADDRESS,
    State,
    check_subject,
)

CLASSES = ("", "io.cilium/l2-announcer")
"""Values of loadBalancerClass of Services whose addresses of a pool are announced; other classes are for others."""

NODES = "nodes"  # whose leases: there are no others
NAMED = 10  # addresses that nobody announces, in what is said of a policy

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Name = tuple[str, str]  # (namespace, name) of a Service


@dataclass(slots=True)
class _Wanted:
    """An address that is to be announced."""

    services: set[str] = field(default_factory=set)
    policies: set[str] = field(default_factory=set)


class Announcing:
    """`bus.control.Model` of "l2announce"; with the nodes that live, which its runner tells."""

    owner: ClassVar[str] = "l2announce"
    hears: ClassVar[tuple[State[Message], ...]] = (SERVICE, SERVICE_ADDRESS, NODE, L2_POLICY, ANNOUNCEMENT, L2_LEASE)
    says: ClassVar[tuple[State[Message], ...]] = (ANNOUNCEMENT, L2_LEASE, L2_POLICY_USE)

    def __init__(self, seconds: float) -> None:
        """`seconds`: that leases are to last."""
        self._seconds = seconds
        self._lease: Lease | None = None  # as the log has it
        self._is_settled = False  # no longer ones are granted still
        self._services: dict[Name, Service] = {}
        self._matching: dict[
            Name, list[L2AnnouncementPolicy]
        ] = {}  # policies that select a Service, of those asked for
        self._addresses: dict[str, ServiceAddress] = {}
        self._given: defaultdict[Name, set[str]] = defaultdict(set)  # addresses in `_addresses`, by who has them
        self._nodes: dict[str, Node] = {}
        self._policies: dict[str, L2AnnouncementPolicy] = {}
        self._held: dict[str, Announcement] = {}  # by address, as the log has it
        self._of_node: defaultdict[str, set[str]] = defaultdict(set)  # addresses in `_held`, by node
        self._unreadable: set[str] = set()  # addresses that somebody has by the log, not known who
        self._uses: dict[str, PolicyUse] = {}  # as they were said
        self._moves: dict[str, str] = {}  # addresses that are to go from a node that lives to another
        self.live: frozenset[str] | None = None  # None: nobody has told yet, so nothing is decided

    # -- what is heard

    def put(self, subject: str, message: Message) -> None:
        """`subject` has this value now.

        Raises: ValueError: it makes no sense. An address then counts as somebody's; else nothing changes.
        """
        try:
            check_subject(subject, message)
            if isinstance(message, (Announcement, ServiceAddress)) and parse(message.address) is None:
                raise ValueError(f"{message.address} is not an address")
        except ValueError:
            if ANNOUNCEMENT.has(subject):
                self.taken(subject)
            raise
        match message:
            case Service():
                self._set_service((message.namespace, message.name), message)
            case ServiceAddress():
                self._set_address(message.address, message)
            case Node():
                self._nodes[message.name] = message
            case L2AnnouncementPolicy():
                self._set_policy(message.name, message)
            case Lease():
                self._lease = message
            case Announcement():
                self._set_held(message.address, message)

    def delete(self, subject: str) -> None:
        if SERVICE.has(subject):
            namespace, name = SERVICE.parse(subject)
            self._set_service((namespace, name), None)
        elif SERVICE_ADDRESS.has(subject):
            self._set_address(SERVICE_ADDRESS.parse(subject)[0], None)
        elif NODE.has(subject):
            self._nodes.pop(NODE.parse(subject)[0], None)
        elif L2_POLICY.has(subject):
            self._set_policy(L2_POLICY.parse(subject)[0], None)
        elif L2_LEASE.has(subject):
            self._lease = None
        elif ANNOUNCEMENT.has(subject):
            self._set_held(ANNOUNCEMENT.parse(subject)[0], None)

    def taken(self, subject: str) -> None:
        """Somebody has it whom nobody here knows: left alone, until its subject is put or deleted."""
        if L2_LEASE.has(subject):  # of a later version, which says how long leases may be: nothing is granted
            return
        (address,) = ANNOUNCEMENT.parse(subject)
        self._set_held(address, None)
        self._unreadable.add(address)

    def _set_service(self, name: Name, service: Service | None) -> None:
        self._matching.pop(name, None)
        _keep(self._services, name, service)

    def _set_policy(self, name: str, policy: L2AnnouncementPolicy | None) -> None:
        self._matching.clear()
        _keep(self._policies, name, policy)

    def _set_address(self, address: str, given: ServiceAddress | None) -> None:
        before = self._addresses.get(address)
        for each in before.services if before else ():
            self._given[each.namespace, each.name].discard(address)
        _keep(self._addresses, address, given)
        for each in given.services if given else ():
            self._given[each.namespace, each.name].add(address)

    def _set_held(self, address: str, held: Announcement | None) -> None:
        self._unreadable.discard(address)
        before = self._held.pop(address, None)
        if before is not None:
            self._of_node[before.node].discard(address)
        if held is not None:
            self._held[address] = held
            self._of_node[held.node].add(address)

    # -- what its runner tells, and asks

    def lives(self, nodes: frozenset[str] | None) -> None:
        """These nodes may hold what they were granted; None: it is not known any more."""
        self.live = nodes
        self._is_settled &= nodes is not None

    def settled(self) -> None:
        """Whatever others have granted has run out."""
        self._is_settled = True

    @property
    def lease_seconds(self) -> float:
        """That leases may last, by the log: nobody grants longer ones, or has for as long."""
        return self._lease.seconds if self._lease else 0.0

    @property
    def holders(self) -> frozenset[str]:
        """Nodes that announce something by the log, or did and may still be sent to."""
        return frozenset(node for held in self._held.values() for node in (held.node, *held.before))

    def assigned(self, node: str) -> dict[str, HeldAddress]:
        """The addresses that this node is to announce, with how; none is granted by that."""
        found = {}
        for address in self._of_node.get(node, ()):
            held = self._held[address]
            interfaces = self._interfaces(held)
            found[address] = HeldAddress(address=address, granted=False, interfaces=interfaces, tell=not held.before)
        return found

    def _interfaces(self, held: Announcement) -> list[str]:
        policies = [self._policies[name] for name in held.policies if name in self._policies]
        if not policies or not all(each.interfaces for each in policies):
            return []
        return sorted({pattern for each in policies for pattern in each.interfaces})

    def rebalance(self) -> None:
        """Plan at most one move from each node that has more than another one by two or more."""
        loads = self._loads()
        live = self.live or frozenset()
        wanted = self._wanted()
        candidates_of = self._candidates(live)
        for node in sorted(live, key=lambda each: (-loads[each], each)):
            for address in sorted(self._of_node.get(node, ()), key=order):
                candidates = candidates_of(wanted[address]) if address in wanted else {}
                least = min((loads[each] for each in candidates), default=loads[node])
                if node in candidates and loads[node] >= least + 2:
                    to = self._choice(address, candidates, loads)
                    self._moves[address] = to
                    loads[node] -= 1
                    loads[to] += 1
                    break

    # -- what follows

    def act(self) -> Iterable[Action]:
        if self.live is None:
            return []
        wanted = self._wanted()
        candidates_of = self._candidates(self.live)
        loads = self._loads()
        after: dict[str, Announcement] = {}
        homeless = []
        for address, want in wanted.items():
            candidates = candidates_of(want)
            held = self._held.get(address)
            node = self._moves.get(address, held.node if held else "")
            if node in candidates:
                after[address] = self._announcement(address, node, want, candidates[node])
            elif candidates:
                homeless.append((address, candidates))
        self._moves = {address: node for address, node in self._moves.items() if address in after}
        for address, candidates in sorted(homeless, key=lambda each: order(each[0])):
            node = self._choice(address, candidates, loads)
            loads[node] += 1
            after[address] = self._announcement(address, node, wanted[address], candidates[node])
        actions: list[Action] = [
            *self._amended_lease(),
            *(
                Amend(ANNOUNCEMENT.of(address), self._held.get(address), after.get(address))
                for address in sorted(self._held.keys() | after.keys(), key=order)
                if address not in self._unreadable and self._held.get(address) != after.get(address)
            ),
        ]
        self._moves = {address: node for address, node in self._moves.items() if self._is_on_its_way(address, node)}
        if not actions:  # else how policies do is not known before that is answered
            actions.extend(self._tell(wanted, self.live))
        return actions

    def _amended_lease(self) -> Iterator[Action]:
        """Longer ones at once, before any is granted; shorter ones when nobody can hold a longer one."""
        if self._seconds > self.lease_seconds or (self._is_settled and self._seconds < self.lease_seconds):
            yield Amend(L2_LEASE.of(NODES), self._lease, Lease(name=NODES, seconds=self._seconds))

    def said(self) -> Iterable[str]:
        uses = self._policies if self.live is None else self._uses
        held = map(ANNOUNCEMENT.of, (*self._held, *self._unreadable))
        return [*held, L2_LEASE.of(NODES), *map(L2_POLICY_USE.of, uses)]

    def _announcement(self, address: str, node: str, want: _Wanted, policies: list[str]) -> Announcement:
        held = self._held.get(address)
        before = ({*held.before, held.node} & (self.live or frozenset())) - {node} if held is not None else set()
        return Announcement(
            address=address, node=node, services=sorted(want.services), policies=policies, before=sorted(before)
        )

    def _is_on_its_way(self, address: str, node: str) -> bool:
        held = self._held.get(address)
        return held is not None and held.node != node

    def _loads(self) -> Counter[str]:
        return Counter({node: len(addresses) for node, addresses in self._of_node.items()})

    def _wanted(self) -> dict[str, _Wanted]:
        nodes = {plain(address) for node in self._nodes.values() for address in node.addresses}
        found: dict[str, _Wanted] = {}
        for name, service in self._services.items():
            for policy in self._policies_of(name, service):
                for address in self._addresses_of(name, service, policy):
                    if address not in nodes:  # which answers for it by itself
                        want = found.setdefault(address, _Wanted())
                        want.services.add("/".join(name))
                        want.policies.add(policy.name)
        return found

    def _policies_of(self, name: Name, service: Service) -> list[L2AnnouncementPolicy]:
        if name not in self._matching:
            labels = service_labels(service)
            every = self._policies.values()
            self._matching[name] = [each for each in every if each.services is None or selects(each.services, labels)]
        return self._matching[name]

    def _addresses_of(self, name: Name, service: Service, policy: L2AnnouncementPolicy) -> Iterator[str]:
        if policy.external_addresses:
            yield from (address for each in service.external_addresses if parse(address := plain(each)) is not None)
        balancer = service.load_balancer
        if policy.load_balancer_addresses and balancer is not None and balancer.load_balancer_class in CLASSES:
            yield from self._given.get(name, ())

    def _selected(self) -> dict[str, set[str]]:
        """By policy: nodes that it selects."""
        return {
            policy.name: {
                node.name for node in self._nodes.values() if policy.nodes is None or selects(policy.nodes, node.labels)
            }
            for policy in self._policies.values()
        }

    def _candidates(self, live: frozenset[str]) -> Callable[[_Wanted], dict[str, list[str]]]:
        """Of an address the nodes that may announce it and live, each with the policies by which it does."""
        selected = self._selected()
        known: dict[tuple[str, ...], dict[str, list[str]]] = {}

        def candidates(want: _Wanted) -> dict[str, list[str]]:
            policies = tuple(sorted(want.policies))
            if policies not in known:
                found: defaultdict[str, list[str]] = defaultdict(list)
                for policy in policies:
                    for node in selected[policy] & live:
                        found[node].append(policy)
                known[policies] = dict(found)
            return known[policies]

        return candidates

    def _choice(self, address: str, candidates: Collection[str], loads: Mapping[str, int]) -> str:
        least = min(loads.get(node, 0) for node in candidates)
        return min((each for each in candidates if loads.get(each, 0) == least), key=lambda node: _hash(address, node))

    def _tell(self, wanted: Mapping[str, _Wanted], live: frozenset[str]) -> Iterator[Action]:
        selected = self._selected()
        uses = {}
        for name in self._policies:
            addresses = [address for address, want in wanted.items() if name in want.policies]
            waiting = sorted((each for each in addresses if each not in self._held), key=order)
            uses[name] = PolicyUse(
                name=name,
                nodes=len(selected[name]),
                able_nodes=len(selected[name] & live),
                addresses=len(addresses),
                waiting=waiting[:NAMED],
                waiting_count=len(waiting),
            )
        before, self._uses = self._uses, uses
        for name, use in sorted(uses.items()):
            if before.get(name) != use:
                yield Say(L2_POLICY_USE.of(name), use)
        for name in sorted(before.keys() - uses.keys()):
            yield Unsay(L2_POLICY_USE.of(name))


def _keep(known: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        known.pop(key, None)
    else:
        known[key] = value


def _hash(address: str, node: str) -> bytes:
    return sha256(f"{address} {node}".encode()).digest()[:8]
