"""(what is in the log, what was seen at the API server) -> steps. No I/O, no clock.

Kubernetes has checked what depends on other resources (a pod's node, a Service's address, a namespace), and takes away
itself what goes with what. What is left to see to: a node's addresses are that node's, whatever another one says, and a
pod on its node's network has that node's addresses, whatever its kubelet says.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from bus.addresses import by_family
from bus.control import Action, Say, Unsay
from bus.messages import Message
from bus.messages.resources import Node, Pod
from services.resources.kubernetes.pending import Changes
from services.resources.manifests.meta import Key
from services.resources.model import SAID, Plan, difference, place, subjects_of
from services.resources.registry import KINDS
from services.resources.store import Store

WATCHED = tuple(each for each in KINDS if not each.makes)
"""What makes others is the business of Kubernetes' own controllers."""


def plan_mirror(store: Store, changes: Changes) -> Plan:
    """First all that is there, in the order of kinds, so that a policy comes before the pods that it governs; then what
    is gone, in the order of taking away."""
    nodes = _nodes(store, changes)
    says: list[tuple[int, Action]] = []
    unsays: list[str] = []
    for key, seen in changes.items():
        if seen is None:
            unsays += subjects_of(store, key)
        elif seen.resource is not None:
            wanted = [(subject, told) for subject, message in seen.resource.messages if (told := _own(message, nodes))]
            for action in difference(store, key, wanted)[1] if wanted else ():
                if isinstance(action, Unsay):
                    unsays.append(action.subject)
                else:
                    says.append((SAID[key.kind], action))
    written = {key for key, seen in changes.items() if key.kind == "Pod"}
    says += [(SAID["Pod"], action) for action in _on_moved_nodes(store, nodes, written)]
    says.sort(key=lambda step: step[0])
    unsays.sort(key=lambda subject: (place(subject), subject))
    return Plan((*(action for _, action in says), *map(Unsay, unsays)))


def here(store: Store, kind: str) -> set[Key]:
    """Which resources of a kind the log has."""
    row = next(each for each in KINDS if each.name == kind)
    found = set()
    for subject in store.subjects():
        if not row.state.has(subject):
            continue
        if row.is_shared:
            name_of_kind, namespace, name = row.state.parse(subject)
            if name_of_kind == kind:
                found.add(Key(kind, namespace, name.partition("/")[0]))
        else:
            *namespace_, name = row.state.parse(subject)
            found.add(Key(kind, "".join(namespace_), name))
    return found


def _nodes(store: Store, changes: Changes) -> dict[str, Node]:
    """Those that there will be; one that claims another's address stays as it was. The first one has it."""
    nodes = {each.name: each for each in store.nodes()}
    told: list[Node] = []
    for key, seen in changes.items():
        if key.kind == "Node" and seen is None:
            nodes.pop(key.name, None)
        elif key.kind == "Node" and seen is not None and seen.resource is not None:
            told += [message for _, message in seen.resource.messages if isinstance(message, Node)]
    for node in told:
        others = {address for each in nodes.values() if each.name != node.name for address in each.addresses}
        if others.isdisjoint(node.addresses):
            nodes[node.name] = node
    return nodes


def _own(message: Message, nodes: dict[str, Node]) -> Message | None:
    if isinstance(message, Node):
        return nodes.get(message.name)
    return _placed(message, nodes) if isinstance(message, Pod) and message.host_network else message


def _placed(pod: Pod, nodes: dict[str, Node]) -> Pod:
    node = nodes.get(pod.node)
    addresses = (
        list(by_family(node.addresses).values()) if node is not None and pod.phase in ("Pending", "Running") else []
    )
    return replace(pod, address=next(iter(addresses), ""), addresses=addresses if len(addresses) > 1 else [])


def _on_moved_nodes(store: Store, nodes: dict[str, Node], written: set[Key]) -> Iterable[Action]:
    """Pods on the network of a node whose addresses are others now."""
    moved = {name for name, node in nodes.items() if node.addresses != store.node_addresses(name)}
    if not moved:
        return
    for subject, message in store.items():
        if not isinstance(message, Pod) or not message.host_network or message.node not in moved:
            continue
        placed = _placed(message, nodes)
        if placed != message and Key("Pod", message.namespace, message.name) not in written:
            yield Say(subject, placed)
