"""A user per service and per node: each can do its work, and says nothing in another's name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bus import subjects
from bus.accounts import OPERATOR, new_passwords, tenants, users
from bus.client import NatsBus, connect
from bus.interface import Refused, TurnedAway, Unanswered
from bus.messages.dataplane import Dump, DumpRows, Endpoint
from bus.messages.identity import Identity
from bus.messages.resources import Applied, Apply, Namespace
from bus.server import Server, ServerSettings, free_port, running
from bus.services import BY_NAME
from bus.subjects import DUMP
from tests.bus.watcher import watching

DATAPLANE = BY_NAME["dataplane"]
NODES = ("node-1", "node.2")  # a name that has to be escaped


def endpoint(node: str) -> Endpoint:
    return Endpoint(
        node=node, namespace="default", pod="a", address="10.0.0.1", mac="", interface="", interface_index=1,
        identity=0, state="ready",
    )  # fmt: skip


async def test_everyone_can_do_its_own_and_nothing_of_another(tmp_path: Path) -> None:
    passwords = new_passwords(NODES)
    settings = ServerSettings(
        tmp_path / "nats", port=free_port(), users=users(passwords), tenants=tenants(NODES, passwords)
    )

    def as_user(server: Server, name: str) -> object:
        return connect(server.url, name=name, user=name, password=passwords[name])

    async with (
        running(settings) as server,
        as_user(server, OPERATOR) as operator,  # type: ignore[attr-defined]
        as_user(server, "resources") as resources,  # type: ignore[attr-defined]
        as_user(server, "identity") as identity,  # type: ignore[attr-defined]
        as_user(server, DATAPLANE.user_on("node-1")) as node,  # type: ignore[attr-defined]
        as_user(server, DATAPLANE.user_on("node.2")) as other,  # type: ignore[attr-defined]
        asyncio.timeout(40),
    ):
        await resources.ensure_streams()
        async with resources.lease("resources") as held, identity.lease("identity"):
            assert held.held
            await _own_work(operator, resources, identity, node, other)
            await _refusals(resources, identity, node)


async def _own_work(operator: NatsBus, resources: NatsBus, identity: NatsBus, node: NatsBus, other: NatsBus) -> None:
    box = await resources.own("resources")
    await box.say(subjects.NAMESPACE.of("n"), Namespace(name="n"))
    numbers = await identity.own("identity")
    await numbers.claim(subjects.IDENTITY.of("256"), Identity(number=256, labels={}))
    numbers.heard({"resources": 1, "dataplane": 0})

    async def applied(_: Apply) -> Applied:
        return Applied(revision=1)

    answering = asyncio.create_task(resources.answer(subjects.APPLY, handler=applied))
    async with (
        watching(node, subjects.NAMESPACE, subjects.IDENTITY) as told,
        watching(node, subjects.NAMESPACE, direct=True) as read,
        watching(identity, subjects.ENDPOINT) as endpoints,
    ):
        assert set(told.values) == {subjects.NAMESPACE.of("n"), subjects.IDENTITY.of("256")}
        assert set(read.values) == {subjects.NAMESPACE.of("n")}
        await node.publish_state(subjects.ENDPOINT.of("node-1", "default", "a"), endpoint("node-1"))
        await other.publish_state(subjects.ENDPOINT.of("node.2", "default", "a"), endpoint("node.2"))
        await endpoints.until(lambda endpoints: len(endpoints.values) == 2)
        assert await operator.ask(subjects.APPLY, message=Apply(documents=[])) == Applied(revision=1)
    answering.cancel()


async def _refusals(resources: NatsBus, identity: NatsBus, node: NatsBus) -> None:
    async def refused(bus: NatsBus, subject: str) -> None:
        with pytest.raises(Refused, match="no permission"):
            await bus.link.request(subject, b"\x92\x01\x80", timeout=0.3)

    await refused(node, subjects.ENDPOINT.of("node.2", "default", "a"))
    await refused(node, subjects.NAMESPACE.of("n"))
    await refused(node, subjects.delta_of("resources"))
    await refused(node, subjects.APPLY.of())
    await refused(node, "$JS.API.STREAM.DELETE.STATE_DATAPLANE")
    await refused(node, "$JS.API.STREAM.PURGE.STATE_RESOURCES")
    await refused(node, "lease.resources")
    await refused(identity, subjects.NAMESPACE.of("n"))
    await refused(identity, subjects.delta_of("resources"))
    await refused(resources, subjects.ENDPOINT.of("node-1", "default", "a"))
    with pytest.raises(Refused):
        async with asyncio.timeout(5):
            await node.publish_state(subjects.ENDPOINT.of("node.2", "default", "b"), endpoint("node.2"))


async def test_a_wrong_password_is_said_and_gets_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = ServerSettings(tmp_path / "nats", port=free_port(), users=users(new_passwords([])))
    async with running(settings) as server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5), connect(server.url, name="x", user="identity", password="wrong"):
                raise AssertionError
        with pytest.raises(TurnedAway, match="check PLEXUS_BUS_USER and PLEXUS_BUS_PASSWORD"):
            async with asyncio.timeout(10), connect(server.url, name="x", user=OPERATOR, password="no", patient=False):
                raise AssertionError
    assert "check PLEXUS_BUS_USER and PLEXUS_BUS_PASSWORD" in caplog.text


async def test_a_node_outlives_answers_of_any_size_and_what_the_server_says_of_them(tmp_path: Path) -> None:
    """An answer of some MB comes; and a connection that the server ended for a fault is made again."""
    passwords = new_passwords(["a"])
    settings = ServerSettings(
        tmp_path / "nats", port=free_port(), users=users(passwords), tenants=tenants(["a"], passwords)
    )

    async def rows(question: Dump) -> DumpRows:
        return DumpRows(node="a", rows=[{"text": "x" * 1000} for _ in range(question.limit)])

    async with (
        asyncio.timeout(60),
        running(settings) as server,
        connect(server.url, name="o", user=OPERATOR, password=passwords[OPERATOR]) as operator,
        connect(server.url, name="n", user=DATAPLANE.user_on("a"), password=passwords[DATAPLANE.user_on("a")]) as node,
    ):
        answering = asyncio.create_task(node.answer(DUMP, "a", handler=rows))

        async def asked(limit: int) -> int:
            while True:
                try:
                    answer = await operator.ask(DUMP, "a", message=Dump(table="ct", limit=limit), timeout=5.0)
                except Unanswered as problem:
                    if "more than the bus takes" in str(problem):
                        return -1
                    await asyncio.sleep(0.05)
                else:
                    return len(answer.rows)

        assert [await asked(limit) for limit in (1, 3500, 1)] == [1, 3500, 1]
        reconnects = node.link.client.stats["reconnects"]
        await node.link.publish("evt.dataplane.applied.a", bytes(5 << 20))  # more than its account may send
        while node.link.client.stats["reconnects"] == reconnects:
            await asyncio.sleep(0.01)
        assert await asked(1) == 1
        answering.cancel()
