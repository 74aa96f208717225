"""What a node says of a connection is what its maps would have done to it."""

from __future__ import annotations

from hypothesis import given, settings

from bus.messages.dataplane import Judgement, Why
from bus.messages.policy import PolicyRules, Selector
from services.dataplane.parts.policy.entries import EGRESS, INGRESS
from services.dataplane.shapes.layouts import BackendEntry, BackendKey, ServiceEntry, ServiceKey
from services.dataplane.shapes.mode import Mode
from services.dataplane.why import why
from tests.unit.dataplane.keep.test_full_policy import CIDRS, OUTSIDE, PODS, Watching, outside, policy, turns

POD, FRIEND, STRANGER = "10.0.0.2", "198.51.100.7", "192.0.2.77"
TCP = 6


def judged(node: Watching, source: str, destination: str, port: int = 80) -> list[Judgement]:
    question = Why(source=source, destination=destination, protocol=TCP, port=port)
    (way,) = why("n", question, node.maps, node.model).ways
    return way.judged


@settings(max_examples=60, deadline=None)
@given(turns)
def test_it_says_what_the_maps_answer(made: list[list[Selector | PolicyRules | str]]) -> None:
    node = Watching(room=12)
    for changes in made:
        node.say(*changes)
        found = node.open()
        for pod in PODS:
            for address in OUTSIDE:
                (came,), (went,) = judged(node, address, pod), judged(node, pod, address)
                assert came.allowed == ((pod, INGRESS, address) in found)
                assert went.allowed == ((pod, EGRESS, address) in found)


def test_a_denial_names_the_policies_and_what_comes_nearest_to_letting_it_through() -> None:
    node = Watching()
    node.say(outside("one", CIDRS[-1]), outside("two", f"{FRIEND}/32"), policy("p", "is-a", denies="one", allows="two"))
    node.write()
    (stranger,), (friend,), (denied,) = (judged(node, each, POD) for each in (STRANGER, FRIEND, "203.0.113.9"))
    assert (stranger.pod, stranger.direction, stranger.enforced) == ("default/a", "ingress", True)
    assert (stranger.reason, stranger.policies) == ("Policy denied", ["CiliumNetworkPolicy/default/p"])
    number = node.model.policy.store.networks.number(f"{FRIEND}/32")
    assert stranger.nearest == f"CiliumNetworkPolicy/default/p lets through identity {number}"
    assert (friend.allowed, friend.policies, friend.reason) == (True, ["CiliumNetworkPolicy/default/p"], "")
    assert (denied.reason, denied.policies) == ("Policy denied by denylist", ["CiliumNetworkPolicy/default/p"])


def test_what_is_only_looked_at_says_why_it_would_be_denied() -> None:
    node = Watching()
    node.model.policy.store.mode = Mode(audit=True)
    node.say(outside("two", f"{FRIEND}/32"), policy("p", "is-a", allows="two"))
    node.write()
    (stranger,) = judged(node, STRANGER, POD)
    assert (stranger.allowed, stranger.audited, stranger.reason) == (True, True, "Policy denied")


def test_a_direction_that_has_no_room_says_so() -> None:
    node = Watching(room=3)
    node.say(outside("one", *CIDRS), policy("p", "is-a", denies="one"))
    node.write()
    (found,) = judged(node, STRANGER, POD)
    assert found.reason.startswith("Policy denied: no room in the node's map of policies")


def test_a_service_is_each_of_its_backends() -> None:
    node = Watching()
    node.maps["services"].set(ServiceKey("10.96.0.1", 80, TCP).pack(), ServiceEntry(7, 2).pack())
    for slot, address in enumerate((POD, STRANGER)):
        node.maps["backends"].set(BackendKey(7, slot).pack(), BackendEntry(address, 8080).pack())
    question = Why(source="10.0.0.3", destination="10.96.0.1", protocol=TCP, port=80)
    found = why("n", question, node.maps, node.model)
    assert [(way.destination, way.port, len(way.judged)) for way in found.ways] == [(POD, 8080, 2), (STRANGER, 8080, 1)]
    node.maps["services"].set(ServiceKey("10.96.0.1", 80, TCP).pack(), ServiceEntry(7, 0).pack())
    assert why("n", question, node.maps, node.model).ways == []
