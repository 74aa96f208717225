"""A pure model becomes a service: it hears, leads, writes what differs, and hands over without a storm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from bus import subjects
from bus.control import Action, Claim, Say, Unsay, run_control
from bus.interface import Bus
from bus.messages import Message
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.resources import Namespace
from bus.revision import Revision
from bus.server import Server
from bus.telemetry import counted
from tests.bus.places import Open
from tests.bus.watcher import Watcher, buses, watching

FIRST = 256


class Numbers:
    """Each namespace gets the lowest free number by claim, and an address entry that names it."""

    owner: ClassVar[str] = "identity"
    hears: ClassVar[tuple[Any, ...]] = (subjects.NAMESPACE, subjects.IDENTITY)
    says: ClassVar[tuple[Any, ...]] = (subjects.ADDRESS,)

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.holders: dict[int, str] = {}
        self.said_addresses: dict[str, int] = {}
        self.acts = 0

    def put(self, subject: str, message: Message) -> None:
        match message:
            case Namespace(name="poison"):
                raise LookupError("this one cannot be taken")
            case Namespace(name=name):
                self.names.add(name)
            case Identity(number=number, labels=labels):
                self.holders[number] = labels["name"]

    def delete(self, subject: str) -> None:
        if subjects.NAMESPACE.has(subject):
            self.names.discard(subjects.NAMESPACE.parse(subject)[0])

    def act(self) -> Iterable[Action]:
        self.acts += 1
        numbers = {name: number for number, name in self.holders.items()}
        free = (number for number in range(FIRST, FIRST + 10_000) if number not in self.holders)
        for name in sorted(self.names - numbers.keys()):
            number = next(free)
            yield Claim(subjects.IDENTITY.of(str(number)), Identity(number=number, labels={"name": name}))
        for name in sorted(self.names & numbers.keys()):
            if self.said_addresses.get(name) != numbers[name]:
                self.said_addresses[name] = numbers[name]
                yield Say(subjects.ADDRESS.of(name), address(name, numbers[name]))
        for name in sorted(self.said_addresses.keys() - self.names):
            del self.said_addresses[name]
            yield Unsay(subjects.ADDRESS.of(name))

    def said(self) -> Iterable[str]:
        return [subjects.ADDRESS.of(name) for name in self.said_addresses]


def address(name: str, number: int) -> AddressIdentity:
    return AddressIdentity(address=name, identity=number, node="n", node_address="192.0.2.1")


class Told:
    def __init__(self) -> None:
        self.last: dict[str, object] = {}
        self.checks: dict[str, str] = {}  # what is not well, and why

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        self.checks.pop(name, None)
        if not ok:
            self.checks[name] = detail

    async def until(self, so: Callable[[Told], bool]) -> None:
        async with asyncio.timeout(10):
            while not so(self):
                await asyncio.sleep(0.01)

    def report(self, *, ready: bool, active: bool, revision: Revision) -> None:
        self.last = {"ready": ready, "active": active, "revision": dict(revision)}


@asynccontextmanager
async def control(bus: Bus, model: Numbers, told: Told | None = None, seconds: float = 1.0) -> AsyncIterator[None]:
    task = asyncio.create_task(run_control(bus, model, report=told, lease_seconds=seconds))
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def addresses(watcher: Watcher) -> dict[str, int]:
    said = (message for message in watcher.values.values() if isinstance(message, AddressIdentity))
    return {message.address: message.identity for message in said}


async def test_inputs_become_outputs_with_the_revision_they_stem_from(opened: Open) -> None:
    async with opened("resources") as resources, opened("control") as bus, opened("node") as node:
        box = await resources.own("resources")
        for name in ("a", "b"):
            await box.say(subjects.NAMESPACE.of(name), Namespace(name=name))
        told = Told()
        async with control(bus, Numbers(), told), watching(node, subjects.ADDRESS) as watcher:
            await watcher.until(lambda watcher: addresses(watcher) == {"a": 256, "b": 257})
            await watcher.until_revision({"resources": 3})
            await box.unsay(subjects.NAMESPACE.of("a"))
            await watcher.until(lambda watcher: addresses(watcher) == {"b": 257})
            await watcher.until_revision({"resources": 4})
            assert told.last == {"ready": True, "active": True, "revision": {"resources": 4}}


async def test_a_standby_takes_over_and_writes_nothing_that_is_already_so(opened: Open) -> None:
    async with opened("resources") as resources, opened("one") as one, opened("two") as two:
        box = await resources.own("resources")
        for number in range(20):
            await box.say(subjects.NAMESPACE.of(f"n{number}"), Namespace(name=f"n{number}"))
        second, told = Numbers(), Told()
        async with watching(two, subjects.ADDRESS, direct=True) as watcher:
            first = control(one, Numbers())
            await first.__aenter__()
            await watcher.until(lambda watcher: len(watcher.values) == 20)
            async with control(two, second, told):
                await asyncio.sleep(0.2)
                assert told.last == {"ready": True, "active": False, "revision": {}} and not second.acts
                before = list(watcher.told)
                await first.__aexit__(None, None, None)
                await box.say(subjects.NAMESPACE.of("late"), Namespace(name="late"))
                await watcher.until(lambda watcher: len(watcher.values) == 21)
                assert [subject for subject, _ in watcher.told[len(before) :]] == [subjects.ADDRESS.of("late")]


async def test_what_nobody_says_any_more_is_taken_back_after_the_first_full_reading(opened: Open) -> None:
    async with opened("resources") as resources, opened("control") as bus, opened("node") as node:
        box = await resources.own("resources")
        await box.say(subjects.NAMESPACE.of("a"), Namespace(name="a"))
        earlier = await bus.own("identity")
        await earlier.say(subjects.ADDRESS.of("stray"), address("stray", 999))
        await earlier.say(subjects.IDENTITY.of("300"), Identity(number=300, labels={"name": "kept"}))
        await earlier.close()
        async with control(bus, Numbers()), watching(node, subjects.ADDRESS, subjects.IDENTITY) as watcher:
            await watcher.until(lambda watcher: addresses(watcher) == {"a": 256})
            assert subjects.IDENTITY.of("300") in watcher.values, "claims are not in `says`: never pruned"


async def test_an_allocation_that_lost_its_race_tries_the_next(opened: Open) -> None:
    async with opened("resources") as resources, opened("control") as bus, opened("other") as other:
        box = await resources.own("resources")
        model = Numbers()
        async with control(bus, model), watching(other, subjects.ADDRESS, direct=True) as watcher:
            await box.say(subjects.NAMESPACE.of("a"), Namespace(name="a"))
            await watcher.until(lambda watcher: addresses(watcher) == {"a": 256})
            taken = Identity(number=257, labels={"name": "someone else's"})
            await other.publish_state(subjects.IDENTITY.of("257"), taken, expected=0)
            model.holders.pop(257, None)
            await box.say(subjects.NAMESPACE.of("b"), Namespace(name="b"))
            await watcher.until(lambda watcher: addresses(watcher) == {"a": 256, "b": 258})


async def test_one_change_that_the_model_cannot_take_stops_nothing(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened("resources") as resources, opened("control") as bus, opened("node") as node:
        box = await resources.own("resources")
        before = counted("control_errors", owner="identity")
        async with control(bus, Numbers()), watching(node, subjects.ADDRESS, direct=True) as watcher:
            for name in ("poison", "a"):
                await box.say(subjects.NAMESPACE.of(name), Namespace(name=name))
            await watcher.until(lambda watcher: addresses(watcher) == {"a": 256})
        assert counted("control_errors", owner="identity") == before + 1
        errors = [record for record in caplog.records if record.levelname == "ERROR"]
        assert [vars(record)["fields"]["subject"] for record in errors] == [subjects.NAMESPACE.of("poison")]


async def test_a_model_that_fails_to_act_is_asked_again(opened: Open) -> None:
    class Moody(Numbers):
        def act(self) -> Iterable[Action]:
            if self.acts == 0:
                self.acts += 1
                raise ZeroDivisionError
            return super().act()

    async with opened("resources") as resources, opened("control") as bus, opened("node") as node:
        box = await resources.own("resources")
        await box.say(subjects.NAMESPACE.of("a"), Namespace(name="a"))
        async with control(bus, Moody()), watching(node, subjects.ADDRESS, direct=True) as watcher:
            await watcher.until(lambda watcher: addresses(watcher) == {"a": 256})


async def test_outputs_that_another_writer_changed_are_said_again(opened: Open) -> None:
    """Somebody wrote over our output while we led another input; what we say next is compared with what is there."""
    async with opened("resources") as resources, opened("control") as bus, opened("node") as node:
        box = await resources.own("resources")
        await box.say(subjects.NAMESPACE.of("a"), Namespace(name="a"))
        model = Numbers()
        async with control(bus, model), watching(node, subjects.ADDRESS, direct=True) as watcher:
            await watcher.until(lambda watcher: addresses(watcher) == {"a": 256})
            await node.publish_state(subjects.ADDRESS.of("a"), address("a", 1))
            await watcher.until(lambda watcher: addresses(watcher) == {"a": 1})
            model.said_addresses.clear()
            await box.say(subjects.NAMESPACE.of("b"), Namespace(name="b"))
            await watcher.until(lambda watcher: addresses(watcher) == {"a": 256, "b": 257})


async def test_two_replicas_and_a_server_that_dies_give_no_number_twice(server: Server) -> None:
    async with buses(server, "resources", "one", "two", "node") as (resources, one, two, node):
        box = await resources.own("resources")
        async with (
            control(one, Numbers()),
            control(two, Numbers()),
            watching(node, subjects.ADDRESS, subjects.IDENTITY) as watcher,
        ):
            for number in range(60):
                await box.say(subjects.NAMESPACE.of(f"n{number}"), Namespace(name=f"n{number}"))
                if number in (20, 40):
                    await server.kill()
                    await asyncio.sleep(1.2 if number == 20 else 0)  # once longer than the lease, once not
                    await server.start()
            await watcher.until(lambda watcher: len(addresses(watcher)) == 60, seconds=20)
            await watcher.until(lambda watcher: watcher.revision.get("resources") == box.position, seconds=20)
            assert len(set(addresses(watcher).values())) == 60


async def test_through_an_owner_and_a_control_service_a_change_takes_milliseconds(server: Server) -> None:
    async with buses(server, "resources", "control", "node") as (resources, bus, node):
        box = await resources.own("resources")
        async with control(bus, Numbers()), watching(node, subjects.ADDRESS) as watcher:
            loop = asyncio.get_running_loop()
            taken: list[float] = []
            for number in range(30):
                started = loop.time()
                await box.say(subjects.NAMESPACE.of(f"n{number:02}"), Namespace(name=f"n{number:02}"))
                await watcher.until_told(subjects.ADDRESS.of(f"n{number:02}"))
                taken.append(loop.time() - started)
                await asyncio.sleep(0.015)
            assert sorted(taken)[len(taken) // 2] < 0.1
