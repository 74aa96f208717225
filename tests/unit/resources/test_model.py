"""What a call changes: all or nothing, addresses given once, nothing of a living thing lost."""

from __future__ import annotations

import msgspec
import pytest

from bus.control import Say
from bus.messages.resources import Bind, Deployment, Namespace, Node, PodStatus
from bus.subjects import DEPLOYMENT, NAMESPACE, NODE, POD, POLICY, SERVICE
from services.resources.model import Plan, plan_bind, plan_delete, plan_status, plan_tidy
from tests.unit.resources.cluster import Cluster
from tests.unit.resources.manifests import cilium, pod, service

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
    assert cluster.store.parts_of("CiliumNetworkPolicy", "default", "p") == []


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


def test_pods_whose_deployment_is_gone_are_tidied_away(cluster: Cluster) -> None:
    cluster.apply(DEPLOYMENT_WEB, pod(metadata=OWNED))
    cluster.store.delete(DEPLOYMENT.of("default", "web"))  # and then it died
    cluster.do(plan_tidy(cluster.store))
    assert cluster.store.get(POD.of("default", "p")) is None


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
