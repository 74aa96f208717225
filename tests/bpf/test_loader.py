"""Programs and maps in the kernel as the loader leaves them."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import shutil
import struct
from contextlib import closing
from pathlib import Path

import pytest

from services.dataplane.kernel import bpf, steps
from services.dataplane.kernel.bpf import Map
from services.dataplane.kernel.maps import Maps
from services.dataplane.load import loader, objects
from services.dataplane.parts.services import Services
from services.dataplane.shapes import layouts, limits
from services.dataplane.shapes.layouts import IpcacheKey, MapShape, ServiceEntry, ServiceKey
from services.dataplane.shapes.programs import SOCKET_PROGRAMS, STEPS, TC_PROGRAMS, UNITS
from tests.bpf.conftest import BPFFS
from tests.bpf.datapath import NODE, SERVICES, SIZES, Datapath


@pytest.fixture(autouse=True)
def loaded_generation(programs: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """CONFIG is taken for the configuration that was loaded, and so has its generation of programs."""
    [array] = (programs / "maps").glob("steps_*")
    found = array.name.removeprefix("steps_")
    monkeypatch.setattr(loader, "generation", lambda config: found)
    return found


def test_every_map_has_the_shape_that_python_writes(programs: Path) -> None:
    files = {limits.map_path(programs, name): name for name in layouts.MAPS}
    own = set(steps.paths(programs, loader.generation(CONFIG)))
    assert set((programs / "maps").iterdir()) == set(files) | own
    for name, shape in layouts.MAPS.items():
        found = Map.open(limits.map_path(programs, name))
        assert MapShape(found.info.key_bytes, found.info.value_bytes) == shape, name
        found.close()
    loader.check_maps(programs)


def test_every_program_is_pinned(programs: Path) -> None:
    assert {each.name for each in (programs / "programs").iterdir()} == set().union(*UNITS.values())
    assert {*STEPS, *TC_PROGRAMS, *SOCKET_PROGRAMS} == set().union(*UNITS.values())


def test_a_map_of_another_shape_is_refused_by_name(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layouts.MAPS, "ct_tcp", MapShape(16, 12))
    with pytest.raises(loader.LoadError, match=r"ct_tcp_v3 .*40\+96 .*16\+12"):
        loader.check_maps(programs)


def test_a_map_of_another_kind_is_refused_by_name(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = limits.declared_maps()
    changed = declared | {"nat": dataclasses.replace(declared["nat"], type=limits.MAP_TYPES["hash"])}
    monkeypatch.setattr(loader, "declared_maps", lambda: changed)
    with pytest.raises(loader.LoadError, match=r"nat_v2 .*type 9 .*type 1: drain"):
        loader.check_maps(programs)


def test_every_map_is_declared_with_its_kind_and_size(programs: Path) -> None:
    assert set(limits.declared_maps()) == set(layouts.MAPS)
    assert loader.resized_maps(CONFIG, programs) == {}


def test_a_changed_size_is_seen(programs: Path) -> None:
    larger = dataclasses.replace(CONFIG, sizes=SIZES | {"CT_TCP_MAX": 32768})
    assert loader.resized_maps(larger, programs) == {"ct_tcp": (16384, 32768)}


def stamp(programs: Path, state_dir: Path) -> None:
    """As a start leaves it that has loaded `CONFIG`."""
    pinned = loader.identities(programs, loader.generation(CONFIG))
    (state_dir / loader.STAMP).write_text(json.dumps({"digest": loader.digest(CONFIG), "pinned": pinned}))


@pytest.mark.parametrize("missing", ["maps/nat_v2", "maps/steps_*", "programs/to_pod", "programs/reject"])
async def test_a_pin_that_is_gone_means_loading(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    [gone] = programs.glob(missing)
    missing = str(gone.relative_to(programs))
    stamp(programs, tmp_path)

    monkeypatch.setattr(loader, "install", lambda *_: {"from_pod": 1})
    aside = programs / (missing + "_aside")
    (programs / missing).rename(aside)
    try:
        assert (await loader.load(CONFIG, programs, tmp_path)).is_anew
    finally:
        aside.rename(programs / missing)


@pytest.mark.parametrize(
    "part",
    [
        "load/compiler.py",
        "load/objects.py",
        "bpf/programs/pod.bpf.c",
        "bpf/include/limits.h",
        "headers/include/linux/log2.h",
    ],
)
def test_whatever_programs_are_made_of_or_by_changes_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    here = tmp_path / "dataplane"
    shutil.copytree(objects.HERE, here, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(objects, "HERE", here)
    before = loader.digest(CONFIG)
    (here / part).write_text((here / part).read_text() + "\n")
    assert loader.digest(CONFIG) != before


CONFIG = loader.DatapathConfig(node_address=NODE, device_index=1, sizes=SIZES)


@pytest.mark.parametrize(
    "change",
    [
        {"node_address": "192.0.2.9"},
        {"device_index": 2},
        {"tunnel_index": 3},
        {"masquerade": False},
        {"switches": {"LEGACY_ROUTING": 1}},
        {"switches": {"REJECT": 0}},
        {"ipv6": True},
        {"ipv4": False},
        {"node_address6": "2001:db8::9"},
        {"underlay_ipv6": True},
        {"nat_port_min": 40_000},
        {"sizes": {"NAT_MAX": 1}},
        {"seconds": {"CT_ANY_SECONDS": 1}},
    ],
)
def test_whatever_programs_are_for_changes_the_digest(change: dict[str, object]) -> None:
    assert loader.digest(CONFIG) == loader.digest(dataclasses.replace(CONFIG))
    assert loader.digest(dataclasses.replace(CONFIG, **change)) != loader.digest(CONFIG)  # type: ignore[arg-type]


def test_addresses_are_given_in_network_order() -> None:
    found = dataclasses.replace(CONFIG, node_address6="2001:db8::1").constants()
    words = [found[name] for name in ("NODE_ADDRESS", *(f"NODE_ADDRESS6_{place}" for place in range(4)))]
    assert struct.pack("=5I", *words) == bytes([192, 0, 2, 1]) + ipaddress.ip_address("2001:db8::1").packed


def test_every_constant_of_the_programs_has_a_value_that_fits() -> None:
    found = CONFIG.constants()
    assert set(found) | {"SET_RETVAL"} == set(limits.constants())
    assert all(0 <= value < 1 << 32 for value in found.values())


async def test_what_is_pinned_and_unchanged_is_not_loaded_again(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp(programs, tmp_path)

    def load_anew(*_: object) -> dict[str, int]:
        raise AssertionError("programs were loaded")

    monkeypatch.setattr(loader, "install", load_anew)
    loaded = await loader.load(CONFIG, programs, tmp_path)
    assert not loaded.is_anew
    assert not loaded.migration
    with pytest.raises(AssertionError):
        await loader.load(dataclasses.replace(CONFIG, device_index=9), programs, tmp_path)
    assert not (tmp_path / "programs.json").exists()  # what fails leaves no promise behind


@pytest.mark.parametrize("stamp", ["", "{", "[]", '{"digest": 7}', '{"digest": "", "pinned": 7}', "null"])
async def test_a_damaged_stamp_only_means_loading(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stamp: str
) -> None:
    (tmp_path / "programs.json").write_text(stamp)

    monkeypatch.setattr(loader, "install", lambda *_: {"from_pod": 1})
    assert (await loader.load(CONFIG, programs, tmp_path)).is_anew


async def test_a_stamp_that_cannot_be_written_only_means_loading_again(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = 0

    def install(*_: object) -> dict[str, int]:
        nonlocal times
        times += 1
        return {"from_pod": 1}

    monkeypatch.setattr(loader, "install", install)
    for _ in range(2):
        loaded = await loader.load(CONFIG, programs, tmp_path / "no such directory")
        assert loaded.is_anew
    assert times == 2


# Generations


async def test_programs_of_before_keep_their_steps_until_the_last_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what another configuration has jumped by goes then, and not before."""
    monkeypatch.setattr(loader, "generation", lambda config: loader.digest(config)[:16])
    pin_dir = BPFFS / f"plexus-test-generations-{os.getpid()}"
    first = loader.DatapathConfig(node_address=NODE, device_index=1, services=SERVICES, sizes=SIZES)
    second = dataclasses.replace(first, device_index=2)
    try:
        (await loader.load(first, pin_dir, tmp_path)).migration.finish()
        generations = [loader.digest(each)[:16] for each in (first, second)]
        now = await loader.load(second, pin_dir, tmp_path)
        assert {each.name for each in (pin_dir / "maps").glob("steps_*")} == {f"steps_{each}" for each in generations}
        assert not is_empty(pin_dir, generations[0]) and not is_empty(pin_dir, generations[1])
        now.migration.finish()
        assert [each.name for each in (pin_dir / "maps").glob("*_" + generations[0])] == []
        assert not is_empty(pin_dir, generations[1])
    finally:
        shutil.rmtree(pin_dir, ignore_errors=True)


