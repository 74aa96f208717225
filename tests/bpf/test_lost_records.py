"""The node's journal is damaged while its pods run and the dataplane does not: they notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import Callable

import pytest

from bus import subjects
from bus.messages.dataplane import Check
from bus.messages.policy import PolicyRules, Selector
from bus.messages.resources import LabelSelector, Requirement
from services.dataplane.node import Node
from services.dataplane.parts.counters import counted
from services.dataplane.pods import cni
from services.dataplane.pods.addresses import Attachment
from services.dataplane.pods.verbs import NodePods
from tests.bpf.attaching import socket_in
from tests.bpf.spaces import in_namespace, opened
from tests.bpf.test_pins import Pods, say_other
from tests.bpf.test_start import Place, place

__all__ = ["place"]  # a fixture

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loads programs")

POLICY_DENIED = 133
DAMAGES = 30
PATIENCE_SECONDS = 30.0


def deny_all_to_web(place: Place) -> None:
    wanted = Requirement(key="k8s:app", operator="DoesNotExist", values=[])
    selector = Selector(id="web", selector=LabelSelector(requirements=[wanted]), members=[1000])
    rules = PolicyRules(
        kind="NetworkPolicy", namespace="default", name="deny", subject="web", deny_ingress_by_default=True
    )
    place.hub.put(subjects.SELECTOR.of("web"), selector)
    place.hub.put(subjects.RULES.of("NetworkPolicy", "default", "deny"), rules)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Some bytes are others, or the end is missing, or all."""
    made = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(made))
        made[at : at + chance.choice((1, 1, 40))] = bytes([chance.randrange(256)])
    return bytes(made[: chance.choice((len(made), len(made), chance.randrange(len(made)), 0))])


def records(node: Node) -> Check:
    """What health says of them."""
    node.restart.tell()
    [check] = [each for each in node.service.health().checks if each.name == "records"]
    return check


async def until(claim: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not claim():
            await asyncio.sleep(0.005)


async def heard(node: Node) -> None:
    await until(lambda: node.is_synced)


def test_running_pods_keep_address_entry_traffic_and_policy_whatever_is_damaged(
    place: Place, namespaces: Callable[[str], str]
) -> None:
    pods, new = Pods(place, namespaces, "tcx"), namespaces("new")
    say_other(place)
    deny_all_to_web(place)
    journal = place.folder / "endpoints.journal"

    async def add(node: Node, container_id: str, pod: str, namespace: str) -> str:
        with opened(namespace) as fd:
            ask = cni.Add(Attachment(container_id, "eth0"), "plexus", "default", pod, "", "/x", fd, "1.1.0")
            return (await NodePods(node).add(ask)).ips[0].address

    async def is_denied(node: Node, sender: socket.socket, address: str) -> None:
        def denied() -> int:
            found = counted(node.maps["counters"]).items()
            return sum(packets for (reason, _), (packets, _) in found if reason == POLICY_DENIED)

        before = denied()
        sender.sendto(b"x", (address, 82))
        await until(lambda: denied() > before)

    async def main() -> None:
        async with pods.node() as node:
            publishing = asyncio.ensure_future(node.publish.run())
            await until(lambda: len(place.hub.states("dataplane")) == 2)
            publishing.cancel()
            entries = node.maps.dump("endpoints")
        known = dict(place.hub.states("dataplane"))
        with pods.traffic() as traffic, contextlib.closing(socket_in(pods.namespaces[1])) as denied:
            for seed in range(DAMAGES):
                chance = random.Random(seed)
                journal.write_bytes(damaged(journal.read_bytes(), chance))
                if chance.random() < 0.2:
                    journal.unlink()
                forgets = chance.random() < 0.4
                for subject, message in known.items():
                    place.hub.delete(subject) if forgets else place.hub.put(subject, message)
                async with pods.node() as node:
                    await heard(node)
                    assert node.maps.dump("endpoints") == entries, seed
                    assert forgets or records(node).ok, (seed, records(node).detail)
                    traffic.goes_on()
                    await is_denied(node, denied, pods.addresses[0])
                    assert await add(node, "c9", "new", new) not in pods.addresses, seed
                    await NodePods(node).delete(cni.Delete(Attachment("c9", "eth0"), "plexus"))
                    for place_of, name in enumerate(
                        ("web", "other")
                    ):  # what the runtime says again after its own start
                        made = await add(node, f"c{place_of + 1}", name, pods.namespaces[place_of])
                        assert made == pods.addresses[place_of], seed
                    assert records(node).ok, (seed, records(node).detail)
                    assert node.maps.dump("endpoints") == entries, seed

    in_namespace(place.namespace, main)
