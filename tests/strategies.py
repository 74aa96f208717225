"""Generated worlds for the twin tests: namespaces, pods, policies and packets, few enough to meet each other often."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

from hypothesis import strategies as st
from msgspec.structs import replace

from bus import labels
from bus.messages.resources import (
    CIDRGroup,
    ContainerPort,
    LabelSelector,
    Namespace,
    Peer,
    Pod,
    Policy,
    PortRange,
    Protocol,
    Requirement,
    Rule,
)

KEYS = ("app", "tier", "org")
VALUES = ("a", "b", "c")
NAMESPACES = ("default", "blue", "green")
PORT_NAMES = ("http", "dns")
PROTOCOLS: tuple[Protocol, ...] = ("TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "ANY")
NUMBERS = (1, 2, 53, 79, 80, 81, 443, 1023, 1024, 8079, 8080, 8081, 32768, 65534, 65535)
"""Ports at the edges of prefixes and of each other."""
CIDRS = (
    *("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.1.128.0/17", "203.0.113.0/24"),
    *("::/0", "::/8", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::5/128"),
)
OUTSIDE = tuple(
    map(
        ip_address,
        (
            *("10.1.2.3", "10.1.2.4", "10.1.200.1", "10.2.0.1", "203.0.113.9", "198.51.100.1"),
            *("2001:db8:1::5", "2001:db8:1::6", "2001:db8:2::1", "2a00::1", "::5"),
        ),
    )
)
"""In some of them, at their edges, and in none but the widest."""
GROUPS = ("office", "cloud")
PEER_NUMBERS = (1, 2, 3, 4, 5, 6, 7, 9, 10, 1 << 24, (1 << 24) + 77)
ENTITIES = (
    *("all", "world", "world-ipv4", "world-ipv6", "cluster", "host", "remote-node"),
    *("init", "health", "unmanaged", "kube-apiserver"),
)
POD_KEYS = [f"k8s:{key}" for key in KEYS]
WHERE = labels.NAMESPACE
TEAM = labels.NAMESPACE_LABELS + "team"


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection, as one pod's policy sees it."""

    direction: Literal["ingress", "egress"]
    protocol: int  # IANA
    port: int  # destination; for ICMP and ICMPv6 the type + 1


End = Pod | int | IPv4Address | IPv6Address


@dataclass(frozen=True)
class World:
    namespaces: list[Namespace]
    pods: list[Pod]
    policies: list[Policy]
    packets: list[Packet]
    groups: list[CIDRGroup]
    outside: list[IPv4Address | IPv6Address]

    def namespace_of(self, pod: Pod) -> Namespace:
        return next(each for each in self.namespaces if each.name == pod.namespace)

    def labels_of(self, pod: Pod) -> dict[str, str]:
        return labels.canonical_labels(pod, self.namespace_of(pod))

    def kin_ports(self, pod: End) -> dict[tuple[str, str], set[int]]:
        """Those of all pods that have its labels."""
        ports: dict[tuple[str, str], set[int]] = {}
        for each in self.pods if isinstance(pod, Pod) else []:
            if isinstance(pod, Pod) and self.labels_of(each) == self.labels_of(pod):
                for key, numbers in self.named_ports(each).items():
                    ports.setdefault(key, set()).update(numbers)
        return ports

    def named_ports(self, pod: End) -> dict[tuple[str, str], set[int]]:
        """The pod's own: another of the same labels may call other ports so. Whatever is no pod has none."""
        ports: dict[tuple[str, str], set[int]] = {}
        for port in pod.ports if isinstance(pod, Pod) else []:
            ports.setdefault((port.name, port.protocol), set()).add(port.port)
        return ports

    def questions(self) -> Iterator[tuple[Pod, End, Packet]]:
        """Every pod about every other end and every packet."""
        ends: Iterable[End] = [*self.pods, *PEER_NUMBERS, *self.outside]
        for subject in self.pods:
            for peer in ends:
                for packet in self.packets:
                    yield subject, peer, packet


def requirements() -> st.SearchStrategy[Requirement]:
    values = st.lists(st.sampled_from(VALUES), min_size=1, max_size=2, unique=True).map(sorted)
    where = st.lists(st.sampled_from(NAMESPACES), min_size=1, max_size=2, unique=True).map(sorted)
    key = st.sampled_from([*POD_KEYS, TEAM])
    return st.one_of(
        st.builds(Requirement, key=key, operator=st.sampled_from(["In", "NotIn"]), values=values),
        st.builds(Requirement, key=key, operator=st.sampled_from(["Exists", "DoesNotExist"])),
        st.builds(Requirement, key=st.just(WHERE), operator=st.sampled_from(["In", "NotIn"]), values=where),
    )


def selectors(most: int = 3) -> st.SearchStrategy[LabelSelector]:
    return st.builds(LabelSelector, requirements=st.lists(requirements(), max_size=most))


def networks() -> st.SearchStrategy[Peer]:
    without = st.lists(st.sampled_from(CIDRS), max_size=2, unique=True)
    named = st.lists(st.sampled_from(VALUES), min_size=1, max_size=2, unique=True).map(sorted)
    selector = st.builds(
        LabelSelector,
        requirements=st.lists(
            st.builds(Requirement, key=st.just("tier"), operator=st.just("In"), values=named), max_size=1
        ),
    )
    return st.one_of(
        st.builds(Peer, cidr=st.sampled_from(CIDRS), except_cidrs=without),
        st.builds(Peer, cidr=st.sampled_from(CIDRS), except_cidrs=without),
        st.builds(Peer, cidr_group=st.sampled_from(GROUPS), except_cidrs=without),
        st.builds(Peer, cidr_groups=selector),
    )


