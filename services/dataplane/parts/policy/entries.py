"""From rules and selectors to the entries of the kernel's policy map, and what the map then answers. Pure: no I/O.

`entries_for` expands everything that governs one local identity; `verdict` is the twin in Python of what
bpf/include/policy.h does with the entries. What was heard, and whom a change concerns, is in store.py.

Nothing here opens anything by mistake: a rule that names a selector not heard, a port still called by name, or an
entity nobody knows, allows nothing, and where the rule denies, is about everyone; a policy whose subject is not heard
denies, by its defaults, everyone; a direction with more entries than its endpoint may have is denied as a whole.
so is one whose entries find no room in the map. `EndpointPolicy.missing`, `.full` and `.left_out` say so.

What is denied is denied whatever is allowed. Between two peers the weight of entries sees to that; for one peer the
longest key is found, so what a rule denies as a whole has no entry that allows a part of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Literal, NamedTuple

from bus.labels import IDENTITY_MAX, IDENTITY_MIN, RESERVED, selects
from bus.messages.policy import PolicyRules, Selector, SelectorRule
from bus.messages.resources import PortRange
from services.dataplane.parts.policy.networks import Networks
from services.dataplane.shapes.layouts import POLICY_DENIES, POLICY_NAMED
from services.dataplane.shapes.limits import limit
from services.dataplane.shapes.mode import DEFAULT_MODE, Mode
from services.dataplane.shapes.protocols import numbers_of

INGRESS = 0
EGRESS = 1
Direction = Literal["ingress", "egress"]
DIRECTIONS: tuple[Direction, Direction] = ("ingress", "egress")

HOST = RESERVED["host"]
WORLD = frozenset(RESERVED[name] for name in ("world", "world-ipv4", "world-ipv6"))
AGGREGATE_CLUSTER = limit("AGGREGATE_CLUSTER")
AGGREGATE_WORLD = limit("AGGREGATE_WORLD")
AGGREGATE_REMOTE_NODE = limit("AGGREGATE_REMOTE_NODE")
AGGREGATES = (AGGREGATE_CLUSTER, AGGREGATE_WORLD, AGGREGATE_REMOTE_NODE)
"""Identities of the map alone: one entry for a whole group. Everyone belongs to exactly one (see `aggregate`)."""

ENTITIES: Mapping[str, tuple[int, ...]] = {
    "all": AGGREGATES,
    "none": (),
    "world": (AGGREGATE_WORLD,),
    "cluster": (AGGREGATE_CLUSTER, AGGREGATE_REMOTE_NODE),
    "remote-node": (AGGREGATE_REMOTE_NODE,),
    **{name: (RESERVED[name],) for name in ("host", "init", "health", "unmanaged", "kube-apiserver")},
    **{name: (RESERVED[name],) for name in ("world-ipv4", "world-ipv6")},
}

VERSIONS = {"world-ipv4": 4, "world-ipv6": 6}
"""Entities that are more than their number: networks of a family, whom policies call by numbers of their own."""

NO_NETWORKS = Networks()

ENTRIES_MAX = 16384
"""Entries of one identity, both directions together, unless PLEXUS_POLICY_MAP_MAX says otherwise."""

POLICY_DENIED = "Policy denied"
POLICY_DENIED_BY_RULE = "Policy denied by denylist"

PROTOCOL_BITS = 8
FULL_BITS = 24
"""Bits of a key after the fixed part: none (any protocol), 8 (any port) or 9 to 24 (the first bits of the port)."""


def precedence(kind: Literal["allow", "deny"], priority: int = 0) -> int:
    """What decides between two entries, whatever their length: a lower priority wins, and on one level deny does."""
    return (0xFFFFFF - priority) << 8 | {"allow": 1, "deny": 255}[kind]


class PolicyKey(NamedTuple):
    """A key of the map without its first field, the policy id. Bits of protocol and port beyond `l4_bits` are 0."""

    identity: int
    direction: int  # INGRESS or EGRESS
    protocol: int
    port: int  # host byte order; for ICMP the type + 1
    l4_bits: int  # 0, 8, or 9 to 24


class PolicyEntry(NamedTuple):
    precedence: int
    cookie: int  # names the policies, see EndpointPolicy.cookies; 0: no policy, the node's own right
    deny: bool = False
    proxy_port: int = 0
    named: bool = False  # only where the called pod gives the port one of EndpointPolicy.port_names

    @property
    def flags(self) -> int:
        return POLICY_DENIES * self.deny | POLICY_NAMED * self.named


ALLOW, DENY = precedence("allow"), precedence("deny")
REST = precedence("allow", 1)


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """What holds for the pods of one local identity."""

    identity: int
    ingress_enforced: bool
    egress_enforced: bool
    entries: Mapping[PolicyKey, PolicyEntry] = field(default_factory=dict)
    cookies: Mapping[int, tuple[str, ...]] = field(default_factory=dict)  # "CiliumNetworkPolicy/default/rule1"
    port_names: Mapping[int, frozenset[str]] = field(default_factory=dict)  # of entries that are named, by cookie
    ingress_deciders: tuple[str, ...] = ()  # the policies that make ingress default to deny
    egress_deciders: tuple[str, ...] = ()
    full: tuple[Direction, ...] = ()  # directions denied because their entries are too many
    left_out: int = 0  # entries that they would have
    closed_policies: Mapping[Direction, tuple[str, ...]] = field(default_factory=dict)  # that say something of them
    missing: frozenset[str] = frozenset()  # selectors that rules name and nobody said
    audited: Mapping[int, str] = field(default_factory=dict)  # by cookie, of what is let pass: why it would be denied

    def enforced(self, direction: int) -> bool:
        return self.egress_enforced if direction == EGRESS else self.ingress_enforced

    def deciders(self, direction: int) -> tuple[str, ...]:
        return self.egress_deciders if direction == EGRESS else self.ingress_deciders


@dataclass(frozen=True, slots=True)
class Verdict:
    allowed: bool
    reason: str = ""  # public name of the drop reason
    cookie: int = 0  # of the entry that decided


def aggregate(identity: int) -> int:
    """The group that an identity is of. Must match `aggregate` in bpf/include/policy.h."""
    if identity in WORLD or identity > IDENTITY_MAX:
        return AGGREGATE_WORLD
    if identity in (RESERVED["remote-node"], RESERVED["kube-apiserver"]):
        return AGGREGATE_REMOTE_NODE
    return AGGREGATE_CLUSTER


def name_of(policy: PolicyRules) -> str:
    """ "CiliumNetworkPolicy/default/rule1", as events and people call it."""
    return f"{policy.kind}/{policy.namespace}/{policy.name}"


def prefixes(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The fewest (port, bits) whose prefixes cover exactly `first` to `last`; 0 <= first <= last <= 65535."""
    while first <= last:
        size = 1 << 16 if first == 0 else first & -first
        while first + size - 1 > last:
            size >>= 1
        yield first, 17 - size.bit_length()
        first += size


