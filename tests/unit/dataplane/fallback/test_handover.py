"""From BPF programs to rules and back, as far as it can be told without a kernel."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec
import pytest

from bus.messages.dataplane import Dump
from bus.service import Service, Settings
from bus.telemetry import counted
from bus.testing import Hub
from services.dataplane.dump import dump
from services.dataplane.fallback import handover
from services.dataplane.fallback.handover import Fallback, HeldBack, held_back, leave, place_of
from services.dataplane.fallback.hooks import NoHooks
from services.dataplane.fallback.maps import FILE, RuleMaps, is_in_force
from services.dataplane.fallback.rules import removal
from services.dataplane.kernel import nft, notrack
from services.dataplane.kernel.links import DeviceInfo, Links
from services.dataplane.kernel.rtnl import SeenLink
from services.dataplane.load import datapath, loader
from services.dataplane.load.datapath import Datapath, Ground
from services.dataplane.load.loader import DatapathConfig
from services.dataplane.load.migrate import Migration
from services.dataplane.model import NodeModel
from services.dataplane.parts.masquerade import Masquerade
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.attach import Hook
from services.dataplane.shapes.layouts import (
    EndpointEntry,
    IpcacheEntry,
    IpcacheKey,
    Prefix,
    pack_address,
)
from services.dataplane.shapes.table import Table
from services.dataplane.store import statefile
from tests.unit.dataplane.test_node import Machine, until

DEVICE = DeviceInfo("eth0", 2, "02:00:00:00:00:10", "192.0.2.1", 1500, address6="2001:db8::1")
GROUND = Ground(DEVICE, (DEVICE,), (), 4, 3, 1450, DatapathConfig(device_index=2))


def node_settings(**given: str) -> NodeSettings:
    return NodeSettings.of({"PLEXUS_NODE": "n"} | {f"PLEXUS_{name}": value for name, value in given.items()})


def test_rules_know_a_node_of_both_families_as_its_programs_do() -> None:
    place = place_of(node_settings(IPV6_ENABLED="true", MASQUERADE6="false", MASQ_EXCLUDE="fd00::/8"), GROUND)
    assert place.own_addresses == {"192.0.2.1", "2001:db8::1"}
    assert (place.tunnel, place.tunnel_port) == ("plexus_vxlan", 8472)
    assert place.masquerade == {4}
    assert place.never_masqueraded == ("fd00::/8",)
    assert place.world == {4: 9, 6: 10}


def test_rules_know_a_node_of_one_family_without_a_tunnel() -> None:
    asked = {"IPV4_ENABLED": "false", "IPV6_ENABLED": "true", "ROUTING_MODE": "native"}
    place = place_of(node_settings(**asked, NATIVE_ROUTING_CIDR6="fd00::/16"), replace(GROUND, tunnel_index=0))
    assert (place.tunnel, place.tunnel_port) == ("", 0)
    assert place.masquerade == {6}
    assert place.never_masqueraded == ("fd00::/16",)
    assert set(place.world.values()) == {2}


def test_rules_from_before_are_kept_until_all_is_heard_but_not_after_maps_were_filled(tmp_path: Path) -> None:
    settings = NodeSettings(node="n", state_dir=tmp_path)
    assert not held_back(settings, filled=False)
    (tmp_path / FILE).touch()
    assert held_back(settings, filled=False)
    assert not held_back(settings, filled=True)
    (tmp_path / handover.SWITCH).touch()
    assert handover.SWITCH in held_back(settings, filled=True)


async def test_rules_go_only_when_every_pod_has_its_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[str] = []

    async def apply(script: str) -> None:
        applied.append(script)

    monkeypatch.setattr(nft, "apply", apply)
    monkeypatch.setattr(handover, "LOOK_SECONDS", 0.001)
    machine = Machine(tmp_path)
    machine.settings = replace(machine.settings, state_dir=tmp_path)
    machine.populate()
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add()
        attached = machine.links.attached
        kept = {index: dict(programs) for index, programs in attached.items()}
        for programs in attached.values():
            del programs["egress"]
        (tmp_path / FILE).touch()
        leaving = asyncio.ensure_future(leave(node))
        await asyncio.sleep(0.05)
        assert not applied
        assert "datapath" not in {check.name for check in node.service.health().checks}
        attached.update(kept)
        await leaving
        assert applied == [removal()]
        assert not (tmp_path / FILE).exists()
        assert {check.name: check.ok for check in node.service.health().checks}["datapath"]


TABLES = tuple(table.name for table in NodeModel("n").tables)
KEY, VALUE = IpcacheKey("10.0.1.2").pack(), IpcacheEntry(300, "192.0.2.1").pack()
LINKS = [SeenLink("lxc1", 11, "", 1500, "veth", 0, 0, up=True), SeenLink("lxc2", 12, "", 1500, "veth", 0, 0, up=True)]


class Kernel:
    """Links, programs and nftables that do as they are told, and what was done in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.links = list(LINKS)
        self.with_programs = {each.index for each in LINKS}
        self.done: list[str] = []  # scripts put in force, and "programs taken away"
        self.refuses = ""
        self.counted: dict[str, tuple[int, int]] = {}
        self.before_apply: Callable[[], object] = lambda: None
        for name in ("apply", "counters", "has_chain"):
            monkeypatch.setattr(nft, name, getattr(self, name))

    async def apply(self, script: str) -> None:
        self.before_apply()
        if self.refuses:
            raise nft.NftError(self.refuses)
        self.done.append(script)

    async def counters(self, table: str, names: Iterable[str]) -> dict[str, tuple[int, int]]:
        return {name: each for name, each in self.counted.items() if name in names}

    async def has_chain(self, name: str, table: str) -> bool:
        return bool(self.done) and f"chain {name} {{" in self.done[-1]

    async def list_pod_links(self) -> list[SeenLink]:
        return self.links

    async def judged(self, hooks: Iterable[Hook]) -> set[Hook]:
        return {hook for hook in hooks if hook.index in self.with_programs}

    async def take_away(self, _: Iterable[Hook]) -> None:
        self.with_programs = set()
        self.done.append("programs taken away")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    async def nothing() -> None:
        """No rules against connection tracking here."""

    monkeypatch.setattr(notrack, "remove", nothing)
    monkeypatch.setattr(handover, "KEEP_SECONDS", 0.001)
    return Kernel(monkeypatch)


