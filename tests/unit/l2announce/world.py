"""Nodes, two control services and a bus that loses and delays, on clocks that drift: the real model, real grants and
the real part of the dataplane, in one simulated time. `World.check` looks at what kernels answer after each thing that
happens.

Any process may be killed or stopped at any moment between two of its steps, and go on later with what it knew.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial

from bus.control import Action, Amend
from bus.messages import Message
from bus.messages.l2announce import Granted, Renewal
from bus.messages.resources import L2AnnouncementPolicy, Node, Service, ServicePort
from bus.subjects import ANNOUNCEMENT, L2_LEASE, L2_POLICY, NODE, SERVICE
from services.dataplane.part import Facts
from services.dataplane.parts.announcements import SECOND_NS, Announcements
from services.dataplane.shapes.devices import DeviceInfo
from services.dataplane.shapes.layouts import L2AnswerEntry, L2AnswerKey
from services.l2announce.grants import Grants
from services.l2announce.model import Announcing

SECONDS, RENEW, RETRY = 3.0, 1.0, 0.2
BUS_LEASE = 1.0  # of who leads
DRIFT = 0.01
LONGEST = 12.0  # that anything is killed, stopped or cut off
DEVICE = DeviceInfo("eth0", 2, "02:00:00:00:00:01", "", 1500)


class Clock:
    """Runs at its own speed, from its own beginning."""

    def __init__(self, rng: random.Random) -> None:
        self._offset = rng.uniform(0, 1e6)
        self._rate = 1 + rng.uniform(-DRIFT, DRIFT)

    def at(self, now: float) -> float:
        return self._offset + now * self._rate

    def after(self, now: float, seconds: float) -> float:
        """True time at which so many of its seconds have passed."""
        return now + seconds / self._rate


class Process:
    """Steps of one process in their order; none while it is stopped, and never again when it is killed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.is_alive = True
        self.stopped_until = 0.0

    def later(self, at: float, step: Callable[[], None]) -> None:
        def run() -> None:
            if not self.is_alive:
                return
            if self.world.now < self.stopped_until:
                self.world.at(self.stopped_until + 1e-6, run)
            else:
                step()

        self.world.at(at, run)


