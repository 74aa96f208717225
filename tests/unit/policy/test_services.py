"""Services as peers: whoever is behind them, as it changes."""

from __future__ import annotations

from bus import labels
from bus.messages.policy import Selector
from bus.messages.resources import (
    EndpointSlice,
    LabelSelector,
    Peer,
    Requirement,
    Rule,
    Service,
    ServicePeer,
    SliceEndpoint,
)
from bus.subjects import SELECTOR
from tests.unit.policy.test_policy_model import Running, identity, pod, policy

WEB = Service(namespace="blue", name="web", selector={"app": "web"}, ports=[], labels={"tier": "a"})
PLAIN = Service(namespace="blue", name="plain", ports=[], labels={"tier": "a"})


def to_services(**wanted: object) -> Rule:
    return Rule(direction="egress", peers=[Peer(services=ServicePeer(**wanted))])  # type: ignore[arg-type]  # as given


def slice_of(*addresses: str, name: str = "plain-1", service: str = "plain") -> EndpointSlice:
    return EndpointSlice(
        namespace="blue", name=name, service=service, endpoints=[SliceEndpoint(addresses=list(addresses))]
    )


def meant(running: Running) -> list[Selector]:
    (rule,) = running.rules().rules
    assert not rule.any_peer and not rule.entities
    found = [running.log[SELECTOR.of(key)] for key in rule.selectors]
    return [each for each in found if isinstance(each, Selector)]


def networks(running: Running) -> list[str]:
    return sorted(network.cidr for each in meant(running) for network in each.networks)


def test_a_service_with_a_selector_is_its_pods_in_its_namespace() -> None:
    running = Running()
    running.hear(identity(1000, pod("a", app="web")), policy(to_services(name="web", namespace="blue")))
    assert meant(running) == [], "there is no such Service"
    running.hear(WEB)
    (found,) = meant(running)
    assert {(each.key, *each.values) for each in found.selector.requirements} == {
        (labels.NAMESPACE, "blue"),
        ("k8s:app", "web"),
    }
    assert found.members == [], "that pod is of another namespace"
    running.forget(WEB)
    assert meant(running) == []


def test_a_service_without_a_selector_is_the_addresses_of_its_slices() -> None:
    running = Running()
    running.hear(slice_of("203.0.113.1", "x"), PLAIN, policy(to_services(name="plain")))
    assert networks(running) == ["203.0.113.1/32"]
    running.hear(slice_of("2001:db8::1", name="plain-2"), slice_of("192.0.2.1", name="other", service="other"))
    assert networks(running) == ["2001:db8::1/128", "203.0.113.1/32"]
    running.hear(slice_of("203.0.113.2"))
    assert networks(running) == ["2001:db8::1/128", "203.0.113.2/32"]
    running.forget(slice_of(name="plain-2"))
    assert networks(running) == ["203.0.113.2/32"]
    assert running.hear(slice_of("192.0.2.2", name="other", service="other")) == []


def test_services_by_labels_and_of_another_namespace() -> None:
    wanted = LabelSelector(requirements=[Requirement(key="tier", operator="In", values=["a"])])
    running = Running()
    running.hear(WEB, PLAIN, slice_of("203.0.113.1"), policy(to_services(selector=wanted)))
    assert networks(running) == ["203.0.113.1/32"] and len(meant(running)) == 2
    running.hear(policy(to_services(selector=wanted, namespace="green")))
    assert meant(running) == []
    running.hear(policy(Rule(direction="egress", peers=[Peer(entity="world")])))
    assert running.hear(slice_of("203.0.113.9")) == [], "no policy names a Service any more"
