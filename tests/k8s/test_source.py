"""Kubernetes as the source: what is at the API server is on the bus, and whatever that does, nothing goes that is
there."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from bus.messages.ipam import AddressHolder, AddressRequest, PoolUse, ServiceAddress
from bus.messages.resources import (
    Apply,
    CIDRGroup,
    Document,
    EndpointSlice,
    LoadBalancerPool,
    Node,
    Pod,
    Policy,
    Service,
)
from bus.subjects import (
    ADDRESS_REQUEST,
    APPLY,
    CIDR_GROUP,
    ENDPOINT_SLICE,
    LOAD_BALANCER_POOL,
    NODE,
    POD,
    POLICY,
    POOL_USE,
    SERVICE,
    SERVICE_ADDRESS,
)
from services.resources.kubernetes import api, following
from tests.k8s.apiserver import failing, hanging
from tests.k8s.conftest import Place, until

NODE_ONE = """
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {podCIDRs: [10.244.1.0/24], newField: {a: 1}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: node1}]}
"""

SERVICE_WEB = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], ipFamilies: [IPv4], ipFamilyPolicy: SingleStack,
  selector: {app: web}, externalTrafficPolicy: Cluster, ports: [{port: 80, targetPort: http, nodePort: 30080}]}
"""

SLICE_WEB = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-abc, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.5], conditions: {ready: true}, nodeName: node1, targetRef: {kind: Pod, name: web-1}}]
ports: [{name: "", port: 8080, protocol: TCP}]
"""

CLOSED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""

POOL = """
apiVersion: cilium.io/v2
kind: CiliumLoadBalancerIPPool
metadata: {name: outside, creationTimestamp: '2026-01-02T03:04:05Z'}
spec: {blocks: [{cidr: 198.51.100.0/28}, {start: 198.51.100.9}, {start: 224.0.0.1}, {start: 198.51.100.32}]}
"""

GROUP = """
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: partners, labels: {tier: b}}
spec: {externalCIDRs: [203.0.113.0/24, nonsense/7]}
"""


def pod(name: str, address: str = "10.244.1.5", **spec: Any) -> dict[str, Any]:
    """As a kubelet and the controllers leave one."""
    metadata = {
        "name": name,
        "labels": {"app": "web"},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u"}],
        "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
    }  # fmt: skip
    ports = [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "nodeName": "node1",
            "serviceAccountName": "web",
            "containers": [{"name": "c", "image": "web", "ports": ports, "fieldOfTomorrow": 1}],
            **spec,
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "podIP": address,
            "podIPs": [{"ip": address}],
        },
    }


async def test_what_is_there_is_on_the_bus(place: Place) -> None:
    first = pod("web-1")
    first["metadata"]["annotations"] = {"cni.cilium.io/mac-address": "02:00:00:00:00:01"}
    uid = place.server.put(first)["metadata"]["uid"]
    for text in (NODE_ONE, SERVICE_WEB, SLICE_WEB, CLOSED):
        place.server.put(text)
    await place.started()
    found, node = place.states[POD.of("default", "web-1")], place.states[NODE.of("node1")]
    service, endpoints = (
        place.states[SERVICE.of("default", "web")],
        place.states[ENDPOINT_SLICE.of("default", "web-abc")],
    )
    assert isinstance(found, Pod) and isinstance(node, Node)
    assert isinstance(service, Service) and isinstance(endpoints, EndpointSlice)
    assert (found.uid, found.node, found.phase, found.ready, found.address) == (
        uid,
        "node1",
        "Running",
        True,
        "10.244.1.5",
    )
    assert (found.labels, found.service_account, found.owner) == ({"app": "web"}, "web", "")
    assert [(each.name, each.port) for each in found.ports] == [("http", 8080)]
    assert "mac-address" in found.warnings[0]
    assert (node.addresses, node.pod_cidrs) == (["192.0.2.1"], ["10.244.1.0/24"])
    assert (service.type, service.cluster_addresses, service.selector) == ("NodePort", ["10.96.0.7"], {})
    assert [each.node_port for each in service.ports] == [30080]
    assert [each.addresses for each in endpoints.endpoints] == [["10.244.1.5"]]
    assert place.names("policy") == {"NetworkPolicy/default/closed"}
    assert place.names("namespace") == {"default", "kube-system"}
    assert place.wrong() == ""


async def test_objects_are_trimmed(place: Place) -> None:
    place.server.put(pod("web-1"))
    await place.started()
    found = place.states[POD.of("default", "web-1")]
    assert isinstance(found, Pod)
    assert set(found.manifest["metadata"]) == {"name", "namespace", "uid", "labels", "annotations"}
    assert (found.annotations, found.manifest["metadata"]["annotations"]) == ({}, {})
    assert "status" not in found.manifest
    assert set(found.manifest["spec"]["containers"][0]) == {"name", "image", "ports"}


async def test_changes_and_deletions_follow(place: Place) -> None:
    place.server.put(pod("web-1"))
    await place.started()
    place.server.put(pod("web-2", "10.244.1.6"))
    place.server.put(CLOSED)
    await until(lambda: place.names("pod") == {"default/web-1", "default/web-2"} and place.names("policy"))
    place.server.delete("Pod", "web-1")
    place.server.delete("NetworkPolicy", "closed")
    await until(lambda: place.names("pod") == {"default/web-2"} and not place.names("policy"))
    ended = pod("web-2", "10.244.1.6")
    ended["status"]["phase"] = "Succeeded"
    place.server.put(ended)
    await until(lambda: getattr(place.states[POD.of("default", "web-2")], "phase", "") == "Succeeded")
    assert getattr(place.states[POD.of("default", "web-2")], "address", None) == ""


async def test_a_list_comes_in_pages(place: Place) -> None:
    place.server.most_in_page = 3
    for number in range(10):
        place.server.put(pod(f"web-{number}", f"10.244.1.{number + 1}"))
    await place.started()
    assert len(place.names("pod")) == 10
    assert sum("/api/v1/pods?limit=500" in each for each in place.server.requests) == 4


async def test_the_rest_of_a_list_that_is_gone_is_asked_for_anew_and_in_one(place: Place) -> None:
    place.server.most_in_page = 3
    for number in range(10):
        place.server.put(pod(f"web-{number}", f"10.244.1.{number + 1}"))
    place.server.faults = [failing(410, 1, "continue=")]
    place.start()
    await until(lambda: any(each == "GET /api/v1/pods" for each in place.server.requests), "a list without limit")
    place.server.most_in_page = 10**9
    await place.synced()
    assert len(place.names("pod")) == 10


async def test_what_was_deleted_while_the_server_forgot_is_noticed(place: Place) -> None:
    for how in (True, False):
        place.server.gone_in_stream = how
        place.server.put(pod("stays"))
        place.server.put(pod("goes", "10.244.1.6"))
        if not place.is_ready:
            await place.started()
        await until(lambda: place.names("pod") == {"default/stays", "default/goes"})
        await place.server.stop()
        place.server.delete("Pod", "goes")
        place.server.put(pod("comes", "10.244.1.7"))
        place.server.compact()
        await place.server.start()
        await until(lambda: place.names("pod") == {"default/stays", "default/comes"})
        place.server.delete("Pod", "comes")
        await until(lambda: place.names("pod") == {"default/stays"})


async def test_bookmarks_keep_a_quiet_watch_young(place: Place) -> None:
    place.server.put(CLOSED)
    await place.started()
    await until(lambda: place.server.watched() >= {"networkpolicies", "pods"})
    place.server.put(pod("web-1"))
    place.server.bookmark()
    version = place.server.now.version
    place.server.compact()
    place.server.requests.clear()
    place.server.end_watches()
    await until(lambda: any("k8s.io/v1/networkpolicies?watch" in each for each in place.server.requests))
    assert f"resourceVersion={version}&" in next(
        each for each in place.server.requests if "k8s.io/v1/networkpolicies?watch" in each
    )
    assert not any("k8s.io/v1/networkpolicies?limit" in each for each in place.server.requests)


async def test_a_server_that_is_away_takes_nothing_away(place: Place) -> None:
    place.server.put(pod("web-1"))
    await place.started()
    await place.server.stop()
    await until(place.wrong, "health says that it is away")
    assert place.names("pod") == {"default/web-1"}
    await place.server.start()
    place.server.put(pod("web-2", "10.244.1.6"))
    await until(lambda: place.names("pod") == {"default/web-1", "default/web-2"})
    await until(lambda: not place.wrong())


async def test_errors_are_waited_out(place: Place) -> None:
    place.server.put(pod("web-1"))
    await place.started()
    for code in (429, 500, 503):
        place.server.compact()
        place.server.faults = [failing(code, 2, "pods?limit"), failing(code, 2, "pods?watch")]
        place.server.put(pod("web-2", "10.244.1.6"))
        place.server.compact()
        place.server.end_watches()
        await until(lambda: "default/web-2" in place.names("pod"))
        assert "default/web-1" in place.names("pod")
        place.server.delete("Pod", "web-2")
        await until(lambda: place.names("pod") == {"default/web-1"})


@pytest.mark.parametrize("is_silent", [False, True])
async def test_an_older_state_of_the_server_takes_nothing_away(
    place: Place, is_silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "WATCH_SECONDS", 1.0)
    place.server.is_silent_of_future = is_silent
    before = place.server.saved()
    place.server.put(pod("web-1"))
    place.server.put(CLOSED)
    await place.started()
    after = place.server.saved()
    place.server.restore(before)
    await until(lambda: "was seen before" in place.checks.get("kubernetes pods", ""), "health says that it is older")
    assert place.names("pod") == {"default/web-1"} and place.names("policy")
    place.server.restore(after)
    place.server.put(pod("web-2", "10.244.1.6"))
    await until(lambda: place.names("pod") == {"default/web-1", "default/web-2"})
    assert place.names("policy")


async def test_an_older_state_that_stays_is_the_truth(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "OLDER_SECONDS", 0.5)
    before = place.server.saved()
    place.server.put(pod("web-1"))
    await place.started()
    place.server.restore(before)
    await until(lambda: not place.names("pod"))
    place.server.put(pod("web-2", "10.244.1.6"))
    await until(lambda: place.names("pod") == {"default/web-2"})


async def test_another_clusters_server_takes_nothing_away(place: Place) -> None:
    place.server.put(pod("web-1"))
    await place.started()
    place.server.put("{apiVersion: v1, kind: Namespace, metadata: {name: kube-system, uid: cluster-2}}")
    place.server.delete("Pod", "web-1")
    await until(lambda: not place.names("pod"), "it was still watched")
    place.server.put(pod("web-1"))
    await until(lambda: place.names("pod"))
    await place.server.stop()
    place.server.now.objects["pods"].clear()
    place.server.put("{apiVersion: v1, kind: Namespace, metadata: {name: kube-system, uid: cluster-3}}")
    place.server.compact()
    await place.server.start()
    await until(lambda: "another cluster" in place.checks.get("kubernetes pods", ""))
    assert place.names("pod") == {"default/web-1"}


async def test_a_kind_that_is_not_installed_is_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "ABSENT_SECONDS", 0.05)
    place.server.absent.add("ciliumnetworkpolicies")
    place.server.put(pod("web-1"))
    await place.started()
    assert place.names("pod") == {"default/web-1"} and place.wrong() == ""
    place.server.absent.clear()
    place.server.put(cilium("ingress: [{}]"))
    await until(lambda: place.names("policy") == {"CiliumNetworkPolicy/default/rule1"})
    place.server.absent.add("ciliumnetworkpolicies")
    place.server.requests.clear()
    place.server.end_watches()
    await until(lambda: sum("ciliumnetworkpolicies?limit" in each for each in place.server.requests) > 2)
    assert place.names("policy") == {"CiliumNetworkPolicy/default/rule1"}


async def test_a_wrong_address_is_no_empty_cluster(place: Place) -> None:
    """Some other server answers 404 to everything."""
    place.server.put(pod("web-1"))
    await place.started()

    async def nothing_here(_: web.Request) -> web.StreamResponse:
        return web.Response(status=404, text="nothing here")

    place.server.faults = [nothing_here]
    place.server.end_watches()
    await until(lambda: "404" in place.checks.get("kubernetes pods", ""))
    assert place.names("pod") == {"default/web-1"}


async def test_no_pod_comes_before_the_policies_that_govern_it(place: Place) -> None:
    place.server.put(pod("web-1"))
    place.server.put(CLOSED)
    place.server.faults = [failing(403, 10**6, "k8s.io/v1/networkpolicies?limit")]
    place.start()
    await until(lambda: "right to get, list and watch networkpolicies" in place.wrong())
    await until(lambda: "pods" in place.server.watched())
    assert not place.names("pod") and not place.is_ready
    place.server.faults = []
    await place.synced()
    assert place.names("pod") and place.names("policy")


async def test_nonsense_on_a_watch_is_passed_over_by_watching_anew(place: Place) -> None:
    await place.started()
    for line in (b"{\n", b"[]\n", b'{"type":"ADDED","object":{}}\n', b'{"type":"ADDED"}\n', b'{"type":"ERR', b"\xff\n"):
        await until(lambda: "pods" in place.server.watched())
        place.server.say("pods", line)
        if b"\n" not in line:
            place.server.end_watches()
        await asyncio.sleep(0)
    place.server.put(pod("web-1"))
    await until(lambda: place.names("pod") == {"default/web-1"})


async def test_a_restart_says_nothing_anew(place: Place) -> None:
    for text in (NODE_ONE, SERVICE_WEB, SLICE_WEB, CLOSED, cilium("ingress: [{}]")):
        place.server.put(text)
    place.server.put(pod("web-1"))
    host = pod("host-1", "192.0.2.1", hostNetwork=True)
    place.server.put(host)
    await place.started()
    await until(lambda: place.server.get("CiliumNetworkPolicy", "rule1").get("status"))
    last = place.hub.log("resources").last
    await place.stop()
    place.server.requests.clear()
    await place.started()
    assert place.hub.log("resources").last <= last + 1  # the voucher
    assert not [each for each in place.server.requests if each.startswith("PATCH")]


async def test_the_standby_asks_nothing_and_takes_over(place: Place) -> None:
    place.server.put(pod("web-1"))
    first = place.start()
    await place.synced()
    asked = sum("pods?limit" in each for each in place.server.requests)
    place.start()
    place.server.put(pod("web-2", "10.244.1.6"))
    await until(lambda: len(place.names("pod")) == 2)
    assert sum("pods?limit" in each for each in place.server.requests) == asked
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    place.server.put(pod("web-3", "10.244.1.7"))
    await until(lambda: len(place.names("pod")) == 3)


async def test_whoever_applies_is_sent_to_kubectl(place: Place) -> None:
    await place.started()
    apply = Apply(documents=[Document(source="x", manifest=pod("x"))])
    answer = await place.hub.bus("asker").ask(APPLY, message=apply)
    assert "use kubectl" in answer.refusals[0].problem


async def test_a_pod_on_its_nodes_network_has_the_nodes_addresses(place: Place) -> None:
    place.server.put(pod("host-1", "198.51.100.66", hostNetwork=True))
    await place.started()
    subject = POD.of("default", "host-1")
    assert getattr(place.states[subject], "address", None) == ""
    place.server.put(NODE_ONE)
    await until(lambda: getattr(place.states[subject], "address", None) == "192.0.2.1")


async def test_a_node_does_not_take_anothers_address(place: Place) -> None:
    place.server.put(NODE_ONE)
    await place.started()
    place.server.put(NODE_ONE.replace("name: node1}", "name: node2}").replace("10.244.1", "10.244.2"))
    place.server.put(pod("after"))
    await until(lambda: place.names("pod"))
    assert place.names("node") == {"node1"}


# -- policies that Plexus cannot keep as they are written, and what is told


def cilium(rule: str, name: str = "rule1") -> str:
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: {name}}}
spec: {{endpointSelector: {{matchLabels: {{app: web}}}}, {rule}}}
"""


