"""A map of policies without room for all of them: at no moment is anything open that no rule opens, and what is not
there as a whole is closed as a whole, and told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from bus import subjects
from bus.labels import RESERVED, canonical_labels
from bus.messages.identity import Identity
from bus.messages.lb import Backend, Exposure, Frontend, LoadBalancedService
from bus.messages.policy import PeerNetwork, PolicyRules, Selector, SelectorRule
from bus.messages.resources import LabelSelector, Namespace, Pod, Requirement
from bus.service import Service, Settings
from bus.testing import Hub, MemoryBus
from services.dataplane.keep.writing import Writing
from services.dataplane.kernel.maps import Maps
from services.dataplane.model import NodeModel
from services.dataplane.part import LocalPod
from services.dataplane.parts.policy.entries import EGRESS, INGRESS, EndpointPolicy, PolicyEntry, PolicyKey, verdict
from services.dataplane.shapes.layouts import (
    POLICY_DENIES,
    EndpointEntry,
    IpcacheEntry,
    PolicyMapEntry,
    PolicyMapKey,
    Prefix,
    ServiceEntry,
    ServiceKey,
    pack_address,
)
from tests.unit.dataplane.fake_kernel import MemoryMap, MemoryMaps

PODS = {"10.0.0.2": (1000, "a"), "10.0.0.3": (2000, "b")}
CIDRS = ("0.0.0.0/0", "198.51.0.0/16", "198.51.100.0/24", "198.51.100.7/32", "203.0.113.0/24")
OUTSIDE = ("198.51.100.7", "198.51.100.8", "198.51.1.1", "203.0.113.9", "192.0.2.77")
KEYS, NAMES = ("one", "two"), ("p", "q")
Open = frozenset[tuple[str, int, str]]
"""Who may speak to whom outside: the pod, the direction, the address."""


class Kernel(MemoryMaps):
    """Notes what is open after each single step of a write."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.seen: set[tuple[str, int, str]] = set()
        for name in ("policy", "ipcache", "endpoints"):
            self.memory[name] = self._maps[name] = Watched(name, self)
        self.memory["policy"].room = room

    def note(self) -> None:
        self.seen |= self.open()

    def open(self) -> Open:
        who = {address: self._who(address) for address in OUTSIDE}
        return frozenset(
            (pod, direction, address)
            for pod in PODS
            if (policy := self._policy_of(pod))
            for direction in (INGRESS, EGRESS)
            for address in OUTSIDE
            if verdict(policy, who[address], direction, 6, 80).allowed
        )

    def _policy_of(self, pod: str) -> EndpointPolicy | None:
        raw = self.memory["endpoints"].get(pack_address(pod))
        if raw is None:
            return None
        entry = EndpointEntry.unpack(raw)
        entries = {}
        for each, value in self.memory["policy"].entries.items():
            key, found = PolicyMapKey.unpack(each), PolicyMapEntry.unpack(value)
            if key.policy == entry.policy:
                short = PolicyKey(key.identity, key.direction, key.protocol, key.port, key.l4_bits)
                entries[short] = PolicyEntry(found.precedence, found.cookie, deny=bool(found.flags & POLICY_DENIES))
        return EndpointPolicy(1, bool(entry.flags & 1), bool(entry.flags & 2), entries)

    def _who(self, address: str) -> int:
        whole = int.from_bytes(pack_address(address), "big")
        found = {}
        for key, value in self.memory["ipcache"].entries.items():
            bits, first = Prefix.layout.unpack(key)
            if whole >> 128 - bits == int.from_bytes(first, "big") >> 128 - bits:
                found[bits] = IpcacheEntry.unpack(value).identity
        return found[max(found)] if found else RESERVED["world-ipv4"]


class Watched(MemoryMap):
    __slots__ = ("kernel",)

    def __init__(self, name: str, kernel: Kernel) -> None:
        super().__init__(name)
        self.kernel = kernel

    def set(self, key: bytes, value: bytes) -> None:
        super().set(key, value)
        self.kernel.note()

    def remove(self, key: bytes) -> bool:
        was = super().remove(key)
        self.kernel.note()
        return was

    def remove_many(self, keys: Iterable[bytes]) -> int:
        return sum(map(self.remove, keys))


