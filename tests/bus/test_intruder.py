"""Somebody has one node's credentials, and speaks NATS itself: nothing of it is heard as another's word.

Every call of JetStream's API, and every other subject that the node may or may not publish on, with every subject that
means something as the place for its answer or its delivery.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bus import subjects
from bus.accounts import OPERATOR, new_passwords, node_user, tenants, users
from bus.client import NatsBus, connect
from bus.codec import encode
from bus.link import Link, open_link
from bus.messages import Message
from bus.messages.dataplane import AppliedRevision
from bus.messages.identity import AddressIdentity
from bus.messages.resources import Applied, Apply, Document
from bus.natspy import Msg
from bus.server import Server, ServerSettings, User, free_port, running
from bus.services import BY_NAME
from bus.subjects import (
    LEASES,
    OWNERS,
    READING,
    delta_of,
    info_of,
    last_of,
    matches,
    read_of,
    snapshot_of,
    stream_of,
    word_of,
)
from bus.telemetry import counted
from bus.wire import Delta, Entry, pack
from tests.bus.watcher import buses, watching

NODES = ("a", "b")
DATAPLANE = BY_NAME["dataplane"]
VICTIM = subjects.ADDRESS.of("10.0.0.9")
OWN = "state.dataplane.endpoint.a.default.p"
RIGHT = AddressIdentity(address="10.0.0.9", identity=300, node="b", node_address="192.0.2.2")
MARK = b"by-the-intruder"
OPEN_ALL = {"kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "open"}, "spec": {"endpointSelector": {}}}

# nats-server's server/jetstream_api.go, all of it; S: a stream, C: a consumer
API = re.findall(
    r"\S+",
    """
