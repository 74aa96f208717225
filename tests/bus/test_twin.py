"""The bus in memory and the bus on a server are the same to whoever holds one."""

from __future__ import annotations

import asyncio

import pytest

from bus import subjects
from bus.interface import Conflict, Unanswered, Unreadable
from bus.messages.dataplane import AppliedRevision
from bus.messages.identity import Identity
from bus.messages.resources import Applied, Apply, Namespace, Pod
from bus.telemetry import caused_by, counted
from bus.testing import first_synced
from tests.bus.places import Open
from tests.bus.unread import Garbled, NewerIdentity
from tests.bus.watcher import watching

N1, N2 = subjects.NAMESPACE.of("n1"), subjects.NAMESPACE.of("n2")


async def test_a_late_listener_learns_every_value_and_then_every_change(opened: Open) -> None:
    async with opened("owner") as owner, opened("reader") as reader:
        box = await owner.own("resources")
        await box.say(N1, Namespace(name="n1"))
        assert await first_synced(reader.watch_state(subjects.NAMESPACE)) is not None
        async with watching(reader, subjects.NAMESPACE) as told:
            assert told.values == {N1: Namespace(name="n1")}
            assert told.revision == {"resources": 2}  # the owner's vouching is the log's first message
            await box.say(N2, Namespace(name="n2"))
            await box.unsay(N1)
            await told.until_values([N2])
            await told.until_revision({"resources": 4})


async def test_saying_and_unsaying_twice_writes_once(opened: Open) -> None:
    async with opened("owner") as owner:
        box = await owner.own("resources")
        assert [await box.say(N1, Namespace(name="n1")) for _ in range(2)] == [True, False]
        assert box.get(N1) == Namespace(name="n1") and box.items() == {N1: Namespace(name="n1")}
        assert [await box.unsay(N1) for _ in range(2)] == [True, False]
        assert box.get(N1) is None and box.items() == {} and box.subjects() == []


async def test_of_two_claims_the_first_one_holds(opened: Open) -> None:
    async with opened("one") as one, opened("two") as two:
        first, second = await one.own("identity"), await two.own("identity")
        subject = subjects.IDENTITY.of("256")
        mine, theirs = Identity(number=256, labels={"a": "1"}), Identity(number=256, labels={"b": "2"})
        winners = await asyncio.gather(first.claim(subject, mine), second.claim(subject, theirs))
        assert winners[0] == winners[1] and winners[0] in (mine, theirs)


async def test_what_cannot_be_read_here_is_taken_and_stays(opened: Open) -> None:
    """A newer schema is somebody's; garbage may be; neither is given away."""
    async with opened("one") as one:
        await one.ensure_streams()
        mine = Identity(number=256, labels={})
        for number, value, newer in ((256, NewerIdentity(number=256), True), (257, Garbled(number="x"), False)):
            subject = subjects.IDENTITY.of(str(number))
            first = await one.publish_state(subject, value)
            box = await one.own("identity")
            with pytest.raises(Unreadable) as lost:
                await box.claim(subject, mine)
            assert (lost.value.subject, lost.value.newer) == (subject, newer)
            problem = box.unreadable(subject)
            assert problem is not None and problem.newer == newer
            assert await one.publish_state(subject, mine, expected=first), "it is still the value"
            await box.close()
        box = await one.own("identity")
        assert box.unreadable(subject) is None and await box.claim(subject, mine) == mine
        assert box.unreadable(subjects.IDENTITY.of("300")) is None


async def test_compare_and_set_names_the_winner(opened: Open) -> None:
    async with opened("one") as one:
        await one.ensure_streams()
        first = await one.publish_state(N1, Namespace(name="n1"), expected=0)
        with pytest.raises(Conflict) as lost:
            await one.publish_state(N1, Namespace(name="n2"), expected=0)
        assert lost.value.sequence == first
        assert await one.compare_and_set(N1, Namespace(name="n2"), 0) is None
        second = await one.compare_and_set(N1, Namespace(name="n2"), first)
        assert second == first + 1
        assert await one.delete_state(N1) == second + 1
        values, batch = await first_synced(one.watch_state(subjects.NAMESPACE, direct=True))
        assert (values, batch.revision) == ({}, {"resources": 3})


