"""Selectors of names mean the addresses that the names have."""

from __future__ import annotations

import pytest

from bus.messages.policy import PeerName, PeerNetwork, PolicyRules, Selector, SelectorRule
from bus.messages.resources import LabelSelector
from services.dataplane.parts.policy.entries import EGRESS, PolicyKey
from services.dataplane.parts.policy.store import PolicyStore

POD = 1000
SUBJECT = Selector(id="subject", selector=LabelSelector(), members=[POD])
API = Selector(id="api", selector=LabelSelector(), names=[PeerName(name="api.example.com")])
ALL = Selector(id="all", selector=LabelSelector(), names=[PeerName(pattern="*.example.com")])
WIDE = Selector(id="wide", selector=LabelSelector(), networks=[PeerNetwork(cidr="192.0.2.0/24")])


def store(*selectors: Selector) -> PolicyStore:
    """A pod that may go out to these."""
    made = PolicyStore()
    made.add_identity(POD, {"app": "a"})
    for each in (SUBJECT, *selectors):
        made.put_selector(each)
    rule = SelectorRule(direction="egress", selectors=[each.id for each in selectors])
    rules = PolicyRules(kind="K", namespace="n", name="p", subject="subject", rules=[rule], deny_egress_by_default=True)
    made.put_rules(rules)
    return made


def allowed(made: PolicyStore) -> set[str]:
    """The networks that the pod may go out to."""
    keys: list[PolicyKey] = [key for key in made.policy_of(POD).entries if key.direction == EGRESS]
    return {made.networks.cidr_of(key.identity) for key in keys} - {""}


def test_a_name_opens_the_addresses_that_it_has_and_no_others() -> None:
    made = store(API)
    assert allowed(made) == set()
    assert made.put_name("api.example.com", ["192.0.2.1", "2001:db8::1"]) == {POD}
    assert allowed(made) == {"192.0.2.1/32", "2001:db8::1/128"}
    assert made.put_name("web.example.com", ["192.0.2.9"]) == set()
    assert made.put_name("api.example.com", ["192.0.2.2"]) == {POD}
    assert allowed(made) == {"192.0.2.2/32"}
    assert made.put_name("api.example.com", []) == {POD}
    assert allowed(made) == set()
    assert made.networks.number("192.0.2.2/32") is None


def test_an_address_stays_as_long_as_any_name_of_the_pattern_has_it() -> None:
    made = store(ALL)
    made.put_name("a.example.com", ["192.0.2.1"])
    assert made.put_name("b.example.com", ["192.0.2.1"]) == set()
    assert made.put_name("a.example.com", []) == set()
    assert allowed(made) == {"192.0.2.1/32"}
    made.put_name("b.example.com", [])
    assert allowed(made) == set()


def test_what_was_learned_before_its_selector_counts() -> None:
    made = store(API)
    made.put_name("a.example.com", ["192.0.2.1"])
    made.put_selector(Selector(id="api", selector=LabelSelector(), names=ALL.names))
    assert allowed(made) == {"192.0.2.1/32"}
    made.put_selector(API)
    assert allowed(made) == set()


def test_a_network_around_an_address_that_has_a_name_means_it_too() -> None:
    made = store(API, WIDE)
    made.put_name("other.example.com", ["192.0.2.7"])
    made.put_name("api.example.com", ["192.0.2.1"])
    assert allowed(made) == {"192.0.2.0/24", "192.0.2.1/32"}
    made.delete_selector("api")
    assert allowed(made) == {"192.0.2.0/24"}


@pytest.mark.parametrize("address", ["", "x", "192.0.2.1/32", "192.0.2.01", "::ffff:192.0.2.1", "2001:DB8::1"])
def test_what_is_no_address_changes_nothing(address: str) -> None:
    made = store(API)
    made.put_name("api.example.com", ["192.0.2.1"])
    with pytest.raises(ValueError, match="no address"):
        made.put_name("api.example.com", ["192.0.2.2", address])
    assert allowed(made) == {"192.0.2.1/32"}
