"""Maps of the node that are full: what Python fills stays owed, is counted and told, and is written when there is room;
what traffic fills makes room by itself."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bus.service import Service, Settings
from bus.telemetry import counted
from bus.testing import Hub, MemoryBus
from services.dataplane.keep.pressure import HIGH, Pressure
from services.dataplane.keep.sweep import Sweep, Sweeper
from services.dataplane.kernel import bpf
from services.dataplane.kernel import maps as kernel_maps
from services.dataplane.kernel.bpf import Map
from services.dataplane.kernel.maps import Maps
from services.dataplane.shapes.layouts import TICK_NS, IpcacheEntry, IpcacheKey, PolicyMapKey
from services.dataplane.shapes.table import Table
from tests.bpf.own_maps import HASH, LRU_HASH, TABLES, make, pin_all

BPFFS = Path("/sys/fs/bpf")
ROOM = 8


@pytest.fixture
def maps() -> Iterator[Maps]:
    """A node's maps, each with room for very little."""
    if not os.path.ismount(BPFFS):
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPFFS)], check=True)
    pin_dir = BPFFS / f"plexus-test-full-{os.getpid()}"
    try:
        pin_all(pin_dir, dict.fromkeys(TABLES, ROOM) | {"ct_tcp": 1024, "fragments": 1024})
        with closing(Maps(pin_dir)) as found:
            yield found
    finally:
        shutil.rmtree(pin_dir, ignore_errors=True)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What is logged at error."""
    found: list[dict[str, object]] = []
    monkeypatch.setattr(kernel_maps.log, "error", lambda text, **facts: found.append({"text": text, **facts}))
    return found


def sweeper_of(maps: Maps) -> Sweeper:
    return Sweeper(
        Sweep(
            ct_tcp=maps["ct_tcp"], ct_any=maps["ct_any"], nat=maps["nat"], choices=maps["choices"], longest_seconds=8000
        )
    )


def entry(maps: Maps, name: str, number: int) -> tuple[bytes, bytes]:
    value = number.to_bytes(maps[name].info.value_bytes, "little")
    if name == "ipcache":
        return IpcacheKey(f"10.0.0.{number}").pack(), IpcacheEntry(number).pack()
    if name == "policy":
        return PolicyMapKey(number, 0, 0, 0, 0, 0).pack(), value
    return number.to_bytes(maps[name].info.key_bytes, "little"), value


def table_of(maps: Maps, name: str, numbers: range) -> Table:
    table = Table(name)
    for number in numbers:
        table.put(*entry(maps, name, number))
    return table


@pytest.mark.parametrize("name", TABLES)
async def test_what_finds_no_room_is_counted_told_owed_and_written_when_there_is_room(
    maps: Maps, name: str, told: list[dict[str, object]]
) -> None:
    before = counted("map_full", map=name)
    table = table_of(maps, name, range(1, ROOM + 4))
    await maps.write((table,))
    assert len(maps.dump(name)) == ROOM
    assert set(maps.dump(name).items()) < set(table.wanted.items())
    assert counted("map_full", map=name) - before == 3
    assert told == [{"text": "map full: raise its limit or use less", "map": name, "missing": 3}]
    assert table.is_dirty

    for key in list(maps.dump(name))[:3]:
        table.delete(key)
    await maps.write((table,))
    assert maps.dump(name) == table.wanted
    assert await maps.write((table,)) == 0  # nothing is owed any more
    assert len(told) == 1


@pytest.mark.parametrize("name", TABLES)
async def test_in_a_full_map_one_entry_can_take_the_place_of_another_in_one_write(
    maps: Maps, name: str, told: list[dict[str, object]]
) -> None:
    table = table_of(maps, name, range(1, ROOM + 1))
    await maps.write((table,))
    table.delete(entry(maps, name, 1)[0])
    table.put(*entry(maps, name, ROOM + 1))
    await maps.write((table,))
    assert maps.dump(name) == table.wanted
    assert not told


@pytest.mark.parametrize("name", TABLES)
async def test_in_a_full_map_what_is_there_changes_whatever_new_finds_no_room(
    maps: Maps, name: str, told: list[dict[str, object]]
) -> None:
    """A rule that denies from now on must not wait behind one that is new."""
    table = table_of(maps, name, range(1, ROOM + 1))
    await maps.write((table,))
    new = [entry(maps, name, ROOM + number)[0] for number in (1, 2, 3)]
    changed = [entry(maps, name, number)[0] for number in (1, 2, 3)]
    for key in (key for pair in zip(new, changed, strict=True) for key in pair):
        table.put(key, entry(maps, name, 9)[1])
    table.take()
    upserts = {key: table.wanted[key] for pair in zip(new, changed, strict=True) for key in pair}
    table.take = lambda: (upserts, [])  # type: ignore[method-assign]  # what is new comes first, for once surely
    table.owe(upserts)
    await maps.write((table,))
    held = maps.dump(name)
    assert {key: held[key] for key in changed} == {key: table.wanted[key] for key in changed}
    assert len(held) == ROOM
    assert told == [{"text": "map full: raise its limit or use less", "map": name, "missing": 3}]


async def test_a_full_map_keeps_nothing_from_the_others(maps: Maps, told: list[dict[str, object]]) -> None:
    tables = tuple(table_of(maps, name, range(1, ROOM + (2 if name == "policy" else 1))) for name in TABLES)
    epoch = maps["node_state"].get(bytes(4))
    await maps.write(tables)
    assert {each.name for each in tables if maps.dump(each.name) == each.wanted} == set(TABLES) - {"policy"}
    assert maps["node_state"].get(bytes(4)) != epoch
    assert [each["map"] for each in told] == ["policy"]


async def test_pressure_is_shown_for_every_map_and_the_check_names_the_setting(maps: Maps) -> None:
    service = Service("dataplane", Settings(), MemoryBus(Hub(), "dataplane"))
    table = Table("ipcache")
    pressure = Pressure(service, maps, (table,), sweeper_of(maps))
    await pressure.look()
    assert service.gauges()["bpf_map_pressure", (("map", "ipcache"),)] == 0
    assert [each.ok for each in service.health().checks] == [True]

    for number in range(1, ROOM + 5):
        table.put(*entry(maps, "ipcache", number))
    await pressure.look()
    assert service.gauges()["bpf_map_pressure", (("map", "ipcache"),)] == 1.5
    assert service.gauges()["bpf_map_max_entries", (("map", "ipcache"),)] == ROOM
    (check,) = service.health().checks
    assert (check.name, check.ok, check.detail) == (
        "maps",
        False,
        "ipcache is 150% full: raise extraConfig.plexus-ipcache-max",
    )

    for number in range(1, ROOM):
        table.delete(entry(maps, "ipcache", number)[0])
    await pressure.look()
    assert service.health().checks[0].ok


async def test_maps_that_traffic_fills_are_counted_in_the_kernel(maps: Maps) -> None:
    service = Service("dataplane", Settings(), MemoryBus(Hub(), "dataplane"))
    name = "ct_tcp"
    pressure = Pressure(service, maps, (), sweeper_of(maps))
    maps[name].set_many([entry(maps, name, number) for number in range(500)])
    await pressure.look()
    assert service.gauges()["bpf_map_entries", (("map", name),)] == 500
    assert service.gauges()["bpf_map_pressure", (("map", name),)] == 500 / 1024


@pytest.mark.parametrize("is_well", [False, True])
async def test_a_map_of_traffic_is_swept_when_it_is_nearly_full_and_complained_of_if_that_made_no_room(
    maps: Maps, is_well: bool
) -> None:
    """It makes room where the connections are over."""
    expires = 0 if is_well else (time.clock_gettime_ns(time.CLOCK_MONOTONIC) + 3600 * 10**9) // TICK_NS
    service = Service("dataplane", Settings(), MemoryBus(Hub(), "dataplane"))
    sweeper = sweeper_of(maps)
    pressure = Pressure(service, maps, (), sweeper)
    value = expires.to_bytes(maps["ct_tcp"].info.value_bytes, "little")
    maps["ct_tcp"].set_many([(entry(maps, "ct_tcp", number)[0], value) for number in range(1000)])

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        sweeping = tasks.create_task(sweeper.sweep_for_ever())
        await asyncio.sleep(0.1)
        assert sweeper.turns == 0
        await pressure.look()
        assert service.health().checks[0].ok
        while not sweeper.turns:
            await asyncio.sleep(0.01)
        for _ in range(2):
            await pressure.look()
            await asyncio.sleep(0.1)
        sweeping.cancel()
    assert sweeper.turns == 1
    (check,) = service.health().checks
    assert (check.ok, "raise bpf.ctTcpMax" in check.detail) == (is_well, not is_well)


async def test_a_map_that_only_evicts_is_full_in_the_end_and_no_fault(maps: Maps) -> None:
    service = Service("dataplane", Settings(), MemoryBus(Hub(), "dataplane"))
    sweeper = sweeper_of(maps)
    pressure = Pressure(service, maps, (), sweeper)
    maps["fragments"].set_many([entry(maps, "fragments", number) for number in range(1000)])
    for _ in range(2):
        await pressure.look()
        await sweeper.turn()
    assert pressure.pressure("fragments") > HIGH
    assert service.health().checks[0].ok


async def test_what_cannot_be_counted_keeps_its_last_number_and_is_counted_again_later(
    maps: Maps, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service("dataplane", Settings(), MemoryBus(Hub(), "dataplane"))
    name = "ct_tcp"
    pressure = Pressure(service, maps, (), sweeper_of(maps))
    maps[name].set_many([entry(maps, name, number) for number in range(1000)])
    await pressure.look()

    def no_room(_: bpf.Map) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    before = counted("map_count_failed")
    with monkeypatch.context() as patched:
        patched.setattr(bpf.Map, "count_about", no_room)
        await pressure.look()
    assert counted("map_count_failed") == before + 1
    assert pressure.entries(name) == 1000
    maps[name].remove(entry(maps, name, 0)[0])
    await pressure.look()
    assert pressure.entries(name) == 999


@pytest.mark.parametrize("kind", [HASH, LRU_HASH])
@pytest.mark.parametrize(("entries", "room"), [(0, 300_000), (3000, 300_000), (100_000, 300_000), (100_000, 131_072)])
def test_a_sample_of_the_buckets_counts_within_a_tenth(kind: int, entries: int, room: int) -> None:
    with closing(make(kind, 40, 8, room)) as made:
        made.set_many([(number.to_bytes(40, "little"), bytes(8)) for number in range(entries)])
        held = sum(number for number, _, _ in made.chunks())
        assert held == entries
        assert abs(made.count_about() - held) <= held / 10


def test_a_full_map_of_connections_takes_every_new_one_and_loses_old_ones_only() -> None:
    """Those that were there first go; none of the latest half of its room does. The kernel's order is not exact: each
    CPU keeps up to 128 of its latest entries to itself (kernel/bpf/bpf_lru_list.c)."""
    room, of_cpus = 16_384, 128 * bpf.possible_cpus()
    with closing(make(LRU_HASH, 40, 48, room)) as made:
        keys = [number.to_bytes(40, "little") for number in range(3 * room)]
        for key in keys:
            made.set(key, bytes(48))  # never refused
        held = {key for key, _ in made.items()}
        assert room - of_cpus <= len(held) <= room
        assert held >= set(keys[-room // 2 :])
        assert len(held & set(keys[:room])) <= of_cpus


def test_a_hash_map_refuses_what_it_has_no_room_for_and_keeps_what_it_has() -> None:
    with closing(make(HASH, 4, 4, ROOM)) as made:
        written = made.set_many([(number.to_bytes(4, "little"), bytes(4)) for number in range(ROOM + 1)])
        assert written == ROOM
        with pytest.raises(OSError, match=os.strerror(7)):
            made.set(b"\xff" * 4, bytes(4))
        assert len(dict(made.items())) == ROOM
        assert Map.remove(made, bytes(4))
        made.set(b"\xff" * 4, bytes(4))
