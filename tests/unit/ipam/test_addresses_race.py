"""Two replicas that both believe to lead, late in all that they hear: no address is ever given twice, and when they
have heard everything, everybody has what there is.

They act on what they know, their actions are carried out in any order and between each other's, and either may be
killed at any line: then it begins anew with what the log holds. `service_log.check_apart` looks at each write.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from bus.addresses import family, parse
from bus.control import Amend, Say, Unsay
from bus.messages import Message
from bus.messages.ipam import ServiceAddress
from bus.messages.resources import LoadBalancerPool, Node, Service
from bus.subjects import LOAD_BALANCER_POOL, NODE, SERVICE, SERVICE_ADDRESS
from services.ipam.service_addresses import ServiceAddresses
from tests.unit.ipam.service_log import Log, pool, service

OPERATIONS = 10_000

Change = tuple[str, Message | None]


@dataclass
class Replica:
    """A model, what it is still to hear of each log, in that log's order, and actions that are not carried out yet."""

    model: ServiceAddresses = field(default_factory=ServiceAddresses)
    inputs: deque[Change] = field(default_factory=deque)
    own: deque[Change] = field(default_factory=deque)
    pending: list[Say | Unsay | Amend] = field(default_factory=list)

    def hear(self, news: deque[Change]) -> None:
        subject, message = news.popleft()
        if message is None:
            self.model.delete(subject)
        else:
            self.model.put(subject, message)


