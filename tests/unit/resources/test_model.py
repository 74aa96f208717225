"""What a call changes: all or nothing, addresses given once, nothing of a living thing lost."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address
from itertools import count

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.addresses import family
from bus.control import Claim, Say, Unsay
from bus.messages.resources import Bind, ClusterAddress, Deployment, Namespace, Node, Pod, PodStatus, Service
from bus.subjects import CLUSTER_ADDRESS, DEPLOYMENT, NAMESPACE, NODE, POD, POLICY, SERVICE
from services.resources.addresses import Networks, choose, outside
from services.resources.manifests import Resource, read_document
from services.resources.model import Plan, plan_apply, plan_bind, plan_delete, plan_status, plan_tidy
from services.resources.store import Store
from tests.unit.resources.manifests import cilium, documents, pod, service

NETWORK = IPv4Network("10.96.0.0/24")
NODE_ONE = """{apiVersion: v1, kind: Node, metadata: {name: node1},
 status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}"""
NODE_TWO = NODE_ONE.replace("node1", "node2").replace("192.0.2.1", "192.0.2.2")
SHOP = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}"
DEPLOYMENT_WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}
"""
OWNED = ", ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, controller: true, uid: x}]"


class Cluster:
    """The store with plans carried out at once, as the only writer does."""

    def __init__(self, networks: Networks | None = None) -> None:
        self.networks = networks or {"IPv4": NETWORK}
        self.store = Store()
        self._uids = count(1)
        self.do(plan_tidy(self.store))

    def do(self, plan: Plan) -> Plan:
        for step in plan.steps:
            if isinstance(step, Claim):
                assert self.store.get(step.subject) is None
            if isinstance(step, (Claim, Say)):
                self.store.put(step.subject, step.message)
            else:
                self.store.delete(step.subject)
        return plan

    def resources(self, text: str, to_delete: bool = False) -> list[Resource]:
        found = [read_document(each, to_delete) for each in documents(text)]
        assert all(isinstance(each, Resource) for each in found), found
        return [each for each in found if isinstance(each, Resource)]

    def plan(self, *texts: str) -> Plan:
        resources = self.resources("\n---\n".join(texts))
        return plan_apply(self.store, resources, self.networks, lambda: f"uid-{next(self._uids)}")

    def apply(self, *texts: str) -> dict[str, str]:
        """Name -> what became of it; nothing may be refused."""
        plan = self.do(self.plan(*texts))
        assert not plan.refusals
        return {each.name: each.change for each in plan.outcomes}

    def refused(self, *texts: str) -> dict[str, str]:
        """Path -> problem; nothing may be changed."""
        plan = self.plan(*texts)
        assert plan.steps == () and plan.refusals
        return {each.path: each.problem for each in plan.refusals}

    def delete(self, *texts: str) -> dict[str, str]:
        plan = self.do(plan_delete(self.store, self.resources("\n---\n".join(texts), to_delete=True)))
        assert not plan.refusals
        return {each.name: each.change for each in plan.outcomes}

    def pod(self, name: str = "p") -> Pod:
        found = self.store.get(POD.of("default", name))
        assert isinstance(found, Pod)
        return found

    def service(self, name: str = "svc", namespace: str = "default") -> Service:
        found = self.store.get(SERVICE.of(namespace, name))
        assert isinstance(found, Service)
        return found

    def address(self, name: str = "svc", namespace: str = "default") -> str:
        found = self.service(name, namespace)
        return found.cluster_addresses[0] if found.cluster_addresses else ""

    def held(self) -> set[str]:
        """Addresses that are claimed, by whomever."""
        return {message.address for _, message in self.store.items() if isinstance(message, ClusterAddress)}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_default_and_kube_system_are_there_from_the_start(cluster: Cluster) -> None:
    for name in ("default", "kube-system"):
        found = cluster.store.get(NAMESPACE.of(name))
        assert isinstance(found, Namespace)
        assert found.labels == {"kubernetes.io/metadata.name": name}


def test_applying_again_changes_nothing(cluster: Cluster) -> None:
    texts = (SHOP, NODE_ONE, pod(), service(), DEPLOYMENT_WEB, cilium("ingress: [{}]"))
    assert set(cluster.apply(*texts).values()) == {"created"}
    plan = cluster.plan(*texts)
    assert plan.steps == () and {each.change for each in plan.outcomes} == {"unchanged"}


