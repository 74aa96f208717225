"""Which of a node's devices lead to other nodes and to the outside, and what each of them says of itself. Pure.

Named by `devices`, as in Cilium's chart: names, or beginnings of names with a + behind ("eth+"); one with a ! before is
left out. Without names: those with a default route, or with the address by which others know the node. So a bridge of
another container runtime, the links of its containers and a dummy device are left alone: nothing leads out by them.

Never one of these, named or not: loopback, Plexus's own, links without Ethernet (a tunnel of layer 3), and the ports of
a bond, a team or a bridge, whose packets are their master's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

OURS = ("lxc", "plexus_")  # how the names of our own links begin
MOST = 200  # the map has room for 256
PORTS_OF = ("bond", "team", "bridge", "openvswitch")  # kinds of masters that take their ports' packets
NOWHERE = ("dummy", "ifb", "nlmon")  # what is sent by it is gone, whatever routes say
NOT_DEFAULT = 1 << 32  # a metric beyond any


class NoDevice(Exception):
    """None of the node's devices is meant. The text says which there are, and why each is not."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device as the kernel has it."""

    name: str
    index: int
    mac: str
    address: str  # its first global IPv4 address, "" when it has none
    mtu_bytes: int
    address6: str = ""  # its first global IPv6 address
    networks: tuple[str, ...] = ()  # right on it, both families: "192.0.2.0/24"
    addresses: tuple[str, ...] = ()  # all that are global, in the kernel's order
    metric: int = NOT_DEFAULT  # the lowest of its default routes; NOT_DEFAULT: it has none
    kind: str = ""  # "bond", "vlan", "veth"...; "" for hardware
    why_not: str = ""  # why it cannot be one of those that lead out, in words

    def own(self, version: int) -> str:
        """Its address of a family; "" when it has none."""
        return {4: self.address, 6: self.address6}[version]

    @property
    def is_default(self) -> bool:
        return self.metric != NOT_DEFAULT

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(filter(None, (self.address, self.address6))) or 'no address'})"


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route, of any table: where it leads, by which devices."""

    network: str
    table: int
    devices: frozenset[int]
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """All devices of a node, and its routes."""

    devices: tuple[DeviceInfo, ...] = ()
    routes: tuple[Route, ...] = field(default=())

    def at(self, index: int) -> DeviceInfo | None:
        return next((each for each in self.devices if each.index == index), None)


def is_named(name: str, asked: Sequence[str]) -> bool:
    """By `asked`, and not left out by it."""
    if any(_matches(name, each[1:]) for each in asked if each.startswith("!")):
        return False
    return any(_matches(name, each) for each in asked if not each.startswith("!"))


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def choose(
    seen: Iterable[DeviceInfo], asked: Sequence[str], node: Collection[str] = (), before: Collection[int] = ()
) -> tuple[DeviceInfo, ...]:
    """Those that lead out, first the one with the default route that is taken first.

    Args:
        asked: see `patterns`; empty, or with nothing but what is left out: those that lead out by themselves.
        node: addresses by which others know the node.
        before: indexes of those that were chosen: a route that comes back in a moment takes none of them away, as long
            as it has an address.
    Raises: NoDevice.
    """
    seen = tuple(seen)
    by_name = any(not each.startswith("!") for each in asked)
    found = []
    why = {}
    for each in seen:
        if each.why_not:
            why[each.name] = each.why_not
        elif by_name:
            if is_named(each.name, asked):
                found.append(each)
            else:
                why[each.name] = "not named"
        elif is_named(each.name, ["+", *asked]) and each.kind not in NOWHERE and _leads_out(each, node, before):
            found.append(each)
        else:
            why[each.name] = "no default route and no address of the node"
    if not found:
        there = ", ".join(f"{name} ({words})" for name, words in sorted(why.items()) if name != "lo") or "none"
        wanted = f"no device is named by devices={' '.join(asked)!r}" if by_name else "no device leads out of this node"
        raise NoDevice(f"{wanted}: name one of those there are, {there}")
    found.sort(key=lambda each: (each.metric, not each.address, each.name))
    return tuple(found[:MOST])


def _leads_out(device: DeviceInfo, node: Collection[str], before: Collection[int]) -> bool:
    if device.is_default or not set(device.addresses).isdisjoint(node):
        return True
    return device.index in before and bool(device.addresses)


def main_of(chosen: Sequence[DeviceInfo], families: Iterable[int]) -> DeviceInfo:
    """The one whose address is the node's, where it is its own end: of those that have one of each of `families` the
    first; else the first, which misses some."""
    wanted = tuple(families)
    return next((each for each in chosen if all(map(each.own, wanted))), chosen[0])


def address_of(device: DeviceInfo, version: int, before: str) -> str:
    """What leaves by it bears this; the one of before for as long as it has that. "": it has none of the family."""
    return (
        before if before and before in device.addresses and (":" in before) == (version == 6) else device.own(version)
    )


def device_toward(address: str, devices: Iterable[DeviceInfo]) -> DeviceInfo | None:
    """The one on whose network `address` is: of the most particular, where it is on several. None: it is on none."""
    parsed = ip_address(address)
    best: tuple[int, DeviceInfo | None] = (-1, None)
    for each in devices:
        for network in map(ip_network, each.networks):
            if parsed in network and network.prefixlen > best[0]:
                best = network.prefixlen, each
    return best[1]


def devices_toward(destinations: Iterable[str], routes: Iterable[Route]) -> set[int]:
    """By which devices any of the addresses or networks is reached: in each table by its most particular route."""
    tables: dict[int, dict[tuple[int, int], dict[int, set[int]]]] = {}  # by table, version and length, first address
    for route in routes:
        network = ip_network(route.network)
        of_length = tables.setdefault(route.table, {}).setdefault((network.version, network.prefixlen), {})
        of_length.setdefault(int(network.network_address), set()).update(route.devices)
    found: set[int] = set()
    for destination in destinations:
        network = ip_network(destination)
        for table in tables.values():
            lengths = sorted(key for key in table if key[0] == network.version and key[1] <= network.prefixlen)
            around = (network.supernet(new_prefix=length) for _, length in reversed(lengths))
            by = (table[each.version, each.prefixlen].get(int(each.network_address)) for each in around)
            found |= next(filter(None, by), set())
    return found
