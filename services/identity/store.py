"""What identity has heard, indexed by the questions that the model asks. Plain dictionaries; no I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from bus import labels
from bus.addresses import Address, Network, all_of, parse_network, plain
from bus.messages.dataplane import Endpoint
from bus.messages.identity import Identity
from bus.messages.ipam import Block
from bus.messages.resources import Namespace, Node, Pod

PodKey = tuple[str, str]  # namespace, name
EndpointKey = tuple[str, str, str]  # node, namespace, pod


class Index(dict[str, set[EndpointKey]]):
    """Several things under one key; a key without things is absent."""

    def add(self, key: str, thing: EndpointKey) -> None:
        self.setdefault(key, set()).add(thing)

    def remove(self, key: str, thing: EndpointKey) -> None:
        things = self.get(key)
        if things is not None:
            things.discard(thing)
            if not things:
                del self[key]


class Pods:
    """Pods with their namespaces, by the label set that each has."""

    def __init__(self) -> None:
        self._namespaces: dict[str, Namespace] = {}
        self._pods: dict[PodKey, Pod] = {}
        self._by_namespace: dict[str, set[PodKey]] = defaultdict(set)
        self._text: dict[PodKey, str] = {}
        self._by_text: dict[str, set[PodKey]] = {}
        self._labels: dict[str, dict[str, str]] = {}

    def get(self, key: PodKey) -> Pod | None:
        return self._pods.get(key)

    def put_namespace(self, namespace: Namespace) -> set[PodKey]:
        """Its pods: their labels may be others now."""
        self._namespaces[namespace.name] = namespace
        return set(self._by_namespace.get(namespace.name, ()))

    def delete_namespace(self, name: str) -> None:
        """Pods that outlive their namespace keep the labels that they had."""
        self._namespaces.pop(name, None)

    def put(self, pod: Pod) -> None:
        key = (pod.namespace, pod.name)
        before = self._pods.get(key)
        if before is not None and before.uid != pod.uid:
            self._unlabel(key)
        self._pods[key] = pod
        self._by_namespace[pod.namespace].add(key)

    def delete(self, key: PodKey) -> None:
        self._unlabel(key)
        if self._pods.pop(key, None) is not None:
            self._by_namespace[key[0]].discard(key)
            if not self._by_namespace[key[0]]:
                del self._by_namespace[key[0]]

    def relabel(self, key: PodKey) -> None:
        """Take the pod's label set anew. None for a pod in the host's network, which has the node's identity, and
        for one whose namespace was never heard: half of its labels could match what the whole would not."""
        pod = self._pods.get(key)
        namespace = self._namespaces.get(key[0])
        if pod is None or pod.host_network:
            self._unlabel(key)
        elif namespace is not None:
            found = labels.canonical_labels(pod, namespace)
            text = labels.labels_text(found)
            if self._text.get(key) != text:
                self._unlabel(key)
                self._text[key] = text
                self._by_text.setdefault(text, set()).add(key)
                self._labels[text] = found

    def text(self, key: PodKey) -> str | None:
        """The pod's label set as text."""
        return self._text.get(key)

    def with_text(self, text: str) -> set[PodKey]:
        return self._by_text.get(text, set())

    def labels_of(self, text: str) -> dict[str, str] | None:
        """The label set itself; None when no pod has it."""
        return self._labels.get(text)

    def _unlabel(self, key: PodKey) -> None:
        text = self._text.pop(key, None)
        if text is not None:
            self._by_text[text].discard(key)
            if not self._by_text[text]:
                del self._by_text[text], self._labels[text]


class Numbers:
    """Which number each label set has."""

    def __init__(self) -> None:
        self._text: dict[int, str] = {}
        self._by_text: dict[str, set[int]] = {}
        self._unreadable: set[int] = set()  # numbers that somebody has, though not known for which labels

    def __iter__(self) -> Iterator[int]:
        return iter(self._text)

    def put(self, identity: Identity) -> set[str]:
        """The label sets whose number may have changed."""
        text = labels.labels_text(identity.labels)
        self._unreadable.discard(identity.number)
        if self._text.get(identity.number) == text:
            return set()
        changed = self.delete(identity.number)
        self._text[identity.number] = text
        self._by_text.setdefault(text, set()).add(identity.number)
        return changed | {text}

    def put_unreadable(self, number: int) -> set[str]:
        """The label sets whose number may have changed."""
        changed = self.delete(number)
        self._unreadable.add(number)
        return changed

    def delete(self, number: int) -> set[str]:
        """The label sets whose number may have changed."""
        self._unreadable.discard(number)
        text = self._text.pop(number, None)
        if text is None:
            return set()
        self._by_text[text].discard(number)
        if not self._by_text[text]:
            del self._by_text[text]
        return {text}

    def taken(self, number: int) -> bool:
        return number in self._text or number in self._unreadable

    def text(self, number: int) -> str | None:
        return self._text.get(number)

    def of(self, text: str) -> int | None:
        """The number of a label set. Should it have two, every reader takes the one that is met first in counting."""
        found = self._by_text.get(text)
        if not found:
            return None
        span = labels.IDENTITY_MAX - labels.IDENTITY_MIN + 1
        first = labels.number_of(text)
        return min(found, key=lambda number: (number - first) % span)


