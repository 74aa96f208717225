"""What is taken and does not do all that it asks for is told, and kept with the resource."""

from __future__ import annotations

from typing import Any

import pytest

from bus.messages.resources import Apply
from bus.subjects import POD, SERVICE
from bus.testing import Hub, MemoryOutbox
from services.resources.handlers import MOST_TOLD, Handlers
from services.resources.manifests.document import MOST_WARNINGS
from services.resources.settings import Settings
from tests.unit.resources.manifests import cilium, documents, network, pod, problems, service, taken


def warnings(text: str) -> dict[str, str]:
    """Path -> text of each warning; the message keeps the same."""
    resource = taken(text)
    kept: Any = resource.messages[0][1]
    assert kept.warnings == [f"{path}: {words}" for path, words in resource.warnings]
    return dict(resource.warnings)


def annotated(kind: str, key: str, value: str = "x") -> str:
    metadata = f", annotations: {{{key}: '{value}'}}"
    texts = {
        "Pod": pod(metadata=metadata),
        "Service": service(metadata=metadata),
        "Namespace": f"{{apiVersion: v1, kind: Namespace, metadata: {{name: n{metadata}}}}}",
        "EndpointSlice": "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,"
        f" metadata: {{name: s{metadata}}}}}",
        "Node": f"{{apiVersion: v1, kind: Node, metadata: {{name: n{metadata}}},"
        " status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}",
        "CiliumNetworkPolicy": cilium("ingress: [{}]").replace("namespace: default", f"namespace: default{metadata}"),
    }
    return texts[kind]


@pytest.mark.parametrize(
    ("kind", "key", "words"),
    [
        ("Pod", "cni.cilium.io/mac-address", "the pod gets another one"),
        ("Pod", "CNI.Cilium.io/mac-address", "the pod gets another one"),
        ("Pod", "ipam.cilium.io/ip-pool", "address pools are not supported yet"),
        ("Namespace", "ipam.cilium.io/ip-pool", "address pools are not supported yet"),
        ("Pod", "policy.cilium.io/no-track-port", "tracked as all others are"),
        ("Pod", "io.cilium.no-track-port", "tracked as all others are"),
        ("Pod", "network.cilium.io/no-track-host-ports", "tracked as all others are"),
        ("Pod", "policy.cilium.io/proxy-visibility", "no traffic goes through a proxy"),
        ("Pod", "io.cilium.proxy-visibility", "no traffic goes through a proxy"),
        ("Pod", "config.cilium.io/disable-source-ip-verification", "are dropped"),
        ("Namespace", "config.cilium.io/delegate-source-ip-verification", "are dropped"),
        ("Pod", "bandwidth.cilium.io/priority", "sent as all others are"),
        ("Pod", "network.cilium.io/fib-table-id", "routed as all others are"),
        ("Pod", "a.feature.cilium.io/of-tomorrow", "changes nothing"),
        ("CiliumNetworkPolicy", "policy.cilium.io/of-tomorrow", "changes nothing"),
        ("Node", "cilium.io/bgp-virtual-router.64512", "changes nothing"),
        ("Pod", "service.cilium.io/weight", "as much as all others"),
        ("Service", "service.kubernetes.io/topology-mode", "zones are not looked at"),
        ("Service", "service.kubernetes.io/topology-aware-hints", "zones are not looked at"),
        ("Namespace", "net.beta.kubernetes.io/network-policy", "isolates nothing"),
    ],
)
def test_an_annotation_that_would_change_packets_is_never_passed_over_in_silence(
    kind: str, key: str, words: str
) -> None:
    assert words in warnings(annotated(kind, key))[f"metadata.annotations[{key}]"]


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("Service", "service.cilium.io/global"),
        ("Service", "io.cilium/global-service"),
        ("Service", "service.cilium.io/shared"),
        ("Service", "service.cilium.io/affinity"),
        ("Namespace", "clustermesh.cilium.io/global"),
        ("Node", "network.cilium.io/ipv4-cilium-host"),
        ("Pod", "prometheus.io/scrape"),
        ("Pod", "Example.ORG/Owner"),
        ("Pod", "notcilium.io/x"),
    ],
)
def test_an_annotation_that_means_nothing_here_is_taken_in_silence(kind: str, key: str) -> None:
    assert warnings(annotated(kind, key)) == {}


def test_hints_that_are_switched_off_are_no_matter() -> None:
    assert warnings(annotated("Service", "service.kubernetes.io/topology-mode", "Disabled")) == {}


