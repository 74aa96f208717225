"""Servers and owners die, links break, messages get lost: in the end every reader holds what the log says."""

from __future__ import annotations

import asyncio
import random
import shutil
from contextlib import AsyncExitStack

import pytest

from bus import subjects, wire
from bus.client import NatsBus
from bus.interface import Outbox
from bus.journal import last_word
from bus.link import Link
from bus.messages import Message
from bus.messages.dataplane import Endpoint
from bus.messages.resources import Namespace
from bus.server import Server
from bus.subjects import delta_of, stream_of
from bus.telemetry import counted
from bus.testing import first_synced
from tests.bus.watcher import Watcher, buses, watching

KEYS = 40


def subject(number: int) -> str:
    return subjects.NAMESPACE.of(f"n{number}")


async def write_at_random(outbox: Outbox, until: asyncio.Event, seed: int) -> int:
    """Say and take back until told to stop; returns how many writes there were."""
    chance = random.Random(seed)
    writes = 0
    while not until.is_set():
        number = chance.randrange(KEYS)
        if chance.random() < 0.3:
            await outbox.unsay(subject(number))
        else:
            await outbox.say(subject(number), Namespace(name=f"n{number}", labels={"at": str(writes)}))
        writes += 1
        await asyncio.sleep(0.001)
    return writes


async def log_of_resources(bus: NatsBus) -> dict[str, Message]:
    """What the log holds, read anew by a connection that knows nothing."""
    values, _ = await first_synced(bus.watch_state(subjects.NAMESPACE, direct=True))
    return values


async def converge(watchers: list[Watcher], wanted: dict[str, Message]) -> None:
    for watcher in watchers:
        await watcher.until_is(wanted)


async def test_a_server_killed_under_writes_leaves_every_reader_with_what_the_log_says(server: Server) -> None:
    async with buses(server, "owner", "one", "two", "fresh") as (owner, one, two, fresh):
        outbox = await owner.own("resources")
        async with (
            watching(one, subjects.NAMESPACE) as told,
            watching(one, subjects.NAMESPACE, direct=True) as read,
            watching(two, (subjects.NAMESPACE, ("n1",))) as narrow,
        ):
            stop = asyncio.Event()
            writing = asyncio.create_task(write_at_random(outbox, stop, seed=1))
            for _ in range(3):
                await asyncio.sleep(0.5)
                await server.kill()
                await asyncio.sleep(0.1)
                await server.start()
            await asyncio.sleep(0.5)
            stop.set()
            assert await writing > 100
            wanted = await log_of_resources(fresh)
            assert wanted == outbox.items()
            await converge([told, read], wanted)
            await converge([narrow], {key: value for key, value in wanted.items() if key == subject(1)})


async def test_readers_go_on_with_the_log_while_its_owner_is_away_and_back_to_it_afterwards(server: Server) -> None:
    async with buses(server, "reader", "second") as (reader, second), AsyncExitStack() as stack:
        async with buses(server, "owner") as (owner,):
            first = await owner.own("resources")
            told = await stack.enter_async_context(watching(reader, subjects.NAMESPACE))
            await first.say(subject(1), Namespace(name="first"))
            await told.until_values([subject(1)])
        direct = counted("bus_direct", owner="resources")
        await second.publish_state(subject(2), Namespace(name="nobody owns this now"))
        await told.until_values([subject(1), subject(2)])
        assert counted("bus_direct", owner="resources") > direct
        again = await second.own("resources")
        snapshots = counted("bus_snapshots", owner="resources")
        await again.say(subject(3), Namespace(name="second"))
        await told.until_values([subject(1), subject(2), subject(3)])
        await told.until_revision({"resources": again.position})
        async with asyncio.timeout(5):
            while counted("bus_snapshots", owner="resources") == snapshots:
                await asyncio.sleep(0.05)
        assert [change for change, _ in told.told] == [subject(1), subject(2), subject(3)]


