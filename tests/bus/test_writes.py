"""Compare-and-set: of several writers one wins, and what was acknowledged stays."""

from __future__ import annotations

import asyncio

import pytest

from bus import subjects, wire
from bus.codec import LIMIT_BYTES, TooLarge, encode
from bus.interface import Conflict, Outbox, Refused, Unreadable
from bus.log import Log, log_config
from bus.messages.identity import Identity
from bus.messages.resources import Namespace
from bus.server import Server
from bus.service import Service, Settings
from bus.telemetry import Cause
from tests.bus.places import Open
from tests.bus.watcher import buses


def identity(number: int, holder: str) -> Identity:
    return Identity(number=number, labels={"holder": holder})


async def test_of_racing_claims_one_wins_and_all_hear_who(server: Server) -> None:
    async with buses(server, *(f"replica-{n}" for n in range(4))) as replicas:
        boxes = [await replica.own("identity") for replica in replicas]
        winners = await asyncio.gather(
            *(
                box.claim(subjects.IDENTITY.of(str(number)), identity(number, f"replica-{n}"))
                for number in range(256, 306)
                for n, box in enumerate(boxes)
            )
        )
        by_number: dict[int, set[str]] = {}
        for winner in winners:
            assert isinstance(winner, Identity)
            by_number.setdefault(winner.number, set()).add(winner.labels["holder"])
        assert len(by_number) == 50 and all(len(holders) == 1 for holders in by_number.values())


