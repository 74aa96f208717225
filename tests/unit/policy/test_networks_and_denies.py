"""Networks become selectors of their own, and what is denied stands apart from what is allowed."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bus.messages.policy import PeerNetwork, Selector, SelectorRule
from bus.messages.resources import (
    CIDRGroup,
    ContainerPort,
    LabelSelector,
    Namespace,
    Peer,
    Policy,
    PortRange,
    Requirement,
    Rule,
)
from bus.subjects import SELECTOR
from services.policy.model import NOT_TAKEN
from services.policy.networks import NOBODY
from tests.unit.policy.test_policy_model import (
    BROKEN,
    EMPIRE,
    RULE1,
    SHIPS,
    Bus,
    Running,
    identity,
    ingress,
    need,
    pod,
    policy,
)

OFFICE = CIDRGroup(name="office", labels={"tier": "a"}, cidrs=["10.0.0.0/8", "192.0.2.1/32"])
CLOUD = CIDRGroup(name="cloud", labels={"tier": "b"}, cidrs=["198.51.100.0/24"])

EVERYONE = SelectorRule(direction="ingress", any_peer=True)


def tier(*values: str) -> LabelSelector:
    return LabelSelector(requirements=[Requirement(key="tier", operator="In", values=list(values))])


def from_networks(*peers: Peer) -> Rule:
    return Rule(direction="ingress", peers=list(peers))


def networks_of(running: Running, at: int = 0) -> list[PeerNetwork]:
    """What the one selector of a rule means."""
    (key,) = running.rules().rules[at].selectors
    found = running.log[SELECTOR.of(key)]
    assert isinstance(found, Selector)
    assert (found.selector, found.members) == (NOBODY, [])
    return found.networks


def denying(*denies: Rule, rules: tuple[Rule, ...] = ()) -> Policy:
    return replace(policy(*rules), denies=list(denies))


def test_all_networks_of_a_rule_are_one_selector_beside_those_of_labels() -> None:
    running = Running()
    both = [Peer(cidr="10.0.0.0/8", except_cidrs=["10.2.0.0/16", "10.1.0.0/16"]), Peer(cidr="fd00::/8")]
    running.hear(policy(from_networks(*both), from_networks(*reversed(both), Peer(selector=SHIPS))))
    assert networks_of(running) == [
        PeerNetwork(cidr="10.0.0.0/8", except_cidrs=["10.1.0.0/16", "10.2.0.0/16"]),
        PeerNetwork(cidr="fd00::/8"),
    ]
    one, other = running.rules().rules
    assert set(one.selectors) < set(other.selectors) and len(other.selectors) == 2


def test_a_group_that_changes_is_one_delta_and_no_rule_again() -> None:
    running = Running()
    rule = from_networks(Peer(cidr_group="office", except_cidrs=["10.1.0.0/16"]))
    running.hear(policy(rule), policy(rule, name="rule2"))
    assert networks_of(running) == [], "nobody has applied it"
    assert len(running.hear(OFFICE)) == 1
    assert networks_of(running) == [
        PeerNetwork(cidr=cidr, except_cidrs=["10.1.0.0/16"]) for cidr in ("10.0.0.0/8", "192.0.2.1/32")
    ]
    assert running.hear(OFFICE, CLOUD) == []
    assert len(running.hear(replace(OFFICE, cidrs=["11.0.0.0/8"]))) == 1
    assert [each.cidr for each in networks_of(running)] == ["11.0.0.0/8"]
    assert len(running.forget(OFFICE)) == 1
    assert networks_of(running) == []


def test_groups_are_chosen_by_their_labels() -> None:
    running = Running()
    running.hear(
        OFFICE,
        CLOUD,
        policy(from_networks(Peer(cidr_groups=tier("a", "b"))), from_networks(Peer(cidr_groups=tier("b")))),
    )
    assert [each.cidr for each in networks_of(running)] == ["10.0.0.0/8", "192.0.2.1/32", "198.51.100.0/24"]
    assert [each.cidr for each in networks_of(running, 1)] == ["198.51.100.0/24"]
    running.hear(replace(CLOUD, labels={}))
    assert [each.cidr for each in networks_of(running)] == ["10.0.0.0/8", "192.0.2.1/32"]
    assert networks_of(running, 1) == []


def test_a_selector_of_networks_goes_with_the_last_rule_that_names_it() -> None:
    running = Running()
    rule = from_networks(Peer(cidr="10.0.0.0/8"))
    running.hear(policy(rule), policy(rule, name="rule2"))
    (key,) = running.rules().rules[0].selectors
    running.forget(policy())
    assert SELECTOR.of(key) in running.log
    running.hear(policy(ingress(SHIPS), name="rule2"))
    assert SELECTOR.of(key) not in running.log


def test_a_group_of_what_is_no_network_changes_nothing() -> None:
    running = Running()
    running.hear(OFFICE, policy(from_networks(Peer(cidr_group="office"))))
    before = networks_of(running)
    with pytest.raises(ValueError, match="is no network"):
        running.hear(replace(OFFICE, cidrs=["10.0.0.0/8", "10.0.0.1/8"]))
    assert networks_of(running) == before


def test_what_is_denied_is_said_apart_with_its_selectors() -> None:
    running = Running()
    running.hear(denying(from_networks(Peer(cidr="10.0.0.0/8")), ingress(EMPIRE), rules=(ingress(SHIPS),)))
    found = running.rules()
    assert [len(rule.selectors) for rule in found.rules] == [1]
    assert [len(rule.selectors) for rule in found.denies] == [1, 1]
    keys = {key for rule in (*found.rules, *found.denies) for key in rule.selectors}
    assert len(keys) == 3
    running.hear(policy(ingress(SHIPS)))
    assert running.rules().denies == []


def test_a_named_port_that_is_denied_is_the_numbers_of_those_who_call_it_so() -> None:
    running = Running()
    web = pod("web", ContainerPort(name="http", port=8080), org="empire")
    denied = ingress(SHIPS, ports=[PortRange(protocol="TCP", name="http")])
    running.hear(identity(1000, web), denying(denied, rules=(ingress(SHIPS),)))
    assert running.rules().denies == [], "no pod has it so far, and no ports would be every port"
    running.hear(Namespace(name="default"), web)
    (rule,) = running.rules().denies
    assert rule.ports == [PortRange(protocol="TCP", port=8080, name="http")]
    assert running.members_of(rule.subject) == [1000]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_policy_whose_denial_has_no_meaning_denies_all_of_its_directions(broken: Rule) -> None:
    running = Running()
    running.hear(replace(denying(broken, rules=(ingress(SHIPS),)), deny_ingress_by_default=False))
    found = running.rules()
    assert (found.rules, found.denies) == ([], [SelectorRule(direction=broken.direction, any_peer=True)])
    assert found.deny_ingress_by_default and found.deny_egress_by_default


def test_networks_that_the_bus_does_not_take_leave_what_was_said_until_their_policy_denies_everyone() -> None:
    running = Bus(limit=1000)
    running.hear(OFFICE, denying(from_networks(Peer(cidr_group="office"))))
    (key,) = running.rules().denies[0].selectors
    actions = running.hear(replace(OFFICE, cidrs=[f"10.{number}.0.0/16" for number in range(60)]))
    assert [each.subject for each in actions] == [SELECTOR.of(key), RULE1, SELECTOR.of(key)], "refused, said, unsaid"
    assert (running.rules().rules, running.rules().denies) == ([], [EVERYONE])
    assert list(running.model.failed.values()) == [NOT_TAKEN]
    running.hear(denying(from_networks(Peer(cidr="11.0.0.0/8"))))
    assert (running.rules().denies[0].any_peer, len(running.rules().denies[0].selectors)) == (False, 1)


def test_a_selector_of_too_many_that_somebody_denies_by_is_said_to_be_partial() -> None:
    """The rules that deny everyone may come after it."""
    running = Bus(limit=300)
    crowd = [identity(70_000 + number, pod(f"a{number}", org="empire", app=f"a{number}")) for number in range(60)]
    running.hear(*crowd[:2], policy(ingress(SHIPS)), replace(denying(ingress(EMPIRE)), name="rule2", subject=SHIPS))
    running.hear(*crowd[2:])
    (found,) = (each for each in running.log.values() if isinstance(each, Selector) and each.partial)
    assert (found.selector, found.members) == (EMPIRE, [])
    assert running.rules("rule2").denies == [EVERYONE]
    assert running.rules().denies == [], "whom it governs nodes judge by labels"


def test_a_policy_of_the_whole_cluster_whose_subject_has_no_meaning_denies_everyone() -> None:
    running = Running()
    wide = replace(policy(ingress(SHIPS), subject=need("app")), kind="CiliumClusterwideNetworkPolicy", namespace="")
    running.hear(identity(1000, pod("a")), wide)
    (found,) = (each for each in running.log.values() if isinstance(each, Selector))
    assert found.members == [1000]