def fallback(kernel: Kernel, folder: Path) -> Fallback:
    service = Service("dataplane", Settings(instance="n"), Hub().bus())
    settings = replace(node_settings(), state_dir=folder, pin_dir=folder / "pins", force_fallback=True)
    made = Fallback(service, settings, cast(Links, kernel), GROUND, HeldBack("so said"))
    made.hooks.close()
    made.hooks = cast(NoHooks, kernel)
    return made


@asynccontextmanager
async def at_work(made: Fallback) -> AsyncIterator[None]:
    await made.begin()
    running = asyncio.create_task(made.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])


def leaves_alone(script: str) -> set[str]:
    """The links, by index, whose packets rules let pass unjudged: coming from it, and going to it."""
    found = re.findall(r"^[io]if \{ (.*) \} return$", script, re.MULTILINE)
    assert len(set(found)) <= 1
    return set(found[0].split(", ")) if found else set()


async def test_rules_judge_every_pod_before_its_programs_are_taken_away(kernel: Kernel, tmp_path: Path) -> None:
    made = fallback(kernel, tmp_path)
    async with at_work(made):
        assert leaves_alone(kernel.done[-1]) == {"11", "12"}
        made.maps.is_whole.set()
        await until(lambda: "programs taken away" in kernel.done)
        assert leaves_alone(kernel.done[kernel.done.index("programs taken away") - 1]) == set()


async def test_a_pod_whose_program_is_removed_by_hand_is_judged_by_rules_from_then_on(
    kernel: Kernel, tmp_path: Path
) -> None:
    async with at_work(fallback(kernel, tmp_path)):
        kernel.with_programs = {12}
        await until(lambda: leaves_alone(kernel.done[-1]) == {"12"})
        kernel.with_programs = {11, 12}
        kernel.done.append("")  # somebody removes the rules
        await until(lambda: kernel.done[-1])
        assert leaves_alone(kernel.done[-1]) == {"12"}


async def test_a_new_link_of_an_old_name_is_not_taken_for_the_one_with_programs(kernel: Kernel, tmp_path: Path) -> None:
    async with at_work(fallback(kernel, tmp_path)):
        kernel.links = [replace(LINKS[0], index=21), LINKS[1]]
        assert "lxc1" not in kernel.done[-1]  # so not even until it is looked at again
        await until(lambda: leaves_alone(kernel.done[-1]) == {"12"})


def holding(key: bytes, value: bytes) -> Table:
    """An ipcache of one entry."""
    table = Table("ipcache")
    table.put(key, value)
    return table


def check(made: Fallback) -> str:
    return next(each.detail for each in made._service.health().checks if each.name == handover.CHECK)


