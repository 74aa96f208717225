"""The map `policy`: for each identity that has pods here, all that holds for it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from bus import subjects
from bus.messages.dataplane import ClosedDirection
from bus.messages.policy import PolicyRules, Selector
from services.dataplane.part import Fact, Facts, Hears, Held, Maps, Part, Row, Shows
from services.dataplane.parts.policy.entries import PROTOCOL_BITS, EndpointPolicy, PolicyEntry, PolicyKey, diff
from services.dataplane.parts.policy.networks import check_networks, networks_in
from services.dataplane.parts.policy.store import PolicyStore
from services.dataplane.shapes.layouts import DIRECTIONS, POLICY_DENIES, PolicyMapEntry, PolicyMapKey, check_identity
from services.dataplane.shapes.protocols import WITH_TYPES, name_of
from services.dataplane.shapes.table import Table

TOO_MANY = "more than {} entries of policy for one endpoint: raise bpf.policyMapMax or use less"
NO_ROOM = "no room in the node's map of policies: raise extraConfig.plexus-policy-max or use less"
NO_MEMORY = "no memory for the node's map of policies: use less on this node"


class Policy(Part):
    """Keeps `enforced`. A burst of changes on one identity is one expansion."""

    by_rules = True

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.hears = (
            Hears(subjects.RULES, self._put_rules, self._delete_rules),
            Hears(subjects.SELECTOR, self._put_selector, self._delete_selector, check_members),
        )
        self.table = Table("policy", after=("named_ports",))
        self.tables = (self.table,)
        self.shows = (Shows("policy", "Policy entries: who may reach whom, on which port.", self._rows),)
        self.store = PolicyStore()
        self.expanded: Fact[int, EndpointPolicy] = Fact[int, EndpointPolicy]("expanded").keep()
        """By local identity, what the table holds. For this room; others have `enforced`."""
        self._enforced = facts.enforced.keep()
        self._told = facts.closed.keep()
        self._networks = facts.networks.keep()
        self._local = facts.local
        self._come_or_gone: Final = facts.local.follow()
        self._stale: set[int] = set()
        self._closed: dict[int, set[int]] = {}  # directions without room in the map, by identity
        self._room: int | None = None  # entries that the map has been seen to hold at most; None: nobody knows

    def settle(self) -> None:
        self.settle_each(self._come_or_gone, "labels of identity", self._admit)
        self.settle_each(self._stale, "identity", self._expand)
        self.settle_each(self.store.networks.changed, "network", self._number)

    def close(self, missing: Collection[bytes], *, is_full: bool) -> bool:
        """Entries found no room: their directions are denied as a whole, whatever they say, until there is room.

        Args:
            missing: keys of the table that are not in the map.
            is_full: it is known by that how many the map holds. Else the kernel had no memory, and whether it has some
                by now is found out by `try_again` alone.
        Returns: whether the next `settle` makes something of it.
        """
        found = {(key.policy, key.direction) for key in map(PolicyMapKey.unpack, missing)}
        new = {
            (identity, direction) for identity, direction in found if direction not in self._closed.get(identity, ())
        }
        for identity, direction in new:
            self._closed.setdefault(identity, set()).add(direction)
            self._stale.add(identity)
        if found:
            self._room = len(self.table) - len(missing) if is_full else None
        return bool(new)

    def open_what_fits(self) -> bool:
        """As of the last `settle`, there is room for these. Returns whether the next one makes something of it."""
        if self._room is None:
            return False
        left = self._room - len(self.table)
        for identity in sorted(self._closed):
            policy = self.expanded.get(identity)
            needed = policy.left_out + 1 if policy else 0  # 1: the node's own
            if needed <= left:
                left -= needed
                del self._closed[identity]
                self._stale.add(identity)
        return bool(self._stale)

    def try_again(self) -> None:
        """There may be memory by now."""
        if self._room is None:
            self._stale |= self._closed.keys()
            self._closed.clear()

    def _told_closed(self, policy: EndpointPolicy) -> tuple[ClosedDirection, ...]:
        closed = self._closed.get(policy.identity, ())
        why = {
            each: (NO_MEMORY if self._room is None else NO_ROOM)
            if DIRECTIONS.index(each) in closed
            else TOO_MANY.format(self.store.entries_max)
            for each in policy.full
        }
        return tuple(
            ClosedDirection(direction=each, why=why[each], policies=list(policy.closed_policies[each]))
            for each in policy.full
        )

    def adopt(self, held: Held) -> None:
        """Keep the numbers of networks that maps know."""
        self.store.networks.remember(networks_in(held("ipcache")))

    def _rows(self, maps: Maps, now: int) -> Iterator[Row]:
        for key, value in maps["policy"].items():
            k, v = PolicyMapKey.unpack(key), PolicyMapEntry.unpack(value)
            policy = self.expanded.get(k.policy)
            port_bits = max(0, k.l4_bits - PROTOCOL_BITS)
            network = self.store.networks.cidr_of(k.identity)
            yield {
                "policy": k.policy,
                "direction": DIRECTIONS[k.direction],
                "identity": k.identity,
                **({"identity_name": network} if network else {}),
                "protocol": name_of(k.protocol) if k.l4_bits >= PROTOCOL_BITS else "any",
                "port": _ports(k.port - (port_bits == 16 and k.protocol in WITH_TYPES), port_bits),
                "verdict": "deny" if v.flags & POLICY_DENIES else "allow",
                "port_names": sorted(policy.port_names.get(v.cookie, ())) if policy else [],
                "proxy_port": v.proxy_port,
                "precedence": v.precedence,
                "policies": list(policy.cookies.get(v.cookie, ())) if policy else [],
            }

    def _put_rules(self, rules: PolicyRules) -> None:
        self._stale |= self.store.put_rules(rules)

    def _delete_rules(self, kind: str, namespace: str, name: str) -> None:
        self._stale |= self.store.delete_rules(kind, namespace, name)

    def _put_selector(self, selector: Selector) -> None:
        self._stale |= self.store.put_selector(selector)

    def _delete_selector(self, key: str) -> None:
        self._stale |= self.store.delete_selector(key)

    def _admit(self, identity: int) -> None:
        labels = self._local.get(identity)
        if labels is None:
            self._stale |= self.store.remove_identity(identity)
        else:
            self._stale |= self.store.add_identity(identity, labels)

    def _number(self, cidr: str) -> None:
        number = self.store.networks.number(cidr)
        if number is None:
            self._networks.delete(cidr)
        else:
            self._networks.put(cidr, number)

    def _expand(self, identity: int) -> None:
        before = self.expanded.get(identity)
        closed = self._closed.get(identity, ())
        after = self.store.policy_of(identity, closed) if identity in self.store.identities else None
        upserts, gone = diff(before.entries if before else {}, after.entries if after else {})
        for key, entry in upserts.items():
            self.table.put(_map_key(identity, key), _map_entry(key, entry))
        for key in gone:
            self.table.delete(_map_key(identity, key))
        if after is None:
            self._closed.pop(identity, None)
            self.expanded.delete(identity)
            self._enforced.delete(identity)
            self._told.delete(identity)
        else:
            self.expanded.put(identity, after)
            self._enforced.put(identity, (after.ingress_enforced, after.egress_enforced))
            self._told.put(identity, self._told_closed(after))


def _ports(first: int, bits: int) -> str:
    """What a key is about whose port is `first`, as far as the first `bits` go."""
    if bits == 0:
        return "any"
    last = first | (1 << 16 - bits) - 1
    return str(first) if first == last else f"{first}-{last}"


def check_members(selector: Selector) -> None:
    for number in selector.members:
        check_identity(number)
    check_networks(selector)


def _map_key(identity: int, key: PolicyKey) -> bytes:
    return PolicyMapKey(identity, key.identity, key.direction, key.protocol, key.port, key.l4_bits).pack()


def _map_entry(key: PolicyKey, entry: PolicyEntry) -> bytes:
    return PolicyMapEntry(entry.precedence, entry.cookie, entry.proxy_port, entry.flags, key.l4_bits).pack()