def l4_parts(ports: Sequence[PortRange]) -> frozenset[tuple[int, int, int]]:
    """(protocol, port, l4_bits) of all that a rule's ports allow. No ports: everything. A bad range: nothing."""
    if not ports:
        return frozenset({(0, 0, 0)})
    parts: set[tuple[int, int, int]] = set()
    for each in ports:
        last = each.end_port or each.port
        if each.name or not 0 <= each.port <= last <= 65535:
            continue
        if last == 0:
            parts |= (
                {(0, 0, 0)}  # every protocol there is
                if each.protocol == "ANY"
                else {(number, 0, PROTOCOL_BITS) for number in numbers_of(each.protocol)}
            )
        else:
            for protocol in numbers_of(each.protocol):
                parts |= {(protocol, port, PROTOCOL_BITS + bits) for port, bits in prefixes(each.port, last)}
    return frozenset(parts)


def named_parts(ports: Sequence[PortRange]) -> frozenset[tuple[int, int, str]]:
    """(protocol, port, name): this number, of the pods that call it so. A name without a number allows nothing yet."""
    return frozenset(
        (protocol, each.port, each.name)
        for each in ports
        if each.name and 0 < each.port <= 65535 and each.end_port in (0, each.port)
        for protocol in numbers_of(each.protocol)
    )


def denied_parts(ports: Sequence[PortRange]) -> frozenset[tuple[int, int, int]]:
    """(protocol, port, l4_bits) of all that a rule's ports deny: as `l4_parts`, but that a named port is its number at
    every pod of the peer, and one that makes no sense is every port."""
    parts: set[tuple[int, int, int]] = set()
    for each in ports:
        own = l4_parts([each]) or {(protocol, port, FULL_BITS) for protocol, port, _ in named_parts([each])}
        if not own:
            return l4_parts([])
        parts |= own
    return frozenset(parts) or l4_parts([])