def is_empty(pin_dir: Path, generation: str) -> bool:
    with closing(Map.open(steps.paths(pin_dir, generation)[0])) as array:
        return not dict(array.items())


# Maps


async def test_tables_reach_the_kernel_and_the_epoch_rises(datapath: Datapath) -> None:
    tables = Services()
    tables.services.put(ServiceKey("10.96.0.1", 443, 6).pack(), ServiceEntry(1, 0).pack())
    before = epoch(datapath)
    assert await datapath.maps.write((tables.services, tables.backends)) == 1
    assert datapath.maps.dump("services") == dict(tables.services.wanted)
    assert epoch(datapath) == before + 1
    assert await datapath.maps.write((tables.services, tables.backends)) == 0
    assert epoch(datapath) == before + 1
    tables.services.delete(ServiceKey("10.96.0.1", 443, 6).pack())
    assert await datapath.maps.write((tables.services,)) == 1
    assert datapath.maps.dump("services") == {}


def epoch(datapath: Datapath) -> int:
    raw = datapath.maps["node_state"].get(bytes(4))
    assert raw is not None
    return int(struct.unpack_from("=I", raw)[0])


async def test_a_restart_goes_on_counting_epochs(datapath: Datapath, programs: Path) -> None:
    datapath.maps.raise_epoch()
    before = epoch(datapath)
    again = Maps(programs)
    again.raise_epoch()
    again.close()
    assert epoch(datapath) == before + 1


async def test_many_entries_are_written_off_the_event_loop_and_all_arrive(datapath: Datapath) -> None:
    tables = Services()
    for number in range(10_000):
        key = ServiceKey(f"10.96.{number // 250}.{number % 250}", 80, 6)
        tables.services.put(key.pack(), ServiceEntry(number, 0).pack())
    assert await datapath.maps.write((tables.services,)) == 10_000
    assert datapath.maps.dump("services") == dict(tables.services.wanted)


def test_a_removed_key_is_no_error(datapath: Datapath) -> None:
    assert datapath.maps["ipcache"].remove_many([IpcacheKey("10.0.0.1").pack()]) == 0
    assert datapath.maps["ipcache"].get(IpcacheKey("10.0.0.1").pack()) is None


def test_a_pin_is_replaced_in_one_step(programs: Path) -> None:
    path = programs / "programs" / "extra"
    first, second = (bpf.open_pinned(programs / "programs" / name) for name in ("from_pod", "to_pod"))
    try:
        bpf.pin(first, path)
        bpf.pin(second, path)
        found = bpf.open_pinned(path)
        assert bpf.program_id(found) == bpf.program_id(second)
    finally:
        path.unlink()