def clusterwide(rule: str, name: str = "rule1") -> str:
    return cilium(rule, name).replace("kind: CiliumNetworkPolicy", "kind: CiliumClusterwideNetworkPolicy")


async def test_of_a_pool_and_a_group_what_cannot_be_is_left_out(place: Place) -> None:
    place.server.put(POOL)
    place.server.put(GROUP)
    await place.started()
    pool, group = place.states[LOAD_BALANCER_POOL.of("outside")], place.states[CIDR_GROUP.of("partners")]
    assert isinstance(pool, LoadBalancerPool) and isinstance(group, CIDRGroup)
    assert [each.written for each in pool.ranges] == ["198.51.100.0/28", "198.51.100.32"]
    assert pool.place == 1767323045, "the second in which it was made: the older of two that overlap gives"
    assert (group.cidrs, group.labels) == (["203.0.113.0/24"], {"tier": "b"})
    place.server.delete("CiliumLoadBalancerIPPool", "outside")
    await until(lambda: not place.names("loadbalancerpool"))


async def test_a_clusterwide_policy_that_cannot_be_kept_allows_nothing(place: Place) -> None:
    place.server.put(clusterwide("ingress: [{fromEndpoints: [{}]}, {fromGroups: [{}]}]"))
    place.server.put(clusterwide("ingressDeny: [{fromGroups: [{}]}], ingress: [{}]", "rule2"))
    await place.started()
    for name, rules in (("rule1", 1), ("rule2", 0)):
        await until(lambda name=name: conditions(place, "CiliumClusterwideNetworkPolicy", name) == {"Valid": "False"})  # type: ignore[misc]  # mypy takes no default here
        policy = place.states[POLICY.of("CiliumClusterwideNetworkPolicy", "", name)]
        assert isinstance(policy, Policy)
        assert (len(policy.rules), policy.deny_ingress_by_default, policy.namespace) == (rules, True, "")
        assert "k8s:app" in {each.key for each in policy.subject.requirements} and policy.warnings


