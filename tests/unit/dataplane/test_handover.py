"""From BPF programs to rules and back, as far as it can be told without a kernel."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from services.dataplane.datapath import Ground
from services.dataplane.fallback import handover, nft
from services.dataplane.fallback.handover import held_back, leave, place_of
from services.dataplane.fallback.maps import FILE
from services.dataplane.fallback.rules import removal
from services.dataplane.links import DeviceInfo
from services.dataplane.loader import DatapathConfig
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
