"""Entries of maps that get another size or layout, with real maps; what streams do meanwhile is in tests/lab."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.dataplane.kernel.bpf import Map
from services.dataplane.kernel.program import Refused
from services.dataplane.load import layouts_v1, layouts_v2, loader, migrate
from services.dataplane.load.loader import DatapathConfig, LoadError
from services.dataplane.shapes import layouts
from services.dataplane.shapes.limits import declared_maps, limit
from tests.bpf.conftest import BPFFS
from tests.bpf.datapath import NODE, SIZES
from tests.bpf.maps import make_map

ARRAY, LRU, HASH, LPM = 2, 9, 1, 11
SMALL = DatapathConfig(node_address=NODE, device_index=1, sizes=SIZES)
NAT = "nat_v2"  # a map of the connection kind, sized by a setting


@pytest.fixture
def pins() -> Iterator[Path]:
    pin_dir = BPFFS / f"plexus-test-migrate-{os.getpid()}"
    (pin_dir / "maps").mkdir(parents=True)
    yield pin_dir
    shutil.rmtree(pin_dir)


def contents(path: Path) -> dict[bytes, bytes]:
    with closing(Map.open(path)) as found:
        return dict(found.items())


def fill(path: Path, number: int) -> dict[bytes, bytes]:
    with closing(Map.open(path)) as found:
        info = found.info
        entries = {n.to_bytes(info.key_bytes, "big"): (n + 1).to_bytes(info.value_bytes, "big") for n in range(number)}
        assert found.set_many(entries.items()) == number
    return entries


def test_what_a_resized_map_holds_is_in_the_new_one_and_what_came_meanwhile_too(pins: Path) -> None:
    maps = pins / "maps"
    make_map(maps / "x", LRU, 8, 8, 4096)
    before = fill(maps / "x", 1000)
    migration = migrate.begin(pins, ["x"])
    assert not (maps / "x").exists()
    make_map(maps / "x", LRU, 8, 8, 8192)
    assert migration.copy() == 1000
    with closing(Map.open(maps / "x_before")) as old, closing(Map.open(maps / "x")) as new:
        old.set(b"late----", b"12345678")
        new.set(bytes(8), b"by-new--")
    assert migration.finish() == 1
    assert contents(maps / "x") == before | {b"late----": b"12345678", bytes(8): b"by-new--"}
    assert [each.name for each in maps.iterdir()] == ["x"]
    assert not (pins / migrate.COPIED).exists()


def test_of_a_connection_in_both_maps_the_one_that_was_used_last_stays(pins: Path) -> None:
    maps = pins / "maps"
    file = declared_maps()["ct_tcp"].file
    make_map(maps / file, LRU, 8, 8, 4096)
    with closing(Map.open(maps / file)) as old:
        old.set(b"a" * 8, struct.pack("=II", 100, 1))
        old.set(b"b" * 8, struct.pack("=II", 100, 1))
    migration = migrate.begin(pins, [file])
    make_map(maps / file, LRU, 8, 8, 8192)
    migration.copy()
    with closing(Map.open(maps / f"{file}_before")) as old, closing(Map.open(maps / file)) as new:
        old.set(b"a" * 8, struct.pack("=II", 101, 2))
        new.set(b"b" * 8, struct.pack("=II", 101, 2))
    migration.finish()
    assert contents(maps / file) == {b"a" * 8: struct.pack("=II", 101, 2), b"b" * 8: struct.pack("=II", 101, 2)}


@pytest.mark.parametrize("kind", [HASH, LPM])
def test_what_does_not_fit_is_refused_before_anything_is_touched(pins: Path, kind: int) -> None:
    make_map(pins / "maps/x", kind, 8, 8, 100)
    with closing(Map.open(pins / "maps/x")) as made:
        for n in range(10):
            made.set(struct.pack("=I", 32) + n.to_bytes(4, "big"), bytes(8))
    migrate.check_room(pins, {"x": 10})
    with pytest.raises(migrate.DoesNotFit, match="holds 10 entries and is to have room for 9"):
        migrate.check_room(pins, {"x": 9})


def test_undone_the_maps_are_as_they_were(pins: Path) -> None:
    maps = pins / "maps"
    make_map(maps / "x", HASH, 8, 8, 100)
    before = fill(maps / "x", 50)
    migration = migrate.begin(pins, ["x"])
    make_map(maps / "x", HASH, 8, 8, 40)
    with pytest.raises(migrate.DoesNotFit):
        migration.copy()
    migration.undo()
    assert contents(maps / "x") == before
    assert [each.name for each in maps.iterdir()] == ["x"]


@pytest.mark.parametrize("step", ["set aside", "made", "half copied", "copied", "another size"])
def test_killed_at_any_step_the_next_start_loses_nothing(pins: Path, step: str) -> None:
    maps = pins / "maps"
    make_map(maps / "x", LRU, 8, 8, 4096)
    before = fill(maps / "x", 100)
    killed = migrate.begin(pins, ["x"])
    resized = []
    if step != "set aside":
        make_map(maps / "x", LRU, 8, 8, 8192)
    if step == "half copied":
        with closing(Map.open(maps / "x")) as new:
            new.set(bytes(8), b"outdated")
    elif step == "copied":
        killed.copy()
    elif step == "another size":
        killed.copy()
        resized = ["x"]
    migration = migrate.begin(pins, resized)
    assert (maps / "x").exists() == (step == "copied")  # only what programs may use already is kept
    if step != "copied":
        make_map(maps / "x", LRU, 8, 8, 8192)
    migration.copy()
    migration.finish()
    assert contents(maps / "x") == before
    assert [each.name for each in maps.iterdir()] == ["x"]
    assert not (pins / migrate.COPIED).exists()


def test_undone_after_the_copy_nothing_of_it_is_taken_for_newer_later(pins: Path) -> None:
    """As when the start is told to end while it copies."""
    maps = pins / "maps"
    make_map(maps / "x", LRU, 8, 8, 4096)
    make_map(maps / "nat", LRU, 16, 8, 4096)  # of version 1
    before = fill(maps / "x", 100)
    migration = migrate.begin(pins, ["x"])
    make_map(maps / "x", LRU, 8, 8, 8192)
    make_map(maps / NAT, LRU, 40, 20, 4096)
    migration.copy()
    migration.undo()
    assert {each.name for each in maps.iterdir()} == {"x", "nat"}
    assert not (pins / migrate.COPIED).exists()
    assert contents(maps / "x") == before


def test_where_programs_may_run_with_the_new_maps_nothing_is_undone(pins: Path) -> None:
    """An earlier start died when it had attached them; this one does not come so far."""
    maps = pins / "maps"
    make_map(maps / "x", LRU, 8, 8, 4096)
    make_map(maps / "nat", LRU, 16, 8, 4096)
    before = fill(maps / "x", 100)
    died = migrate.begin(pins, ["x"])
    make_map(maps / "x", LRU, 8, 8, 8192)
    make_map(maps / NAT, LRU, 40, 20, 4096)
    died.copy()
    with closing(Map.open(maps / "x")) as new, closing(Map.open(maps / NAT)) as nat:
        new.set(bytes(8), b"by-new--")
        nat.set(bytes(40), bytes(20))
    for stopped in ("before the copy", "after it"):
        migration = migrate.begin(pins, [])
        if stopped == "after it":
            migration.copy()
        migration.undo()
    assert contents(maps / "x") == before | {bytes(8): b"by-new--"}
    assert contents(maps / NAT) == {bytes(40): bytes(20)}
    migrate.begin(pins, []).finish()
    assert contents(maps / "x") == before | {bytes(8): b"by-new--"}
    assert {each.name for each in maps.iterdir()} == {"x", NAT}
    assert not (pins / migrate.COPIED).exists()


@pytest.mark.parametrize("resized", [[], ["x"]])
def test_killed_at_the_very_end_the_next_start_leaves_no_mark(pins: Path, resized: list[str]) -> None:
    make_map(pins / "maps" / "x", LRU, 8, 8, 4096)
    before = fill(pins / "maps" / "x", 100)
    (pins / migrate.COPIED).mkdir()
    migration = migrate.begin(pins, resized)
    assert not (pins / migrate.COPIED).exists()
    migration.undo()
    assert contents(pins / "maps" / "x") == before


async def test_a_size_that_is_set_anew_takes_the_entries_along(pins: Path, tmp_path: Path) -> None:
    first = await loader.load(SMALL, pins, tmp_path)
    assert first.is_anew
    first.migration.finish()
    before = fill(pins / "maps" / NAT, 500)
    for size in (32768, 1024):
        changed = dataclasses.replace(SMALL, sizes=SIZES | {"NAT_MAX": size})
        loaded = await loader.load(changed, pins, tmp_path)
        assert loaded.is_anew
        loaded.migration.finish()
        assert contents(pins / "maps" / NAT) == before
        with closing(Map.open(pins / "maps" / NAT)) as made:
            assert made.info.max_entries == size
        assert not (await loader.load(changed, pins, tmp_path)).is_anew


async def test_a_load_that_fails_leaves_the_old_maps_and_the_next_one_succeeds(
    pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (await loader.load(SMALL, pins, tmp_path)).migration.finish()
    before = fill(pins / "maps" / NAT, 500)
    changed = dataclasses.replace(SMALL, sizes=SIZES | {"NAT_MAX": limit("CHOICES_MAX")})

    def refused(*_: object) -> dict[str, int]:
        raise Refused("the verifier says no")

    with monkeypatch.context() as patched:
        patched.setattr(loader, "install", refused)
        with pytest.raises(LoadError, match="the verifier says no"):
            await loader.load(changed, pins, tmp_path)
    assert contents(pins / "maps" / NAT) == before
    assert not list((pins / "maps").glob("*_before"))
    (await loader.load(changed, pins, tmp_path)).migration.finish()
    assert contents(pins / "maps" / NAT) == before


def test_maps_of_version_1_go_into_those_of_now(pins: Path) -> None:
    maps = pins / "maps"
    make_map(maps / "connections", LRU, 16, 28, 4096)
    make_map(maps / "nat", LRU, 16, 8, 4096)
    make_map(maps / "policy", LPM, 16, 12, 100)  # the same in all versions
    keys = [socket.inet_aton(f"10.0.0.{n}") + bytes(8) + bytes([6 if n % 2 else 17, 0, 0, 0]) for n in range(1, 101)]
    for name, size in (("connections", 28), ("nat", 8)):
        with closing(Map.open(maps / name)) as old:
            old.set_many((key, key[:4] * (size // 4)) for key in keys)
    migration = migrate.begin(pins, [])
    assert sorted(migration.files) == ["connections", "nat"]
    made = make_now(maps, "ct_tcp", "ct_any", "nat")
    assert migration.copy() == 200
    late = socket.inet_aton("10.0.1.1") + bytes(8) + bytes([6, 0, 0, 0])
    with closing(Map.open(maps / "connections")) as old:
        old.set(late, late[:4] * 7)
    assert migration.finish() == 1
    assert {each.name for each in maps.iterdir()} == {*(each.name for each in made.values()), "policy"}
    found = contents(made["ct_tcp"])
    assert len(found) == 51
    second = layouts_v1.connection(late, late[:4] * 7)
    assert layouts_v2.connection_tcp(*second[1:])[1:] in found.items()
    assert len(contents(made["ct_any"])) == 50
    assert contents(made["nat"]) == dict(layouts_v1.nat(key, key[:4] * 2)[1:] for key in keys)


def test_maps_of_version_2_go_into_those_of_now(pins: Path) -> None:
    maps = pins / "maps"
    kinds = {"endpoints_v2": HASH, "services_v2": HASH, "backends_v2": HASH, "node_state": ARRAY}
    before = {}
    for file, old in layouts_v2.MAPS.items():
        make_map(maps / file, kinds.get(file, LRU), old.key_bytes, old.value_bytes, 1 if file == "node_state" else 500)
        before[file] = fill(maps / file, 1 if file == "node_state" else 100)
    migration = migrate.begin(pins, [])
    assert set(migration.files) == layouts_v2.MAPS.keys()
    made = make_now(maps, "endpoints", "services", "backends", "node_state", "ct_tcp", "ct_any")
    assert migration.copy() == 501
    migration.finish()
    assert {each.name for each in maps.iterdir()} == {each.name for each in made.values()}
    for file, entries in before.items():
        convert, target = layouts_v2.MAPS[file].convert, layouts_v2.MAPS[file].targets[0]
        assert convert and contents(maps / target) == dict(convert(*entry)[1:] for entry in entries.items())


def test_a_map_of_version_2_that_was_getting_another_size_goes_into_that_of_now(pins: Path) -> None:
    """Killed in between, and then upgraded."""
    maps = pins / "maps"
    make_map(maps / "ct_tcp_before", LRU, 40, 48, 500)
    before = fill(maps / "ct_tcp_before", 100)
    make_map(maps / "ct_tcp", LRU, 40, 48, 1000)
    migration = migrate.begin(pins, [])
    made = make_now(maps, "ct_tcp")
    assert migration.copy() == 100
    migration.finish()
    assert [each.name for each in maps.iterdir()] == [made["ct_tcp"].name]
    assert contents(made["ct_tcp"]) == dict(layouts_v2.connection_tcp(*entry)[1:] for entry in before.items())


def make_now(maps: Path, *names: str) -> dict[str, Path]:
    """Those maps as this version makes them, without programs."""
    found = {}
    for name in names:
        declared, shape = declared_maps()[name], layouts.MAPS[name]
        found[name] = maps / declared.file
        make_map(found[name], declared.type, shape.key_bytes, shape.value_bytes, 1 if declared.type == ARRAY else 4096)
    return found


def test_another_map_under_a_name_of_version_1_is_left_alone(pins: Path) -> None:
    make_map(pins / "maps/nat", LRU, 4, 4, 100)
    assert not migrate.begin(pins, [])
    assert (pins / "maps/nat").exists()