async def test_an_entry_that_cannot_be_kept_allows_nothing(place: Place) -> None:
    allowed = "{from: [{podSelector: {matchLabels: {app: a}}}]}"
    place.server.put(
        CLOSED.replace("policyTypes: [Ingress]", f"ingress: [{allowed}, {{from: [{{peerOfTomorrow: {{a: b}}}}]}}]")
    )
    place.server.put(cilium("ingress: [{fromEndpoints: [{}]}, {fromGroups: [{}]}], egress: [{toNodes: [{}]}]"))
    await place.started()
    network, other = (
        place.states[POLICY.of("NetworkPolicy", "default", "closed")],
        place.states[POLICY.of("CiliumNetworkPolicy", "default", "rule1")],
    )
    assert isinstance(network, Policy) and isinstance(other, Policy)
    assert (len(network.rules), network.deny_ingress_by_default, network.deny_egress_by_default) == (1, True, False)
    assert (len(other.rules), other.deny_ingress_by_default, other.deny_egress_by_default) == (1, True, True)
    assert network.manifest["spec"]["ingress"][1]["from"][0]["peerOfTomorrow"]
    assert "peerOfTomorrow" in network.warnings[0]


async def test_a_policy_that_cannot_be_read_allows_nothing_of_what_it_selects(place: Place) -> None:
    place.server.put(cilium("ingress: [{fromEndpoints: [{}]}], fieldOfTomorrow: 1"))
    place.server.put(cilium("ingressDeny: [{fromEndpoints: [{}]}]", "deny"))
    await place.started()
    for name, both in (("rule1", False), ("deny", False)):
        policy = place.states[POLICY.of("CiliumNetworkPolicy", "default", name)]
        assert isinstance(policy, Policy)
        assert (policy.rules, policy.deny_ingress_by_default, policy.deny_egress_by_default) == ([], True, both)
        assert any(each.key == "k8s:app" for each in policy.subject.requirements)
    place.server.put(cilium("ingress: [{}]", "bad").replace("matchLabels: {app: web}", "matchNonsense: 1"))
    await until(lambda: "CiliumNetworkPolicy/default/bad" in place.names("policy"))
    policy = place.states[POLICY.of("CiliumNetworkPolicy", "default", "bad")]
    assert isinstance(policy, Policy)
    assert [each.key for each in policy.subject.requirements] == ["k8s:io.kubernetes.pod.namespace"]


