"""Two families, or IPv6 alone: which entries a pod has, and by which address another node's pods are reached."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from bus.labels import RESERVED
from bus.messages.identity import AddressIdentity
from bus.messages.ipam import Block
from bus.messages.resources import Node
from services.dataplane.model import NodeModel
from services.dataplane.parts.routing import Routing
from services.dataplane.shapes.layouts import IpcacheEntry, IpcacheKey, pack_address
from tests.unit.dataplane.test_model import (
    DEFAULT,
    HERE,
    NOWHERE,
    THERE,
    WEB,
    entry,
    gone,
    hear,
    identity,
    local,
    pod,
    who,
)

HERE4, HERE6 = "192.0.2.1", "2001:db8::1"
THERE4, THERE6 = "192.0.2.2", "2001:db8::2"
FAR4 = "198.51.100.2"  # on no network of this node
POD4, POD6 = "10.0.0.2", "fd00:10::2"
THERES_POD4, THERES_POD6 = "10.0.1.7", "fd00:10:1::7"
BLOCKS = [
    Block(cidr="10.0.0.0/24", node=HERE),
    Block(cidr="10.0.1.0/24", node=THERE),
    Block(cidr="fd00:10::/120", node=HERE),
    Block(cidr="fd00:10:1::/120", node=THERE),
]
NETWORKS = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/64"))


def node_with(routing: Routing, *there: str, own: tuple[str, ...] = (HERE4, HERE6)) -> NodeModel:
    """Synced; each node has its blocks, and a pod of the other node is known by both of its addresses."""
    made = NodeModel(HERE, frozenset(own), routing)
    hear(made, DEFAULT, Node(name=HERE, addresses=list(own)), Node(name=THERE, addresses=list(there)), *BLOCKS)
    hear(made, *(remote_pod(address) for address in (THERES_POD4, THERES_POD6)))
    made.synced()
    made.settle()
    return made


def remote_pod(address: str, node: str = THERE, node_address: str = "203.0.113.99") -> AddressIdentity:
    return AddressIdentity(address=address, identity=WEB, node=node, node_address=node_address, pod="default/x")


def is_routed(model: NodeModel, address: str, bits: int) -> bool:
    return IpcacheEntry.unpack(model.network.table.wanted[IpcacheKey(address, bits).pack()]).routed


def test_each_address_of_a_pod_has_an_entry_and_they_open_and_go_together() -> None:
    model = node_with(Routing((4, 6), tunnel=4), THERE4)
    model.add_pod(local(POD4, POD6))
    model.settle()
    assert [entry(model, each).policy for each in (POD4, POD6)] == [0, 0]  # type: ignore[union-attr]
    hear(model, pod(), identity(WEB, "web"))
    assert model.settle() == [local(POD4, POD6)], "one pod, however many addresses"
    found = entry(model, POD4)
    assert found is not None and found == entry(model, POD6)
    assert (found.identity, found.policy) == (WEB, WEB)
    assert model.identity_of(POD4) == model.identity_of(POD6) == WEB
    model.remove_pod(POD4)
    model.settle()
    assert entry(model, POD4) is entry(model, POD6) is None
    assert model.policy_of(WEB) is None


def test_what_the_kernel_holds_of_a_restored_pod_stays_for_both_addresses_until_all_is_heard() -> None:
    model = NodeModel(HERE, frozenset({HERE4}), Routing((4, 6), tunnel=4))
    model.restore_pod(local(POD4, POD6))
    hear(model, DEFAULT, pod(), identity(WEB, "web"))
    model.settle()
    assert entry(model, POD4) is entry(model, POD6) is None
    model.remove_pod(POD6)
    model.settle()
    assert model.endpoints.table.is_dirty, "it goes from the kernel, which the table has not read"
    _, owed = model.endpoints.table.take()
    assert set(owed) == {pack_address(POD4), pack_address(POD6)}


@pytest.mark.parametrize(
    ("routing", "there", "hops"),
    [
        (Routing((4, 6), tunnel=4), (THERE4, THERE6), (THERE4, THERE4)),
        (Routing((4, 6), tunnel=4), (THERE6, THERE4), (THERE4, THERE4)),
        (Routing((4, 6), tunnel=6), (THERE4, THERE6), (THERE6, THERE6)),
        (Routing((4, 6)), (THERE4, THERE6), (THERE4, THERE6)),
        (Routing((4, 6)), (THERE4,), (THERE4, "")),
        (Routing((4, 6), networks=NETWORKS), (THERE4, THERE6), (THERE4, THERE6)),
        (Routing((4, 6), networks=NETWORKS), (FAR4, THERE6), (FAR4, THERE6)),
        (Routing((4, 6), tunnel=4, networks=NETWORKS), (FAR4,), (FAR4, FAR4)),
        (Routing((4, 6), is_direct=False, networks=NETWORKS), (THERE4, THERE6), (THERE4, THERE6)),
    ],
)
def test_another_nodes_pods_are_reached_by_its_address_of_the_right_family_and_by_routes_if_it_is_far(
    routing: Routing, there: tuple[str, ...], hops: tuple[str, str]
) -> None:
    model = node_with(routing, *there)
    for hop, address, block, router in zip(
        hops, (THERES_POD4, THERES_POD6), ("10.0.1.0", "fd00:10:1::"), ("10.0.1.1", "fd00:10:1::1"), strict=True
    ):
        bits, whole = (120, 128) if ":" in block else (24, 32)
        assert who(model, address, whole) == (WEB, hop or NOWHERE)
        assert who(model, block, bits) == (RESERVED["unmanaged"], hop or NOWHERE)
        assert who(model, router, whole) == (RESERVED["remote-node"], hop or NOWHERE)
        by_routes = bool(hop) and not routing.tunnel and (hop == FAR4 or not routing.is_direct)
        assert [is_routed(model, address, whole), is_routed(model, block, bits)] == [by_routes, by_routes]
        wanted = {f"{block}/{bits}": hop} if hop and not by_routes else {}
        assert {cidr: way for cidr, way in model.routes.wanted.items() if cidr == f"{block}/{bits}"} == wanted


def test_a_node_that_can_be_no_next_hop_is_named_and_the_others_have_their_routes() -> None:
    model = node_with(Routing((4,), networks=NETWORKS), THERE4)
    hear(model, Node(name="far", addresses=[FAR4]), Block(cidr="10.0.9.0/24", node="far"))
    model.settle()
    assert model.routes.unreachable == {"far": FAR4}
    assert model.routes.wanted == {"10.0.1.0/24": THERE4}
    hear(model, Node(name="far", addresses=["192.0.2.9"]))
    model.settle()
    assert model.routes.unreachable == {}
    assert model.routes.wanted == {"10.0.1.0/24": THERE4, "10.0.9.0/24": "192.0.2.9"}


@pytest.mark.parametrize(
    ("routing", "block4", "block6"),
    [
        (Routing((4, 6), tunnel=4), HERE4, HERE4),
        (Routing((4, 6), tunnel=6), HERE6, HERE6),
        (Routing((4, 6), networks=(ip_network("203.0.113.0/24"),)), HERE4, HERE6),
    ],
)
def test_the_nodes_own_blocks_bear_its_own_address_and_all_its_addresses_are_the_host(
    routing: Routing, block4: str, block6: str
) -> None:
    model = node_with(routing, THERE4)
    assert who(model, "10.0.0.0", 24) == (RESERVED["unmanaged"], block4)
    assert who(model, "fd00:10::", 120) == (RESERVED["unmanaged"], block6)
    for own in (HERE4, HERE6, "10.0.0.1", "fd00:10::1"):
        assert who(model, own, 128 if ":" in own else 32) == (RESERVED["host"], NOWHERE)
    assert set(model.network.own_blocks) == {"10.0.0.0/24", "fd00:10::/120"}


def test_pods_follow_their_node_to_its_new_address_without_being_said_again() -> None:
    model = node_with(Routing((4, 6)), THERE4, THERE6)
    hear(model, Node(name=THERE, addresses=["192.0.2.22", "2001:db8::22"]))
    model.settle()
    assert who(model, THERES_POD4) == (WEB, "192.0.2.22")
    assert who(model, THERES_POD6, 128) == (WEB, "2001:db8::22")
    hear(model, remote_pod(THERES_POD4, "node-3", "192.0.2.3"))
    hear(model, Node(name=THERE, addresses=["192.0.2.44"]))
    assert who(model, THERES_POD4) == (WEB, "192.0.2.3"), "it lives elsewhere now, on a node not heard of yet"
    gone(model, remote_pod(THERES_POD4))
    hear(model, Node(name="node-3", addresses=["192.0.2.33"]))
    assert who(model, THERES_POD4) is None


def test_a_pods_node_address_of_the_wrong_family_is_no_way_to_it() -> None:
    model = node_with(Routing((4, 6)), THERE4)
    hear(model, remote_pod("fd00:77::7", "unheard", "192.0.2.7"), remote_pod("10.7.7.7", "unheard", "192.0.2.7"))
    assert who(model, "fd00:77::7", 128) == (WEB, NOWHERE)
    assert who(model, "10.7.7.7") == (WEB, "192.0.2.7")


def test_a_node_of_ipv6_alone_has_no_blocks_and_no_routes_of_ipv4() -> None:
    model = node_with(Routing((6,), tunnel=6), THERE6, own=(HERE6,))
    assert set(model.network.own_blocks) == {"fd00:10::/120"}
    assert model.routes.wanted == {"fd00:10:1::/120": THERE6}
    assert who(model, THERES_POD6, 128) == (WEB, THERE6)
