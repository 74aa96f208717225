"""What this node's maps should hold, as a function of what was heard and of the pods that live here. Pure.

`put` and `delete` take what the bus says, `add_pod` and `remove_pod` what the container runtime asks. `settle` brings
the tables up to date with all of it: a burst of changes on one identity is one expansion of its policy.

A pod whose identity or policy is not known is denied: its entry enforces both directions with the policy 0, which has
no entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from bus import subjects
from bus.labels import IDENTITY_MAX, IDENTITY_MIN, RESERVED, canonical_labels, labels_text
from bus.messages import Message
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.policy import PolicyRules, Selector
from bus.messages.resources import Namespace, Pod
from bus.subjects import State
from services.dataplane.part import Held, Parts, in_order
from services.dataplane.parts.ipcache import ONE_FAMILY_ANYWHERE, Ipcache, Routing
from services.dataplane.parts.masquerade import Masquerade
from services.dataplane.parts.policy.entries import EndpointPolicy, PolicyEntry, PolicyKey, PolicyStore, diff
from services.dataplane.parts.policy.named_ports import NamedPorts, names_in
from services.dataplane.parts.services import Services
from services.dataplane.shapes.layouts import (
    FLAG_ENFORCE_EGRESS,
    FLAG_ENFORCE_INGRESS,
    EndpointEntry,
    PolicyMapEntry,
    PolicyMapKey,
    check_identity,
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
        self.parts = Parts(Masquerade(not_masqueraded), Ipcache(node, own_addresses, routing), Services())
        self.network = self.parts[Ipcache]
        self.services = self.parts[Services]
        self.endpoints = Table("endpoints", after=("masq_exclude", "policy", "services"))
        self.policy = Table("policy", after=("ipcache", "named_ports"))
        self.policies = PolicyStore()
        self.named = NamedPorts()
        self.tables = in_order((*self.parts.tables, self.policy, self.named.table, self.endpoints))
        """In the order in which they are written."""
        self.pods: dict[str, LocalPod] = {}  # by each of its addresses
        self.identities: dict[int, Identity] = {}
        self._numbers: dict[str, int] = {}  # label set as text -> identity
        self._namespaces: dict[str, Namespace] = {}
        self._resources: dict[tuple[str, str], Pod] = {}  # pods bound to this node
        self._identity: dict[str, int] = {}  # by address of a pod here
        self._living: Counter[int] = Counter()  # pods here, by identity
        self._expanded: dict[int, EndpointPolicy] = {}  # by local identity: what the policy table holds
        self._stale_identities: set[int] = set()
        self._stale_named: set[int] = set()  # local identities whose rows of `named_ports` may be others now
        self._stale_pods: set[str] = set()
        self._restored: set[str] = set()  # pods whose entry in the kernel stays until all has been heard
        self._synced = False
        self.problems: dict[str, str] = {}  # what the last `settle` could not bring up to date, and why

    def adopt(self, held: Held) -> None:
        """Before anything is heard: what a process before this one left in the maps."""
        self.parts.adopt(held)

    # What the bus says

    def put(self, subject: str, message: Message) -> None:
        """`subject` has this value now.

        Raises: ValueError: it is of another thing, or an address, network, port or identity in it is none; nothing is
            changed.
        """
        self.parts.put(subjects.check_subject(subject, message), message)
        match message:
            case Namespace():
                self._namespaces[message.name] = message
                self._touch_pods(message.name)
            case Pod():
                self._put_pod(message)
            case Identity():
                self._put_identity(message)
            case AddressIdentity():
                self._call(message.address)
            case PolicyRules():
                self._stale_identities |= self.policies.put_rules(message)
            case Selector():
                for number in message.members:
                    check_identity(number)
                self._stale_identities |= self.policies.put_selector(message)

    def delete(self, subject: str) -> None:
        """`subject` is gone, whatever it was: a key that makes no sense never had a value here."""
        family = subjects.state_of(subject)
        if family is None:
            return
        tokens = family.parse(subject)
        self.parts.delete(family, tokens)
        if family is subjects.NAMESPACE:
            self._namespaces.pop(tokens[0], None)
            self._touch_pods(tokens[0])
        elif family is subjects.POD:
            self._resources.pop((tokens[0], tokens[1]), None)
            self._touch_pods(tokens[0])
        elif family is subjects.IDENTITY:
            gone = self.identities.pop(int(tokens[0]), None) if tokens[0].isdecimal() else None
            if gone is not None:
                self._forget_number(gone)
        elif family is subjects.ADDRESS:
            self._call(tokens[0])
        elif family is subjects.RULES:
            self._stale_identities |= self.policies.delete_rules(tokens[0], tokens[1], tokens[2])
        elif family is subjects.SELECTOR:
            self._stale_identities |= self.policies.delete_selector(tokens[0])

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
        pod, known = self.pods.get(address), self.network.addresses.get(address)
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


def _flags(policy: EndpointPolicy) -> int:
    return FLAG_ENFORCE_INGRESS * policy.ingress_enforced | FLAG_ENFORCE_EGRESS * policy.egress_enforced


def _map_key(identity: int, key: PolicyKey) -> bytes:
    return PolicyMapKey(identity, key.identity, key.direction, key.protocol, key.port, key.l4_bits).pack()


def _map_entry(key: PolicyKey, entry: PolicyEntry) -> bytes:
    return PolicyMapEntry(entry.precedence, entry.cookie, entry.proxy_port, entry.flags, key.l4_bits).pack()