async def test_a_policys_status_says_whether_it_is_kept_as_written(place: Place) -> None:
    place.server.put(cilium("ingress: [{}]"))
    place.server.put(cilium("ingress: [{fromGroups: [{}]}]", "rule2"))
    await place.started()
    await until(lambda: all(each.get("status") for each in place.server.all("CiliumNetworkPolicy")))
    (good,) = place.server.get("CiliumNetworkPolicy", "rule1")["status"]["conditions"]
    (bad,) = place.server.get("CiliumNetworkPolicy", "rule2")["status"]["conditions"]
    assert (good["type"], good["status"]) == ("Valid", "True")
    assert (bad["type"], bad["status"]) == ("Valid", "False") and "fromGroups" in bad["message"]
    place.server.put(cilium("ingress: [{}]", "rule3"))
    await until(lambda: place.server.get("CiliumNetworkPolicy", "rule3").get("status"))
    assert len(place.server.patched()) == 3, "a status that was written leads to no other"


async def test_others_conditions_stay(place: Place) -> None:
    found = cilium("ingress: [{}]") + "status: {conditions: [{type: Theirs, status: 'True'}], other: 1}"
    place.server.put(found)
    await place.started()
    await until(lambda: len(place.server.get("CiliumNetworkPolicy", "rule1")["status"]["conditions"]) == 2)
    status = place.server.get("CiliumNetworkPolicy", "rule1")["status"]
    assert (status["conditions"][0], status["other"]) == ({"type": "Theirs", "status": "True"}, 1)