class Node:
    """A model of two pods, and its maps."""

    def __init__(self, maps: Maps) -> None:
        self.model = NodeModel("n")
        self.maps = maps
        self.service = Service("dataplane", Settings(), MemoryBus(Hub(), "dataplane"))
        self.writing = Writing(self.service, self.maps, self.model)
        self.model.put(subjects.NAMESPACE.of("default"), Namespace(name="default"))
        for address, (number, name) in PODS.items():
            pod = Pod(namespace="default", name=name, uid=name, labels={"app": name}, node="n")
            labels = canonical_labels(pod, Namespace(name="default"))
            self.model.put(subjects.POD.of("default", name), pod)
            self.model.put(subjects.IDENTITY.of(str(number)), Identity(number=number, labels=labels))
            wanted = Requirement(key="k8s:app", operator="In", values=[name])
            self.say(Selector(id=f"is-{name}", selector=LabelSelector(requirements=[wanted]), members=[number]))
            self.model.add_pod(
                LocalPod("default", name, (address,), f"lxc{name}", 7, "02:00:00:00:00:01", "02:00:00:00:00:02", name)
            )
        self.model.synced()
        self.write()

    def say(self, *messages: Selector | PolicyRules | str) -> None:
        for each in messages:
            match each:
                case Selector():
                    self.model.put(subjects.SELECTOR.of(each.id), each)
                case PolicyRules():
                    self.model.put(subjects.RULES.of(each.kind, each.namespace, each.name), each)
                case str():
                    self.model.delete(subjects.RULES.of("CiliumNetworkPolicy", "default", each))

    def write(self) -> None:
        asyncio.run(self.writing.write(is_whole=True))

    @property
    def closed(self) -> Mapping[str, list[str]]:
        return {name: [each.direction for each in self.model.closed_of(address)] for address, (_, name) in PODS.items()}

    def check(self, name: str) -> tuple[bool, str]:
        return next((each.ok, each.detail) for each in self.service.health().checks if each.name == name)


class Watching(Node):
    """On a kernel in memory. `room`: of the map of policies."""

    def __init__(self, room: int = 10_000) -> None:
        self.kernel = Kernel(room)
        super().__init__(self.kernel)

    def open(self) -> Open:
        """After a write."""
        self.write()
        return self.kernel.open()