async def test_a_log_that_takes_nothing_is_told_with_the_servers_reason_until_it_takes_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, or where somebody has changed the stream."""
    monkeypatch.setattr("bus.client.STUCK_SECONDS", 0.1)
    async with asyncio.timeout(30), buses(server, "owner", "stranger") as (owner, stranger):
        outbox = await owner.own("resources")
        service = Service("resources", Settings(), owner)
        config = log_config("resources")
        full = config | {"max_msgs": 1, "discard": "new"}
        await stranger.link.api("$JS.API.STREAM.UPDATE.STATE_RESOURCES", full)
        subject = subjects.NAMESPACE.of("n")
        saying = asyncio.create_task(outbox.say(subject, Namespace(name="n")))
        while not owner.stuck():
            await asyncio.sleep(0.01)
        (check,) = service.health().checks
        assert (check.name, check.ok) == ("writes", False)
        assert f"1 not taken for 0 s, {subject} first: maximum messages exceeded" in check.detail
        await stranger.link.api("$JS.API.STREAM.UPDATE.STATE_RESOURCES", config)
        assert await saying
        assert service.health().checks == [] and owner.stuck() == ""


async def test_no_number_is_given_twice_while_the_server_is_killed(server: Server) -> None:
    """Allocators race for the lowest free number; each holds what it was told that it won."""
    async with buses(server, *(f"replica-{n}" for n in range(3))) as replicas:
        won: dict[str, list[int]] = {}

        async def allocate(n: int) -> None:
            bus, mine = replicas[n], won.setdefault(f"replica-{n}", [])
            for number in range(256, 556):
                subject = subjects.IDENTITY.of(str(number))
                if await bus.compare_and_set(subject, identity(number, f"replica-{n}"), 0) is not None:
                    mine.append(number)

        racing = asyncio.gather(*(allocate(n) for n in range(3)))
        for _ in range(2):
            await asyncio.sleep(0.15)
            await server.kill()
            await server.start()
        await racing
        taken = [number for mine in won.values() for number in mine]
        assert sorted(taken) == sorted(set(taken)) == list(range(256, 556))
        box = await replicas[0].own("identity")
        for holder, mine in won.items():
            for number in mine:
                value = box.get(subjects.IDENTITY.of(str(number)))
                assert isinstance(value, Identity) and value.labels["holder"] == holder


async def test_a_write_that_lost_its_race_says_who_is_there(server: Server) -> None:
    subject = subjects.NAMESPACE.of("n")
    async with buses(server, "one", "two") as (one, two):
        first = await one.publish_state(subject, Namespace(name="n"), expected=0)
        with pytest.raises(Conflict) as lost:
            await two.publish_state(subject, Namespace(name="m"), expected=0)
        assert lost.value.sequence == first
        assert await two.compare_and_set(subject, None, 0) is None
        gone = await two.compare_and_set(subject, None, first)
        assert gone == first + 1
        assert await two.publish_state(subject, Namespace(name="m"), expected=gone) == gone + 1


async def test_an_owner_overtaken_learns_the_value_and_may_say_again(server: Server) -> None:
    subject = subjects.NAMESPACE.of("n")
    async with buses(server, "one", "two") as (one, two):
        box = await one.own("resources")
        await box.say(subject, Namespace(name="n"))
        last = await two.publish_state(subject, Namespace(name="from another"))
        box._table.entries[subject] = wire.Entry(1, subject, encode(Namespace(name="n")))  # it has not heard yet
        with pytest.raises(Conflict) as lost:
            await box.say(subject, Namespace(name="mine"))
        assert lost.value.sequence == last
        assert box.get(subject) == Namespace(name="from another")
        assert await box.say(subject, Namespace(name="mine"))
        assert box.get(subject) == Namespace(name="mine")


async def test_a_key_can_be_said_again_after_its_deletion_was_forgotten(server: Server) -> None:
    subject = subjects.NAMESPACE.of("n")
    async with buses(server, "one") as (one,):
        box = await one.own("resources")
        await box.say(subject, Namespace(name="n"))
        await box.unsay(subject)
        assert await box.say(subject, Namespace(name="again"))
        await box.unsay(subject)
        await one.link.api("$JS.API.STREAM.PURGE.STATE_RESOURCES")  # as the server does with deletions after an hour
        assert await box.say(subject, Namespace(name="once more"))
        assert await box.claim(subject, Namespace(name="late")) == Namespace(name="once more")


async def test_two_outboxes_of_one_owner_hear_each_other(server: Server) -> None:
    async with buses(server, "one", "two") as (one, two):
        first, second = await one.own("resources"), await two.own("resources")
        await first.say(subjects.NAMESPACE.of("a"), Namespace(name="a"))
        await second.say(subjects.NAMESPACE.of("b"), Namespace(name="b"))
        async with asyncio.timeout(3):
            while not (first.items() == second.items() and len(first.items()) == 2):
                await asyncio.sleep(0.01)


async def test_a_message_over_the_limit_is_refused_before_it_is_sent(server: Server) -> None:
    large = Namespace(name="n", manifest={"text": "x" * LIMIT_BYTES})
    async with buses(server, "one") as (one,):
        box = await one.own("resources")
        with pytest.raises(TooLarge, match="limit"):
            await box.say(subjects.NAMESPACE.of("n"), large)
        assert box.items() == {}


async def test_what_the_server_will_never_take_is_refused_and_what_comes_after_it_is_written(server: Server) -> None:
    async with asyncio.timeout(20), buses(server, "owner") as (owner,):
        await owner.ensure_streams()
        log = Log(owner.link, "resources")
        subject = subjects.NAMESPACE.of("n")
        with pytest.raises(Refused, match=r"state\.resources\.namespace\.n: header size exceeds maximum"):
            await log.write(subject, b"x", expected=0, cause=Cause(1.0, {"traceparent": "x" * 70_000}))
        assert await log.write(subject, b"x", expected=0, cause=Cause(1.0, {})) == 1


async def test_writes_wait_for_a_server_that_is_away(server: Server) -> None:
    async with buses(server, "one") as (one,):
        box = await one.own("resources")
        await server.kill()
        saying = asyncio.create_task(box.say(subjects.NAMESPACE.of("n"), Namespace(name="n")))
        await asyncio.sleep(0.3)
        assert not saying.done()
        await server.start()
        assert await saying


async def test_an_amendment_is_taken_where_it_starts_from_what_is_so(opened: Open) -> None:
    subject = subjects.IDENTITY.of("300")
    async with opened("one") as one, opened("two") as two:
        first, second = await one.own("identity"), await two.own("identity")
        assert await first.amend(subject, None, identity(300, "a")) == identity(300, "a")
        assert await second.amend(subject, None, identity(300, "b")) == identity(300, "a"), "who was first"
        assert await second.amend(subject, identity(300, "a"), identity(300, "ab")) == identity(300, "ab")
        assert await first.amend(subject, identity(300, "a"), identity(300, "ac")) == identity(300, "ab")
        assert await first.amend(subject, identity(300, "a"), None) == identity(300, "ab"), "nor is it taken away"
        assert await first.amend(subject, identity(300, "ab"), None) is None
        assert await second.amend(subject, identity(300, "ab"), identity(300, "b")) is None
        assert first.get(subject) is None and second.get(subject) is None


async def test_of_racing_amendments_of_one_value_each_is_made_on_the_one_before(server: Server) -> None:
    """Two who count up from what they know: no step of either is lost."""
    subject = subjects.IDENTITY.of("300")
    async with buses(server, "one", "two") as replicas:
        boxes = [await replica.own("identity") for replica in replicas]

        async def count_up(name: str, box: Outbox) -> int:
            """How often it lost."""
            known, steps, lost = box.get(subject), 0, 0
            while steps < 50:
                count = int(known.labels["count"]) if isinstance(known, Identity) else 0
                after = Identity(number=300, labels={"holder": name, "count": str(count + 1)})
                known = await box.amend(subject, known, after)
                steps += known == after
                lost += known != after
            return lost

        lost = await asyncio.gather(*(count_up(name, box) for name, box in zip(("one", "two"), boxes, strict=True)))
        assert sum(lost) > 0, "else they did not race"
    async with buses(server, "three") as [
        third
    ]:  # who reads it now: of the two, one may not have heard the last step yet
        found = (await third.own("identity")).get(subject)
        assert isinstance(found, Identity) and found.labels["count"] == "100"


async def test_an_amendment_does_not_touch_what_cannot_be_read(opened: Open) -> None:
    subject = subjects.IDENTITY.of("300")
    async with opened("one") as one:
        box = await one.own("identity")
        await one.publish_state(subject, Namespace(name="n"))
        with pytest.raises(Unreadable):
            await box.amend(subject, None, identity(300, "a"))