def groups() -> st.SearchStrategy[list[CIDRGroup]]:
    group = st.builds(
        CIDRGroup,
        name=st.sampled_from(GROUPS),
        labels=st.dictionaries(st.just("tier"), st.sampled_from(VALUES), max_size=1),
        cidrs=st.lists(st.sampled_from(CIDRS), max_size=3, unique=True).map(sorted),
    )
    return st.lists(group, max_size=2, unique_by=lambda each: each.name)


def peers() -> st.SearchStrategy[Peer]:
    return st.one_of(
        networks(),
        st.builds(Peer, selector=selectors(1)),
        st.builds(Peer, entity=st.sampled_from(ENTITIES)),
    )


@st.composite
def port_ranges(draw: st.DrawFn, named: bool = True) -> PortRange:
    protocol = draw(st.sampled_from(PROTOCOLS))
    if named and not protocol.startswith("ICMP") and draw(st.integers(0, 3)) == 0:
        return PortRange(protocol=protocol, name=draw(st.sampled_from(PORT_NAMES)))
    if draw(st.integers(0, 3)) == 0:
        return PortRange(protocol=protocol)
    first = draw(st.one_of(st.sampled_from(NUMBERS), st.integers(1, 65535)))
    if draw(st.booleans()):
        return PortRange(protocol=protocol, port=first)
    return PortRange(protocol=protocol, port=first, end_port=draw(st.integers(first, 65535)))


@st.composite
def rules(draw: st.DrawFn, named: bool = True) -> Rule:
    any_peer = draw(st.integers(0, 4)) == 0
    return Rule(
        direction=draw(st.sampled_from(["ingress", "egress"])),
        any_peer=any_peer,
        peers=[] if any_peer else draw(st.lists(peers(), max_size=3)),
        ports=draw(st.lists(port_ranges(named), max_size=3)),
    )


@st.composite
def policies(draw: st.DrawFn, name: str, named: bool = True) -> Policy:
    """`named`: rules may name container ports."""
    written = draw(st.lists(rules(named), max_size=3))
    opted_out = draw(st.integers(0, 5)) == 0
    return Policy(
        kind=draw(st.sampled_from(["NetworkPolicy", "CiliumNetworkPolicy"])),
        namespace=draw(st.sampled_from(NAMESPACES)),
        name=name,
        subject=draw(selectors(1)),
        rules=written,
        denies=draw(st.lists(rules(named), max_size=1)) if draw(st.integers(0, 2)) == 0 else [],
        deny_ingress_by_default=not opted_out and draw(st.integers(0, 3)) > 0,
        deny_egress_by_default=not opted_out and draw(st.integers(0, 3)) > 0,
    )


@st.composite
def pods(draw: st.DrawFn, name: str) -> Pod:
    return Pod(
        namespace=draw(st.sampled_from(NAMESPACES)),
        name=name,
        uid=f"uid-of-{name}",
        labels=draw(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=3)),
        ports=draw(
            st.lists(
                st.builds(
                    ContainerPort,
                    name=st.sampled_from(PORT_NAMES),
                    port=st.sampled_from(NUMBERS),
                    protocol=st.sampled_from(["TCP", "UDP"]),
                ),
                max_size=2,
                unique_by=lambda port: port.name,
            )
        ),
    )


@st.composite
def packets(draw: st.DrawFn, policies: list[Policy], pods: list[Pod]) -> list[Packet]:
    """A few at random, and as many just inside and just outside of what the rules name."""
    edges: set[Packet] = set()
    for policy in policies:
        for rule in (*policy.rules, *policy.denies):
            for port in rule.ports:
                last = port.end_port or port.port
                numbers = {port.port - 1, port.port, last, last + 1}
                if port.name:
                    numbers = {given.port for pod in pods for given in pod.ports}
                for number in numbers & set(range(65536)):
                    edges.add(Packet(direction=rule.direction, protocol=_spoken(port.protocol), port=number))
    anything = st.builds(
        Packet,
        direction=st.sampled_from(["ingress", "egress"]),
        protocol=st.sampled_from([6, 17, 132, 1, 47]),
        port=st.one_of(st.sampled_from(NUMBERS), st.integers(0, 65535)),
    )
    found = draw(st.lists(anything, min_size=1, max_size=3))
    if edges:
        ordered = sorted(edges, key=lambda each: (each.direction, each.protocol, each.port))
        found += draw(st.lists(st.sampled_from(ordered), min_size=min(4, len(ordered)), max_size=8, unique=True))
    return found


def _spoken(protocol: Protocol) -> int:
    return {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "ICMPv6": 58, "ANY": 6}[protocol]


@st.composite
def worlds(draw: st.DrawFn, named: bool = True) -> World:
    """Three namespaces, up to 4 pods, up to 4 policies, up to 11 packets."""
    teams = st.dictionaries(st.just("team"), st.sampled_from(VALUES), max_size=1)
    written = [draw(policies(f"policy-{number}", named)) for number in range(draw(st.integers(1, 4)))]
    living = [draw(pods(f"pod-{number}")) for number in range(draw(st.integers(1, 4)))]
    for at, pod in enumerate(living[1:], 1):
        if draw(st.booleans()):  # of one label set, with ports of its own: what a rolling update makes
            living[at] = replace(pod, namespace=living[0].namespace, labels=living[0].labels)
    return World(
        namespaces=[Namespace(name=name, labels=draw(teams)) for name in NAMESPACES],
        pods=living,
        policies=written,
        packets=draw(packets(written, living)),
        groups=draw(groups()),
        outside=draw(st.lists(st.sampled_from(OUTSIDE), min_size=4, max_size=4, unique=True)),
    )
