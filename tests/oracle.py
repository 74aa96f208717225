"""What policies mean, straight from the rules: no identities' numbers, no selectors' members, no map.

The oracle shares no code with what it judges. It is told who the two ends are by their labels (or by the name of a
reserved identity) and answers whether the first packet of a connection may pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bus.messages.resources import LabelSelector, Peer, Policy, PortRange

Ports = Mapping[tuple[str, str], set[int]]
"""Named container ports of one pod: (name, "TCP") -> numbers."""

SPOKEN = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "ICMPv6": 58}
WORLD = (2, 9, 10)  # either family, IPv4, IPv6
LOCAL_CIDR_MIN = 1 << 24


def allowed_by_rules(
    subject: Mapping[str, str],
    peer: Mapping[str, str] | int,
    policies: Iterable[Policy],
    direction: str,
    protocol: int,
    port: int,
    *,
    subject_ports: Ports = {},  # noqa: B006 (never written)
    peer_ports: Ports = {},  # noqa: B006
) -> bool:
    """Whether `subject`'s own policy lets the packet pass.

    Args:
        subject: canonical labels of the pod whose policy is asked.
        peer: canonical labels of the other pod, or the number of a reserved or node-local identity.
        direction: "ingress": `peer` calls `subject`; "egress": `subject` calls `peer`.
        protocol, port: IANA number; destination port, for ICMP and ICMPv6 the type + 1.
    """
    if direction == "ingress" and peer == 1:
        return True  # the node itself may always reach its pods
    named = subject_ports if direction == "ingress" else peer_ports
    selecting = [policy for policy in policies if _fits(policy.subject, subject)]
    restricted = False
    for policy in selecting:
        restricted |= policy.deny_ingress_by_default if direction == "ingress" else policy.deny_egress_by_default
    if not restricted:
        return True
    for policy in selecting:
        for rule in policy.rules:
            if rule.direction != direction:
                continue
            if not rule.any_peer and not any(_is(peer, each) for each in rule.peers):
                continue
            if not rule.ports or any(_covers(each, protocol, port, named) for each in rule.ports):
                return True
    return False


def _is(peer: Mapping[str, str] | int, wanted: Peer) -> bool:
    if wanted.selector is not None:
        return not isinstance(peer, int) and _fits(wanted.selector, peer)
    number = 0 if not isinstance(peer, int) else peer
    outside = number in WORLD or number >= LOCAL_CIDR_MIN
    groups = {
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
    return groups[wanted.entity]


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
