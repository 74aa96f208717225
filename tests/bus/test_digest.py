"""An owner's word and what a reader holds are compared: what was lost on the way, or in the log, has a name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from bus import subjects
from bus.codec import encode
from bus.control import Action, Say, Unsay, run_control
from bus.digest import Digests, Held
from bus.interface import Bus, Change
from bus.messages import Message
from bus.messages.identity import AddressIdentity
from bus.messages.resources import Namespace
from bus.server import Server
from bus.subjects import stream_of
from tests.bus.places import Open
from tests.bus.test_control import Told
from tests.bus.watcher import buses

FAMILY = "identity.address"


class Addresses:
    """Says an address for each namespace."""

    owner: ClassVar[str] = "identity"
    hears: ClassVar[tuple[Any, ...]] = (subjects.NAMESPACE,)
    says: ClassVar[tuple[Any, ...]] = (subjects.ADDRESS,)

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.told: set[str] = set()
        self.broken = False

    def put(self, subject: str, message: Message) -> None:
        if self.broken:
            raise LookupError("cannot be taken")
        assert isinstance(message, Namespace)
        self.names.add(message.name)

    def delete(self, subject: str) -> None:
        self.names.discard(subjects.NAMESPACE.parse(subject)[0])

    def act(self) -> Iterable[Action]:
        new, gone, self.told = self.names - self.told, self.told - self.names, set(self.names)
        for name in sorted(new):
            yield Say(subjects.ADDRESS.of(name), address(name))
        for name in sorted(gone):
            yield Unsay(subjects.ADDRESS.of(name))

    def said(self) -> Iterable[str]:
        return [subjects.ADDRESS.of(name) for name in self.told]


def address(name: str) -> AddressIdentity:
    return AddressIdentity(address=name, identity=300, node="n", node_address="192.0.2.1")


class Reader:
    """Holds what it is told, but for what it loses: `loses` says of each change whether it does."""

    def __init__(self) -> None:
        self.held = Held(subjects.ADDRESS)
        self.values: dict[str, Message] = {}
        self.loses: Callable[[Change], bool] = lambda change: False
        self.compared = 0  # batches in which the owner's word was for all that was told
        self.green: list[int] = []  # how many values were held whenever that looked right

    async def read(self, bus: Bus) -> None:
        async for batch in bus.watch_state(subjects.ADDRESS, anew=self.held.anew):
            for change in batch.changes:
                if self.loses(change):
                    continue
                self.held.take(change)
                if change.message is None:
                    self.values.pop(change.subject, None)
                else:
                    self.values[change.subject] = change.message
            if batch.synced:
                self.held.compare(batch)
            self.compared += FAMILY in batch.said
            if FAMILY in batch.said and not self.held.problem:
                self.green.append(len(self.values))

    async def until(self, so: Callable[[Reader], object]) -> None:
        async with asyncio.timeout(15):
            while not so(self):
                await asyncio.sleep(0.005)


@asynccontextmanager
async def at_work(*works: Any) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def is_right(reader: Reader) -> bool:
    return bool(reader.compared) and not reader.held.problem


async def test_a_key_that_a_reader_lost_or_never_heard_is_named_and_comes_back(opened: Open) -> None:
    async with opened("resources") as resources, opened("control") as control, opened("node") as node:
        box = await resources.own("resources")
        reader = Reader()
        lost = subjects.ADDRESS.of("b")
        async with at_work(run_control(control, Addresses(), lease_seconds=1.0), reader.read(node)):
            for name in "abc":
                await box.say(subjects.NAMESPACE.of(name), Namespace(name=name))
            await reader.until(lambda reader: len(reader.values) == 3 and is_right(reader))
            reader.loses = lambda change: change.subject == lost
            await box.unsay(subjects.NAMESPACE.of("b"))
            await reader.until(lambda reader: f"{FAMILY} holds 3 keys of 2, since" in reader.held.problem)
            await box.say(subjects.NAMESPACE.of("b"), Namespace(name="b"))
            await reader.until(is_right)
            del reader.values[lost]
            reader.held.take(Change(lost, None, 0, 0.0, {}))  # its memory of it went, by whatever fault
            await box.say(subjects.NAMESPACE.of("d"), Namespace(name="d"))
            await reader.until(lambda reader: f"{FAMILY} holds 3 keys of 4, since" in reader.held.problem)
            reader.loses = lambda change: False
            await reader.until(is_right)
            assert set(reader.values) == {subjects.ADDRESS.of(name) for name in "abcd"}


async def test_a_control_service_whose_model_does_not_hold_its_inputs_says_so(opened: Open) -> None:
    async with opened("resources") as resources, opened("control") as control:
        box = await resources.own("resources")
        model, told = Addresses(), Told()
        async with at_work(run_control(control, model, report=told, lease_seconds=1.0)):
            await box.say(subjects.NAMESPACE.of("a"), Namespace(name="a"))
            box.said({"resources.namespace": Held(subjects.NAMESPACE).digests["resources.namespace"]})
            await told.until(lambda told: "resources.namespace holds 1 keys of 0" in told.checks.get("digests", ""))
            before = told.last["revision"]
            await box.say(subjects.NAMESPACE.of("b"), Namespace(name="b"))
            await told.until(lambda told: "b" in model.told)
            await asyncio.sleep(0.05)
            assert told.last["revision"] == before, "what rests on it is not handed on as complete"
            made = Digests((subjects.NAMESPACE,))
            for name in "ab":
                made.put(subjects.NAMESPACE.of(name), encode(Namespace(name=name)))
            box.said(made.all())
            await told.until(lambda told: not told.checks and told.last["revision"] != before)


async def test_an_owner_whose_log_was_emptied_while_its_model_says_three_rules_cannot_be_green(server: Server) -> None:
    """Whoever may delete a stream empties the log of an owner that is alive and whose model knows nothing of it."""
    async with buses(server, "resources", "control", "node", "thief") as (resources, control, node, thief):
        box = await resources.own("resources")
        reader = Reader()
        async with at_work(run_control(control, Addresses(), lease_seconds=1.0), reader.read(node)):
            for name in "abc":
                await box.say(subjects.NAMESPACE.of(name), Namespace(name=name))
            await reader.until(lambda reader: len(reader.values) == 3 and is_right(reader))
            reader.green.clear()
            await thief.link.api(f"$JS.API.STREAM.DELETE.{stream_of('identity')}")
            before = reader.compared
            await reader.until(lambda reader: reader.compared > before or reader.held.problem)
            assert set(reader.green) <= {3}, "it never looked right with less than its owner says"
