"""Questions: an answer in time, or one sentence about why not."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
import pytest
from nats.aio.msg import Msg

from bus import outbox, questions, subjects, wire
from bus.client import NatsBus
from bus.codec import encode
from bus.interface import Unanswered
from bus.messages.dataplane import AppliedRevision, Dump, DumpRows
from bus.messages.resources import Applied, Apply, Document, Namespace, PodStatus
from bus.server import Server
from bus.telemetry import counted
from tests.bus.watcher import buses, watching


async def answering(bus: NatsBus, handler: Callable[[Apply], Awaitable[Applied]]) -> asyncio.Task[None]:
    task = asyncio.create_task(bus.answer(subjects.APPLY, handler=handler))
    await bus.link.client.flush()
    await asyncio.sleep(0.02)
    return task


async def applied(question: Apply) -> Applied:
    return Applied(revision=len(question.documents))


async def test_a_question_is_answered(server: Server) -> None:
    async with buses(server, "service", "asker") as (service, asker):
        task = await answering(service, applied)
        asked = Apply(documents=[Document(source="a.yaml", manifest={"kind": "Pod"})])
        assert await asker.ask(subjects.APPLY, message=asked) == Applied(revision=1)
        task.cancel()


async def test_of_two_who_answer_the_same_one_does(server: Server) -> None:
    taken: list[str] = []

    def named(name: str) -> Callable[[Apply], Awaitable[Applied]]:
        async def handler(_: Apply) -> Applied:
            taken.append(name)
            return Applied()

        return handler

    async with buses(server, "one", "two", "asker") as (one, two, asker):
        tasks = [await answering(one, named("one")), await answering(two, named("two"))]
        await asyncio.gather(*(asker.ask(subjects.APPLY, message=Apply(documents=[])) for _ in range(40)))
        assert len(taken) == 40 and set(taken) == {"one", "two"}
        for task in tasks:
            task.cancel()


async def test_nobody_there_is_said_at_once(server: Server) -> None:
    async with buses(server, "asker") as (asker,):
        async with asyncio.timeout(0.5):
            with pytest.raises(Unanswered, match="nobody answers"):
                await asker.ask(subjects.APPLY, message=Apply(documents=[]))


async def test_an_error_of_the_handler_reaches_the_asker_and_the_next_question_is_answered(server: Server) -> None:
    calls: list[int] = []

    async def handler(_: Apply) -> Applied:
        calls.append(1)
        if len(calls) == 1:
            raise LookupError("no such\nthing")
        return Applied()

    async with buses(server, "service", "asker") as (service, asker):
        task = await answering(service, handler)
        with pytest.raises(Unanswered, match="LookupError: no such thing"):
            await asker.ask(subjects.APPLY, message=Apply(documents=[]))
        assert await asker.ask(subjects.APPLY, message=Apply(documents=[])) == Applied()
        task.cancel()


async def test_a_question_that_does_not_decode_is_answered_with_the_name_of_its_field(server: Server) -> None:
    bad = msgspec.msgpack.encode([1, {"documents": [{"source": 5, "manifest": {}}]}])
    async with buses(server, "service", "asker") as (service, asker):
        task = await answering(service, applied)
        for body, why in ((bad, r"documents\[0\]\.source"), (bad[:-3], "does not decode"), (b"", "does not decode")):
            reply = await asker.link.request(subjects.APPLY.of(), body)
            assert reply.headers is not None
            assert re.search(why, reply.headers["Plexus-Refused"])
        task.cancel()


async def test_a_slow_handler_meets_the_deadline_of_the_asker_and_does_not_hold_up_others(server: Server) -> None:
    async def handler(question: Apply) -> Applied:
        await asyncio.sleep(5 if question.delete else 0)
        return Applied()

    async with buses(server, "service", "asker") as (service, asker):
        task = await answering(service, handler)
        slow = asyncio.create_task(asker.ask(subjects.APPLY, message=Apply(documents=[], delete=True), timeout=0.4))
        await asker.ask(subjects.APPLY, message=Apply(documents=[]), timeout=0.3)
        with pytest.raises(Unanswered, match=r"0\.4 s"):
            await slow
        task.cancel()


async def test_of_more_questions_than_may_wait_some_are_dropped_and_the_service_goes_on(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "WAITING_BYTES", 20_000)
    handled: list[int] = []
    go = asyncio.Event()

    async def handler(_: Apply) -> Applied:
        handled.append(1)
        await go.wait()
        return Applied()

    before = counted("bus_question_dropped", subject=subjects.APPLY.all())
    async with buses(server, "service", "asker") as (service, asker):
        task = await answering(service, handler)
        body = encode(Apply(documents=[]))
        for _ in range(200):
            await asker.link.publish(subjects.APPLY.of(), body, reply=asker.link.client.new_inbox())
        async with asyncio.timeout(3):
            while counted("bus_question_dropped", subject=subjects.APPLY.all()) - before < 150:
                await asyncio.sleep(0.01)
        go.set()
        assert await asker.ask(subjects.APPLY, message=Apply(documents=[])) == Applied()
        assert 16 < len(handled) < 50
        task.cancel()


async def test_a_question_whose_asker_gave_up_while_it_waited_is_not_put_to_the_handler(server: Server) -> None:
    handled: list[bool] = []
    go = asyncio.Event()

    async def handler(question: Apply) -> Applied:
        handled.append(question.delete)
        await go.wait()
        return Applied()

    async with buses(server, "service", "asker") as (service, asker), asyncio.TaskGroup() as tasks:
        task = await answering(service, handler)
        patient = [
            tasks.create_task(asker.ask(subjects.APPLY, message=Apply(documents=[]), timeout=5))
            for _ in range(questions.AT_ONCE + 1)  # one more, so that the next ones are not even looked at
        ]
        await asyncio.sleep(0.1)
        for _ in range(3):
            with pytest.raises(Unanswered):
                await asker.ask(subjects.APPLY, message=Apply(documents=[], delete=True), timeout=0.1)
        go.set()
        assert await asyncio.gather(*patient) == [Applied()] * len(patient)
        await asyncio.sleep(0.1)
        assert handled == [False] * len(patient)
        task.cancel()


async def test_of_more_questions_for_a_snapshot_than_may_wait_some_are_dropped(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "WAITING_BYTES", 20_000)
    go = asyncio.Event()
    answer = outbox.NatsOutbox._answer

    async def slow(self: outbox.NatsOutbox, message: Msg) -> None:
        await go.wait()
        await answer(self, message)

    monkeypatch.setattr(outbox.NatsOutbox, "_answer", slow)
    subject = subjects.snapshot_of("resources")
    before = counted("bus_snapshot_dropped", subject=subject)
    async with buses(server, "owner", "reader") as (owner, reader):
        box = await owner.own("resources")
        await box.say(subjects.NAMESPACE.of("n"), Namespace(name="n"))
        body = wire.pack(wire.SnapshotQuestion(wire.SCHEMA, "", 0, [subjects.NAMESPACE.all()]))
        await asyncio.sleep(0.05)
        for _ in range(200):
            await reader.link.publish(subject, body, reply=reader.link.client.new_inbox())
        async with asyncio.timeout(3):
            while counted("bus_snapshot_dropped", subject=subject) - before < 150:
                await asyncio.sleep(0.01)
        go.set()
        async with watching(reader, subjects.NAMESPACE) as told:
            await told.until_values([subjects.NAMESPACE.of("n")])


async def test_a_node_that_asks_without_end_keeps_no_other_waiting(server: Server) -> None:
    """It says that it waits for ever, too."""
    handled: list[str] = []

    async def handler(status: PodStatus) -> Applied:
        handled.append(status.node)
        await asyncio.sleep(0.002)
        return Applied()

    def status(node: str) -> PodStatus:
        return PodStatus(namespace="n", name="p", uid="u", phase="Running", ready=True, node=node)

    async with buses(server, "service", "loud", "quiet") as (service, loud, quiet):
        task = asyncio.create_task(service.answer(subjects.POD_STATUS, handler=handler))
        async with asyncio.timeout(10):
            while not handled:  # until then the server may not know that anybody answers
                with suppress(Unanswered):
                    await quiet.ask(subjects.POD_STATUS, "quiet", message=status("quiet"), timeout=1.0)
        for number in range(20_000):
            inbox = loud.link.client.new_inbox()
            await loud.link.publish(
                subjects.POD_STATUS.of("loud"), encode(status("loud")), reply=inbox, headers={questions.DEADLINE: "inf"}
            )
            if number % 2000 == 0:
                await quiet.ask(subjects.POD_STATUS, "quiet", message=status("quiet"), timeout=2.0)
        dropped = counted("bus_question_dropped", subject=subjects.POD_STATUS.all())
        assert dropped > 10_000
        before = handled.count("loud")
        for _ in range(20):
            await quiet.ask(subjects.POD_STATUS, "quiet", message=status("quiet"), timeout=2.0)
        assert handled.count("loud") - before <= 20 * (questions.AT_ONCE + 1)
        task.cancel()


async def test_who_asks_for_snapshots_in_ever_other_words_leaves_an_owner_half_of_its_time(server: Server) -> None:
    """As many questions as wait, each to be answered from all keys: the owner writes meanwhile, and answers others."""
    async with buses(server, "owner", "stranger", "reader") as (owner, stranger, reader):
        box = await owner.own("resources")
        for number in range(300):
            await box.say(subjects.NAMESPACE.of(f"n{number}"), Namespace(name=f"n{number}", labels={"a": "x" * 500}))
        made: list[float] = []
        make = outbox.NatsOutbox._snapshot

        async def measured(self: outbox.NatsOutbox, since: int, patterns: list[str]) -> tuple[int, list[bytes]]:
            found = await make(self, since, patterns)
            made.append(self._making_seconds)
            return found

        began = time.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(outbox.NatsOutbox, "_snapshot", measured)
            for number in range(400):
                patterns = [subjects.NAMESPACE.all(), *(f"x{number}.{at}.>" for at in range(wire.PATTERNS_MOST - 1))]
                question = wire.SnapshotQuestion(wire.SCHEMA, "", 0, patterns)
                inbox = stranger.link.client.new_inbox()
                await stranger.link.publish(subjects.snapshot_of("resources"), wire.pack(question), reply=inbox)
            async with asyncio.timeout(60):
                while len(made) < 200:
                    await asyncio.sleep(0.01)
        assert sum(made) <= (time.monotonic() - began) / 2
        await box.say(subjects.NAMESPACE.of("m"), Namespace(name="m"))
        async with watching(reader, subjects.NAMESPACE) as told:
            await told.until_told(subjects.NAMESPACE.of("m"))


async def test_a_megabyte_fits_into_an_answer_and_one_that_does_not_is_refused(server: Server) -> None:
    async def rows(question: Dump) -> DumpRows:
        return DumpRows(node="n", rows=[{"text": "x" * 1000} for _ in range(question.limit)])

    async with buses(server, "service", "asker") as (service, asker):
        task = asyncio.create_task(service.answer(subjects.DUMP, "n", handler=rows))
        await asyncio.sleep(0.05)
        small = await asker.ask(subjects.DUMP, "n", message=Dump(table="ct", limit=1000))
        assert len(small.rows) == 1000
        with pytest.raises(Unanswered, match="limit"):
            await asker.ask(subjects.DUMP, "n", message=Dump(table="ct", limit=10_000))
        task.cancel()


async def test_a_bus_that_is_away_is_said(server: Server) -> None:
    async with buses(server, "asker") as (asker,):
        await server.kill()
        await asyncio.sleep(0.1)
        with pytest.raises(Unanswered, match=r"connect|answer"):
            await asker.ask(subjects.APPLY, message=Apply(documents=[]), timeout=0.5)


async def test_events_reach_those_who_listen_and_bad_ones_are_dropped(server: Server) -> None:
    async with buses(server, "node", "listener") as (node, listener):
        heard: list[tuple[str, AppliedRevision]] = []
        told = asyncio.Event()

        async def listen() -> None:
            async for subject, event in listener.watch_events(subjects.APPLIED.all(), AppliedRevision):
                heard.append((subject, event))
                told.set()

        task = asyncio.create_task(listen())
        await asyncio.sleep(0.05)
        event = AppliedRevision(node="n", revision={"resources": 1}, at=1.0)
        await node.link.publish(subjects.APPLIED.of("n"), b"\x92\x01")
        await node.publish_event(subjects.APPLIED.of("n"), event)
        async with asyncio.timeout(2):
            await told.wait()
        assert heard == [(subjects.APPLIED.of("n"), event)]
        task.cancel()