async def test_a_reader_hears_only_what_it_asked_for(opened: Open) -> None:
    async with opened("owner") as owner, opened("reader") as reader:
        box = await owner.own("resources")
        async with watching(reader, (subjects.POD, ("default",)), subjects.NAMESPACE) as told:
            for space in ("default", "other"):
                pod = Pod(namespace=space, name="a", uid="")
                await box.say(subjects.POD.of(space, "a"), pod)
            await box.say(N1, Namespace(name="n1"))
            await told.until_revision({"resources": 4})
            assert set(told.values) == {subjects.POD.of("default", "a"), N1}


async def test_what_an_owner_has_heard_reaches_its_readers(opened: Open) -> None:
    async with opened("owner") as owner, opened("reader") as reader:
        box = await owner.own("identity")
        async with watching(reader, subjects.IDENTITY) as told:
            assert told.revision == {"resources": 0, "dataplane": 0}
            await box.say(subjects.IDENTITY.of("256"), Identity(number=256, labels={}))
            box.heard({"resources": 7, "dataplane": 2})
            await told.until_revision({"resources": 7, "dataplane": 2})
            assert len(told.values) == 1


async def test_time_and_trace_of_a_change_arrive_with_it(opened: Open) -> None:
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    async with opened("owner") as owner, opened("reader") as reader:
        box = await owner.own("resources")
        with caused_by(1234.5, trace):
            await box.say(N1, Namespace(name="n1"))
        async with watching(reader, subjects.NAMESPACE) as told:
            (change,) = [change for batch in told.batches for change in batch.changes]
            assert (change.caused_at, dict(change.trace)) == (1234.5, trace)


async def test_questions_are_answered_or_refused_with_a_reason(opened: Open) -> None:
    async def handler(question: Apply) -> Applied:
        if question.delete:
            raise LookupError("nothing to delete")
        return Applied(revision=3)

    async with opened("service") as service, opened("asker") as asker:
        with pytest.raises(Unanswered, match="nobody answers"):
            await asker.ask(subjects.APPLY, message=Apply(documents=[]))
        task = asyncio.create_task(service.answer(subjects.APPLY, handler=handler))
        await asyncio.sleep(0.05)
        failed = counted("bus_answer_failed")
        assert await asker.ask(subjects.APPLY, message=Apply(documents=[])) == Applied(revision=3)
        with pytest.raises(Unanswered, match="LookupError: nothing to delete"):
            await asker.ask(subjects.APPLY, message=Apply(documents=[], delete=True))
        assert counted("bus_answer_failed") == failed + 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_events_reach_those_who_listen(opened: Open) -> None:
    async with opened("node") as node, opened("listener") as listener:
        events = listener.watch_events(subjects.APPLIED.all(), AppliedRevision)
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.05)
        event = AppliedRevision(node="n", revision={"resources": 1}, at=1.0)
        await node.publish_event(subjects.APPLIED.of("n"), event)
        async with asyncio.timeout(2):
            assert await first == (subjects.APPLIED.of("n"), event)


async def test_a_lease_has_one_holder_at_a_time(opened: Open) -> None:
    holding: list[str] = []
    most: list[int] = []

    async with opened("one") as one, opened("two") as two:

        async def hold(name: str) -> None:
            bus = one if name == "one" else two
            for _ in range(3):
                async with bus.lease("test", seconds=1.0) as lease:
                    held = [lease.held]
                    holding.append(name)
                    most.append(len(holding))
                    await asyncio.sleep(0.02)
                    holding.remove(name)
                await lease.lost()
                assert [*held, lease.held] == [True, False]

        async with asyncio.timeout(10):
            await asyncio.gather(hold("one"), hold("two"))
        assert max(most) == 1 and len(most) == 6
