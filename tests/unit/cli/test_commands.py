"""Every command against a cluster in memory: two nodes, three pods, a Service, a policy."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it has no types
import pytest
import yaml
from msgspec.structs import replace
from typer.testing import CliRunner, Result

import bus.client
from bus.messages.dataplane import (
    AppliedRevision,
    Check,
    Dump,
    DumpRows,
    Endpoint,
    Flow,
    FlowBatch,
    Health,
    HealthQuestion,
    ReachedRevision,
)
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.ipam import Block
from bus.messages.lb import Backend, Frontend, LoadBalancedService
from bus.messages.policy import PolicyRules, Selector, SelectorRule
from bus.messages.resources import (
    Applied,
    Apply,
    LabelSelector,
    Namespace,
    Node,
    Outcome,
    Pod,
    Policy,
    Refusal,
    Service,
    ServicePort,
)
from bus.subjects import (
    ADDRESS,
    APPLIED,
    APPLY,
    BLOCK,
    DUMP,
    ENDPOINT,
    FLOWS,
    FRONTEND,
    HEALTH,
    IDENTITY,
    NAMESPACE,
    NODE,
    POD,
    POLICY,
    RULES,
    SELECTOR,
    SERVICE,
)
from bus.testing import Hub, MemoryBus
from cli import session
from cli.__main__ import app

STARTED = 1_700_000_000.0
XWING, STAR = 40_001, 40_002
DROP = Flow(
    at=STARTED,
    type="drop",
    verdict="dropped",
    reason="Policy denied",
    reason_code=133,
    direction="ingress",
    source="10.0.1.3",
    destination="10.0.2.2",
    protocol=6,
    source_port=5000,
    destination_port=80,
    source_identity=XWING,
    source_pod="default/xwing",
    destination_pod="default/deathstar",
    policies=["CiliumNetworkPolicy/default/rule1"],
)
VERDICT = Flow(
    at=STARTED,
    type="policy-verdict",
    verdict="forwarded",
    direction="egress",
    source="10.0.1.2",
    destination="192.0.2.9",
    protocol=17,
    destination_port=53,
    destination_identity=2,
    source_pod="default/netpod",
)


class Cluster:
    """What the services would say and answer. Tests change it before they run a command."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.questions: list[Apply] = []
        self.answer = Applied(outcomes=[Outcome(kind="Pod", namespace="default", name="a", change="created")])
        self.checks: dict[str, list[Check]] = {}  # by node: what its health tells
        self.revision: dict[str, dict[str, int]] = {}  # by node; others have everything
        self.silent: set[str] = set()  # owners and nodes that answer nothing
        self.during: Callable[[MemoryBus], Any] | None = None  # runs beside the command
        self.dumps = DumpRows(node="")
        for node, address in (("node1", "192.0.2.1"), ("node2", "192.0.2.2")):
            self.hub.put(NODE.of(node), Node(name=node, addresses=[address]))
            self.hub.put(BLOCK.of(f"10.0.{node[-1]}.0/24"), Block(cidr=f"10.0.{node[-1]}.0/24", node=node))
        self.hub.put(NAMESPACE.of("default"), Namespace(name="default", labels={"team": "a"}))
        self.pod("netpod", "node1", "10.0.1.2", 40_000, {"app": "netpod"})
        self.pod("xwing", "node1", "10.0.1.3", XWING, {"org": "alliance"})
        self.pod("deathstar", "node2", "10.0.2.2", STAR, {"org": "empire"})
        self.service()
        self.policy()

    def pod(self, name: str, node: str, address: str, number: int, labels: dict[str, str]) -> None:
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": []}}
        pod = Pod(
            namespace="default",
            name=name,
            uid=name,
            labels=labels,
            node=node,
            phase="Running",
            ready=True,
            address=address,
            manifest=manifest,
        )
        endpoint = Endpoint(
            node=node,
            namespace="default",
            pod=name,
            uid=name,
            address=address,
            mac="02:00:00:00:00:01",
            interface=f"px{number}",
            interface_index=number,
            identity=number,
            state="ready",
        )
        canonical = {f"k8s:{key}": value for key, value in labels.items()}
        canonical["k8s:io.kubernetes.pod.namespace"] = "default"
        where = AddressIdentity(
            address=address, identity=number, node=node, node_address="192.0.2.1", pod=f"default/{name}"
        )
        self.hub.put(POD.of("default", name), pod)
        self.hub.put(IDENTITY.of(str(number)), Identity(number=number, labels=canonical))
        self.hub.put(ADDRESS.of(address), where)
        self.hub.put(ENDPOINT.of(node, "default", name), endpoint)

    def service(self) -> None:
        wanted = Service(
            namespace="default",
            name="deathstar",
            cluster_addresses=["10.96.0.7"],
            selector={"org": "empire"},
            ports=[ServicePort(port=80, target_port=80)],
            manifest={"spec": {"ports": [{"port": 80}]}},
        )
        front = Frontend(
            address="10.96.0.7", port=80, protocol="TCP", backends=[Backend(address="10.0.2.2", port=80, node="node2")]
        )
        self.hub.put(SERVICE.of("default", "deathstar"), wanted)
        made = LoadBalancedService(namespace="default", name="deathstar", frontends=[front])
        self.hub.put(FRONTEND.of("default", "deathstar"), made)

    def policy(self) -> None:
        key = ("CiliumNetworkPolicy", "default", "rule1")
        policy = Policy(
            kind="CiliumNetworkPolicy",
            namespace="default",
            name="rule1",
            subject=LabelSelector(),
            deny_ingress_by_default=True,
        )
        rules = PolicyRules(
            kind="CiliumNetworkPolicy",
            namespace="default",
            name="rule1",
            subject="s1",
            rules=[SelectorRule(direction="ingress", selectors=["s1"])],
        )
        self.hub.put(POLICY.of(*key), policy)
        self.hub.put(RULES.of(*key), rules)
        self.hub.put(SELECTOR.of("s1"), Selector(id="s1", selector=LabelSelector(), members=[STAR]))

    def roots(self) -> dict[str, int]:
        return {owner: self.hub.log(owner).last for owner in ("resources", "dataplane")}

    def health(self, owner: str, instance: str) -> Health:
        checks = self.checks.get(instance, [])
        have = self.revision.get(instance, self.roots())
        return Health(
            service=owner,
            instance=instance,
            ready=all(check.ok for check in checks),
            started_at=STARTED,
            version="0.1.0",
            checks=checks,
            revision=have,
            revision_at=time.time(),
            reached=[ReachedRevision(revision=have, at=time.time())],
            resident_bytes=70_000_000,
        )

    async def serve(self, connection: MemoryBus) -> None:
        """Answer as the services do."""

        async def apply(question: Apply) -> Applied:
            self.questions.append(question)
            return self.answer

        async with asyncio.TaskGroup() as tasks:
            instances = [(owner, "control") for owner in HEALTH if owner != "dataplane"]
            for owner, instance in [*instances, ("dataplane", "node1"), ("dataplane", "node2")]:
                if owner not in self.silent and instance not in self.silent:
                    tasks.create_task(self.serve_health(connection, owner, instance))
            for node in {"node1", "node2"} - self.silent:
                tasks.create_task(self.serve_dump(connection, node))
            if "resources" not in self.silent:
                tasks.create_task(connection.answer(APPLY, handler=apply))
            if self.during:
                tasks.create_task(self.during(connection))

    async def serve_health(self, connection: MemoryBus, owner: str, instance: str) -> None:
        async def tell(_: HealthQuestion) -> Health:
            return self.health(owner, instance)

        await connection.answer(HEALTH[owner], instance, handler=tell)

    async def serve_dump(self, connection: MemoryBus, node: str) -> None:
        async def tell(_: Dump) -> DumpRows:
            return DumpRows(node=node, rows=self.dumps.rows, problem=self.dumps.problem, truncated=self.dumps.truncated)

        await connection.answer(DUMP, node, handler=tell)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()

    @asynccontextmanager
    async def connect(url: str, **_: str) -> AsyncIterator[MemoryBus]:
        serving = asyncio.create_task(made.serve(made.hub.bus("services")))
        await asyncio.sleep(0.01)
        try:
            yield made.hub.bus("cli")
        finally:
            serving.cancel()

    monkeypatch.setattr(bus.client, "connect", connect)
    monkeypatch.setattr(session, "target", lambda name="": session.Target("test", "memory:"))
    monkeypatch.delenv("PLEXUS_DEBUG", raising=False)
    return made