class World:
    """What was asked for, the log, and who writes it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.inputs: dict[str, Message] = {}
        self.log = Log()
        self.replicas = [Replica(), Replica()]
        self.lost_races = 0

    def step(self) -> None:
        moves: list[tuple[int, Callable[[], None]]] = [
            (3, self.change_service),
            (1, self.change_pool),
            (1, self.change_node),
            (12, self.hear),
            (12, self.carry_out),
            (6, self.act),
        ]
        weights = [weight for weight, _ in moves]
        self.random.choices([move for _, move in moves], weights)[0]()
        if self.random.random() < 0.002:
            self.kill(self.random.choice(self.replicas))

    def change_service(self) -> None:
        name, namespace = f"s{self.random.randrange(12)}", self.random.choice(["one", "two"])
        if self.random.random() < 0.3:
            self.tell(SERVICE.of(namespace, name), None)
            return
        said: dict[str, object] = {}
        if self.random.random() < 0.6:
            said["sharing_key"] = self.random.choice("kl")
            said["sharing_namespaces"] = self.random.choice([[], ["*"], ["one"], ["two"]])
        if self.random.random() < 0.4:
            said["addresses"] = self.random.sample([f"10.0.0.{at}" for at in range(1, 12)], self.random.choice([1, 2]))
        self.tell(
            *service(
                name,
                namespace,
                ports=tuple(self.random.sample(range(80, 86), self.random.choice([1, 2]))),
                color=self.random.choice(["red", "blue"]),
                families=self.random.choice([["IPv4"], ["IPv4", "IPv6"]]),
                policy=self.random.choice(["Cluster", "Cluster", "Local"]),
                selector=self.random.choice([{}, {"app": "x"}, {"app": "y"}]),
                **said,
            )
        )

    def change_pool(self) -> None:
        at = self.random.randrange(4)
        if self.random.random() < 0.25:
            self.tell(LOAD_BALANCER_POOL.of(f"p{at}"), None)
            return
        low = self.random.randrange(1, 10)
        ranges = [f"10.0.0.{low}-10.0.0.{self.random.randrange(low, 11)}", f"fd00::{at}1-fd00::{at}3"]
        color = self.random.choice(["", "", "red", "blue"])
        self.tell(*pool(f"p{at}", *ranges, place=at, color=color, disabled=self.random.random() < 0.1))

    def change_node(self) -> None:
        at = self.random.randrange(3)
        node = Node(name=f"n{at}", addresses=[f"10.0.0.{self.random.randrange(1, 20)}"])
        self.tell(NODE.of(node.name), node if self.random.random() < 0.8 else None)

    def tell(self, subject: str, message: Message | None) -> None:
        if message is None:
            self.inputs.pop(subject, None)
        else:
            self.inputs[subject] = message
        for each in self.replicas:
            each.inputs.append((subject, message))

    def hear(self) -> None:
        each = self.random.choice(self.replicas)
        news = self.random.choice([each.inputs, each.own])
        if news:
            each.hear(news)

    def act(self) -> None:
        """As `bus.control` does: again when all that was asked for is carried out."""
        each = self.random.choice(self.replicas)
        if not each.pending:
            for action in each.model.act():
                assert isinstance(action, (Say, Unsay, Amend))
                each.pending.append(action)

    def carry_out(self) -> None:
        each = self.random.choice(self.replicas)
        if each.pending:
            self.write(each, each.pending.pop(self.random.randrange(len(each.pending))))

    def write(self, writer: Replica, action: Say | Unsay | Amend) -> None:
        if isinstance(action, Amend):
            self.lost_races += self.log.values.get(action.subject) != action.before
        if self.log.write(writer.model, action) and SERVICE_ADDRESS.has(action.subject):
            for each in self.replicas:  # the writer hears it a second time
                each.own.append((action.subject, self.log.values.get(action.subject)))

    def kill(self, replica: Replica) -> None:
        replica.model, replica.pending = ServiceAddresses(), []
        replica.inputs, replica.own = deque(self.inputs.items()), deque()
        replica.own.extend(each for each in self.log.values.items() if SERVICE_ADDRESS.has(each[0]))
        while replica.inputs or replica.own:  # it acts on nothing before it has heard all
            replica.hear(replica.inputs or replica.own)

    def rest(self) -> None:
        """All is heard and carried out; then one of them alone leads, says all of it, and takes back what it does not
        say, as `bus.control` does."""
        self.come_to_rest()
        leader = self.random.choice(self.replicas)
        self.kill(leader)
        before = self.log.holders()
        self.log.settle(leader.model)
        assert self.log.holders() == before, "a takeover moves no address"
        for subject in self.log.values.keys() - set(leader.model.said()):
            self.log.write(leader.model, Unsay(subject))

    def come_to_rest(self) -> None:
        for _ in range(200):
            for each in self.replicas:
                while each.inputs or each.own:
                    each.hear(each.inputs or each.own)
                each.pending += [each_ for each_ in each.model.act() if isinstance(each_, (Say, Unsay, Amend))]
            if not any(each.pending or each.own for each in self.replicas):
                return
            for each in self.replicas:
                while each.pending:
                    self.write(each, each.pending.pop())
        raise AssertionError("the replicas never come to rest")


@pytest.mark.parametrize("seed", [1, 2])
def test_two_replicas_that_race_give_no_address_twice(seed: int) -> None:
    world = World(seed)
    for at in range(OPERATIONS):
        world.step()
        if at % 1000 == 999:
            world.rest()
            check_all_is_given(world)
    assert world.lost_races > 50, "else they did not race"


def check_all_is_given(world: World) -> None:
    """By the words of the documentation, from what was asked for alone."""
    services = [each for each in world.inputs.values() if isinstance(each, Service)]
    pools = [each for each in world.inputs.values() if isinstance(each, LoadBalancerPool)]
    nodes = {text for each in world.inputs.values() if isinstance(each, Node) for text in each.addresses}
    held = {each.address: each for each in world.log.values.values() if isinstance(each, ServiceAddress)}
    alive = {(each.namespace, each.name) for each in services}
    assert {(one.namespace, one.name) for each in held.values() for one in each.services} <= alive
    assert not nodes & held.keys()
    for each in services:
        own = world.log.of(each.name, each.namespace)
        assert all(any(selects(one, each) and has(one, address) for one in pools) for address in own)
        told = world.log.request(each.name, each.namespace)
        assert sorted(told.addresses) == sorted(own)
        asked = each.load_balancer.addresses if each.load_balancer else []
        families = [family(found) for address in own if (found := parse(address)) is not None]
        assert len(families) == len(set(families)) or asked, "one of each family"
        assert told.satisfied == (set(own) == set(asked) if asked else set(families) == set(each.ip_families))
        assert told.satisfied == (not told.detail)
        if told.reason == "out_of_ips":
            free = (address for one in pools if selects(one, each) and gives(one, pools) for address in all_in(one))
            missing = set(each.ip_families) - set(families)
            assert not [x for x in free if x not in held and x not in nodes and family_of(x) in missing]


def family_of(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


def all_in(one: LoadBalancerPool) -> set[str]:
    """Ranges here lie in the last digits."""
    found = set()
    for each in one.ranges:
        first, last = parse(each.first), parse(each.last)
        assert first is not None and last is not None
        found |= {str(first + step) for step in range(int(last) - int(first) + 1)}
    return found


def has(one: LoadBalancerPool, address: str) -> bool:
    return address in all_in(one)


def selects(one: LoadBalancerPool, each: Service) -> bool:
    return one.selector is None or each.labels["color"] in one.selector.requirements[0].values


def gives(one: LoadBalancerPool, pools: list[LoadBalancerPool]) -> bool:
    """It is not disabled, and overlaps with no older one that itself is good."""
    good: list[LoadBalancerPool] = []
    for each in sorted(pools, key=lambda each: each.place):
        if not any(all_in(each) & all_in(other) for other in good):
            good.append(each)
    return one in good and not one.disabled
