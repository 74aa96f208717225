"""After any changes of networks, selectors and rules a node holds what it would, had it heard only the end."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bus.messages.policy import PeerNetwork, PolicyRules, Selector, SelectorRule
from bus.messages.resources import LabelSelector, Requirement
from services.dataplane.parts.policy.entries import EndpointPolicy
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
selectors = st.builds(
    Selector, id=st.sampled_from(KEYS), selector=st.just(LabelSelector()), networks=st.lists(networks, max_size=3)
)
rule = st.builds(
    SelectorRule,
    direction=st.sampled_from(["ingress", "egress"]),
    selectors=st.lists(st.sampled_from(KEYS), max_size=2, unique=True),
    entities=st.lists(st.sampled_from(["world-ipv4", "world-ipv6", "world", "cluster"]), max_size=1),
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
changes = st.lists(st.one_of(selectors, policies, st.sampled_from(KEYS), st.sampled_from(NAMES)), max_size=12)
"""What is put, or the key of what goes."""


def begun() -> PolicyStore:
    store = PolicyStore()
    for number, labels in IDENTITIES.items():
        store.add_identity(number, labels)
    for each in SUBJECTS:
        store.put_selector(each)
    return store


def take(store: PolicyStore, change: Selector | PolicyRules | str) -> set[int]:
    match change:
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
    made: list[Selector | PolicyRules | str],
) -> None:
    store, now = begun(), all_of(begun())
    last: dict[str, Selector | PolicyRules] = {}
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
    assert {cidr for cidr in CIDRS if store.networks.number(cidr)} == {
        cidr for cidr in CIDRS if anew.networks.number(cidr)
    }
