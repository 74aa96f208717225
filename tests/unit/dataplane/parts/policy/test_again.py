"""Who is judged again after a write: whoever might go on with what a fresh judgement would refuse, and else nobody."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.dataplane.model import NodeModel
from services.dataplane.parts.policy.again import Judged
from services.dataplane.parts.policy.entries import ALLOW, aggregate, precedence
from services.dataplane.shapes.again import EVERYTHING, NOBODY, Again
from services.dataplane.shapes.layouts import (
    POLICY_DENIES,
    POLICY_NAMED,
    EndpointEntry,
    EndpointKey,
    IpcacheEntry,
    IpcacheKey,
    LivingKey,
    NamedPortKey,
    PolicyMapEntry,
    PolicyMapKey,
    ServiceEntry,
    ServiceKey,
)
from services.dataplane.shapes.order import steps
from services.dataplane.shapes.table import Table

NODE, OTHER = "192.0.2.1", "192.0.2.2"
PODS = ("10.0.0.1", "10.0.0.2")
REMOTE, OUTSIDE = "10.0.1.5", "198.51.100.7"
ADDRESSES = (*PODS, REMOTE, OUTSIDE, NODE)
OUTSIDE_NETWORK = "198.51.100.0/24"
NOT_FOLLOWED = {"devices"}
NAMES = tuple(table.name for table in NodeModel("node").tables if table.name not in NOT_FOLLOWED)
"""In the order in which they are written."""
LOCAL = 1 << 24
IDENTITIES = (256, 257, 300, LOCAL + 1, LOCAL + 2)
PEERS = (*IDENTITIES, 1, 2, 9, 11, 13)
TCP = 6
CALLS = [(peer, direction, port) for peer in ADDRESSES for direction in (0, 1) for port in (80, 443)]
Call = tuple[str, str, int, int]  # the pod whose policy is asked, the peer, the direction, the port


@dataclass
class Node:
    """Tables, and what they would answer at each moment of a write."""

    tables: dict[str, Table] = field(default_factory=lambda: {name: Table(name) for name in NAMES})

    def __post_init__(self) -> None:
        self.tables["endpoints"] = Table("endpoints", last=True, stamp_at=EndpointEntry.epoch_at)
        self.maps: dict[str, dict[bytes, bytes]] = {name: {} for name in NAMES}
        self.judged = Judged(self.tables.values(), [NODE])
        self.who("10.0.0.0", 24, IpcacheEntry(3, NODE))
        self.who("10.0.1.0", 24, IpcacheEntry(3, OTHER))
        self.who(NODE, 32, IpcacheEntry(1))
        self.written()

    def who(self, address: str, bits: int, entry: IpcacheEntry | None) -> None:
        self._set("ipcache", IpcacheKey(address, bits).pack(), entry.pack() if entry else None)

    def pod(self, address: str, identity: int | None, policy: int = 0, flags: int = 3) -> None:
        entry = EndpointEntry(1, identity or 0, policy, flags, bytes(6), bytes(6)).pack()
        self._set("endpoints", EndpointKey(address).pack(), entry if identity else None)

    def rule(self, policy: int, peer: int, direction: int, port: int, entry: PolicyMapEntry | None) -> None:
        key = PolicyMapKey(policy, peer, direction, TCP if port else 0, port, 24 if port else 0)
        self._set("policy", key.pack(), entry.pack() if entry else None)

    def called(self, policy: int, address: str, port: int, is_so: bool) -> None:
        self._set("named_ports", NamedPortKey(policy, 7, address, port, TCP).pack(), b"\x01" if is_so else None)

    def _set(self, name: str, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.tables[name].delete(key)
        else:
            self.tables[name].put(key, value)

    def written(self) -> Again:
        """Everything that is owed is in the maps. Who is judged again."""
        again = self.judged.again()
        for name, table in self.tables.items():
            upserts, gone = table.take()
            self.maps[name].update(upserts)
            for key in gone:
                self.maps[name].pop(key, None)
        return again

    def write(self) -> tuple[Again, list[set[Call]]]:
        """Everything that is owed, entry by entry. Who is judged again; and what is allowed before, at each moment, and
        in the end."""
        again = self.judged.again()
        taken = [(self.tables[name], *self.tables[name].take()) for name in NAMES]
        owed = steps(taken, lambda name, key: self.maps[name].get(key))
        seen = [self.allowed()]
        for name, upserts, _ in owed:
            for key, value in upserts.items():
                self.maps[name][key] = value
                seen.append(self.allowed())
        for name, _, gone in reversed(owed):
            for key in gone:
                self.maps[name].pop(key, None)
                seen.append(self.allowed())
        return again, seen

    # What the programs answer, in plain words: bpf/include/policy.h and flow.h

    def allowed(self) -> set[Call]:
        return set(self._allowed())

    def _allowed(self) -> Iterator[Call]:
        for key, raw in self.maps["endpoints"].items():
            address, pod = EndpointKey.unpack(key).address, EndpointEntry.unpack(raw)
            for peer, direction, port in CALLS:
                called = peer if direction else address
                if peer != address and self._allows(pod, direction, self._identity(peer), called, port):
                    yield address, peer, direction, port

    def _allows(self, pod: EndpointEntry, direction: int, peer: int, called: str, port: int) -> bool:
        if not pod.flags & (2 if direction else 1) or (not direction and peer == 1):
            return True
        found = [
            entry for each in (peer, aggregate(peer)) if (entry := self._longest(pod.policy, each, direction, port))
        ]
        found = [
            entry
            for entry in found
            if not entry.flags & POLICY_NAMED
            or NamedPortKey(pod.policy, entry.cookie, called, port, TCP).pack() in self.maps["named_ports"]
        ]
        best = max(found, key=lambda entry: (entry.precedence, entry.l4_bits), default=None)
        return best is not None and not best.flags & POLICY_DENIES and not best.proxy_port

    def _longest(self, policy: int, peer: int, direction: int, port: int) -> PolicyMapEntry | None:
        for key in (
            PolicyMapKey(policy, peer, direction, TCP, port, 24),
            PolicyMapKey(policy, peer, direction, 0, 0, 0),
        ):
            raw = self.maps["policy"].get(key.pack())
            if raw is not None:
                return PolicyMapEntry.unpack(raw)
        return None

    def _identity(self, address: str) -> int:
        pod = self.maps["endpoints"].get(EndpointKey(address).pack())
        if pod is not None:
            return EndpointEntry.unpack(pod).identity
        found = [
            (key.bits, IpcacheEntry.unpack(raw).identity)
            for key, raw in ((IpcacheKey.unpack(raw_key), raw) for raw_key, raw in self.maps["ipcache"].items())
            if ip_address(address) in ip_network(f"{key.address}/{key.bits}")
        ]
        return max(found, default=(0, 9))[1]


def entry(kind: str, port: int) -> PolicyMapEntry:
    bits = 24 if port else 0
    return {
        "allow": PolicyMapEntry(ALLOW, 1, 0, 0, bits),
        "allow first": PolicyMapEntry(precedence("allow", 0) + 1, 2, 0, 0, bits),
        "deny": PolicyMapEntry(precedence("deny"), 3, 0, POLICY_DENIES, bits),
        "named": PolicyMapEntry(ALLOW, 7, 0, POLICY_NAMED, bits),
        "named deny": PolicyMapEntry(precedence("deny"), 7, 0, POLICY_NAMED | POLICY_DENIES, bits),
        "proxy": PolicyMapEntry(ALLOW + 1, 4, 15000, 0, bits),
    }[kind]


KINDS = st.sampled_from(["allow"] * 6 + ["allow first", "deny", "named", "named deny", "proxy", ""])
RULES = st.tuples(
    st.just("rule"),
    st.sampled_from((256, 257)),
    st.sampled_from(PEERS),
    st.integers(0, 1),
    st.sampled_from((0, 80, 443)),
    KINDS,
)
WHERE = st.sampled_from(
    [(REMOTE, 32), (OUTSIDE, 32), (OUTSIDE, 32), ("198.51.100.0", 24), (PODS[0], 32), ("10.0.1.0", 24)]
)
WHO = st.tuples(st.just("who"), WHERE, st.sampled_from((0, 3, 6, *IDENTITIES)), st.sampled_from(("", "", OTHER, NODE)))
POD = st.tuples(
    st.just("pod"),
    st.sampled_from(PODS),
    st.sampled_from((0, 256, 256, 257)),
    st.sampled_from((0, 256, 257)),
    st.integers(0, 3),
)
CALLED = st.tuples(
    st.just("called"), st.sampled_from((256, 257)), st.sampled_from(ADDRESSES), st.just(80), st.booleans()
)
WRITES = st.lists(st.lists(st.one_of(RULES, RULES, WHO, POD, CALLED), min_size=1, max_size=4), min_size=1, max_size=8)


def take(node: Node, change: tuple[object, ...]) -> None:
    match change:
        case ("rule", int(policy), int(peer), int(direction), int(port), str(kind)):
            port = 80 if kind.startswith("named") else port
            node.rule(policy, peer, direction, port, entry(kind, port) if kind else None)
        case ("who", (str(address), int(bits)), int(identity), str(behind)):
            node.who(address, bits, IpcacheEntry(identity, behind) if identity else None)
        case ("pod", str(address), int(identity), int(policy), int(flags)):
            node.pod(address, identity or None, policy, flags)
        case ("called", int(policy), str(address), int(port), bool(is_so)):
            node.called(policy, address, port, is_so)


SWAPPED = [  # while it is written, the network's second identity may have what only its first is to have
    [
        ("pod", PODS[0], 256, 256, 3),
        ("who", ("198.51.100.0", 24), LOCAL + 1, ""),
        ("rule", 256, LOCAL + 2, 1, 80, "allow"),
    ],
    [("who", ("198.51.100.0", 24), LOCAL + 2, ""), ("who", (OUTSIDE, 32), LOCAL + 1, "")],
]


OUT = [("pod", PODS[0], 256, 256, 3), ("who", (OUTSIDE, 32), LOCAL + 1, "")]
NAMED_IS_DENIED = [
    [*OUT, ("rule", 256, 13, 1, 0, "allow"), ("rule", 256, LOCAL + 1, 1, 80, "named deny")],
    [("called", 256, OUTSIDE, 80, True)],
]
LESS_WEIGHT = [  # a longer entry, found in the place of one that outweighs what the group is told
    [*OUT, ("rule", 256, 13, 1, 0, "proxy"), ("rule", 256, LOCAL + 1, 1, 0, "allow first")],
    [("rule", 256, LOCAL + 1, 1, 80, "allow")],
]


@settings(max_examples=300, deadline=None)
@given(WRITES)
@example(SWAPPED)
@example(NAMED_IS_DENIED)
@example(LESS_WEIGHT)
def test_what_was_allowed_before_a_write_or_while_it_lasted_is_allowed_after_it_or_judged_again(
    writes: list[list[tuple[object, ...]]],
) -> None:
    node = Node()
    for changes in writes:
        for change in changes:
            take(node, change)
        again, seen = node.write()
        if again.everything:
            continue
        for address, *call in set().union(*seen) - seen[-1]:
            assert EndpointKey(address).pack() in again.endpoints or address not in at(node), (address, call, again)


def at(node: Node) -> set[str]:
    return {EndpointKey.unpack(key).address for key in node.maps["endpoints"]}


def guarded() -> Node:
    """Two pods with a policy each; the world may be reached, but for what entries say."""
    node = Node()
    node.pod(PODS[0], 256, 256)
    node.pod(PODS[1], 257, 257)
    node.rule(256, LOCAL + 1, 1, 443, entry("allow", 443))
    node.rule(257, 256, 0, 0, entry("allow", 0))
    node.who(REMOTE, 32, IpcacheEntry(300, OTHER))
    node.written()
    return node


def test_a_thousand_writes_that_only_allow_concern_nobody() -> None:
    """As a name is resolved to ever more addresses, each with an identity of its own."""
    node = guarded()
    for number in range(1000):
        node.who(f"203.0.{113 + number // 250}.{number % 250}", 32, IpcacheEntry(LOCAL + 10 + number))
        node.rule(256, LOCAL + 10 + number, 1, 443, entry("allow", 443))
        assert node.written() == NOBODY


def test_a_pod_that_comes_elsewhere_concerns_only_who_was_told_by_a_tunnel() -> None:
    node = guarded()
    node.who("10.0.1.9", 32, IpcacheEntry(300, OTHER))
    assert node.written() == Again(ahead=True)


def test_a_pod_that_goes_elsewhere_concerns_those_whose_policy_names_it() -> None:
    node = guarded()
    node.rule(256, 300, 1, 0, entry("allow", 0))
    assert node.written() == NOBODY
    node.who(REMOTE, 32, None)
    assert node.written() == Again(ahead=True, endpoints=frozenset({EndpointKey(PODS[0]).pack()}))


def test_what_is_taken_away_or_denied_concerns_the_pods_of_that_policy() -> None:
    for kind in ("deny", "proxy", "named", ""):
        node = guarded()
        node.rule(256, LOCAL + 1, 1, 443, entry(kind, 443) if kind else None)
        assert node.written() == Again(endpoints=frozenset({EndpointKey(PODS[0]).pack()})), kind


def test_a_pod_that_is_another_now_is_judged_again_and_so_is_who_may_call_it() -> None:
    node = guarded()
    node.pod(PODS[0], 300, 300)
    assert node.written() == Again(endpoints=frozenset(EndpointKey(each).pack() for each in PODS))


def test_an_address_that_is_elsewhere_concerns_everybody() -> None:
    node = guarded()
    node.who(REMOTE, 32, IpcacheEntry(300, "192.0.2.3"))
    assert node.written() == EVERYTHING


def test_a_port_that_has_lost_its_name_concerns_the_pods_of_that_policy() -> None:
    node = guarded()
    node.called(257, PODS[1], 80, True)
    assert node.written() == NOBODY
    node.called(257, PODS[1], 80, False)
    assert node.written() == Again(endpoints=frozenset({EndpointKey(PODS[1]).pack()}))


def test_services_concern_what_is_not_settled_and_more_backends_nobody() -> None:
    node = guarded()
    services, living = node.tables["services"], node.tables["living"]
    key = ServiceKey("10.96.0.1", 80, TCP).pack()
    services.put(key, ServiceEntry(1, 1).pack())
    living.put(LivingKey(1, REMOTE, 80).pack(), b"\x01")
    assert node.written() == Again(services=True)
    services.put(key, ServiceEntry(1, 2, outside=1).pack())
    living.put(LivingKey(1, REMOTE, 81).pack(), b"\x01")
    assert node.written() == NOBODY
    living.delete(LivingKey(1, REMOTE, 80).pack())
    assert node.written() == Again(services=True)


def test_what_was_not_written_or_was_found_changed_has_everybody_judged_again() -> None:
    node = guarded()
    policy = node.tables["policy"]
    policy.owe(list(policy.wanted)[:1])
    assert node.written() == EVERYTHING


def test_what_maps_held_before_this_process_counts() -> None:
    before = guarded()
    tables = {name: Table(name) for name in NAMES}
    judged = Judged(tables.values(), [NODE])
    for name, table in tables.items():
        for key, value in before.maps[name].items():
            table.put(key, value)
        table.adopt(before.maps[name])
    judged.learn()
    tables["policy"].delete(PolicyMapKey(256, LOCAL + 1, 1, TCP, 443, 24).pack())
    assert judged.again() == Again(endpoints=frozenset({EndpointKey(PODS[0]).pack()}))
