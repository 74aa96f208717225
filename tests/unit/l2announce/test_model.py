"""Who is to announce which address, as a function of Services, their addresses, Nodes, policies and who lives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.control import Amend, Say, Unsay
from bus.messages import Message
from bus.messages.ipam import AddressHolder, ServiceAddress
from bus.messages.l2announce import Announcement, Lease, PolicyUse
from bus.messages.resources import (
    L2AnnouncementPolicy,
    LabelSelector,
    LoadBalancerRequest,
    Node,
    Requirement,
    Service,
    ServicePort,
)
from bus.subjects import ANNOUNCEMENT, L2_LEASE, L2_POLICY, L2_POLICY_USE, NODE, SERVICE, SERVICE_ADDRESS, state_of
from services.l2announce.model import Announcing

BLUE = LabelSelector(requirements=[Requirement(key="color", operator="In", values=["blue"])])
WORKERS = LabelSelector(requirements=[Requirement(key="control", operator="DoesNotExist")])
POLICY = L2AnnouncementPolicy(name="p", load_balancer_addresses=True)


def service(
    name: str, *, external: Iterable[str] = (), labels: dict[str, str] | None = None, of_class: str = ""
) -> Service:
    return Service(
        namespace="d",
        name=name,
        type="LoadBalancer",
        cluster_addresses=["10.96.0.1"],
        ports=[ServicePort(port=80, target_port=80)],
        labels=labels or {},
        external_addresses=list(external),
        load_balancer=LoadBalancerRequest(load_balancer_class=of_class),
    )


def given_to(address: str, *names: str) -> ServiceAddress:
    return ServiceAddress(
        address=address, services=[AddressHolder(namespace="d", name=name, ports=["80/TCP"]) for name in names]
    )


def node(name: str, address: str = "", **labels: str) -> Node:
    return Node(name=name, addresses=[address] if address else [], labels=labels)


class World:
    """A model, and the log that it writes."""

    def __init__(self, *messages: Message, log: dict[str, Message] | None = None, live: str = "n1 n2 n3") -> None:
        self.log = log if log is not None else {}
        self.model = Announcing(3.0)
        for subject, message in self.log.items():
            if ANNOUNCEMENT.has(subject) or L2_LEASE.has(subject):
                self.model.put(subject, message)
        self.hear(*messages)
        self.live(live)

    def hear(self, *messages: Message) -> None:
        for message in messages:
            family = next(each for each in (SERVICE, SERVICE_ADDRESS, NODE, L2_POLICY) if each.message is type(message))
            self.model.put(family.subject_of(message), message)

    def live(self, names: str) -> None:
        self.model.lives(frozenset(names.split()))

    def settle(self) -> int:
        """Returns how many actions it took."""
        done = 0
        for _ in range(10):
            actions = list(self.model.act())
            if not actions:
                return done
            for action in actions:
                done += 1
                match action:
                    case Say(subject, message):
                        self.log[subject] = message
                    case Unsay(subject):
                        del self.log[subject]
                    case Amend(subject, before, after):
                        assert self.log.get(subject) == before
                        if after is None:
                            del self.log[subject]
                            self.model.delete(subject)
                        else:
                            self.log[subject] = after
                            self.model.put(subject, after)
        raise AssertionError("it never comes to rest")

    @property
    def announced(self) -> dict[str, str]:
        """By address, the node."""
        return {each.address: each.node for each in self.log.values() if isinstance(each, Announcement)}

    @property
    def use(self) -> PolicyUse:
        found = self.log[L2_POLICY_USE.of("p")]
        assert isinstance(found, PolicyUse)
        return found


NODES = (node("n1"), node("n2"), node("n3"))


def many(count: int) -> list[Message]:
    made: list[Message] = []
    for at in range(count):
        made += [service(f"s{at}"), given_to(f"10.9.0.{at}", f"s{at}")]
    return made


def test_each_address_has_one_node_and_each_node_its_share() -> None:
    world = World(*NODES, POLICY, *many(30))
    world.settle()
    assert len(world.announced) == 30
    assert Counter(world.announced.values()) == {"n1": 10, "n2": 10, "n3": 10}
    assert world.settle() == 0
    assert world.use == PolicyUse(name="p", nodes=3, able_nodes=3, addresses=30)


def test_without_a_policy_or_with_one_that_announces_nothing_nobody_does() -> None:
    world = World(*NODES, *many(3))
    world.settle()
    assert not world.announced
    world.hear(L2AnnouncementPolicy(name="p"))
    world.settle()
    assert not world.announced


def test_a_policy_selects_services_and_nodes() -> None:
    world = World(
        node("n1", control="yes"),
        node("n2"),
        L2AnnouncementPolicy(name="p", services=BLUE, nodes=WORKERS, load_balancer_addresses=True),
        service("a", labels={"color": "blue"}),
        service("b", labels={"color": "red"}),
        given_to("10.9.0.1", "a"),
        given_to("10.9.0.2", "b"),
    )
    world.settle()
    assert world.announced == {"10.9.0.1": "n2"}
    assert world.use.nodes == 1


def test_external_addresses_are_announced_where_the_policy_says_so_but_none_of_a_node() -> None:
    world = World(
        node("n1", "192.0.2.1"),
        L2AnnouncementPolicy(name="p", external_addresses=True),
        service("a", external=["192.0.2.9", "192.0.2.1", "FD00:0::9"]),
        given_to("10.9.0.1", "a"),
    )
    world.settle()
    assert world.announced == {"192.0.2.9": "n1", "fd00::9": "n1"}


@pytest.mark.parametrize(
    ("of_class", "is_ours"), [("io.cilium/l2-announcer", True), ("io.cilium/bgp-control-plane", False)]
)
def test_of_load_balancers_those_of_our_class_are_announced(of_class: str, is_ours: bool) -> None:
    world = World(*NODES, POLICY, service("a", of_class=of_class), given_to("10.9.0.1", "a"))
    world.settle()
    assert bool(world.announced) == is_ours


def test_when_a_node_dies_its_addresses_go_to_the_others_and_no_other_moves() -> None:
    world = World(*NODES, POLICY, *many(30))
    world.settle()
    before = world.announced
    world.live("n1 n3")
    world.settle()
    assert {a for a, n in world.announced.items() if n != before[a]} == {a for a, n in before.items() if n == "n2"}
    assert Counter(world.announced.values()) == {"n1": 15, "n3": 15}


def test_a_node_that_comes_back_gets_one_address_of_each_other_at_a_time() -> None:
    world = World(*NODES, POLICY, *many(30), live="n1 n3")
    world.settle()
    world.live("n1 n2 n3")
    world.settle()
    assert Counter(world.announced.values()) == {"n1": 15, "n3": 15}, "nothing moves by itself"
    loads = []
    for _ in range(8):
        world.model.rebalance()
        world.settle()
        loads.append(Counter(world.announced.values())["n2"])
    assert loads == [2, 4, 6, 8, 10, 10, 10, 10]


def test_neighbours_are_told_of_a_move_only_when_the_node_before_is_dead() -> None:
    world = World(*NODES, POLICY, *many(1))
    world.settle()
    (first,) = world.announced.values()
    assert world.model.assigned(first)["10.9.0.0"].tell
    others = LabelSelector(requirements=[Requirement(key="own", operator="NotIn", values=[first])])
    world.hear(*(node(each.name, own=each.name) for each in NODES))
    world.hear(L2AnnouncementPolicy(name="p", nodes=others, load_balancer_addresses=True))
    world.settle()
    (second,) = world.announced.values()
    assert second != first and not world.model.assigned(second)["10.9.0.0"].tell
    assert world.model.holders == {first, second}, "who leads next takes both for alive at first"
    world.live(" ".join({"n1", "n2", "n3"} - {first}))
    world.settle()
    assert world.announced == {"10.9.0.0": second} and world.model.assigned(second)["10.9.0.0"].tell
    third = ({"n1", "n2", "n3"} - {first, second}).pop()
    world.live(third)
    world.settle()
    assert world.model.assigned(third)["10.9.0.0"].tell, "that one has died"


def test_an_address_that_nobody_can_announce_is_told() -> None:
    world = World(*NODES, POLICY, *many(2), live="")
    world.settle()
    assert not world.announced
    assert (world.use.able_nodes, world.use.waiting, world.use.waiting_count) == (0, ["10.9.0.0", "10.9.0.1"], 2)
    world.live("n2")
    world.settle()
    assert world.use.waiting_count == 0


def test_what_a_shared_address_is_announced_for_are_all_who_have_it() -> None:
    world = World(*NODES, POLICY, service("a"), service("b"), given_to("10.9.0.1", "a", "b"))
    world.settle()
    held = world.log[ANNOUNCEMENT.of("10.9.0.1")]
    assert isinstance(held, Announcement) and held.services == ["d/a", "d/b"] and held.policies == ["p"]


def test_an_address_ends_with_its_service_and_a_policy_with_its_use() -> None:
    world = World(*NODES, POLICY, *many(1))
    world.settle()
    world.model.delete(SERVICE.of("d", "s0"))
    world.settle()
    assert not world.announced and world.use.addresses == 0
    world.model.delete(L2_POLICY.of("p"))
    world.settle()
    assert world.log.keys() == {L2_LEASE.of("nodes")}


def test_interfaces_are_those_of_all_policies_by_which_the_node_announces() -> None:
    world = World(
        *NODES,
        L2AnnouncementPolicy(name="p", interfaces=["^a"], load_balancer_addresses=True),
        L2AnnouncementPolicy(name="q", interfaces=["^b"], load_balancer_addresses=True),
        *many(1),
    )
    world.settle()
    (holder,) = world.announced.values()
    assert world.model.assigned(holder)["10.9.0.0"].interfaces == ["^a", "^b"]
    world.hear(L2AnnouncementPolicy(name="q", load_balancer_addresses=True))
    world.settle()
    assert world.model.assigned(holder)["10.9.0.0"].interfaces == []


def test_one_who_begins_anew_with_the_log_changes_nothing() -> None:
    world = World(*NODES, POLICY, *many(10))
    world.settle()
    before = dict(world.log)
    again = World(*NODES, POLICY, *many(10), log=world.log)
    again.settle()
    assert again.log == before


def test_nothing_is_decided_before_it_is_known_who_lives() -> None:
    world = World(*NODES, POLICY, *many(2))
    world.settle()
    again = World(*NODES, POLICY, *many(2), log=world.log)
    again.model.lives(None)
    assert list(again.model.act()) == []
    assert set(again.model.said()) == world.log.keys(), "nothing is taken for a stray"


def test_longer_leases_are_said_at_once_and_shorter_ones_when_no_longer_one_is_left() -> None:
    lease = L2_LEASE.of("nodes")
    world = World(log={lease: Lease(name="nodes", seconds=2.0)})
    world.settle()
    assert world.log[lease] == Lease(name="nodes", seconds=3.0)
    world = World(log={lease: Lease(name="nodes", seconds=15.0)})
    world.settle()
    assert world.model.lease_seconds == 15.0
    world.model.settled()
    world.settle()
    assert world.log[lease] == Lease(name="nodes", seconds=3.0)


@given(st.permutations([*NODES, POLICY, *many(6)]))
def test_the_same_state_is_the_same_log_however_it_came_to_be(messages: list[Message]) -> None:
    world, other = World(*NODES, POLICY, *many(6)), World(*messages)
    world.settle()
    other.settle()
    assert world.log == other.log
    assert all(state_of(subject) is not None for subject in other.log)