def test_one_refusal_changes_nothing_at_all(cluster: Cluster) -> None:
    assert "metadata.namespace" in cluster.refused(service(), service(name="b", metadata=", namespace: nowhere"))


def test_a_namespace_may_come_with_what_is_in_it_in_any_order(cluster: Cluster) -> None:
    assert cluster.apply(service(metadata=", namespace: shop"), SHOP) == {"svc": "created", "shop": "created"}
    plan = cluster.plan(SHOP.replace("shop", "b"), service(metadata=", namespace: b"))
    assert [step.subject for step in plan.steps if isinstance(step, Say)] == [NAMESPACE.of("b"), SERVICE.of("b", "svc")]


def test_the_same_name_twice_in_one_call_is_refused(cluster: Cluster) -> None:
    assert "also in test.yaml, document 1" in cluster.refused(service(), service())["metadata.name"]


def test_policies_are_written_before_the_pods_that_they_govern(cluster: Cluster) -> None:
    plan = cluster.plan(pod(), cilium("ingress: [{}]"))
    assert [step.subject.split(".")[2] for step in plan.steps] == ["policy", "pod"]


def test_rules_that_a_policy_has_no_more_are_taken_away(cluster: Cluster) -> None:
    head = "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: p}, specs: "
    rule = "{endpointSelector: {}, ingress: [{}]}"
    cluster.apply(f"{head}[{rule}, {rule}]}}")
    further = POLICY.of("CiliumNetworkPolicy", "default", "p/specs[1]")
    assert cluster.store.get(further) is not None
    assert cluster.apply(f"{head}[{rule}]}}") == {"p": "changed"}
    assert cluster.store.get(further) is None
    assert cluster.delete(f"{head}[]}}") == {"p": "deleted"}
    assert cluster.store.rules_of("CiliumNetworkPolicy", "default", "p") == []


# -- pods


def test_a_pod_keeps_its_uid_node_and_status_over_a_re_apply(cluster: Cluster) -> None:
    cluster.apply(NODE_ONE, pod())
    uid = cluster.pod().uid
    cluster.do(plan_bind(cluster.store, Bind(namespace="default", name="p", uid=uid, node="node1")))
    status = PodStatus(
        namespace="default", name="p", uid=uid, phase="Running", ready=True, address="10.0.0.5", node="node1"
    )
    cluster.do(plan_status(cluster.store, status))
    assert cluster.apply(pod(metadata=", labels: {a: b}")) == {"p": "changed"}
    found = cluster.pod()
    assert (found.uid, found.node, found.ready, found.address) == (uid, "node1", True, "10.0.0.5")
    assert found.labels == {"a": "b"}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (pod(", hostNetwork: true"), "spec.hostNetwork"),
        (pod(containers="[{name: c, image: i, ports: [{containerPort: 80}]}]"), "spec.containers[0].ports"),
        (pod(containers="[{name: c, image: i}, {name: d, image: i}]"), "spec.containers"),
        (pod(metadata=", uid: other"), "metadata.uid"),
    ],
)
def test_what_is_fixed_about_a_living_pod_is_refused_with_what_to_do(cluster: Cluster, change: str, path: str) -> None:
    cluster.apply(pod())
    assert "delete the pod first" in cluster.refused(change)[path]


def test_a_pods_image_and_nulls_may_change(cluster: Cluster) -> None:
    cluster.apply(pod())
    assert cluster.apply(pod(", volumes: null", containers="[{name: c, image: j, env: null}]")) == {"p": "changed"}


def test_a_pod_for_an_absent_node_is_taken_and_waits_with_a_warning(cluster: Cluster) -> None:
    cluster.apply(NODE_ONE)
    plan = cluster.do(cluster.plan(pod(", nodeName: node2")))
    assert [(each.path, each.text) for each in plan.warnings] == [
        ("spec.nodeName", 'there is no node "node2"; there are: node1; the pod waits for it')
    ]
    assert (cluster.pod().node, cluster.pod().phase, cluster.pod().ready) == ("node2", "Pending", False)
    again = pod(", nodeName: node1").replace("name: p", "name: q")
    assert cluster.do(cluster.plan(again)).warnings == ()