def governs(
    policy: PolicyRules, identity: int, selectors: Mapping[str, Selector], labels: Mapping[str, str] | None = None
) -> bool:
    """The policy is for pods of this identity. One whose subject is not heard counts as for all: it may well be.

    Args:
        labels: those of the identity; they decide, so that a pod is governed from its first packet, whether or not
            the policy service has heard of its identity. None: not known, then the subject's members decide.
    """
    subject = selectors.get(policy.subject)
    if subject is None:
        return True
    return _has(subject.members, identity) if labels is None else selects(subject.selector, labels)


def entries_for(
    identity: int,
    policies: Iterable[PolicyRules],
    selectors: Mapping[str, Selector],
    labels: Mapping[str, str] | None = None,
    *,
    networks: Networks = NO_NETWORKS,
    limit: int = ENTRIES_MAX,
    closed: Collection[int] = (),
    only: Set[int] | None = None,
    mode: Mode = DEFAULT_MODE,
) -> EndpointPolicy:
    """Expand all that governs one local identity.

    Args:
        policies: any; those that do not govern `identity` are passed over.
        selectors: by id.
        labels: those of `identity`, see `governs`. Peers are members always: whom nobody has heard of may not call.
        networks: what selectors of networks mean on this node.
        limit: entries at most; over it the larger direction is denied, and if need be the other as well.
        closed: directions that are denied as a whole because the map has no room for their entries.
        only: peers; what is for nobody of them, and for no group, is left out.
    Returns: entries by key. Where two keys overlap, the longer one's cookie also names the policies of the shorter,
        so whichever the look-up finds names all that allow the packet by the same peer. A named port of a peer that
        may have the number anyhow has no entry: where it does not hold, nothing shorter would be asked.
    """
    mine = sorted((each for each in policies if governs(each, identity, selectors, labels)), key=name_of)
    missing: set[str] = set()
    deciders: list[list[str]] = [[], []]
    sources: list[dict[PolicyKey, set[str]]] = [{}, {}]
    denied: list[dict[PolicyKey, set[str]]] = [{}, {}]
    named: dict[PolicyKey, dict[str, set[str]]] = {}  # -> name of a port -> policies
    port_names: dict[PolicyKey, frozenset[str]] = {}
    for policy in mine:
        name = name_of(policy)
        if policy.deny_ingress_by_default:
            deciders[INGRESS].append(name)
        if policy.deny_egress_by_default:
            deciders[EGRESS].append(name)
        if policy.subject not in selectors:
            missing.add(policy.subject)
            continue
        for rule in policy.rules:
            missing.update(key for key in referred(rule) if key not in selectors)
            if rule.subject and not (rule.subject in selectors and _has(selectors[rule.subject].members, identity)):
                continue
            direction = DIRECTIONS.index(rule.direction)
            parts, by_name = l4_parts(rule.ports), named_parts(rule.ports)
            for peer in _peers(rule, selectors, networks, only):
                for protocol, port, bits in parts:
                    sources[direction].setdefault(PolicyKey(peer, direction, protocol, port, bits), set()).add(name)
                for protocol, port, port_name in by_name:
                    key = PolicyKey(peer, direction, protocol, port, FULL_BITS)
                    named.setdefault(key, {}).setdefault(port_name, set()).add(name)
        for rule in policy.denies:
            unheard = [key for key in referred(rule) if key not in selectors]
            missing.update(unheard)
            is_partial = any(selectors[key].partial for key in referred(rule) if key in selectors)
            is_ours = is_partial or rule.subject not in selectors or _has(selectors[rule.subject].members, identity)
            if not is_ours:
                continue
            direction = DIRECTIONS.index(rule.direction)
            is_vague = bool(unheard) or is_partial or not ENTITIES.keys() >= set(rule.entities)
            for peer in AGGREGATES if is_vague else _peers(rule, selectors, networks, only):
                for protocol, port, bits in denied_parts(rule.ports):
                    denied[direction].setdefault(PolicyKey(peer, direction, protocol, port, bits), set()).add(name)
    is_selected = [bool(deciders[direction] or denied[direction]) for direction in (INGRESS, EGRESS)]
    enforced = [mode.enforcement != "never" and (each or mode.enforcement == "always") for each in is_selected]
    for direction in (INGRESS, EGRESS):
        is_by_default = deciders[direction] or mode.enforcement == "always"
        if enforced[direction] and not is_by_default:  # what no rule denies is open
            sources[direction] |= {PolicyKey(group, direction, 0, 0, 0): set() for group in AGGREGATES}
        for key in [key for key in sources[direction] if _is_covered(key, denied[direction])]:
            del sources[direction][key]
    for key in [key for key in named if _is_covered(key, denied[key.direction])]:
        del named[key]
    for key, by in named.items():
        if not _is_covered(key, sources[key.direction]):
            sources[key.direction][key] = set().union(*by.values())
            port_names[key] = frozenset(by)
    left_out = sum(len(sources[each]) + len(denied[each]) for each in (INGRESS, EGRESS) if enforced[each])
    full = _drop_what_is_too_much(sources, denied, enforced, limit, closed)
    left_out -= sum(len(sources[each]) + len(denied[each]) for each in (INGRESS, EGRESS) if enforced[each])
    entries, cookies, names_of = _entries(
        [part for part, on in zip(sources, enforced, strict=True) if on],
        [part for part, on in zip(denied, enforced, strict=True) if on],
        port_names,
    )
    audited = _audit(entries, cookies, enforced, deciders, closed) if mode.audit else {}
    if enforced[INGRESS] and INGRESS not in closed:  # it is let in without, too (flow.h)
        entries.setdefault(PolicyKey(HOST, INGRESS, 0, 0, 0), PolicyEntry(ALLOW, 0))
    return EndpointPolicy(
        identity=identity,
        ingress_enforced=enforced[INGRESS],
        egress_enforced=enforced[EGRESS],
        entries=entries,
        cookies=cookies,
        port_names=names_of,
        ingress_deciders=tuple(deciders[INGRESS]),
        egress_deciders=tuple(deciders[EGRESS]),
        full=tuple(DIRECTIONS[direction] for direction in sorted(full)),
        left_out=left_out,
        closed_policies={
            DIRECTIONS[direction]: tuple(name_of(each) for each in mine if _speaks_of(each, direction))
            for direction in full
        },
        missing=frozenset(missing),
        audited=audited,
    )


