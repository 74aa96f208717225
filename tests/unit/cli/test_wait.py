"""`plexus wait`, against a cluster in memory."""

from __future__ import annotations

import asyncio
import time

import pytest

from bus.messages.dataplane import AppliedRevision, Check
from bus.messages.resources import Pod
from bus.subjects import APPLIED, NODE, POD, RULES
from bus.testing import MemoryBus
from tests.unit.cli.cluster import Cluster, from_json, plexus


def test_wait_measures_from_the_commit_to_each_node(cluster: Cluster) -> None:
    found = from_json("wait")
    assert found["revision"] == cluster.roots()["resources"]
    assert set(found["nodes"]) == {"node1", "node2"}
    assert found["seconds"] == max(found["nodes"].values()) < 5
    assert "is realised on every node after" in plexus("wait").stdout


def test_wait_hears_of_a_node_that_comes_later(cluster: Cluster) -> None:
    cluster.revision["node2"] = {"resources": 1, "dataplane": 1}
    at = time.time() + 7

    async def later(connection: MemoryBus) -> None:
        await asyncio.sleep(0.05)
        cluster.revision["node2"] = cluster.roots()
        message = AppliedRevision(node="node2", revision=cluster.roots(), at=at)
        await connection.publish_event(APPLIED.of("node2"), message)

    cluster.during = later
    assert from_json("wait")["nodes"]["node2"] > 6


def test_wait_waits_for_pods_first(cluster: Cluster) -> None:
    pod = Pod(namespace="default", name="late", uid="late", manifest={})
    cluster.hub.put(POD.of("default", "late"), pod)

    async def later(connection: MemoryBus) -> None:
        await asyncio.sleep(0.05)
        cluster.hub.delete(POD.of("default", "late"))

    cluster.during = later
    assert from_json("wait")["revision"] == cluster.roots()["resources"]


def test_wait_gives_up_in_time_and_says_who_is_behind(cluster: Cluster) -> None:
    cluster.revision["node2"] = {"resources": 1, "dataplane": 4}
    roots = cluster.roots()
    result = plexus("wait", "--timeout", "200ms", status=1)
    assert result.stderr == (
        f"plexus: not realised within 200 ms: node2: applied resources 1 of {roots['resources']}, "
        f"applied dataplane 4 of {roots['dataplane']}\n"
        if roots["dataplane"] > 4
        else f"plexus: not realised within 200 ms: node2: applied resources 1 of {roots['resources']}\n"
    )


def test_wait_names_the_service_that_does_not_hand_on_what_the_nodes_wait_for(cluster: Cluster) -> None:
    at = cluster.roots()["resources"]
    cluster.revision |= {"node2": {"resources": 1}, "identity": {"resources": 1, "dataplane": 10_000}}
    cluster.silent.add("lb")
    result = plexus("wait", "--timeout", "200ms", status=1)
    behind = f"applied resources 1 of {at}"
    assert f"node2: {behind}" in result.stderr
    assert f"; identity: {behind}; lb: no answer: " in result.stderr
    assert "policy" not in result.stderr


def test_wait_says_which_pod_is_not_ready(cluster: Cluster) -> None:
    pod = Pod(namespace="default", name="late", uid="late", manifest={})
    cluster.hub.put(POD.of("default", "late"), pod)
    result = plexus("wait", "--timeout", "0.2", status=1)
    assert result.stderr == "plexus: not realised within 200 ms: pod default/late: not bound to a node\n"


DRIFT = Check(name="drift", ok=False, detail="policy did not hold [identity 300] as written, at 12:00:00 UTC")
DIGESTS = Check(name="digests", ok=False, detail="policy.rules holds 0 keys of 3, since 12:00:00 UTC")


@pytest.mark.parametrize("check", [DRIFT, DIGESTS])
def test_a_node_that_does_not_hold_what_was_said_has_realised_nothing(cluster: Cluster, check: Check) -> None:
    cluster.checks["node2"] = [check]
    result = plexus("wait", "--timeout", "200ms", status=1)
    assert result.stderr == f"plexus: not realised within 200 ms: node2: {check.name}: {check.detail}\n"
    assert f"dataplane node2: {check.name}: {check.detail}" in plexus("status", status=1).stderr
    [policy] = from_json("get", "cnp")["items"]
    assert (policy["plexus"]["realised"], policy["plexus"]["nodes"]) == (["node1"], 2)
    assert cluster.compared >= {"node1", "node2"}, "each was asked to look at its maps"


def test_wait_goes_on_when_a_node_holds_again_what_was_said(cluster: Cluster) -> None:
    cluster.checks["node2"] = [DRIFT]

    async def later(connection: MemoryBus) -> None:
        await asyncio.sleep(0.05)
        cluster.checks.clear()
        message = AppliedRevision(node="node2", revision=cluster.roots(), at=time.time())
        await connection.publish_event(APPLIED.of("node2"), message)

    cluster.during = later
    assert set(from_json("wait")["nodes"]) == {"node1", "node2"}


def test_a_service_that_does_not_hold_its_inputs_is_waited_for(cluster: Cluster) -> None:
    cluster.service_checks["policy"] = [DIGESTS]
    result = plexus("wait", "--timeout", "200ms", status=1)
    assert f"not realised within 200 ms: policy: {DIGESTS.name}: {DIGESTS.detail}" in result.stderr


def test_a_policy_whose_rules_nobody_says_is_realised_nowhere(cluster: Cluster) -> None:
    cluster.hub.delete(RULES.of("CiliumNetworkPolicy", "default", "rule1"))
    [policy] = from_json("get", "cnp")["items"]
    assert policy["plexus"]["realised"] == []


def test_wait_without_nodes_says_so_and_fails(cluster: Cluster) -> None:
    for node in ("node1", "node2"):
        cluster.hub.delete(NODE.of(node))
    result = plexus("wait", "--timeout", "200ms", status=1)
    assert "not realised within 200 ms: there are no nodes" in result.stderr
    status = plexus("status", status=1)
    assert "not healthy: there are no nodes" in status.stderr


def test_status_names_nodes_that_have_pods_and_that_nobody_reports(cluster: Cluster) -> None:
    cluster.hub.delete(NODE.of("node2"))
    assert "nobody reports node2, which have pods" in plexus("status", status=1).stderr
