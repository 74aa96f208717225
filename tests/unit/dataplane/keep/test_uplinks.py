"""Devices that lead out, as they come and go."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import replace
from pathlib import Path

import pytest

from bus import subjects
from bus.messages.ipam import Block
from bus.messages.resources import Node as NodeResource
from bus.service import Service, Settings
from bus.telemetry import counted
from bus.testing import Hub
from services.dataplane import __main__ as dataplane
from services.dataplane.keep import uplinks
from services.dataplane.keep.uplinks import DeviceChanged
from services.dataplane.kernel.links import LinkError
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.devices import NOT_DEFAULT, DeviceInfo, Route, Seen
from services.dataplane.shapes.layouts import DeviceEntry, DeviceKey
from tests.unit.dataplane.test_node import HERE, Machine, until
from tests.unit.dataplane.test_node_mishaps import checked

ETH1 = DeviceInfo(
    "eth1", 7, "", "198.51.100.1", 1500, networks=("198.51.100.0/24",), addresses=("198.51.100.1",), metric=200
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.populate()
    return made


def written(machine: Machine) -> dict[int, DeviceEntry]:
    entries = machine.maps.memory["devices"].entries.items()
    return {DeviceKey.unpack(key).index: DeviceEntry.unpack(value) for key, value in entries}


async def test_a_device_that_comes_has_programs_an_entry_and_neighbours_and_one_that_goes_has_none(
    machine: Machine,
) -> None:
    machine.hub.put(subjects.NODE.of("far"), NodeResource(name="far", addresses=["198.51.100.2"]))
    machine.hub.put(subjects.BLOCK.of("10.0.2.0/24"), Block(cidr="10.0.2.0/24", node="far"))
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        following = asyncio.ensure_future(node.uplinks.run_for_ever())
        assert "10.0.2.0/24" not in machine.links.routes
        machine.links.seen = Seen((machine.device, ETH1))
        machine.links.told.set()
        await until(lambda: ETH1.index in written(machine))
        assert machine.links.attached[ETH1.index] == {"ingress": "from_netdev"}
        assert written(machine)[ETH1.index].address == "198.51.100.1"
        await node.looks.run()
        assert machine.links.routes["10.0.2.0/24"].device == "eth1"
        assert machine.links.routes["10.0.1.0/24"].device == "eth0"
        await until(lambda: "eth1" in checked(node, "devices").detail)
        machine.links.seen = Seen((machine.device,))
        machine.links.told.set()
        await until(lambda: ETH1.index not in written(machine) and not machine.links.attached[ETH1.index])
        assert checked(node, "devices").ok
        following.cancel()


async def test_a_device_with_the_nodes_address_is_taken_when_that_is_heard(machine: Machine) -> None:
    machine.links.seen = Seen(
        (replace(machine.device, addresses=("192.0.2.1",), metric=0), replace(ETH1, metric=NOT_DEFAULT))
    )
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await node.looks.run()
        assert ETH1.index not in written(machine)
        machine.hub.put(subjects.NODE.of(HERE), NodeResource(name=HERE, addresses=["192.0.2.1", "198.51.100.1"]))
        await until(lambda: "198.51.100.1" in node.model.network.told)
        await node.looks.run()
        assert ETH1.index in written(machine)


async def test_without_its_own_end_a_node_begins_anew_with_another_or_goes_on_as_it_is(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        down = replace(ETH1, address="", addresses=())
        machine.links.seen = Seen((down,))
        await node.uplinks.follow()
        assert not checked(node, "devices").ok and "eth0 is gone" in checked(node, "devices").detail
        machine.links.seen = Seen((machine.device, ETH1))
        await node.uplinks.follow()
        assert checked(node, "devices").ok
        machine.links.seen = Seen((ETH1,))
        with pytest.raises(DeviceChanged, match=r"eth0 is gone: beginning anew with eth1 \(198.51.100.1\)"):
            await node.uplinks.follow()
        machine.links.seen = Seen((replace(machine.device, name="eth9"),))
        with pytest.raises(DeviceChanged, match="eth0 is named eth9"):
            await node.uplinks.follow()
        machine.links.seen = Seen((replace(ETH1, why_not="a port of bond0"),))  # no start would begin with it
        await node.uplinks.follow()
        assert "eth0 is gone" in checked(node, "devices").detail
        machine.links.seen = Seen((machine.device, replace(ETH1, mtu_bytes=1400)))
        with pytest.raises(DeviceChanged, match="1400 bytes fit"):
            await node.uplinks.follow()


async def test_what_cannot_be_followed_is_told_and_followed_by_the_next_look(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await node.looks.run()
        machine.links.seen = Seen((machine.device, ETH1))
        machine.links.broken = "the kernel refuses"
        await node.uplinks.follow()
        assert checked(node, "devices").detail == "the kernel refuses"
        assert ETH1.index not in written(machine)
        machine.links.broken = ""
        await node.looks.run()
        assert checked(node, "devices").ok and ETH1.index in written(machine)


async def test_a_device_that_is_renamed_keeps_its_programs(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        machine.links.seen = Seen((machine.device, ETH1))
        await node.uplinks.follow()
        attached = dict(machine.links.attached[ETH1.index])
        assert attached["ingress"] == "from_netdev"
        machine.links.seen = Seen((machine.device, replace(ETH1, name="lan1")))
        await node.uplinks.follow()
        assert checked(node, "devices").ok and "lan1" in checked(node, "devices").detail
        assert machine.links.attached[ETH1.index] == attached


@pytest.mark.parametrize("fails", ["remove", "write"])
async def test_what_could_not_be_taken_off_a_device_that_went_is_told_and_taken_off_by_the_next_look(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    async def refuse(*_: object) -> None:
        raise LinkError("the kernel refuses") if fails == "remove" else OSError(errno.ENOMEM, "the kernel refuses")

    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        machine.links.seen = Seen((machine.device, ETH1))
        await node.uplinks.follow()
        await node.looks.run()
        machine.links.seen = Seen((machine.device, replace(ETH1, metric=NOT_DEFAULT, address="", addresses=())))
        with monkeypatch.context() as patched:
            patched.setattr(node.hooks if fails == "remove" else node.maps, fails, refuse)
            await node.uplinks.follow()
            assert not checked(node, "devices").ok and "the kernel refuses" in checked(node, "devices").detail
            assert machine.links.attached[ETH1.index]
            assert node.devices.are_routes_stale
        await node.looks.run()
        assert checked(node, "devices").ok
        assert not machine.links.attached[ETH1.index] and ETH1.index not in written(machine)


async def test_what_a_device_was_given_goes_with_it_though_it_went_before_all_was_followed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse() -> None:
        raise LinkError("the kernel refuses")

    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        machine.links.seen = Seen((machine.device, ETH1))
        with monkeypatch.context() as patched:
            patched.setattr(node.own_addresses, "follow", refuse)
            await node.uplinks.follow()
        assert machine.links.attached[ETH1.index]
        machine.links.seen = Seen((machine.device,))
        await node.looks.run()
        assert checked(node, "devices").ok and not machine.links.attached[ETH1.index]


async def test_where_routes_by_its_devices_are_others_connections_look_for_their_way_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a default route goes, and its device stays with its address."""

    def raised() -> float:
        return counted("epochs_raised", scope="node")

    def by(*indexes: int, metric: int = 0) -> Route:
        return Route("0.0.0.0/0", 254, frozenset(indexes), metric)

    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        machine.links.seen = Seen((machine.device, ETH1), (by(ETH1.index),))
        await node.uplinks.follow()
        before = raised()
        await node.uplinks.follow()
        machine.links.seen = Seen((machine.device, ETH1), (by(ETH1.index), by(99)))
        await node.uplinks.follow()
        assert raised() == before, "nothing goes by that device"
        machine.links.seen = Seen((machine.device, ETH1), (by(ETH1.index, metric=7),))
        await node.uplinks.follow()
        assert raised() == before, "not again at once"
        monkeypatch.setattr(uplinks, "JUDGE_SECONDS", 0.0)
        await node.looks.run()
        assert raised() == before + 1, "but with a later look"
        await node.uplinks.follow()
        assert raised() == before + 1


async def test_with_another_own_end_the_datapath_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[bool] = []

    async def live(*_: object, filled: bool) -> None:
        begun.append(filled)
        if len(begun) == 1:
            raise ExceptionGroup("tasks", [DeviceChanged("eth0 is gone")])
        raise asyncio.CancelledError

    monkeypatch.setattr(dataplane, "live", live)
    with pytest.raises(asyncio.CancelledError):
        await dataplane.run(Service("dataplane", Settings(), Hub().bus()), NodeSettings(node="n"))
    assert begun == [False, False]
