"""What a kubelet reported and the cluster has lost is reported again: its node, and how its pods are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from bus.messages.resources import Applied, Apply, Node, Pod, PodStatus
from bus.subjects import APPLY, POD_STATUS
from bus.testing import Hub
from lab.cluster import Cluster, node_manifest, report_nodes
from lab.kubelet import Kubelet
from lab.plan import Plan
from lab.settings import Settings
from lab.state import Record

ADDRESSES = {"node1": ["172.20.0.11"], "node2": ["172.20.0.12", "fd00::12"]}


def lab(**more: Any) -> Record:
    """As much of a lab's record as who reports nodes and pods reads."""
    known = {"settings": Settings(), "plan": Plan(3), "families": (4, 6), **more}
    made = SimpleNamespace(name="l", nodes=list(ADDRESSES), node_addresses=ADDRESSES.__getitem__, **known)
    return cast(Record, made)


def test_nodes_bring_their_blocks_only_where_these_are_asked_for() -> None:
    assert "spec" not in node_manifest(lab(), "node1")
    given = lab(settings=Settings({"ipam.mode": "kubernetes"}))
    found = [node_manifest(given, name)["spec"]["podCIDRs"] for name in list(ADDRESSES)[:2]]
    assert found == [["10.131.0.0/24", "fd00:10:3::/120"], ["10.131.1.0/24", "fd00:10:3::100/120"]]


async def asked_for(cluster: Cluster) -> list[str]:
    """The nodes that are applied."""
    bus = Hub().bus()
    names: list[str] = []

    async def apply(message: Apply) -> Applied:
        names.extend(document.manifest["metadata"]["name"] for document in message.documents)
        return Applied()

    answering = asyncio.create_task(bus.answer(APPLY, handler=apply))
    await asyncio.sleep(0)
    await report_nodes(lab(), cluster, bus)
    answering.cancel()
    return names


async def test_nodes_that_are_not_there_are_applied_whenever_that_is_seen() -> None:
    cluster = Cluster()
    assert await asked_for(cluster) == ["node1", "node2"]
    cluster.nodes = {(name,): Node(name=name, addresses=addresses) for name, addresses in ADDRESSES.items()}
    assert await asked_for(cluster) == []
    del cluster.nodes["node2",]
    assert await asked_for(cluster) == ["node2"]


async def test_a_node_without_its_kubelets_addresses_is_applied_anew_and_others_labels_are_left_alone() -> None:
    cluster = Cluster()
    cluster.nodes = {
        ("node1",): Node(name="node1", addresses=["172.20.0.11", "192.0.2.1"], labels={"disk": "ssd"}),
        ("node2",): Node(name="node2", addresses=["172.20.0.12"]),
    }
    assert await asked_for(cluster) == ["node2"]


async def test_a_pods_status_that_was_lost_is_told_again_and_only_then(tmp_path: Path) -> None:
    bus, heard = Hub().bus(), asyncio.Queue[PodStatus]()

    async def answer(message: PodStatus) -> Applied:
        heard.put_nowait(message)
        return Applied()

    directory = SimpleNamespace(sandboxes=list)
    status = PodStatus(namespace="n", name="p", uid="u", phase="Running", ready=True, address="10.0.0.5")
    shown = Pod(namespace="n", name="p", uid="u", node="node1", phase="Running", ready=True, address="10.0.0.5")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        answering = tasks.create_task(bus.answer(POD_STATUS, handler=answer))
        kubelet = Kubelet(lab(directory=directory), bus, tasks)
        kubelet._ended["u"] = asyncio.Event()  # the pod lives
        await asyncio.sleep(0)
        await kubelet._send(status, kubelet._ended["u"])
        assert await heard.get() == status
        kubelet.hear([shown])
        kubelet.hear([Pod(namespace="n", name="p", uid="u", node="node1")])
        assert await heard.get() == status
        answering.cancel()
    assert heard.empty()