INFO
STREAM.CREATE.S STREAM.UPDATE.S STREAM.NAMES STREAM.LIST STREAM.INFO.S STREAM.DELETE.S STREAM.PURGE.S
STREAM.SNAPSHOT.S STREAM.RESTORE.S STREAM.MSG.DELETE.S STREAM.MSG.GET.S STREAM.PEER.REMOVE.S STREAM.PEER.EVACUATE.S
STREAM.CANCEL_MOVE.S STREAM.LEADER.STEPDOWN.S DIRECT.GET.S DIRECT.GET.S.state.dataplane.endpoint.a.default.p
CONSUMER.CREATE.S CONSUMER.CREATE.S.C CONSUMER.CREATE.S.C.state.dataplane.endpoint.a.default.p
CONSUMER.DURABLE.CREATE.S.C CONSUMER.NAMES.S CONSUMER.LIST.S CONSUMER.INFO.S.C CONSUMER.DELETE.S.C CONSUMER.PAUSE.S.C
CONSUMER.MSG.NEXT.S.C CONSUMER.RESET.S.C CONSUMER.UNPIN.S.C CONSUMER.LEADER.STEPDOWN.S.C
META.LEADER.STEPDOWN SERVER.REMOVE SERVER.EVACUATE META.RESCUE ACCOUNT.PURGE.plexus ACCOUNT.STREAM.MOVE.plexus.S
ACCOUNT.STREAM.CANCEL_MOVE.plexus.S
""",
)


def changed_address() -> bytes:
    """What would give an address another identity, if it were a delta."""
    message = AddressIdentity(address="10.0.0.9", identity=1, node=MARK.decode(), node_address="192.0.2.1")
    return pack(Delta(1, "x", 0, 99, {}, [Entry(99, VICTIM, encode(message))]))


def opening_policy() -> bytes:
    return encode(Apply(documents=[Document(source=MARK.decode(), manifest=OPEN_ALL)]))


def api_bodies(stream: str, target: str) -> list[bytes]:
    """Questions to the API that would have the server send what was stored under `OWN` to `target`, or worse."""
    consumer = {
        "deliver_subject": target,
        "ack_policy": "none",
        "filter_subject": OWN,
        "name": "C",
        "description": MARK.decode(),
    }
    config = {
        "name": stream,
        "subjects": ["evil.>"],
        "sources": [{"name": stream_of("dataplane")}],
        "republish": {"src": ">", "dest": target},
        "description": MARK.decode(),
    }
    asked = [
        {"stream_name": stream, "config": consumer},
        config,
        {"last_by_subj": OWN},
        {"last_by_subj": OWN, "no_hdr": True},
        {"seq": 1, "next_by_subj": OWN, "batch": 5, "no_hdr": True},
        {"multi_last": [OWN]},
        {"deliver_subject": target, "config": config},
        {"seq": 1, "no_erase": False},
        {"filter": ">"},
    ]
    return [b"", *(json.dumps(each).encode() for each in asked)]


TARGETS = (
    *map(delta_of, OWNERS), *map(snapshot_of, OWNERS), "req.resources.apply", "req.resources.bind",
    "req.resources.podstatus.b", "req.resources.health.control", "req.dataplane.dump.b", "evt.dataplane.applied.b",
    "lease.resources", "lease.identity", VICTIM, "state.dataplane.endpoint.b.default.p", "state.dataplane.vouched.b",
    "state.resources.policy.CiliumClusterwideNetworkPolicy.%.open", "stored.identity.address.x",
    "_INBOX.identity.x", "_INBOX.node-b.x", "_INBOX.operator.x", "$JS.API.STREAM.PURGE.STATE_IDENTITY",
    "$JS.API.STREAM.DELETE.STATE_POLICY", "$JS.ACK.STATE_IDENTITY.C.1.1.1.1.1", "$JS.FC.STATE_IDENTITY.x",
)  # fmt: skip
HEADERS = {
    "Nats-Rollup": "all", "Nats-Trace-Dest": "delta.identity", "Nats-Request-Info": '{"acc":"plexus","svc":"plexus"}',
    "Nats-Stream": "STATE_IDENTITY", "Nats-Subject": VICTIM, "Nats-Sequence": "99", "Status": "204",
    "Nats-Expected-Last-Subject-Sequence": "0", "Nats-Schedule": "@every 1s", "Nats-Schedule-Target": VICTIM,
    "Nats-Batch-Id": "x",
}  # fmt: skip


@asynccontextmanager
async def overhearing(link: Link) -> AsyncIterator[list[Msg]]:
    """All that goes over the bus in the cluster's own account."""
    heard: list[Msg] = []
    subscription = await link.subscribe(">")

    async def listen() -> None:
        async for message in subscription.messages:
            heard.append(message)  # noqa: PERF401  # one by one: whoever looks meanwhile is to see them

    listening = asyncio.create_task(listen())
    await link.client.flush()
    yield heard
    listening.cancel()


async def everything(intruder: Link) -> None:
    """All that is tried, and the server has taken it."""
    streams = (stream_of("dataplane"), stream_of("identity"), LEASES)
    calls = [f"$JS.API.{call}" for call in API]
    reading = [call("S") for call in (read_of, last_of, info_of, word_of)]
    for target, stream, call in itertools.product(TARGETS, streams, (*calls, *reading)):
        if call == calls[0]:
            await intruder.client.flush(timeout=60)  # the server may end a connection that it cannot keep up with
        subject = ".".join(stream if token == "S" else token for token in call.split("."))
        for body in api_bodies(stream, target) if "S" in call.split(".") else [b"", b"{}"]:
            await intruder.publish(subject, body, reply=target)
    for target in TARGETS:
        for body in (changed_address(), opening_policy(), b""):
            for subject in (target, OWN, "req.resources.podstatus.a", *map(snapshot_of, OWNERS)):
                await intruder.publish(subject, body, reply=target)
                await intruder.publish(subject, body, reply=target, headers=HEADERS)
    await intruder.client.flush(timeout=60)
    await intruder.request(OWN, opening_policy(), timeout=60)