class Replica(Process):
    """One process of l2announce."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.clock = Clock(world.rng)
        self.model = Announcing(world.lease_seconds)
        self.seconds = world.lease_seconds
        self.grants: Grants | None = None
        self.deadline = 0.0  # of the lease by which it leads, on its clock
        for subject, message in world.inputs.items():
            self.model.put(subject, message)
        self.later(world.now, self.lead)

    @property
    def mono(self) -> float:
        return self.clock.at(self.world.now)

    @property
    def holds(self) -> bool:
        return self.mono < self.deadline

    def lead(self) -> None:
        """Take the lease or keep it, as bus/lease.py does: it counts from before it wrote, others from after."""
        world = self.world
        if world.leader in (None, self) or world.now >= world.leader_until:
            if world.leader is not self or not self.holds:
                self.grants = None
            world.leader = self
            world.leader_until = world.now + BUS_LEASE * (1 + 3 * DRIFT)
            self.deadline = self.mono + BUS_LEASE
            if self.grants is None:
                self.hear_log()
                self.grants = Grants(self.seconds, f"t{next(world.names)}", self.mono, self.model.lease_seconds)
                self.follow()
        elif not self.holds:  # it notices at last, and answers no more
            self.grants = None
        self.act()
        self.later(world.now + world.rng.uniform(0.1, 0.4), self.lead)

    def hear_log(self) -> None:
        for subject in [ANNOUNCEMENT.of(address) for address in self.world.addresses]:
            self.hear(subject)
        self.hear(L2_LEASE.of("nodes"))

    def hear(self, subject: str) -> None:
        value = self.world.log.get(subject)
        if value is None:
            self.model.delete(subject)
        else:
            self.model.put(subject, value)

    def follow(self) -> None:
        assert self.grants is not None
        live = self.grants.live(self.mono)
        if self.grants.is_settled(self.mono):
            self.model.settled()
        else:
            live |= self.model.holders
        self.model.lives(live)

    def act(self) -> None:
        """Once; what it writes may be on its way for long."""
        if self.grants is None or not self.holds:
            return
        self.follow()
        if self.world.rng.random() < 0.05:
            self.model.rebalance()
        for action in self.model.act():
            self.later(self.world.now + self.world.delay(), partial(self.write, action))

    def write(self, action: Action) -> None:
        if isinstance(action, Amend):
            if self.world.log.get(action.subject) == action.before:
                self.world.set(action.subject, action.after)
            self.hear(action.subject)
            self.world.told()

    def renew(self, question: Renewal, answer: Callable[[Granted], None]) -> None:
        """As services/l2announce/handlers.py."""
        if self.grants is None:
            return
        is_known = self.model.lease_seconds >= self.seconds
        found = self.grants.renew(question, self.model.assigned(question.node), self.mono, may_grant=is_known)
        if question.node not in (self.model.live or ()):
            self.follow()
            self.act()
        if found is not None and self.holds:  # it may be stopped between this and the answer's leaving
            self.later(self.world.now + self.world.delay(), lambda: answer(found))


class Dataplane(Process):
    """One process of a node's dataplane."""

    def __init__(self, world: World, machine: Machine) -> None:
        super().__init__(world)
        self.machine = machine
        self.name = f"p{next(world.names)}"
        facts = Facts()
        facts.uplinks.keep().put(DEVICE.index, DEVICE)
        self.part = Announcements(facts, machine.name, is_on=True)
        self.part.adopt(lambda _: machine.kernel)
        self.part.settle()
        self.part.table.adopt(machine.kernel)
        self.waits_for = 0  # number of the question whose answer counts
        self.later(world.now + world.rng.uniform(0, RETRY), self.turn)

    @property
    def boot(self) -> int:
        return self.machine.boot

    def turn(self) -> None:
        sent = self.boot
        question = self.part.question(self.name, dict(self.machine.kernel), sent)
        self.waits_for = question.number
        world = self.world

        def answer(granted: Granted) -> None:
            world.carry(self.machine, lambda: self.later(world.now, lambda: self.take(question, granted, sent)))

        def ask() -> None:
            world.carry(self.machine, lambda: world.ask(question, answer))

        self.later(world.now + world.delay(), ask)  # it may be stopped before the question leaves
        patience = self.machine.clock.after(world.now, max(RETRY, RENEW / 2))
        self.later(patience, lambda: self.give_up(question.number))

    def give_up(self, number: int) -> None:
        if self.waits_for == number:
            self.waits_for = 0
            self.part.expire(self.boot)
            self.write(lambda: self.next(RETRY))

    def take(self, question: Renewal, granted: Granted, sent: int) -> None:
        if self.waits_for != question.number:
            return
        self.waits_for = 0
        outcome = self.part.answered(question, granted, sent, self.boot)
        wait = 0.0 if outcome.again else RETRY if outcome.waits else RENEW
        self.write(lambda: self.next(wait))

    def next(self, wait: float) -> None:
        self.later(self.machine.clock.after(self.world.now, wait), self.turn)

    def write(self, then: Callable[[], None]) -> None:
        """Entry by entry; it may be killed or stopped between any two."""
        self.part.settle()
        puts, gone = self.part.table.take()
        steps: list[Callable[[], None]] = [partial(self.machine.put, *each) for each in puts.items()]
        steps += [partial(self.machine.remove, each) for each in gone]
        self._go_through([*steps, then])

    def _go_through(self, steps: list[Callable[[], None]]) -> None:
        first, *rest = steps
        first()
        if rest:
            self.later(self.world.now + self.world.rng.choice((0.0, 0.0, 0.001)), lambda: self._go_through(rest))