def test_a_name_for_a_name_has_no_address_and_gives_back_the_one_it_had(cluster: Cluster) -> None:
    cluster.apply(service())
    had = cluster.address()
    outside = service("type: ExternalName, externalName: db.example.org.")
    assert cluster.apply(outside) == {"svc": "changed"}
    assert (cluster.address(), cluster.held()) == ("", set())
    assert cluster.service().external_name == "db.example.org."
    assert cluster.apply(outside) == {"svc": "unchanged"}
    cluster.apply(service())
    assert (cluster.address(), cluster.held()) == (had, {had})


def test_a_bound_pod_does_not_move_and_a_stale_uid_binds_nothing(cluster: Cluster) -> None:
    cluster.apply(NODE_ONE, NODE_TWO, pod())
    uid = cluster.pod().uid
    bind = Bind(namespace="default", name="p", uid=uid, node="node1")
    cluster.do(plan_bind(cluster.store, bind))
    again = plan_bind(cluster.store, bind)
    assert again.steps == () and again.outcomes[0].change == "unchanged"
    assert plan_bind(cluster.store, Bind(namespace="default", name="p", uid=uid, node="node2")).refusals
    assert plan_bind(cluster.store, Bind(namespace="default", name="p", uid="old", node="node1")).refusals
    assert plan_bind(cluster.store, Bind(namespace="default", name="q", uid=uid, node="node1")).refusals
    stale = PodStatus(namespace="default", name="p", uid="old", phase="Failed", ready=False)
    assert plan_status(cluster.store, stale).refusals


def test_a_status_with_a_bad_address_is_refused(cluster: Cluster) -> None:
    cluster.apply(pod())
    bad = PodStatus(namespace="default", name="p", uid=cluster.pod().uid, phase="Running", ready=True, address="x")
    assert plan_status(cluster.store, bad).refusals[0].path == "address"


def test_only_the_kubelet_of_its_node_reports_a_pod_and_the_scheduler_one_that_no_node_has(cluster: Cluster) -> None:
    cluster.apply(NODE_ONE, NODE_TWO, pod())
    uid = cluster.pod().uid

    def by(node: str) -> PodStatus:
        return PodStatus(namespace="default", name="p", uid=uid, phase="Running", ready=True, node=node)

    (refusal,) = plan_status(cluster.store, by("node2")).refusals
    assert (refusal.path, refusal.problem[:33]) == ("node", "the pod is not bound to a node, w")
    assert not plan_status(cluster.store, by("")).refusals
    cluster.do(plan_bind(cluster.store, Bind(namespace="default", name="p", uid=uid, node="node1")))
    assert not plan_status(cluster.store, by("node1")).refusals
    for stranger in ("node2", "", "node3"):
        (refusal,) = plan_status(cluster.store, by(stranger)).refusals
        assert "bound to node1" in refusal.problem


def test_a_pod_on_the_hosts_network_has_no_address_but_its_nodes(cluster: Cluster) -> None:
    """It would be a backend there."""
    cluster.apply(NODE_ONE, NODE_TWO, pod(", hostNetwork: true, nodeName: node1"))
    uid = cluster.pod().uid
    for address, is_taken in (("192.0.2.1", True), ("192.0.2.2", False), ("198.51.100.1", False)):
        told = PodStatus(
            namespace="default", name="p", uid=uid, phase="Running", ready=True, address=address, node="node1"
        )
        assert (not plan_status(cluster.store, told).refusals) is is_taken


def test_no_node_has_an_address_of_another(cluster: Cluster) -> None:
    """The other nodes would send it what is for the other, and believe it to be that."""
    cluster.apply(NODE_ONE)
    taken = NODE_TWO.replace("192.0.2.2", "192.0.2.1")
    assert "192.0.2.1 is an address of node node1" in cluster.refused(taken)["status.addresses"]
    cluster.apply(NODE_TWO)
    assert "address of node node1" in cluster.refused(taken)["status.addresses"]
    cluster.apply(NODE_ONE.replace("192.0.2.1", "192.0.2.3"), taken)  # it has another now, in the same document
    both = [NODE_TWO.replace("node2", name).replace("192.0.2.2", "192.0.2.9") for name in ("node8", "node9")]
    assert "address of node node8" in cluster.refused(*both)["status.addresses"]


# -- Deployments


