"""Numbers of networks that policies name: how they are given, kept and lost, and the rows that follow."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

import pytest

from bus import subjects
from bus.labels import NETWORK_MAX, NETWORK_MIN, RESERVED, canonical_labels, network_number_of
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.ipam import Block
from bus.messages.policy import PeerNetwork, PolicyRules, Selector, SelectorRule
from bus.messages.resources import LabelSelector, Namespace, Node, Pod, Requirement
from services.dataplane.model import NodeModel
from services.dataplane.part import LocalPod
from services.dataplane.parts.ipcache import Ipcache
from services.dataplane.parts.policy import networks as module
from services.dataplane.parts.policy.expansion import Policy
from services.dataplane.parts.policy.networks import Networks, networks_in, prefixes_of
from services.dataplane.shapes.layouts import (
    IpcacheEntry,
    IpcacheKey,
    PolicyMapKey,
    Prefix,
    pack_address,
)

WEB = 1000
NOBODY = LabelSelector(requirements=[Requirement(key="cidr:", operator="Exists")])


def means(cidr: str, *without: str) -> list[PeerNetwork]:
    return [PeerNetwork(cidr=cidr, except_cidrs=list(without))]


def names(networks: Networks, numbers: Iterable[int], cidrs: Iterable[str]) -> set[str]:
    by_number = {networks.number(cidr): cidr for cidr in cidrs}
    return {by_number[number] for number in numbers}


def meeting() -> tuple[str, str]:
    """Two networks that would like the same number."""
    seen: dict[int, str] = {}
    for at in range(1 << 20):
        cidr = f"{ip_address(at)}/32"
        other = seen.setdefault(network_number_of(cidr), cidr)
        if other != cidr:
            return other, cidr
    raise AssertionError


def test_a_selector_means_every_network_within_its_own_but_for_the_excepted() -> None:
    networks = Networks()
    networks.put("a", means("10.0.0.0/8", "10.1.0.0/16"))
    networks.put("b", means("10.1.2.0/24"))
    networks.put("c", means("10.2.0.0/16"))
    networks.put("d", means("11.0.0.0/8"))
    networks.put("e", means("0.0.0.0/0"))
    every = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16", "11.0.0.0/8"]
    assert names(networks, networks.meant_by("a"), every) == {"10.0.0.0/8", "10.2.0.0/16"}
    assert names(networks, networks.meant_by("b"), every) == {"10.1.2.0/24"}
    assert names(networks, networks.meant_by("e"), every) == set(every)


def test_a_change_tells_which_selectors_mean_something_else() -> None:
    networks = Networks()
    assert networks.put("wide", means("10.0.0.0/8")).keys() == {"wide"}
    assert networks.put("elsewhere", means("11.0.0.0/8")).keys() == {"elsewhere"}
    before = networks.meant_by("wide")
    assert networks.put("narrow", means("10.1.0.0/16")).keys() == {"wide", "narrow"}
    assert networks.meant_by("wide") == before | networks.meant_by("narrow")
    assert networks.put("again", means("10.1.0.0/16")).keys() == {"again"}, "it is known already"
    assert networks.put("narrow", []).keys() == {"narrow"}, "another names it still"
    assert networks.put("again", []).keys() == {"wide", "again"}
    assert networks.meant_by("wide") == before and networks.meant_by("again") == frozenset()


def test_one_family_is_not_within_the_other() -> None:
    networks = Networks()
    networks.put("four", means("0.0.0.0/0"))
    networks.put("six", means("::/0"))
    networks.put("more", means("2001:db8::/32"))
    assert len(networks.meant_by("four")) == 1
    assert networks.meant_by("six") > networks.meant_by("more")
    assert set(networks.of_version(4)) == networks.meant_by("four")
    assert set(networks.of_version(6)) == networks.meant_by("six")


def test_a_network_has_the_number_that_it_likes_on_every_node_and_always() -> None:
    networks = Networks()
    for _ in range(2):
        networks.put("a", means("10.0.0.0/8"))
        assert networks.number("10.0.0.0/8") == network_number_of("10.0.0.0/8")
        assert NETWORK_MIN <= network_number_of("10.0.0.0/8") <= NETWORK_MAX
        networks.put("a", [])
        assert networks.number("10.0.0.0/8") is None


def test_a_number_is_never_given_to_another_network_while_maps_may_hold_it() -> None:
    one, other = meeting()
    networks = Networks()
    networks.put("a", means(one))
    first = networks.number(one)
    networks.put("a", [])
    networks.put("a", means(other))
    assert networks.number(one) is None
    assert networks.number(other) not in (None, first)
    networks.put("b", means(one))
    assert networks.number(one) == first


def test_numbers_that_maps_hold_are_kept_by_a_process_that_begins() -> None:
    one, other = meeting()
    before = Networks()
    before.put("a", means(one))
    before.put("b", means(other))
    after = Networks()
    held = {
        row: IpcacheEntry(before.number(cidr) or 0).pack() for cidr in (one, other) for row in prefixes_of(cidr)
    } | {IpcacheKey("10.0.0.2").pack(): IpcacheEntry(WEB).pack()}
    after.remember(networks_in(held))
    after.put("b", means(other))  # in another order
    after.put("a", means(one))
    assert (after.number(one), after.number(other)) == (before.number(one), before.number(other))


def test_a_number_that_two_networks_have_in_a_map_is_neithers() -> None:
    networks = Networks()
    number = network_number_of("10.0.0.0/8")
    networks.remember({"10.0.0.0/8": number})
    networks.remember({"11.0.0.0/8": number})
    networks.put("a", means("10.0.0.0/8"))
    networks.put("b", means("11.0.0.0/8"))
    assert len({number, networks.number("10.0.0.0/8"), networks.number("11.0.0.0/8")}) == 3


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REMEMBERED", 2)
    one, other = meeting()
    networks = Networks()
    for cidr in (one, "10.0.0.0/8", "11.0.0.0/8", "12.0.0.0/8"):
        networks.put("a", means(cidr))
    networks.put("a", means(other))
    assert networks.number(other) == network_number_of(one), "forgotten, and so free"


@pytest.mark.parametrize("cidr", ["::/0", "::/8", "::/64", "::fffe:0:0/95"])
def test_a_network_of_ipv6_has_no_row_for_ipv4(cidr: str) -> None:
    rows = [Prefix.layout.unpack(row) for row in prefixes_of(cidr)]
    assert sum(1 << 128 - bits for bits, _ in rows) == ip_network(cidr).num_addresses - (1 << 32)
    mapped = int.from_bytes(pack_address("10.0.0.1"), "big")
    assert all(int.from_bytes(first, "big") >> 128 - bits != mapped >> 128 - bits for bits, first in rows)
    number = NETWORK_MIN + 7
    found = networks_in({row: IpcacheEntry(number).pack() for row in prefixes_of(cidr)})
    assert set(found.values()) == {number}
    if cidr != "::fffe:0:0/95":  # of that one row is left, which is a network by itself
        assert found == {cidr: number}


# On a node


def node(*policies: PolicyRules, selectors: Iterable[Selector] = ()) -> NodeModel:
    model = NodeModel("node-1", frozenset({"192.0.2.1"}))
    default = Namespace(name="default")
    web = Pod(namespace="default", name="web", uid="u", labels={"app": "web"}, node="node-1")
    model.put(subjects.NAMESPACE.of("default"), default)
    model.put(subjects.POD.of("default", "web"), web)
    model.put(subjects.NODE.of("node-1"), Node(name="node-1", addresses=["192.0.2.1"]))
    model.put(subjects.BLOCK.of("10.0.0.0/24"), Block(cidr="10.0.0.0/24", node="node-1"))
    model.put(subjects.IDENTITY.of(str(WEB)), Identity(number=WEB, labels=canonical_labels(web, default)))
    model.put(subjects.SELECTOR.of("web"), Selector(id="web", selector=LabelSelector(), members=[WEB]))
    for each in selectors:
        model.put(subjects.SELECTOR.of(each.id), each)
    for policy in policies:
        model.put(subjects.RULES.of(policy.kind, policy.namespace, policy.name), policy)
    model.add_pod(LocalPod("default", "web", ("10.0.0.2",), "lxc1", 7, "02:00:00:00:00:01", "02:00:00:00:00:02", "u"))
    model.synced()
    model.settle()
    return model


def outside(key: str, cidr: str, *without: str) -> Selector:
    return Selector(id=key, selector=NOBODY, networks=means(cidr, *without))


def from_(*selectors: str, name: str = "one") -> PolicyRules:
    return PolicyRules(
        kind="NetworkPolicy",
        namespace="default",
        name=name,
        subject="web",
        rules=[SelectorRule(direction="ingress", selectors=list(selectors))],
        deny_ingress_by_default=True,
    )


def who_is(model: NodeModel, address: str) -> int:
    """By the longest row of the ipcache."""
    number = int.from_bytes(pack_address(address), "big")
    for bits in range(128, -1, -1):
        key = Prefix.layout.pack(bits, (number >> 128 - bits << 128 - bits).to_bytes(16, "big"))
        if key in model[Ipcache].table.wanted:
            return IpcacheEntry.unpack(model[Ipcache].table.wanted[key]).identity
    return RESERVED["world"]


def allowed(model: NodeModel) -> set[int]:
    return {PolicyMapKey.unpack(key).identity for key in model[Policy].table.wanted} - {RESERVED["host"]}


def test_a_network_that_a_rule_names_has_a_row_and_an_entry_and_a_longer_one_goes_first() -> None:
    model = node(from_("wide"), selectors=[outside("wide", "198.51.0.0/16", "198.51.100.0/24")])
    wide, hole = network_number_of("198.51.0.0/16"), network_number_of("198.51.100.0/24")
    assert (who_is(model, "198.51.1.1"), who_is(model, "198.51.100.1")) == (wide, hole)
    assert who_is(model, "203.0.113.1") == RESERVED["world"]
    assert allowed(model) == {wide}
    model.put(subjects.SELECTOR.of("more"), outside("more", "198.51.100.7/32"))
    model.put(subjects.SELECTOR.of("wide"), outside("wide", "198.51.0.0/16"))
    model.settle()
    assert who_is(model, "198.51.100.1") == wide, "nobody names it any more"
    assert allowed(model) == {wide, who_is(model, "198.51.100.7")}


def test_rows_of_networks_are_written_after_the_entries_for_them_and_go_before_them() -> None:
    order = [table.name for table in node().tables]
    assert order.index("policy") < order.index("ipcache")


def test_an_address_of_a_pod_or_a_node_is_that_whatever_networks_are_named() -> None:
    cidrs = ["10.0.0.2/32", "10.0.0.0/25", "10.0.0.0/24", "10.0.0.0/8", "192.0.2.1/32", "192.0.2.9/32", "10.0.9.9/32"]
    model = node(from_("a"), selectors=[Selector(id="a", selector=NOBODY, networks=[means(each)[0] for each in cidrs])])
    there = AddressIdentity(address="10.0.9.9", identity=2000, node="node-2", node_address="192.0.2.2", pod="default/x")
    model.put(subjects.ADDRESS.of("10.0.9.9"), there)
    model.settle()
    assert who_is(model, "192.0.2.1") == RESERVED["host"]
    assert who_is(model, "10.0.9.9") == 2000
    assert who_is(model, "10.0.0.77") == RESERVED["unmanaged"], "in a block: some pod's, or nobody's"
    assert who_is(model, "10.0.8.1") == network_number_of("10.0.0.0/8")
    assert who_is(model, "192.0.2.9") == network_number_of("192.0.2.9/32")
    model.delete(subjects.ADDRESS.of("10.0.9.9"))
    model.settle()
    assert who_is(model, "10.0.9.9") == network_number_of("10.0.9.9/32"), "it is nobody's any more"
    model.delete(subjects.BLOCK.of("10.0.0.0/24"))
    model.settle()
    assert who_is(model, "10.0.0.77") == network_number_of("10.0.0.0/25")
    model.put(subjects.BLOCK.of("10.0.0.0/24"), Block(cidr="10.0.0.0/24", node="node-1"))
    model.settle()
    assert who_is(model, "10.0.0.77") == RESERVED["unmanaged"]


def test_a_network_nobody_names_any_more_has_neither_row_nor_entry() -> None:
    model = node(from_("a"), selectors=[outside("a", "198.51.100.0/24")])
    model.delete(subjects.RULES.of("NetworkPolicy", "default", "one"))
    model.delete(subjects.SELECTOR.of("a"))
    model.settle()
    assert who_is(model, "198.51.100.1") == RESERVED["world"]
    assert allowed(model) == set()


def test_a_node_that_begins_anew_keeps_the_numbers_that_its_maps_hold() -> None:
    one, other = meeting()
    selectors = [outside("a", one), outside("b", other)]
    before = node(from_("a", "b"), selectors=selectors)
    held = {table.name: dict(table.wanted) for table in before.tables}
    after = NodeModel("node-1", frozenset({"192.0.2.1"}))
    after.adopt(lambda name: held[name])
    for each in reversed(selectors):
        after.put(subjects.SELECTOR.of(each.id), each)
    after.settle()
    for cidr in (one, other):
        (key,) = prefixes_of(cidr)
        assert after[Ipcache].table.wanted[key] == before[Ipcache].table.wanted[key]


@pytest.mark.parametrize("cidr", ["10.0.0.1/8", "10.0.0.0", "x", "::ffff:10.0.0.0/104", "2001:DB8::/32", ""])
def test_a_selector_of_what_is_no_network_is_refused(cidr: str) -> None:
    model = node()
    for networks in (means(cidr), means("10.0.0.0/8", cidr)):
        with pytest.raises(ValueError, match="is no network"):
            model.put(subjects.SELECTOR.of("a"), Selector(id="a", selector=NOBODY, networks=networks))


def test_entities_of_one_family_of_the_world_are_networks_of_that_family_too() -> None:
    policy = from_("a")
    policy.rules.append(SelectorRule(direction="ingress", entities=["world-ipv4"]))
    six, four = "2001:db8::/32", "198.51.100.0/24"
    model = node(policy, from_("c", name="two"), selectors=[outside("a", six), outside("b", four), outside("c", six)])
    assert allowed(model) == {RESERVED["world-ipv4"], network_number_of(six), network_number_of(four)}
    model.put(subjects.SELECTOR.of("b"), outside("b", "203.0.113.0/24"))
    model.settle()
    assert allowed(model) == {RESERVED["world-ipv4"], network_number_of(six), network_number_of("203.0.113.0/24")}