async def test_what_nft_refuses_ends_nobody_shows_and_is_in_force_later(kernel: Kernel, tmp_path: Path) -> None:
    made = fallback(kernel, tmp_path)
    ipcache = holding(KEY, VALUE)
    tables = tuple(ipcache if name == ipcache.name else Table(name) for name in TABLES)
    refused = counted("rules_refused")
    async with at_work(made):
        kernel.refuses = "nft -f: no room"
        assert await made.maps.write(tables) == 0
        assert ipcache.is_dirty
        assert "no room" in check(made)
        assert not made.maps.is_whole.is_set()
        assert counted("rules_refused") > refused
        kernel.refuses = ""
        await until(made.maps.is_whole.is_set)
        assert "10.0.1.2" in next(each for each in reversed(kernel.done) if "table" in each)
        assert "no room" not in check(made)


async def test_what_rules_count_is_shown_as_what_programs_count(kernel: Kernel, tmp_path: Path) -> None:
    made = fallback(kernel, tmp_path)
    kernel.counted = {"policy_denied": (3, 180), "unroutable": (0, 0)}
    await made.maps.write((holding(KEY, VALUE),))
    shown = [
        {"reason": "Policy denied", "reason_code": 133, "direction": "ingress", "packets": 3, "bytes": 180},
    ]
    assert dump("n", Dump(table="counters"), made.maps, NodeModel("n")).rows == shown
    kernel.counted = {}  # somebody has removed the rules, and with them what they counted
    await made.maps.heal()
    assert dump("n", Dump(table="counters"), made.maps, NodeModel("n")).rows == shown


