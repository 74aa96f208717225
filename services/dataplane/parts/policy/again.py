"""Who is judged again after a write: those from whom it may have taken something, or whom it leads elsewhere. Pure.

A connection was judged by the policies of its ends, by the identities of their addresses, and by where those are. A
write that only lets more through concerns nobody: what was allowed still is, and what was denied is judged at each
packet anyway. Where it is not plain that a change lets only more through, it counts as one that does not.

While a write is under way, connections may be judged by some of it. So a change counts as harmless only if what it goes
from, what it goes to, and every state between allow no more than what it comes to.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from bus.labels import IDENTITY_MAX, RESERVED
from services.dataplane.parts.policy.entries import HOST, WORLD, aggregate
from services.dataplane.shapes.again import EVERYTHING, Again
from services.dataplane.shapes.layouts import (
    ADDRESS_BYTES,
    POLICY_DENIES,
    POLICY_NAMED,
    EndpointEntry,
    IpcacheEntry,
    pack_address,
)
from services.dataplane.shapes.table import UNKNOWN, Table

Changes = Mapping[bytes, bytes | None]
"""By key: the value before, as `Table.changes` has it."""
Place = tuple[object, ...]
"""Where an address is, as far as the way of a connection's packets follows from it."""

HERE: Place = ("here",)
NOWHERE: Place = ("nowhere",)  # of this node's blocks, and no pod has it: nothing goes there, so no way is kept
ON_HOST: Place = ("host",)
MAPPED = pack_address("0.0.0.0")[:-4]
WHOLE_BITS = 8 * ADDRESS_BYTES
FOLLOWED = {
    "policy",
    "named_ports",
    "ipcache",
    "endpoints",
    "services",
    "backends",
    "living",
    "source_ranges",
    "l2_answers",
}
"""Tables of which it is known what a change does; any other's concerns everybody."""
MANY = 1024  # changes in a write, at which it is cheaper to judge everything again than to find out
COUNTS = (
    slice(4, 8),
    slice(16, 20),
)  # of backends, in a Service's entry: of all that serve there, and of those from outside


Who = tuple[tuple[int, ...], Place]
"""By which identities an address is known, and where it is."""


