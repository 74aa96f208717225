"""One node that says too much is heard no more than another, and is named."""

from __future__ import annotations

import asyncio

import pytest

from bus import bounds, subjects, view
from bus.bounds import KEYS
from bus.client import NatsBus
from bus.codec import encode
from bus.control import run_control
from bus.log import Log
from bus.messages.dataplane import Endpoint
from bus.server import Server
from services.identity.model import IdentityModel
from tests.bus.watcher import buses, watching


def endpoint(node: str, pod: str) -> Endpoint:
    return Endpoint(
        node=node, namespace="default", pod=pod, address="10.0.0.1", mac="", interface="", interface_index=1,
        identity=0, state="ready",
    )  # fmt: skip


class Report:
    """What a service would show."""

    def __init__(self) -> None:
        self.shown: dict[str, str] = {}
        self.changed = asyncio.Event()

    def report(self, **_: object) -> None: ...

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        self.shown[name] = detail
        self.changed.set()

    async def until(self, name: str, text: str) -> None:
        async with asyncio.timeout(20):
            while text != self.shown.get(name):
                self.changed.clear()
                await self.changed.wait()


async def test_a_node_with_thousands_of_keys_is_heard_to_its_bound_and_others_at_once(server: Server) -> None:
    many = [(subjects.ENDPOINT.of("loud", "default", f"p{n}"), endpoint("loud", f"p{n}")) for n in range(KEYS + 200)]
    report = Report()
    async with buses(server, "loud", "quiet", "reader", "identity") as (loud, quiet, reader, identity):
        await quiet.ensure_streams()
        control = asyncio.create_task(run_control(identity, IdentityModel(), report=report))
        async with watching(reader, subjects.ENDPOINT) as told:
            await asyncio.gather(*(loud.publish_state(subject, message) for subject, message in many))
            mine = subjects.ENDPOINT.of("quiet", "default", "p")
            await quiet.publish_state(mine, endpoint("quiet", "p"))
            await told.until_told(mine)
            over = f"200 keys beyond {KEYS}, which do not count"
            await told.until(
                lambda told: told.batches[-1].over == {"loud": over}
            )  # after writes that were repeated, too
            assert len(told.values) == KEYS + 1
            await report.until("nodes within bounds", f"loud: {over}")
            await asyncio.gather(*(loud.delete_state(subject) for subject, _ in many[:300]))
            await told.until(lambda told: not told.batches[-1].over)
            await report.until("nodes within bounds", "")
            await told.until_values({mine, *(subject for subject, _ in many[300:])})
        control.cancel()


async def test_a_node_that_changes_without_end_is_told_after_the_others(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "CHANGES", 50)
    monkeypatch.setattr(bounds, "CHANGES_PER_SECOND", 0.0)
    many = [(subjects.ENDPOINT.of("loud", "default", f"p{n}"), endpoint("loud", f"p{n}")) for n in range(200)]
    async with buses(server, "loud", "quiet", "reader") as (loud, quiet, reader):
        await quiet.ensure_streams()
        async with watching(reader, subjects.ENDPOINT) as told:
            await asyncio.gather(*(loud.publish_state(subject, message) for subject, message in many))
            mine = subjects.ENDPOINT.of("quiet", "default", "p")
            sequence = await quiet.publish_state(mine, endpoint("quiet", "p"))
            await told.until_told(mine)
            assert len(told.values) <= 51, "what was said before it, and too fast, waits"
            await told.until(lambda told: told.revision == {"dataplane": sequence})  # and nobody is held up by that
            assert told.batches[-1].over == {"loud": "150 changes beyond 0 a second wait"}
            monkeypatch.setattr(bounds, "CHANGES_PER_SECOND", 1e6)
            await told.until(lambda told: not told.batches[-1].over)
            assert set(told.values) == {mine, *(subject for subject, _ in many)}


async def publish_short(node: NatsBus, subject: str, body: bytes, seconds: int) -> None:
    """As whoever speaks to the server himself may: a message that the server forgets by itself."""
    headers = {"Nats-TTL": str(seconds)} | ({} if body else {"Plexus-Deleted": "1"})
    await node.link.request(subject, body, headers=headers)


async def until_gone(bus: NatsBus, subject: str) -> None:
    async with asyncio.timeout(10):
        while await Log(bus.link, "dataplane").last(subject) is not None:
            await asyncio.sleep(0.05)


async def test_a_key_that_the_server_forgets_by_itself_makes_no_reader_doubt_the_others(server: Server) -> None:
    """It was the last of the log, and the reader loses its connection; or it stood in the place of an honest value."""
    async with buses(server, "loud", "quiet", "reader") as (loud, quiet, reader):
        await quiet.ensure_streams()
        mine, new = (subjects.ENDPOINT.of("quiet", "default", pod) for pod in "pq")
        short = subjects.ENDPOINT.of("loud", "default", "short")
        await quiet.publish_state(mine, endpoint("quiet", "p"))
        async with watching(reader, subjects.ENDPOINT) as told:
            await told.until_values({mine})
            begun = len(told.batches)
            for before in (False, True):
                if before:
                    await loud.publish_state(short, endpoint("loud", "short"))
                    await told.until_told(short)
                await publish_short(loud, short, encode(endpoint("loud", "short")), 1)
                await until_gone(reader, short)
                await reader.link.client.force_reconnect()
                await quiet.publish_state(new, endpoint("quiet", "q"))
                await told.until_values({mine, new})
                await quiet.delete_state(new)
                await told.until_values({mine})
            assert not any(batch.over or batch.lost for batch in told.batches[begun:])


async def test_what_a_full_reading_passed_over_is_heard_when_there_is_room(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "KEYS", 20)
    monkeypatch.setattr(view, "HELD_MOST", 30)
    many = [(subjects.ENDPOINT.of("loud", "default", f"p{n}"), endpoint("loud", f"p{n}")) for n in range(50)]
    async with buses(server, "loud", "reader") as (loud, reader):
        await loud.ensure_streams()
        for subject, message in many:
            await loud.publish_state(subject, message)
        empty = subjects.ENDPOINT.of("loud", "default", "empty")  # is no value, and is not read again and again
        await loud.link.request(empty, b"")
        async with watching(reader, subjects.ENDPOINT) as told:
            await told.until(lambda told: len(told.values) == 20 and bool(told.batches[-1].over))
            for subject, _ in many[:40]:
                await loud.delete_state(subject)
            await told.until_values({subject for subject, _ in many[40:]})
            await told.until(lambda told: not told.batches[-1].over)
