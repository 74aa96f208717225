"""What goes wrong on a node harms nothing else: senseless messages, a kernel that refuses, a process that is killed."""

from __future__ import annotations

import asyncio
import errno
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bus import subjects
from bus.codec import decode
from bus.labels import canonical_labels
from bus.messages.dataplane import Check
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.ipam import Block
from bus.messages.log import Vouched
from bus.messages.policy import PolicyRules, Selector
from bus.messages.resources import LabelSelector, Namespace, Pod, Requirement
from bus.messages.resources import Node as NodeResource
from services.dataplane.kernel.links import LinkError
from services.dataplane.node import Node
from services.dataplane.pods import blocks, cni
from services.dataplane.pods.addresses import Attachment
from services.dataplane.pods.endpoints import record_key
from tests.unit.dataplane.test_node import HERE, THERE, WEB, Machine, SilentHub, until


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.populate()
    return made


def checked(node: Node, name: str) -> Check:
    return next(each for each in node.service.health().checks if each.name == name)


def say_address(machine: Machine, identity: int) -> None:
    message = AddressIdentity(
        address="10.0.1.7", identity=identity, node=THERE, node_address="192.0.2.2", pod="default/x"
    )
    machine.hub.put(subjects.ADDRESS.of("10.0.1.7"), message)


# Messages


async def test_a_new_pod_of_a_governed_label_set_is_never_open_though_policy_has_not_heard_of_it(
    machine: Machine,
) -> None:
    wanted = Requirement(key="k8s:io.kubernetes.pod.namespace", operator="In", values=["default"])
    subject = Selector(id="all", selector=LabelSelector(requirements=[wanted]), members=[])
    rules = PolicyRules(
        kind="NetworkPolicy", namespace="default", name="deny", subject="all", deny_ingress_by_default=True
    )
    machine.hub.put(subjects.SELECTOR.of("all"), subject)
    machine.hub.put(subjects.RULES.of("NetworkPolicy", "default", "deny"), rules)
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        address = await machine.add()
        await until(lambda: (entry := machine.entry(address)) and entry.identity == WEB)
        found = machine.entry(address)
        assert found is not None and (found.policy, found.flags) == (WEB, 1)


async def test_a_message_out_of_range_changes_nothing_and_shows_until_it_is_said_right(machine: Machine) -> None:
    say_address(machine, 5)
    async with machine.running() as node:
        await until(lambda: machine.who("10.0.1.7") == (5, "192.0.2.2"))
        assert checked(node, "changes").ok
        say_address(machine, -1)
        machine.hub.put(subjects.NODE.of("node-3"), NodeResource(name="node-3", addresses=["192.0.2.3"]))
        machine.hub.put(subjects.BLOCK.of("10.0.2.0/24"), Block(cidr="10.0.2.0/24", node="node-3"))
        await until(lambda: "10.0.2.0/24" in machine.links.routes)
        assert machine.who("10.0.1.7") == (5, "192.0.2.2")
        assert subjects.ADDRESS.of("10.0.1.7") in checked(node, "changes").detail
        say_address(machine, 6)
        await until(lambda: machine.who("10.0.1.7") == (6, "192.0.2.2"))
        assert checked(node, "changes").ok


@pytest.mark.parametrize("number", [-1, 1, 2**24, 2**32, 2**70 % 2**63])
async def test_the_number_of_a_label_set_that_is_none_leaves_its_pods_closed(machine: Machine, number: int) -> None:
    machine.hub.delete(subjects.IDENTITY.of(str(WEB)))
    pod, namespace = Pod(namespace="default", name="web", uid="u", node=HERE), Namespace(name="default")
    senseless = Identity(number=number, labels=canonical_labels(pod, namespace))
    machine.hub.put(subjects.IDENTITY.of("7"), senseless)
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        address = await machine.add()
        found = machine.entry(address)
        assert found is not None and (found.policy, found.flags) == (0, 3)
        assert not checked(node, "changes").ok
        machine.hub.delete(subjects.IDENTITY.of("7"))
        await until(lambda: checked(node, "changes").ok)