def plexus(*arguments: str, status: int = 0, given: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=given)
    assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
    return result


def from_json(*arguments: str, status: int = 0) -> Any:
    return json.loads(plexus(*arguments, "-o", "json", status=status).stdout)


# apply, delete


def test_apply_sends_every_document_and_prints_what_became_of_it(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: Pod\n---\nkind: Service\n")
    cluster.answer = Applied(
        outcomes=[
            Outcome(kind="CiliumNetworkPolicy", namespace="default", name="rule1", change="created"),
            Outcome(kind="Pod", namespace="shop", name="web", change="unchanged"),
            Outcome(kind="Namespace", name="shop", change="changed"),
        ]
    )
    result = plexus("apply", "-f", str(tmp_path))
    assert result.stdout.splitlines() == [
        "ciliumnetworkpolicy/rule1 created",
        "pod/web unchanged in namespace shop",
        "namespace/shop changed",
    ]
    assert [each.manifest["kind"] for each in cluster.questions[0].documents] == ["Pod", "Service"]
    assert not cluster.questions[0].delete


def test_apply_reads_standard_input(cluster: Cluster) -> None:
    plexus("apply", "-f", "-", given="kind: Pod\n")
    assert cluster.questions[0].documents[0].source == "standard input"


def test_delete_asks_for_deletion(cluster: Cluster) -> None:
    cluster.answer = Applied(outcomes=[Outcome(kind="Pod", namespace="default", name="a", change="absent")])
    assert plexus("delete", "-f", "-", given="kind: Pod\n").stdout == "pod/a not there\n"
    assert cluster.questions[0].delete


def test_a_refusal_names_document_thing_path_and_problem(cluster: Cluster) -> None:
    path = "spec.ingress[0].toPorts[0].ports[0].port"
    refusals = [
        Refusal(
            source="a.yaml, document 2", kind="CiliumNetworkPolicy", name="r", path=path, problem="70000 is no port"
        ),
        Refusal(source="b.yaml", problem="has no kind"),
    ]
    cluster.answer = Applied(refusals=refusals)
    result = plexus("apply", "-f", "-", given="kind: Pod\n", status=1)
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"plexus: a.yaml, document 2: ciliumnetworkpolicy/r: {path}: 70000 is no port",
        "plexus: b.yaml: has no kind",
    ]