async def test_what_rules_cannot_do_shows_and_goes_back_to_programs_all_the_same(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "masquerade" not in check(fallback(kernel, tmp_path))
    monkeypatch.setattr(Masquerade, "by_rules", False)
    made = fallback(kernel, tmp_path)
    assert check(made).startswith("degraded: nftables rules instead of BPF: so said; not done by rules: masquerade")
    excluded = Table("masq_exclude")
    excluded.put(Prefix.of("10.0.0.0/8").pack(), b"\1")
    await made.maps.write((holding(KEY, VALUE), excluded))
    assert made.maps.dump("masq_exclude") == excluded.wanted, "held, for the programs that will need it"
    again = fallback(kernel, tmp_path)
    assert (again.maps.dump("ipcache"), again.maps.dump("masq_exclude")) == ({KEY: VALUE}, {})


async def test_what_makes_no_rules_ends_nobody_shows_and_leaves_the_last_in_force(
    kernel: Kernel, tmp_path: Path
) -> None:
    made = fallback(kernel, tmp_path)
    ipcache = holding(KEY, VALUE)
    tables = tuple(ipcache if name == ipcache.name else Table(name) for name in TABLES)
    senseless = b"\xff" + KEY[1:]  # so many bits no address has
    async with at_work(made):
        await made.maps.write(tables)
        last, stored = kernel.done[-1], (tmp_path / FILE).read_bytes()
        ipcache.put(senseless, VALUE)
        assert await made.maps.write(tables) == 0
        await asyncio.sleep(0.02)  # in which it is tried again
        assert ipcache.is_dirty
        assert "makes no rules" in check(made)
        assert (kernel.done[-1], (tmp_path / FILE).read_bytes()) == (last, stored)
        ipcache.delete(senseless)
        await made.maps.write(tables)
        assert "makes no rules" not in check(made)


async def test_rules_are_said_on_disk_before_they_are_in_force(kernel: Kernel, tmp_path: Path) -> None:
    made = fallback(kernel, tmp_path)
    kernel.before_apply = lambda: kernel.done.append(f"file: {(tmp_path / FILE).exists()}")
    await made.begin()
    assert kernel.done[0] == "file: True"


async def test_rules_that_nft_never_took_are_not_said_to_be_in_force(kernel: Kernel, tmp_path: Path) -> None:
    kernel.refuses = "no nftables in this kernel"
    with pytest.raises(nft.NftError):
        await fallback(kernel, tmp_path).begin()
    assert not is_in_force(tmp_path)


async def test_a_full_disk_ends_nobody_and_the_file_is_written_when_there_is_room(
    kernel: Kernel, tmp_path: Path
) -> None:
    made = fallback(kernel, tmp_path)
    blocked = tmp_path / f"{FILE}.new"
    blocked.mkdir()  # no file can be made there
    async with at_work(made):
        assert "table inet" in kernel.done[-1]
        assert "not on the disk" in check(made)
        assert not is_in_force(tmp_path)
        blocked.rmdir()
        await until(lambda: is_in_force(tmp_path))
        await until(lambda: "not on the disk" not in check(made))


async def test_nobody_writes_between_what_is_dumped_and_the_new_start(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fallback(kernel, tmp_path)
    made._settings = replace(made._settings, force_fallback=False)
    table = holding(KEY, VALUE)
    filled: list[set[str]] = []
    writing: list[asyncio.Future[int]] = []

    class Pinned:
        def __init__(self, _: Path) -> None:
            """Empty maps, that the first time nobody can write."""

        def close(self) -> None:
            """Nothing is open."""

        async def read(self, _: str) -> dict[bytes, bytes]:
            return {}

        async def write(self, tables: tuple[Table, ...]) -> None:
            filled.append({each.name for each in tables if len(each)})
            writing.append(asyncio.ensure_future(made.maps.write((table,))))
            await asyncio.sleep(0.05)  # in which nothing of it may get to the rules: these maps would lack it
            assert not made.maps.dump(table.name)
            if len(filled) == 1:
                writing.pop().cancel()
                raise loader.LayoutError("drain the node")

    async def load(*_: object) -> loader.Loaded:
        return loader.Loaded(is_anew=False, instructions={}, migration=Migration(tmp_path, (), may_be_live=False))

    monkeypatch.setattr(loader, "load", load)
    monkeypatch.setattr(handover, "Maps", Pinned)
    monkeypatch.setattr(handover, "RETRY_SECONDS", 0.05)
    await made.begin()
    made.maps.is_whole.set()
    running = asyncio.create_task(made.run())
    await until(lambda: "drain the node" in check(made))  # and the service goes on
    assert await made.maps.write(tuple(Table(name) for name in TABLES)) == 0  # writes go on meanwhile
    with pytest.raises(ExceptionGroup) as ended:
        await running
    assert isinstance(ended.value.exceptions[0], handover.Recovered)
    assert len(filled) == 2
    assert not writing[0].done()
    writing[0].cancel()


async def test_pods_are_closed_by_tables_from_before_that_are_damaged_or_make_no_sense(
    kernel: Kernel, tmp_path: Path
) -> None:
    table = holding(KEY, VALUE)
    made = fallback(kernel, tmp_path)
    await made.maps.write((table,))
    file = tmp_path / FILE
    whole = file.read_bytes()
    assert made.maps.were_new
    assert not RuleMaps(made.place, tmp_path, TABLES).were_new, "rules from before may know more than the disk"
    assert RuleMaps(made.place, tmp_path, TABLES).dump("ipcache") == {KEY: VALUE}
    at = whole.index(KEY)
    file.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    assert RuleMaps(made.place, tmp_path, TABLES).dump("ipcache") == {}
    senseless = holding(b"\xff" + KEY[1:], VALUE)  # so many bits no address has
    assert await made.maps.write((senseless,)) == 0
    statefile.replace(file, statefile.first_state({"ipcache": msgspec.msgpack.encode(dict(senseless.wanted))}))
    again = fallback(kernel, tmp_path)
    await again.begin()
    assert again.maps.dump("ipcache") == {}


async def test_rules_that_no_file_speaks_of_go_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[str] = []

    async def apply(script: str) -> None:
        applied.append(script)

    async def has_table(name: str) -> bool:
        return not applied

    monkeypatch.setattr(nft, "apply", apply)
    monkeypatch.setattr(nft, "has_table", has_table)
    machine = Machine(tmp_path)
    async with machine.running() as node:
        await leave(node)
    assert applied == [removal()]


@pytest.mark.parametrize("with_programs", [True, False])
async def test_a_start_is_tried_again_only_while_pods_have_programs(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_programs: bool
) -> None:
    tried = 0

    async def refuses(*_: object) -> Datapath:
        nonlocal tried
        tried += 1
        raise OSError(12, "no memory")

    kernel.with_programs = {12} if with_programs else set()
    monkeypatch.setattr(datapath, "load", refuses)
    monkeypatch.setattr(handover, "AGAIN_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(NoHooks, "judged", lambda _, hooks: kernel.judged(hooks))
    settings = replace(node_settings(), pin_dir=tmp_path)
    async with AsyncExitStack() as stack:
        with pytest.raises(OSError, match="no memory"):
            await handover.load(settings, cast(Links, kernel), GROUND, stack)
    assert tried == (3 if with_programs else 1)


def test_what_the_version_before_had_in_force_stays(kernel: Kernel, tmp_path: Path) -> None:
    """Its entries of endpoints had 28 bytes; without them its pods would be closed until all is heard."""
    key, old = pack_address("10.0.0.5"), struct.pack("=IIIH6s6s2x", 9, 1000, 1001, 3, b"\x02" * 6, b"\x04" * 6)
    stored = msgspec.msgpack.encode({key: old, b"of another length": b""})
    statefile.replace(tmp_path / FILE, statefile.first_state({"endpoints": stored}))
    held = RuleMaps(fallback(kernel, tmp_path).place, tmp_path, TABLES)
    assert held.dump("endpoints") == {key: EndpointEntry(9, 1000, 1001, 3, b"\x02" * 6, b"\x04" * 6).pack()}
