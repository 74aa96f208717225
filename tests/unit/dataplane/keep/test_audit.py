"""What someone else did to a map is noticed, named, told and put back; what nobody touched costs no comparison."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from bus import subjects
from bus.digest import Digests
from bus.messages import Message
from bus.messages.dataplane import Health
from bus.telemetry import counted
from services.dataplane.node import Node
from services.dataplane.shapes.layouts import NodeState, in_words
from tests.unit.dataplane.fake_kernel import MemoryMap
from tests.unit.dataplane.test_node import Machine, until

MAPS = ("endpoints", "ipcache", "services", "backends")


@pytest.fixture(autouse=True)
def told_until_it_is_seen_to_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.dataplane.keep.audit.TOLD_SECONDS", 0.0)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.populate()
    made.say_service("web", "10.96.0.1")
    return made


def wrong(health: Health) -> dict[str, str]:
    return {check.name: check.detail for check in health.checks if not check.ok}


async def asked(node: Node) -> dict[str, str]:
    """What is not well, by a health that somebody asks for."""
    assert node.service.compare is not None
    await node.service.compare()
    return wrong(node.service.health())


async def started(machine: Machine, node: Node) -> None:
    await until(lambda: node.service.is_ready)
    await machine.add()
    await until(lambda: (said := machine.said()) and said.state == "ready")
    await until(lambda: machine.maps.memory["services"].entries)


@pytest.mark.parametrize("table", MAPS)
@pytest.mark.parametrize("deed", ["removed", "changed", "added"])
async def test_an_entry_that_someone_else_touched_is_told_and_put_back(machine: Machine, table: str, deed: str) -> None:
    async with machine.running() as node:
        await started(machine, node)
        assert await asked(node) == {}
        entries = machine.maps.memory[table].entries
        before = dict(entries)
        key = min(entries)
        if deed == "removed":
            del entries[key]
        elif deed == "changed":
            entries[key] = bytes(len(entries[key]))
        else:
            entries[key := b"\x7f" * len(key)] = bytes(len(entries[next(iter(entries))]))
        drift, named = counted("drift", kind="map"), counted("map_differences", map=table)
        problem = await asked(node)
        assert set(problem) == {"drift"}
        assert problem["drift"].startswith(f"{table} did not hold {in_words(table, key)} as written, at ")
        assert entries == before, "put back by the same look"
        assert (counted("drift", kind="map"), counted("map_differences", map=table)) == (drift + 1, named + 1)
        assert await asked(node) == {}, "seen to be right again"


@pytest.mark.parametrize("by", [-1, 1, 7])
async def test_an_epoch_that_someone_else_set_is_told_and_goes_beyond_both(machine: Machine, by: int) -> None:
    """Set back, connections that policy has ended would go on; set ahead, those that it ends next."""
    async with machine.running() as node:
        await started(machine, node)
        assert await asked(node) == {}
        entries = machine.maps.memory["node_state"].entries
        before = NodeState.unpack(entries[bytes(4)])
        entries[bytes(4)] = before._replace(epoch=before.epoch + by).pack()
        drift = counted("drift", kind="map")
        problem = await asked(node)
        assert set(problem) == {"drift"}
        assert problem["drift"].startswith("node_state did not hold the epoch as written, at ")
        beyond = max(before.epoch, before.epoch + by) + 1
        assert NodeState.unpack(entries[bytes(4)]) == NodeState(beyond, before.seed, beyond, beyond, beyond)
        assert counted("drift", kind="map") == drift + 1
        assert await asked(node) == {}


async def test_no_revision_is_told_while_a_map_is_not_seen_to_be_right(machine: Machine) -> None:
    async with machine.running() as node:
        await started(machine, node)
        await until(lambda: node.service.revision)
        machine.maps.memory["services"].entries.clear()
        assert "drift" in await asked(node)
        before = dict(node.service.revision)
        machine.say_service("more", "10.96.0.2")
        await until(lambda: len(machine.maps.memory["services"].entries) == 2)
        await asyncio.sleep(0.02)
        assert node.service.revision == before
        assert await asked(node) == {}
        assert node.service.revision["resources"] >= before["resources"]


async def test_a_map_that_nobody_touched_is_not_read_entry_by_entry(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with machine.running() as node:
        await started(machine, node)
        await asked(node)
        await asked(node)

        async def refuse(name: str) -> dict[bytes, bytes]:
            raise AssertionError(name)

        with monkeypatch.context() as patched:
            patched.setattr(node.maps, "read", refuse)
            await node.audit.look()
        machine.say_service("more", "10.96.0.2")
        await until(lambda: len(machine.maps.memory["services"].entries) == 2)
        assert await asked(node) == {}


async def test_a_difference_is_told_for_some_seconds_though_it_is_mended(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.dataplane.keep.audit.TOLD_SECONDS", 3600.0)
    async with machine.running() as node:
        await started(machine, node)
        machine.maps.memory["services"].entries.clear()
        first = await asked(node)
        assert "drift" in first
        assert await asked(node) == first


async def test_a_clock_that_goes_back_makes_nothing_be_told_for_longer(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with machine.running() as node:
        await started(machine, node)
        machine.maps.memory["services"].entries.clear()
        assert "drift" in await asked(node)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now - 3600)
        assert await asked(node) == {}


async def test_what_cannot_be_put_back_stays_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    async with machine.running() as node:
        await started(machine, node)
        await asked(node)
        found = machine.maps.memory["services"]
        with monkeypatch.context() as broken:
            broken.setattr(MemoryMap, "set_many", refuse_write)
            found.entries.clear()
            assert "drift" in await asked(node)
            assert "drift" in await asked(node)
        await node.heal.everything()
        assert found.entries
        assert await asked(node) == {}


def refuse_write(self: MemoryMap, entries: object) -> int:
    raise PermissionError(1, "no")


async def test_who_asks_waits_for_a_look_that_began_after_they_asked(machine: Machine) -> None:
    async with machine.running() as node:
        await started(machine, node)
        looks = 0
        mark = node.audit._mark

        async def counting(name: str) -> bytes:
            nonlocal looks
            looks += name == "ipcache"
            return await mark(name)

        node.audit._mark = counting  # type: ignore[method-assign]  # to count
        await asyncio.gather(*(asked(node) for _ in range(20)))
        assert 1 <= looks <= 4, "twenty share a look"


async def say_digests(machine: Machine, owner: str, values: dict[str, Message] | None = None) -> None:
    """The owner's model says this, by default what its log holds."""
    from bus.codec import encode

    made = Digests.of_owner(owner)
    for subject, message in (machine.hub.states(owner) if values is None else values).items():
        made.put(subject, encode(message))
    (await machine.hub.bus().own(owner)).said(made.all())