def denied(identity: int) -> EndpointPolicy:
    """Both directions closed but for the node itself: what holds before anything is known, as for `init`."""
    host = {PolicyKey(HOST, INGRESS, 0, 0, 0): PolicyEntry(ALLOW, 0)}
    return EndpointPolicy(identity=identity, ingress_enforced=True, egress_enforced=True, entries=host)


def verdict(
    policy: EndpointPolicy, peer: int, direction: int, protocol: int, port: int, called: frozenset[str] = frozenset()
) -> Verdict:
    """What the BPF program answers for the first packet of a connection.

    Args:
        peer: the identity at the other end.
        protocol, port: IANA number; destination port, for ICMP the type + 1.
        called: the names that the pod which is called gives to this port.
    Source: bpf/include/policy.h, and `judge` in flow.h: the node itself may always reach its pods.
    """
    if not policy.enforced(direction) or (peer == HOST and direction == INGRESS):
        return Verdict(allowed=True)
    found = [
        match
        for identity in (peer, aggregate(peer))  # on a tie the first, so the specific one, stays
        if (match := _longest(policy.entries, identity, direction, protocol, port)) is not None
        and (not match[1].named or policy.port_names.get(match[1].cookie, frozenset()) & called)
    ]
    if not found:
        return Verdict(allowed=False, reason=POLICY_DENIED)
    _, entry = max(found, key=lambda match: (match[1].precedence, match[0]))
    if entry.deny:
        return Verdict(allowed=False, reason=POLICY_DENIED_BY_RULE, cookie=entry.cookie)
    return Verdict(allowed=True, cookie=entry.cookie)


def diff(
    old: Mapping[PolicyKey, PolicyEntry], new: Mapping[PolicyKey, PolicyEntry]
) -> tuple[dict[PolicyKey, PolicyEntry], set[PolicyKey]]:
    """What to write (new or with another value), and what to delete afterwards, to get from `old` to `new`."""
    return {key: entry for key, entry in new.items() if old.get(key) != entry}, set(old.keys() - new.keys())


def _has(ascending: Sequence[int], number: int) -> bool:
    at = bisect_left(ascending, number)
    return at < len(ascending) and ascending[at] == number


def referred(rule: SelectorRule) -> list[str]:
    """The ids of the selectors that a rule names."""
    return [*rule.selectors, rule.subject] if rule.subject else rule.selectors