async def test_a_lost_delta_is_noticed_by_the_next_message_and_only_what_changed_is_told(server: Server) -> None:
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("resources")
        await outbox.say(subject(1), Namespace(name="n1"))
        async with watching(reader, subjects.NAMESPACE) as told:
            before = counted("bus_resync", owner="resources")
            publish = owner.link.publish

            async def lose(to: str, *args: object, **kwargs: object) -> None:
                if to != delta_of("resources"):
                    await publish(to, *args, **kwargs)  # type: ignore[arg-type]

            owner.link.publish = lose  # type: ignore[method-assign,assignment]
            await outbox.say(subject(2), Namespace(name="n2"))
            await asyncio.sleep(0.05)
            owner.link.publish = publish  # type: ignore[method-assign]
            await outbox.say(subject(3), Namespace(name="n3"))
            await told.until_values([subject(1), subject(2), subject(3)])
            assert counted("bus_resync", owner="resources") == before + 1
            assert [change for change, _ in told.told] == [subject(1), subject(2), subject(3)]


async def test_a_lost_last_delta_is_noticed_by_the_heartbeat(server: Server) -> None:
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("resources")
        async with watching(reader, subjects.NAMESPACE) as told:
            last = outbox.position
            name = outbox._log_name()
            heartbeat = wire.Delta(wire.SCHEMA, name, last + 5, last + 5, {"resources": last + 5}, [])
            before = counted("bus_resync", owner="resources")
            await owner.link.publish(delta_of("resources"), wire.pack(heartbeat))
            async with asyncio.timeout(3):
                while counted("bus_resync", owner="resources") == before:
                    await asyncio.sleep(0.01)
            await outbox.say(subject(1), Namespace(name="n1"))
            await told.until_values([subject(1)])


async def test_a_reader_whose_link_broke_is_told_what_changed_meanwhile(server: Server) -> None:
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("resources")
        for number in range(5):
            await outbox.say(subject(number), Namespace(name=f"n{number}"))
        async with (
            watching(reader, subjects.NAMESPACE) as told,
            watching(reader, subjects.NAMESPACE, direct=True) as read,
        ):
            breaking = asyncio.create_task(reader.link.client.force_reconnect())
            await outbox.unsay(subject(0))
            await outbox.say(subject(9), Namespace(name="n9"))
            await breaking
            for watcher in (told, read):
                await watcher.until_values([subject(number) for number in (1, 2, 3, 4, 9)])
                assert len(watcher.told) == 7


async def test_a_log_that_was_lost_and_made_anew_replaces_what_readers_hold(server: Server) -> None:
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("resources")
        for number in range(5):
            await outbox.say(subject(number), Namespace(name=f"n{number}"))
        async with (
            watching(reader, subjects.NAMESPACE) as told,
            watching(reader, subjects.NAMESPACE, direct=True) as read,
        ):
            await server.kill()
            shutil.rmtree(server.settings.store / "jetstream")
            await server.start()
            for watcher in (told, read):
                await watcher.until_values([], seconds=20)
            await outbox.say(subject(7), Namespace(name="n7"))
            for watcher in (told, read):
                await watcher.until_values([subject(7)])
                await watcher.until_revision({"resources": outbox.position})


async def test_a_log_that_went_back_is_read_anew(server: Server) -> None:
    """A server that lost its last messages, as one without sync_interval may; here its store is put back by hand."""
    async with buses(server, "owner", "reader", "fresh") as (owner, reader, fresh):
        outbox = await owner.own("resources")
        await outbox.say(subject(1), Namespace(name="n1"))
        await server.stop()
        store, kept = server.settings.store / "jetstream", server.settings.store / "kept"
        shutil.copytree(store, kept)
        await server.start()
        async with (
            watching(reader, subjects.NAMESPACE) as told,
            watching(reader, subjects.NAMESPACE, direct=True) as read,
        ):
            await outbox.say(subject(1), Namespace(name="will be lost"))
            await outbox.say(subject(2), Namespace(name="n2"))
            for watcher in (told, read):
                await watcher.until_values([subject(1), subject(2)])
            await server.kill()
            shutil.rmtree(store)
            kept.rename(store)
            await server.start()
            for watcher in (told, read):
                await watcher.until_is({subject(1): Namespace(name="n1")})
            await outbox.say(subject(3), Namespace(name="n3"))
            wanted = await log_of_resources(fresh)
            await converge([told, read], wanted)


