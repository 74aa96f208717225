"""What this node's maps should hold, as a function of what was heard and of the pods that live here. Pure.

`put` and `delete` take what the bus says, `add_pod` and `remove_pod` what the container runtime asks. `settle` brings
the tables up to date with all of it: a burst of changes on one identity is one expansion of its policy.

A pod whose identity or policy is not known is denied: its entry enforces both directions with the policy 0, which has
no entries.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Literal

from bus import subjects
from bus.labels import IDENTITY_MAX, IDENTITY_MIN, RESERVED, canonical_labels, labels_text
from bus.messages import Message
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.ipam import Block
from bus.messages.policy import PolicyRules, Selector
from bus.messages.resources import Namespace, Node, Pod
from bus.subjects import State
from services.dataplane.part import Held, Parts, in_order
from services.dataplane.parts.masquerade import Masquerade
from services.dataplane.parts.policy.entries import EndpointPolicy, PolicyEntry, PolicyKey, PolicyStore, diff
from services.dataplane.parts.policy.named_ports import NamedPorts, names_in
from services.dataplane.parts.services import Services
from services.dataplane.shapes.ip import Network, block_of, plain, router_of
from services.dataplane.shapes.layouts import (
    FLAG_ENFORCE_EGRESS,
    FLAG_ENFORCE_INGRESS,
    EndpointEntry,
    IpcacheEntry,
    IpcacheKey,
    PolicyMapEntry,
    PolicyMapKey,
    pack_address,
)
from services.dataplane.shapes.table import Table

EndpointState = Literal["waiting-for-identity", "waiting-for-policy", "ready"]

NO_POLICY = 0
"""The policy id that has no entries: with it an enforced direction is closed."""


@dataclass(frozen=True, slots=True)
class LocalPod:
    """A pod of this node, as its link was made."""

    namespace: str
    name: str
    addresses: tuple[str, ...]  # one of each family that it has
    interface: str
    interface_index: int
    mac: str
    gateway_mac: str
    uid: str = ""
    identity: int = 0  # of a pod whose `namespace` and `name` are not known (""): what its entry in the kernel says


@dataclass(frozen=True, slots=True)
class Routing:
    """How this node sends to the pods of others."""

    families: tuple[int, ...] = (4,)  # of pods' addresses that this node serves
    tunnel: int = 0  # the family of tunnel endpoints; 0: native
    is_direct: bool = True  # native: nodes are next hops of each other; else the fabric routes pods' addresses
    networks: tuple[Network, ...] | None = None  # where next hops are; None: everywhere

    def choose(self, addresses: Iterable[str], version: int) -> str:
        """Of a node's addresses the one to send to for a pod address of family `version`; "" when it has none."""
        wanted = self.tunnel or version
        return next((each for each in addresses if ipaddress.ip_address(each).version == wanted), "")

    def is_next_hop(self, address: str) -> bool:
        """Is it sent to without asking the routes: as a tunnel endpoint, or as a neighbour?"""
        if self.tunnel or not self.is_direct:
            return bool(self.tunnel)
        if self.networks is None:
            return True
        parsed = ipaddress.ip_address(address)
        return any(parsed in network for network in self.networks)


ONE_FAMILY_ANYWHERE = Routing()


