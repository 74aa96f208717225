"""After any changes of networks, names, selectors and rules a node holds what it would, had it heard only the end."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bus.labels import network_number_of
from bus.messages.policy import PeerName, PeerNetwork, PolicyRules, Selector, SelectorRule
from bus.messages.resources import LabelSelector, PortRange, Requirement
from services.dataplane.parts.policy import store as policy_store
from services.dataplane.parts.policy.entries import Direction, EndpointPolicy, entries_for
from services.dataplane.parts.policy.store import PolicyStore
from tests.strategies import CIDRS

IDENTITIES = {1000: {"app": "a"}, 2000: {"app": "b"}}
SUBJECTS = [
    Selector(
        id=f"subject-{value}",
        selector=LabelSelector(requirements=[Requirement(key="app", operator="In", values=[value])]),
        members=[number],
    )
    for value, number in (("a", 1000), ("b", 2000))
]
KEYS = ("one", "two", "three")
NAMES = ("p", "q")

networks = st.builds(
    PeerNetwork,
    cidr=st.sampled_from(CIDRS),
    except_cidrs=st.lists(st.sampled_from(CIDRS), max_size=2, unique=True).map(sorted),
)
DNS_NAMES = ("a.example.com", "b.example.com", "c.example.org")
ADDRESSES = ("10.1.2.3", "192.0.2.1", "2001:db8::1")
names = st.one_of(
    st.builds(PeerName, name=st.sampled_from(DNS_NAMES)),
    st.builds(PeerName, pattern=st.sampled_from(["*.example.com", "**.org", "*"])),
)


class Learnt(NamedTuple):
    name: str
    addresses: frozenset[str]


learnt = st.builds(Learnt, st.sampled_from(DNS_NAMES), st.frozensets(st.sampled_from(ADDRESSES)))
selectors = st.builds(
    Selector,
    id=st.sampled_from(KEYS),
    selector=st.just(LabelSelector()),
    networks=st.lists(networks, max_size=3),
    names=st.lists(names, max_size=2),
    members=st.lists(st.sampled_from([1000, 2000, 3000, 3001, 3002]), max_size=3, unique=True).map(sorted),
    partial=st.sampled_from([False, False, False, True]),
)
ports = st.builds(
    PortRange, protocol=st.just("TCP"), port=st.sampled_from([0, 80, 81]), name=st.sampled_from(["", "a"])
)
rule = st.builds(
    SelectorRule,
    direction=st.sampled_from(["ingress", "egress"]),
    selectors=st.lists(st.sampled_from(KEYS), max_size=2, unique=True),
    entities=st.lists(st.sampled_from(["world-ipv4", "world-ipv6", "world", "cluster"]), max_size=1),
    ports=st.lists(ports, max_size=1),
    subject=st.sampled_from(["", "", *KEYS]),
)
policies = st.builds(
    PolicyRules,
    kind=st.just("NetworkPolicy"),
    namespace=st.just("default"),
    name=st.sampled_from(NAMES),
    subject=st.sampled_from([each.id for each in SUBJECTS]),
    rules=st.lists(rule, max_size=2),
    denies=st.lists(rule, max_size=1),
    deny_ingress_by_default=st.booleans(),
    deny_egress_by_default=st.booleans(),
)
changes = st.lists(st.one_of(selectors, policies, learnt, st.sampled_from(KEYS), st.sampled_from(NAMES)), max_size=14)
"""What is put, or the key of what goes."""


def begun() -> PolicyStore:
    store = PolicyStore()
    for number, labels in IDENTITIES.items():
        store.add_identity(number, labels)
    for each in SUBJECTS:
        store.put_selector(each)
    return store


def take(store: PolicyStore, change: Selector | PolicyRules | Learnt | str) -> set[int]:
    match change:
        case Learnt(name, addresses):
            return store.put_name(name, addresses)
        case Selector():
            return store.put_selector(change)
        case PolicyRules():
            return store.put_rules(change)
        case str() if change in KEYS:
            return store.delete_selector(change)
        case str():
            return store.delete_rules("NetworkPolicy", "default", change)


def all_of(store: PolicyStore) -> dict[int, EndpointPolicy]:
    return {number: store.policy_of(number) for number in IDENTITIES}


@settings(max_examples=200, deadline=None)
@given(changes)
def test_every_change_tells_whom_it_concerns_and_only_the_end_counts(
    made: list[Selector | PolicyRules | Learnt | str],
) -> None:
    store, now = begun(), all_of(begun())
    last: dict[str, Selector | PolicyRules | Learnt] = {}
    for change in made:
        touched = take(store, change)
        before, now = now, all_of(store)
        assert {number for number in IDENTITIES if before[number] != now[number]} <= touched
        if isinstance(change, str):
            last.pop(change, None)
        else:
            last[change.id if isinstance(change, Selector) else change.name] = change
    anew = begun()
    for each in last.values():
        take(anew, each)
    assert now == all_of(anew)
    known = [*CIDRS, *(f"{each}/{128 if ':' in each else 32}" for each in ADDRESSES)]
    assert [bool(store.networks.number(cidr)) for cidr in known] == [bool(anew.networks.number(cidr)) for cidr in known]


def test_one_change_among_many_asks_for_those_alone_who_are_other(monkeypatch: pytest.MonkeyPatch) -> None:
    store = begun()
    many = [f"one-{number}" for number in range(500)]

    def outside(key: str, second: int) -> Selector:
        cidr = f"10.{second}.{many.index(key) % 250}.0/24"
        return Selector(id=key, selector=LabelSelector(), networks=[PeerNetwork(cidr=cidr)])

    for key in many:
        store.put_selector(outside(key, many.index(key) // 250))
    everything = [SelectorRule(direction="ingress", selectors=many, ports=[PortRange(protocol="TCP", port=80)])]
    policy = PolicyRules(
        kind="NetworkPolicy",
        namespace="default",
        name="p",
        subject=SUBJECTS[0].id,
        rules=everything,
        deny_ingress_by_default=True,
    )
    store.put_rules(policy)
    before = all_of(store)[1000]
    asked: list[object] = []

    def ask(*arguments: Any, **named: Any) -> EndpointPolicy:
        asked.append(named["only"])
        return entries_for(*arguments, **named)

    monkeypatch.setattr(policy_store, "entries_for", ask)
    gone, came = store.networks.number("10.0.7.0/24"), network_number_of("10.9.7.0/24")
    assert store.put_selector(outside(many[7], 9)) == {1000}
    after = store.policy_of(1000)
    assert asked == [{gone, came}]
    peers = [{key.identity for key in each.entries} for each in (before, after)]
    assert peers[0] ^ peers[1] == {gone, came}
    store.put_rules(replace(policy, name="q"))
    store.policy_of(1000)
    assert asked[1:] == [None], "another policy may be about everything"


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_the_first_whom_denials_alone_deny_closes_the_direction_and_the_last_opens_it(direction: Direction) -> None:
    denies = PolicyRules(
        kind="CiliumNetworkPolicy",
        namespace="default",
        name="p",
        subject=SUBJECTS[0].id,
        denies=[SelectorRule(direction=direction, selectors=["one"])],
    )
    store = begun()
    empty = Selector(id="one", selector=LabelSelector())
    store.put_selector(empty)
    store.put_rules(denies)
    opened = all_of(store)[1000]
    assert not opened.ingress_enforced and not opened.egress_enforced
    for members in ([3000], [3000, 3001], [3001]):
        store.put_selector(replace(empty, members=members))
        closed = all_of(store)[1000]
        assert (closed.ingress_enforced, closed.egress_enforced) == (direction == "ingress", direction == "egress")
        assert {key.identity for key, entry in closed.entries.items() if entry.deny} == set(members)
    store.put_selector(empty)
    assert all_of(store)[1000] == opened
