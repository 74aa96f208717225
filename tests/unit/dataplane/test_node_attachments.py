"""Whose an attachment is: which network's, which container's, which pod's; and that nobody else's request ends it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bus import subjects
from bus.labels import canonical_labels
from bus.messages.dataplane import CONTAINERS
from bus.messages.dataplane import Endpoint as EndpointSaid
from bus.messages.identity import Identity
from bus.messages.ipam import Block
from bus.messages.resources import Namespace, Pod
from services.dataplane.kernel.links import LinkError
from services.dataplane.pods import cni
from services.dataplane.pods.addresses import Attachment
from services.dataplane.pods.endpoints import record_key
from services.dataplane.store.journal import Journal
from tests.unit.dataplane.test_node import HERE, Machine, until


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.populate()
    return made


def ask(container: str, network: str = "plexus", ifname: str = "eth0", pod: str = "web") -> cni.Add:
    return cni.Add(Attachment(container, ifname), network, "default", pod, "", "/x", 0, "1.1.0")


def collect(network: str, *valid: str) -> cni.Collect:
    return cni.Collect(network, frozenset(Attachment(each, "eth0") for each in valid))


def living(machine: Machine) -> set[str]:
    return {each.container_id for each in machine.node.endpoints.all()}


async def test_a_network_collects_what_it_made_and_nothing_else(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        for container, network in (("a1", "a"), ("a2", "a"), ("b1", "b")):
            await machine.pods.add(ask(container, network, pod=container))
        await machine.pods.collect(collect("other"))
        assert living(machine) == {"a1", "a2", "b1"}
        await machine.pods.collect(collect("a", "a2"))
        assert living(machine) == {"a2", "b1"}
    async with machine.running() as node:  # it is in the record
        await until(lambda: node.service.is_ready)
        await machine.pods.collect(collect("b", "a2"))
        assert living(machine) == {"a2"} and set(machine.links.pods) == {"lxca2"}
        await machine.pods.collect(collect("a"))
        assert living(machine) == set() and node.addresses.leases == {}


async def test_what_no_record_says_the_network_of_is_collected_by_none_until_it_is_added_again(
    machine: Machine,
) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add("c1")
    journal = Journal.open(machine.folder / "endpoints.journal", durable=False)
    record = journal.get(record_key("c1"))
    assert record.pop("network") == "plexus"
    await journal.put(record_key("c1"), record)  # as a version before this one has written it
    await journal.close()
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.pods.collect(collect("plexus"))
        assert living(machine) == {"c1"}
        await machine.add("c1")
        await machine.pods.collect(collect("plexus"))
        assert living(machine) == set()


async def test_collecting_goes_on_past_what_cannot_be_removed_and_tells_of_it(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        for container in ("c1", "c2", "c3"):
            await machine.add(container, container)
        machine.links.stuck = {"lxcc1"}
        with pytest.raises(cni.CniError, match="1 of 3"):
            await machine.pods.collect(collect("plexus"))
        assert set(machine.links.pods) == {"lxcc1"} and living(machine) == set()
        machine.links.stuck = set()
        await node.heal.everything()
        assert machine.links.pods == {} and node.addresses.leases == {}


async def test_another_networks_add_and_del_of_an_interface_leave_it_to_its_own(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        made = await machine.pods.add(ask("c1", "a"))
        with pytest.raises(cni.CniError, match="the network a has made eth0"):
            await machine.pods.add(ask("c1", "b"))
        await machine.pods.delete(cni.Delete(Attachment("c1", "eth0"), "b"))  # as after each ADD that failed
        assert machine.entry(made.ips[0].address) is not None and set(machine.links.pods) == {"lxcc1"}
        await machine.pods.delete(cni.Delete(Attachment("c1", "eth0"), "a"))
        assert machine.links.pods == {} and node.addresses.leases == {}


async def test_what_a_renamed_network_left_is_free_once_its_namespace_is_gone(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.pods.add(ask("c1", "before"))
        await machine.pods.delete(cni.Delete(Attachment("c1", "eth0"), "after"))
        await machine.pods.add(ask("c2", "after", pod="other"))
        assert living(machine) == {"c1", "c2"}, "it may be another network's"
        del machine.links.pods["lxcc1"]
        await machine.pods.add(ask("c3", "after", pod="third"))
        assert living(machine) == {"c2", "c3"} and Attachment("c1", "eth0") not in node.addresses.leases


async def test_a_second_interface_is_refused_and_the_first_stays(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        made = await machine.pods.add(ask("c1"))
        for network in ("plexus", "b"):
            with pytest.raises(cni.CniError, match="CNI_IFNAME: the sandbox has eth0"):
                await machine.pods.add(ask("c1", network, "eth1"))
            await machine.pods.delete(cni.Delete(Attachment("c1", "eth1"), network))
            await machine.pods.collect(collect("b"))
        assert machine.entry(made.ips[0].address) is not None and set(machine.links.pods) == {"lxcc1"}


async def test_a_second_sandbox_of_a_pod_leaves_the_first_its_interface_and_speaks_for_the_pod(
    machine: Machine,
) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        first, second = await machine.add("c1"), await machine.add("c2")
        assert first != second
        await until(lambda: (said := machine.said()) and said.address == second)
        assert machine.entry(first) is not None and machine.entry(second) is not None
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        assert machine.entry(first) is not None and machine.entry(second) is not None
        await machine.delete("c2")
        assert machine.entry(second) is None
        await until(lambda: (said := machine.said()) and said.address == first)
        await machine.delete("c1")
        await until(lambda: machine.said() is None)
        assert machine.links.pods == {} and node.addresses.leases == {}


async def test_a_sandbox_that_is_gone_without_a_del_ends_when_its_pod_gets_another(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        first = await machine.add("c1")
        del machine.links.pods["lxcc1"]
        await machine.add("c2")
        assert machine.entry(first) is None and living(machine) == {"c2"}
        assert set(node.addresses.leases) == {Attachment("c2", "eth0")}
        assert set(node.journal.items("endpoint/")) == {record_key("c2")}


async def test_a_container_of_no_pod_is_closed_listed_and_open_when_a_pod_of_its_name_is_known(
    machine: Machine,
) -> None:
    asked = replace(ask("4f5e", pod="4f5e"), namespace=CONTAINERS)
    said_at = subjects.ENDPOINT.of(HERE, CONTAINERS, "4f5e")
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        address = (await machine.pods.add(asked)).ips[0].address
        found = machine.entry(address)
        assert found is not None and (found.policy, found.flags) == (0, 3)
        await until(lambda: said_at in machine.hub.states("dataplane"))
        said = machine.hub.states("dataplane")[said_at]
        assert isinstance(said, EndpointSaid) and (said.address, said.state) == (address, "waiting-for-identity")
        pod, namespace = Pod(namespace=CONTAINERS, name="4f5e", uid="u", node=HERE), Namespace(name=CONTAINERS)
        machine.hub.put(subjects.NAMESPACE.of(CONTAINERS), namespace)
        machine.hub.put(subjects.POD.of(CONTAINERS, "4f5e"), pod)
        machine.hub.put(subjects.IDENTITY.of("1001"), Identity(number=1001, labels=canonical_labels(pod, namespace)))
        await until(lambda: (entry := machine.entry(address)) and (entry.identity, entry.flags) == (1001, 0))
        await machine.pods.delete(cni.Delete(asked.attachment, "plexus"))
        await until(lambda: said_at not in machine.hub.states("dataplane"))
        assert machine.entry(address) is None


async def test_check_looks_at_what_the_runtime_remembers(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        request = ask("c1")
        told = msgspec.json.encode(cni.added(request, await machine.pods.add(request), {}).body)
        right = msgspec.json.decode(told, type=cni.Previous)
        asked = cni.Check(request.attachment, "plexus", 0, right)
        assert await machine.pods.check(asked) == ()
        assert await machine.pods.check(replace(asked, previous=cni.Previous())) != ()
        assert "network plexus, not to b" in (await machine.pods.check(replace(asked, network="b")))[0]


async def test_status_tells_of_addresses_that_are_used_up_and_whether_more_is_amiss(machine: Machine) -> None:
    machine.hub.delete(subjects.BLOCK.of("10.0.0.0/24"))
    machine.hub.put(subjects.BLOCK.of("10.0.0.0/29"), Block(cidr="10.0.0.0/29", node=HERE))
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        for number in range(5):
            await machine.pods.status()
            await machine.add(f"c{number}", f"c{number}")
        with pytest.raises(cni.CniError, match=r"no free IPv4 .*: its blocks are 10.0.0.0/29") as told:
            await machine.pods.status()
        assert told.value.code == cni.NOT_AVAILABLE
        with pytest.raises(cni.CniError):
            await machine.add("c9", "c9")
        node.service.check("routes", False, "10.0.1.0/24: no way")
        with pytest.raises(cni.CniError) as told:
            await machine.pods.status()
        assert (told.value.code, told.value.details) == (cni.LIMITED, "routes: 10.0.1.0/24: no way")
        await machine.delete("c0")
        await machine.pods.status()


async def test_a_del_that_fails_for_an_older_sandbox_does_not_touch_the_newer(machine: Machine) -> None:
    async with machine.running() as node:
        await until(lambda: node.service.is_ready)
        await machine.add("c1")
        second = await machine.add("c2")
        machine.links.stuck = {"lxcc1"}
        with pytest.raises(LinkError):
            await machine.delete("c1")
        machine.links.stuck = set()
        await node.heal.everything()
        assert set(machine.links.pods) == {"lxcc2"} and machine.entry(second) is not None
