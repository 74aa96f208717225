"""What policies mean, straight from the rules: no identities' numbers, no selectors' members, no map.

The oracle shares no code with what it judges. It is told who the two ends are by their labels (or by the name of a
reserved identity, or by an address of the outside) and answers whether the first packet of a connection may pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_network

from bus.messages.resources import CIDRGroup, LabelSelector, Peer, Policy, PortRange

Outside = IPv4Address | IPv6Address
End = Mapping[str, str] | int | Outside

Ports = Mapping[tuple[str, str], set[int]]
"""Named container ports of one pod: (name, "TCP") -> numbers."""

SPOKEN = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "ICMPv6": 58}
WORLD = (2, 9, 10)  # either family, IPv4, IPv6
LOCAL_CIDR_MIN = 1 << 24


def allowed_by_rules(
    subject: Mapping[str, str],
    peer: End,
    policies: Iterable[Policy],
    direction: str,
    protocol: int,
    port: int,
    *,
    groups: Iterable[CIDRGroup] = (),
    subject_ports: Ports = {},  # noqa: B006 (never written)
    peer_ports: Ports = {},  # noqa: B006
    kin_ports: Ports = {},  # noqa: B006
) -> bool:
    """Whether `subject`'s own policy lets the packet pass.

    Args:
        subject: canonical labels of the pod whose policy is asked.
        peer: canonical labels of the other pod, the number of a reserved or node-local identity, or an address that
            neither a pod nor a node has.
        direction: "ingress": `peer` calls `subject`; "egress": `subject` calls `peer`.
        protocol, port: IANA number; destination port, for ICMP and ICMPv6 the type + 1.
        groups: all that there are.
        kin_ports: of all pods that have the labels of the one that is called. What is denied by a port's name is denied
            at each of them.
    """
    if direction == "ingress" and peer == 1:
        return True  # the node itself may always reach its pods
    named = subject_ports if direction == "ingress" else peer_ports
    selecting = [policy for policy in policies if _fits(policy.subject, subject)]
    for policy in selecting:
        for rule in policy.denies:
            if rule.direction != direction:
                continue
            if not rule.any_peer and not any(_is(peer, each, groups) for each in rule.peers):
                continue
            if not rule.ports or any(_covers(each, protocol, port, kin_ports) for each in rule.ports):
                return False
    restricted = False
    for policy in selecting:
        restricted |= policy.deny_ingress_by_default if direction == "ingress" else policy.deny_egress_by_default
    if not restricted:
        return True
    for policy in selecting:
        for rule in policy.rules:
            if rule.direction != direction:
                continue
            if not rule.any_peer and not any(_is(peer, each, groups) for each in rule.peers):
                continue
            if not rule.ports or any(_covers(each, protocol, port, named) for each in rule.ports):
                return True
    return False


def _is(peer: End, wanted: Peer, groups: Iterable[CIDRGroup]) -> bool:
    if wanted.selector is not None:
        return isinstance(peer, Mapping) and _fits(wanted.selector, peer)
    if wanted.cidr:
        return _is_in(peer, [wanted.cidr]) and not _is_in(peer, wanted.except_cidrs)
    if wanted.cidr_group or wanted.cidr_groups is not None:
        by_labels = wanted.cidr_groups
        meant = [
            group
            for group in groups
            if group.name == wanted.cidr_group or (by_labels is not None and _fits(by_labels, group.labels))
        ]
        return any(_is_in(peer, group.cidrs) for group in meant) and not _is_in(peer, wanted.except_cidrs)
    number = peer if isinstance(peer, int) else 0
    if isinstance(peer, Outside):
        number = 9 if peer.version == 4 else 10
    outside = number in WORLD or number >= LOCAL_CIDR_MIN
    entities = {
        "all": True,
        "none": False,
        "world": outside,
        "world-ipv4": number == 9,
        "world-ipv6": number == 10,
        "cluster": not outside,
        "host": number == 1,
        "unmanaged": number == 3,
        "health": number == 4,
        "init": number == 5,
        "remote-node": number in (6, 7),
        "kube-apiserver": number == 7,
    }
    return entities[wanted.entity]


def _is_in(peer: End, cidrs: Iterable[str]) -> bool:
    return isinstance(peer, Outside) and any(peer in ip_network(each) for each in cidrs)


def _fits(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    for need in selector.requirements:
        there = need.key in labels
        listed = there and labels[need.key] in need.values
        if need.operator == "In" and not listed:
            return False
        if need.operator == "NotIn" and listed:
            return False
        if need.operator == "Exists" and not there:
            return False
        if need.operator == "DoesNotExist" and there:
            return False
    return True


def _covers(wanted: PortRange, protocol: int, port: int, named: Ports) -> bool:
    if wanted.name:
        return any(
            SPOKEN[spoken] == protocol and port in numbers
            for (name, spoken), numbers in named.items()
            if name == wanted.name and wanted.protocol in ("ANY", spoken)
        )
    if wanted.port == 0:
        return wanted.protocol == "ANY" or SPOKEN[wanted.protocol] == protocol
    if not wanted.port <= port <= max(wanted.port, wanted.end_port):
        return False
    if wanted.protocol == "ANY":
        return protocol in (6, 17, 132)
    return SPOKEN[wanted.protocol] == protocol
