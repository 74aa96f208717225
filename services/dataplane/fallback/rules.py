"""The node's tables as nftables rules. Pure: `render` gives the text that `nft -f` takes as one transaction.

The tables of Plexus in nftables are `inet plexus_fallback` and, for a tunnel, `netdev plexus_fallback`; no other is
touched. A packet passes, in this order:

- `raw`: is it from who it says, and is it for somebody? Before connection tracking, so it costs no entry.
- `to_service`, `from_host`: a Service's address becomes a backend's, once a connection: by chance, or by the client's
  address where clients are to come back (to the same backend for as long as none comes or goes).
- `forward`, `to_host`: policy. Every packet of a connection is judged by the connection's first (who began it, whom it
  reached, at which port), so a rule that goes ends what it allowed, in both directions.
- `leaving`: masquerade.

A pod that the tables do not know is closed: its packets have the wrong source, and none are for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from bus.labels import RESERVED
from services.dataplane.fallback.judgement import PORT_MAX, Allowed, Judge, Ranges
from services.dataplane.fallback.networks import Network, disjoint, joined, texts
from services.dataplane.parts.policy.entries import (
    AGGREGATE_CLUSTER,
    AGGREGATE_REMOTE_NODE,
    AGGREGATE_WORLD,
    DIRECTIONS,
    EGRESS,
    INGRESS,
    aggregate,
)
from services.dataplane.shapes.layouts import (
    FLAG_ENFORCE_EGRESS,
    FLAG_ENFORCE_INGRESS,
    NO_ADDRESS,
    BackendEntry,
    BackendKey,
    EndpointEntry,
    IpcacheEntry,
    IpcacheKey,
    ServiceEntry,
    ServiceKey,
    unpack_address,
)
from services.dataplane.shapes.protocols import ICMP, WITH_TYPES

TABLE = "plexus_fallback"
COUNTERS = (
    "policy_denied",
    "invalid_source",
    "unroutable",
    "no_backend",
    "no_encapsulation",
    "no_connection",
    "forbidden",
)
NEIGHBOURS = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
ONE_LINKS = "icmpv6 type { 130-137, 143 }"  # what never leaves a link, RFC 4861 and 3810

Tables = Mapping[str, Mapping[bytes, bytes]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """What the rules need to know of the node beside its tables."""

    devices: tuple[str, ...]  # that lead to other nodes and to the outside
    own_addresses: frozenset[str]  # of the node itself, as `IpcacheEntry.node` names it
    pod_links: str = "lxc"  # how the host sides' names begin
    tunnel: str = ""  # the tunnel device; "": native routing
    tunnel_port: int = 0
    masquerade: frozenset[int] = frozenset({4})  # IP versions
    never_masqueraded: tuple[str, ...] = ()  # CIDRs of destinations
    services: tuple[str, ...] = ()  # CIDRs of ClusterIPs
    reject: bool = True  # who sends to no Service of those, or to one without backends, is told
    routers: tuple[str, ...] = ()  # what the node is called among pods, one address for each IP version
    guarded: frozenset[int] = frozenset()  # pods' links, by index, that BPF programs from before still judge
    world: Mapping[int, int] = field(default_factory=lambda: {4: RESERVED["world"], 6: RESERVED["world"]})


def render(tables: Tables, place: Place, counted: Mapping[str, tuple[int, int]], mark: str) -> str:
    """The whole of our nftables, replacing what was there.

    Args:
        tables: `endpoints`, `ipcache`, `policy`, `named_ports`, `services`, `backends` as their maps would hold them.
        counted: packets and bytes, by counter, to go on from.
        mark: names an empty chain, by which one sees that these rules are the ones in force.
    """
    node = _Node(tables, place)
    lines = [f"chain {mark} {{\n}}"]
    lines += [
        f"counter {name} {{\npackets {packets} bytes {octets}\n}}"
        for name in COUNTERS
        for packets, octets in [counted.get(name, (0, 0))]
    ]
    for version in (4, 6):
        lines += node.sets(version)
    lines += node.policies()
    lines += node.services()
    lines += [_chain(*each) for each in node.hooks()]
    script = [*_replaced("inet"), f"table inet {TABLE} {{", *lines, "}", *_replaced("netdev")]
    if place.tunnel:
        # An inner frame bears the MAC address of the sender's veth: without this the stack takes it for someone else's.
        hook = f'type filter hook ingress device "{place.tunnel}" priority 0; policy accept;'
        script += [f"table netdev {TABLE} {{", _chain("arriving", hook, ["meta pkttype set host"]), "}"]
    return "\n".join(script) + "\n"


def removal() -> str:
    """Nothing of ours is left; also when nothing was there."""
    return "\n".join([*_replaced("inet"), *_replaced("netdev")]) + "\n"


def _replaced(family: str) -> list[str]:
    return [f"table {family} {TABLE}", f"delete table {family} {TABLE}"]


def _chain(name: str, hook: str, rules: Iterable[str]) -> str:
    return "\n".join([f"chain {name} {{", *([hook] if hook else []), *rules, "}"])


def _set(name: str, kind: str, elements: Iterable[str], *, ranges: bool = False, form: str = "set") -> str:
    """One with elements; nft refuses an empty list of them."""
    lines = [f"{form} {name} {{", f"type {kind};"]
    if ranges:
        lines.append("flags interval;")
    listed = ", ".join(elements)
    if listed:
        lines.append(f"elements = {{ {listed} }}")
    return "\n".join([*lines, "}"])


def _ip(version: int) -> str:
    return "ip" if version == 4 else "ip6"


def _kind(version: int) -> str:
    return "ipv4_addr" if version == 4 else "ipv6_addr"


def _version(address: str) -> int:
    return ip_address(address).version


class _Node:
    """One rendering: the tables read once, and the names given out so far."""

    def __init__(self, tables: Tables, place: Place) -> None:
        self.place = place
        self.pods = {
            unpack_address(key): EndpointEntry.unpack(value) for key, value in sorted(tables["endpoints"].items())
        }
        entries = [(IpcacheKey.unpack(k), IpcacheEntry.unpack(v)) for k, v in sorted(tables["ipcache"].items())]
        self.ipcache: dict[Network, IpcacheEntry] = {ip_network(f"{k.address}/{k.bits}"): v for k, v in entries}
        self.judge = Judge(tables["policy"], tables.get("named_ports", ()))
        self.frontends = [(ServiceKey.unpack(k), ServiceEntry.unpack(v)) for k, v in sorted(tables["services"].items())]
        self.backends = {BackendKey.unpack(k): BackendEntry.unpack(v) for k, v in tables["backends"].items()}
        self._verdicts: dict[Allowed, str] = {}  # chains, by what they allow

    def sets(self, version: int) -> list[str]:
        """Who is where, for one IP version."""
        mine = [each for each in self.pods if _version(each) == version]
        places = [f"{self.pods[each].interface} . {each}" for each in mine]
        of_version = {net: entry for net, entry in self.ipcache.items() if net.version == version}
        others = [net for net, entry in of_version.items() if entry.node not in {NO_ADDRESS, *self.place.own_addresses}]
        blocks = [net for net, entry in of_version.items() if entry.node in self.place.own_addresses]
        here = [net for net, entry in of_version.items() if entry.identity == RESERVED["host"]]
        told = [net for net in here if not of_version[net].unadvertised]
        nodes = {entry.node for entry in self.ipcache.values()} - {NO_ADDRESS}
        kept = [net for each in self.place.never_masqueraded if (net := ip_network(each)).version == version]
        if self.place.tunnel:
            kept += others
        else:  # the fabric knows whoever has an entry
            kept += of_version
        return [
            _set(f"places{version}", f"iface_index . {_kind(version)}", places),
            _set(f"pods{version}", _kind(version), mine),
            _set(f"itself{version}", f"{_kind(version)} . {_kind(version)}", (f"{each} . {each}" for each in mine)),
            _set(f"nodes{version}", _kind(version), sorted(each for each in nodes if _version(each) == version)),
            self._networks(f"others{version}", version, others),
            self._networks(f"blocks{version}", version, blocks),
            self._networks(f"here{version}", version, here),
            self._networks(f"told{version}", version, told),
            self._networks(f"kept{version}", version, kept),
        ]

    def _networks(self, name: str, version: int, networks: Iterable[Network]) -> str:
        return _set(name, _kind(version), map(str, joined(networks)), ranges=True)

    # Policy

    def policies(self) -> list[str]:
        """Groups, a chain for each policy and direction that a pod here has, and who goes to which."""
        found: list[str] = []
        chains: list[str] = []
        for version in (4, 6):
            ranges = disjoint({n: entry.identity for n, entry in self.ipcache.items() if n.version == version})
            for name, group in (("cluster", AGGREGATE_CLUSTER), ("remote", AGGREGATE_REMOTE_NODE)):
                members = [each for each in ranges if aggregate(each.value) == group]
                found.append(_set(f"{name}{version}", _kind(version), texts(members, version), ranges=True))
            for direction, flag in ((INGRESS, FLAG_ENFORCE_INGRESS), (EGRESS, FLAG_ENFORCE_EGRESS)):
                word = DIRECTIONS[direction]
                enforced = {a: p for a, p in self.pods.items() if p.flags & flag and _version(a) == version}
                for policy in sorted({pod.policy for pod in enforced.values()}):
                    name = f"{word}{version}_{policy}"
                    named = self.judge.named(policy, direction)
                    peers = [
                        f"{address} : goto {self._verdict(policy, direction, each.value)}"
                        for each, address in zip(ranges, texts(ranges, version), strict=True)
                        if each.value in named or aggregate(each.value) == AGGREGATE_WORLD
                    ]
                    found.append(_set(f"{name}_peers", f"{_kind(version)} : verdict", peers, ranges=True, form="map"))
                    chains.append(self._policy(name, version, policy, direction))
                jumps = (f"{address} : jump {word}{version}_{pod.policy}" for address, pod in enforced.items())
                found.append(_set(f"{word}{version}", f"{_kind(version)} : verdict", jumps, form="map"))
        leaves = [_chain(name, "", _verdict_rules(allowed)) for allowed, name in self._verdicts.items()]
        return [*leaves, *chains, *found]

    def _policy(self, name: str, version: int, policy: int, direction: int) -> str:
        peer = f"ct {'original' if direction == INGRESS else 'reply'} {_ip(version)} saddr"
        groups = (("cluster", RESERVED["unmanaged"]), ("remote", RESERVED["remote-node"]))
        rules = [f"{peer} vmap @{name}_peers"]
        rules += [
            f"{peer} @{group}{version} goto {self._verdict(policy, direction, one, as_group=True)}"
            for group, one in groups
        ]
        rules.append(f"goto {self._verdict(policy, direction, self.place.world[version])}")
        return _chain(name, "", rules)

    def _verdict(self, policy: int, direction: int, peer: int, *, as_group: bool = False) -> str:
        """The chain for what this peer may do; peers that may do the same share one."""
        allowed = self.judge.allowed(policy, direction, peer, as_group=as_group)
        return self._verdicts.setdefault(allowed, f"allowed_{len(self._verdicts)}")

    # Services

    def services(self) -> list[str]:
        chains: dict[str, str] = {}  # by name: addresses of one Service that lead to the same backends share one
        found: list[str] = []
        for version in (4, 6):
            known: dict[bool, list[str]] = {True: [], False: []}  # by whether it is a node port, which has no address
            empty: dict[bool, list[str]] = {True: [], False: []}
            outside: dict[bool, list[str]] = {True: [], False: []}  # the same for who calls from there
            silent: dict[bool, list[str]] = {True: [], False: []}
            for key, entry in self.frontends:
                if _version(key.address) != version:
                    continue
                at_nodes = bool(entry.flags & ServiceEntry.NODE_PORT)
                port = f"{key.protocol} . {key.port}"
                frontend = port if at_nodes else f"{key.address} . {port}"
                slots = [self.backends.get(BackendKey(entry.number, slot)) for slot in range(entry.backends)]
                backends = [each for each in slots if each is not None]
                if not backends:
                    empty[at_nodes].append(frontend)
                    continue
                is_limited = bool(entry.flags & ServiceEntry.RANGES)  # no rule knows source ranges: closed to outside
                near = backends[: entry.outside] if entry.is_from_outside and not is_limited else []
                if entry.is_from_outside and not near:
                    silent[at_nodes].append(frontend)
                for some, listed in ((backends, known), (near, outside)):
                    if not some:
                        continue
                    name = f"service_{entry.number}_{len(some)}"
                    listed[at_nodes].append(f"{frontend} : goto {name}")
                    ends = ", ".join(f"{slot} : {each.address} . {each.port}" for slot, each in enumerate(some))
                    by = f"jhash {_ip(version)} saddr" if entry.affinity else "numgen random"
                    seed = f" seed {entry.number}" if entry.affinity else ""
                    choice = f"{by} mod {len(some)}{seed} map {{ {ends} }}"
                    chains[name] = _chain(name, "", [f"meta l4proto {key.protocol} dnat {_ip(version)} to {choice}"])
            for name, kind, at_nodes in (("", f"{_kind(version)} . ", False), ("_ports", "", True)):
                kind += "inet_proto . inet_service"
                found.append(_set(f"services{name}{version}", f"{kind} : verdict", known[at_nodes], form="map"))
                found.append(_set(f"outside{name}{version}", f"{kind} : verdict", outside[at_nodes], form="map"))
                found.append(_set(f"empty{name}{version}", kind, empty[at_nodes]))
                found.append(_set(f"silent{name}{version}", kind, silent[at_nodes]))
        return [*chains.values(), *found]

    def _no_backend(self, what: Iterable[str], drop: Mapping[str, str]) -> list[str]:
        """Drop what each matches, and tell the sender if that is to be. The kernel answers no reset and no error."""
        if not self.place.reject:
            return [f"{each} {drop['no_backend']}" for each in what]
        return [
            f"{each} {how}"
            for each in what
            for how in (
                "meta l4proto tcp counter name no_backend reject with tcp reset",
                "counter name no_backend reject with icmpx type port-unreachable",
            )
        ]

    # The hooks

    def hooks(self) -> list[tuple[str, str, list[str]]]:
        """(name, hook, rules) of the chains that are always there."""
        place = self.place
        pod, guarded = f'"{place.pod_links}*"', ", ".join(map(str, sorted(place.guarded)))
        drop = {name: f"counter name {name} drop" for name in COUNTERS}
        let_guarded = [f"iif {{ {guarded} }} return"] if guarded else []
        empty = [f"{_ip(v)} daddr . meta l4proto . th dport @empty{v}" for v in (4, 6)]
        at_nodes = [(v, f"{_ip(v)} daddr @{whose}{v} meta l4proto . th dport")
                    for v in (4, 6) for whose in ("here", "remote")]  # fmt: skip
        empty_ports = [f"{each} @empty_ports{v}" for v, each in at_nodes]
        ports = [f"{each} vmap @services_ports{v}" for v, each in at_nodes]
        for_empty = self._no_backend(empty, drop)  # or the host's stack would answer, or send it to the world
        for_empty_ports = self._no_backend(empty_ports, drop)
        outward = _outward(place)
        at_here = [(v, f"{_ip(v)} daddr @here{v} meta l4proto . th dport") for v in (4, 6)]
        silent = [f"{_ip(v)} daddr . meta l4proto . th dport @silent{v}" for v in (4, 6)]
        silent += [f"{each} @silent_ports{v}" for v, each in at_here]
        from_outside = [f"{each} {drop['no_backend']}" for each in silent]
        from_outside += self._no_backend([f"{each} @empty_ports{v}" for v, each in at_here], drop)
        raw = [*let_guarded, *(f"{outward} {each}" for each in from_outside if outward)]
        raw += [*for_empty, *(f"iifname {pod} {each}" for each in for_empty_ports)]
        raw += [f"iifname {pod} goto from_pod", 'iifname "lo" return']
        raw += [
            f"{_ip(v)} saddr @{mine}{v} {drop['invalid_source']}" for mine in ("pods", "blocks", "here") for v in (4, 6)
        ]
        if place.tunnel:
            raw += [rule for version in (4, 6) for rule in _tunnel_rules(place, version, drop)]
        from_pod = [f"{NEIGHBOURS} goto from_neighbour", f"{ONE_LINKS} {drop['forbidden']}"]
        from_pod += [f"iif . {_ip(v)} saddr @places{v} goto for_somebody" for v in (4, 6)]
        from_pod += [drop["invalid_source"]]
        from_neighbour = ["iif . ip6 saddr @places6 return", drop["invalid_source"]]
        for_somebody = [f"{_ip(v)} daddr @blocks{v} {_ip(v)} daddr != @pods{v} {_ip(v)} daddr != @here{v} "
                        f"{drop['unroutable']}" for v in (4, 6)]  # fmt: skip
        judged = [
            f"{ONE_LINKS} {drop['forbidden']}",
            f"ct state invalid,untracked {drop['no_connection']}",
            "icmp type redirect drop",
            "meta l4proto { icmp, ipv6-icmp } ct state related return",
            "meta l4proto { icmp, ipv6-icmp } ct direction reply return",
        ]
        egress = [f"ct original {_ip(v)} saddr vmap @egress{v}" for v in (4, 6)]
        ingress = [f"ct reply {_ip(v)} saddr vmap @ingress{v}" for v in (4, 6)]
        reached = [f"oifname {pod} {_ip(v)} daddr != @pods{v} {drop['unroutable']}" for v in (4, 6)]
        forward = [*let_guarded, *([f"oif {{ {guarded} }} return"] if guarded else [])]
        unused = [f"{_ip(ip_network(each).version)} daddr {each}" for each in place.services]
        answered = self._no_backend(unused, drop) if place.reject else []
        forward += [*answered, f"iifname {pod} goto judge", f"oifname {pod} goto judge"]
        leaving = [f"{each} {drop['no_backend']}" for each in unused]  # nothing can be answered from here
        leaving += [*(f"{_ip(v)} saddr . {_ip(v)} daddr @itself{v} masquerade" for v in (4, 6))]
        if outward:  # what a backend elsewhere answers has to come back here
            leaving += [
                f'{outward} oifname "{place.tunnel}" ct status dnat {_snat(each)}'
                for each in (place.routers if place.tunnel else ())
            ]
            leaving += [f"{outward} ct status dnat {_ip(v)} daddr != @pods{v} masquerade" for v in (4, 6)]
        if place.tunnel:  # whoever answers the host finds it by this address alone
            leaving += [f'oifname "{place.tunnel}" fib saddr type local {_snat(each)}' for each in place.routers]
        elsewhere = "".join(f' oifname != "{each}"' for each in [place.pod_links + "*", *filter(None, [place.tunnel])])
        leaving += [f"{_ip(v)} saddr @pods{v} {_ip(v)} daddr != @kept{v}{elsewhere} masquerade"
                    for v in sorted(place.masquerade)]  # fmt: skip
        to_backend = [f"{_ip(v)} daddr . meta l4proto . th dport vmap @services{v}" for v in (4, 6)]
        called = [f"{_ip(v)} daddr . meta l4proto . th dport vmap @outside{v}" for v in (4, 6)]
        called += [f"{each} vmap @outside_ports{v}" for v, each in at_here]
        return [
            ("for_somebody", "", for_somebody),
            ("from_neighbour", "", from_neighbour),
            ("from_pod", "", from_pod),
            ("judge", "", [*judged, *reached, *egress, *ingress]),
            ("raw", "type filter hook prerouting priority raw; policy accept;", raw),
            ("from_host", "type filter hook output priority raw; policy accept;", [*for_empty, *for_empty_ports]),
            ("unused", "type filter hook output priority filter; policy accept;", answered),
            ("to_service", "type nat hook prerouting priority dstnat; policy accept;",
             [*(f"{outward} {each}" for each in called if outward), *to_backend,
              *(f"iifname {pod} {each}" for each in ports)]),
            ("host_to_service", "type nat hook output priority -100; policy accept;", [*to_backend, *ports]),
            ("forward_pods", "type filter hook forward priority filter; policy accept;", forward),
            ("to_host", "type filter hook input priority filter; policy accept;",
             [*let_guarded, f"iifname != {pod} return", f"{NEIGHBOURS} accept", *judged, *egress]),
            ("leaving", "type nat hook postrouting priority srcnat; policy accept;", leaving),
        ]  # fmt: skip


def _outward(place: Place) -> str:
    """What comes by a device that leads out; "" where there is none."""
    devices = ", ".join(f'"{each}"' for each in place.devices)
    return f"iifname {{ {devices} }}" if devices else ""


def _snat(address: str) -> str:
    return f"{_ip(_version(address))} saddr != {address} snat {_ip(_version(address))} to {address}"


def _tunnel_rules(place: Place, version: int, drop: Mapping[str, str]) -> list[str]:
    """Pods of other nodes come through the tunnel, from where a node is, and for somebody who is here. A node without
    devices for a while has no rules for them: an empty set would be a mistake in all of it."""
    ip, v = _ip(version), version
    outward, tunnel = _outward(place), f'iifname "{place.tunnel}"'
    from_outside = [
        f"{outward} {ip} saddr @others{v} {drop['invalid_source']}",
        f"{outward} {ip} daddr @others{v} {drop['no_encapsulation']}",
        f"{outward} udp dport {place.tunnel_port} {ip} saddr != @nodes{v} {drop['invalid_source']}",
    ]
    return [
        *(from_outside if outward else ()),
        f"{tunnel} {ip} saddr != @others{v} {drop['invalid_source']}",
        f"{tunnel} {ip} daddr != @pods{v} {ip} daddr != @told{v} {drop['unroutable']}",
    ]


def _verdict_rules(allowed: Allowed) -> Sequence[str]:
    """`return` is to go on: the other end's policy has its say as well."""
    rules = [rule for protocol, ranges in allowed.ports for rule in _port_rules(protocol, ranges)]
    rules += [
        f"meta l4proto {protocol} ct reply {_ip(version)} saddr {{ {here} }} ct reply proto-src {port} return"
        for protocol, port, called in allowed.named
        for version in (4, 6)
        if (here := ", ".join(each for each in called if _version(each) == version))
    ]
    if allowed.others:
        named = ", ".join(str(protocol) for protocol, _ in allowed.ports)
        rules.append(f"meta l4proto != {{ {named} }} return" if named else "return")
    return [*rules, "counter name policy_denied drop"]


def _port_rules(protocol: int, ranges: Ranges) -> list[str]:
    if not ranges:
        return []
    if ranges == ((0, PORT_MAX),):
        return [f"meta l4proto {protocol} return"]
    if protocol in WITH_TYPES:  # a port is the type + 1, and 0 no type at all
        types = [(max(first - 1, 0), min(last - 1, 255)) for first, last in ranges if last >= 1 and first <= 256]
        return [f"{'icmp' if protocol == ICMP else 'icmpv6'} type {{ {_listed(types)} }} return"] if types else []
    return [f"meta l4proto {protocol} ct reply proto-src {{ {_listed(ranges)} }} return"]


def _listed(ranges: Iterable[tuple[int, int]]) -> str:
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
