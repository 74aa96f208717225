"""Rules that deny: they win over whatever allows, and what is not understood of one denies more, not less."""

from __future__ import annotations

from typing import Literal

from bus.messages.policy import PolicyRules, Selector, SelectorRule
from bus.messages.resources import LabelSelector, PortRange
from services.dataplane.parts.policy.entries import (
    AGGREGATE_CLUSTER,
    ALLOW,
    EGRESS,
    HOST,
    INGRESS,
    POLICY_DENIED,
    POLICY_DENIED_BY_RULE,
    EndpointPolicy,
    PolicyEntry,
    PolicyKey,
    entries_for,
    verdict,
)

WEB, DB, OPS, WORLD = 1000, 2000, 3000, 2
EVERY = {
    key: Selector(id=key, selector=LabelSelector(), members=members)
    for key, members in {"web": [WEB], "db": [DB], "ops": [OPS], "both": [DB, OPS]}.items()
}
TCP_80, TCP_81 = PortRange(protocol="TCP", port=80), PortRange(protocol="TCP", port=81)
HTTP = PortRange(protocol="TCP", port=80, name="http")


def rule(
    *selectors: str, entities: list[str] | None = None, ports: list[PortRange] | None = None, subject: str = ""
) -> SelectorRule:
    return SelectorRule(
        direction="ingress", selectors=list(selectors), entities=entities or [], ports=ports or [], subject=subject
    )


def everyone(direction: Literal["ingress", "egress"] = "ingress", ports: list[PortRange] | None = None) -> SelectorRule:
    return SelectorRule(direction=direction, any_peer=True, ports=ports or [])


def policy(
    *rules: SelectorRule, denies: list[SelectorRule] | None = None, name: str = "p", by_default: bool = True
) -> PolicyRules:
    return PolicyRules(
        kind="CiliumNetworkPolicy",
        namespace="default",
        name=name,
        subject="web",
        rules=list(rules),
        denies=denies or [],
        deny_ingress_by_default=by_default,
    )


def found(*policies: PolicyRules, limit: int = 16384) -> EndpointPolicy:
    return entries_for(WEB, policies, EVERY, limit=limit)


def reason(of: EndpointPolicy, peer: int, port: int, called: frozenset[str] = frozenset()) -> str:
    return verdict(of, peer, INGRESS, 6, port, called).reason


def test_what_one_policy_denies_no_other_opens() -> None:
    of = found(policy(rule("both")), policy(denies=[rule("db")], name="q"))
    assert reason(of, DB, 80) == POLICY_DENIED_BY_RULE
    assert reason(of, OPS, 80) == ""
    denied = verdict(of, DB, INGRESS, 6, 80)
    assert of.cookies[denied.cookie] == ("CiliumNetworkPolicy/default/q",)


def test_a_peer_that_is_denied_has_no_narrower_entry_that_allows() -> None:
    """The longest key of one peer is found, whatever its weight."""
    of = found(policy(rule("db", ports=[TCP_80, HTTP])), policy(denies=[rule("db")], name="q"))
    assert reason(of, DB, 80, frozenset({"http"})) == POLICY_DENIED_BY_RULE
    assert not any(entry.precedence == ALLOW for key, entry in of.entries.items() if key.identity == DB)


def test_a_port_that_is_denied_leaves_the_others_open() -> None:
    of = found(policy(rule("db")), policy(denies=[rule("db", ports=[TCP_80])], name="q"))
    assert [reason(of, DB, port) for port in (80, 81)] == [POLICY_DENIED_BY_RULE, ""]


def test_a_group_that_is_denied_wins_over_a_member_that_is_allowed_and_the_other_way_round() -> None:
    of = found(policy(rule("db", ports=[TCP_80])), policy(denies=[rule(entities=["cluster"])], name="q"))
    assert reason(of, DB, 80) == POLICY_DENIED_BY_RULE
    assert reason(of, WORLD, 80) == POLICY_DENIED
    of = found(policy(rule(entities=["cluster"])), policy(denies=[rule("db", ports=[TCP_80])], name="q"))
    assert (reason(of, DB, 80), reason(of, OPS, 80)) == (POLICY_DENIED_BY_RULE, "")


def test_what_is_not_denied_is_open_where_nothing_is_denied_by_default() -> None:
    of = found(policy(denies=[rule("db", ports=[TCP_80])], by_default=False))
    assert of.ingress_enforced and not of.egress_enforced
    assert (reason(of, DB, 80), reason(of, DB, 81), reason(of, OPS, 80), reason(of, WORLD, 80)) == (
        *(POLICY_DENIED_BY_RULE, ""),
        *("", ""),
    )
    assert of.ingress_deciders == ()
    closed = found(policy(denies=[rule("db", ports=[TCP_80])], by_default=False), policy(name="q"))
    assert reason(closed, OPS, 80) == POLICY_DENIED, "another policy denies by default"


