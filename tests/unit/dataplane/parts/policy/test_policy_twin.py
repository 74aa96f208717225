"""Rules on their whole way through the policy model and the map, against the oracle that reads them directly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

from hypothesis import HealthCheck, given, settings

from bus import labels
from bus.control import Say
from bus.labels import RESERVED
from bus.messages import Message
from bus.messages.identity import Identity
from bus.messages.policy import PolicyRules, Selector
from bus.messages.resources import Pod
from bus.subjects import CIDR_GROUP, IDENTITY, NAMESPACE, POD, POLICY
from services.dataplane.parts.policy.entries import EGRESS, INGRESS, entries_for, name_of, verdict
from services.dataplane.parts.policy.named_ports import names_in
from services.dataplane.parts.policy.networks import Networks, prefixes_of
from services.dataplane.parts.policy.store import PolicyStore
from services.dataplane.shapes.layouts import Prefix
from services.dataplane.shapes.mode import Mode
from services.policy.model import PolicyModel
from tests.oracle import allowed_by_rules
from tests.strategies import End, Packet, World, worlds

ASKED = 10_000  # pairs of rules and packet at least, over all examples
asked = 0


def compile_world(
    world: World, policies_first: bool = False
) -> tuple[list[PolicyRules], dict[str, Selector], dict[str, int]]:
    """What the policy service says of a world, and the number of every label set (as text)."""
    model = PolicyModel()
    numbers: dict[str, int] = {}
    said: dict[str, Message] = {}
    written = {POLICY.of(policy.kind, policy.namespace, policy.name): policy for policy in world.policies}
    if policies_first:
        for subject, policy in written.items():
            model.put(subject, policy)
        said = stages(model)
    for pod in world.pods:
        found = world.labels_of(pod)
        number = numbers.setdefault(labels.labels_text(found), labels.number_of(labels.labels_text(found)))
        model.put(IDENTITY.of(str(number)), Identity(number=number, labels=found))
        model.put(POD.of(pod.namespace, pod.name), pod)
    for group in world.groups:
        model.put(CIDR_GROUP.of(group.name), group)
    for namespace in world.namespaces:
        model.put(NAMESPACE.of(namespace.name), namespace)
    for subject, policy in written.items():
        model.put(subject, policy)
    said |= stages(model)
    assert not model.failed
    rules = [message for message in said.values() if isinstance(message, PolicyRules)]
    return rules, {message.id: message for message in said.values() if isinstance(message, Selector)}, numbers


def numbered(selectors: Mapping[str, Selector]) -> Networks:
    """What selectors of networks mean on a node that has heard of these."""
    networks = Networks()
    for selector in selectors.values():
        networks.put(selector.id, selector.networks)
    return networks


def number_at(address: IPv4Address | IPv6Address, networks: Networks) -> int:
    """Who an address of the outside is, by the longest row of the ipcache, where nodes have both families."""
    rows = {row: networks.number(cidr) for cidr in networks.changed for row in prefixes_of(cidr)}
    whole = Prefix(str(address)).pack()
    for bits in range(128, -1, -1):
        number = int.from_bytes(whole[4:], "big") >> (128 - bits) << (128 - bits)
        found = rows.get(Prefix.layout.pack(bits, number.to_bytes(16, "big")))
        if found is not None:
            return found
    return RESERVED[f"world-ipv{address.version}"]


def names_at(called: End, packet: Packet) -> frozenset[str]:
    """What the pod that is called calls the packet's port."""
    ports = called.ports if isinstance(called, Pod) else []
    return frozenset(name for name, *port in names_in(ports) if port == [packet.protocol, packet.port])


def stages(model: PolicyModel) -> dict[str, Message]:
    """All that the model has to say now."""
    said: dict[str, Message] = {}
    while stage := list(model.act()):
        said |= {action.subject: action.message for action in stage if isinstance(action, Say)}
    return said


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(world=worlds())
def check_one_world(world: World) -> None:
    global asked
    rules, selectors, numbers = compile_world(world)
    later, moved, _ = compile_world(world, policies_first=True)
    assert (sorted(later, key=name_of), moved) == (sorted(rules, key=name_of), selectors)
    store = PolicyStore()
    for text, number in numbers.items():
        store.add_identity(number, dict(json.loads(text)))
    for message in rules:
        store.put_rules(message)
    for selector in selectors.values():
        store.put_selector(selector)
    networks = store.networks
    expanded = {number: entries_for(number, rules, selectors, networks=networks) for number in numbers.values()}
    for number, policy in expanded.items():
        assert store.policy_of(number) == policy
        assert not policy.missing
    only_looked_at = {
        number: entries_for(number, rules, selectors, networks=networks, mode=Mode(audit=True)) for number in expanded
    }
    found = {pod.name: world.labels_of(pod) for pod in world.pods}
    outside = {address: number_at(address, networks) for address in world.outside}

    def number_of(end: Mapping[str, str] | int | IPv4Address | IPv6Address) -> int:
        if isinstance(end, Mapping):
            return numbers[labels.labels_text(end)]
        return end if isinstance(end, int) else outside[end]

    for subject, peer, packet in world.questions():
        own = found[subject.name]
        other = found[peer.name] if isinstance(peer, Pod) else peer
        expected = allowed_by_rules(
            own,
            other,
            world.policies,
            packet.direction,
            packet.protocol,
            packet.port,
            groups=world.groups,
            subject_ports=world.named_ports(subject),
            peer_ports=world.named_ports(peer),
            kin_ports=world.kin_ports(subject if packet.direction == "ingress" else peer),
        )
        asking = (
            number_of(other),
            INGRESS if packet.direction == "ingress" else EGRESS,
            packet.protocol,
            packet.port,
            names_at(subject if packet.direction == "ingress" else peer, packet),
        )
        mine = numbers[labels.labels_text(own)]
        answer = verdict(expanded[mine], *asking)
        assert answer.allowed == expected, (subject, peer, packet)
        looked = verdict(only_looked_at[mine], *asking)
        assert (looked.allowed, looked.cookie in only_looked_at[mine].audited) == (True, not expected)
        asked += 1


def test_the_map_answers_as_the_rules_read() -> None:
    global asked
    asked = 0
    check_one_world()
    assert asked >= ASKED