async def test_a_watcher_away_for_longer_than_deletions_are_kept_drops_what_is_gone(server: Server) -> None:
    async with buses(server, "owner", "reader") as (owner, reader):
        outbox = await owner.own("resources")
        await outbox.say(subject(1), Namespace(name="n1"))
        await outbox.say(subject(2), Namespace(name="n2"))
        async with watching(reader, subjects.NAMESPACE) as told:
            await reader.link.client._process_op_err(ConnectionError("cut"))
            await outbox.unsay(subject(1))
            outbox._table.forget_deletions(before=1e12)  # an hour passes
            await told.until_values([subject(2)])


async def test_that_nobody_has_told_is_not_taken_for_there_is_none(server: Server) -> None:
    """Whoever hears of an owner for the first time waits for it; who looks at the log itself sees what is there."""
    families = (subjects.NAMESPACE, subjects.IDENTITY, subjects.BLOCK)
    async with buses(server, "reader", "owner") as (reader, owner):
        waiting = Watcher()
        reading = asyncio.create_task(waiting.read(reader.watch_state(*families)))
        try:
            async with asyncio.timeout(5), watching(reader, *families, direct=True) as direct:
                assert direct.values == {}
            for name in ("resources", "identity", "ipam"):
                assert not waiting.synced.is_set()
                await owner.own(name)
            async with asyncio.timeout(5):
                await waiting.synced.wait()
            assert waiting.values == {}
        finally:
            reading.cancel()


async def test_who_begins_with_an_older_copy_of_a_log_waits_for_its_owner(server: Server) -> None:
    """As a node that starts before the service whose log was put back: by its own memory it cannot know that."""
    async with buses(server, "first", "second", "reader", "witness") as (first, second, reader, witness):
        await first.ensure_streams()
        outbox = await first.own("resources")
        await outbox.say(subject(1), Namespace(name="n1"))
        await outbox.close()
        await server.stop()
        log, kept = (
            server.settings.store / f"jetstream/$G/streams/{stream_of('resources')}",
            server.settings.store / "kept",
        )
        shutil.copytree(log, kept)
        await server.start()
        outbox = await second.own("resources")  # which vouches for it
        await outbox.say(subject(2), Namespace(name="n2"))
        async with asyncio.timeout(10):
            while await last_word(second.link, "resources") != outbox._number:
                await asyncio.sleep(0.01)
        await outbox.close()
        await server.stop()
        shutil.rmtree(log)
        kept.rename(log)
        await server.start()
        waiting = Watcher()
        reading = asyncio.create_task(waiting.read(reader.watch_state(subjects.NAMESPACE)))
        try:
            for _ in range(3):  # whoever asks for the log as it is gets it
                async with watching(witness, subjects.NAMESPACE, direct=True) as direct:
                    assert set(direct.values) == {subject(1)}
            assert not waiting.synced.is_set()
            outbox = await second.own("resources", vouch=False)
            assert await outbox.restore() == 1
            await outbox.vouch()
            await waiting.until_values([subject(1), subject(2)])
            assert len(waiting.told) == 2
        finally:
            reading.cancel()


