"""Pods whose records are lost: what is on disk, damaged, beside a kernel and a bus that still know them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bus import subjects
from bus.labels import canonical_labels
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.policy import PolicyRules, Selector
from bus.messages.resources import LabelSelector, Namespace, Pod, Requirement
from services.dataplane.pods import cni
from services.dataplane.pods.addresses import Attachment
from services.dataplane.pods.endpoints import record_key
from services.dataplane.shapes.layouts import pack_address
from tests.unit.dataplane.test_node import HERE, WEB, Machine, SilentHub, until
from tests.unit.dataplane.test_node_mishaps import checked

PODS = {"c1": "web", "c2": "b", "c3": "c"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.populate()
    say_pod(made, "b", 1001)
    say_pod(made, "c", 1002)
    return made


def say_pod(machine: Machine, name: str, identity: int) -> None:
    pod = Pod(namespace="default", name=name, uid="", node=HERE, labels={"app": name})
    labels = canonical_labels(pod, Namespace(name="default"))
    machine.hub.put(subjects.POD.of("default", name), pod)
    machine.hub.put(subjects.IDENTITY.of(str(identity)), Identity(number=identity, labels=labels))


async def started(machine: Machine) -> dict[str, str]:
    """All pods, running and known to the bus: address by container id."""
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        made = {container_id: await machine.add(container_id, pod) for container_id, pod in PODS.items()}
        await until(lambda: len(machine.hub.states("dataplane")) == len(PODS))
        known = {WEB, 1001, 1002}
        await until(lambda: {entry.identity for each in made.values() if (entry := machine.entry(each))} == known)
        return made


def file(machine: Machine) -> Path:
    return machine.folder / "endpoints.journal"


def damage(machine: Machine, *container_ids: str) -> None:
    data = bytearray(file(machine).read_bytes())
    for each in container_ids:
        data[data.rfind(f"endpoint/{each}".encode()) + 20] ^= 1
    file(machine).write_bytes(data)


def entries(machine: Machine) -> dict[bytes, bytes]:
    return dict(machine.maps.memory["endpoints"].entries)


@pytest.mark.parametrize(
    "harm",
    [
        lambda machine: damage(machine, "c1"),
        lambda machine: damage(machine, "c3"),  # the last record: it looks like what a crash leaves
        lambda machine: damage(machine, *PODS),
        lambda machine: file(machine).unlink(),
        lambda machine: file(machine).write_bytes(b""),
        lambda machine: file(machine).write_bytes(bytes(5000)),
    ],
    ids=["first", "last", "all", "removed", "empty", "zeros"],
)
async def test_pods_without_a_record_go_on_and_have_one_again(
    machine: Machine, harm: Callable[[Machine], object]
) -> None:
    made = await started(machine)
    before, told = entries(machine), dict(machine.hub.states("dataplane"))
    harm(machine)
    async with machine.running() as node:
        assert {each.address for each in node.endpoints.all()} == set(made.values())
        await until(lambda: node.service.is_ready)
        await until(lambda: checked(node, "records").ok)
        assert entries(machine) == before
        assert not node.journal.is_damaged
        assert await machine.add("c9", "new") not in made.values()
    assert {each: machine.hub.states("dataplane").get(each) for each in told} == told
    async with machine.running() as node:
        assert {(each.pod, each.address) for each in node.endpoints.all()} >= {(PODS[c], a) for c, a in made.items()}
        assert checked(node, "records").ok
        for container_id, pod in PODS.items():
            assert await machine.add(container_id, pod) == made[container_id]
            request = cni.Add(Attachment(container_id, "eth0"), "plexus", "default", pod, "", "/x", 0, "1.1.0")
            answer = msgspec.json.encode(cni.added(request, await machine.pods.add(request), {}).body)
            believed = msgspec.json.decode(answer, type=cni.Previous)
            assert await machine.pods.check(cni.Check(request.attachment, "plexus", 0, believed)) == ()
        assert set(node.journal.items("endpoint/")) == {record_key(each) for each in (*PODS, "c9")}
        for container_id in PODS:
            await machine.delete(container_id)
        assert set(machine.links.pods) == {"lxcc9"}
        assert set(node.journal.items("endpoint/")) == {record_key("c9")}


async def test_while_the_bus_is_away_they_go_on_as_the_kernel_has_them_and_it_is_told(machine: Machine) -> None:
    made = await started(machine)
    before, hub = entries(machine), machine.hub
    damage(machine, "c1", "c2")
    machine.hub = SilentHub()
    async with machine.running() as node:
        assert entries(machine) == before
        assert made["c1"] in checked(node, "records").detail and not checked(node, "records").ok
        await machine.delete("c2")
        assert made["c2"] not in checked(node, "records").detail
        assert set(machine.links.pods) == {"lxcc1", "lxcc3"}
        assert pack_address(made["c2"]) not in entries(machine)
        with pytest.raises(cni.CniError, match="no block"):  # the record of the newest may be what is lost
            await machine.add("c9", "new")
        await node.restart.heal()
        assert not checked(node, "records").ok
    machine.hub = hub
    async with machine.running() as node:
        await until(lambda: checked(node, "records").ok and node.service.is_ready)
        assert await machine.add("c9", "new") not in (made["c1"], made["c3"])


async def test_a_pod_whose_name_nobody_knows_keeps_its_entry_and_follows_the_policy_of_its_identity(
    machine: Machine,
) -> None:
    made = await started(machine)
    before = entries(machine)
    file(machine).unlink()
    for subject in list(machine.hub.states("dataplane")):
        machine.hub.delete(subject)
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert entries(machine) == before
        assert all(address in checked(node, "records").detail for address in made.values())
        wanted = Requirement(key="k8s:app", operator="In", values=["b"])
        selector = Selector(id="b", selector=LabelSelector(requirements=[wanted]), members=[1001])
        rules = PolicyRules(
            kind="NetworkPolicy", namespace="default", name="deny", subject="b", deny_ingress_by_default=True
        )
        machine.hub.put(subjects.SELECTOR.of("b"), selector)
        machine.hub.put(subjects.RULES.of("NetworkPolicy", "default", "deny"), rules)
        await until(lambda: (entry := machine.entry(made["c2"])) and entry.flags == 1)
        assert machine.entry(made["c1"]) is not None and await machine.add("c9", "new") not in made.values()
        for container_id in PODS:
            await machine.delete(container_id)
        assert checked(node, "records").ok and len(node.addresses.leases) == 1
        await node.heal.everything()
        assert not node.journal.is_damaged


async def test_what_identity_says_of_an_address_names_a_pod_if_it_is_of_the_same_identity(machine: Machine) -> None:
    made = await started(machine)
    for subject in list(machine.hub.states("dataplane")):
        machine.hub.delete(subject)
    for container_id, pod, identity in (("c1", "default/web", WEB), ("c2", "default/was-another", 77)):
        said = AddressIdentity(
            address=made[container_id], identity=identity, node=HERE, node_address="192.0.2.1", pod=pod
        )
        machine.hub.put(subjects.ADDRESS.of(made[container_id]), said)
    damage(machine, "c1", "c2")
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert {each.address: each.namespace for each in node.endpoints.all()} == {
            made["c1"]: "default", made["c2"]: "", made["c3"]: "default",
        }  # fmt: skip
        assert made["c1"] not in checked(node, "records").detail and made["c2"] in checked(node, "records").detail


async def test_a_link_without_an_entry_is_left_alone_and_its_address_is_not_given_out(machine: Machine) -> None:
    made = await started(machine)
    del machine.maps.memory["endpoints"].entries[pack_address(made["c1"])]
    for subject in list(machine.hub.states("dataplane")):
        machine.hub.delete(subject)
    damage(machine, "c1")
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert machine.entry(made["c1"]) is None
        assert not checked(node, "records").ok and set(machine.links.pods) == {"lxcc1", "lxcc2", "lxcc3"}
        assert await machine.add("c9", "new") != made["c1"]
        assert await machine.add("c1", "web") == made["c1"]
        assert checked(node, "records").ok and machine.entry(made["c1"]) is not None


async def test_a_link_that_a_killed_add_left_goes_where_no_record_is_lost(machine: Machine) -> None:
    made = await started(machine)
    async with machine.running() as node:
        await node.journal.update(deleted=[record_key("c1"), record_key("c2")])
    before = entries(machine)
    del before[pack_address(made["c1"])], machine.maps.memory["endpoints"].entries[pack_address(made["c1"])]
    async with machine.running():
        assert set(machine.links.pods) == {"lxcc2", "lxcc3"}, "an entry is made after the record"
        assert entries(machine) == before


async def test_a_pod_that_went_without_a_word_is_forgotten(machine: Machine) -> None:
    made = await started(machine)
    for subject in list(machine.hub.states("dataplane")):
        machine.hub.delete(subject)
    damage(machine, "c1", "c2")
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        for name in ("lxcc1", "lxcc2"):
            await machine.links.delete_pod_link(name)
        await node.heal.everything()
        assert checked(node, "records").ok
        assert entries(machine).keys() == {pack_address(made["c3"])}
        assert len(node.addresses.leases) == 1


async def test_an_address_that_something_on_the_node_uses_is_not_given_out(machine: Machine) -> None:
    machine.links.pod_routes["10.0.0.2"] = 77  # of somebody else
    machine.links.addresses["10.0.0.3"] = "dummy0"
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert await machine.add() == "10.0.0.4"
        machine.links.addresses.clear()
        await node.restart.heal()
        assert {await machine.add(f"c{number}", f"p{number}") for number in range(2, 253)} > {"10.0.0.3"}
        assert "10.0.0.2" not in {address for each in node.addresses.leases.values() for address in each}


async def test_a_full_disk_is_told_and_told_right_when_there_is_room(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await started(machine)
    damage(machine, "c1")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("services.dataplane.store.journal._write_all", full)
        async with machine.running() as node:
            await until(lambda: node.service.is_ready)
            await until(lambda: not checked(node, "journal").ok)
            with pytest.raises(OSError, match="No space"):
                await machine.add("c9", "new")
            assert not checked(node, "records").ok
            broken.undo()
            await node.heal.everything()
            assert checked(node, "journal").ok and checked(node, "records").ok
            assert await machine.add("c9", "new")


async def test_a_state_directory_that_cannot_be_used_stops_no_pod(machine: Machine) -> None:
    made = await started(machine)
    before = entries(machine)
    blocked = machine.folder / "blocked"
    blocked.write_text("in the way")
    machine.folder = blocked
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert not checked(node, "journal").ok
        assert entries(machine) == before
        with pytest.raises(OSError, match="blocked"):
            await machine.add("c9", "new")
        blocked.unlink()
        await node.heal.everything()
        assert checked(node, "journal").ok and checked(node, "records").ok
        assert await machine.add("c9", "new") not in made.values()
        assert set(node.journal.items("endpoint/")) >= {record_key("c9")}


@pytest.mark.parametrize("seed", range(60))
async def test_whatever_is_damaged_no_running_pod_loses_anything(machine: Machine, seed: int) -> None:
    """Bytes changed, the file cut, records missing from the bus, the bus away: one or several at a time."""
    chance = random.Random(seed)
    made = await started(machine)
    before, hub = entries(machine), machine.hub
    data = bytearray(file(machine).read_bytes())
    for _ in range(chance.randrange(1, 6)):
        place = chance.randrange(len(data))
        data[place : place + chance.choice((1, 1, 30))] = bytes([chance.randrange(256)])
    file(machine).write_bytes(data[: chance.choice((len(data), chance.randrange(len(data))))])
    for subject in list(hub.states("dataplane")):
        if chance.random() < 0.3:
            hub.delete(subject)
    if chance.random() < 0.3:
        machine.hub = SilentHub()
        async with machine.running():
            assert entries(machine) == before
        machine.hub = hub
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert entries(machine) == before
        assert {await machine.add(f"n{number}", f"n{number}") for number in range(5)}.isdisjoint(made.values())
        assert {pack_address(address) for address in made.values()} <= entries(machine).keys()
        for container_id, pod in PODS.items():
            assert await machine.add(container_id, pod) == made[container_id]
        await asyncio.gather(*map(machine.delete, PODS))
        await node.heal.everything()
        assert checked(node, "records").ok
        assert len(machine.links.pods) == 5