def test_the_node_reaches_its_pods_whatever_is_denied() -> None:
    for denies in (rule(entities=["host"]), rule(entities=["all"]), everyone(ports=[TCP_80])):
        assert reason(found(policy(denies=[denies])), HOST, 80) == ""


def test_a_named_port_is_denied_by_its_number_to_all_of_the_identity() -> None:
    of = found(policy(rule("db")), policy(denies=[rule("db", ports=[HTTP], subject="web")], name="q"))
    for called in (frozenset({"http"}), frozenset[str]()):
        assert reason(of, DB, 80, called) == POLICY_DENIED_BY_RULE
    assert reason(of, DB, 81) == ""
    other = found(policy(rule("db")), policy(denies=[rule("db", ports=[HTTP], subject="ops")], name="q"))
    assert reason(other, DB, 80) == "", "its subjects are others"


def test_a_rule_that_denies_whom_nobody_knows_denies_everyone() -> None:
    for vague in (rule("gone"), rule("db", "gone"), rule(entities=["tomorrow"]), rule("db", subject="gone")):
        of = found(policy(everyone()), policy(denies=[vague], name="q"))
        assert reason(of, DB, 80) == reason(of, OPS, 80) == reason(of, WORLD, 80) == POLICY_DENIED_BY_RULE
    assert found(policy(denies=[rule("gone")])).missing == {"gone"}


def test_a_rule_that_denies_a_port_that_is_none_denies_every_port() -> None:
    for port in (PortRange(protocol="TCP", name="http"), PortRange(protocol="TCP", port=90, end_port=80)):
        of = found(policy(everyone()), policy(denies=[rule("db", ports=[TCP_81, port])], name="q"))
        assert [reason(of, DB, each) for each in (80, 81, 82)] == [POLICY_DENIED_BY_RULE] * 3


def test_nobody_is_denied_where_nobody_is_named() -> None:
    of = found(policy(everyone()), policy(denies=[rule(entities=["none"])], name="q"))
    assert reason(of, DB, 80) == ""


def test_too_many_entries_deny_the_direction() -> None:
    many = [PortRange(protocol="TCP", port=2 * each + 1) for each in range(20)]
    of = found(policy(everyone(ports=many)), policy(denies=[rule("db")], name="q"), limit=20)
    assert of.full == ("ingress",)
    assert reason(of, DB, 1) == reason(of, OPS, 1) == POLICY_DENIED
    open_but = policy(everyone(ports=many), denies=[rule("db", ports=many)], by_default=False)
    assert reason(found(open_but, limit=20), OPS, 2) == POLICY_DENIED, "never a silent half"


def test_each_direction_denies_for_itself() -> None:
    of = found(policy(everyone("egress"), denies=[everyone("egress", [TCP_80])], by_default=False))
    assert of.egress_enforced and not of.ingress_enforced
    assert verdict(of, DB, EGRESS, 6, 80).reason == POLICY_DENIED_BY_RULE
    assert verdict(of, DB, EGRESS, 6, 81).allowed and verdict(of, DB, INGRESS, 6, 80).allowed


def test_an_entry_that_denies_says_so_to_the_map() -> None:
    of = found(policy(denies=[rule(entities=["cluster"])]))
    entry = of.entries[PolicyKey(AGGREGATE_CLUSTER, INGRESS, 0, 0, 0)]
    assert isinstance(entry, PolicyEntry)
    assert entry.deny and entry.flags == 1 and entry.precedence == 0xFFFFFFFF


def test_a_denial_by_a_selector_that_could_not_be_said_whole_is_of_everyone_and_what_allows_by_it_allows_nobody() -> (
    None
):
    part = EVERY | {"db": Selector(id="db", selector=LabelSelector(), partial=True)}
    of = entries_for(WEB, [policy(rule("ops")), policy(denies=[rule("db")], name="q")], part)
    assert {reason(of, peer, 80) for peer in (DB, OPS, WORLD)} == {POLICY_DENIED_BY_RULE}
    assert reason(entries_for(WEB, [policy(rule("db"))], part), DB, 80) == POLICY_DENIED
    of = entries_for(WEB, [policy(denies=[rule("ops", subject="db")])], part)
    assert reason(of, OPS, 80) == POLICY_DENIED_BY_RULE, "it may well be for this one"
