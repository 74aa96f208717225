"""From rules to map entries: what they expand to, and what stays closed when something is missing or too much."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.messages.policy import PolicyRules, Selector, SelectorRule
from bus.messages.resources import LabelSelector, PortRange, Requirement
from services.dataplane.parts.policy.entries import (
    AGGREGATES,
    ALLOW,
    EGRESS,
    ENTRIES_MAX,
    HOST,
    INGRESS,
    POLICY_DENIED,
    POLICY_DENIED_BY_RULE,
    EndpointPolicy,
    PolicyEntry,
    PolicyKey,
    denied,
    diff,
    entries_for,
    name_of,
    precedence,
    prefixes,
    verdict,
)
from services.dataplane.parts.policy.store import PolicyStore

DEATHSTAR, TIEFIGHTER, XWING = 1000, 2000, 3000
LABELS = {DEATHSTAR: {"of": "empire"}, XWING: {"of": "rebels"}}
NODE_MAY = {PolicyKey(HOST, INGRESS, 0, 0, 0): PolicyEntry(ALLOW, 0)}


def selector(name: str, *members: int, of: Iterable[str] = ()) -> Selector:
    """Whose label "of" is `name`, or one of `of`."""
    wanted = Requirement(key="of", operator="In", values=list(of) or [name])
    return Selector(id=name, selector=LabelSelector(requirements=[wanted]), members=sorted(members))


def selectors(*given: Selector) -> dict[str, Selector]:
    return {each.id: each for each in given}


def policy(*rules: SelectorRule, name: str = "rule1", subject: str = "empire", egress: bool = False) -> PolicyRules:
    return PolicyRules(
        kind="CiliumNetworkPolicy",
        namespace="default",
        name=name,
        subject=subject,
        rules=list(rules),
        deny_ingress_by_default=not egress,
        deny_egress_by_default=egress,
    )


def land(*ports: PortRange, peers: Iterable[str] = ("ships",)) -> SelectorRule:
    return SelectorRule(direction="ingress", selectors=list(peers), ports=list(ports))


TCP_80 = PortRange(protocol="TCP", port=80)
EMPIRE = selector("empire", DEATHSTAR)
SHIPS = selector("ships", TIEFIGHTER)


def test_the_tiefighter_lands_and_the_xwing_does_not() -> None:
    found = entries_for(DEATHSTAR, [policy(land(TCP_80))], selectors(EMPIRE, SHIPS))
    landed = verdict(found, TIEFIGHTER, INGRESS, 6, 80)
    assert landed.allowed
    assert found.cookies[landed.cookie] == ("CiliumNetworkPolicy/default/rule1",)
    assert verdict(found, XWING, INGRESS, 6, 80).reason == POLICY_DENIED
    assert not verdict(found, TIEFIGHTER, INGRESS, 6, 81).allowed
    assert not verdict(found, TIEFIGHTER, INGRESS, 17, 80).allowed
    assert verdict(found, XWING, EGRESS, 6, 80).allowed  # no policy restricts egress
    assert found.ingress_deciders == ("CiliumNetworkPolicy/default/rule1",)
    assert found.egress_deciders == ()


def test_a_pod_that_no_policy_selects_is_not_restricted() -> None:
    found = entries_for(XWING, [policy(land(TCP_80))], selectors(EMPIRE, SHIPS))
    assert found == EndpointPolicy(identity=XWING, ingress_enforced=False, egress_enforced=False)
    assert verdict(found, TIEFIGHTER, INGRESS, 6, 22).allowed


def test_the_node_itself_always_reaches_its_pods_but_not_the_other_way_round() -> None:
    for found in (entries_for(DEATHSTAR, [policy()], selectors(EMPIRE)), denied(DEATHSTAR)):
        assert verdict(found, HOST, INGRESS, 6, 10250).allowed
    assert not verdict(denied(DEATHSTAR), HOST, EGRESS, 6, 53).allowed


def test_everyone_is_three_entries_and_an_entity_is_one_or_two() -> None:
    everyone = entries_for(
        DEATHSTAR, [policy(SelectorRule(direction="ingress", any_peer=True, ports=[TCP_80]))], selectors(EMPIRE)
    )
    assert {key.identity for key in everyone.entries} == {*AGGREGATES, HOST}
    cluster = entries_for(
        DEATHSTAR, [policy(SelectorRule(direction="ingress", entities=["cluster"]))], selectors(EMPIRE)
    )
    assert len(cluster.entries.keys() - NODE_MAY.keys()) == 2


def test_a_rule_whose_selector_was_never_heard_allows_nobody() -> None:
    found = entries_for(DEATHSTAR, [policy(land(TCP_80))], selectors(EMPIRE))
    assert found.entries == NODE_MAY
    assert found.missing == {"ships"}


def test_a_policy_whose_subject_was_never_heard_denies_rather_than_opens() -> None:
    found = entries_for(DEATHSTAR, [policy(land(TCP_80))], selectors(SHIPS))
    assert found.ingress_enforced
    assert found.entries == NODE_MAY
    assert found.missing == {"empire"}


def test_a_port_still_called_by_name_or_out_of_range_allows_nothing() -> None:
    for port in (
        PortRange(protocol="TCP", name="http"),
        PortRange(protocol="TCP", port=70000),
        PortRange(protocol="TCP", port=90, end_port=80),
        PortRange(protocol="TCP", port=-1),
    ):
        found = entries_for(DEATHSTAR, [policy(land(port))], selectors(EMPIRE, SHIPS))
        assert found.entries == NODE_MAY, port


def test_members_that_are_no_label_sets_are_passed_over() -> None:
    ships = selector("ships", 0, 1, *AGGREGATES, 255, TIEFIGHTER, 1 << 24)
    found = entries_for(DEATHSTAR, [policy(land())], selectors(EMPIRE, ships))
    assert {key.identity for key in found.entries} == {HOST, TIEFIGHTER}


def test_a_rule_for_some_subjects_is_for_those_only() -> None:
    rule = SelectorRule(direction="ingress", selectors=["ships"], ports=[TCP_80], subject="http")
    both = selectors(selector("empire", DEATHSTAR, XWING), SHIPS, selector("http", DEATHSTAR))
    assert verdict(entries_for(DEATHSTAR, [policy(rule)], both), TIEFIGHTER, INGRESS, 6, 80).allowed
    assert not verdict(entries_for(XWING, [policy(rule)], both), TIEFIGHTER, INGRESS, 6, 80).allowed


def test_a_rule_whose_own_subjects_were_never_heard_is_for_nobody() -> None:
    rule = SelectorRule(direction="ingress", selectors=["ships"], ports=[TCP_80], subject="http")
    found = entries_for(DEATHSTAR, [policy(rule)], selectors(EMPIRE, SHIPS))
    assert found.entries == NODE_MAY
    assert found.missing == {"http"}


def test_who_joins_a_rules_own_subjects_is_judged_anew() -> None:
    store = PolicyStore()
    store.add_identity(DEATHSTAR, LABELS[DEATHSTAR])
    for each in (EMPIRE, SHIPS, selector("http")):
        store.put_selector(each)
    store.put_rules(policy(SelectorRule(direction="ingress", selectors=["ships"], ports=[TCP_80], subject="http")))
    assert not verdict(store.policy_of(DEATHSTAR), TIEFIGHTER, INGRESS, 6, 80).allowed
    assert store.put_selector(selector("http", DEATHSTAR)) == {DEATHSTAR}
    assert verdict(store.policy_of(DEATHSTAR), TIEFIGHTER, INGRESS, 6, 80).allowed


def test_an_icmp_type_has_its_own_entry_and_all_types_one() -> None:
    echo = entries_for(DEATHSTAR, [policy(land(PortRange(protocol="ICMP", port=9)))], selectors(EMPIRE, SHIPS))
    assert verdict(echo, TIEFIGHTER, INGRESS, 1, 9).allowed
    assert not verdict(echo, TIEFIGHTER, INGRESS, 1, 1).allowed
    every = entries_for(DEATHSTAR, [policy(land(PortRange(protocol="ICMP")))], selectors(EMPIRE, SHIPS))
    assert PolicyKey(TIEFIGHTER, INGRESS, 1, 0, 8) in every.entries


def test_icmpv6_is_a_protocol_of_its_own() -> None:
    echo = entries_for(DEATHSTAR, [policy(land(PortRange(protocol="ICMPv6", port=129)))], selectors(EMPIRE, SHIPS))
    assert verdict(echo, TIEFIGHTER, INGRESS, 58, 129).allowed
    assert not verdict(echo, TIEFIGHTER, INGRESS, 1, 129).allowed
    assert not verdict(echo, TIEFIGHTER, INGRESS, 58, 130).allowed


@pytest.mark.parametrize(("entity", "allowed"), [("world", {2, 9, 10}), ("world-ipv4", {9}), ("world-ipv6", {10})])
def test_the_world_is_all_that_is_outside_and_by_family_its_half(entity: str, allowed: set[int]) -> None:
    found = entries_for(DEATHSTAR, [policy(SelectorRule(direction="ingress", entities=[entity]))], selectors(EMPIRE))
    peers = {2, 3, 6, 9, 10, TIEFIGHTER}
    assert {peer for peer in peers if verdict(found, peer, INGRESS, 6, 80).allowed} == allowed


def test_overlapping_rules_name_every_policy_that_allows_the_packet() -> None:
    wide = policy(land(), name="wide")
    narrow = policy(land(TCP_80), name="narrow")
    world = policy(SelectorRule(direction="ingress", entities=["world"]), name="world")
    cluster = policy(SelectorRule(direction="ingress", entities=["cluster"]), name="cluster")
    found = entries_for(DEATHSTAR, [wide, narrow, world, cluster], selectors(EMPIRE, SHIPS))
    names = {port: found.cookies[verdict(found, TIEFIGHTER, INGRESS, 6, port).cookie] for port in (80, 81)}
    assert names[80] == tuple(map(name_of, (cluster, narrow, wide)))
    assert names[81] == tuple(map(name_of, (cluster, wide)))
    assert found.cookies[verdict(found, 2, INGRESS, 6, 80).cookie] == (name_of(world),)


def test_cookies_do_not_depend_on_the_order_of_hearing() -> None:
    given = [policy(land(TCP_80), name=f"rule{number}") for number in range(5)]
    known = selectors(EMPIRE, SHIPS)
    assert entries_for(DEATHSTAR, given, known) == entries_for(DEATHSTAR, given[::-1], known)


def test_a_deny_entry_wins_over_a_longer_and_more_specific_allow() -> None:
    found = EndpointPolicy(
        identity=DEATHSTAR,
        ingress_enforced=True,
        egress_enforced=False,
        entries={
            PolicyKey(TIEFIGHTER, INGRESS, 6, 80, 24): PolicyEntry(ALLOW, 1),
            PolicyKey(AGGREGATES[0], INGRESS, 0, 0, 0): PolicyEntry(precedence("deny"), 2, deny=True),
        },
    )
    answer = verdict(found, TIEFIGHTER, INGRESS, 6, 80)
    assert (answer.allowed, answer.reason, answer.cookie) == (False, POLICY_DENIED_BY_RULE, 2)
    assert precedence("deny", 1) < precedence("allow", 0)


def test_too_many_entries_close_the_larger_direction_and_leave_the_other() -> None:
    many = selector("many", *range(256, 256 + ENTRIES_MAX + 1))
    leave = SelectorRule(direction="egress", selectors=["ships"], ports=[TCP_80])
    found = entries_for(
        DEATHSTAR,
        [policy(land(TCP_80, peers=["many"])), policy(leave, name="leave", egress=True)],
        selectors(EMPIRE, SHIPS, many),
    )
    assert found.full == ("ingress",)
    assert not verdict(found, 300, INGRESS, 6, 80).allowed
    assert verdict(found, HOST, INGRESS, 6, 80).allowed
    assert verdict(found, TIEFIGHTER, EGRESS, 6, 80).allowed
    assert len(found.entries) <= ENTRIES_MAX


def test_as_many_entries_as_may_be_are_kept() -> None:
    many = selector("many", *range(256, 256 + ENTRIES_MAX - 1))
    found = entries_for(DEATHSTAR, [policy(land(TCP_80, peers=["many"]))], selectors(EMPIRE, many))
    assert not found.full
    assert len(found.entries) == ENTRIES_MAX


@given(first=st.integers(0, 65535), last=st.integers(0, 65535))
@settings(max_examples=200, deadline=None)
def test_prefixes_cover_a_range_exactly_and_without_overlap(first: int, last: int) -> None:
    first, last = sorted((first, last))
    covered: list[int] = []
    for port, bits in prefixes(first, last):
        assert port % (1 << 16 - bits) == 0
        covered += range(port, port + (1 << 16 - bits))
    assert covered == list(range(first, last + 1))


def test_a_difference_turns_the_old_entries_into_the_new() -> None:
    key, other, third = (PolicyKey(number, INGRESS, 0, 0, 0) for number in (300, 301, 302))
    old = {key: PolicyEntry(ALLOW, 1), other: PolicyEntry(ALLOW, 1)}
    new = {key: PolicyEntry(ALLOW, 2), third: PolicyEntry(ALLOW, 1)}
    upserts, deletes = diff(old, new)
    assert {name: entry for name, entry in (old | upserts).items() if name not in deletes} == new
    assert diff(new, new) == ({}, set())


def filled(store: PolicyStore, *given: Selector | PolicyRules) -> None:
    for each in given:
        _ = store.put_selector(each) if isinstance(each, Selector) else store.put_rules(each)


def test_a_change_touches_only_whom_it_concerns() -> None:
    store = PolicyStore()
    for identity in (DEATHSTAR, XWING):
        store.add_identity(identity, LABELS[identity])
    filled(store, EMPIRE, SHIPS, selector("rebels", XWING), selector("others", 5000))
    assert store.put_rules(policy(land(TCP_80))) == {DEATHSTAR}
    assert store.put_rules(policy(land(TCP_80))) == set()
    assert store.put_selector(selector("ships", TIEFIGHTER, 2001)) == {DEATHSTAR}
    assert store.put_selector(selector("ships", TIEFIGHTER, 2001)) == set()
    assert store.put_selector(selector("others", 5000, 5001)) == set()
    assert store.put_selector(selector("empire", DEATHSTAR, XWING)) == set()  # its own labels say whom it governs
    assert store.put_selector(selector("empire", of=["empire", "rebels"])) == {DEATHSTAR, XWING}
    assert store.delete_rules("CiliumNetworkPolicy", "default", "rule1") == {DEATHSTAR, XWING}
    assert store.delete_rules("CiliumNetworkPolicy", "default", "rule1") == set()
    assert not store.policy_of(DEATHSTAR).ingress_enforced


def test_a_subject_that_comes_or_goes_touches_everyone_it_governed() -> None:
    store = PolicyStore()
    for identity in (DEATHSTAR, XWING):
        store.add_identity(identity, LABELS[identity])
    filled(store, SHIPS)
    assert store.put_rules(policy(land(TCP_80))) == {DEATHSTAR, XWING}  # nobody knows yet whom it governs
    assert store.put_selector(EMPIRE) == {DEATHSTAR, XWING}
    assert verdict(store.policy_of(DEATHSTAR), TIEFIGHTER, INGRESS, 6, 80).allowed
    assert not store.policy_of(XWING).ingress_enforced
    assert store.delete_selector("empire") == {DEATHSTAR, XWING}
    assert store.policy_of(XWING).ingress_enforced


def test_an_identity_that_is_not_local_is_denied() -> None:
    store = PolicyStore()
    assert store.policy_of(DEATHSTAR) == denied(DEATHSTAR)
    assert store.add_identity(DEATHSTAR, LABELS[DEATHSTAR]) == {DEATHSTAR}
    assert store.add_identity(DEATHSTAR, LABELS[DEATHSTAR]) == set()
    assert not store.policy_of(DEATHSTAR).ingress_enforced
    assert store.remove_identity(DEATHSTAR) == {DEATHSTAR}
    assert store.policy_of(DEATHSTAR) == denied(DEATHSTAR)


def test_a_pod_is_governed_from_its_first_packet_though_nobody_has_heard_of_its_identity() -> None:
    """The subject's members are said by a service that may be down or behind; the labels are known here."""
    nobody_yet = selector("empire")
    store = PolicyStore()
    filled(store, nobody_yet, SHIPS, policy(land(TCP_80)))
    store.add_identity(DEATHSTAR, LABELS[DEATHSTAR])
    store.add_identity(XWING, LABELS[XWING])
    found = store.policy_of(DEATHSTAR)
    assert not verdict(found, XWING, INGRESS, 6, 80).allowed
    assert verdict(found, TIEFIGHTER, INGRESS, 6, 80).allowed
    assert not store.policy_of(XWING).ingress_enforced
    assert found == entries_for(DEATHSTAR, [policy(land(TCP_80))], selectors(nobody_yet, SHIPS), LABELS[DEATHSTAR])