async def test_a_node_that_does_not_hold_what_an_owner_says_tells_no_revision(machine: Machine) -> None:
    """As when the log was emptied, and its owner's model still says three."""
    async with machine.running() as node:
        await started(machine, node)
        said = machine.hub.states("lb")
        await say_digests(machine, "lb")
        await until(lambda: "lb.service" in node.held.digests)
        assert wrong(node.service.health()) == {}
        machine.hub.delete(subjects.FRONTEND.of("default", "web"))
        await say_digests(machine, "lb", said)
        await until(lambda: "digests" in wrong(node.service.health()))
        assert "lb.service holds 0 keys of 1, since " in wrong(node.service.health())["digests"]
        before = dict(node.service.revision)
        machine.hub.put(subjects.FRONTEND.of("default", "web"), said[subjects.FRONTEND.of("default", "web")])
        await until(lambda: wrong(node.service.health()) == {})
        await until(lambda: node.service.revision["resources"] >= before["resources"])
        assert node.service.health().digests == node.held.digests


async def test_a_value_that_the_model_refused_is_told_as_that_and_holds_nothing_else_back(machine: Machine) -> None:
    async with machine.running() as node:
        await started(machine, node)
        strange = subjects.ADDRESS.of("10.0.1.9")
        found = machine.hub.states("identity")
        from bus.messages.identity import AddressIdentity

        machine.hub.put(strange, AddressIdentity(address="10.0.1.8", identity=300, node="n", node_address="192.0.2.2"))
        for said in (None, found):  # whether its owner says it or somebody else wrote it
            await say_digests(machine, "identity", said)
            await until(lambda: "changes" in wrong(node.service.health()))
            await asyncio.sleep(0.02)
            assert set(wrong(node.service.health())) == {"changes"}
        machine.hub.delete(strange)
        await until(lambda: wrong(node.service.health()) == {})
