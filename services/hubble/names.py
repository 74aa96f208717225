"""Who and what the kernel's numbers mean, as the bus says it. Pure; plain dictionaries behind named questions."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bus import subjects
from bus.labels import NETWORK_MAX, NETWORK_MIN, RESERVED
from bus.messages import Message
from bus.messages.dataplane import Endpoint
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.lb import LoadBalancedService
from bus.messages.resources import Node, Pod
from bus.subjects import State

HEARS: tuple[State[Message], ...] = (
    subjects.POD,
    subjects.NODE,
    subjects.IDENTITY,
    subjects.ADDRESS,
    subjects.FRONTEND,
    subjects.ENDPOINT,
)
CACHED_MAX = 1 << 16  # parties at hand; about 100 bytes each
UNKNOWN_MAX = 1024  # networks to ask for at a time; the others are met again
DEPLOYED_KINDS = {"deployment": "Deployment", "statefulset": "StatefulSet", "daemonset": "DaemonSet"}
PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}

_MAPPED = bytes(10) + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Party:
    """Who sent or was sent to. A flow keeps it as it was when the packet was seen."""

    identity: int
    namespace: str = ""
    pod: str = ""
    labels: tuple[str, ...] = ()  # "k8s:app=web", "reserved:world", sorted
    workload: Workload | None = None
    number: int = 0  # of a pod of this node: the index of its interface
    node: str = ""  # where it lives; "": not in the cluster, or not known


@dataclass(frozen=True, slots=True)
class ServiceName:
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class PolicyName:
    kind: str
    namespace: str
    name: str

    @classmethod
    def of(cls, text: str) -> PolicyName:
        """ "CiliumNetworkPolicy/default/rule1"; of a cluster's policy the namespace is empty."""
        kind, _, rest = text.partition("/")
        namespace, _, name = rest.partition("/")
        return cls(kind, namespace, name)


WORLD_LABELS = {number: f"reserved:{word}" for word, number in RESERVED.items()}
ServiceKey = tuple[bytes, int, int]  # address, port in network byte order, protocol: as they stand in a record
DecisionKey = tuple[int, int, int]  # policy, cookie, direction