def test_whose_number_means_other_labels_now_is_governed_by_those() -> None:
    store = PolicyStore()
    filled(store, EMPIRE, SHIPS, policy(land(TCP_80)))
    store.add_identity(DEATHSTAR, LABELS[XWING])
    assert not store.policy_of(DEATHSTAR).ingress_enforced
    assert store.add_identity(DEATHSTAR, LABELS[DEATHSTAR]) == {DEATHSTAR}
    assert store.policy_of(DEATHSTAR).ingress_enforced


def test_rules_that_cannot_be_taken_in_leave_the_old_ones_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    store = PolicyStore()
    store.add_identity(DEATHSTAR, LABELS[DEATHSTAR])
    filled(store, EMPIRE, SHIPS, policy(land(TCP_80)))
    before = store.policy_of(DEATHSTAR)

    def fail(*_: object) -> bool:
        raise OverflowError

    with monkeypatch.context() as broken:
        broken.setattr("services.dataplane.parts.policy.store.governs", fail)
        with pytest.raises(OverflowError):
            store.put_rules(policy(land()))
    assert store.policy_of(DEATHSTAR) == before
    assert before.ingress_enforced


def own_labels(identity: int) -> dict[str, str]:
    return {"of": "abc"[identity % 3]}


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("rules"), st.integers(0, 3), st.sampled_from("abc"), st.sampled_from("abc")),
        st.tuples(st.just("no rules"), st.integers(0, 3)),
        st.tuples(st.just("selector"), st.sampled_from("abc"), st.sets(st.integers(256, 260))),
        st.tuples(st.just("no selector"), st.sampled_from("abc")),
        st.tuples(st.just("local"), st.integers(256, 260)),
        st.tuples(st.just("not local"), st.integers(256, 260)),
    ),
    max_size=30,
)


