"""What a reader of state is told, with the owner there."""

from __future__ import annotations

import asyncio
import time

import pytest

from bus import reader as reader_module
from bus import subjects
from bus.codec import encode
from bus.interface import Conflict
from bus.link import open_link
from bus.log import Log
from bus.messages.dataplane import Endpoint
from bus.messages.identity import Identity
from bus.messages.ipam import Block
from bus.messages.resources import Namespace, Pod
from bus.reader import Reader
from bus.server import Server
from bus.subjects import stored_of
from bus.telemetry import caused_by, counted
from bus.wire import Interest
from tests.bus.watcher import buses, watching


def namespace(number: int) -> tuple[str, Namespace]:
    return subjects.NAMESPACE.of(f"n{number}"), Namespace(name=f"n{number}")


def endpoint(node: str, pod: str) -> Endpoint:
    return Endpoint(
        node=node, namespace="default", pod=pod, address="10.0.0.1", mac="", interface="", interface_index=1,
        identity=0, state="ready",
    )  # fmt: skip


async def test_a_late_listener_learns_every_value(server: Server) -> None:
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("resources")
        for number in range(100):
            await outbox.say(*namespace(number))
        await outbox.unsay(namespace(7)[0])
        async with (
            watching(reader, subjects.NAMESPACE) as told,
            watching(reader, subjects.NAMESPACE, direct=True) as read,
        ):
            for watcher in (told, read):
                await watcher.until_revision({"resources": 102})
            assert outbox.position == 102
            assert told.values == read.values == outbox.items()
            assert len(told.values) == 99


async def test_ipv6_addresses_and_blocks_are_keys_like_any_other(server: Server) -> None:
    """Their colons and slashes mean nothing to NATS; a zone's percent sign is escaped."""
    texts = ["fd00::1", "::", "2001:db8::ffff", "fe80::1%eth0", "10.0.0.1"]
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("ipam")
        for text in texts:
            await outbox.claim(subjects.BLOCK.of(f"{text}/120"), Block(cidr=f"{text}/120", node="n"))
        held = await outbox.claim(subjects.BLOCK.of("fd00::1/120"), Block(cidr="fd00::1/120", node="other"))
        assert held == Block(cidr="fd00::1/120", node="n")
        async with watching(reader, subjects.BLOCK) as told, watching(reader, subjects.BLOCK, direct=True) as read:
            assert told.values == read.values == outbox.items()
            assert {subjects.BLOCK.parse(subject)[0] for subject in told.values} == {f"{text}/120" for text in texts}


async def test_more_values_than_one_message_holds_arrive(server: Server) -> None:
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("resources")
        large = {"text": "x" * 100_000}
        await asyncio.gather(
            *(outbox.say(subjects.NAMESPACE.of(f"n{n}"), Namespace(name=f"n{n}", manifest=large)) for n in range(30))
        )
        async with watching(reader, subjects.NAMESPACE) as told:
            assert told.values == outbox.items()
        async with watching(reader, subjects.NAMESPACE, direct=True) as read:
            assert read.values == outbox.items()


async def test_changes_arrive_in_order_and_saying_the_same_again_is_silent(server: Server) -> None:
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("resources")
        subject, message = namespace(1)
        async with watching(reader, subjects.NAMESPACE) as told:
            assert await outbox.say(subject, message)
            await told.until_values([subject])
            assert not await outbox.say(subject, message)
            await outbox.say(subject, Namespace(name="n1", labels={"a": "b"}))
            await told.until(lambda told: told.values[subject] != message)
            assert await outbox.unsay(subject)
            assert not await outbox.unsay(subject)
            await told.until_values([])
            assert [value for _, value in told.told] == [message, Namespace(name="n1", labels={"a": "b"}), None]


async def test_synced_comes_once_all_owners_are_read_and_stays(server: Server) -> None:
    async with buses(server, "owner", "reader") as (owner, reader):
        resources = await owner.own("resources")
        await resources.say(*namespace(1))
        identity = await owner.own("identity")
        identity.heard({"resources": 1, "dataplane": 0})
        async with watching(reader, subjects.NAMESPACE, subjects.IDENTITY) as told:
            await identity.say(subjects.IDENTITY.of("256"), Identity(number=256, labels={}))
            await told.until(lambda told: len(told.values) == 2)
            marks = [batch.synced for batch in told.batches]
            assert marks == sorted(marks) and marks[-1]
            assert all(not batch.revision for batch in told.batches if not batch.synced)