@pytest.mark.parametrize("cidr", ["10.0.0.0/16", "0.0.0.0/0", "10.0.9.9/32"])
async def test_a_senseless_block_leaves_the_node_with_those_that_it_has(machine: Machine, cidr: str) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        machine.hub.put(subjects.BLOCK.of(cidr), Block(cidr=cidr, node=HERE))
        await until(lambda: not (checked(node, "addresses").ok and checked(node, "changes").ok))
        assert node.addresses.blocks == ("10.0.0.0/24",)
        assert node.journal.get(blocks.KEY) == ["10.0.0.0/24"]
        assert await machine.add() == "10.0.0.2"
        assert node.service.is_ready
        machine.hub.delete(subjects.BLOCK.of(cidr))
        await until(lambda: checked(node, "addresses").ok and checked(node, "changes").ok)


async def test_a_node_whose_clock_went_back_vouches_with_a_higher_number_all_the_same(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nobody would hear its endpoints after a loss of their log; a new process knows of it too."""
    subject, now = subjects.VOUCHED["dataplane"].of(HERE), time.time_ns()
    numbers: list[int] = []

    def vouched() -> int:
        entry = machine.hub.log("dataplane").entries.get(subject)
        return decode(subject, entry.body, Vouched).number if entry is not None and entry.body is not None else 0

    for at in (now + 86_400 * 10**9, now, now - 10**9):
        monkeypatch.setattr(time, "time_ns", lambda at=at: at)
        async with machine.running() as node:
            await until(lambda: vouched() not in (0, *numbers))
            numbers.append(vouched())
            monkeypatch.setattr(time, "time_ns", lambda: 0)
            assert await node.restart.next_word() == numbers[-1] + 1
    assert numbers == sorted(set(numbers))


async def test_what_cannot_be_settled_shows_and_the_rest_is_written(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        with monkeypatch.context() as broken:
            broken.setattr(node.model.policy.store, "policy_of", _fail)
            address = await machine.add()
            say_address(machine, 5)
            await until(lambda: machine.who("10.0.1.7"))
            found = machine.entry(address)
            assert found is not None and (found.policy, found.flags) == (0, 3), "closed, as nothing is known of it"
            assert checked(node, "changes").detail.endswith(f"identity {WEB}")
        say_address(machine, 6)
        await until(lambda: (entry := machine.entry(address)) and entry.flags == 0)
        assert checked(node, "changes").ok


def _fail(*_: object) -> None:
    raise OverflowError("too much")


# The kernel refuses


async def test_the_routers_address_that_cannot_be_set_is_told_and_tried_again(machine: Machine) -> None:
    machine.links.broken = "no"
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await until(lambda: not checked(node, "routes").ok)
        machine.links.broken = ""
        await node.heal.everything()
        assert machine.links.routers == {4: "10.0.0.1"}
        assert set(machine.links.routes) == {"10.0.1.0/24"}
        assert checked(node, "routes").ok


async def test_a_route_that_does_not_go_is_tried_again_and_ends_nothing(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: "10.0.1.0/24" in machine.links.routes)
        machine.links.broken = "no"
        machine.hub.delete(subjects.BLOCK.of("10.0.1.0/24"))
        await until(lambda: not checked(node, "routes").ok)
        machine.links.broken = ""
        await node.heal.everything()
        assert machine.links.routes == {}


async def test_healing_that_the_kernel_refuses_is_told_and_tried_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.dataplane.keep.heal.HEAL_SECONDS", 0.001)

    async def refuse() -> list[object]:
        raise LinkError("no")

    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        healing = asyncio.ensure_future(node.heal.run_for_ever())
        with monkeypatch.context() as broken:
            broken.setattr(machine.links, "list_node_routes", refuse)
            await until(lambda: any(each.name == "drift" and not each.ok for each in node.service.health().checks))
        await until(lambda: checked(node, "drift").ok)
        healing.cancel()


async def test_routes_from_before_a_restart_that_nobody_wants_go(machine: Machine) -> None:
    async with machine.running():
        await until(lambda: "10.0.1.0/24" in machine.links.routes)
    machine.hub.delete(subjects.BLOCK.of("10.0.1.0/24"))
    async with machine.running():
        await until(lambda: machine.links.routes == {})


async def test_a_start_with_a_full_disk_forgets_who_is_gone_at_the_next(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add("c1")
        await machine.add("c2", "other")
    del machine.links.pods["lxcc1"]
    with monkeypatch.context() as broken:
        broken.setattr("services.dataplane.store.journal._write_all", full)
        async with machine.running() as node:
            assert [each.container_id for each in node.endpoints.all()] == ["c2"]
            await until(lambda: node.service.is_ready)
    async with machine.running() as node:
        assert set(node.journal.items("endpoint/")) == {record_key("c2")}


async def test_a_full_disk_is_told_until_there_is_room_and_not_longer(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(key: str, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        with monkeypatch.context() as broken:
            broken.setattr(node.journal, "put", full)
            machine.hub.put(subjects.BLOCK.of("10.0.8.0/24"), Block(cidr="10.0.8.0/24", node=node.settings.node))
            await until(lambda: not checked(node, "addresses").ok)
            assert "No space left" in checked(node, "addresses").detail
            await node.looks.run()
            assert not checked(node, "addresses").ok
        await node.looks.run()
        assert checked(node, "addresses").ok
        assert "10.0.8.0/24" in node.journal.get("blocks")


async def test_a_start_with_full_maps_goes_on(machine: Machine) -> None:
    machine.maps.memory["ipcache"].room = 0
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert not checked(node, "room").ok
        machine.maps.memory["ipcache"].room = 100
        await node.heal.everything()
        assert machine.who("192.0.2.1") is not None
        assert checked(node, "room").ok


# Killed, or cut off


def epoch(machine: Machine) -> int:
    return int(struct.unpack_from("=I", machine.maps.memory["node_state"].get(bytes(4)) or bytes(4))[0])


async def test_after_a_restart_connections_are_judged_again_though_the_maps_are_right(machine: Machine) -> None:
    """The process before may have been killed after it wrote and before it said so."""
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add()
        await until(lambda: (said := machine.said()) and said.state == "ready")
    before = epoch(machine)
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert epoch(machine) == before + 1


async def test_reading_the_maps_for_drift_keeps_nobody_from_writing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        go_on = asyncio.Event()
        read = node.maps.read

        async def slowly(name: str) -> dict[bytes, bytes]:
            found = await read(name)
            await go_on.wait()
            return found

        monkeypatch.setattr(node.maps, "read", slowly)
        healing = asyncio.ensure_future(node.heal.everything())
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            address = await machine.add()
        before = epoch(machine)
        go_on.set()
        await healing
        assert machine.entry(address) is not None
        assert epoch(machine) == before, "what was written meanwhile is no drift"


# Pods


async def test_an_add_that_is_not_durable_leaves_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(key: str, value: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        with monkeypatch.context() as broken:
            broken.setattr(node.journal, "put", refuse)
            with pytest.raises(OSError, match="full"):
                await machine.add()
        assert (machine.links.pods, dict(node.addresses.leases), len(node.leftovers)) == ({}, {}, 0)


async def test_an_add_that_is_cut_off_leaves_nothing_though_its_record_is_on_its_way(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        disk = threading.Event()
        node.journal._thread.submit(disk.wait, 10)  # every write waits for this
        adding = asyncio.ensure_future(machine.add())
        await until(lambda: machine.links.pods)
        await asyncio.sleep(0.01)
        adding.cancel()
        await until(lambda: not machine.links.pods)
        assert node.addresses.leases, "its record may still say so"
        disk.set()
        with pytest.raises(asyncio.CancelledError):
            await adding
        await node.journal.put("after", 1)
        assert (machine.links.pods, dict(node.addresses.leases), len(node.leftovers)) == ({}, {}, 0)
        assert node.journal.items("endpoint/") == {}
        assert await machine.add()


async def test_what_an_add_that_failed_could_not_take_back_goes_later(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(key: str, value: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        machine.links.stuck = {"lxcc1"}
        with monkeypatch.context() as broken:
            broken.setattr(node.journal, "put", refuse)
            with pytest.raises(OSError, match="full"):
                await machine.add()
        assert node.addresses.leases, "its link still has the address"
        assert await machine.add("c2", "other") != "10.0.0.2"
        machine.links.stuck = set()
        await node.heal.everything()
        assert set(machine.links.pods) == {"lxcc2"}
        assert len(node.addresses.leases) == 1


async def test_a_sandbox_that_comes_back_while_it_is_left_over_is_not_removed_under_it(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        address = await machine.add()
        machine.links.stuck = {"lxcc1"}
        with pytest.raises(LinkError):
            await machine.delete()
        machine.links.stuck = set()
        assert await machine.add() == address
        await node.heal.everything()
        assert set(machine.links.pods) == {"lxcc1"}
        assert set(node.journal.items("endpoint/")) == {record_key("c1")}


async def test_a_del_of_another_interface_does_not_touch_the_pods(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        address = await machine.add()
        await machine.pods.delete(cni.Delete(Attachment("c1", "net1"), "plexus"))
        assert machine.entry(address) is not None and len(node.endpoints) == 1
        await machine.pods.collect(cni.Collect("plexus", frozenset({Attachment("c1", "eth0")})))
        assert machine.entry(address) is not None
        await machine.pods.collect(cni.Collect("plexus", frozenset({Attachment("c1", "net1")})))
        assert machine.entry(address) is None and machine.links.pods == {}


async def test_a_sandbox_is_one_pods(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add("c1", "web")
        with pytest.raises(cni.CniError, match="default/web"):
            await machine.add("c1", "other")
        assert node.endpoints.of_pod("default", "other") is None
        assert node.endpoints.of_pod("default", "web") is not None


# A restart


async def test_before_anything_is_heard_a_pod_gets_an_address_of_the_blocks_from_before(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
    machine.hub = SilentHub()
    async with machine.running() as node:
        assert not node.is_synced
        await machine.pods.status()
        assert await machine.add("c1", "web") == "10.0.0.2"
        [endpoint] = node.endpoints.all()
        assert endpoint.gateway == "10.0.0.1"


async def test_blocks_from_before_that_make_no_sense_do_not_keep_the_node_from_starting(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await node.journal.put(blocks.KEY, ["10.0.0.0/24", "10.0.0.0/16"])
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert await machine.add() == "10.0.0.2"


async def test_a_link_made_anew_by_someone_else_is_not_the_pods(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add()
    machine.links.pods["lxcc1"] = replace(machine.links.pods["lxcc1"], index=99)
    machine.links.attached.clear()
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert (len(node.endpoints), machine.links.pods, machine.links.attached) == (0, {}, {})
        assert node.journal.items("endpoint/") == {}


async def test_one_endpoint_that_cannot_be_taken_up_does_not_keep_the_others(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add("c1", "web")
        taken = node.journal.items("endpoint/")[record_key("c1")]
        second = machine.links.pods["lxcc1"]
        machine.links.pods["lxcc2"] = replace(second, name="lxcc2")
        twin = taken | {"container_id": "c2", "pod": "twin", "interface": "lxcc2", "created": 7}
        await node.journal.put(record_key("c2"), twin)
        await node.journal.put(record_key("c3"), {"container_id": 7})
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert [each.container_id for each in node.endpoints.all()] == ["c1"]
        assert set(machine.links.pods) == {"lxcc1"}
        assert set(node.journal.items("endpoint/")) == {record_key("c1")}


async def test_programs_that_cannot_be_attached_and_links_that_do_not_go_do_not_keep_it_from_starting(
    machine: Machine,
) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add()
    machine.links.pods["lxcorphan"] = replace(machine.links.pods["lxcc1"], name="lxcorphan")
    machine.links.attached.clear()
    machine.links.broken = "no"
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        machine.links.broken = ""
        await node.looks.run()
        assert machine.links.attached != {}