def _peers(
    rule: SelectorRule, selectors: Mapping[str, Selector], networks: Networks, only: Set[int] | None
) -> set[int]:
    """The map identities that a rule is about, and of which something is asked."""
    peers: set[int] = set(AGGREGATES) if rule.any_peer else set()
    for entity in rule.entities:
        peers.update(ENTITIES.get(entity, ()))
        if entity in VERSIONS and only is None:
            peers.update(networks.of_version(VERSIONS[entity]))
        elif entity in VERSIONS:
            peers.update(each for each in only or () if networks.is_of_version(each, VERSIONS[entity]))
    for key in rule.selectors:
        selector = selectors.get(key)
        if selector is None:
            continue
        if only is None:
            peers.update(networks.meant_by(key))
            peers.update(number for number in selector.members if IDENTITY_MIN <= number <= IDENTITY_MAX)
        else:
            if selector.networks or selector.names:
                peers |= only & networks.meant_by(key)
            if selector.members:
                peers.update(each for each in only if each >= IDENTITY_MIN and _has(selector.members, each))
    return peers


def amended(before: EndpointPolicy, part: EndpointPolicy, only: Set[int], limit: int) -> EndpointPolicy | None:
    """What holds now, if only these peers may be other than before; `part` is what `entries_for` says of them alone.

    Costs a few microseconds for each ten entries that stay, and what `part` cost.
    Returns: None: it takes an expansion of everything.
    """
    kept = {key: entry for key, entry in before.entries.items() if key.identity not in only}
    entries = kept | {key: entry for key, entry in part.entries.items() if key.identity in only}
    if before.full or part.full or len(entries) >= limit or part.missing != before.missing:
        return None
    for direction in (INGRESS, EGRESS):
        denies = any(entry.deny and key.direction == direction for key, entry in entries.items())
        if part.enforced(direction) != before.enforced(direction) and (part.enforced(direction) or not denies):
            return None  # denials alone close the direction, and the first has come or the last has gone
    cookies = {**before.cookies, **part.cookies}
    port_names = {**before.port_names, **part.port_names}
    is_same = all(before.cookies.get(number, names) == names for number, names in part.cookies.items()) and all(
        before.port_names.get(number, names) == names for number, names in part.port_names.items()
    )
    if not is_same:  # two lists of policies would like one number
        return None
    used = {entry.cookie for entry in entries.values()}
    return replace(
        before,
        entries=entries,
        cookies={number: names for number, names in cookies.items() if number in used},
        port_names={number: names for number, names in port_names.items() if number in used},
        audited={number: why for number, why in {**before.audited, **part.audited}.items() if number in used},
    )


def _drop_what_is_too_much(
    sources: list[dict[PolicyKey, set[str]]],
    denied: list[dict[PolicyKey, set[str]]],
    enforced: list[bool],
    limit: int,
    closed: Collection[int],
) -> list[int]:
    """Empty the directions that are closed, then the larger one, then the other, until the rest is within `limit`.
    Returns those emptied: without an entry all is denied."""
    emptied = [each for each in (INGRESS, EGRESS) if enforced[each] and each in closed]
    for each in emptied:
        sources[each], denied[each] = {}, {}
    sizes = {each: len(sources[each]) + len(denied[each]) for each in (INGRESS, EGRESS) if enforced[each]}
    for direction in sorted(sizes, key=lambda each: -sizes[each]):
        if sum(sizes.values()) + 1 > limit and sizes[direction]:  # 1: the node's own
            sources[direction], denied[direction], sizes[direction] = {}, {}, 0
            emptied.append(direction)
    return emptied


def _speaks_of(policy: PolicyRules, direction: int) -> bool:
    by_default = (policy.deny_ingress_by_default, policy.deny_egress_by_default)[direction]
    return by_default or any(rule.direction == DIRECTIONS[direction] for rule in (*policy.rules, *policy.denies))


def _is_covered(key: PolicyKey, by: Mapping[PolicyKey, set[str]]) -> bool:
    """A key of the same peer, this one or a shorter one, holds for all that this one is about."""
    lengths = (0, *range(PROTOCOL_BITS, key.l4_bits + 1))
    return any(_cut(key.identity, key.direction, key.protocol, key.port, bits) in by for bits in lengths)


