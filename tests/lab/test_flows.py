"""What the observers tell of real packets: who, why, by which policy; and that nothing waits for them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import pytest
from grpclib.client import Channel, UnaryStreamMethod

from lab import processes, state
from lab.programs import RELAY_PORT
from lab.state import ProcessId
from services.hubble.api import flow_pb2 as pb
from services.hubble.api import observer_pb2 as api
from tests.lab.space import Space
from tests.lab.test_policy import LANDING, rule1, star_wars_pods
from tests.labs import eventually

pytestmark = pytest.mark.both_families  # names, and not packets, are what is tested


def flows(space: Space, node: str, **wanted: object) -> list[pb.Flow]:
    """Those that the node's observer has, or, of "", the relay; oldest first, by fields of one filter."""
    record = space.lab.record

    async def ask() -> list[pb.Flow]:
        socket, relay = str(record.directory.hubble_socket(node)), str(record.plan.management_control.ip)
        channel = Channel(path=socket) if node else Channel(relay, RELAY_PORT)
        call = UnaryStreamMethod(channel, "/observer.Observer/GetFlows", api.GetFlowsRequest, api.GetFlowsResponse)
        try:
            answers = await call(api.GetFlowsRequest(whitelist=[pb.FlowFilter(**wanted)]))  # type: ignore[arg-type]
        finally:
            channel.close()
        return [each.flow for each in answers if each.HasField("flow")]

    return asyncio.run(ask())


def of_xwing(space: Space) -> Callable[[], list[pb.Flow]]:
    return lambda: flows(space, "node1", source_pod=[f"{space.name}/xwing"], verdict=[pb.DROPPED])


def test_a_flow_has_names_identities_verdict_and_policies(space: Space) -> None:
    space.apply(star_wars_pods(space))
    target, path = space.address("deathstar"), "/v1/request-landing"
    assert space.get("xwing", target, *LANDING, path=path) == "Ship landed\n"
    assert eventually(lambda: bool(flows(space, "node1", source_pod=[f"{space.name}/xwing"])))
    (open_to_all, *_) = flows(space, "node1", source_pod=[f"{space.name}/xwing"])
    assert open_to_all.verdict == pb.FORWARDED and open_to_all.trace_observation_point == pb.TO_ENDPOINT
    space.apply(rule1(space))
    assert space.get("tiefighter", target, *LANDING, path=path) == "Ship landed\n"
    assert space.get("xwing", target, *LANDING, path=path, seconds=0.5) == ""
    assert eventually(lambda: bool(of_xwing(space)()))
    drop = of_xwing(space)()[0]
    assert (drop.source.pod_name, drop.destination.pod_name) == ("xwing", "deathstar")
    assert drop.drop_reason_desc == pb.POLICY_DENIED and drop.traffic_direction == pb.INGRESS
    assert [(each.kind, each.namespace, each.name) for each in drop.ingress_denied_by] == [
        ("CiliumNetworkPolicy", space.name, "rule1")
    ]
    assert drop.destination_service.name == "deathstar" and drop.node_name == "node1"
    assert "k8s:org=alliance" in drop.source.labels and drop.source.identity > 255
    (landed, *_) = flows(space, "node1", source_pod=[f"{space.name}/tiefighter"])
    assert landed.verdict == pb.FORWARDED and landed.l4.TCP.destination_port == 80
    assert [each.name for each in landed.ingress_allowed_by] == ["rule1"]
    pods = (f"--from-pod={space.name}/xwing", f"--to-pod={space.name}/deathstar")
    wanted = ("--verdict=DROPPED", "--print-policy-names", "--print-node-name")
    (told, *_) = space.lab.plexus("observe", *pods, *wanted).stdout.splitlines()
    assert "[node1]:" in told and "Policy denied DROPPED BY rule1 (CiliumNetworkPolicy)" in told


def dropped(space: Space) -> int:
    rows = space.lab.dump("node1", "counters")
    return sum(int(row["packets"]) for row in rows if row["reason"] == "Policy denied")


def test_nothing_waits_for_an_observer_that_hangs_or_is_dead(space: Space) -> None:
    """It hangs, and a change is realised and drops are counted as ever; it is killed, and what it did not read is
    there for the next one."""
    space.apply(star_wars_pods(space))
    running = state.read(space.lab.record.directory.process("node1.hubble"), ProcessId)
    assert running is not None and processes.is_alive(running)
    os.kill(running.pid, signal.SIGSTOP)
    before = dropped(space)
    space.apply(rule1(space))
    assert space.get("xwing", space.address("deathstar"), *LANDING, path="/v1/request-landing", seconds=0.5) == ""
    assert space.get("tiefighter", space.address("deathstar"), *LANDING, path="/v1/request-landing") != ""
    assert dropped(space) > before
    space.lab.kill(node="node1", service="hubble")
    space.lab.revive(node="node1", service="hubble")
    assert eventually(lambda: bool(of_xwing(space)()))
    assert [each.name for each in of_xwing(space)()[0].ingress_denied_by] == ["rule1"]


def test_a_relay_has_the_flows_of_all_nodes_and_says_which_it_lacks(space: Space) -> None:
    """Of a connection between two nodes each tells its part; observers are asked with certificates, both ways."""
    space.apply(star_wars_pods(space), rule1(space), egress(space))
    assert space.get("tiefighter", space.address("deathstar"), *LANDING, path="/v1/request-landing") != ""
    pods = {"source_pod": [f"{space.name}/tiefighter"], "destination_pod": [f"{space.name}/deathstar"]}
    assert eventually(lambda: {each.node_name for each in flows(space, "", **pods)} == {"node1", "node2"})
    ways = {each.node_name: each.traffic_direction for each in flows(space, "", **pods)}
    assert ways == {"node1": pb.INGRESS, "node2": pb.EGRESS}
    server = f"--server={space.lab.record.plan.management_control.ip}:{RELAY_PORT}"
    space.lab.kill(node="node2", service="hubble")
    told = space.lab.plexus("observe", server, f"--to-pod={space.name}/deathstar", "--print-node-name")
    assert "1 nodes are unavailable: node2" in told.stderr and "[node1]" in told.stdout
    space.lab.revive(node="node2", service="hubble")
    assert space.get("tiefighter", space.address("deathstar"), *LANDING, path="/v1/request-landing") != ""
    assert eventually(lambda: any(each.node_name == "node2" for each in flows(space, "", **pods)))


def egress(space: Space) -> str:
    return f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: out, namespace: {space.name}}}
spec:
  podSelector: {{matchLabels: {{class: tiefighter}}}}
  policyTypes: [Egress]
  egress: [{{}}]
"""
