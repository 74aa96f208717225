"""A log is removed, cut, purged, put back from an older copy: no map of any node loses an entry or has another at any
moment, the log holds all of it again within seconds, and what is new arrives."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from bus.link import ApiError
from bus.server import Server
from bus.services import ROOTS
from bus.subjects import JOURNAL, LEASES, info_of, stream_of
from tests.bus.lost import MODELS, World, cluster, pod, policy, service
from tests.unit.dataplane.test_node import until

NOTICED_SECONDS = 5.0  # it is noticed within one; this machine is busy

pytestmark = pytest.mark.timeout(120)

OWNERS = ("resources", *MODELS, "dataplane")  # who says something in this world


async def goes_on(world: World) -> None:
    """What is applied now arrives at both nodes."""
    before = world.maps()
    await world.apply(pod("late", "node-2"), service("late"), policy("late", "client"))
    await world.add("late", "node-2")
    for name in world.machines:
        for table in ("ipcache", "services", "backends"):
            await until(lambda where=(name, table): len(world.maps()[where]) > len(before[where]))  # type: ignore[misc]
    await until(lambda: len(world.maps()["node-2", "policy"]) > len(before["node-2", "policy"]))


async def survives(world: World, owner: str, how: str, away: float = 0.0, *, anew: bool = False) -> None:
    """`anew`: the owner's process dies with its log."""
    if how == "older":
        await world.copy(owner)
        await world.apply(pod("newer", "node-1"), service("newer"), policy("newer", "client"))
        await world.add("newer", "node-1")
        await world.apply(policy("other", "web"))
    held = await world.settled()
    said = await world.said(owner)
    world.watch()
    if anew:
        await world.stop(owner)
    await world.damage(owner, how, away)
    if anew:
        world.start(owner)
    await goes_on(world)
    assert world.changed == []
    now = world.maps()
    assert all(entries.items() <= now[where].items() for where, entries in held.items())
    with suppress(TimeoutError):
        async with asyncio.timeout(NOTICED_SECONDS):
            while not said.items() <= (await world.said(owner)).items():
                await asyncio.sleep(0.1)
    again = await world.said(owner)
    assert {subject: again.get(subject) for subject in said} == said
    assert world.changed == []


DAMAGES = ("removed", "truncated", "purged", "older", "deleted", "one message")


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("owner", OWNERS)
async def test_nothing_is_lost_with_a_log(server: Server, tmp_path: Path, owner: str, how: str) -> None:
    async with cluster(server, tmp_path) as world:
        await survives(world, owner, how)


@pytest.mark.parametrize("how", ["removed", "older"])
@pytest.mark.parametrize("owner", OWNERS)
async def test_nothing_is_lost_with_a_log_while_the_bus_is_away_for_longer_than_a_lease(
    server: Server, tmp_path: Path, owner: str, how: str
) -> None:
    async with cluster(server, tmp_path) as world:
        await survives(world, owner, how, away=3.5)


@pytest.mark.parametrize("how", ["removed", "purged", "older"])
@pytest.mark.parametrize("owner", ["resources", *MODELS])
async def test_nothing_is_lost_with_a_log_and_its_owners_memory(
    server: Server, tmp_path: Path, owner: str, how: str
) -> None:
    """What it says follows from what it hears; numbers and blocks that were given are those of before; and what the
    user wants is in the journal."""
    async with cluster(server, tmp_path) as world:
        await survives(world, owner, how, anew=True)


@pytest.mark.parametrize("how", ["removed", "deleted"])
@pytest.mark.parametrize("owner", ROOTS)
async def test_a_root_log_that_is_made_anew_goes_on_beyond_what_anybody_has_heard(
    server: Server, tmp_path: Path, owner: str, how: str
) -> None:
    """Else who has heard only the old one would seem to have realised what the new one says (plexus wait)."""
    async with cluster(server, tmp_path) as world:
        await world.settled()
        before = (await world.user.link.api(info_of(stream_of(owner))))["state"]["last_seq"]
        await world.damage(owner, how)
        await goes_on(world)
        assert (await world.user.link.api(info_of(stream_of(owner))))["state"]["first_seq"] > before


async def test_the_journal_and_the_leases_are_there_again_when_they_were_lost(server: Server, tmp_path: Path) -> None:
    async with cluster(server, tmp_path) as world:
        held = await world.settled()
        world.watch()
        for stream in (JOURNAL, LEASES):
            await world.user.link.api(f"$JS.API.STREAM.DELETE.{stream}")
        await goes_on(world)
        assert world.changed == []
        assert all(entries.items() <= world.maps()[where].items() for where, entries in held.items())
        async with asyncio.timeout(15):
            while True:
                with suppress(ApiError):
                    known = await world.user.link.api(f"$JS.API.STREAM.INFO.{JOURNAL}", {"subjects_filter": ">"})
                    if any(subject.startswith("state.policy.rules.") for subject in known["state"].get("subjects", ())):
                        break
                await asyncio.sleep(0.1)
        await world.user.link.api(f"$JS.API.STREAM.INFO.{LEASES}")