def test_a_deployments_pods_go_with_it_and_cannot_come_without_it(cluster: Cluster) -> None:
    assert 'no Deployment "web"' in cluster.refused(pod(metadata=OWNED))["metadata.ownerReferences[0]"]
    cluster.apply(DEPLOYMENT_WEB, pod(metadata=OWNED))
    assert cluster.pod().owner == "deployment/default/web"
    plan = plan_delete(cluster.store, cluster.resources(DEPLOYMENT_WEB, to_delete=True))
    assert [step.subject for step in plan.steps] == [DEPLOYMENT.of("default", "web"), POD.of("default", "p")]


def test_a_deployments_selector_is_fixed(cluster: Cluster) -> None:
    cluster.apply(DEPLOYMENT_WEB)
    assert (
        "delete the Deployment first" in cluster.refused(DEPLOYMENT_WEB.replace("app: web", "app: b"))["spec.selector"]
    )
    assert cluster.apply(DEPLOYMENT_WEB.replace("image: i", "image: j")) == {"web": "changed"}
    found = cluster.store.get(DEPLOYMENT.of("default", "web"))
    assert isinstance(found, Deployment)
    assert found.template["spec"]["containers"][0]["image"] == "j"


# -- deleting


def test_deleting_a_namespace_deletes_what_is_in_it_and_itself_last(cluster: Cluster) -> None:
    inside = (service(metadata=", namespace: shop"), DEPLOYMENT_WEB.replace("name: web", "name: web, namespace: shop"))
    cluster.apply(SHOP, *inside, cilium("ingress: [{}]", namespace="shop"), service())
    plan = plan_delete(cluster.store, cluster.resources(SHOP, to_delete=True))
    assert plan.steps[-1].subject == NAMESPACE.of("shop")
    cluster.do(plan)
    assert cluster.store.in_namespace("shop") == []
    assert cluster.store.addresses_of("shop", "svc") == []
    assert cluster.address()


def test_namespaces_that_are_always_there_cannot_be_deleted(cluster: Cluster) -> None:
    text = SHOP.replace("shop", "default")
    plan = plan_delete(cluster.store, cluster.resources(text, to_delete=True))
    assert plan.steps == () and "always there" in plan.refusals[0].problem


def test_deleting_what_is_not_there_says_absent(cluster: Cluster) -> None:
    assert cluster.delete(service()) == {"svc": "absent"}


def test_what_is_refused_today_can_be_deleted(cluster: Cluster) -> None:
    cluster.apply(service())
    assert cluster.delete(service("type: NodePort, misspelt: 1")) == {"svc": "deleted"}


def test_a_nodes_pod_cidrs_are_fixed_once_set(cluster: Cluster) -> None:
    with_cidr = NODE_ONE.replace("status:", "spec: {podCIDR: 10.1.0.0/24}, status:")
    cluster.apply(with_cidr)
    assert "spec.podCIDRs" in cluster.refused(with_cidr.replace("10.1.", "10.2."))
    cluster.apply(NODE_ONE.replace("name: node1", "name: node1, labels: {a: b}"))
    found = cluster.store.get(NODE.of("node1"))
    assert isinstance(found, Node) and found.pod_cidrs == ["10.1.0.0/24"]


# -- ClusterIPs


def test_an_address_is_chosen_by_name_and_stays_over_re_applies(cluster: Cluster) -> None:
    cluster.apply(service())
    address = cluster.address()
    assert address == choose(NETWORK, "default", "svc", lambda _: False)
    cluster.apply(service("ports: [{port: 81}]"))
    assert cluster.address() == address


def test_an_asked_address_is_given_and_kept_from_others(cluster: Cluster) -> None:
    cluster.apply(service("ports: [{port: 80}], clusterIP: 10.96.0.10"))
    assert cluster.address() == "10.96.0.10"
    taken = cluster.refused(service("ports: [{port: 80}], clusterIP: 10.96.0.10", name="b"))
    assert "held by the Service default/svc" in taken["spec.clusterIP"]


def test_who_asks_for_an_address_comes_before_who_takes_any(cluster: Cluster) -> None:
    favourite = choose(NETWORK, "default", "svc", lambda _: False)
    cluster.apply(service(), service(f"ports: [{{port: 80}}], clusterIP: {favourite}", name="b"))
    assert cluster.address("b") == favourite != cluster.address()


@pytest.mark.parametrize("address", ["10.95.0.1", "10.96.0.0", "10.96.0.255"])
def test_an_address_that_no_service_can_have_is_refused(cluster: Cluster, address: str) -> None:
    assert outside(NETWORK, address)
    assert "spec.clusterIP" in cluster.refused(service(f"ports: [{{port: 80}}], clusterIP: {address}"))


