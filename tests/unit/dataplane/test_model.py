"""What the maps of a node should hold, from what was heard and from the pods that live here."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from ipaddress import ip_network

import pytest

from bus import subjects
from bus.labels import RESERVED, canonical_labels
from bus.messages import Message
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.ipam import Block
from bus.messages.policy import PolicyRules, Selector, SelectorRule
from bus.messages.resources import LabelSelector, Namespace, Node, Pod, Requirement
from services.dataplane.model import NodeModel
from services.dataplane.part import LocalPod
from services.dataplane.parts import people
from services.dataplane.parts.policy.entries import AGGREGATES, ALLOW, INGRESS, EndpointPolicy, PolicyKey
from services.dataplane.parts.policy.store import PolicyStore
from services.dataplane.shapes.layouts import (
    FLAG_ENFORCE_EGRESS,
    FLAG_ENFORCE_INGRESS,
    NO_POLICY,
    EndpointEntry,
    IpcacheEntry,
    IpcacheKey,
    PolicyMapEntry,
    PolicyMapKey,
    pack_address,
)

HERE, THERE = "node-1", "node-2"
HERE_ADDRESS, THERE_ADDRESS = "192.0.2.1", "192.0.2.2"
WEB, DB = 1000, 2000
CLOSED = FLAG_ENFORCE_INGRESS | FLAG_ENFORCE_EGRESS
DEFAULT = Namespace(name="default")
NOWHERE = IpcacheEntry(0).node


def pod(name: str = "web-1", app: str = "web", node: str = HERE, uid: str = "u") -> Pod:
    return Pod(namespace="default", name=name, uid=uid, labels={"app": app}, node=node)


def identity(number: int, app: str) -> Identity:
    return Identity(number=number, labels=canonical_labels(pod(app=app), DEFAULT))


def local(*addresses: str, name: str = "web-1", uid: str = "") -> LocalPod:
    return LocalPod(
        "default", name, addresses or ("10.0.0.2",), "lxc1", 7, "02:00:00:00:00:01", "02:00:00:00:00:02", uid
    )


def rules(name: str = "one", *peers: str, egress: bool = False) -> PolicyRules:
    """Pods of the selector "web" may be called by those of the selectors `peers`, and by nobody else."""
    return PolicyRules(
        kind="NetworkPolicy",
        namespace="default",
        name=name,
        subject="web",
        rules=[SelectorRule(direction="ingress", selectors=list(peers))],
        deny_ingress_by_default=True,
        deny_egress_by_default=egress,
    )


def selector(name: str, *members: int) -> Selector:
    """Pods whose label "app" is `name`."""
    wanted = Requirement(key="k8s:app", operator="In", values=[name])
    return Selector(id=name, selector=LabelSelector(requirements=[wanted]), members=list(members))


def subject_of(message: Message) -> str:
    match message:
        case Namespace():
            return subjects.NAMESPACE.of(message.name)
        case Node():
            return subjects.NODE.of(message.name)
        case Pod():
            return subjects.POD.of(message.namespace, message.name)
        case Identity():
            return subjects.IDENTITY.of(str(message.number))
        case AddressIdentity():
            return subjects.ADDRESS.of(message.address)
        case Block():
            return subjects.BLOCK.of(message.cidr)
        case PolicyRules():
            return subjects.RULES.of(message.kind, message.namespace, message.name)
        case Selector():
            return subjects.SELECTOR.of(message.id)
    raise AssertionError(message)


def hear(model: NodeModel, *messages: Message) -> None:
    for message in messages:
        model.put(subject_of(message), message)


def gone(model: NodeModel, *messages: Message) -> None:
    for message in messages:
        model.delete(subject_of(message))


@pytest.fixture
def model() -> NodeModel:
    """Synced; nothing lives here."""
    made = NodeModel(HERE, frozenset({HERE_ADDRESS}))
    hear(made, DEFAULT, Node(name=HERE, addresses=[HERE_ADDRESS]), Node(name=THERE, addresses=[THERE_ADDRESS]))
    made.synced()
    made.settle()
    return made


@pytest.fixture
def web(model: NodeModel) -> NodeModel:
    """One pod that is known, with no policy."""
    hear(model, pod(), identity(WEB, "web"))
    model.add_pod(local())
    model.settle()
    return model


def entry(model: NodeModel, address: str = "10.0.0.2") -> EndpointEntry | None:
    raw = model.endpoints.table.wanted.get(pack_address(address))
    return EndpointEntry.unpack(raw) if raw else None


def state(model: NodeModel, address: str = "10.0.0.2") -> tuple[int, int, int]:
    found = entry(model, address)
    assert found is not None
    return found.identity, found.policy, found.flags


def who(model: NodeModel, address: str, bits: int = 32) -> tuple[int, str] | None:
    raw = model.network.table.wanted.get(IpcacheKey(address, bits).pack())
    if raw is None:
        return None
    found = IpcacheEntry.unpack(raw)
    return found.identity, found.node


def policy_rows(model: NodeModel) -> dict[PolicyMapKey, PolicyMapEntry]:
    return {PolicyMapKey.unpack(k): PolicyMapEntry.unpack(v) for k, v in model.policy.table.wanted.items()}


def expanded(number: int, *messages: PolicyRules | Selector) -> dict[PolicyMapKey, PolicyMapEntry]:
    """What the map should hold for `number`, straight from parts/policy."""
    store = PolicyStore()
    store.add_identity(number, identity(number, "web").labels)
    for message in messages:
        store.put_rules(message) if isinstance(message, PolicyRules) else store.put_selector(message)
    return {
        PolicyMapKey(number, *key): PolicyMapEntry(
            each.precedence, each.cookie, each.proxy_port, each.flags, key.l4_bits
        )
        for key, each in store.policy_of(number).entries.items()
    }


# A pod


def test_a_pod_that_nobody_knows_is_closed(model: NodeModel) -> None:
    model.add_pod(local())
    assert model.settle() == [local()]
    assert state(model) == (RESERVED["init"], NO_POLICY, CLOSED)
    assert model.state_of("10.0.0.2") == "waiting-for-identity"


def test_it_opens_when_its_labels_have_a_number(web: NodeModel) -> None:
    assert state(web) == (WEB, WEB, 0)
    assert web.state_of("10.0.0.2") == "ready"
    found = entry(web)
    assert found is not None
    assert (found.interface, found.mac.hex(":"), found.gateway_mac.hex(":")) == (
        7,
        "02:00:00:00:00:01",
        "02:00:00:00:00:02",
    )


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1), (1, 3, 0, 2)])
def test_the_order_in_which_things_are_heard_does_not_matter(order: tuple[int, ...]) -> None:
    model = NodeModel(HERE)
    model.synced()
    steps = [
        lambda: hear(model, DEFAULT),
        lambda: hear(model, pod()),
        lambda: hear(model, identity(WEB, "web")),
        lambda: model.add_pod(local()),
    ]
    for each in order:
        steps[each]()
        model.settle()
    assert state(model) == (WEB, WEB, 0)


def test_another_pod_of_the_same_name_is_not_this_one(web: NodeModel) -> None:
    web.add_pod(local(uid="another"))
    web.settle()
    assert state(web) == (RESERVED["init"], NO_POLICY, CLOSED)


def test_a_pod_that_is_bound_elsewhere_now_is_not_known_here(web: NodeModel) -> None:
    hear(web, pod(node=THERE))
    web.settle()
    assert state(web)[1:] == (NO_POLICY, CLOSED)


@pytest.mark.parametrize("what", [pod(), DEFAULT, identity(WEB, "web")])
def test_what_is_forgotten_closes_the_pod(web: NodeModel, what: Message) -> None:
    gone(web, what)
    web.settle()
    assert state(web)[1:] == (NO_POLICY, CLOSED)


def test_new_labels_are_a_new_identity_with_its_own_policy(web: NodeModel) -> None:
    hear(web, selector("web", WEB), rules())
    web.settle()
    assert state(web)[2] == FLAG_ENFORCE_INGRESS
    hear(web, identity(DB, "db"), pod(app="db"))
    assert web.settle() == [local()]
    assert state(web) == (DB, DB, 0)
    assert policy_rows(web) == {}


def test_a_label_set_that_gets_another_number_keeps_it_whichever_is_heard_first(web: NodeModel) -> None:
    old, new = identity(WEB, "web"), identity(WEB + 1, "web")
    hear(web, new)
    gone(web, old)
    web.settle()
    assert state(web) == (WEB + 1, WEB + 1, 0)


def test_a_pod_that_leaves_takes_its_entry_along(web: NodeModel) -> None:
    web.remove_pod("10.0.0.2")
    assert web.settle() == []
    assert entry(web) is None
    assert web.policy_of(WEB) is None


# Policy


def test_the_policy_map_holds_exactly_what_the_rules_expand_to(web: NodeModel) -> None:
    heard = (selector("web", WEB), selector("db", DB, 3000), rules("one", "db"), rules("two", "web"))
    for each in heard:
        hear(web, each)
        web.settle()
    assert policy_rows(web) == expanded(WEB, *heard)
    assert state(web) == (WEB, WEB, FLAG_ENFORCE_INGRESS)
    gone(web, rules("one", "db"))
    web.settle()
    assert policy_rows(web) == expanded(WEB, heard[0], heard[1], heard[3])
    gone(web, rules("two"))
    web.settle()
    assert policy_rows(web) == {}
    assert state(web) == (WEB, WEB, 0)


def test_a_selectors_new_member_is_one_entry_more(web: NodeModel) -> None:
    hear(web, selector("web", WEB), selector("db", DB), rules("one", "db"))
    web.settle()
    web.policy.table.take()
    hear(web, selector("db", DB, 3000))
    web.settle()
    written, removed = web.policy.table.take()
    assert [PolicyMapKey.unpack(key).identity for key in written] == [3000]
    assert removed == []


def test_a_burst_of_changes_is_one_expansion(web: NodeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    policy_of = web.policy.store.policy_of

    def ask(number: int, closed: Collection[int]) -> EndpointPolicy:
        asked.append(number)
        return policy_of(number, closed)

    monkeypatch.setattr(web.policy.store, "policy_of", ask)
    hear(web, selector("web", WEB))
    for members in range(100):
        hear(web, selector("db", *range(DB, DB + members)), rules(f"rule{members % 10}", "db"))
    web.settle()
    assert asked == [WEB]
    web.settle()
    assert asked == [WEB]


def test_two_pods_of_one_identity_share_its_entries_until_the_last_is_gone(web: NodeModel) -> None:
    hear(web, selector("web", WEB), selector("db", DB), rules("one", "db"), pod("web-2"))
    web.settle()
    web.policy.table.take()
    web.add_pod(local("10.0.0.3", name="web-2"))
    web.settle()
    assert web.policy.table.take() == ({}, [])
    assert state(web, "10.0.0.3") == state(web, "10.0.0.2") == (WEB, WEB, FLAG_ENFORCE_INGRESS)
    web.remove_pod("10.0.0.2")
    web.settle()
    assert policy_rows(web) == expanded(WEB, selector("web", WEB), selector("db", DB), rules("one", "db"))
    web.remove_pod("10.0.0.3")
    web.settle()
    assert policy_rows(web) == {}


def test_a_rule_that_names_an_unknown_selector_opens_nothing(web: NodeModel) -> None:
    hear(web, selector("web", WEB), rules("one", "nobody-said"))
    web.settle()
    assert set(policy_rows(web)) == {PolicyMapKey(WEB, *PolicyKey(RESERVED["host"], INGRESS, 0, 0, 0))}
    assert all(row.precedence == ALLOW for row in policy_rows(web).values())
    assert not {row.identity for row in policy_rows(web)} & set(AGGREGATES)


# Before everything was heard


def test_until_all_is_heard_even_a_known_pod_is_closed() -> None:
    model = NodeModel(HERE)
    hear(model, DEFAULT, pod(), identity(WEB, "web"))
    model.add_pod(local())
    model.settle()
    assert state(model) == (WEB, NO_POLICY, CLOSED)
    assert model.state_of("10.0.0.2") == "waiting-for-policy"
    model.synced()
    model.settle()
    assert state(model) == (WEB, WEB, 0)


def test_what_the_kernel_holds_of_a_restored_pod_stays_until_all_is_heard() -> None:
    model = NodeModel(HERE)
    model.restore_pod(local())
    hear(model, DEFAULT, pod(), identity(WEB, "web"))
    model.add_pod(local("10.0.0.3", name="web-2"))
    model.settle()
    assert entry(model) is None and not model.endpoints.table.take()[1]
    assert entry(model, "10.0.0.3") is not None
    model.synced()
    model.settle()
    assert state(model) == (WEB, WEB, 0)


def test_a_restored_pod_that_is_deleted_before_all_is_heard_loses_its_entry() -> None:
    model = NodeModel(HERE)
    model.restore_pod(local())
    model.remove_pod("10.0.0.2")
    model.settle()
    assert model.endpoints.table.take() == ({}, [pack_address("10.0.0.2")])


def test_a_restored_pod_that_is_asked_for_again_is_new() -> None:
    model = NodeModel(HERE)
    model.restore_pod(local())
    model.add_pod(local())
    model.settle()
    assert state(model)[1:] == (NO_POLICY, CLOSED)


# The network


def test_a_block_is_a_route_a_router_and_addresses_of_nobody(model: NodeModel) -> None:
    hear(model, Block(cidr="10.0.0.0/24", node=HERE), Block(cidr="10.0.1.0/24", node=THERE))
    model.settle()
    assert who(model, "10.0.0.0", 24) == (RESERVED["unmanaged"], HERE_ADDRESS)
    assert who(model, "10.0.1.0", 24) == (RESERVED["unmanaged"], THERE_ADDRESS)
    assert who(model, "10.0.0.1") == (RESERVED["host"], NOWHERE)
    assert who(model, "10.0.1.1") == (RESERVED["remote-node"], THERE_ADDRESS)
    assert model.routes.wanted == {"10.0.1.0/24": THERE_ADDRESS}
    assert list(model.network.own_blocks) == ["10.0.0.0/24"]


def test_a_block_waits_for_its_node_and_goes_with_it(model: NodeModel) -> None:
    third = Node(name="node-3", addresses=["192.0.2.3"])
    hear(model, Block(cidr="10.0.2.0/24", node="node-3"))
    model.settle()
    assert who(model, "10.0.2.0", 24) is None
    hear(model, third)
    model.settle()
    assert who(model, "10.0.2.0", 24) == (RESERVED["unmanaged"], "192.0.2.3")
    hear(model, Node(name="node-3", addresses=["192.0.2.33"]))
    model.settle()
    assert model.routes.wanted == {"10.0.2.0/24": "192.0.2.33"}
    gone(model, third)
    model.settle()
    assert (who(model, "10.0.2.0", 24), who(model, "10.0.2.1"), model.routes.wanted) == (None, None, {})


def test_a_block_that_is_gone_leaves_nothing(model: NodeModel) -> None:
    before = dict(model.network.table.wanted)
    block = Block(cidr="10.0.1.0/24", node=THERE)
    hear(model, block)
    model.settle()
    gone(model, block)
    model.settle()
    assert dict(model.network.table.wanted) == before
    assert model.routes.wanted == {}


def test_pods_of_other_nodes_are_behind_their_node(model: NodeModel) -> None:
    address = AddressIdentity(address="10.0.1.7", identity=DB, node=THERE, node_address=THERE_ADDRESS, pod="default/db")
    hear(model, address)
    assert who(model, "10.0.1.7") == (DB, THERE_ADDRESS)
    gone(model, address)
    model.settle()
    assert who(model, "10.0.1.7") is None


@pytest.mark.parametrize("node", [THERE, "not-heard-of"])
def test_whether_a_pods_node_is_a_neighbour_follows_from_the_networks_of_now(model: NodeModel, node: str) -> None:
    """Of a node, too, that is not known itself, but by what is said of its pod."""

    def is_routed() -> bool:
        raw = model.network.table.wanted[IpcacheKey("10.0.1.7").pack()]
        return IpcacheEntry.unpack(raw).routed

    hear(model, AddressIdentity(address="10.0.1.7", identity=DB, node=node, node_address=THERE_ADDRESS, pod="a/b"))
    model.reach([ip_network(f"{THERE_ADDRESS}/24", strict=False)], [])
    assert not is_routed()
    model.reach([ip_network("198.51.100.0/24")], [])
    assert is_routed()
    model.reach([ip_network("0.0.0.0/0")], [])
    assert not is_routed()
    model.reach([ip_network("0.0.0.0/0")], [ip_network(f"{THERE_ADDRESS}/24", strict=False)])
    assert is_routed(), "by another device"


def node_address(node: str, address: str) -> AddressIdentity:
    return AddressIdentity(address=address, identity=RESERVED["remote-node"], node=node, node_address=address)


def test_another_nodes_address_is_reached_by_the_fabric(model: NodeModel) -> None:
    hear(model, node_address(THERE, THERE_ADDRESS))
    assert who(model, THERE_ADDRESS) == (RESERVED["remote-node"], NOWHERE)


@pytest.mark.parametrize("address", [HERE_ADDRESS, "198.51.100.1"])
def test_every_address_of_this_node_is_the_host_whatever_others_call_it(model: NodeModel, address: str) -> None:
    hear(model, Node(name=HERE, addresses=[HERE_ADDRESS, "198.51.100.1"]), node_address(HERE, address))
    model.settle()
    assert who(model, address) == (RESERVED["host"], NOWHERE)


def test_an_address_that_is_forgotten_falls_back_to_what_the_network_says(model: NodeModel) -> None:
    hear(model, Block(cidr="10.0.1.0/24", node=THERE))
    model.settle()
    router = AddressIdentity(address="10.0.1.1", identity=DB, node=THERE, node_address=THERE_ADDRESS, pod="default/x")
    hear(model, router)
    gone(model, router)
    model.settle()
    assert who(model, "10.0.1.1") == (RESERVED["remote-node"], THERE_ADDRESS)


def test_pods_of_other_nodes_come_and_go_without_a_look_at_the_network(
    model: NodeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear(model, Block(cidr="10.0.1.0/24", node=THERE))
    model.settle()

    def look() -> None:
        raise AssertionError("nothing of the network has changed")

    monkeypatch.setattr(model.network, "_settle_network", look)
    pods = [
        AddressIdentity(address=f"10.0.1.{n}", identity=DB, node=THERE, node_address=THERE_ADDRESS, pod=f"default/{n}")
        for n in range(1, 9)  # the first has the router's address
    ]
    hear(model, *pods)
    model.settle()
    gone(model, *pods)
    model.settle()
    assert model.problems == {}
    assert who(model, "10.0.1.1") == (RESERVED["remote-node"], THERE_ADDRESS)
    assert who(model, "10.0.1.2") is None


def test_an_address_of_this_node_is_contested_from_when_it_is_said_to_be_anothers_until_it_is_not(
    model: NodeModel,
) -> None:
    model.network.answers_to({"198.51.100.7": "eth1"})
    model.settle()
    assert who(model, "198.51.100.7") == (RESERVED["host"], NOWHERE)
    anothers = AddressIdentity(
        address="198.51.100.7", identity=DB, node=THERE, node_address=THERE_ADDRESS, pod="default/x"
    )
    hear(model, anothers)
    model.settle()
    assert model.network.contested.keys() == {"198.51.100.7"}
    assert who(model, "198.51.100.7") == (DB, THERE_ADDRESS)
    gone(model, anothers)
    model.settle()
    assert model.network.contested == {}
    assert who(model, "198.51.100.7") == (RESERVED["host"], NOWHERE)


def test_a_network_entry_that_goes_uncovers_the_pod_that_has_the_address(model: NodeModel) -> None:
    block = Block(cidr="10.0.1.0/24", node=THERE)
    pod_there = AddressIdentity(
        address="10.0.1.1", identity=DB, node=THERE, node_address=THERE_ADDRESS, pod="default/x"
    )
    hear(model, pod_there, block)
    model.settle()
    gone(model, block)
    model.settle()
    assert who(model, "10.0.1.1") == (DB, THERE_ADDRESS)


def test_a_subject_that_nobody_declared_is_passed_over(model: NodeModel) -> None:
    model.delete("state.somebody.else.x")
    model.delete(subjects.IDENTITY.of("999"))
    model.delete(subjects.ADDRESS.of("10.9.9.9"))
    model.settle()


# What makes no sense


def test_a_pod_is_governed_by_what_its_labels_say_before_anyone_counts_it_as_a_member(model: NodeModel) -> None:
    hear(model, selector("web"), selector("db"), rules())
    hear(model, pod(), identity(WEB, "web"))
    model.add_pod(local())
    model.settle()
    assert state(model) == (WEB, WEB, FLAG_ENFORCE_INGRESS)


def test_a_number_that_means_other_labels_now_is_not_this_pods(web: NodeModel) -> None:
    hear(web, identity(WEB, "db"))
    web.settle()
    assert state(web) == (RESERVED["init"], NO_POLICY, CLOSED)


@pytest.mark.parametrize(
    "message",
    [
        AddressIdentity(address="10.0.1.7", identity=-1, node=THERE, node_address=THERE_ADDRESS, pod="default/x"),
        AddressIdentity(address="10.0.1.7", identity=2**32, node=THERE, node_address=THERE_ADDRESS, pod="default/x"),
        AddressIdentity(address="10.0.1", identity=5, node=THERE, node_address=THERE_ADDRESS, pod="default/x"),
        AddressIdentity(address="::ffff:10.0.1.7", identity=5, node=THERE, node_address=THERE_ADDRESS, pod="default/x"),
        AddressIdentity(address="fe80::7%eth0", identity=5, node=THERE, node_address=THERE_ADDRESS, pod="default/x"),
        AddressIdentity(address="FD00::7", identity=5, node=THERE, node_address=THERE_ADDRESS, pod="default/x"),
        AddressIdentity(address="10.0.1.7", identity=5, node=THERE, node_address="fe80::1%eth0", pod="default/x"),
        Identity(number=-1, labels={}),
        Identity(number=RESERVED["host"], labels={}),
        Identity(number=2**24, labels={}),
        selector("web", -1),
        selector("web", 2**32),
        Block(cidr="10.0.0.1/32", node=HERE),
        Block(cidr="0.0.0.0/0", node=THERE),
        Block(cidr="fd00::/16", node=HERE),
        Block(cidr="::ffff:10.0.0.0/120", node=HERE),
        Node(name=THERE, addresses=["x"]),
        Node(name=THERE, addresses=["fe80::1%eth0"]),
    ],
)
def test_what_is_out_of_range_is_refused_before_anything_changes(web: NodeModel, message: Message) -> None:
    hear(web, selector("web", WEB), rules())
    web.settle()
    before = [dict(table.wanted) for table in web.tables]
    known = (dict(web.network.addresses), dict(web.people.identities))
    with pytest.raises(ValueError, match=r".+"):
        hear(web, message)
    web.settle()
    assert web.problems == {}
    assert [dict(table.wanted) for table in web.tables] == before
    assert (dict(web.network.addresses), dict(web.people.identities)) == known


def test_what_cannot_be_settled_keeps_what_it_had_and_is_tried_again(
    web: NodeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear(web, selector("web", WEB), selector("db", DB), rules("one", "db"))
    web.settle()
    before = policy_rows(web)

    def fail(_: int) -> EndpointPolicy:
        raise OverflowError

    with monkeypatch.context() as broken:
        broken.setattr(web.policy.store, "policy_of", fail)
        hear(web, rules("one"), Block(cidr="10.0.1.0/24", node=THERE))
        web.settle()
        assert list(web.problems) == [f"identity {WEB}"]
        assert policy_rows(web) == before
        assert web.routes.wanted == {"10.0.1.0/24": THERE_ADDRESS}, "the rest goes on"
    web.settle()
    assert web.problems == {}
    assert policy_rows(web) == expanded(WEB, selector("web", WEB), rules("one"))


def test_what_failed_is_told_though_other_work_on_the_same_succeeds(
    web: NodeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> set[int]:
        raise OverflowError

    hear(web, selector("web", WEB))
    web.settle()
    with monkeypatch.context() as broken:
        broken.setattr(web.policy.store, "add_identity", fail)
        hear(web, pod(app="other"), identity(WEB, "other"), rules("one"))
        web.settle()
        assert list(web.problems) == [f"labels of identity {WEB}"]
    web.settle()
    assert web.problems == {}
    with monkeypatch.context() as broken:
        broken.setattr(people, "canonical_labels", fail)
        web.add_pod(local("10.0.0.3"))
        web.settle()
        assert list(web.problems) == ["who is at 10.0.0.3"]
    web.settle()
    assert web.problems == {}


def test_a_pod_whose_entry_cannot_be_written_does_not_keep_others_from_theirs(model: NodeModel) -> None:
    model.add_pod(dataclasses.replace(local(), mac="no address"))
    model.add_pod(local("10.0.0.3", name="web-2"))
    model.settle()
    assert list(model.problems) == ["pod 10.0.0.2"]
    assert entry(model) is None
    assert entry(model, "10.0.0.3") is not None