def test_a_service_that_is_away_is_one_line(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.apply.TAKEOVER_SECONDS", 0.2)
    cluster.silent = {"resources"}
    result = plexus("apply", "-f", "-", given="kind: Pod\n", status=1)
    assert result.stderr.startswith("plexus: the service resources did not answer: ")
    assert result.stderr.count("\n") == 1


# get


def test_a_pod_is_its_manifest_its_status_and_what_was_made_of_it(cluster: Cluster) -> None:
    found = from_json("get", "pod", "xwing")
    assert found["kind"] == "Pod"
    assert found["metadata"] == {"name": "xwing", "namespace": "default", "uid": "xwing", "labels": {"org": "alliance"}}
    assert found["spec"] == {"containers": [], "nodeName": "node1"}
    assert found["status"]["podIP"] == "10.0.1.3"
    assert found["status"]["hostIP"] == "192.0.2.1"
    assert found["plexus"]["identity"] == XWING


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("pods", ["deathstar", "netpod", "xwing"]),
        ("po", ["deathstar", "netpod", "xwing"]),
        ("Pod", ["deathstar", "netpod", "xwing"]),
        ("svc", ["deathstar"]),
        ("ns", ["default"]),
        ("nodes", ["node1", "node2"]),
        ("cnp", ["rule1"]),
        ("netpol", []),
        ("deploy", []),
        ("endpointslices", []),
    ],
)
def test_every_kind_is_listed_as_a_list(cluster: Cluster, kind: str, names: list[str]) -> None:
    found = from_json("get", kind)
    assert found["kind"] == "List"
    assert [each["metadata"]["name"] for each in found["items"]] == names
    plexus("get", kind)
    assert yaml.safe_load(plexus("get", kind, "-A", "-o", "yaml").stdout) == from_json("get", kind, "-A")