class Judged:
    """What is judged again, as a function of what changes in the tables of a node.

    Args:
        own_addresses: of this node, by which an address is known to be here (C: `is_node`).
    """

    def __init__(self, tables: Iterable[Table], own_addresses: Iterable[str]) -> None:
        self._tables = {table.name: table for table in tables}
        self._policy, self._named, self._ipcache, self._endpoints = (
            self._tables[name].wanted for name in ("policy", "named_ports", "ipcache", "endpoints")
        )
        self._own = frozenset(own_addresses)
        self._entries: defaultdict[tuple[int, int], set[bytes]] = defaultdict(set)  # keys, by policy and peer
        self._asked: defaultdict[int, set[int]] = defaultdict(set)  # policies that have entries for a peer
        self._odd: set[bytes] = set()  # keys of entries for named ports that do more than allow
        self._lengths: set[int] = set()  # of prefixes that were ever in the ipcache

    def again(self) -> Again:
        """After the next write of all that the tables owe. Call it each time, just before they are taken."""
        changes = {name: found for name, table in self._tables.items() if (found := table.changes())}
        self._follow(changes.get("policy", ()), changes.get("ipcache", ()))
        if sum(map(len, changes.values())) > MANY or not changes.keys() <= FOLLOWED:
            return EVERYTHING
        if any(UNKNOWN in each.values() for each in changes.values()):
            return EVERYTHING
        ipcache, endpoints = changes.get("ipcache", {}), changes.get("endpoints", {})
        policies = set(self._narrowed(changes.get("policy", {}), changes.get("named_ports", {})))
        for key in {*ipcache, *(_whole(address) for address in endpoints)}:
            concerned = self._moved(key, ipcache, endpoints)
            if concerned is None:
                return EVERYTHING
            policies |= concerned
        return Again(
            services=self._are_services_concerned(changes),
            ahead=any(self._is_anothers(key, before) for key, before in ipcache.items()),
            endpoints=frozenset(
                address
                for address, value in self._endpoints.items()
                if endpoints.get(address, value) != value or EndpointEntry.unpack(value).policy in policies
            ),
        )

    def learn(self) -> None:
        """Tables have adopted what maps hold: what they do not owe has not been seen here."""
        self._follow(self._policy, self._ipcache)

    def _follow(self, policy: Iterable[bytes], ipcache: Iterable[bytes]) -> None:
        for key in policy:
            number, peer = _of(key)
            value = self._policy.get(key)
            if value is None:
                self._forget(number, peer, key)
            else:
                self._entries[number, peer].add(key)
                self._asked[peer].add(number)
                (self._odd.add if _flags(value) & POLICY_NAMED and not _allows(value) else self._odd.discard)(key)
        self._lengths.update(map(_bits, ipcache))

    def _forget(self, policy: int, peer: int, key: bytes) -> None:
        self._odd.discard(key)
        left = self._entries.get((policy, peer), set())
        left.discard(key)
        if not left:
            self._entries.pop((policy, peer), None)
            self._asked[peer].discard(policy)
            if not self._asked[peer]:
                del self._asked[peer]

    # Policy

    def _narrowed(self, policy: Changes, named: Changes) -> Iterator[int]:
        """Policies that may allow less now."""
        for key, before in policy.items():
            number, peer = _of(key)
            after = self._policy.get(key)
            if after is None or not _is_plain(after) or not self._only_adds(before, after, number, peer):
                yield number
        odd = {_of(key)[0] for key in self._odd}
        for key in named:
            number = int.from_bytes(key[:4], "little")
            if key not in self._named or number in odd:
                yield number

    def _only_adds(self, before: bytes | None, after: bytes, policy: int, peer: int) -> bool:
        """An entry that allows came, or is where another of no more weight was. It is in no other's place: of the same
        peer none of more weight would be found without it."""
        if (
            before is not None
            and _flags(before) != POLICY_DENIES
            and not (_is_plain(before) and _precedence(before) <= _precedence(after))
        ):
            return False
        return all(_precedence(each) <= _precedence(after) for each in self._of_peer(policy, peer).values())

    def _of_peer(self, policy: int, peer: int) -> dict[bytes, bytes]:
        """Entries of a policy for a peer, by what is left of the key."""
        keys = self._entries.get((policy, peer), ())
        return {key[:4] + key[12:]: self._policy[key] for key in keys if key in self._policy}

    def _allows_as_much(self, policy: int, as_: int, was: int) -> bool:
        """Whoever was the peer `was` may do no less as the peer `as_`."""
        before, after = self._of_peer(policy, was), self._of_peer(policy, as_)
        if before == after:
            return True
        if not all(map(_is_plain, (*before.values(), *after.values()))):
            return False
        most = max(map(_precedence, before.values()), default=0)
        return all(
            key in after and _precedence(after[key]) >= _precedence(value) for key, value in before.items()
        ) and all(_precedence(value) >= most for key, value in after.items() if key not in before)

    # Addresses

    def _moved(self, key: bytes, ipcache: Changes, endpoints: Changes) -> set[int] | None:
        """Policies to which an address, or all of a network for which nothing longer speaks, is another one now. None:
        it is elsewhere."""
        address = key[4:]
        passing, value = self._walk(key, ipcache)
        now = self._who(value, address)
        was = [self._who(each, address) for each in passing]
        if _bits(key) == WHOLE_BITS:
            pod, before = self._endpoints.get(address), endpoints.get(address, self._endpoints.get(address))
            if pod is not None and address not in endpoints:
                return set()  # it is a pod's, and nothing else is asked
            if before is not None:
                was.append(_pod(before))
            if pod is not None:
                now = _pod(pod)
        concerned: set[int] = set()
        for identities, place in was:
            if place != now[1] and place not in (NOWHERE, HERE):
                return None
            if identities != now[0]:
                concerned |= {each for one in identities for other in now[0] for each in self._to_whom_less(one, other)}
        return concerned

    def _who(self, value: bytes | None, address: bytes) -> Who:
        return self._identities(value, address), self._place(value)

    def _to_whom_less(self, was: int, now: int) -> set[int]:
        """Policies to which `was` may have been more than `now` is."""
        if was == now:
            return set()
        pairs = [(was, now)] if aggregate(was) == aggregate(now) else [(was, now), (aggregate(was), aggregate(now))]
        asked = set().union(*(self._asked.get(each, ()) for pair in pairs for each in pair))
        return {
            policy for policy in asked if not all(self._allows_as_much(policy, each, other) for other, each in pairs)
        }

    def _walk(self, key: bytes, changes: Changes) -> tuple[list[bytes | None], bytes | None]:
        """What the ipcache may have said of this network's addresses before and while it is written, and what it says
        in the end. None: nothing, it is the world."""
        passing: list[bytes | None] = []
        found: list[bytes | None] = []
        for bits in sorted((each for each in self._lengths if each <= _bits(key)), reverse=True):
            covering = _cut(key, bits)
            now = self._ipcache.get(covering)
            if covering in changes:
                passing += [each for each in (changes[covering], now) if each is not None]
                found += [now] if now is not None else []
            elif now is not None:
                return [*passing, now], (found or [now])[0]
        return [*passing, None], (found or [None])[0]

    def _identities(self, value: bytes | None, address: bytes) -> tuple[int, ...]:
        """Of the world all that it may be called."""
        if value is not None:
            return (IpcacheEntry.unpack(value).identity,)
        return RESERVED["world"], RESERVED["world-ipv4" if address.startswith(MAPPED) else "world-ipv6"]

    def _place(self, value: bytes | None) -> Place:
        if value is None:
            return "out", True
        entry = IpcacheEntry.unpack(value)
        if entry.identity == HOST:
            return ON_HOST
        if entry.node in self._own:
            return NOWHERE
        if entry.node:
            return "behind", entry.node, entry.routed
        return "out", entry.identity in WORLD or entry.identity > IDENTITY_MAX  # C: needs_masquerade

    def _is_anothers(self, key: bytes, before: bytes | None) -> bool:
        """A pod elsewhere may have told by the tunnel who it was, before it was known here."""
        after = self._ipcache.get(key)
        nodes = [IpcacheEntry.unpack(each).node for each in (before, after) if each is not None]
        return _bits(key) == WHOLE_BITS and before != after and any(node not in ("", *self._own) for node in nodes)

    # Services

    def _are_services_concerned(self, changes: Mapping[str, Changes]) -> bool:
        """A Service came, went or has another number: more or fewer backends lead nobody elsewhere who has one. Or a
        backend is gone."""
        services, living = self._tables["services"].wanted, self._tables["living"].wanted
        return any(
            key not in services or before is None or _but_counts(services[key]) != _but_counts(before)
            for key, before in changes.get("services", {}).items()
        ) or any(key not in living for key in changes.get("living", ()))


