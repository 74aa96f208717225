"""DNS names as peers become selectors of names."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bus.messages.policy import PeerName, Selector
from bus.messages.resources import Peer, Policy, Rule
from bus.subjects import SELECTOR
from services.policy.networks import NOBODY
from tests.unit.policy.test_policy_model import SHIPS, Running, ingress, policy

API = Peer(dns_name="api.example.com")
ALL = Peer(dns_pattern="*.example.com")


def to(*peers: Peer) -> Rule:
    return Rule(direction="egress", peers=list(peers))


def selectors_of(running: Running) -> list[Selector]:
    (rule,) = running.rules().rules
    found = [running.log[SELECTOR.of(key)] for key in rule.selectors]
    return [each for each in found if isinstance(each, Selector)]


def test_all_names_of_a_rule_are_one_selector_beside_networks_and_labels() -> None:
    running = Running()
    running.hear(policy(to(ALL, API, Peer(selector=SHIPS), Peer(cidr="10.0.0.0/8"))))
    found = selectors_of(running)
    assert len(found) == 3
    (named,) = [each for each in found if each.names]
    assert named.names == [PeerName(pattern="*.example.com"), PeerName(name="api.example.com")]
    assert (named.selector, named.members, named.networks) == (NOBODY, [], [])


def test_the_same_names_in_any_writing_are_the_same_selector() -> None:
    running = Running()
    running.hear(policy(to(API, ALL)), policy(to(ALL, Peer(dns_name="API.example.com.")), name="rule2"))
    assert len([each for each in running.log.values() if isinstance(each, Selector) and each.names]) == 1


def test_a_selector_of_names_goes_with_the_last_rule_that_has_them() -> None:
    running = Running()
    running.hear(policy(to(API)), policy(to(API), name="rule2"))
    (found,) = selectors_of(running)
    running.forget(policy())
    assert SELECTOR.of(found.id) in running.log
    running.hear(policy(ingress(SHIPS), name="rule2"))
    assert SELECTOR.of(found.id) not in running.log


@pytest.mark.parametrize(
    "wrong",
    [
        policy(Rule(direction="ingress", peers=[API])),
        replace(policy(ingress(SHIPS)), denies=[to(API)]),
        policy(to(Peer(dns_name="a.b", dns_pattern="*.b"))),
        policy(to(Peer(dns_name="a.b", cidr="10.0.0.0/8"))),
    ],
)
def test_names_elsewhere_than_where_egress_is_allowed_have_no_meaning(wrong: Policy) -> None:
    running = Running()
    running.hear(wrong)
    assert running.rules().rules == []
    assert running.rules().deny_ingress_by_default or running.rules().deny_egress_by_default
