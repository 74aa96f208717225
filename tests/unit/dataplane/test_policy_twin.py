"""Rules on their whole way through the policy model and the map, against the oracle that reads them directly."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from bus import labels
from bus.control import Say
from bus.messages import Message
from bus.messages.identity import Identity
from bus.messages.policy import PolicyRules, Selector
from bus.subjects import IDENTITY, NAMESPACE, POD, POLICY
from services.dataplane.policy import EGRESS, INGRESS, PolicyStore, entries_for, verdict
from services.policy.model import PolicyModel
from tests.oracle import allowed_by_rules
from tests.strategies import World, worlds

ASKED = 6000  # pairs of rules and packet at least, over all examples
asked = 0


def compile_world(world: World) -> tuple[list[PolicyRules], dict[str, Selector], dict[str, int]]:
    """What the policy service says of a world, and the number of every label set (as text)."""
    model = PolicyModel()
    numbers: dict[str, int] = {}
    for pod in world.pods:
        found = world.labels_of(pod)
        number = numbers.setdefault(labels.labels_text(found), labels.number_of(labels.labels_text(found)))
        model.put(IDENTITY.of(str(number)), Identity(number=number, labels=found))
        model.put(POD.of(pod.namespace, pod.name), pod)
    for namespace in world.namespaces:
        model.put(NAMESPACE.of(namespace.name), namespace)
    for policy in world.policies:
        model.put(POLICY.of(policy.kind, policy.namespace, policy.name), policy)
    said: list[Message] = []
    while stage := list(model.act()):
        said += [action.message for action in stage if isinstance(action, Say)]
    assert not model.failed
    rules = [message for message in said if isinstance(message, PolicyRules)]
    return rules, {message.id: message for message in said if isinstance(message, Selector)}, numbers


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(world=worlds())
def check_one_world(world: World) -> None:
    global asked
    rules, selectors, numbers = compile_world(world)
    store = PolicyStore()
    for number in numbers.values():
        store.add_identity(number)
    for message in rules:
        store.put_rules(message)
    for selector in selectors.values():
        store.put_selector(selector)
    expanded = {number: entries_for(number, rules, selectors) for number in numbers.values()}
    for number, policy in expanded.items():
        assert store.policy_of(number) == policy
        assert not policy.missing
    for subject, peer, packet in world.questions():
        own = world.labels_of(subject)
        other = peer if isinstance(peer, int) else world.labels_of(peer)
        expected = allowed_by_rules(
            own,
            other,
            world.policies,
            packet.direction,
            packet.protocol,
            packet.port,
            subject_ports=world.named_ports(own),
            peer_ports={} if isinstance(other, int) else world.named_ports(other),
        )
        answer = verdict(
            expanded[numbers[labels.labels_text(own)]],
            other if isinstance(other, int) else numbers[labels.labels_text(other)],
            INGRESS if packet.direction == "ingress" else EGRESS,
            packet.protocol,
            packet.port,
        )
        assert answer.allowed == expected, (subject, peer, packet)
        asked += 1


def test_the_map_answers_as_the_rules_read() -> None:
    global asked
    asked = 0
    check_one_world()
    assert asked >= ASKED