async def test_a_node_hears_only_what_it_asked_for_and_its_revision_advances_all_the_same(server: Server) -> None:
    async with buses(server, "owner", "reader") as (owner, reader):
        resources = await owner.own("resources")
        one = (subjects.POD, ("default",))
        async with watching(reader, one) as told, watching(reader, one, direct=True) as read:
            await resources.say(subjects.POD.of("other", "a"), Pod(namespace="other", name="a", uid=""))
            await resources.say(*namespace(1))
            for watcher in (told, read):
                await watcher.until_revision({"resources": 3})
                assert not watcher.values
            await resources.say(subjects.POD.of("default", "a"), Pod(namespace="default", name="a", uid=""))
            for watcher in (told, read):
                await watcher.until_revision({"resources": 4})
                assert list(watcher.values) == [subjects.POD.of("default", "a")]


async def test_a_log_is_read_whole_however_little_an_answer_holds(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer but the last says that more is left, and what is written meanwhile is read in its turn."""
    monkeypatch.setattr(reader_module, "MESSAGES_ASKED", 2)
    many = [namespace(number) for number in range(7)]
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("resources")
        for subject, message in many[:5]:
            await outbox.say(subject, message)
        async with watching(reader, subjects.NAMESPACE, subjects.POD, direct=True) as read:
            assert set(read.values) == {subject for subject, _ in many[:5]}
            for subject, message in many[5:]:
                await outbox.say(subject, message)
                await read.until_revision({"resources": outbox.position})
            assert set(read.values) == {subject for subject, _ in many}


async def test_values_that_overwrite_each_other_at_once_arrive(server: Server) -> None:
    """With the last one the server may say that another is still to come: one that was gone before its turn."""
    subject = subjects.ENDPOINT.of("n1", "default", "p")
    async with (
        buses(server, "reader") as (reader,),
        open_link(server.url, name="one") as one,
        open_link(server.url, name="other") as other,
    ):
        logs = [Log(link, "dataplane") for link in (one, other)]
        await logs[0].settled_info(create=True)
        async with watching(reader, subjects.ENDPOINT) as told:
            for number in range(50):
                bodies = [encode(endpoint("n1", f"{number}-{count}"), subject=subject) for count in range(4)]
                writing = [log.write(subject, body, expected=None) for body in bodies for log in logs]
                last = max(await asyncio.gather(*writing))
                await told.until_revision({"dataplane": last})


async def test_the_log_of_many_writers_is_read_by_itself(server: Server) -> None:
    async with buses(server, "node-1", "node-2", "reader") as (one, two, reader):
        mine = (subjects.ENDPOINT, ("node-1",))
        async with watching(reader, mine) as told:
            await one.publish_state(subjects.ENDPOINT.of("node-1", "default", "a"), endpoint("node-1", "a"))
            last = await two.publish_state(subjects.ENDPOINT.of("node-2", "default", "b"), endpoint("node-2", "b"))
            await told.until_revision({"dataplane": last})
            assert list(told.values) == [subjects.ENDPOINT.of("node-1", "default", "a")]
            await one.delete_state(subjects.ENDPOINT.of("node-1", "default", "a"))
            await told.until_values([])


async def test_what_an_owner_has_heard_travels_only_with_what_it_said_about_it(server: Server) -> None:
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("identity")
        async with watching(reader, subjects.IDENTITY) as told:
            assert told.revision == {"resources": 0, "dataplane": 0}
            for number in range(256, 300):
                await outbox.say(subjects.IDENTITY.of(str(number)), Identity(number=number, labels={}))
                outbox.heard({"resources": number, "dataplane": 1})
            await told.until_revision({"resources": 299, "dataplane": 1})
            held: set[str] = set()
            for batch in told.batches:
                held |= {change.subject for change in batch.changes}
                reach = batch.revision.get("resources", 0)
                assert {subjects.IDENTITY.of(str(number)) for number in range(256, reach + 1)} <= held
            outbox.heard({"resources": 400, "dataplane": 2})
            before = time.monotonic()
            await told.until_revision({"resources": 400, "dataplane": 2})
            assert time.monotonic() - before < 0.5


async def test_what_an_owner_has_heard_waits_for_a_value_that_it_only_found_when_its_write_lost(server: Server) -> None:
    """The next `say` of that value writes nothing, so nothing else marks where it came to be."""
    subject = subjects.IDENTITY.of("256")
    mine, heard = Identity(number=256, labels={"a": "1"}), {"resources": 9, "dataplane": 1}
    async with buses(server, "owner", "other", "reader") as (owner, other, reader):
        outbox = await owner.own("identity")
        await outbox.say(subject, Identity(number=256, labels={}))
        async with watching(reader, subjects.IDENTITY) as told:
            await told.until_told(subject)
            reading = outbox._tasks[0]  # it reads its log late
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await other.publish_state(subject, mine)
            with pytest.raises(Conflict):
                await outbox.say(subject, mine)
            assert not await outbox.say(subject, mine)
            outbox.heard(heard)
            await asyncio.sleep(1.2)  # a heartbeat or more
            assert told.values[subject] == mine or told.revision != heard


async def test_a_change_carries_its_time_and_trace_to_the_reader(server: Server) -> None:
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("resources")
        async with (
            watching(reader, subjects.NAMESPACE) as told,
            watching(reader, subjects.NAMESPACE, direct=True) as read,
        ):
            with caused_by(1234.5, trace):
                await outbox.say(*namespace(1))
            for watcher in (told, read):
                await watcher.until(lambda told: len(told.values) == 1)
                (change,) = watcher.batches[-1].changes
                assert (change.caused_at, change.trace, change.sequence) == (1234.5, trace, outbox.position)
        async with watching(reader, subjects.NAMESPACE) as late:
            (change,) = [change for batch in late.batches for change in batch.changes]
            assert (change.caused_at, change.trace) == (1234.5, trace)


async def test_a_slow_reader_is_told_the_latest_value_of_each_key_once(server: Server) -> None:
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("resources")
        batches = reader.watch_state(subjects.NAMESPACE)
        assert (await anext(batches)).synced
        for number in range(50):
            await outbox.say(subjects.NAMESPACE.of("n"), Namespace(name=str(number)))
        await asyncio.sleep(0.2)
        batch = await anext(batches)
        assert [change.message for change in batch.changes] == [Namespace(name="49")]


async def test_a_thousand_changes_reach_a_reader_within_a_few_batches(server: Server) -> None:
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("resources")
        async with watching(reader, subjects.NAMESPACE) as told:
            before = counted("bus_resync", owner="resources")
            await asyncio.gather(*(outbox.say(*namespace(number)) for number in range(1000)))
            await told.until(lambda told: len(told.values) == 1000)
            assert told.values == outbox.items()
            assert counted("bus_resync", owner="resources") == before


async def test_a_change_reaches_its_reader_within_milliseconds(server: Server) -> None:
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("resources")
        async with watching(reader, subjects.NAMESPACE) as told:
            taken = []
            for number in range(50):
                started = time.perf_counter()
                subject, message = namespace(number)
                await outbox.say(subject, message)
                await told.until_told(subject)
                taken.append(time.perf_counter() - started)
                await asyncio.sleep(0.012)
            assert sorted(taken)[len(taken) // 2] < 0.05, "the way through the owner is part of policy's 100 ms"


async def test_a_flood_of_changes_reaches_whoever_listens_to_the_owner(server: Server) -> None:
    """Deltas are cut while the owner is still reading its own log: none may claim more than it carries."""
    many = [namespace(number) for number in range(1000)]
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("resources")
        async with watching(reader, subjects.NAMESPACE) as told:
            await asyncio.gather(*(outbox.say(*each) for each in many))
            await told.until_values([subject for subject, _ in many], 30)
            await asyncio.gather(*(outbox.unsay(subject) for subject, _ in many))
            await told.until_values((), 30)


async def test_who_reads_one_nodes_keys_is_not_woken_by_what_others_write(server: Server) -> None:
    async with buses(server, "reader", "one", "other") as (reader, one, other):
        await one.ensure_streams()
        interest = Interest([subjects.ENDPOINT.all("one"), subjects.VOUCHED["dataplane"].of("one")])
        async with Reader.open(Log(reader.link, "dataplane"), interest) as reading, asyncio.timeout(15):
            for pod in range(5):
                await other.publish_state(
                    subjects.ENDPOINT.of("other", "default", f"p{pod}"), endpoint("other", f"p{pod}")
                )
            subject = subjects.ENDPOINT.of("one", "default", "p")
            await one.publish_state(subject, endpoint("one", "p"))
            first = await reading._stored.get()
            assert first is not None and first[1] is not None and first[1].subject == stored_of(subject)
            (answer,) = [each async for each in reading.all_of(subjects.ENDPOINT.all("one"), 1)]
            assert [entry.subject for entry in answer[0]] == [subject] and answer[1] == 6