networks = st.builds(
    PeerNetwork,
    cidr=st.sampled_from(CIDRS),
    except_cidrs=st.lists(st.sampled_from(CIDRS[1:]), max_size=1),
)
selectors = st.builds(
    Selector,
    id=st.sampled_from(KEYS),
    selector=st.just(LabelSelector(requirements=[Requirement(key="cidr:", operator="Exists")])),
    networks=st.lists(networks, max_size=3),
)
rules = st.builds(
    SelectorRule,
    direction=st.sampled_from(["ingress", "egress"]),
    selectors=st.lists(st.sampled_from(KEYS), max_size=2, unique=True),
    entities=st.lists(st.sampled_from(["world", "all"]), max_size=1),
)
policies = st.builds(
    PolicyRules,
    kind=st.just("CiliumNetworkPolicy"),
    namespace=st.just("default"),
    name=st.sampled_from(NAMES),
    subject=st.sampled_from(["is-a", "is-b"]),
    rules=st.lists(rules, max_size=2),
    denies=st.lists(rules, max_size=2),
    deny_ingress_by_default=st.booleans(),
    deny_egress_by_default=st.booleans(),
)
turns = st.lists(
    st.lists(st.one_of(selectors, policies, st.sampled_from(NAMES)), min_size=1, max_size=4), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(turns, st.integers(1, 14))
def test_whatever_has_no_room_nothing_is_open_that_rules_do_not_open_at_any_moment(
    made: list[list[Selector | PolicyRules | str]], room: int
) -> None:
    ideal, node = Watching(), Watching(room)
    before = ideal.open()
    for changes in made:
        for each in (ideal, node):
            each.say(*changes)
        after = ideal.open()
        node.kernel.seen.clear()
        found = node.open()
        assert node.kernel.seen <= before | after
        for address, (_, name) in PODS.items():
            for direction, word in ((INGRESS, "ingress"), (EGRESS, "egress")):
                mine = {each for each in found if each[:2] == (address, direction)}
                whole = {each for each in after if each[:2] == (address, direction)}
                assert mine == (set() if word in node.closed[name] else whole)
        assert node.check("policies")[0] == (not any(node.closed.values()))
        assert not node.maps.no_room, "what is closed needs no room"
        before = after


def outside(key: str, *cidrs: str) -> Selector:
    nobody = LabelSelector(requirements=[Requirement(key="cidr:", operator="Exists")])
    return Selector(id=key, selector=nobody, networks=[PeerNetwork(cidr=cidr) for cidr in cidrs])


def policy(name: str, subject: str, *, denies: str = "", allows: str = "") -> PolicyRules:
    """Ingress from one selector only, or from everyone but one."""
    return PolicyRules(
        kind="CiliumNetworkPolicy",
        namespace="default",
        name=name,
        subject=subject,
        rules=[SelectorRule(direction="ingress", selectors=[allows])] if allows else [],
        denies=[SelectorRule(direction="ingress", selectors=[denies])] if denies else [],
        deny_ingress_by_default=bool(allows),
    )


def test_a_direction_that_has_no_room_is_closed_and_told_until_there_is_room() -> None:
    node = Watching(room=6)
    every = node.open()
    node.say(outside("one", *CIDRS), policy("p", "is-a", denies="one"), policy("q", "is-b", denies="one"))
    node.write()
    assert node.closed == {"a": ["ingress"], "b": ["ingress"]}, "9 entries each"
    assert node.check("policies") == (
        False,
        "; ".join(
            f"ingress of default/{pod} is denied: no room in the node's map of policies: raise "
            f"extraConfig.plexus-policy-max or use less"
            for pod in "ab"
        ),
    )
    assert [each.policies for each in node.model.closed_of("10.0.0.2")] == [["CiliumNetworkPolicy/default/p"]]
    assert {each for each in every if each[1] == EGRESS} == node.kernel.open(), "the other direction is as it was"

    node.say(outside("one", CIDRS[-1]))
    node.write()
    assert node.closed == {"a": [], "b": ["ingress"]}, "one of them fits"
    assert node.kernel.open() >= {("10.0.0.2", INGRESS, "198.51.1.1")}
    node.say("p")
    assert node.open() == every - {("10.0.0.3", INGRESS, "203.0.113.9")}
    assert node.check("policies") == (True, "") and not node.maps.no_room


def test_without_memory_it_is_closed_until_it_is_tried_again() -> None:
    node = Watching()
    policies = node.kernel.memory["policy"]

    def refuse(_: Watched, key: bytes, value: bytes) -> None:
        raise OSError(12, "Cannot allocate memory")

    Watched.set, kept = refuse, Watched.set  # type: ignore[method-assign,assignment]  # the kernel has no memory, for once
    try:
        node.say(outside("one", CIDRS[-1]), policy("p", "is-a", denies="one"))
        node.write()
    finally:
        Watched.set = kept  # type: ignore[method-assign]  # and has some again
    assert node.closed["a"] == ["ingress"] and not policies.entries
    node.write()
    assert node.closed["a"] == ["ingress"], "nobody knows whether there is memory"
    node.model.policy.try_again()
    node.write()
    assert node.closed["a"] == [] and policies.entries
    assert EndpointEntry.unpack(node.kernel.memory["endpoints"].entries[pack_address("10.0.0.2")]).policy == 1000


def test_where_there_is_no_room_for_whom_a_service_keeps_out_it_is_closed_to_the_outside_until_there_is() -> None:
    node = Watching()
    ranges = node.kernel.memory["source_ranges"]
    ranges.room = 1
    key = ServiceKey("203.0.113.9", 80, 6).pack()

    def say(*denied: str) -> ServiceEntry:
        front = Frontend(address="10.96.0.1", port=80, protocol="TCP", backends=[Backend(address="10.0.0.2", port=80)])
        to_all = Exposure(kind="LoadBalancer", address="203.0.113.9", family="IPv4", port=80, protocol="TCP")
        service = LoadBalancedService(
            namespace="n",
            name="s",
            frontends=[front],
            exposures=[to_all],
            source_ranges=list(denied),
            denies_sources=True,
        )
        node.model.put(subjects.FRONTEND.of("n", "s"), service)
        node.write()
        return ServiceEntry.unpack(node.kernel.memory["services"].entries[key])

    both = ServiceEntry.RANGES | ServiceEntry.RANGES_DENY
    assert say("198.51.100.0/24").flags & both == both
    assert say("198.51.100.0/24", "198.51.0.0/16").flags & both == ServiceEntry.RANGES, "only who is let in by name"
    assert not node.check("room")[0] and len(ranges.entries) == 1
    ranges.room = 2
    assert say("198.51.100.0/24", "198.51.0.0/16").flags & both == both
    assert node.check("room")[0]