class Names:
    """`put` and `delete` take what the bus says; may be repeated, in any order. `changes` counts them."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.node_labels: tuple[str, ...] = ()
        self.changes = 0
        self._identities: dict[int, tuple[str, ...]] = {}
        self._addresses: dict[bytes, AddressIdentity] = {}
        self._pods: dict[str, Pod] = {}  # "namespace/name"
        self._endpoints: dict[str, Endpoint] = {}  # of every node, by subject
        self._endpoint_at: dict[bytes, Endpoint] = {}  # of this node, by address
        self._nodes: dict[str, Node] = {}
        self._services: dict[str, LoadBalancedService] = {}  # by subject
        self._frontends: dict[ServiceKey, ServiceName] = {}
        self._backends: dict[ServiceKey, set[ServiceName]] = {}
        self._parties: dict[tuple[bytes, int], Party] = {}
        self._decisions: dict[DecisionKey, tuple[PolicyName, ...]] = {}
        self.audited: dict[DecisionKey, str] = {}
        """Why what passes by these decisions would have been dropped, did the node not only look."""
        self._networks: dict[int, tuple[str, ...]] = {}  # identity of a network -> labels
        self.unknown_networks: set[int] = set()  # that were met, and that the dataplane has not named

    # -- what the bus says

    def put(self, subject: str, message: Message) -> None:
        """Raises: ValueError: it makes no sense; nothing of it is taken."""
        match message:
            case Identity():
                self._identities[message.number] = _labels(message.labels)
            case AddressIdentity():
                self._addresses[pack(message.address)] = message
            case Pod():
                self._pods[f"{message.namespace}/{message.name}"] = message
            case Node():
                self._nodes[message.name] = message
                if message.name == self.node:
                    self.node_labels = tuple(sorted(f"{key}={value}" for key, value in message.labels.items()))
            case LoadBalancedService():
                keys = [*_frontend_keys(message)], [*_backend_keys(message)]  # all of it makes sense, or none is taken
                self._forget_service(subject)
                self._learn_service(subject, message, *keys)
            case Endpoint():
                addresses = [pack(address) for address in message.addresses or [message.address]]
                self._forget_endpoint(subject)
                self._endpoints[subject] = message
                if message.node == self.node:
                    self._endpoint_at.update(dict.fromkeys(addresses, message))
            case _:
                return
        self._changed()

    def delete(self, subject: str) -> None:
        if subjects.IDENTITY.has(subject):
            self._identities.pop(_number(subjects.IDENTITY.parse(subject)[0]), None)
        elif subjects.ADDRESS.has(subject):
            try:
                self._addresses.pop(pack(subjects.ADDRESS.parse(subject)[0]), None)
            except ValueError:
                return
        elif subjects.POD.has(subject):
            self._pods.pop("/".join(subjects.POD.parse(subject)), None)
        elif subjects.NODE.has(subject):
            self._nodes.pop(subjects.NODE.parse(subject)[0], None)
        elif subjects.FRONTEND.has(subject):
            self._forget_service(subject)
        elif subjects.ENDPOINT.has(subject):
            self._forget_endpoint(subject)
        else:
            return
        self._changed()

    def decide(self, key: DecisionKey, policies: tuple[PolicyName, ...], audited: str = "") -> None:
        """The node's dataplane says which policies an entry of the policy map comes from. That holds until it starts
        anew (`forget_numbers`), but for what nobody knows, and for cookie 0: who denies what no entry matches changes
        with the policies."""
        if not (key[1] and policies):
            return
        if audited:
            self.audited[key] = audited
        if len(self._decisions) >= CACHED_MAX:
            self._decisions.clear()
            self.audited.clear()
        self._decisions[key] = policies

    def name_network(self, number: int, cidr: str) -> None:
        """The node's dataplane says which network has this identity; "": it knows of none."""
        if len(self._networks) >= CACHED_MAX:
            self._networks.clear()
        self._networks[number] = (f"cidr:{cidr}", "reserved:world") if cidr else ()
        self.unknown_networks.discard(number)
        self._parties.clear()

    def forget_numbers(self) -> None:
        """The dataplane has started anew, and may mean something else by its numbers."""
        self._decisions.clear()
        self.audited.clear()
        self._networks.clear()
        self._parties.clear()

    # -- what is asked

    @property
    def nodes(self) -> Mapping[str, Node]:
        return self._nodes

    def party(self, address: bytes, identity: int) -> Party:
        """Who is at an address; `identity` is the kernel's, 0 where it did not look."""
        found = self._parties.get((address, identity))
        if found is None:
            if len(self._parties) >= CACHED_MAX:
                self._parties.clear()
            found = self._parties[address, identity] = self._find(address, identity)
        return found

    def service(self, address: bytes, raw_port: int, protocol: int) -> ServiceName | None:
        """The Service of this address and port: its own, or that of the one Service which has it as a backend. A socket
        that calls a Service sends to the backend, so that is all there is to know it by."""
        key = address, raw_port, protocol
        found = self._frontends.get(key)
        if found is None and (behind := self._backends.get(key)) and len(behind) == 1:
            (found,) = behind
        return found

    @property
    def has_services(self) -> bool:
        return bool(self._services)

    def policies(self, key: DecisionKey) -> tuple[PolicyName, ...] | None:
        """None: nobody has said yet."""
        return self._decisions.get(key)

    def forget_parties(self) -> None:
        """Who was found is looked for again."""
        self._parties.clear()

    # -- inside

    def _changed(self) -> None:
        self.changes += 1
        self._parties.clear()

    def _find(self, address: bytes, identity: int) -> Party:
        known = self._addresses.get(address)
        here = self._endpoint_at.get(address)
        number = identity or (known.identity if known else 0) or (here.identity if here else 0)
        labels = self._labels_of(number)
        pod = f"{here.namespace}/{here.pod}" if here else known.pod if known else ""
        namespace, _, name = pod.partition("/")
        node = self.node if here else known.node if known else ""
        workload = self._workload(pod) if pod else None
        return Party(number, namespace, name, labels, workload, here.interface_index if here else 0, node)

    def _labels_of(self, number: int) -> tuple[str, ...]:
        if number in WORLD_LABELS:
            return self._identities.get(number) or (WORLD_LABELS[number],)
        if NETWORK_MIN <= number <= NETWORK_MAX:
            found = self._networks.get(number)
            if found is None and len(self.unknown_networks) < UNKNOWN_MAX:
                self.unknown_networks.add(number)
            return found or ()
        return self._identities.get(number, ())

    def _workload(self, pod: str) -> Workload | None:
        """What made the pod; a pod that was made by nothing is its own, as clients expect it."""
        found = self._pods.get(pod)
        if found is None:
            return None
        kind, _, rest = found.owner.partition("/")
        if not rest:
            return Workload(found.name, "Pod")
        return Workload(rest.rpartition("/")[2], DEPLOYED_KINDS.get(kind, kind))

    def _learn_service(
        self, subject: str, message: LoadBalancedService, frontends: list[ServiceKey], backends: list[ServiceKey]
    ) -> None:
        name = ServiceName(message.namespace, message.name)
        self._services[subject] = message
        self._frontends.update(dict.fromkeys(frontends, name))
        for key in backends:
            self._backends.setdefault(key, set()).add(name)

    def _forget_service(self, subject: str) -> None:
        message = self._services.pop(subject, None)
        if message is None:
            return
        name = ServiceName(message.namespace, message.name)
        for key in _frontend_keys(message):
            if self._frontends.get(key) == name:
                del self._frontends[key]
        for key in _backend_keys(message):
            behind = self._backends.get(key, set())
            behind.discard(name)
            if not behind:
                self._backends.pop(key, None)

    def _forget_endpoint(self, subject: str) -> None:
        message = self._endpoints.pop(subject, None)
        if message is None:
            return
        for address in message.addresses or [message.address]:
            packed = pack(address)
            if self._endpoint_at.get(packed) is message:
                del self._endpoint_at[packed]


def pack(address: str) -> bytes:
    """As an address stands in a record. Raises: ValueError: it is none."""
    try:
        if ":" in address:
            return socket.inet_pton(socket.AF_INET6, address)
        return _MAPPED + socket.inet_pton(socket.AF_INET, address)
    except OSError:
        raise ValueError(f"{address!r} is not an address") from None


def _labels(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(f"{key}={value}" for key, value in labels.items()))


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1


def _frontend_keys(message: LoadBalancedService) -> Iterator[ServiceKey]:
    for each in message.frontends:
        if each.protocol in PROTOCOLS:
            yield pack(each.address), socket.htons(each.port), PROTOCOLS[each.protocol]


def _backend_keys(message: LoadBalancedService) -> Iterator[ServiceKey]:
    for each in message.frontends:
        if each.protocol in PROTOCOLS:
            for backend in (*each.backends, *each.draining):
                yield pack(backend.address), socket.htons(backend.port), PROTOCOLS[each.protocol]
