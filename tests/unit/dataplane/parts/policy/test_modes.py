"""Policies enforced everywhere, nowhere, and only looked at. That exactly what would be denied is told: the twin."""

from __future__ import annotations

from bus.messages.policy import PolicyRules
from services.dataplane.parts.policy.entries import (
    EGRESS,
    INGRESS,
    POLICY_DENIED,
    POLICY_DENIED_BY_RULE,
    EndpointPolicy,
    entries_for,
    verdict,
)
from services.dataplane.shapes.mode import Mode
from tests.unit.dataplane.parts.policy.test_denies import DB, EVERY, OPS, WEB, WORLD, policy, rule

TCP = 6


def found(*policies: PolicyRules, mode: Mode, limit: int = 16384) -> EndpointPolicy:
    return entries_for(WEB, policies, EVERY, mode=mode, limit=limit)


def test_always_closes_whom_no_policy_selects_and_what_is_not_allowed_beside_a_denial() -> None:
    of = found(mode=Mode("always"))
    assert of.ingress_enforced and of.egress_enforced
    assert {verdict(of, DB, direction, TCP, 80).reason for direction in (INGRESS, EGRESS)} == {POLICY_DENIED}
    of = found(policy(rule("db"), denies=[rule("ops")], by_default=False), mode=Mode("always"))
    assert [verdict(of, peer, INGRESS, TCP, 80).reason for peer in (DB, OPS, WORLD)] == [
        "",
        POLICY_DENIED_BY_RULE,
        POLICY_DENIED,
    ]


def test_never_closes_nobody_and_has_no_entries() -> None:
    of = found(policy(rule("db"), denies=[rule("ops")]), mode=Mode("never"))
    assert (of.ingress_enforced, of.egress_enforced, dict(of.entries)) == (False, False, {})


def test_what_is_only_looked_at_passes_and_names_who_would_deny_it() -> None:
    of = found(policy(rule("db")), policy(denies=[rule("ops")], name="q", by_default=False), mode=Mode(audit=True))
    said = {peer: verdict(of, peer, INGRESS, TCP, 80) for peer in (DB, OPS, WORLD)}
    assert all(each.allowed for each in said.values())
    assert {peer: of.audited.get(each.cookie) for peer, each in said.items()} == {
        DB: None,
        OPS: POLICY_DENIED_BY_RULE,
        WORLD: POLICY_DENIED,
    }
    assert of.cookies[said[OPS].cookie] == ("CiliumNetworkPolicy/default/q",)
    assert of.cookies[said[WORLD].cookie] == ("CiliumNetworkPolicy/default/p",)
    assert of.cookies[said[DB].cookie] == ("CiliumNetworkPolicy/default/p",)
    assert not any(entry.flags for entry in of.entries.values()), "programs have nothing to do that they do not do else"


def test_a_direction_with_too_many_entries_is_open_where_it_is_only_looked_at() -> None:
    of = found(policy(rule("both")), mode=Mode(audit=True), limit=2)
    assert of.full == ("ingress",)
    assert of.audited[verdict(of, DB, INGRESS, TCP, 80).cookie] == POLICY_DENIED