class NodeModel:
    """See the module."""

    HEARS: tuple[State[Message], ...] = (
        subjects.NAMESPACE,
        subjects.NODE,
        subjects.POD,
        subjects.IDENTITY,
        subjects.ADDRESS,
        subjects.BLOCK,
        subjects.FRONTEND,
        subjects.RULES,
        subjects.SELECTOR,
    )

    def __init__(
        self,
        node: str,
        own_addresses: frozenset[str] = frozenset(),
        routing: Routing = ONE_FAMILY_ANYWHERE,
        not_masqueraded: Iterable[str] = (),
    ) -> None:
        """`not_masqueraded`: destinations, as CIDRs of either family, that see pods' own addresses."""
        self.node = node
        self.routing = routing
        self.parts = Parts(Masquerade(not_masqueraded), Services())
        self.services = self.parts[Services]
        self.endpoints = Table("endpoints", after=("masq_exclude", "policy", "services"))
        self.ipcache = Table("ipcache")
        self.policy = Table("policy", after=("ipcache", "named_ports"))
        self.policies = PolicyStore()
        self.named = NamedPorts()
        self.tables = in_order((*self.parts.tables, self.ipcache, self.policy, self.named.table, self.endpoints))
        """In the order in which they are written."""
        self.pods: dict[str, LocalPod] = {}  # by each of its addresses
        self.wanted_routes: dict[str, str] = {}  # other nodes' blocks: CIDR -> node address
        self.unreachable: dict[str, str] = {}  # other nodes that should be next hops, and are on no network of ours
        self.own_blocks: dict[str, Block] = {}
        self.identities: dict[int, Identity] = {}
        self.addresses: dict[str, AddressIdentity] = {}
        self._addresses_of: defaultdict[str, set[str]] = defaultdict(set)  # by node
        self._numbers: dict[str, int] = {}  # label set as text -> identity
        self._namespaces: dict[str, Namespace] = {}
        self._resources: dict[tuple[str, str], Pod] = {}  # pods bound to this node
        self._nodes: dict[str, Node] = {}
        self._blocks: dict[str, Block] = {}
        self._identity: dict[str, int] = {}  # by address of a pod here
        self._living: Counter[int] = Counter()  # pods here, by identity
        self._expanded: dict[int, EndpointPolicy] = {}  # by local identity: what the policy table holds
        self._stale_identities: set[int] = set()
        self._stale_named: set[int] = set()  # local identities whose rows of `named_ports` may be others now
        self._stale_pods: set[str] = set()
        self._restored: set[str] = set()  # pods whose entry in the kernel stays until all has been heard
        self._own_addresses = own_addresses  # by which other nodes know it
        self._more_addresses: Mapping[str, str] = {}  # that other nodes need not know: address -> device
        self._network_keys: set[bytes] = set()
        self._synced = False
        self._is_network_stale = True
        self.contested: dict[str, str] = {}  # addresses that this node has and that are another's: why, in words
        self.problems: dict[str, str] = {}  # what the last `settle` could not bring up to date, and why

    def answers_to(self, addresses: Mapping[str, str]) -> None:
        """All that the node has now, and on which device: to its pods it is the host by each (a second network, a
        resolver that listens on an address of its own), unless the bus gives it to another."""
        served = self.routing.families
        found = {each: on for each, on in addresses.items() if ipaddress.ip_address(each).version in served}
        if found != self._more_addresses:
            self._more_addresses = found
            self._is_network_stale = True

    def adopt(self, held: Held) -> None:
        """Before anything is heard: what a process before this one left in the maps."""
        self.parts.adopt(held)

    # What the bus says

    def put(self, subject: str, message: Message) -> None:
        """`subject` has this value now.

        Raises: ValueError: it is of another thing, or an address, network, port or identity in it is none; nothing is
            changed.
        """
        family = subjects.check_subject(subject, message)
        match message:
            case Namespace():
                self._namespaces[message.name] = message
                self._touch_pods(message.name)
            case Node():
                for address in message.addresses:
                    plain(address)
                self._nodes[message.name] = message
                self._touch_node(message.name)
            case Pod():
                self._put_pod(message)
            case Identity():
                self._put_identity(message)
            case AddressIdentity():
                plain(message.node_address)
                if plain(message.address) != message.address:
                    raise ValueError(f"{message.address} is written {plain(message.address)}")
                check_identity(message.identity)
                self._forget_address(message.address)
                self.addresses[message.address] = message
                self._addresses_of[message.node].add(message.address)
                self._put_address(message)
                self._call(message.address)
            case Block():
                block_of(message.cidr)
                self._blocks[message.cidr] = message
                self._is_network_stale = True
            case PolicyRules():
                self._stale_identities |= self.policies.put_rules(message)
            case Selector():
                for number in message.members:
                    check_identity(number)
                self._stale_identities |= self.policies.put_selector(message)
            case _:
                self.parts.put(family, message)

    def delete(self, subject: str) -> None:
        """`subject` is gone, whatever it was: a key that makes no sense never had a value here."""
        family = subjects.state_of(subject)
        if family is None:
            return
        tokens = family.parse(subject)
        if family is subjects.NAMESPACE:
            self._namespaces.pop(tokens[0], None)
            self._touch_pods(tokens[0])
        elif family is subjects.NODE:
            if self._nodes.pop(tokens[0], None) is not None:
                self._touch_node(tokens[0])
        elif family is subjects.POD:
            self._resources.pop((tokens[0], tokens[1]), None)
            self._touch_pods(tokens[0])
        elif family is subjects.IDENTITY:
            gone = self.identities.pop(int(tokens[0]), None) if tokens[0].isdecimal() else None
            if gone is not None:
                self._forget_number(gone)
        elif family is subjects.ADDRESS:
            if self._forget_address(tokens[0]):
                self.ipcache.delete(IpcacheKey(tokens[0]).pack())
                self._is_network_stale = True  # the address may be a node's or a router's as well
        elif family is subjects.BLOCK:
            self._is_network_stale |= self._blocks.pop(tokens[0], None) is not None
        elif family is subjects.RULES:
            self._stale_identities |= self.policies.delete_rules(tokens[0], tokens[1], tokens[2])
        elif family is subjects.SELECTOR:
            self._stale_identities |= self.policies.delete_selector(tokens[0])
        else:
            self.parts.delete(family, tokens)

    def synced(self) -> None:
        """All that there is has been heard once: from here on "no policy" may mean "open"."""
        if not self._synced:
            self._synced = True
            self._restored.clear()
            self._stale_pods.update(self.pods)

    # What the container runtime asks

    def add_pod(self, pod: LocalPod) -> None:
        for address in pod.addresses:
            self.pods[address] = pod
            self._restored.discard(address)
            self._stale_pods.add(address)

    def restore_pod(self, pod: LocalPod) -> None:
        """It was here before a restart: what the kernel holds of it stays until all has been heard (`synced`)."""
        self.pods.update(dict.fromkeys(pod.addresses, pod))
        if self._synced:
            self._stale_pods.update(pod.addresses)
        else:
            self._restored.update(pod.addresses)

    def remove_pod(self, address: str) -> None:
        """The pod that has `address` goes, with all of its addresses."""
        pod = self.pods.get(address)
        for each in pod.addresses if pod else ():
            del self.pods[each]
            self._restored.discard(each)
            self._stale_pods.add(each)

    # What follows from it

    def settle(self) -> list[LocalPod]:
        """Bring the tables up to date. Returns the pods of this node of which something may have changed.

        What fails is told in `problems`, keeps what the tables held of it (nothing, for a new pod: it is closed), and
        is tried again by the next call; the rest is not touched by that.
        """
        self.parts.settle()
        self.problems = self.parts.problems
        if self._is_network_stale:
            self._is_network_stale = not self._settled("network", self._settle_network)
        pods, self._stale_pods = self._stale_pods, set()
        failed = {each for each in pods if not self._settled(f"pod {each}", self._settle_identity, each)}
        identities, self._stale_identities = self._stale_identities, set()
        for identity in identities:
            if not self._settled(f"identity {identity}", self._expand, identity):
                self._stale_identities.add(identity)
        names, self._stale_named = self._stale_named, set()
        for identity in names:
            if not self._settled(f"named ports of {identity}", self._settle_named, identity):
                self._stale_named.add(identity)
        pods, self._stale_pods = pods | self._stale_pods, set()
        failed |= {each for each in pods if not self._settled(f"pod {each}", self._settle_entry, each)}
        self._stale_pods = failed
        return list(dict.fromkeys(self.pods[address] for address in pods if address in self.pods))

    def _settled(self, what: str, work: Callable[..., None], *arguments: object) -> bool:
        try:
            work(*arguments)
        except Exception as problem:  # noqa: BLE001  # the loop over objects: one that fails must not stop the others
            self.problems[what] = repr(problem)
            return False
        return True

    def identity_of(self, address: str) -> int:
        """The identity of the pod at `address`, as of the last `settle`; 0 while its labels or number are not known."""
        return self._identity.get(address, 0)

    def state_of(self, address: str) -> EndpointState:
        """How far the pod at `address` has come, as of the last `settle`."""
        if not self.identity_of(address):
            return "waiting-for-identity"
        return "ready" if self._synced else "waiting-for-policy"

    def policy_of(self, identity: int) -> EndpointPolicy | None:
        """What the policy table holds for a local identity."""
        return self._expanded.get(identity)

    def _put_identity(self, identity: Identity) -> None:
        if not IDENTITY_MIN <= identity.number <= IDENTITY_MAX:
            raise ValueError(f"{identity.number} is not the identity of a label set")
        before = self.identities.get(identity.number)
        if before is not None and before.labels != identity.labels:
            self._forget_number(before)
        self.identities[identity.number] = identity
        self._numbers[labels_text(identity.labels)] = identity.number
        self._stale_pods.update(address for address in self.pods if address not in self._identity)

    def _forget_number(self, gone: Identity) -> None:
        """The label set has this number no more."""
        if self._numbers.get(labels_text(gone.labels)) == gone.number:
            del self._numbers[labels_text(gone.labels)]
        self._stale_pods.update(address for address, number in self._identity.items() if number == gone.number)

    def _put_pod(self, pod: Pod) -> None:
        key = (pod.namespace, pod.name)
        before = self._resources.get(key)
        if pod.node != self.node:
            if before is None:
                return
            del self._resources[key]
        else:
            self._resources[key] = pod
            if before is not None and (before.labels, before.uid, before.ports) == (pod.labels, pod.uid, pod.ports):
                return
        self._touch_pods(pod.namespace)

    def _touch_pods(self, namespace: str) -> None:
        self._stale_pods.update(address for address, pod in self.pods.items() if pod.namespace == namespace)

    def _touch_node(self, name: str) -> None:
        """Its addresses may be others now: what lies behind it is reached by those."""
        self._is_network_stale = True
        for address in self._addresses_of.get(name, ()):
            self._put_address(self.addresses[address])

    def _forget_address(self, address: str) -> bool:
        gone = self.addresses.pop(address, None)
        if gone is not None:
            self._addresses_of[gone.node].discard(address)
            self._call(address)
        return gone is not None

    def _put_address(self, entry: AddressIdentity) -> None:
        key = IpcacheKey(entry.address).pack()
        if entry.address in self._own_addresses or key in self._network_keys:
            return  # a node's own, or a router's: _settle_network says what it is
        if not entry.pod and entry.node == self.node:  # whatever others call it: here it is the host
            value = IpcacheEntry(RESERVED["host"])
        elif not entry.pod:  # a node's own address is reached by the fabric's routes; a pod's by way of its node
            value = IpcacheEntry(entry.identity)
        else:
            value = self._behind(entry.identity, entry.node, entry.address, entry.node_address)
        self.ipcache.put(key, value.pack())

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
        return IpcacheEntry(identity, hop, routed=node != self.node and not self.routing.is_next_hop(hop))

    def _addresses_of_node(self, name: str) -> list[str]:
        """The dataplane knows this node by the addresses of its device, whatever others call it."""
        known = self._nodes.get(name)
        own = sorted(self._own_addresses) if name == self.node else []
        return [*own, *(known.addresses if known else ())]

    def _settle_network(self) -> None:
        """Blocks, routers and nodes: what of the ipcache and the routes is not one pod's."""
        wanted: dict[bytes, bytes] = {}
        routes: dict[str, str] = {}
        self.unreachable = {}
        own = self._nodes.get(self.node)
        for cidr, block in self._blocks.items():
            network = block_of(cidr)
            is_own = block.node == self.node
            if block.node not in self._nodes:
                continue
            unknown = self._behind(RESERVED["unmanaged"], block.node, str(network.network_address))
            wanted[IpcacheKey(str(network.network_address), network.prefixlen).pack()] = unknown.pack()
            router = IpcacheEntry(RESERVED["host"])
            if not is_own:
                router = self._behind(RESERVED["remote-node"], block.node, str(network.network_address))
            wanted[IpcacheKey(router_of(network)).pack()] = router.pack()
            hop = self.routing.choose(self._addresses_of_node(block.node), network.version)
            if is_own or not hop or network.version not in self.routing.families:
                continue
            if self.routing.is_next_hop(hop):
                routes[cidr] = hop
            elif self.routing.is_direct:
                self.unreachable[block.node] = hop
        told = {*self._own_addresses, *(own.addresses if own else ())}
        self.contested = self._contested(told)
        for address in self._more_addresses.keys() - self.contested.keys():
            more = IpcacheEntry(RESERVED["host"], untold=True)
            wanted.setdefault(IpcacheKey(address).pack(), more.pack())  # routers are there already
        for address in told:
            wanted[IpcacheKey(address).pack()] = IpcacheEntry(RESERVED["host"]).pack()
        for key in self._network_keys - wanted.keys():
            self.ipcache.delete(key)
        for key, value in wanted.items():
            self.ipcache.put(key, value)
        gone, self._network_keys = self._network_keys - wanted.keys(), set(wanted)
        for key in gone:
            known = self.addresses.get(IpcacheKey.unpack(key).address)
            if known is not None:
                self._put_address(known)
        self.own_blocks = {
            cidr: block
            for cidr, block in self._blocks.items()
            if block.node == self.node and block_of(cidr).version in self.routing.families
        }
        self.wanted_routes = routes

    def _contested(self, told: Set[str]) -> dict[str, str]:
        """Which of the addresses that this node has, but for those `told`, the bus gives to another: why, in words."""
        if self._more_addresses.keys() <= told:
            return {}
        nodes = {address: name for name, node in self._nodes.items() if name != self.node for address in node.addresses}
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
            elif known is not None and known.node != self.node:
                whose = f"{known.pod or 'an address'} of the node {known.node}"
            elif block := next((block for block in around if block and block.node != self.node), None):
                whose = f"in a block of the node {block.node}"
            if whose and address not in told:
                found[address] = f"{device} has {address}, which is {whose}: take it away there"
        return found

    def _settle_identity(self, address: str) -> None:
        """Follow which identities live here, and in how many pods."""
        pod = self.pods.get(address)
        after = self._number_of(pod) if pod else 0
        if after:
            self._stale_identities |= self.policies.add_identity(after, self.identities[after].labels)
        before = self._identity.pop(address, 0)
        if after:
            self._identity[address] = after
        self._call(address)
        if before == after:
            return
        if after:
            self._living[after] += 1
        if before:
            self._living[before] -= 1
            if not self._living[before]:
                del self._living[before]
                self._stale_identities |= self.policies.remove_identity(before)

    def _call(self, address: str) -> None:
        """Take anew what the pod at `address` calls its ports. Of its own pods the node knows it without the bus."""
        pod, known = self.pods.get(address), self.addresses.get(address)
        if pod is not None:
            identity = self._identity.get(address, 0)
            ports = self._resources[pod.namespace, pod.name].ports if identity else []
        else:
            identity, ports = (known.identity, known.ports) if known else (0, [])
        if self.named.put(address, identity, names_in(ports)):
            self._stale_named |= self.named.concerned

    def _settle_named(self, identity: int) -> None:
        self.named.settle(identity, self._expanded.get(identity), self.pods.keys())

    def _number_of(self, pod: LocalPod) -> int:
        if not pod.namespace:
            return pod.identity if pod.identity in self.identities else 0
        resource = self._resources.get((pod.namespace, pod.name))
        namespace = self._namespaces.get(pod.namespace)
        if resource is None or namespace is None or (pod.uid and resource.uid and pod.uid != resource.uid):
            return 0
        return self._numbers.get(labels_text(canonical_labels(resource, namespace)), 0)

    def _expand(self, identity: int) -> None:
        before = self._expanded.get(identity)
        after = self.policies.policy_of(identity) if identity in self.policies.identities else None
        self._stale_named.add(identity)
        upserts, gone = diff(before.entries if before else {}, after.entries if after else {})
        for key, entry in upserts.items():
            self.policy.put(_map_key(identity, key), _map_entry(key, entry))
        for key in gone:
            self.policy.delete(_map_key(identity, key))
        if after is None:
            self._expanded.pop(identity, None)
        else:
            self._expanded[identity] = after
        if before is None or after is None or _flags(before) != _flags(after):
            self._stale_pods.update(address for address, number in self._identity.items() if number == identity)

    def _settle_entry(self, address: str) -> None:
        key = pack_address(address)
        pod = self.pods.get(address)
        if pod is None:
            self.endpoints.delete(key)
            if not self._synced:  # the kernel may hold one from before a restart, which the table does not know
                self.endpoints.owe([key])
            return
        if address in self._restored:
            return
        identity = self.identity_of(address)
        policy = self._expanded.get(identity) if self._synced else None
        self.endpoints.put(
            key,
            EndpointEntry(
                interface=pod.interface_index,
                identity=identity or RESERVED["init"],
                policy=identity if policy else NO_POLICY,
                flags=_flags(policy) if policy else FLAG_ENFORCE_INGRESS | FLAG_ENFORCE_EGRESS,
                mac=bytes.fromhex(pod.mac.replace(":", "")),
                gateway_mac=bytes.fromhex(pod.gateway_mac.replace(":", "")),
            ).pack(),
        )


def check_identity(number: int) -> None:
    """Raises: ValueError: it does not fit where maps keep an identity."""
    if not 0 <= number <= 0xFFFFFFFF:
        raise ValueError(f"{number} is not an identity")


def _flags(policy: EndpointPolicy) -> int:
    return FLAG_ENFORCE_INGRESS * policy.ingress_enforced | FLAG_ENFORCE_EGRESS * policy.egress_enforced


def _map_key(identity: int, key: PolicyKey) -> bytes:
    return PolicyMapKey(identity, key.identity, key.direction, key.protocol, key.port, key.l4_bits).pack()


def _map_entry(key: PolicyKey, entry: PolicyEntry) -> bytes:
    return PolicyMapEntry(entry.precedence, entry.cookie, entry.proxy_port, entry.flags, key.l4_bits).pack()