@given(operations=OPERATIONS)
@settings(max_examples=200, deadline=None)
def test_whom_a_change_does_not_name_it_does_not_change(operations: list[tuple[object, ...]]) -> None:
    store = PolicyStore()
    rules: dict[str, PolicyRules] = {}
    known: dict[str, Selector] = {}
    before: dict[int, EndpointPolicy] = {}
    for operation in operations:
        match operation:
            case "rules", int(number), str(subject), str(peer):
                message = policy(land(TCP_80, peers=[peer]), name=f"rule{number}", subject=subject)
                rules[message.name] = message
                touched = store.put_rules(message)
            case "no rules", int(number):
                rules.pop(f"rule{number}", None)
                touched = store.delete_rules("CiliumNetworkPolicy", "default", f"rule{number}")
            case "selector", str(key), set(members):
                known[key] = selector(key, *members)
                touched = store.put_selector(known[key])
            case "no selector", str(key):
                known.pop(key, None)
                touched = store.delete_selector(key)
            case "local", int(identity):
                touched = store.add_identity(identity, own_labels(identity))
            case "not local", int(identity):
                touched = store.remove_identity(identity)
                before.pop(identity, None)
            case _:
                raise AssertionError(operation)
        after = {identity: store.policy_of(identity) for identity in store.identities}
        assert after == {
            identity: entries_for(identity, rules.values(), known, own_labels(identity)) for identity in after
        }
        assert {identity for identity in after if before.get(identity) != after[identity]} <= touched
        before = after


def test_one_new_member_among_ten_thousand_selectors_is_a_matter_of_milliseconds() -> None:
    store = PolicyStore()
    for identity in range(1000, 1100):
        store.add_identity(identity, {"of": f"subject-{identity - 1000}"})
    for number in range(10_000):
        store.put_selector(selector(f"subject-{number}", 1000 + number % 100 if number < 100 else 500_000 + number))
        store.put_selector(selector(f"peers-{number}", 100_000 + number))
        store.put_rules(
            policy(land(TCP_80, peers=[f"peers-{number}"]), name=f"rule{number}", subject=f"subject-{number}")
        )
    started = time.perf_counter()
    touched = store.put_selector(selector("peers-7", 100_007, 200_000))
    for identity in touched:
        store.policy_of(identity)
    assert touched == {1007}
    assert time.perf_counter() - started < 0.05  # measured: 0.1 ms; the bound is for busy machines
    started = time.perf_counter()
    store.add_identity(5000, {"of": "subject-9"})
    assert store.policy_of(5000).ingress_enforced
    assert time.perf_counter() - started < 0.2  # measured: 10 ms, once for each label set that comes to the node