class Places:
    """Nodes, their blocks, and the endpoints that they say are theirs."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._names: dict[str, set[str]] = {}
        self._endpoints: dict[EndpointKey, Endpoint] = {}
        self._by_address = Index()
        self._by_pod: dict[PodKey, set[EndpointKey]] = {}
        self._by_node = Index()
        self._blocks: dict[str, Block] = {}
        self._networks: dict[str, dict[str, Network]] = {}

    # nodes
    def put_node(self, node: Node) -> set[str]:
        """The addresses whose owner may be another now."""
        changed = self.delete_node(node.name)
        self._nodes[node.name] = node
        for address in node.addresses:
            self._names.setdefault(plain(address), set()).add(node.name)
        return changed | self.addresses_on(node.name)

    def delete_node(self, name: str) -> set[str]:
        changed = self.addresses_on(name)
        node = self._nodes.pop(name, None)
        for address in map(plain, node.addresses if node else ()):
            names = self._names.get(address, set())
            names.discard(name)
            if not names:
                self._names.pop(address, None)
        return changed

    def node(self, name: str) -> Node | None:
        return self._nodes.get(name)

    def nodes_with(self, address: str) -> set[str]:
        return self._names.get(address, set())

    def addresses_on(self, name: str) -> set[str]:
        """The node's own addresses and those of its endpoints."""
        node = self._nodes.get(name)
        own = {plain(address) for address in node.addresses} if node else set()
        return own.union(*(all_of(self._endpoints[key]) for key in self._by_node.get(name, ())))

    # blocks
    def put_block(self, block: Block) -> set[str]:
        changed = self.delete_block(block.cidr)
        self._blocks[block.cidr] = block
        network = parse_network(block.cidr)  # None for what is no block: nothing is inside it
        if network is not None:
            self._networks.setdefault(block.node, {})[block.cidr] = network
        return changed | self.addresses_on(block.node)

    def delete_block(self, cidr: str) -> set[str]:
        block = self._blocks.pop(cidr, None)
        if block is None:
            return set()
        self._networks.get(block.node, {}).pop(cidr, None)
        return self.addresses_on(block.node)

    def holds(self, node: str, address: Address) -> bool:
        """The address is in a block of the node's."""
        return any(address in network for network in self._networks.get(node, {}).values())

    # endpoints
    def put_endpoint(self, endpoint: Endpoint) -> set[str]:
        key = (endpoint.node, endpoint.namespace, endpoint.pod)
        changed = self.delete_endpoint(key)
        addresses = all_of(endpoint)
        self._endpoints[key] = endpoint
        for address in addresses:
            self._by_address.add(address, key)
        self._by_node.add(endpoint.node, key)
        self._by_pod.setdefault(key[1:], set()).add(key)
        return changed.union(addresses)

    def delete_endpoint(self, key: EndpointKey) -> set[str]:
        endpoint = self._endpoints.pop(key, None)
        if endpoint is None:
            return set()
        addresses = all_of(endpoint)
        for address in addresses:
            self._by_address.remove(address, key)
        self._by_node.remove(endpoint.node, key)
        self._by_pod[key[1:]].discard(key)
        if not self._by_pod[key[1:]]:
            del self._by_pod[key[1:]]
        return set(addresses)

    def endpoint(self, key: EndpointKey) -> Endpoint:
        return self._endpoints[key]

    def endpoints_with(self, address: str) -> set[EndpointKey]:
        return self._by_address.get(address, set())

    def addresses_of(self, pod: PodKey) -> set[str]:
        return set[str]().union(*(all_of(self._endpoints[key]) for key in self._by_pod.get(pod, ())))

    def identities_in_use(self) -> set[int]:
        """The numbers that nodes have given to their endpoints."""
        return {endpoint.identity for endpoint in self._endpoints.values()}
