"""What goes wrong with one subject of a control service: it stops no other, is shown, and is never taken for done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from bus import subjects
from bus.codec import LIMIT_BYTES
from bus.control import Action, Say
from bus.interface import Conflict
from bus.messages.dataplane import Check
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.resources import Namespace
from bus.service import Service, Settings
from bus.telemetry import counted
from bus.testing import Hub, MemoryLease, MemoryOutbox
from tests.bus.places import Open
from tests.bus.test_control import Numbers, Told, address, addresses, control
from tests.bus.unread import Garbled, NewerIdentity
from tests.bus.watcher import watching

BIG = subjects.ADDRESS.of("big")


class Large(Numbers):
    """What it says of the namespace "big" is over the limit."""

    def act(self) -> Iterable[Action]:
        for action in super().act():
            yield Say(BIG, large()) if isinstance(action, Say) and action.subject == BIG else action


class Warned(Large):
    """It knows a smaller form."""

    def __init__(self) -> None:
        super().__init__()
        self.small: dict[str, str] = {}
        self.pending: list[Action] = []

    def refused(self, subject: str, why: str) -> None:
        self.small[subject] = why
        self.pending.append(Say(subject, address("big", 0)))

    def act(self) -> Iterable[Action]:
        pending, self.pending = self.pending, []
        return [*super().act(), *pending]


class Insisting(Numbers):
    """It says the same again whatever becomes of it."""

    def act(self) -> Iterable[Action]:
        yield from super().act()
        if "big" in self.names:
            yield Say(BIG, large())


class Careful(Numbers):
    """A number that it cannot read is taken; those that it knows are what it says."""

    says: ClassVar[tuple[Any, ...]] = (subjects.ADDRESS, subjects.IDENTITY)

    def __init__(self) -> None:
        super().__init__()
        self.told_taken: list[str] = []

    def taken(self, subject: str) -> None:
        self.told_taken.append(subject)
        self.holders[int(subjects.IDENTITY.parse(subject)[0])] = ""

    def said(self) -> Iterable[str]:
        return [*super().said(), *(subjects.IDENTITY.of(str(number)) for number, name in self.holders.items() if name)]


def large() -> AddressIdentity:
    return AddressIdentity(address="big", identity=1, node="n", node_address="192.0.2.1", pod="x" * LIMIT_BYTES)


def labelled(name: str, number: int) -> Identity:
    return Identity(number=number, labels={"name": name})


async def test_an_output_that_cannot_be_written_holds_the_revision_back_until_another_value_works(
    opened: Open,
) -> None:
    async with opened("resources") as resources, opened("control") as bus, opened("node") as node:
        box, told = await resources.own("resources"), Told()
        for name in ("big", "a"):
            await box.say(subjects.NAMESPACE.of(name), Namespace(name=name))
        async with control(bus, Large(), told), watching(node, subjects.ADDRESS) as watcher:
            await watcher.until(lambda watcher: "a" in addresses(watcher))
            await told.until(lambda told: "outputs" in told.checks)
            assert BIG in told.checks["outputs"] and "limit" in told.checks["outputs"]
            await box.say(subjects.NAMESPACE.of("b"), Namespace(name="b"))
            await watcher.until(lambda watcher: "b" in addresses(watcher))
            await asyncio.sleep(0.1)
            assert told.last["revision"] == {} and watcher.revision.get("resources", 0) == 0
            await box.unsay(subjects.NAMESPACE.of("big"))
            await watcher.until_revision({"resources": 5})
            await told.until(lambda told: not told.checks and told.last["revision"] == {"resources": 5})


async def test_a_model_that_is_told_of_it_says_a_smaller_form_in_the_same_turn(opened: Open) -> None:
    async with opened("resources") as resources, opened("control") as bus, opened("node") as node:
        box, told, model = await resources.own("resources"), Told(), Warned()
        await box.say(subjects.NAMESPACE.of("big"), Namespace(name="big"))
        async with control(bus, model, told), watching(node, subjects.ADDRESS) as watcher:
            await watcher.until_revision({"resources": 2})
            assert addresses(watcher) == {"big": 0}
            assert list(model.small) == [BIG] and "limit" in model.small[BIG]
            await told.until(lambda told: told.last["revision"] == {"resources": 2})
            assert not told.checks


async def test_a_model_that_insists_on_it_is_asked_again_only_when_something_changed(opened: Open) -> None:
    async with opened("resources") as resources, opened("control") as bus, opened("node") as node:
        box, told, model = await resources.own("resources"), Told(), Insisting()
        before = counted("control_errors", owner="identity", step="write")
        for name in ("a", "big"):
            await box.say(subjects.NAMESPACE.of(name), Namespace(name=name))
        async with control(bus, model, told), watching(node, subjects.ADDRESS, direct=True) as watcher:
            await watcher.until(lambda watcher: "a" in addresses(watcher))
            await told.until(lambda told: "outputs" in told.checks)
            await asyncio.sleep(0.2)
            acts = model.acts
            await asyncio.sleep(0.2)
            assert model.acts == acts and told.last["revision"] == {}
            await box.unsay(subjects.NAMESPACE.of("big"))
            await told.until(lambda told: not told.checks and told.last["revision"] == {"resources": 4})
        assert counted("control_errors", owner="identity", step="write") - before < 10


async def test_what_a_newer_version_holds_is_neither_claimed_nor_taken_back(opened: Open) -> None:
    async with opened("resources") as resources, opened("control") as bus, opened("node") as node:
        box, told, model = await resources.own("resources"), Told(), Careful()
        await node.ensure_streams()
        await box.say(subjects.NAMESPACE.of("a"), Namespace(name="a"))
        newer, garbage = subjects.IDENTITY.of("256"), subjects.IDENTITY.of("300")
        at = await node.publish_state(newer, NewerIdentity(number=256))
        garbled_at = await node.publish_state(garbage, Garbled(number="x"))
        async with control(bus, model, told), watching(node, subjects.ADDRESS) as watcher:
            await watcher.until(lambda watcher: addresses(watcher) == {"a": 257})
            await watcher.until_revision({"resources": 2})
            assert model.told_taken == [newer] and not told.checks
            with pytest.raises(Conflict):
                await node.publish_state(garbage, labelled("x", 300), expected=garbled_at)  # it was collected
            assert await node.publish_state(newer, labelled("b", 256), expected=at), "the newer value is still there"


async def test_a_claim_that_meets_what_it_cannot_read_is_not_taken_for_done(opened: Open) -> None:
    """This model has no `taken`; it goes on when it hears who has the number."""
    async with opened("resources") as resources, opened("control") as bus, opened("node") as node:
        box, told = await resources.own("resources"), Told()
        await node.ensure_streams()
        subject = subjects.IDENTITY.of("256")
        await node.publish_state(subject, NewerIdentity(number=256))
        await box.say(subjects.NAMESPACE.of("a"), Namespace(name="a"))
        async with control(bus, Numbers(), told), watching(node, subjects.ADDRESS) as watcher:
            await told.until(lambda told: subject in told.checks.get("outputs", ""))
            assert told.last["revision"] == {}
            await node.publish_state(subject, labelled("b", 256))
            await watcher.until(lambda watcher: addresses(watcher) == {"a": 257})
            await told.until(lambda told: not told.checks and told.last["revision"] == {"resources": 2})


async def test_a_number_whose_holder_makes_no_sense_to_the_model_is_taken(opened: Open) -> None:
    """It decodes, but names nobody, so `put` fails on it."""
    async with opened("resources") as resources, opened("control") as bus, opened("node") as node:
        box, told, model = await resources.own("resources"), Told(), Careful()
        await node.ensure_streams()
        subject = subjects.IDENTITY.of("256")
        await box.say(subjects.NAMESPACE.of("a"), Namespace(name="a"))
        await node.publish_state(subject, Identity(number=256, labels={}))
        async with control(bus, model, told), watching(node, subjects.ADDRESS) as watcher:
            await watcher.until(lambda watcher: addresses(watcher) == {"a": 257})
            assert model.told_taken == [subject]


async def test_changes_that_the_model_cannot_take_are_shown_until_they_are_replaced_or_gone(opened: Open) -> None:
    poison, cured = subjects.NAMESPACE.of("poison"), subjects.NAMESPACE.of("cured")
    async with opened("resources") as resources, opened("control") as bus:
        box, told = await resources.own("resources"), Told()
        for subject in (poison, cured):
            await box.say(subject, Namespace(name="poison"))
        async with control(bus, Numbers(), told):
            await told.until(lambda told: told.last.get("revision") == {"resources": 3})  # heard, though not used
            assert poison in told.checks["inputs"] and cured in told.checks["inputs"]
            assert "this one cannot be taken" in told.checks["inputs"] and "outputs" not in told.checks
            await box.say(cured, Namespace(name="cured"))
            await told.until(lambda told: cured not in told.checks["inputs"])
            assert poison in told.checks["inputs"]
            await box.unsay(poison)
            await told.until(lambda told: not told.checks)


async def test_a_model_that_cannot_act_says_so(opened: Open) -> None:
    class Broken(Numbers):
        broken = True

        def act(self) -> Iterable[Action]:
            if self.broken:
                raise ZeroDivisionError("nothing to divide by")
            return super().act()

    async with opened("resources") as resources, opened("control") as bus:
        box, told, model = await resources.own("resources"), Told(), Broken()
        await box.say(subjects.NAMESPACE.of("a"), Namespace(name="a"))
        async with control(bus, model, told):
            await told.until(lambda told: "nothing to divide by" in told.checks.get("outputs", ""))
            assert told.last["revision"] == {}
            model.broken = False
            await told.until(lambda told: not told.checks and told.last["revision"] == {"resources": 2})


async def test_a_service_shows_in_health_what_its_model_could_not_take() -> None:
    hub = Hub()
    hub.put(subjects.NAMESPACE.of("poison"), Namespace(name="poison"))
    service = Service("identity", Settings(), hub.bus())
    running = asyncio.create_task(service.control(Numbers()))
    try:
        async with asyncio.timeout(5):
            while not service.revision:
                await asyncio.sleep(0.01)
        shown = {check.name: check for check in service.health().checks}
        assert shown["outputs"] == Check(name="outputs", ok=True)
        assert not shown["inputs"].ok and subjects.NAMESPACE.of("poison") in shown["inputs"].detail
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_another_gave_on_after_our_log_was_lost_stays_with_whom_it_gave_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replica says what it had claimed again when the log has lost it. That is no word to come back to later, when it
    leads again and another has led in between."""
    monkeypatch.setattr(MemoryOutbox, "losses", property(lambda _: 1))  # the log that it finds has lost something
    hub, subject = Hub(), subjects.IDENTITY.of("256")
    bus, leases = hub.bus("control"), []

    @asynccontextmanager
    async def lease(*_: object, **__: object) -> AsyncIterator[MemoryLease]:
        leases.append(MemoryLease())
        yield leases[-1]

    monkeypatch.setattr(bus, "lease", lease)
    hub.put(subjects.NAMESPACE.of("a"), Namespace(name="a"))
    hub.put(subject, Identity(number=256, labels={"name": "a"}))
    told, model = Told(), Numbers()
    async with control(bus, model, told):
        await told.until(lambda told: told.last.get("active") is True and told.last["revision"] != {})
        monkeypatch.setattr(MemoryOutbox, "losses", property(lambda _: 0))
        hub.put(subject, Identity(number=256, labels={"name": "b"}))  # by another, who leads
        leases[-1].take_away()
        async with asyncio.timeout(10):
            while len(leases) < 2:
                await asyncio.sleep(0)
        hub.put(subjects.NAMESPACE.of("c"), Namespace(name="c"))
        await told.until(lambda told: told.last.get("active") is True and "c" in model.said_addresses)
    assert hub.states("identity")[subject] == Identity(number=256, labels={"name": "b"})