async def streams_of(operator: NatsBus) -> dict[str, tuple[object, ...]]:
    """Per stream what a stranger may not change: settings, age, and, but for its own log, what is in it."""
    found: dict[str, tuple[object, ...]] = {}
    for stream in map(stream_of, OWNERS):
        answer = await operator.link.api(info_of(stream))
        held = None if stream == stream_of("dataplane") else answer["state"]
        found[stream] = answer["config"], answer["created"], held, answer["state"]["consumer_count"]
    return found


@pytest.mark.parametrize("wall", ["permissions and account", "account"])
async def test_nothing_that_a_node_sends_comes_to_anyone_but_as_its_own_word(tmp_path: Path, wall: str) -> None:
    """Its user's permissions are one wall, its account another: without the first nothing more gets through."""
    passwords = new_passwords(NODES)
    nodes = tenants(NODES, passwords)
    if wall == "account":
        nodes = [replace(each, user=User(each.user.name, each.user.password)) for each in nodes]
    settings = ServerSettings(tmp_path / "nats", port=free_port(), users=users(passwords), tenants=nodes)
    asked: list[Message] = []

    async def applied(question: Message) -> Applied:
        asked.append(question)
        return Applied(revision=1)

    async with running(settings) as server, asyncio.timeout(300):

        def bus(name: str) -> AbstractAsyncContextManager[NatsBus]:
            return connect(server.url, name=name, user=name, password=passwords[name])

        async with (
            bus(OPERATOR) as operator,
            bus("resources") as resources,
            bus("identity") as identity,
            bus(DATAPLANE.user_on("b")) as other,
            open_link(
                server.url, name="x", user=DATAPLANE.user_on("a"), password=passwords[DATAPLANE.user_on("a")]
            ) as intruder,
        ):
            await resources.ensure_streams()
            addresses = await identity.own("identity")
            await addresses.say(VICTIM, RIGHT)
            await resources.own("resources")
            answering = [
                asyncio.create_task(resources.answer(request, handler=applied))
                for request in (subjects.APPLY, subjects.BIND, subjects.POD_STATUS)
            ]
            async with (
                identity.lease("identity", seconds=3) as held,
                watching(other, subjects.ADDRESS, subjects.POLICY) as there,
                watching(operator, subjects.ADDRESS, subjects.POLICY, subjects.ENDPOINT) as here,
                watching(other, subjects.ADDRESS, direct=True) as read,
            ):
                for body in (changed_address(), opening_policy()):
                    await intruder.request(OWN, body)
                before = await streams_of(operator)
                async with overhearing(operator.link) as heard:
                    await everything(intruder)
                    after = await streams_of(operator)
                assert len(heard) > len(TARGETS)
                assert not {
                    (message.subject, message.reply[:12], message.data[:40]) for message in heard if is_foreign(message)
                }
                assert before == after
                assert held.held
                assert not asked
                for watcher in (there, here, read):
                    assert watcher.told == [(VICTIM, RIGHT)]
            for task in answering:
                task.cancel()


def is_foreign(message: Msg) -> bool:
    """It bears the intruder's words, or an answer of the server to it, where these have no place."""
    own = [
        *node_user(DATAPLANE, "a", "").asks,
        *(call.replace("$1", "*") for call in READING.values()),
        "_R_.>",
        "$JS.EVENT.>",
    ]
    if any(matches(pattern, message.subject) for pattern in own):
        return False  # what it may say anyway; the way back into its own account; what the server tells of requests
    if message.subject.startswith("_INBOX.") and message.subject not in TARGETS:
        return False  # who reads the nodes' log is given what the intruder wrote there
    return MARK in message.data or (message.subject in TARGETS and message.data.startswith((b"{", b"+")))