def _pod(value: bytes) -> Who:
    return (EndpointEntry.unpack(value).identity,), HERE


def _whole(address: bytes) -> bytes:
    return WHOLE_BITS.to_bytes(4, "little") + address


def _bits(key: bytes) -> int:
    return int.from_bytes(key[:4], "little")


def _cut(key: bytes, bits: int) -> bytes:
    """The key of the network of so many bits around this one."""
    number = int.from_bytes(key[4:], "big") >> (WHOLE_BITS - bits) << (WHOLE_BITS - bits)
    return bits.to_bytes(4, "little") + number.to_bytes(ADDRESS_BYTES, "big")


def _but_counts(service: bytes) -> bytes:
    everyone, outside = COUNTS
    return service[: everyone.start] + service[everyone.stop : outside.start] + service[outside.stop :]


_NUMBERS = struct.Struct("=4xII4x")


def _of(key: bytes) -> tuple[int, int]:
    """Policy and peer of a key of the policy map."""
    policy, peer = _NUMBERS.unpack(key)
    return policy, peer


def _precedence(entry: bytes) -> int:
    return int.from_bytes(entry[:4], "little")


def _flags(entry: bytes) -> int:
    return entry[10]


def _allows(entry: bytes) -> bool:
    """It leads nobody to a proxy, either."""
    return not _flags(entry) & ~POLICY_NAMED and entry[8:10] == bytes(2)


def _is_plain(entry: bytes) -> bool:
    """It allows, wherever it is found."""
    return _flags(entry) == 0 and entry[8:10] == bytes(2)
