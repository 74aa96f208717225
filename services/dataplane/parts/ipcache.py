"""Who is at which address, and by way of which node: the map `ipcache`. Pure."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from typing import Final

from bus import subjects
from bus.labels import RESERVED
from bus.messages.identity import AddressIdentity
from bus.messages.ipam import Block
from bus.messages.resources import Node
from services.dataplane.part import Facts, Hears, Maps, Part, Row, Shows
from services.dataplane.parts.policy.networks import prefixes_of
from services.dataplane.parts.routing import Routing, check_block, check_node
from services.dataplane.shapes.ip import block_of, plain, router_of
from services.dataplane.shapes.layouts import IpcacheEntry, IpcacheKey, Prefix, check_identity
from services.dataplane.shapes.table import Table


class Ipcache(Part):
    """See the module.

    Networks of the outside that policies name have numbers of their own, and a longer one goes before one around it.
    Whatever is a pod's, a node's or in a block of either's is that, whatever policies call the network around it.

    Args:
        facts: of which it follows `networks`.
        node: this one.
        own_addresses: by which other nodes know it.
    """

    by_rules = True

    def __init__(self, facts: Facts, node: str, own_addresses: frozenset[str], routing: Routing) -> None:
        super().__init__()
        self.hears = (
            Hears(subjects.NODE, self._put_node, self._delete_node, check_node),
            Hears(subjects.ADDRESS, self._take_address, self._delete_address, check_address),
            Hears(subjects.BLOCK, self._put_block, self._delete_block, check_block),
        )
        self.shows = (Shows("ipcache", "Addresses and their identities.", self._rows),)
        # After `policy`: an address becomes another for which all rules are there already, and is it no more before
        # they go.
        self.table = Table("ipcache", after=("policy",))
        self.tables = (self.table,)
        self.routing = routing
        self.addresses: dict[str, AddressIdentity] = {}
        self.own_blocks: dict[str, Block] = {}
        self.contested: dict[str, str] = {}  # addresses that this node has and that are another's: why, in words
        self._node = node
        self._own_addresses = own_addresses
        self._more_addresses: Mapping[str, str] = {}  # that other nodes need not know: address -> device
        self._addresses_of: defaultdict[str, set[str]] = defaultdict(set)  # by node
        self._nodes: dict[str, Node] = {}
        self._blocks: dict[str, Block] = {}
        self._network_keys: set[bytes] = set()
        self._outside: dict[bytes, bytes] = {}  # rows of networks that policies name, unless something else has the key
        self._rows_of: dict[str, list[bytes]] = {}  # keys of `_outside`, by CIDR
        self._own = facts.own.keep()
        self._networks = facts.networks
        self._renumbered: Final = facts.networks.follow()
        self._is_network_stale = True

    def answers_to(self, addresses: Mapping[str, str]) -> None:
        """All that the node has now, and on which device: to its pods it is the host by each (a second network, a
        resolver that listens on an address of its own), unless the bus gives it to another."""
        served = self.routing.families
        found = {each: on for each, on in addresses.items() if ipaddress.ip_address(each).version in served}
        if found != self._more_addresses:
            self._more_addresses = found
            self._is_network_stale = True

    @property
    def told(self) -> set[str]:
        """By which others know this node."""
        own = self._nodes.get(self._node)
        return {*self._own_addresses, *(own.addresses if own else ())}

    def send_by(self, routing: Routing) -> None:
        """How the node sends to others is this now."""
        if routing != self.routing:
            self.routing = routing
            for name in self._nodes.keys() | self._addresses_of.keys():
                self._touch_node(name)

    def settle(self) -> None:
        if self._is_network_stale:
            self._is_network_stale = not self.tried("network", self._settle_network)
        self.settle_each(self._renumbered, "network", self._settle_outside)

    def _rows(self, maps: Maps, now: int) -> Iterator[Row]:
        for key, value in maps["ipcache"].items():
            k, v = IpcacheKey.unpack(key), IpcacheEntry.unpack(value)
            known = self.addresses.get(k.address) if k.is_host else None
            yield {
                "prefix": str(k),
                "identity": v.identity,
                "node_address": v.node,
                "pod": known.pod if known else "",
            }

    def _put_node(self, node: Node) -> None:
        self._nodes[node.name] = node
        self._touch_node(node.name)

    def _delete_node(self, name: str) -> None:
        if self._nodes.pop(name, None) is not None:
            self._touch_node(name)

    def _put_block(self, block: Block) -> None:
        if block.cidr not in self._blocks:
            self._renumbered.update(self._networks)
        self._blocks[block.cidr] = block
        self._is_network_stale = True

    def _delete_block(self, cidr: str) -> None:
        if self._blocks.pop(cidr, None) is not None:
            self._is_network_stale = True
            self._renumbered.update(self._networks)

    def _take_address(self, entry: AddressIdentity) -> None:
        self._forget_address(entry.address)
        self.addresses[entry.address] = entry
        self._addresses_of[entry.node].add(entry.address)
        self._is_network_stale |= entry.address in self._more_addresses  # whose is it?
        self._put_address(entry)

    def _delete_address(self, address: str) -> None:
        if self._forget_address(address):
            key = IpcacheKey(address).pack()
            if key not in self._network_keys:  # else it is a node's or a router's as well, and stays
                self._release(key)
            self._is_network_stale |= address in self._more_addresses

    def _touch_node(self, name: str) -> None:
        """Its addresses may be others now: what lies behind it is reached by those."""
        self._is_network_stale = True
        for address in self._addresses_of.get(name, ()):
            self._put_address(self.addresses[address])

    def _forget_address(self, address: str) -> bool:
        gone = self.addresses.pop(address, None)
        if gone is not None:
            self._addresses_of[gone.node].discard(address)
        return gone is not None

    def _put_address(self, entry: AddressIdentity) -> None:
        key = IpcacheKey(entry.address).pack()
        if entry.address in self._own_addresses or key in self._network_keys:
            return  # a node's own, or a router's: _settle_network says what it is
        if not entry.pod and entry.node == self._node:  # whatever others call it: here it is the host
            value = IpcacheEntry(RESERVED["host"])
        elif not entry.pod:  # a node's own address is reached by the fabric's routes; a pod's by way of its node
            value = IpcacheEntry(entry.identity)
        else:
            value = self._behind(entry.identity, entry.node, entry.address, entry.node_address)
        self.table.put(key, value.pack())

    def _behind(self, identity: int, node: str, address: str, otherwise: str = "") -> IpcacheEntry:
        """The entry of a pod address: `identity`, by way of the node where it lives.

        To a node that cannot be a next hop lead the routes of the fabric, if it has any.
        """
        version = ipaddress.ip_address(address).version
        known = self._nodes.get(node)
        hop = self.routing.choose(self._addresses_of_node(node), version)
        if not hop and known is None and otherwise:
            hop = self.routing.choose([otherwise], version)
        if not hop:
            return IpcacheEntry(identity)
        return IpcacheEntry(identity, hop, routed=node != self._node and not self.routing.is_next_hop(hop))

    def _addresses_of_node(self, name: str) -> list[str]:
        """The dataplane knows this node by the addresses of its device, whatever others call it."""
        known = self._nodes.get(name)
        own = sorted(self._own_addresses) if name == self._node else []
        return [*own, *(known.addresses if known else ())]

    def _settle_network(self) -> None:
        """Blocks, routers and nodes: what of the ipcache is not one pod's."""
        wanted: dict[bytes, bytes] = {}
        for cidr, block in self._blocks.items():
            network = block_of(cidr)
            is_own = block.node == self._node
            if block.node not in self._nodes:
                continue
            unknown = self._behind(RESERVED["unmanaged"], block.node, str(network.network_address))
            wanted[IpcacheKey(str(network.network_address), network.prefixlen).pack()] = unknown.pack()
            router = IpcacheEntry(RESERVED["host"])
            if not is_own:
                router = self._behind(RESERVED["remote-node"], block.node, str(network.network_address))
            wanted[IpcacheKey(router_of(network)).pack()] = router.pack()
        told = self.told
        self.contested = self._contested(told)
        for address in self._more_addresses.keys() - self.contested.keys():
            more = IpcacheEntry(RESERVED["host"], unadvertised=True)
            wanted.setdefault(IpcacheKey(address).pack(), more.pack())  # routers are there already
        own = {*told, *(self._more_addresses.keys() - self.contested.keys())}
        for address in self._own.keys() - own:
            self._own.delete(address)
        for address in own:
            self._own.put(address, None)
        for address in told:
            wanted[IpcacheKey(address).pack()] = IpcacheEntry(RESERVED["host"]).pack()
        for key in self._network_keys - wanted.keys():
            self._release(key)
        for key, value in wanted.items():
            self.table.put(key, value)
        gone, self._network_keys = self._network_keys - wanted.keys(), set(wanted)
        for key in gone:
            known = self.addresses.get(IpcacheKey.unpack(key).address)
            if known is not None:
                self._put_address(known)
        self.own_blocks = {
            cidr: block
            for cidr, block in self._blocks.items()
            if block.node == self._node and block_of(cidr).version in self.routing.families
        }

    def _settle_outside(self, cidr: str) -> None:
        """A network that policies name: one that is not in a block, where addresses are pods' or nobody's."""
        number = self._networks.get(cidr)
        keys = [] if number is None or self._is_in_block(cidr) else list(prefixes_of(cidr))
        for key in self._rows_of.pop(cidr, []):
            if key not in keys:
                del self._outside[key]
                if not self._is_somebodys(key):
                    self.table.delete(key)
        if keys and number is not None:
            self._rows_of[cidr] = keys
            self._outside |= dict.fromkeys(keys, IpcacheEntry(number).pack())
            for key in keys:
                if not self._is_somebodys(key):
                    self.table.put(key, self._outside[key])

    def _is_in_block(self, cidr: str) -> bool:
        network = ipaddress.ip_network(cidr)
        lengths = {int(each.rpartition("/")[2]) for each in self._blocks if (":" in each) == (network.version == 6)}
        within = (str(network.supernet(new_prefix=bits)) for bits in lengths if bits <= network.prefixlen)
        return any(each in self._blocks for each in within)

    def _is_somebodys(self, key: bytes) -> bool:
        """It is a node's, a block's or a pod's."""
        return key in self._network_keys or (Prefix.unpack(key).address in self.addresses and _is_whole(key))

    def _release(self, key: bytes) -> None:
        """Nobody has it any more: it may be a network that policies name."""
        value = self._outside.get(key)
        if value is None:
            self.table.delete(key)
        else:
            self.table.put(key, value)

    def _contested(self, told: Set[str]) -> dict[str, str]:
        """Which of the addresses that this node has, but for those `told`, the bus gives to another: why, in words."""
        if self._more_addresses.keys() <= told:
            return {}
        nodes = {
            address: name for name, node in self._nodes.items() if name != self._node for address in node.addresses
        }
        lengths = {(":" in cidr, cidr.rpartition("/")[2]) for cidr in self._blocks}
        found = {}
        for address, device in self._more_addresses.items():
            known = self.addresses.get(address)
            around = (
                self._blocks.get(str(ipaddress.ip_network(f"{address}/{bits}", strict=False)))
                for is_ip6, bits in lengths
                if is_ip6 == (":" in address)
            )
            whose = ""
            if address in nodes:
                whose = f"the node {nodes[address]}'s"
            elif known is not None and known.node != self._node:
                whose = f"{known.pod or 'an address'} of the node {known.node}"
            elif block := next((block for block in around if block and block.node != self._node), None):
                whose = f"in a block of the node {block.node}"
            if whose and address not in told:
                found[address] = f"{device} has {address}, which is {whose}: take it away there"
        return found


def _is_whole(key: bytes) -> bool:
    return Prefix.unpack(key).is_host


def check_address(entry: AddressIdentity) -> None:
    plain(entry.node_address)
    if plain(entry.address) != entry.address:
        raise ValueError(f"{entry.address} is written {plain(entry.address)}")
    check_identity(entry.identity)
