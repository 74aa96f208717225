"""Devices and switches that somebody else changed: put back by the next look, told until the one after it."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from bus.service import Service, Settings
from bus.telemetry import counted
from bus.testing import Hub
from services.dataplane import __main__ as dataplane
from services.dataplane.fallback.handover import Recovered
from services.dataplane.kernel.links import LinkError, TunnelGone, advice
from services.dataplane.settings import NodeSettings
from tests.unit.dataplane.test_node import Machine, until
from tests.unit.dataplane.test_node_mishaps import checked


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.populate()
    made.settings = replace(made.settings, routing_mode="tunnel")
    return made


async def test_a_tunnel_that_was_set_down_is_told_and_put_back_with_its_routes_and_then_forgotten(
    machine: Machine,
) -> None:
    async with machine.running() as node:
        await until(lambda: machine.links.routes)
        routes, before = dict(machine.links.routes), counted("drift", kind="tunnel")
        machine.links.tunnel_wrong = "plexus_vxlan was down: put back"
        machine.links.routes.clear()  # the kernel does that, and tells nothing
        await node.looks.run()
        assert checked(node, "tunnel").detail == "plexus_vxlan was down: put back"
        assert not checked(node, "tunnel").ok
        assert machine.links.routes == routes
        assert counted("drift", kind="tunnel") == before + 1
        await node.looks.run()
        assert checked(node, "tunnel").ok and checked(node, "routes").ok


async def test_a_tunnel_that_is_gone_is_told_and_ends_this_datapath(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        machine.links.is_tunnel_gone = True
        with pytest.raises(TunnelGone):
            await node.looks.run()
        assert (checked(node, "tunnel").ok, checked(node, "tunnel").detail) == (False, "plexus_vxlan was removed")


async def test_with_the_tunnel_gone_the_datapath_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[bool] = []

    async def live(*_: object, filled: bool) -> None:
        begun.append(filled)
        if len(begun) == 3:
            raise KeyError
        raise ExceptionGroup("", [Recovered() if len(begun) == 1 else TunnelGone("gone")])

    monkeypatch.setattr(dataplane, "live", live)
    with pytest.raises((KeyError, ExceptionGroup)):
        await dataplane.run(Service("dataplane", Settings(), Hub().bus()), NodeSettings(node="n"))
    assert begun == [False, True, False], "rules may be newer than the maps by then"


async def test_routes_that_were_refused_are_tried_with_the_next_look(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: machine.links.routes)
        routes = dict(machine.links.routes)
        machine.links.broken = "Device for nexthop is not up"
        node.routes.made.clear()
        machine.links.routes.clear()
        await node.routes.follow()
        assert not checked(node, "routes").ok
        machine.links.broken = ""
        await node.looks.run()
        assert machine.links.routes == routes
        assert checked(node, "routes").ok


async def test_a_sysctl_that_somebody_set_is_told_and_put_back_and_then_forgotten(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        before = counted("drift", kind="sysctls")
        machine.links.sysctls["net.ipv4.ip_forward"] = "0"
        await node.looks.run()
        assert machine.links.sysctls == {"net.ipv4.ip_forward": "1"}
        assert not checked(node, "sysctls").ok
        assert checked(node, "sysctls").detail.startswith("net.ipv4.ip_forward was 0: put back; ")
        await node.looks.run()
        assert checked(node, "sysctls").ok
        assert counted("drift", kind="sysctls") == before + 1


async def test_a_sysctl_that_cannot_be_put_back_is_told_and_keeps_nothing_else_from_being_healed(
    machine: Machine,
) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        machine.links.broken = "mount /proc/sys writable"
        await node.looks.run()
        assert (checked(node, "sysctls").ok, checked(node, "sysctls").detail) == (False, "mount /proc/sys writable")
        machine.links.broken = ""
        await node.looks.run()
        assert checked(node, "sysctls").ok


async def test_a_pods_link_that_was_set_down_is_told_and_put_back_with_its_routes(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        address = await machine.add()
        await node.looks.run()
        assert checked(node, "links").ok
        machine.links.pods["lxcc1"] = replace(machine.links.pods["lxcc1"], up=False)
        machine.links.pod_routes.clear()
        machine.links.links_changed = True
        await node.looks.run()
        assert checked(node, "links").detail.startswith("lxcc1 was down: put back; ") and not checked(node, "links").ok
        assert machine.links.pods["lxcc1"].up and address in machine.links.pod_routes
        await node.looks.run()
        assert checked(node, "links").ok


async def test_a_pods_link_that_is_gone_is_told_by_the_second_look_until_its_pod_goes(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add()
        await node.looks.run()
        machine.links.pods.clear()
        machine.links.links_changed = True
        before = counted("drift", kind="links")
        await node.looks.run()
        assert checked(node, "links").ok, "its pod may be on its way out"
        for _ in range(2):
            await node.looks.run()
            told = "gone from this node, so cut off; delete the pods: default/web (lxcc1)"
            assert (checked(node, "links").ok, checked(node, "links").detail) == (False, told)
        await machine.delete()
        await node.looks.run()
        assert checked(node, "links").ok
        assert counted("drift", kind="links") == before, "nothing was put back"


async def test_a_link_that_cannot_be_mended_hides_no_other_and_may_have_lost_its_routes(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add()
        await machine.add("c2")
        await node.looks.run()
        machine.links.stuck.add("lxcc1")
        machine.links.pods["lxcc2"] = replace(machine.links.pods["lxcc2"], up=False)
        machine.links.links_changed = True
        before = counted("drift", kind="links")
        await node.looks.run()
        detail = checked(node, "links").detail
        assert detail.startswith("lxcc1 was named other: cannot rename it; ")
        assert "lxcc2 was down: put back; " in detail
        assert counted("drift", kind="links") == before + 1
        routes = dict(machine.links.pod_routes)
        machine.links.pod_routes.clear()
        await node.looks.run()
        assert not checked(node, "links").ok and machine.links.pod_routes == routes
        machine.links.stuck.clear()
        await node.looks.run()
        assert checked(node, "links").ok


@pytest.mark.parametrize("work", ["mend_tunnel", "mend_pod_links"])
async def test_routes_are_looked_at_when_a_device_was_mended_by_half(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    async def fail(*_: object) -> None:
        machine.links.pod_routes.clear()
        raise LinkError("refused")

    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add()
        await node.looks.run()
        routes = dict(machine.links.pod_routes)
        monkeypatch.setattr(machine.links, work, fail)
        machine.links.links_changed = True
        await node.looks.run()
        assert machine.links.pod_routes == routes


async def test_routes_that_could_not_be_put_back_are_so_by_the_next_look(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise LinkError("busy")

    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add()
        await node.looks.run()
        routes = dict(machine.links.pod_routes)
        machine.links.pod_routes.clear()
        machine.hooks.routes_gone = True  # the kernel tells it once
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(machine.links, "mend_pod_routes", fail)
            await node.looks.run()
        assert not machine.links.pod_routes
        await node.looks.run()
        assert machine.links.pod_routes == routes


async def test_what_is_found_while_routes_are_healed_is_kept(machine: Machine) -> None:
    async with machine.running() as node:
        with node.devices.healing_routes():
            node.devices.are_routes_stale = True
        assert node.devices.are_routes_stale


def test_a_device_that_is_gone_is_no_matter_of_privileges() -> None:
    assert advice(OSError(errno.ENODEV, "No such device")).endswith("; the device is gone")
    assert "CAP_NET_ADMIN" in advice(OSError(errno.EPERM, "Operation not permitted"))