def test_a_service_shows_its_frontends(cluster: Cluster) -> None:
    found = from_json("get", "svc/deathstar")
    assert found["spec"]["clusterIP"] == "10.96.0.7"
    assert found["plexus"]["frontends"][0]["backends"] == [{"address": "10.0.2.2", "port": 80, "node": "node2"}]
    assert "80/TCP" in plexus("get", "svc").stdout


def test_both_families_are_shown_wherever_addresses_are(cluster: Cluster) -> None:
    hub = cluster.hub
    pod = hub.states("resources")[POD.of("default", "deathstar")]
    endpoint = hub.states("dataplane")[ENDPOINT.of("node2", "default", "deathstar")]
    service = hub.states("resources")[SERVICE.of("default", "deathstar")]
    front = Frontend(
        address="fd00:96::7", port=80, protocol="TCP", backends=[Backend(address="fd00:2::2", port=80, node="node2")]
    )
    both = {"addresses": ["10.0.2.2", "fd00:2::2"]}
    hub.put(POD.of("default", "deathstar"), replace(pod, **both))
    hub.put(ENDPOINT.of("node2", "default", "deathstar"), replace(endpoint, **both))
    hub.put(NODE.of("node2"), Node(name="node2", addresses=["192.0.2.2", "2001:db8::2", "198.51.100.2"]))
    hub.put(BLOCK.of("fd00:2::/120"), Block(cidr="fd00:2::/120", node="node2"))
    addresses: dict[str, Any] = {"cluster_addresses": ["10.96.0.7", "fd00:96::7"], "ip_families": ["IPv4", "IPv6"]}
    hub.put(SERVICE.of("default", "deathstar"), replace(service, **addresses, ip_family_policy="PreferDualStack"))
    hub.put(
        FRONTEND.of("default", "deathstar"),
        LoadBalancedService(namespace="default", name="deathstar", frontends=[front]),
    )
    found = from_json("get", "pod", "deathstar")
    assert found["status"]["podIPs"] == [{"ip": "10.0.2.2"}, {"ip": "fd00:2::2"}]
    assert found["status"]["hostIPs"] == [{"ip": "192.0.2.2"}, {"ip": "2001:db8::2"}]
    spec = from_json("get", "svc", "deathstar")["spec"]
    assert (spec["clusterIPs"], spec["ipFamilies"]) == (["10.96.0.7", "fd00:96::7"], ["IPv4", "IPv6"])
    assert "fd00:2::2" in plexus("get", "pods").stdout
    assert "fd00:2::2" in plexus("endpoint", "list").stdout
    assert "[fd00:96::7]:80" in plexus("service", "list").stdout and "[fd00:2::2]:80" in plexus("get", "svc").stdout
    used = {row["cidr"]: row["used"] for row in from_json("ipam", "list")}
    assert used == {"10.0.1.0/24": 2, "10.0.2.0/24": 1, "fd00:2::/120": 1}


def test_a_policy_shows_whom_it_governs_and_where_it_is_realised(cluster: Cluster) -> None:
    cluster.revision["node2"] = {"resources": 1, "dataplane": 1}
    found = from_json("get", "cnp", "rule1")["plexus"]
    assert found["identities"] == [STAR]
    assert found["pods"] == ["default/deathstar"]
    assert found["realised"] == ["node1"]
    assert "1 of 2 nodes" in plexus("get", "cnp").stdout