def test_a_services_address_is_fixed(cluster: Cluster) -> None:
    cluster.apply(service(), service("clusterIP: None", name="headless"))
    for change in (service("clusterIP: None"), service("ports: [{port: 80}], clusterIP: 10.96.0.77", name="headless")):
        assert "delete the Service first" in cluster.refused(change)["spec.clusterIP"]
    assert cluster.address("headless") == ""
    assert cluster.apply(service(name="headless"))["headless"] == "changed"
    assert cluster.address("headless") == ""


def test_a_deleted_services_address_is_free_again(cluster: Cluster) -> None:
    cluster.apply(service("ports: [{port: 80}], clusterIP: 10.96.0.10"))
    cluster.delete(service())
    cluster.apply(service("ports: [{port: 80}], clusterIP: 10.96.0.10", name="b"))


def test_a_full_range_is_refused_and_says_so(cluster: Cluster) -> None:
    cluster.apply(*(service(name=f"s{at}") for at in range(254)))
    assert "no address is free" in cluster.refused(service())["spec.clusterIP"]


def test_an_address_left_by_a_death_is_used_by_its_service_or_given_back(cluster: Cluster) -> None:
    plan = cluster.plan(service())
    claim = plan.steps[0]
    assert isinstance(claim, Claim)
    cluster.store.put(claim.subject, claim.message)  # and then it died
    again = cluster.plan(service())
    assert [type(step) for step in again.steps] == [Say]
    cluster.do(plan_tidy(cluster.store))
    assert cluster.store.get(claim.subject) is None


def test_pods_whose_deployment_is_gone_are_tidied_away(cluster: Cluster) -> None:
    cluster.apply(DEPLOYMENT_WEB, pod(metadata=OWNED))
    cluster.store.delete(DEPLOYMENT.of("default", "web"))  # and then it died
    cluster.do(plan_tidy(cluster.store))
    assert cluster.store.get(POD.of("default", "p")) is None


NAMES = st.sampled_from([f"s{at}" for at in range(8)])
ADDRESSES = st.sampled_from(["", "", "", "None", "10.96.0.1", "10.96.0.2", "fd00:96::2", "FD00:96:0::3"])
POLICIES = st.sampled_from(["SingleStack", "PreferDualStack", "RequireDualStack"])
SERVICES = st.lists(st.tuples(NAMES, ADDRESSES, POLICIES), min_size=1, max_size=4)
CALLS = st.lists(st.tuples(st.booleans(), SERVICES), max_size=12)


@settings(deadline=None)
@given(CALLS)
def test_no_address_is_ever_held_twice(calls: list[tuple[bool, list[tuple[str, str, str]]]]) -> None:
    """Any sequence of calls in ranges of six and seven addresses: an address is its Service's, which claimed it."""
    cluster = Cluster({"IPv4": IPv4Network("10.96.0.0/29"), "IPv6": IPv6Network("fd00:96::/125")})
    for is_delete, services in calls:
        texts = [
            service(
                f"ports: [{{port: 80}}], ipFamilyPolicy: {policy}" + (f", clusterIP: '{address}'" if address else ""),
                name,
            )
            for name, address, policy in services
        ]
        resources = cluster.resources("\n---\n".join(texts), to_delete=is_delete)
        plan = (
            plan_delete(cluster.store, resources)
            if is_delete
            else plan_apply(cluster.store, resources, cluster.networks, lambda: "uid")
        )
        cluster.do(plan)
        held = [
            (address, message.name)
            for _, message in cluster.store.items()
            if isinstance(message, Service)
            for address in message.cluster_addresses
        ]
        assert len({address for address, _ in held}) == len(held)
        for address, name in held:
            holder = cluster.store.holder_of(address)
            assert holder is not None and holder.service == name
        claimed = [subject for subject, _ in cluster.store.items() if CLUSTER_ADDRESS.has(subject)]
        assert len(claimed) == len(held)
        services_there = [message for _, message in cluster.store.items() if isinstance(message, Service)]
        for there in services_there:
            if there.cluster_addresses:
                assert [family(ip_address(each)) for each in there.cluster_addresses] == there.ip_families


# -- two families