BALANCED = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], ipFamilies: [IPv4], selector: {app: web},
  ipFamilyPolicy: SingleStack, ports: [{port: 80, targetPort: http, nodePort: 30080}]}
status: {conditions: [{type: Theirs, status: 'True'}], loadBalancer: {}}
"""


def given(place: Place, *addresses: str, reason: str = "satisfied") -> None:
    """ipam gives these to the Service `web`."""
    for address in addresses:
        holder = AddressHolder(namespace="default", name="web", ports=["80/TCP"])
        place.hub.put(SERVICE_ADDRESS.of(address), ServiceAddress(address=address, services=[holder]))
    request = AddressRequest(
        namespace="default", name="web", addresses=list(addresses), satisfied=reason == "satisfied", reason=reason
    )
    place.hub.put(ADDRESS_REQUEST.of("default", "web"), request)


def ingress(place: Place) -> list[str]:
    found = place.server.get("Service", "web").get("status", {}).get("loadBalancer", {}).get("ingress") or []
    return [each["ip"] for each in found]


def conditions(place: Place, kind: str, name: str) -> dict[str, str]:
    found = place.server.get(kind, name).get("status", {}).get("conditions") or []
    return {each["type"]: each["status"] for each in found}


async def test_a_load_balancer_has_its_addresses_in_its_status_as_long_as_it_is_one(place: Place) -> None:
    place.server.put(BALANCED)
    await place.started()
    given(place, reason="no_pool")
    await until(lambda: len(conditions(place, "Service", "web")) == 2)
    assert conditions(place, "Service", "web") == {"Theirs": "True", "cilium.io/IPAMRequestSatisfied": "False"}
    given(place, "198.51.100.1", "2001:db8::1")
    await until(lambda: ingress(place) == ["198.51.100.1", "2001:db8::1"])
    assert conditions(place, "Service", "web") == {"Theirs": "True", "cilium.io/IPAMRequestSatisfied": "True"}
    given(place, "198.51.100.1")
    await until(lambda: ingress(place) == ["198.51.100.1"])
    patches = len(place.server.patched("/services/"))
    place.hub.put(SERVICE_ADDRESS.of("198.51.100.1"), ServiceAddress(address="198.51.100.1", services=[]))
    await until(lambda: ingress(place) == [])
    changed = place.server.get("Service", "web")
    changed["spec"]["type"] = "ClusterIP"
    place.hub.delete(ADDRESS_REQUEST.of("default", "web"))
    place.server.put(changed)
    await until(lambda: conditions(place, "Service", "web") == {"Theirs": "True"})
    assert len(place.server.patched("/services/")) == patches + 2, "a status that was written leads to no other"


async def test_a_status_stays_while_nobody_says_what_it_should_be(place: Place) -> None:
    """After a restart, until ipam is heard: it may be away."""
    given(place, "198.51.100.1")
    place.server.put(BALANCED)
    await place.started()
    await until(lambda: ingress(place))
    await place.stop()
    place.hub.delete(ADDRESS_REQUEST.of("default", "web"))
    place.server.put(pod("web-1"))
    place.server.put(POOL)
    await place.started()
    place.hub.put(POOL_USE.of("outside"), PoolUse(name="outside", total="17", used="1", available="16"))
    await until(lambda: conditions(place, "CiliumLoadBalancerIPPool", "outside"))
    assert ingress(place) == ["198.51.100.1"]


async def test_anothers_load_balancer_is_left_alone(place: Place) -> None:
    text = BALANCED.replace("loadBalancer: {}", "loadBalancer: {ingress: [{ip: 203.0.113.7}]}")
    place.server.put(text.replace("selector:", "loadBalancerClass: example.com/other, selector:"))
    place.server.put(POOL)
    await place.started()
    place.hub.put(POOL_USE.of("outside"), PoolUse(name="outside", total="17", used="1", available="16"))
    await until(lambda: conditions(place, "CiliumLoadBalancerIPPool", "outside"))
    assert (ingress(place), place.server.patched("/services/")) == (["203.0.113.7"], [])


async def test_a_pools_status_counts(place: Place) -> None:
    place.server.put(POOL)
    place.hub.put(POOL_USE.of("outside"), PoolUse(name="outside", total="17", used="1", available="16"))
    await place.started()
    await until(lambda: conditions(place, "CiliumLoadBalancerIPPool", "outside"))
    found = {
        each["type"]: each for each in place.server.get("CiliumLoadBalancerIPPool", "outside")["status"]["conditions"]
    }
    assert {name.rpartition("/")[2]: each["message"] for name, each in found.items()} == {
        "PoolConflict": "", "IPsTotal": "17", "IPsAvailable": "16", "IPsUsed": "1"
    }  # fmt: skip
    await until(lambda: place.server.all("Event"))
    (event, *_) = place.server.all("Event")
    assert (event["metadata"]["namespace"], event["involvedObject"]["name"]) == ("default", "outside")
    place.hub.put(
        POOL_USE.of("outside"), PoolUse(name="outside", total="17", used="1", available="16", conflict="with older")
    )
    await until(lambda: conditions(place, "CiliumLoadBalancerIPPool", "outside")["cilium.io/PoolConflict"] == "True")
    changed = {
        each["type"]: each for each in place.server.get("CiliumLoadBalancerIPPool", "outside")["status"]["conditions"]
    }
    assert changed["cilium.io/IPsTotal"] == found["cilium.io/IPsTotal"], "what stays keeps its time"


async def test_a_pod_is_told_what_its_annotation_does_not_do_and_once(place: Place) -> None:
    asking = pod("web-1")
    asking["metadata"]["annotations"]["kubernetes.io/egress-bandwidth"] = "1M"
    place.server.put(asking)
    place.server.faults = [failing(500, 2, "/events")]
    await place.started()
    await until(lambda: place.server.all("Event"))
    (event,) = place.server.all("Event")
    assert (event["type"], event["involvedObject"]["name"]) == ("Warning", "web-1")
    assert "bandwidth limits are not supported yet" in event["message"]
    place.server.put(asking)
    again = pod("web-2", "10.244.1.6")
    again["metadata"]["annotations"]["kubernetes.io/egress-bandwidth"] = "1M"
    place.server.put(again)
    await until(lambda: len(place.server.all("Event")) > 1)
    assert sum(each["involvedObject"]["name"] == "web-1" for each in place.server.all("Event")) == 1


async def test_a_list_that_is_cut_short_counts_for_nothing(place: Place) -> None:
    for number in range(10):
        place.server.put(pod(f"web-{number}", f"10.244.1.{number + 1}"))
    await place.started()
    place.server.most_in_page = 3
    place.server.faults = [failing(500, 2, "continue=")]
    place.server.put(NODE_ONE)
    place.server.compact()
    place.server.requests.clear()
    place.server.end_watches()
    await until(lambda: sum("pods?limit=500" in each for each in place.server.requests) > 1)
    assert len(place.names("pod")) == 10
    place.server.delete("Pod", "web-0")
    await until(lambda: len(place.names("pod")) == 9)


@pytest.mark.parametrize("path", ["/pods?limit", "/pods?watch"])
async def test_a_server_that_hangs_takes_nothing_away_and_is_noticed(
    place: Place, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.server.put(pod("web-1"))
    await place.started()
    await until(lambda: "pods" in place.server.watched(), "no watch of the old length is on its way")
    monkeypatch.setattr(api, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(api, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(following, "WATCH_SECONDS", 0.2)
    place.server.faults = [hanging(path)]
    place.server.put(pod("web-2", "10.244.1.6"))
    place.server.put(NODE_ONE)
    place.server.compact()
    place.server.end_watches()
    await until(lambda: "no answer in time" in place.checks["kubernetes pods"])
    assert "default/web-1" in place.names("pod")
    place.server.faults = []
    place.server.delete("Pod", "web-2")
    await until(lambda: place.names("pod") == {"default/web-1"} and not place.checks["kubernetes pods"])


async def test_an_event_that_is_older_than_what_was_seen_takes_nothing_away(place: Place) -> None:
    subject = POD.of("default", "web-1")
    old = place.server.put(pod("web-1"))
    await place.started()
    await until(lambda: "pods" in place.server.watched())
    written = place.hub.log("resources").entries[subject].sequence
    old["metadata"]["resourceVersion"] = "1"
    place.server.requests.clear()
    place.server.say("pods", json.dumps({"type": "DELETED", "object": old}).encode() + b"\n")
    await until(lambda: any("pods?limit" in each for each in place.server.requests), "listed anew")
    place.server.put(pod("web-2", "10.244.1.6"))
    await until(lambda: len(place.names("pod")) == 2)
    assert place.hub.log("resources").entries[subject].sequence == written


async def test_whoever_is_active_no_more_complains_of_no_server(place: Place) -> None:
    await place.started()
    await place.server.stop()
    await until(place.wrong)
    await place.stop()
    assert place.wrong() == ""