def test_a_node_that_does_not_answer_is_not_ready(cluster: Cluster) -> None:
    cluster.silent = {"node2"}
    found = from_json("get", "nodes")["items"]
    assert [each["plexus"]["ready"] for each in found] == [True, False]


def test_a_name_that_is_not_there_is_an_error_that_says_what_to_do(cluster: Cluster) -> None:
    result = plexus("get", "pod", "ywing", status=1)
    assert result.stderr == "plexus: there is no Pod ywing in namespace default; plexus get pods -A lists them\n"


# listings


def test_listings_are_rows_with_stable_keys(cluster: Cluster) -> None:
    rows = from_json("endpoint", "list")
    assert {row["pod"]: row["identity"] for row in rows}["default/xwing"] == XWING
    assert from_json("service", "list")[0]["service"] == "default/deathstar"
    blocks = from_json("ipam", "list")
    assert [(row["cidr"], row["used"], row["size"]) for row in blocks] == [
        ("10.0.1.0/24", 2, 256),
        ("10.0.2.0/24", 1, 256),
    ]
    numbers = {row["number"]: row for row in from_json("identity", "list")}
    assert numbers[XWING]["labels"]["k8s:org"] == "alliance"
    assert numbers[2]["labels"] == {"reserved:world": ""}
    for group in ("endpoint", "identity", "service", "ipam"):
        assert plexus(group, "list").stdout


def test_maps_are_shown_with_names(cluster: Cluster) -> None:
    cluster.dumps = DumpRows(node="", rows=[{"identity": XWING, "address": "10.0.2.2", "peer_identity": 13}])
    rows = from_json("bpf", "policy", "list", "--node", "node1")
    assert rows == [
        {
            "node": "node1",
            "identity": XWING,
            "address": "10.0.2.2",
            "peer_identity": 13,
            "identity_name": "org=alliance",
            "address_name": "default/deathstar",
            "peer_identity_name": "world",
        }
    ]
    assert f"{XWING} (org=alliance)" in plexus("bpf", "ct", "list").stdout


def test_a_node_that_cannot_show_a_map_fails_the_command_but_not_the_others(cluster: Cluster) -> None:
    cluster.silent = {"node2"}
    cluster.dumps = DumpRows(node="", rows=[{"a": 1}])
    result = plexus("bpf", "lb", "list", "-o", "json", status=1)
    assert json.loads(result.stdout) == [{"node": "node1", "a": 1}]
    assert result.stderr.startswith("plexus: node2: no answer: ")
    assert plexus("bpf", "lb", "list", "--node", "node9", status=1).stderr == (
        "plexus: there is no node node9; there are node1, node2\n"
    )


# status


def test_status_is_0_when_all_is_well(cluster: Cluster) -> None:
    found = from_json("status")
    assert found["healthy"]
    assert len(found["services"]) == 7
    assert all(row["state"] == "ready" and row["lag"] == 0 for row in found["services"])
    assert "70 MB" in plexus("status").stdout


def test_status_is_1_when_something_is_not_and_says_what(cluster: Cluster) -> None:
    cluster.silent = {"policy"}
    cluster.checks["node2"] = [Check(name="maps", ok=False, detail="the policy map is full")]
    result = plexus("status", status=1)
    assert "node2: maps: the policy map is full" in result.stderr
    assert "policy control: no answer" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not from_json("status", status=1)["healthy"]


# wait


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


def test_wait_says_which_pod_is_not_ready(cluster: Cluster) -> None:
    pod = Pod(namespace="default", name="late", uid="late", manifest={})
    cluster.hub.put(POD.of("default", "late"), pod)
    result = plexus("wait", "--timeout", "0.2", status=1)
    assert result.stderr == "plexus: not realised within 200 ms: pod default/late: not bound to a node\n"


# monitor, bus tail


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
    found = from_json("bus", "tail", "evt.dataplane.flows.*", "--max", "1")
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
