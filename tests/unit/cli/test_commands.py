"""Commands that change, show and list things, against a cluster in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import replace

from bus.messages.dataplane import Check, ClosedDirection, DumpRows, Endpoint
from bus.messages.ipam import AddressHolder, AddressRequest, Block, PoolUse, ServiceAddress
from bus.messages.l2announce import Announcement, PolicyUse
from bus.messages.lb import Backend, Exposure, Frontend, LoadBalancedService
from bus.messages.resources import (
    AddressRange,
    Applied,
    DaemonSet,
    L2AnnouncementPolicy,
    LabelSelector,
    LoadBalancerPool,
    LoadBalancerRequest,
    Node,
    Notice,
    Outcome,
    Pod,
    Policy,
    Refusal,
    Service,
    ServicePort,
    StatefulSet,
)
from bus.subjects import (
    ADDRESS_REQUEST,
    ANNOUNCEMENT,
    BLOCK,
    DAEMON_SET,
    ENDPOINT,
    FRONTEND,
    L2_POLICY,
    L2_POLICY_USE,
    LOAD_BALANCER_POOL,
    NODE,
    POD,
    POLICY,
    POOL_USE,
    SERVICE,
    SERVICE_ADDRESS,
    STATEFUL_SET,
)
from tests.unit.cli.cluster import STAR, XWING, Cluster, from_json, plexus

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


def test_warnings_and_what_was_passed_over_are_told_on_stderr(cluster: Cluster) -> None:
    path = "metadata.annotations[cni.cilium.io/mac-address]"
    cluster.answer = Applied(
        outcomes=[Outcome(kind="Pod", namespace="default", name="a", change="created")],
        warnings=[Notice(source="a.yaml", kind="Pod", name="a", path=path, text="the pod gets another one")],
        skipped={"ServiceAccount": 1, "ConfigMap": 2},
    )
    result = plexus("apply", "--skip-unsupported", "-f", "-", given="kind: Pod\n")
    assert cluster.questions[0].skip_unsupported
    assert result.stdout == "pod/a created\n"
    assert result.stderr.splitlines() == [
        f"warning: a.yaml: pod/a: {path}: the pod gets another one",
        "passed over, no concern of a network: 2 ConfigMap, 1 ServiceAccount",
    ]
    told = json.loads(plexus("apply", "-f", "-", "-o", "json", given="kind: Pod\n").stdout)
    assert told["skipped"] == {"ServiceAccount": 1, "ConfigMap": 2}
    assert [each["text"] for each in told["warnings"]] == ["the pod gets another one"]
    assert not cluster.questions[1].skip_unsupported


def test_get_shows_what_is_not_done(cluster: Cluster) -> None:
    key = ("CiliumNetworkPolicy", "default", "rule1")
    told = ["spec.ingress: is empty and changes nothing"]
    policy = Policy(
        kind="CiliumNetworkPolicy", namespace="default", name="rule1", subject=LabelSelector(), warnings=told
    )
    cluster.hub.put(POLICY.of(*key), policy)
    shown = from_json("get", "cnp", "rule1")
    assert shown["plexus"]["warnings"] == told
    assert shown["status"]["conditions"] == [{"type": "Warned", "status": "True", "message": told[0]}]
    pod = cluster.hub.states("resources")[POD.of("default", "xwing")]
    assert isinstance(pod, Pod)
    cluster.hub.put(POD.of("default", "xwing"), replace(pod, warnings=["a", "b"]))
    conditions = from_json("get", "pod", "xwing")["status"]["conditions"]
    assert [(each["type"], each.get("message")) for each in conditions] == [("Ready", None), ("Warned", "a; b")]


def test_a_name_for_a_name_is_shown_with_what_it_stands_for(cluster: Cluster) -> None:
    one = Service(namespace="default", name="db", type="ExternalName", external_name="db.example.org", ports=[])
    cluster.hub.put(SERVICE.of("default", "db"), one)
    assert from_json("get", "svc", "db")["spec"] == {"type": "ExternalName", "externalName": "db.example.org"}
    (line,) = [each for each in plexus("get", "svc").stdout.splitlines() if each.startswith("db ")]
    assert line.split() == ["db", "ExternalName", "db.example.org", "-", "-", "-"]


def test_a_load_balancer_is_shown_with_the_addresses_that_it_has_and_why_others_are_missing(cluster: Cluster) -> None:
    web = Service(
        namespace="default",
        name="web",
        type="LoadBalancer",
        cluster_addresses=["10.96.0.7"],
        ports=[ServicePort(port=80, target_port=80)],
        load_balancer=LoadBalancerRequest(),
    )
    cluster.hub.put(SERVICE.of("default", "web"), web)
    assert from_json("get", "svc", "web")["status"] == {"loadBalancer": {}}
    asked = AddressRequest(
        namespace="default",
        name="web",
        addresses=["192.0.2.9", "192.0.2.10"],
        satisfied=False,
        reason="out_of_ips",
        detail="no IPv6 address is free in blue",
    )
    holder = AddressHolder(namespace="default", name="web", ports=["80/TCP"])
    cluster.hub.put(ADDRESS_REQUEST.of("default", "web"), asked)
    cluster.hub.put(SERVICE_ADDRESS.of("192.0.2.9"), ServiceAddress(address="192.0.2.9", services=[holder]))
    status = from_json("get", "svc", "web")["status"]
    assert status["loadBalancer"] == {"ingress": [{"ip": "192.0.2.9"}]}, "what it has in truth"
    (condition,) = status["conditions"]
    assert (condition["type"], condition["status"]) == ("cilium.io/IPAMRequestSatisfied", "False")
    assert (condition["reason"], condition["message"]) == ("out_of_ips", "no IPv6 address is free in blue")
    (line,) = [each for each in plexus("get", "svc").stdout.splitlines() if each.startswith("web ")]
    assert line.split()[:6] == ["web", "LoadBalancer", "10.96.0.7", "192.0.2.9,", "pending:", "out_of_ips"]


def test_a_pool_is_shown_with_its_counts_and_whom_it_conflicts_with(cluster: Cluster) -> None:
    ranges = [AddressRange(first="fd00::", last="fd00::ffff:ffff:ffff:ffff", written="fd00::/64")]
    cluster.hub.put(LOAD_BALANCER_POOL.of("blue"), LoadBalancerPool(name="blue", ranges=ranges))
    total, conflict = str(2**64), "fd00::/64 overlaps fd00::/60 of the pool red, which is older"
    use = PoolUse(name="blue", total=total, used="1", available=str(2**64 - 1), conflict=conflict)
    cluster.hub.put(POOL_USE.of("blue"), use)
    found = from_json("get", "ippool", "blue")
    by_type = {each["type"]: each for each in found["status"]["conditions"]}
    assert by_type["cilium.io/PoolConflict"]["status"] == "True"
    assert by_type["cilium.io/PoolConflict"]["message"] == conflict
    assert by_type["cilium.io/IPsTotal"]["message"] == total and found["plexus"]["used"] == 1
    assert "which is older" in plexus("get", "ippools").stdout


def test_an_l2_policy_says_whether_all_of_its_addresses_are_announced_and_the_list_by_whom(cluster: Cluster) -> None:
    cluster.hub.put(L2_POLICY.of("blue"), L2AnnouncementPolicy(name="blue", load_balancer_addresses=True))

    def state(**use: Any) -> tuple[str, str]:
        cluster.hub.put(L2_POLICY_USE.of("blue"), PolicyUse(name="blue", **use))
        (condition,) = from_json("get", "l2announcement", "blue")["status"]["conditions"]
        (line,) = [each for each in plexus("get", "l2announcement").stdout.splitlines() if each.startswith("blue ")]
        assert condition["reason"] in line
        return condition["status"], condition["message"]

    assert state(nodes=0, able_nodes=0, addresses=1) == ("False", "no node is selected")
    assert "is l2announcements.enabled set?" in state(nodes=2, able_nodes=0, addresses=1)[1]
    assert state(nodes=2, able_nodes=2, addresses=0)[0] == "False"
    waiting = state(nodes=2, able_nodes=1, addresses=3, waiting=["192.0.2.9"], waiting_count=2)
    assert waiting == ("False", "nobody announces 192.0.2.9 and 1 more")
    assert state(nodes=2, able_nodes=2, addresses=3) == ("True", "")
    for address, node in (("192.0.2.10", "n1"), ("192.0.2.9", "n2")):
        said = Announcement(address=address, node=node, services=["default/web"], policies=["blue"])
        cluster.hub.put(ANNOUNCEMENT.of(address), said)
    assert [(row["address"], row["node"]) for row in from_json("l2", "list")] == [
        ("192.0.2.9", "n2"),
        ("192.0.2.10", "n1"),
    ]
    assert "default/web" in plexus("l2", "list").stdout


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
        ("sts", []),
        ("ds", []),
        ("endpointslices", []),
    ],
)
def test_every_kind_is_listed_as_a_list(cluster: Cluster, kind: str, names: list[str]) -> None:
    found = from_json("get", kind)
    assert found["kind"] == "List"
    assert [each["metadata"]["name"] for each in found["items"]] == names
    plexus("get", kind)
    assert yaml.safe_load(plexus("get", kind, "-A", "-o", "yaml").stdout) == from_json("get", kind, "-A")


def test_what_makes_pods_is_shown_with_those_that_are_ready(cluster: Cluster) -> None:
    template: dict[str, Any] = {"spec": {}}
    fields: dict[str, Any] = {"namespace": "default", "selector": LabelSelector(), "template": template}
    cluster.hub.put(DAEMON_SET.of("default", "agent"), DaemonSet(name="agent", **fields))
    cluster.hub.put(STATEFUL_SET.of("default", "db"), StatefulSet(name="db", replicas=3, **fields))
    for name, owner in (("xwing", "daemonset/default/agent"), ("netpod", "statefulset/default/db")):
        pod = cluster.hub.states("resources")[POD.of("default", name)]
        assert isinstance(pod, Pod)
        cluster.hub.put(POD.of("default", name), replace(pod, owner=owner))
    agent, db = from_json("get", "ds", "agent"), from_json("get", "sts", "db")
    assert (agent["plexus"], agent["status"]["numberReady"]) == ({"ready": "1/2", "pods": ["xwing"]}, 1)
    assert (db["plexus"], db["status"]["readyReplicas"]) == ({"ready": "1/3", "pods": ["netpod"]}, 1)


def test_a_service_shows_its_frontends(cluster: Cluster) -> None:
    found = from_json("get", "svc/deathstar")
    assert found["spec"]["clusterIP"] == "10.96.0.7"
    assert found["plexus"]["frontends"][0]["backends"] == [{"address": "10.0.2.2", "port": 80, "node": "node2"}]
    assert "80/TCP" in plexus("get", "svc").stdout


def test_a_service_shows_its_node_ports_and_where_it_is_reached_from_outside(cluster: Cluster) -> None:
    name = SERVICE.of("default", "deathstar")
    service: Any = cluster.hub.states("resources")[name]
    (port,) = service.ports
    ports = {"manifest": {"spec": {"ports": [{"port": 80}]}}, "ports": [replace(port, node_port=30_080)]}
    cluster.hub.put(name, replace(service, type="NodePort", **ports))
    at: dict[str, Any] = {"family": "IPv4", "protocol": "TCP"}
    exposures = [
        Exposure(kind="ExternalIP", address="192.0.2.9", port=80, **at),
        Exposure(kind="NodePort", port=30_080, **at),
    ]
    made = LoadBalancedService(namespace="default", name="deathstar", exposures=exposures)
    cluster.hub.put(FRONTEND.of("default", "deathstar"), made)
    found = from_json("get", "svc", "deathstar")
    assert found["spec"]["ports"] == [{"port": 80, "nodePort": 30_080}]
    assert found["plexus"]["exposures"] == [
        {"kind": "ExternalIP", "address": "192.0.2.9", "port": 80, "protocol": "TCP"},
        {"kind": "NodePort", "family": "IPv4", "port": 30_080, "protocol": "TCP"},
    ]
    assert "80:30080/TCP" in plexus("get", "svc").stdout


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


def test_a_policy_without_room_says_which_pods_are_denied_and_so_do_endpoints(cluster: Cluster) -> None:
    subject = ENDPOINT.of("node2", "default", "deathstar")
    endpoint = cluster.hub.states("dataplane")[subject]
    assert isinstance(endpoint, Endpoint)
    closed = ClosedDirection(
        direction="ingress", why="no room", policies=["CiliumNetworkPolicy/default/rule1", "NetworkPolicy/default/x"]
    )
    cluster.hub.put(subject, replace(endpoint, closed=[closed]))
    found = from_json("get", "cnp", "rule1")
    assert found["plexus"]["closed"] == ["ingress of default/deathstar is denied: no room"]
    (condition,) = found["status"]["conditions"]
    assert (condition["type"], condition["status"], condition["message"]) == (
        "Realised",
        "False",
        "ingress of default/deathstar is denied: no room",
    )
    assert "2 of 2 nodes, 1 denied" in plexus("get", "cnp").stdout
    rows = {row["pod"]: row for row in from_json("endpoint", "list")}
    assert rows["default/deathstar"]["closed"] == [
        {"direction": "ingress", "why": "no room", "policies": closed.policies}
    ]
    assert "ready, ingress denied" in plexus("endpoint", "list").stdout


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


def test_a_table_has_several_lists_and_one_is_asked_for_at_a_time(cluster: Cluster) -> None:
    cluster.dumps = DumpRows(node="", rows=[{"a": 1}])
    assert from_json("bpf", "lb", "list", "--affinity")
    assert {each.table for each in cluster.dumped} == {"lb/affinity"}
    assert "two lists" in plexus("bpf", "lb", "list", "--affinity", "--backends", status=2).stderr
    assert "lb/" not in plexus("bpf", "--help").stdout


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
    assert len(found["services"]) == 10
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
