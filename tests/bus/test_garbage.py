"""Truncated and hostile bytes on every subject: counted, logged with it, dropped; what comes after is heard."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from bus import subjects
from bus.client import NatsBus
from bus.codec import encode
from bus.messages import Message
from bus.messages.dataplane import AppliedRevision, Endpoint
from bus.server import Server
from bus.services import HEALTH
from bus.subjects import OWNERS, STATES, Event, Request, State, delta_of, snapshot_of
from bus.telemetry import counted
from tests.bus.watcher import buses, watching
from tests.contract.samples import sample


def subject_of(state: State[Message], first: str) -> str:
    return state.of(*(first for _ in state.keys))


async def test_a_truncated_state_on_every_family_is_dropped_and_its_old_value_stays(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with buses(server, "writer", "reader") as (writer, reader):
        await writer.ensure_streams()
        boxes = [await writer.own(owner) for owner in OWNERS if owner != "dataplane"]
        wanted = {subject_of(state, "good"): sample(state.message) for state in STATES}
        for subject, message in wanted.items():
            await writer.publish_state(subject, message)
        async with watching(reader, *STATES) as told, watching(reader, *STATES, direct=True) as read:
            await told.until_is(wanted)
            before = counted("bus_undecodable")
            for state in STATES:
                whole = encode(sample(state.message))
                for subject in (subject_of(state, "good"), subject_of(state, "bad")):
                    for body in (whole[:-1], whole[: len(whole) // 2], b"", b"\xc1", whole + b"\x00"):
                        await writer.link.request(subject, body)
            await writer.link.request("state.resources.unheardof.x", encode(sample(STATES[0].message)))
            for state in STATES:
                subject = subject_of(state, "after")
                wanted[subject] = sample(state.message)
                await writer.publish_state(subject, wanted[subject])
            for watcher in (told, read):
                await watcher.until_is(wanted)
            assert counted("bus_undecodable") - before >= 2 * len(STATES)
            for state in STATES:
                assert subject_of(state, "bad") in caplog.text or any(
                    getattr(record, "fields", {}).get("subject") == subject_of(state, "bad")
                    for record in caplog.records
                )
        for box in boxes:
            assert subject_of(STATES[0], "bad") not in box.items()


async def test_a_truncated_question_on_every_subject_is_refused_with_a_reason(server: Server) -> None:
    requests = {value.head: value for value in vars(subjects).values() if isinstance(value, Request)}
    requests |= {value.head: value for value in HEALTH.values()}
    async with buses(server, "service", "asker") as (service, asker), asyncio.TaskGroup() as tasks:

        async def handler(_: Message) -> Message:
            raise AssertionError("garbage must not come this far")

        tokens = {head: tuple("x" for _ in request.keys) for head, request in requests.items()}
        answering = [
            tasks.create_task(service.answer(request, *tokens[head], handler=handler))
            for head, request in requests.items()
        ]
        await asyncio.sleep(0.1)
        for head, request in requests.items():
            whole = encode(sample(request.message))
            for body in (whole[:-1], b"", b"\xc1", whole + b"\x00"):
                reply = await asker.link.request(request.of(*tokens[head]), body)
                assert "does not decode" in (reply.headers or {})["Plexus-Refused"]
        for task in answering:
            task.cancel()


async def test_a_truncated_fact_on_every_subject_is_dropped_and_the_next_one_heard(server: Server) -> None:
    events = [value for value in vars(subjects).values() if isinstance(value, Event)]
    async with buses(server, "node", "listener") as (node, listener), asyncio.timeout(10):
        for event in events:
            subject = event.of(*("x" for _ in event.keys))
            heard = asyncio.ensure_future(anext(listener.watch_events(event.all(), event.message)))
            await asyncio.sleep(0.05)
            whole = encode(sample(event.message))
            before = counted("bus_undecodable", family=event.head)
            for body in (whole[:-1], b"", b"\xc1", whole + b"\x00"):
                await node.link.publish(subject, body)
            of_another = sample(event.message)
            await node.publish_event(subject, of_another)
            right = msgspec.structs.replace(of_another, node="x")
            await node.publish_event(subject, right)
            assert await heard == (subject, right)
            assert counted("bus_undecodable", family=event.head) == before + 5


async def test_garbage_between_owner_and_reader_stalls_nobody(server: Server) -> None:
    async with buses(server, "owner", "reader", "stranger") as (owner, reader, stranger):
        box = await owner.own("resources")
        async with watching(reader, subjects.NAMESPACE) as told:
            before = counted("bus_undecodable")
            for body in (b"", b"\xc1", b"\x96\x01", b"\x96\x09\xa0\x00\x00\x80\x90", b"x" * 1000):
                await stranger.link.publish(delta_of("resources"), body)
                await stranger.link.publish(snapshot_of("resources"), body, reply=stranger.link.client.new_inbox())
            namespace = sample(subjects.NAMESPACE.message)
            await box.say(subjects.NAMESPACE.of("n"), namespace)
            await told.until_values([subjects.NAMESPACE.of("n")])
            async with asyncio.timeout(2):
                while counted("bus_undecodable") < before + 8:
                    await asyncio.sleep(0.01)
        async with watching(reader, subjects.NAMESPACE) as late:
            assert late.values == {subjects.NAMESPACE.of("n"): namespace}


async def test_an_owner_whose_log_holds_garbage_starts_and_can_take_it_back(server: Server) -> None:
    async with buses(server, "writer", "owner") as (writer, owner):
        await writer.ensure_streams()
        subject = subjects.NAMESPACE.of("n")
        await writer.link.request(subject, b"\x92\x01")
        box = await owner.own("resources")
        assert box.items() == {} and box.subjects() == [subject]
        assert await box.unsay(subject)
        assert box.subjects() == []


STRANGE = (
    b"\xff", b"\xc3(", b"\x0c", b"\x0b", b"\x00", b"\x85", b"\x1f", "\ufffd".encode(), "\u2028".encode(),
    b"%ff", b"%70", b"*",
)  # fmt: skip


@pytest.mark.parametrize("strange", STRANGE, ids=repr)
async def test_a_subject_of_any_bytes_costs_its_writer_that_alone(server: Server, strange: bytes) -> None:
    """The server takes any bytes. Readers keep their connection, hear what comes after, and find nothing missing when
    they connect anew while such a key is there."""
    right = subjects.ENDPOINT.of("n", "default", "p")
    value = Endpoint(
        node="n", namespace="default", pod="p", address="10.0.0.1", mac="", interface="", interface_index=1,
        identity=0, state="ready",
    )  # fmt: skip
    fact = AppliedRevision(node="n", revision={}, at=1.0)
    heard: list[AppliedRevision] = []

    async def hear(bus: NatsBus) -> None:
        async for _, event in bus.watch_events(subjects.APPLIED.all(), AppliedRevision):
            heard.append(event)  # one by one: whoever waits is to see them

    async with buses(server, "node", "reader") as (node, reader):
        await node.ensure_streams()
        client = reader.link.client
        hearing = asyncio.create_task(hear(reader))
        async with watching(reader, subjects.ENDPOINT) as told:
            reconnects, replaced = client.stats["reconnects"], counted("bus_log_replaced")
            host, _, port = server.url.removeprefix("nats://").partition(":")
            _, raw = await asyncio.open_connection(host, int(port))
            raw.write(b'CONNECT {"verbose":false,"pedantic":false}\r\n')
            for subject in (
                b"state.dataplane.endpoint.n.default." + strange,
                b"state.dataplane.endpoint.n." + strange + b".p",
                b"evt.dataplane.applied." + strange,
                b"delta.identity" + strange,
                b"_INBOX." + strange,
            ):
                body = encode(value)
                raw.write(b"PUB %s %s %d\r\n%s\r\n" % (subject, b"reply." + strange, len(body), body))
            await raw.drain()
            for number in range(3):  # the last one after the reader connected anew
                value = msgspec.structs.replace(value, interface_index=number)
                await node.publish_state(right, value)
                await told.until_is({right: value})
                heard.clear()
                async with asyncio.timeout(10):
                    while not heard:  # facts go by another connection, which may come later
                        await node.publish_event(subjects.APPLIED.of("n"), fact)
                        await asyncio.sleep(0.01)
                assert client.stats["reconnects"] == reconnects
                if number == 1:
                    await client.force_reconnect()
                    reconnects += 1
            assert counted("bus_log_replaced") == replaced
        raw.close()
        hearing.cancel()