class Machine:
    """A node: its kernel, its clock, and one dataplane at a time."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.clock = Clock(world.rng)
        self.kernel: dict[bytes, bytes] = {}
        self.cut_until = 0.0  # no message passes to it or from it
        self.dataplane = Dataplane(world, self)

    @property
    def boot(self) -> int:
        return int(self.clock.at(self.world.now) * SECOND_NS)

    def put(self, key: bytes, value: bytes) -> None:
        self.kernel[key] = value
        self.world.check()

    def remove(self, key: bytes) -> None:
        self.kernel.pop(key, None)

    def answers(self) -> set[str]:
        """What bpf/programs/answer_link.bpf.c answers."""
        return {
            L2AnswerKey.unpack(key).address
            for key, value in self.kernel.items()
            if self.boot < L2AnswerEntry.unpack(value).until
        }

    def restart(self) -> None:
        self.dataplane.is_alive = False
        self.dataplane = Dataplane(self.world, self)


class World:
    def __init__(self, seed: int, machines: int = 3, addresses: int = 3) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.names = itertools.count(1)
        self.lease_seconds = SECONDS
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.is_calm = False
        self.addresses = [f"10.9.0.{at}" for at in range(1, addresses + 1)]
        self.log: dict[str, Message] = {}
        self.leader: Replica | None = None
        self.leader_until = 0.0
        self.moves = 0  # how often an address was answered for by another node than before
        self._last: dict[str, str] = {}
        names = [f"n{at}" for at in range(machines)]
        policy = L2AnnouncementPolicy(name="p", external_addresses=True)
        service = Service(
            namespace="d",
            name="s",
            cluster_addresses=["10.96.0.1"],
            ports=[ServicePort(port=80, target_port=80)],
            external_addresses=self.addresses,
        )
        self.inputs: dict[str, Message] = {L2_POLICY.of("p"): policy, SERVICE.of("d", "s"): service}
        self.inputs |= {NODE.of(name): Node(name=name, addresses=[]) for name in names}
        self.machines = [Machine(self, name) for name in names]
        self.replicas = [Replica(self), Replica(self)]

    # -- time

    def at(self, when: float, step: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (max(when, self.now), next(self._order), step))

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, step = heapq.heappop(self._queue)
            step()
            self.check()
        self.now = until
        self.check()

    def delay(self) -> float:
        """Of a message or of a process: short as a rule, now and then long."""
        if self.is_calm or self.rng.random() < 0.9:
            return self.rng.uniform(0, 0.01)
        return self.rng.expovariate(1 / 0.5)

    # -- the bus

    def carry(self, machine: Machine, deliver: Callable[[], None]) -> None:
        if self.now < machine.cut_until or (not self.is_calm and self.rng.random() < 0.05):
            return
        copies = 1 if self.is_calm or self.rng.random() < 0.98 else 2
        for _ in range(copies):
            self.at(self.now + self.delay(), deliver)

    def ask(self, question: Renewal, answer: Callable[[Granted], None]) -> None:
        """Whoever leads answers, or believes to."""
        takers = [each for each in self.replicas if each.is_alive and each.grants is not None]
        if takers:
            taker = self.rng.choice(takers)
            taker.later(self.now, lambda: taker.renew(question, answer))

    def set(self, subject: str, message: Message | None) -> None:
        if message is None:
            self.log.pop(subject, None)
        else:
            self.log[subject] = message

    def told(self) -> None:
        """Replicas hear of the log late, as far as they do not lead."""
        for replica in self.replicas:
            replica.later(self.now + self.delay(), replica.hear_log)

    # -- trouble

    def trouble(self, until: float) -> None:
        """Something every half second or so."""
        at = self.now
        while at < until:
            at += self.rng.expovariate(2)
            self.at(at, self._something)

    def _something(self) -> None:
        rng, machine = self.rng, self.rng.choice(self.machines)
        long = rng.choice((0.1, 0.5, 2.0, 3.0, 4.0, LONGEST / 1.5)) * rng.uniform(0.5, 1.5)
        match rng.randrange(7):
            case 0:  # kill -9 of the dataplane, and its supervisor
                machine.dataplane.is_alive = False
                self.at(self.now + long, machine.restart)
            case 1:
                machine.dataplane.stopped_until = self.now + long
            case 2:
                machine.cut_until = self.now + long
            case 3:  # the node dies, and is another start of it later
                machine.dataplane.is_alive = False
                machine.kernel.clear()
                machine.clock = Clock(rng)
                self.at(self.now + long, machine.restart)
            case 4:
                at = rng.randrange(2)
                self.replicas[at].is_alive = False
                self.replicas[at] = Replica(self)
            case 5:
                rng.choice(self.replicas).stopped_until = self.now + long
            case 6:  # an address goes, and comes back
                subject = SERVICE.of("d", "s")
                service = self._service
                left = self.addresses if rng.random() < 0.5 else self.addresses[1:]
                self.inputs[subject] = Service(
                    namespace="d",
                    name="s",
                    cluster_addresses=service.cluster_addresses,
                    ports=service.ports,
                    external_addresses=left,
                )
                for replica in self.replicas:
                    heard = partial(self._hear_inputs, replica)
                    replica.later(self.now + self.delay(), heard)

    def calm(self) -> None:
        """All that is stopped goes on, all that is cut off is joined again, and nothing is lost from here on."""
        self.is_calm = True
        for machine in self.machines:
            machine.cut_until = machine.dataplane.stopped_until = 0.0
            machine.restart()
        for replica in self.replicas:
            replica.stopped_until = 0.0
            self._hear_inputs(replica)

    def _hear_inputs(self, replica: Replica) -> None:
        for subject, message in self.inputs.items():
            replica.model.put(subject, message)

    # -- what must hold

    @property
    def _service(self) -> Service:
        found = self.inputs[SERVICE.of("d", "s")]
        assert isinstance(found, Service)
        return found

    def asked(self) -> list[str]:
        """The addresses that are to be announced."""
        return self._service.external_addresses

    def check(self) -> None:
        answering: dict[str, str] = {}
        for machine in self.machines:
            for address in machine.answers():
                assert address not in answering, (
                    f"at {self.now:.3f} both {answering[address]} and {machine.name} answer for {address}"
                )
                answering[address] = machine.name
        for address, name in answering.items():
            self.moves += self._last.get(address, name) != name
            self._last[address] = name

    def answered(self) -> dict[str, str]:
        """By address, who answers for it now."""
        return {address: machine.name for machine in self.machines for address in machine.answers()}