NETWORK6 = IPv6Network("fd00:96::/112")
DUAL: Networks = {"IPv4": NETWORK, "IPv6": NETWORK6}


@pytest.fixture
def dual() -> Cluster:
    return Cluster(DUAL)


def families(cluster: Cluster, name: str = "svc") -> list[str]:
    """Of the addresses themselves, which must be those that the Service says."""
    found = cluster.service(name)
    own = [family(ip_address(each)) for each in found.cluster_addresses]
    assert own == found.ip_families
    return list(own)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("", ["IPv4"]),
        ("ipFamilyPolicy: SingleStack", ["IPv4"]),
        ("ipFamilies: [IPv6]", ["IPv6"]),
        ("ipFamilyPolicy: PreferDualStack", ["IPv4", "IPv6"]),
        ("ipFamilyPolicy: RequireDualStack", ["IPv4", "IPv6"]),
        ("ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6]", ["IPv6", "IPv4"]),
        ("ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4]", ["IPv6", "IPv4"]),
        ("clusterIP: 'fd00:96::9'", ["IPv6"]),
        ("ipFamilyPolicy: PreferDualStack, clusterIPs: ['fd00:96::9', 10.96.0.9]", ["IPv6", "IPv4"]),
    ],
)
def test_a_service_has_an_address_of_each_family_that_its_policy_gives_it(
    dual: Cluster, spec: str, wanted: list[str]
) -> None:
    dual.apply(service(f"ports: [{{port: 80}}], {spec}"))
    assert families(dual) == wanted
    assert dual.held() == set(dual.service().cluster_addresses)


def test_a_service_without_a_wish_has_the_clusters_only_family() -> None:
    cluster = Cluster({"IPv6": NETWORK6})
    cluster.apply(service(), service("ports: [{port: 80}], ipFamilyPolicy: PreferDualStack", name="b"))
    assert families(cluster) == families(cluster, "b") == ["IPv6"]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("ipFamilies: [IPv6]", "spec.ipFamilies[0]"),
        ("ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv4, IPv6]", "spec.ipFamilies[1]"),
        ("ipFamilyPolicy: RequireDualStack", "spec.ipFamilyPolicy"),
        ("clusterIP: 'fd00:96::9'", "spec.clusterIP"),
    ],
)
def test_a_family_that_is_off_is_refused_and_says_which_is_on(cluster: Cluster, spec: str, path: str) -> None:
    refused = cluster.refused(service(f"ports: [{{port: 80}}], {spec}"))
    assert "IPv4" in refused[path]


def test_an_ipv6_address_is_held_in_its_one_form_however_it_is_written(dual: Cluster) -> None:
    dual.apply(service("ports: [{port: 80}], clusterIP: 'FD00:0096:0::000a'"))
    assert dual.address() == "fd00:96::a"
    other = dual.refused(service("ports: [{port: 80}], clusterIP: 'fd00:96:0:0::a'", name="b"))
    assert "held by the Service default/svc" in other["spec.clusterIP"]
    assert dual.apply(service("ports: [{port: 80}], clusterIP: 'fd00:96::a'"))["svc"] == "changed"  # its manifest


def test_a_second_address_comes_and_goes_and_the_first_stays(dual: Cluster) -> None:
    dual.apply(service())
    first = dual.address()
    dual.apply(service("ports: [{port: 80}], ipFamilyPolicy: PreferDualStack"))
    assert dual.service().cluster_addresses == [first, choose(NETWORK6, "default", "svc", lambda _: False)]
    plan = dual.do(dual.plan(service()))
    assert [type(step) for step in plan.steps] == [Say, Unsay]  # given back after nobody shows it any more
    assert dual.service().cluster_addresses == [first] and dual.held() == {first}
    second = dual.refused(service("ports: [{port: 80}], ipFamilies: [IPv6]"))
    assert "cannot be changed from IPv4" in second["spec.ipFamilies[0]"]
    assert "spec.ipFamilies[0]" in dual.refused(service("ports: [{port: 80}], clusterIP: 'fd00:96::9'"))


def test_a_headless_service_has_families_and_no_address(dual: Cluster) -> None:
    dual.apply(service("clusterIP: None, ipFamilyPolicy: RequireDualStack"))
    found = dual.service()
    assert (found.cluster_addresses, found.ip_families, dual.held()) == ([], ["IPv4", "IPv6"], set())


