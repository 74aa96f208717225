"""`plexus monitor` and `plexus bus tail`, against a cluster in memory."""

from __future__ import annotations

import asyncio
import json

import msgpack  # type: ignore[import-untyped]  # it has no types

from bus.messages.hubble import FlowBatch
from bus.subjects import FLOWS, POD
from bus.testing import MemoryBus
from tests.unit.cli.cluster import DROP, VERDICT, Cluster, from_json, plexus


def tell_flows(cluster: Cluster) -> None:
    async def later(connection: MemoryBus) -> None:
        while True:
            await asyncio.sleep(0.02)
            await connection.publish_event(FLOWS.of("node2"), FlowBatch(node="node2", flows=[VERDICT, DROP], lost=3))

    cluster.during = later


def test_monitor_tells_a_drop_by_names_and_counts_losses(cluster: Cluster) -> None:
    tell_flows(cluster)
    result = plexus("monitor", "--type", "drop", "--max", "1", "--timeout", "5s")
    (line,) = result.stdout.splitlines()
    assert line.endswith(
        "node2: default/xwing:5000 -> default/deathstar:80 TCP ingress  dropped, Policy denied  "
        "CiliumNetworkPolicy/default/rule1"
    )
    assert "node2: 3 events were lost" in result.stderr


def test_monitor_filters_and_names_who_is_no_pod(cluster: Cluster) -> None:
    tell_flows(cluster)
    result = plexus("monitor", "--from", "netpod", "--to", "192.0.2.9", "--max", "1", "--timeout", "5s")
    assert "default/netpod -> 192.0.2.9:53 (world) UDP egress  forwarded" in result.stdout
    tell_flows(cluster)
    found = from_json("monitor", "--from", "xwing", "--max", "1")
    assert (found["node"], found["reason"], found["source_pod"]) == ("node2", "Policy denied", "default/xwing")


def test_monitor_fails_when_the_time_ends_before_the_count(cluster: Cluster) -> None:
    result = plexus("monitor", "--max", "2", "--timeout", "100ms", status=1)
    assert "0 of 2 flows within 100ms" in result.stderr
    plexus("monitor", "--timeout", "100ms")


def test_bus_tail_shows_states_with_their_sequences_and_events_without(cluster: Cluster) -> None:
    result = plexus("bus", "tail", "state.resources.pod.>", "--current", "--max", "3")
    first = result.stdout.splitlines()[0].split("  ", 2)
    assert first[0] == "state.resources.pod.default.netpod"
    assert int(first[1]) > 0
    assert json.loads(first[2])["address"] == "10.0.1.2"
    tell_flows(cluster)
    found = from_json("bus", "tail", "evt.hubble.flows.*", "--max", "1")
    assert (found["sequence"], found["message"]["flows"][1]["reason"]) == (0, "Policy denied")


def test_bus_tail_follows_changes_and_deletions(cluster: Cluster) -> None:
    async def later(connection: MemoryBus) -> None:
        await asyncio.sleep(0.05)
        cluster.hub.delete(POD.of("default", "xwing"))

    cluster.during = later
    found = from_json("bus", "tail", "--max", "1")
    assert (found["subject"], found["message"]) == (POD.of("default", "xwing"), None)


def test_bus_tail_writes_a_stream_of_messagepack(cluster: Cluster) -> None:
    result = plexus("bus", "tail", "state.identity.>", "--current", "--max", "4", "-o", "msgpack")
    unpacker = msgpack.Unpacker()
    unpacker.feed(result.stdout_bytes)
    subjects = [value["subject"] for value in unpacker]
    assert len(subjects) == 4
    assert all(subject.startswith("state.identity.") for subject in subjects)


def test_bus_tail_refuses_what_nothing_travels_on(cluster: Cluster) -> None:
    assert "no messages of services on state.nobody.x" in plexus("bus", "tail", "state.nobody.x", status=1).stderr
