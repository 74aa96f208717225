"""What the policy table lets one peer do, written out as ports: nftables knows neither precedence nor prefixes of
ports. Pure; `policy.verdict`, the twin of the BPF program, is asked at every port where the answer may change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from services.dataplane.parts.policy.entries import (
    AGGREGATES,
    EndpointPolicy,
    PolicyEntry,
    PolicyKey,
    aggregate,
    verdict,
)
from services.dataplane.shapes.layouts import POLICY_DENIES, POLICY_NAMED, NamedPortKey, PolicyMapEntry, PolicyMapKey

PROTOCOL_BITS = 8
PORT_MAX = 0xFFFF
NO_PROTOCOL = 255  # reserved by IANA: an entry can only mean it by meaning every protocol

Ranges = tuple[tuple[int, int], ...]  # ports, both included; for ICMP and ICMPv6 the type + 1


@dataclass(frozen=True)
class Allowed:
    """What may pass: some ports of the protocols that entries name, and all of the others or nothing of them."""

    ports: tuple[tuple[int, Ranges], ...] = ()  # by IANA number
    others: bool = False
    named: tuple[tuple[int, int, tuple[str, ...]], ...] = ()  # protocol, port and who is called there: named ports


class Judge:
    """The policy table, asked for whole peers instead of packets."""

    def __init__(self, table: Mapping[bytes, bytes], named_ports: Iterable[bytes] = ()) -> None:
        found: dict[int, dict[PolicyKey, PolicyEntry]] = defaultdict(dict)
        for raw_key, raw_entry in table.items():
            key, entry = PolicyMapKey.unpack(raw_key), PolicyMapEntry.unpack(raw_entry)
            known = PolicyKey(key.identity, key.direction, key.protocol, key.port, key.l4_bits)
            found[key.policy][known] = PolicyEntry(
                entry.precedence,
                entry.cookie,
                bool(entry.flags & POLICY_DENIES),
                entry.proxy_port,
                bool(entry.flags & POLICY_NAMED),
            )
        self._policies = {
            number: EndpointPolicy(identity=number, ingress_enforced=True, egress_enforced=True, entries=entries)
            for number, entries in found.items()
        }
        self._called: dict[tuple[int, int, int, int], list[str]] = defaultdict(list)
        for each in sorted(map(NamedPortKey.unpack, named_ports), key=lambda row: row.pack()):
            self._called[each.policy, each.cookie, each.protocol, each.port].append(each.address)
        self._nothing = EndpointPolicy(identity=0, ingress_enforced=True, egress_enforced=True)

    def named(self, policy: int, direction: int) -> set[int]:
        """Identities that have entries of their own; all others are judged as their group is."""
        entries = self._policies.get(policy, self._nothing).entries
        return {key.identity for key in entries if key.direction == direction} - {*AGGREGATES}

    def allowed(self, policy: int, direction: int, peer: int, *, as_group: bool = False) -> Allowed:
        """What is allowed between the policy's pods and the identity `peer`; nothing, if the policy has no entries.

        Args:
            as_group: `peer` stands for those of its group that have no entries of their own.
        """
        held = self._policies.get(policy, self._nothing).entries
        who = {aggregate(peer)} if as_group else {peer, aggregate(peer)}
        mine = [key for key in held if key.direction == direction and key.identity in who]
        narrowed = EndpointPolicy(
            identity=policy, ingress_enforced=True, egress_enforced=True, entries={key: held[key] for key in mine}
        )

        def passes(protocol: int, port: int, at: str = "") -> bool:
            """Whether it is allowed at `at`; "": at an address whose pod gives the port no name."""
            names = {
                cookie: frozenset({at}) for cookie in cookies if at in self._called[policy, cookie, protocol, port]
            }
            asked = replace(narrowed, port_names=names) if at else narrowed
            return verdict(asked, peer, direction, protocol, port, frozenset({at})).allowed

        by_name = [key for key in mine if held[key].named]
        cookies = {held[key].cookie for key in by_name}
        protocols = sorted({key.protocol for key in mine if key.l4_bits >= PROTOCOL_BITS})
        ports = tuple(
            (protocol, _ranges(((first, passes(protocol, first)) for first in _edges(mine, protocol)), PORT_MAX))
            for protocol in protocols
        )
        named = tuple(
            (protocol, port, tuple(at for at in sorted(set(called)) if passes(protocol, port, at)))
            for protocol, port in sorted({(key.protocol, key.port) for key in by_name})
            if not passes(protocol, port)
            and (called := [at for cookie in cookies for at in self._called[policy, cookie, protocol, port]])
        )
        return Allowed(ports, passes(NO_PROTOCOL, 0), named)


def _edges(keys: Iterable[PolicyKey], protocol: int) -> list[int]:
    """Ports at which the longest match may be another than just before; 0 first."""
    edges = {0}
    for key in keys:
        if key.protocol == protocol and key.l4_bits > PROTOCOL_BITS:
            edges |= {key.port, key.port + (1 << PROTOCOL_BITS + 16 - key.l4_bits)}
    return sorted(edges - {PORT_MAX + 1})


def _ranges(answers: Iterable[tuple[int, bool]], last: int) -> Ranges:
    """Where the answer is yes. `answers`: from this port on, up to the next."""
    found: list[tuple[int, int]] = []
    begun: int | None = None
    for first, yes in answers:
        if yes and begun is None:
            begun = first
        elif not yes and begun is not None:
            found.append((begun, first - 1))
            begun = None
    if begun is not None:
        found.append((begun, last))
    return tuple(found)