def test_of_an_ipv6_range_only_the_first_address_stands_for_the_network(dual: Cluster) -> None:
    assert outside(NETWORK6, "fd00:96::") and outside(NETWORK6, "fd00:97::1")
    dual.apply(service("ports: [{port: 80}], clusterIP: 'fd00:96::ffff'"))
    given = {choose(IPv6Network("fd00::/126"), "default", "a", held.__contains__) for held in ([], ["fd00::1"])}
    assert given <= {"fd00::1", "fd00::2", "fd00::3"}


def test_a_whole_site_may_be_the_service_range() -> None:
    cluster = Cluster({"IPv6": IPv6Network("fd00::/32")})
    cluster.apply(service())
    assert ip_address(cluster.address()) in IPv6Network("fd00::/32")


@pytest.mark.parametrize(
    ("address", "addresses", "wanted"),
    [
        ("10.0.0.1", [], ("10.0.0.1", [])),
        ("10.0.0.1", ["10.0.0.1", "FD00::1"], ("10.0.0.1", ["10.0.0.1", "fd00::1"])),
        ("", ["fd00::1", "10.0.0.1"], ("fd00::1", ["fd00::1", "10.0.0.1"])),
    ],
)
def test_a_pod_has_the_addresses_that_its_kubelet_reports(
    cluster: Cluster, address: str, addresses: list[str], wanted: tuple[str, list[str]]
) -> None:
    cluster.apply(pod())
    status = PodStatus(
        namespace="default", name="p", uid=cluster.pod().uid, phase="Running", ready=True, address=address,
        addresses=addresses,
    )  # fmt: skip
    cluster.do(plan_status(cluster.store, status))
    assert (cluster.pod().address, cluster.pod().addresses) == wanted


@pytest.mark.parametrize(
    ("addresses", "path", "words"),
    [
        (["fd00::1", "fd00::2"], "addresses[1]", "second address"),
        (["fe80::1%eth0"], "address", "zone"),
        (["10.0.0.1", "::ffff:10.0.0.2"], "addresses[1]", "written as an IPv6 one"),
        (["10.0.0.1", "fd00:::1"], "addresses[1]", "not an IP address"),
    ],
)
def test_a_status_with_addresses_that_no_pod_can_have_is_refused(
    cluster: Cluster, addresses: list[str], path: str, words: str
) -> None:
    cluster.apply(pod())
    status = PodStatus(
        namespace="default", name="p", uid=cluster.pod().uid, phase="Running", ready=True, addresses=addresses
    )
    (refusal,) = plan_status(cluster.store, status).refusals
    assert refusal.path == path and words in refusal.problem


WORKLOAD = """
apiVersion: apps/v1
kind: {kind}
metadata: {{name: w}}
spec:
  selector: {{matchLabels: {{a: b}}}}
  template: {{metadata: {{labels: {{a: b}}}}, spec: {{containers: [{{name: c, image: i}}]}}}}
"""


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet"])
def test_pods_go_with_what_made_them_and_never_before(cluster: Cluster, kind: str) -> None:
    owner = WORKLOAD.format(kind=kind)
    owned = pod(metadata=f", ownerReferences: [{{apiVersion: apps/v1, kind: {kind}, name: w}}]")
    assert f'there is no {kind} "w"' in cluster.refused(owned)["metadata.ownerReferences[0]"]
    assert set(cluster.apply(owner, owned).values()) == {"created"}
    assert cluster.pod().owner == f"{kind.lower()}/default/w"
    assert cluster.plan(owner.replace("a: b", "a: c")).refusals[0].path == "spec.selector"
    assert plan_tidy(cluster.store).steps == ()
    plan = plan_delete(cluster.store, cluster.resources(owner, to_delete=True))
    assert [each.subject for each in plan.steps] == [
        f"state.resources.{kind.lower()}.default.w",
        POD.of("default", "p"),
    ]
    cluster.do(Plan(plan.steps[:1]))  # and then a death
    assert [each.subject for each in plan_tidy(cluster.store).steps] == [POD.of("default", "p")]


def test_a_pod_whose_owner_only_a_newer_version_knows_is_left_alone(cluster: Cluster) -> None:
    cluster.apply(pod())
    cluster.store.put(POD.of("default", "p"), msgspec.structs.replace(cluster.pod(), owner="job/default/w"))
    assert plan_tidy(cluster.store).steps == ()
