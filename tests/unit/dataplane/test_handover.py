"""From BPF programs to rules and back, as far as it can be told without a kernel."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from bus.service import Service, Settings
from bus.testing import Hub
from services.dataplane import notrack
from services.dataplane.attach import Hook
from services.dataplane.datapath import Ground
from services.dataplane.fallback import handover, nft
from services.dataplane.fallback.handover import Fallback, HeldBack, held_back, leave, place_of
from services.dataplane.fallback.hooks import NoHooks
from services.dataplane.fallback.maps import FILE
from services.dataplane.fallback.rules import removal
from services.dataplane.links import DeviceInfo, Links
from services.dataplane.loader import DatapathConfig
from services.dataplane.rtnl import SeenLink
from services.dataplane.settings import NodeSettings
from tests.unit.dataplane.test_node import Machine, until

DEVICE = DeviceInfo("eth0", 2, "02:00:00:00:00:10", "192.0.2.1", 1500, address6="2001:db8::1")
GROUND = Ground(DEVICE, 4, 3, 1450, DatapathConfig(device_index=2))


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


LINKS = [SeenLink("lxc1", 11, "", 1500, "veth", 0, 0, up=True), SeenLink("lxc2", 12, "", 1500, "veth", 0, 0, up=True)]


class Kernel:
    """Links, programs and nftables that do as they are told, and what was done in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.links = list(LINKS)
        self.with_programs = {each.index for each in LINKS}
        self.done: list[str] = []  # scripts put in force, and "programs taken away"
        self.refuses = ""
        for name in ("apply", "counters", "has_chain"):
            monkeypatch.setattr(nft, name, getattr(self, name))

    async def apply(self, script: str) -> None:
        if self.refuses:
            raise nft.NftError(self.refuses)
        self.done.append(script)

    async def counters(self) -> dict[str, tuple[int, int]]:
        return {}

    async def has_chain(self, name: str) -> bool:
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
