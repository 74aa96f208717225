"""What the log holds, indexed behind the questions that `model.py` asks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from bus.codec import encode
from bus.digest import Digests
from bus.messages import Message
from bus.messages.resources import ClusterAddress, LoadBalancerPool, Node, NodePort, Pod
from bus.subjects import CLUSTER_ADDRESS, NAMESPACE, NODE, NODE_PORT
from services.resources.registry import KINDS, MAKERS

_NAMESPACED = tuple(each.state.message for each in KINDS if each.is_namespaced)
_SHARED = tuple({each.state.message for each in KINDS if each.is_shared})  # of several kinds: each says which it is of


class Store:
    """The last value of every subject. All questions cost no more than their answer is long."""

    def __init__(self, values: Mapping[str, Message] | None = None) -> None:
        self._values: dict[str, Message] = {}
        self.digests = Digests.of_owner("resources")
        self._in_namespace: dict[str, set[str]] = defaultdict(set)
        self._owned: dict[str, set[str]] = defaultdict(set)
        self._parts: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        self._addresses: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._node_ports: dict[tuple[str, str], set[str]] = defaultdict(set)
        for subject, message in (values or {}).items():
            self.put(subject, message)

    def put(self, subject: str, message: Message) -> None:
        self.delete(subject)
        self._values[subject] = message
        self.digests.put(subject, encode(message))
        for index, key in self._places(message):
            index[key].add(subject)

    def delete(self, subject: str) -> None:
        """Safe to repeat."""
        old = self._values.pop(subject, None)
        if old is not None:
            self.digests.delete(subject)
            for index, key in self._places(old):
                index[key].discard(subject)
                if not index[key]:
                    del index[key]

    def get(self, subject: str) -> Message | None:
        return self._values.get(subject)

    def items(self) -> Iterable[tuple[str, Message]]:
        return list(self._values.items())

    def subjects(self) -> list[str]:
        return list(self._values)

    def has_namespace(self, name: str) -> bool:
        return NAMESPACE.of(name) in self._values

    def has_node(self, name: str) -> bool:
        return NODE.of(name) in self._values

    def nodes(self) -> list[Node]:
        """All of them; asked for when one is applied, and costs a look at everything."""
        return [each for each in self._values.values() if isinstance(each, Node)]

    def pools(self) -> list[LoadBalancerPool]:
        """All of them; asked for when one is applied that is new, and costs a look at everything."""
        return [each for each in self._values.values() if isinstance(each, LoadBalancerPool)]

    def node_addresses(self, name: str) -> list[str]:
        """Its own; none of a node that is not there."""
        node = self._values.get(NODE.of(name))
        return node.addresses if isinstance(node, Node) else []

    def node_names(self) -> list[str]:
        return sorted(NODE.parse(subject)[0] for subject in self._values if NODE.has(subject))

    def has_workload(self, owner: str) -> bool:
        """Whether there is "deployment/default/web". Of a noun that a newer version may know we cannot say: yes."""
        noun, namespace, name = owner.split("/")
        return noun not in MAKERS or MAKERS[noun].state.of(namespace, name) in self._values

    def in_namespace(self, namespace: str) -> list[str]:
        """Subjects of all that lives there; addresses of Services not among them."""
        return sorted(self._in_namespace.get(namespace, ()))

    def pods_of(self, owner: str) -> list[str]:
        """Subjects of the pods whose `owner` is this, as "deployment/default/web"."""
        return sorted(self._owned.get(owner, ()))

    def parts_of(self, kind: str, namespace: str, name: str) -> list[str]:
        """Subjects of one resource of a kind that shares its family: of a policy, those of its further rules too
        ("name/specs[1]")."""
        return sorted(self._parts.get((kind, namespace, name), ()))

    def addresses_of(self, namespace: str, service: str) -> list[str]:
        """Addresses that the Service holds."""
        return sorted(CLUSTER_ADDRESS.parse(subject)[0] for subject in self._addresses.get((namespace, service), ()))

    def holder_of(self, address: str) -> ClusterAddress | None:
        held = self._values.get(CLUSTER_ADDRESS.of(address))
        return held if isinstance(held, ClusterAddress) else None

    def node_ports_of(self, namespace: str, service: str) -> list[int]:
        """Node ports that the Service holds."""
        subjects = self._node_ports.get((namespace, service), ())
        return sorted(int(NODE_PORT.parse(subject)[0]) for subject in subjects)

    def holder_of_port(self, port: int) -> NodePort | None:
        held = self._values.get(NODE_PORT.of(str(port)))
        return held if isinstance(held, NodePort) else None

    def _places(self, message: Message) -> list[tuple[dict[Any, set[str]], object]]:
        """Each index that lists the message, with the key that it stands under."""
        places: list[tuple[dict[Any, set[str]], object]] = []
        namespace = getattr(message, "namespace", "")
        if namespace and isinstance(message, _NAMESPACED):
            places.append((self._in_namespace, namespace))
        if isinstance(message, Pod) and message.owner:
            places.append((self._owned, message.owner))
        if isinstance(message, _SHARED):
            of_several: Any = message
            places.append((self._parts, (of_several.kind, namespace, of_several.name.partition("/")[0])))
        if isinstance(message, ClusterAddress):
            places.append((self._addresses, (message.namespace, message.service)))
        if isinstance(message, NodePort):
            places.append((self._node_ports, (message.namespace, message.service)))
        return places