async def test_what_a_stream_sends_is_heard_by_nobody_who_did_not_ask_for_it(server: Server) -> None:
    """The second wall: here everybody may do everything, and receivers look for themselves."""
    asked: list[Message] = []
    heard: list[object] = []

    async def applied(question: Message) -> Applied:
        asked.append(question)
        return Applied(revision=1)

    async def hear(bus: NatsBus) -> None:
        async for subject, event in bus.watch_events(subjects.APPLIED.all(), AppliedRevision):
            heard.append((subject, event))

    async with buses(server, "identity", "resources", "reader") as (identity, resources, reader):
        await resources.ensure_streams()
        addresses = await identity.own("identity")
        await addresses.say(VICTIM, RIGHT)
        listening = [
            asyncio.create_task(resources.answer(subjects.APPLY, handler=applied)),
            asyncio.create_task(hear(reader)),
        ]
        applied_event = encode(AppliedRevision(node="b", revision={"resources": 1}, at=1.0))
        words = {
            "delta.identity": changed_address(),
            "req.resources.apply": opening_policy(),
            "evt.dataplane.applied.b": applied_event,
        }
        async with watching(reader, subjects.ADDRESS) as told, watching(reader, subjects.ADDRESS, direct=True) as read:
            link = resources.link
            for bus in (resources, reader):
                await bus.link.client.flush()  # all that listen are known to the server
            before = counted("bus_foreign")
            for number, (target, body) in enumerate(words.items()):
                key = f"state.dataplane.endpoint.a.default.{number}"
                await link.request(key, body)
                config = {"deliver_subject": target, "ack_policy": "none", "filter_subject": key, "name": f"c{number}"}
                config |= {"deliver_group": "resources"} if target.startswith("req.") else {}
                question = {"stream_name": stream_of("dataplane"), "config": config}
                await link.api(f"$JS.API.CONSUMER.CREATE.{stream_of('dataplane')}.c{number}", question)
                for asking in ({"last_by_subj": key}, {"seq": 1, "next_by_subj": key, "batch": 1}):
                    await link.publish(read_of(stream_of("dataplane")), json.dumps(asking).encode(), reply=target)
                    await link.publish(last_of(stream_of("dataplane")), json.dumps(asking).encode(), reply=target)
                await link.publish(key, body, reply=target)
            await addresses.say(subjects.ADDRESS.of("10.0.0.10"), replace_address("10.0.0.10"))
            await reader.publish_event("evt.dataplane.applied.c", AppliedRevision(node="c", revision={}, at=1.0))
            for watcher in (told, read):
                await watcher.until(lambda told: len(told.values) == 2)
                assert watcher.values[VICTIM] == RIGHT
            async with asyncio.timeout(10):
                while counted("bus_foreign") < before + 3 * len(words) or not heard:
                    await asyncio.sleep(0.01)
        assert not asked
        assert heard == [("evt.dataplane.applied.c", AppliedRevision(node="c", revision={}, at=1.0))]
        for task in listening:
            task.cancel()


async def test_a_service_answers_to_inboxes_alone(server: Server) -> None:
    """Else it could be asked to say its words where they mean something."""

    async def applied(_: Message) -> Applied:
        return Applied(revision=1)

    async with buses(server, "resources", "stranger", "listener") as (resources, stranger, listener):
        await resources.own("resources")
        answering = asyncio.create_task(resources.answer(subjects.APPLY, handler=applied))
        async with overhearing(listener.link) as heard:
            async with asyncio.timeout(10):
                for subject in ("req.resources.apply", snapshot_of("resources")):
                    while not counted("bus_reply_refused", subject=subject):  # whoever answers may not listen yet
                        await stranger.link.publish(subject, opening_policy(), reply="evt.dataplane.applied.b")
                        await asyncio.sleep(0.01)
        assert not [message for message in heard if message.subject.startswith("evt.")]
        answering.cancel()


def replace_address(address: str) -> AddressIdentity:
    return AddressIdentity(address=address, identity=301, node="b", node_address="192.0.2.2")