def _entries(
    sources: Iterable[Mapping[PolicyKey, set[str]]],
    denied: Iterable[Mapping[PolicyKey, set[str]]],
    port_names: Mapping[PolicyKey, frozenset[str]],
) -> tuple[dict[PolicyKey, PolicyEntry], dict[int, tuple[str, ...]], dict[int, frozenset[str]]]:
    """Entries with their cookies, each of which names the policies of its own key and of all keys that cover it, but
    for those that hold only where a port has a name; and what ports are called, by the cookies of those."""
    entries: dict[PolicyKey, PolicyEntry] = {}
    cookies: dict[int, tuple[str, ...]] = {}
    names_of: dict[int, frozenset[str]] = {}
    known: dict[tuple[frozenset[str], frozenset[str]], int] = {(frozenset(), frozenset()): 0}
    for part, weight in (*((part, ALLOW) for part in sources), *((part, DENY) for part in denied)):
        lengths = sorted({key.l4_bits for key in part}, reverse=True)
        for key, own in part.items():
            names = set(own)
            for identity in _covering(key.identity):
                for bits in lengths:
                    if bits <= key.l4_bits:
                        covering = _cut(identity, key.direction, key.protocol, key.port, bits)
                        if covering not in port_names:
                            names |= part.get(covering, set())
            together = frozenset(names), port_names.get(key, frozenset())
            if together not in known:
                known[together] = _cookie(sorted(names), sorted(together[1]), cookies)
                if together[1]:
                    names_of[known[together]] = together[1]
            named = weight == ALLOW and key in port_names
            entries[key] = PolicyEntry(weight, known[together], deny=weight == DENY, named=named)
    return entries, cookies, names_of


def _audit(
    entries: dict[PolicyKey, PolicyEntry],
    cookies: dict[int, tuple[str, ...]],
    enforced: Sequence[bool],
    deciders: Sequence[Sequence[str]],
    closed: Collection[int],
) -> dict[int, str]:
    """Let pass what would be denied: by its own entry, with the weight that it has; and everything else by one for each
    group, of less weight than any other. Returns the cookies of those, and why."""
    audited: dict[int, str] = {}
    known: dict[tuple[str, tuple[str, ...]], int] = {}

    def cookie(why: str, names: tuple[str, ...]) -> int:
        if (why, names) not in known:
            known[why, names] = _cookie(names, [f"audit {why}"], cookies)
            audited[known[why, names]] = why
        return known[why, names]

    for key, entry in entries.items():
        if entry.deny:
            entries[key] = PolicyEntry(DENY, cookie(POLICY_DENIED_BY_RULE, cookies.get(entry.cookie, ())))
    for direction in (INGRESS, EGRESS):
        if enforced[direction] and direction not in closed:
            rest = PolicyEntry(REST, cookie(POLICY_DENIED, tuple(deciders[direction])))
            for group in AGGREGATES:
                entries.setdefault(PolicyKey(group, direction, 0, 0, 0), rest)
    used = {entry.cookie for entry in entries.values()}
    for number in cookies.keys() - used:
        del cookies[number]
    return audited


def _covering(identity: int) -> tuple[int, ...]:
    """The identities whose entries may also answer for this one."""
    return (identity,) if identity in AGGREGATES else (identity, aggregate(identity))


def _cookie(policies: Sequence[str], port_names: Sequence[str], cookies: dict[int, tuple[str, ...]]) -> int:
    """A number of its own for these policies and names of ports, the same after a restart; 1 to 2^32 - 1."""
    said = "\n".join([*policies, *(f"port {name}" for name in port_names)])
    number = int.from_bytes(sha256(said.encode()).digest()[:4], "big") or 1
    while number in cookies:
        number = number % 0xFFFFFFFF + 1
    cookies[number] = tuple(policies)
    return number


def _cut(identity: int, direction: int, protocol: int, port: int, bits: int) -> PolicyKey:
    """The key of this length that covers the given protocol and port."""
    if bits < PROTOCOL_BITS:
        return PolicyKey(identity, direction, 0, 0, 0)
    return PolicyKey(identity, direction, protocol, port & (0xFFFF << FULL_BITS - bits) & 0xFFFF, bits)


def _longest(
    entries: Mapping[PolicyKey, PolicyEntry], identity: int, direction: int, protocol: int, port: int
) -> tuple[int, PolicyEntry] | None:
    """One look-up by longest prefix: (its bits, the entry)."""
    for bits in (*range(FULL_BITS, PROTOCOL_BITS - 1, -1), 0):
        entry = entries.get(_cut(identity, direction, protocol, port, bits))
        if entry is not None:
            return bits, entry
    return None