async def test_a_log_that_is_lost_while_its_owner_asks_for_its_last_word_is_not_vouched_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the word would be in the new log, which is empty, and whoever reads it would take everything for gone."""
    entered, go = asyncio.Event(), asyncio.Event()

    async def slow(link: Link, owner: str) -> int:
        entered.set()
        await go.wait()
        return await last_word(link, owner)

    async with buses(server, "owner", "reader") as (owner, reader):
        await owner.ensure_streams()
        outbox = await owner.own("resources")
        await outbox.say(subject(1), Namespace(name="n1"))
        await outbox.close()
        async with watching(reader, subjects.NAMESPACE) as told:
            await told.until_values([subject(1)])
            outbox = await owner.own("resources", vouch=False)
            monkeypatch.setattr("bus.outbox.last_word", slow)
            vouching = asyncio.create_task(outbox.vouch())
            await entered.wait()
            losses = outbox.losses
            await owner.link.api(f"$JS.API.STREAM.DELETE.{stream_of('resources')}")
            async with asyncio.timeout(10):
                await outbox.lost(losses)
            go.set()
            await vouching
            assert outbox.body(subjects.VOUCHED["resources"].of("resources")) is None
            await outbox.say(subject(1), Namespace(name="n1"))
            await outbox.vouch()
            await outbox.say(subject(2), Namespace(name="n2"))
            await told.until_values([subject(1), subject(2)])
            assert [each for each in told.told if each[1] is None] == []


async def test_the_journal_keeps_what_the_log_has_replaced(server: Server) -> None:
    async with buses(server, "owner") as (owner,):
        await owner.ensure_streams()
        outbox = await owner.own("resources")

        async def journal_holds(wanted: int) -> None:
            async with asyncio.timeout(10):
                while (await owner.link.api(f"$JS.API.STREAM.INFO.{subjects.JOURNAL}"))["state"]["messages"] < wanted:
                    await asyncio.sleep(0.02)

        await outbox.say(subject(1), Namespace(name="one"))
        await journal_holds(2)  # with the owner's vouching
        await outbox.say(subject(1), Namespace(name="two"))
        await journal_holds(3)
        await outbox.unsay(subject(1))
        await journal_holds(4)
        assert (await owner.link.api(f"$JS.API.STREAM.INFO.{stream_of('resources')}"))["state"]["messages"] == 2
        for number in range(3):  # a node's keys are not in it, or they could push out all else
            await owner.publish_state(subjects.ENDPOINT.of("n", "default", "p"), endpoint("n", f"p{number}"))
        await outbox.say(subject(2), Namespace(name="three"))
        await journal_holds(5)
        info = await owner.link.api(f"$JS.API.STREAM.INFO.{subjects.JOURNAL}", {"subjects_filter": ">"})
        assert {each.split(".")[1] for each in info["state"]["subjects"]} == {"resources"}


def endpoint(node: str, pod: str) -> Endpoint:
    return Endpoint(
        node=node, namespace="default", pod=pod, address="10.0.0.1", mac="", interface="", interface_index=1,
        identity=0, state="ready",
    )  # fmt: skip


async def test_the_server_keeps_no_numbers_of_messages(server: Server) -> None:
    """Of any length, for two minutes each, if it were left to it."""
    async with buses(server, "owner") as (owner,):
        await owner.ensure_streams()
        names = (await owner.link.api("$JS.API.STREAM.NAMES"))["streams"]
        assert len(names) == len(subjects.OWNERS) + 2
        for name in names:
            info = await owner.link.api(f"$JS.API.STREAM.INFO.{name}")
            assert info["config"]["duplicate_window"] == 100_000_000, name


async def test_a_log_whose_oldest_key_is_written_again_while_nobody_reads_has_lost_nothing(server: Server) -> None:
    """Its first sequence goes up past what a reader knows; what the reader has not read yet explains it. Nobody has a
    reason to vouch, so a reader that waited for that would wait for ever."""
    async with buses(server, "node", "reader") as (node, reader):
        await node.ensure_streams()
        first, second = (subjects.ENDPOINT.of("n", "default", pod) for pod in "ab")
        await node.publish_state(first, endpoint("n", "a"))
        await node.publish_state(second, endpoint("n", "b"))
        async with watching(reader, subjects.ENDPOINT) as told:
            before = counted("bus_log_replaced")
            breaking = asyncio.create_task(reader.link.client.force_reconnect())
            await node.publish_state(first, endpoint("n", "a"))
            last = await node.publish_state(second, endpoint("n", "b"))
            await breaking
            await told.until_revision({"dataplane": last})
            for number in range(300):  # and while somebody reads who cannot keep up
                last = await node.publish_state((first, second)[number % 2], endpoint("n", "ab"[number % 2]))
            await told.until_revision({"dataplane": last})
            assert counted("bus_log_replaced") == before
            assert [each for each in told.told if each[1] is None] == []