def test_a_deployments_template_is_looked_at_as_a_pod_is() -> None:
    text = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  selector: {matchLabels: {a: b}}
  template:
    metadata: {labels: {a: b}, annotations: {cni.cilium.io/mac-address: '02:00:00:00:00:01'}}
    spec: {containers: [{name: c, image: i}]}
"""
    assert list(warnings(text)) == ["spec.template.metadata.annotations[cni.cilium.io/mac-address]"]


@pytest.mark.parametrize("label", ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"])
def test_a_service_of_another_proxy_says_that_it_gets_no_frontends(label: str) -> None:
    found = warnings(service(metadata=f", labels: {{{label}: other}}"))
    assert "no frontends" in found[f"metadata.labels[{label}]"]


def test_an_empty_direction_beside_a_full_one_is_warned_of() -> None:
    for empty in ("[]", "null"):
        found = warnings(cilium(f"egress: [{{}}], ingress: {empty}"))
        assert "[{}] denies all ingress" in found["spec.ingress"]
    assert warnings(cilium("egress: [{}], ingress: [], enableDefaultDeny: {ingress: true}")) == {}


def test_an_entity_that_nobody_is_of_is_warned_of() -> None:
    for entity in ("ingress", "cluster-mesh"):
        found = warnings(cilium(f"ingress: [{{fromEntities: [{entity}]}}]"))
        assert "is nobody" in found["spec.ingress[0].fromEntities[0]"]
    assert warnings(cilium("ingress: [{fromEntities: [none]}]")) == {}


def test_a_denial_of_the_node_itself_is_warned_of() -> None:
    found = warnings(cilium("ingressDeny: [{fromEntities: [world, host]}]"))
    assert "may always reach its pods" in found["spec.ingressDeny[0].fromEntities"]
    assert warnings(cilium("egressDeny: [{toEntities: [host]}]")) == {}


def test_a_value_to_log_is_warned_of() -> None:
    assert "not yet told" in warnings(cilium("ingress: [{}], log: {value: why}"))["spec.log.value"]


def test_a_direction_that_policy_types_leave_out_is_warned_of() -> None:
    assert "does not list Ingress" in warnings(network("policyTypes: [Egress], ingress: [{}]"))["spec.ingress"]
    assert "does not list Egress" in warnings(network("egress: []"))["spec.egress"]
    assert warnings(network("ingress: []")) == {}, "that is the default deny of a NetworkPolicy"
    assert warnings(network("policyTypes: [Ingress, Egress], ingress: [], egress: []")) == {}


@pytest.mark.parametrize(
    "spec",
    [
        "clusterIP: None, publishNotReadyAddresses: true",
        "clusterIP: None, sessionAffinity: ClientIP, trafficDistribution: PreferClose, internalTrafficPolicy: Local",
        "type: ExternalName, externalName: db.example.org, publishNotReadyAddresses: true",
        "type: ExternalName, externalName: db.example.org, ports: [{port: 80}]",
    ],
)
def test_what_a_frontend_does_means_nothing_where_there_is_none(spec: str) -> None:
    assert problems(service(spec)) == {} and warnings(service(spec)) == {}


def test_what_is_not_served_yet_is_told_of_a_service_that_is_taken() -> None:
    assert warnings(service("type: NodePort, externalIPs: [192.0.2.9], ports: [{port: 80}]")) == {}
    assert warnings(pod(containers="[{name: c, image: i, ports: [{containerPort: 80, hostPort: 80}]}]")) == {}


def test_many_warnings_are_few_and_say_how_many() -> None:
    keys = ", ".join(f"a{number}.cilium.io/x: y" for number in range(500))
    found = taken(pod(metadata=f", annotations: {{{keys}}}")).warnings
    assert len(found) == MOST_WARNINGS
    assert found[-1].text == "481 more places ask for what is not done"


async def test_the_answer_tells_what_is_kept() -> None:
    hub = Hub()
    handlers = Handlers(MemoryOutbox(hub, "resources"), Settings())
    text = annotated("Pod", "cni.cilium.io/mac-address")
    for _ in ("created", "unchanged"):
        answer = await handlers.apply(Apply(documents=documents(text)))
        (told,) = answer.warnings
        assert (told.source, told.kind, told.name) == ("test.yaml, document 1", "Pod", "p")
        assert told.path == "metadata.annotations[cni.cilium.io/mac-address]"
    kept: Any = hub.states("resources")[POD.of("default", "p")]
    assert kept.warnings == [f"{told.path}: {told.text}"]
    await handlers.apply(Apply(documents=documents(pod())))
    kept = hub.states("resources")[POD.of("default", "p")]
    assert kept.warnings == []


async def test_an_answer_has_room_for_everything_that_it_tells() -> None:
    handlers = Handlers(MemoryOutbox(Hub(), "resources"), Settings())
    many = [annotated("Pod", "cni.cilium.io/mac-address").replace("name: p", f"name: p{at}") for at in range(300)]
    answer = await handlers.apply(Apply(documents=documents("---".join(many))))
    assert len(answer.outcomes) == 300 and len(answer.warnings) == MOST_TOLD
    assert answer.warnings[-1].text == "101 more places ask for what is not done"
    bad = Apply(documents=documents("---".join(each.replace("image", "imag") for each in many)))
    refused = await handlers.apply(bad)
    assert len(refused.refusals) == MOST_TOLD and "more places are refused" in refused.refusals[-1].problem


CONFIG = "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}"
JOB = "{apiVersion: batch/v1, kind: Job, metadata: {name: j}}"
MONITOR = "{apiVersion: monitoring.coreos.com/v1, kind: ServiceMonitor, metadata: {name: m}}"
KUSTOMIZATION = "{apiVersion: kustomize.config.k8s.io/v1beta1, kind: Kustomization, namespace: a}"


OTHERS = (JOB, MONITOR, KUSTOMIZATION)


async def test_what_is_no_concern_of_a_network_is_passed_over_when_asked_and_counted() -> None:
    hub = Hub()
    handlers = Handlers(MemoryOutbox(hub, "resources"), Settings())
    call = documents("\n---\n".join([CONFIG, service(), CONFIG, *OTHERS]))
    assert len((await handlers.apply(Apply(documents=call))).refusals) == 5
    answer = await handlers.apply(Apply(documents=call, skip_unsupported=True))
    assert answer.skipped == {"ConfigMap": 2, "Job": 1, "ServiceMonitor": 1, "Kustomization": 1}
    assert [each.change for each in answer.outcomes] == ["created"]
    assert SERVICE.of("default", "svc") in hub.states("resources")
    assert [each.kind for each in answer.warnings] == ["Job", "Kustomization"]
    gone = await handlers.apply(Apply(documents=call, delete=True, skip_unsupported=True))
    assert [each.change for each in gone.outcomes] == ["deleted"]


@pytest.mark.parametrize(
    "document",
    [
        "{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: a}}",
        "{apiVersion: cilium.io/v2, kind: CiliumSomethingOfTomorrow, metadata: {name: a}}",
        "{apiVersion: policy.networking.k8s.io/v1alpha1, kind: AdminNetworkPolicy, metadata: {name: a}}",
        "{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: a}}",
        "{apiVersion: crd.projectcalico.org/v1, kind: GlobalNetworkPolicy, metadata: {name: a}}",
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a}}",
        "{apiVersion: example.org/v1, kind: FirewallRule, metadata: {name: a}}",
        "{apiVersion: kyverno.io/v1, kind: ClusterPolicy, metadata: {name: a}}",
        "{apiVersion: extensions/v1beta1, kind: NetworkPolicy, metadata: {name: a}}",
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolcy, metadata: {name: a}}",
        "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: a}}",
        "{apiVersion: cilium.io/v2, kind: ConfigMap, metadata: {name: a}}",
        "{apiVersion: v1, kind: Servce, metadata: {name: a}}",
        "{kind: ConfigMap, metadata: {name: a}}",
        "{apiVersion: v1, metadata: {name: a}}",
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {loadBalancerSourceRanges: [fd00::/8]}}",
        cilium("egress: [{toFQDNs: [{matchName: a.b}]}]"),
        "{apiVersion: cilium.io/v2, kind: CiliumCIDRGroup, metadata: {name: a}}",
    ],
)
async def test_nothing_about_traffic_is_ever_passed_over(document: str) -> None:
    hub = Hub()
    handlers = Handlers(MemoryOutbox(hub, "resources"), Settings())
    answer = await handlers.apply(Apply(documents=documents(f"{CONFIG}\n---\n{document}"), skip_unsupported=True))
    assert answer.refusals and not answer.outcomes and answer.skipped == {}
