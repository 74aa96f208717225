"""Good manifests are taken and mean what Kubernetes and Cilium mean by them."""

from __future__ import annotations

import pytest

from bus.messages.resources import ContainerPort, PortRange, Rule, ServicePort
from tests.unit.resources.manifests import cilium, message, network, peers_of, pod, problems, service, taken

OWN = ("k8s:io.kubernetes.pod.namespace", "In", ["default"])


def rules(body: str) -> list[Rule]:
    found: list[Rule] = message(cilium(body)).rules
    return found


def test_a_selector_of_a_cilium_rule_stays_in_the_policys_namespace() -> None:
    policy = message(cilium("ingress: [{fromEndpoints: [{matchLabels: {org: empire}}]}]"))
    assert peers_of(policy) == [[OWN, ("k8s:org", "In", ["empire"])]]


@pytest.mark.parametrize(
    "key", ["k8s:io.kubernetes.pod.namespace", "io.kubernetes.pod.namespace", "any:io.kubernetes.pod.namespace"]
)
def test_a_selector_that_names_a_namespace_leaves_the_policys(key: str) -> None:
    policy = message(cilium(f"ingress: [{{fromEndpoints: [{{matchLabels: {{'{key}': other}}}}]}}]"))
    assert peers_of(policy) == [[("k8s:io.kubernetes.pod.namespace", "In", ["other"])]]


def test_a_selector_by_an_expression_on_the_namespace_leaves_the_policys() -> None:
    expression = "{matchExpressions: [{key: 'k8s:io.kubernetes.pod.namespace', operator: Exists}]}"
    policy = message(cilium(f"ingress: [{{fromEndpoints: [{expression}]}}]"))
    assert peers_of(policy) == [[("k8s:io.kubernetes.pod.namespace", "Exists", [])]]


def test_a_selector_by_namespace_labels_leaves_the_policys_namespace() -> None:
    label = "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name"
    policy = message(cilium(f"ingress: [{{fromEndpoints: [{{matchLabels: {{'{label}': other}}}}]}}]"))
    assert peers_of(policy) == [[(label, "In", ["other"])]]


def test_an_empty_cilium_selector_is_every_pod_of_the_namespace() -> None:
    assert peers_of(message(cilium("ingress: [{fromEndpoints: [{}]}]"))) == [[OWN]]


def test_an_empty_list_of_rules_denies_nothing() -> None:
    policy = message(cilium("ingress: [], egress: [{}]"))
    assert (policy.rules, policy.deny_ingress_by_default, policy.deny_egress_by_default) == ([], False, True)


def test_an_empty_rule_denies_all_and_allows_nothing() -> None:
    policy = message(cilium("ingress: [{}]"))
    assert (policy.rules, policy.deny_ingress_by_default, policy.deny_egress_by_default) == ([], True, False)


@pytest.mark.parametrize("peers", ["fromEndpoints: []", "fromEntities: []", "fromCIDR: []", "fromCIDRSet: []"])
def test_an_empty_list_of_peers_is_nobody(peers: str) -> None:
    policy = message(cilium(f"ingress: [{{{peers}, toPorts: [{{ports: [{{port: '80'}}]}}]}}]"))
    assert (policy.rules, policy.deny_ingress_by_default) == ([], True)


def test_ports_without_peers_are_open_to_everyone() -> None:
    (rule,) = rules("ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}, {port: http}]}]}]")
    assert rule.any_peer and rule.peers == []
    assert rule.ports == [PortRange(protocol="TCP", port=80), PortRange(protocol="ANY", name="http")]


def test_peers_without_ports_are_allowed_on_every_port() -> None:
    (rule,) = rules("egress: [{toEntities: [world, host]}]")
    assert rule.direction == "egress" and not rule.any_peer and rule.ports == []
    assert [peer.entity for peer in rule.peers] == ["world", "host"]


def test_a_port_range_keeps_its_end_and_port_zero_is_every_port() -> None:
    (rule,) = rules("ingress: [{toPorts: [{ports: [{port: '80', endPort: 90}, {port: '0', protocol: udp}]}]}]")
    assert rule.ports == [PortRange(port=80, end_port=90), PortRange(protocol="UDP")]


def test_an_icmp_type_is_carried_as_its_number_plus_one() -> None:
    (rule,) = rules("ingress: [{icmps: [{fields: [{type: 8, family: IPv4}, {type: EchoReply}]}]}]")
    assert rule.any_peer
    assert rule.ports == [PortRange(protocol="ICMP", port=9), PortRange(protocol="ICMP", port=1)]


def test_an_icmpv6_type_is_of_its_own_protocol() -> None:
    fields = "{type: 128, family: IPv6}, {type: EchoRequest, family: IPv6}, {type: EchoRequest}"
    (rule,) = rules(f"ingress: [{{icmps: [{{fields: [{fields}]}}]}}]")
    assert rule.ports == [PortRange(protocol="ICMPv6", port=129)] * 2 + [PortRange(protocol="ICMP", port=9)]


def test_the_world_can_be_named_by_family() -> None:
    (rule,) = rules("egress: [{toEntities: [world-ipv4, world-ipv6]}]")
    assert [peer.entity for peer in rule.peers] == ["world-ipv4", "world-ipv6"]


def test_a_node_has_addresses_and_blocks_of_both_families_in_their_one_form() -> None:
    found = message("""
apiVersion: v1
kind: Node
metadata: {name: n}
spec: {podCIDR: "FD00:10::/64", podCIDRs: ["FD00:10::/64", 10.1.0.0/24]}
status:
  addresses:
  - {type: InternalIP, address: "2001:DB8:0::1"}
  - {type: ExternalIP, address: 198.51.100.1}
  - {type: InternalIP, address: 192.0.2.1}
""")
    assert found.addresses == ["2001:db8::1", "192.0.2.1", "198.51.100.1"]
    assert found.pod_cidrs == ["fd00:10::/64", "10.1.0.0/24"]


def test_an_ipv6_slice_has_its_addresses_in_their_one_form() -> None:
    found = message("""
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, labels: {kubernetes.io/service-name: svc}}
addressType: IPv6
ports: [{name: http, port: 80, protocol: SCTP}]
endpoints: [{addresses: ["FD00:0::1"]}]
""")
    assert (found.address_type, found.endpoints[0].addresses) == ("IPv6", ["fd00::1"])


def test_a_service_may_be_for_sctp() -> None:
    found = message(service("ports: [{port: 80, protocol: SCTP, name: a}, {port: 80, name: b}]"))
    assert [port.protocol for port in found.ports] == ["SCTP", "TCP"]


def test_an_endpoint_that_is_about_to_end_is_draining_while_it_serves() -> None:
    found = message("""
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, labels: {kubernetes.io/service-name: svc}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints:
- {addresses: [10.0.0.1], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.0.0.2], conditions: {ready: false, serving: false, terminating: true}}
- {addresses: [10.0.0.3], conditions: {ready: false, terminating: true}}
- {addresses: [10.0.0.4], conditions: {ready: false, serving: true, terminating: false}}
- {addresses: [10.0.0.5], conditions: {ready: true}}
""")
    assert [each.draining for each in found.endpoints] == [True, False, False, False, False]


def test_default_deny_can_be_set_by_hand() -> None:
    policy = message(cilium("ingress: [{fromEndpoints: [{}]}], enableDefaultDeny: {ingress: false, egress: true}"))
    assert (policy.deny_ingress_by_default, policy.deny_egress_by_default) == (False, True)


def test_each_entry_of_specs_is_a_policy_of_its_own_and_the_first_has_the_name() -> None:
    resource = taken("""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: two}
specs:
- {endpointSelector: {matchLabels: {a: b}}, ingress: [{}]}
- {endpointSelector: {matchLabels: {c: d}}, egress: [{}]}
""")
    first, second = (each for _, each in resource.messages)
    assert (first.name, second.name) == ("two", "two/specs[1]")  # type: ignore[attr-defined]
    assert first.manifest and not second.manifest  # type: ignore[attr-defined]


def test_equal_selectors_are_equal_messages_whatever_their_order() -> None:
    one = message(cilium("ingress: [{fromEndpoints: [{matchLabels: {a: b, c: d}}]}]"))
    other = message(
        cilium(
            "ingress: [{fromEndpoints: [{matchLabels: {c: d},"
            " matchExpressions: [{key: a, operator: In, values: [b, b]}]}]}]"
        )
    )
    assert one.rules == other.rules


def test_a_network_policy_isolates_ingress_and_egress_only_when_it_has_egress_rules() -> None:
    only_ingress, both = message(network("podSelector: {}")), message(network("egress: [{}]"))
    assert (only_ingress.deny_ingress_by_default, only_ingress.deny_egress_by_default) == (True, False)
    assert (both.deny_ingress_by_default, both.deny_egress_by_default) == (True, True)


def test_rules_of_a_direction_that_policy_types_leaves_out_do_nothing() -> None:
    policy = message(network("policyTypes: [Egress], ingress: [{}]"))
    assert (policy.rules, policy.deny_ingress_by_default, policy.deny_egress_by_default) == ([], False, True)


@pytest.mark.parametrize("body", ["ingress: [{}]", "ingress: [{from: []}]", "ingress: [{from: null, ports: null}]"])
def test_a_network_policy_rule_without_peers_is_open_to_everyone(body: str) -> None:
    (rule,) = message(network(body)).rules
    assert rule == Rule(direction="ingress", any_peer=True)


def test_peers_of_a_network_policy_combine_pods_and_namespaces() -> None:
    pods, anywhere_ = "{podSelector: {matchLabels: {a: b}}}", "{namespaceSelector: {}}"
    peers = f"[{pods}, {anywhere_}, {{namespaceSelector: {{matchLabels: {{t: x}}}}, podSelector: {{}}}}]"
    policy = message(network(f"ingress: [{{from: {peers}}}]"))
    anywhere: tuple[str, str, list[str]] = ("k8s:io.kubernetes.pod.namespace", "Exists", [])
    assert peers_of(policy) == [
        [("k8s:a", "In", ["b"]), OWN],
        [anywhere],
        [("k8s:io.cilium.k8s.namespace.labels.t", "In", ["x"]), anywhere],
    ]


def test_ports_of_a_network_policy_default_to_tcp() -> None:
    (rule,) = message(network("ingress: [{ports: [{port: 80, endPort: 90}, {port: http}, {protocol: UDP}]}]")).rules
    assert rule.ports == [
        PortRange(protocol="TCP", port=80, end_port=90),
        PortRange(protocol="TCP", name="http"),
        PortRange(protocol="UDP"),
    ]


def test_a_pod_has_its_ports_account_and_labels() -> None:
    found = message(
        pod(
            ", serviceAccountName: sa, nodeSelector: {a: b}",
            "[{name: c, image: i, ports: [{containerPort: 80, name: http}]}]",
        )
    )
    assert found.ports == [ContainerPort(name="http", port=80)]
    assert (found.service_account, found.node, found.phase) == ("sa", "", "Pending")


def test_a_services_target_port_is_its_port_unless_it_says_otherwise() -> None:
    found = message(service("ports: [{port: 80, name: a}, {port: 81, targetPort: http, name: b}]"))
    assert found.ports == [
        ServicePort(name="a", port=80, target_port=80),
        ServicePort(name="b", port=81, target_port="http"),
    ]


def test_a_service_says_who_reaches_it_and_how() -> None:
    found = message(
        service(
            "type: LoadBalancer, externalTrafficPolicy: Local, internalTrafficPolicy: Local,"
            " externalIPs: ['2001:DB8::1', 192.0.2.9, 192.0.2.9],"
            " publishNotReadyAddresses: true, trafficDistribution: PreferClose, healthCheckNodePort: 31000,"
            " allocateLoadBalancerNodePorts: false, ports: [{port: 80, nodePort: 30080}]"
        )
    )
    assert (found.type, found.external_traffic_policy, found.internal_traffic_policy) == (
        *("LoadBalancer", "Local"),
        "Local",
    )
    assert found.external_addresses == ["192.0.2.9", "2001:db8::1"]
    assert found.publishes_not_ready and not found.allocates_node_ports
    assert (found.distribution, found.health_check_port, found.ports[0].node_port) == ("PreferSameZone", 31000, 30080)


def test_a_pods_host_port_is_at_every_address_of_its_node_or_at_one() -> None:
    ports = "{containerPort: 80, hostPort: 8080, hostIP: '%s'}"
    texts = [pod(containers=f"[{{name: c, image: i, ports: [{ports % address}]}}]") for address in ("0.0.0.0", "::1")]
    assert [message(text).ports for text in texts] == [
        [ContainerPort(port=80, host_port=8080)],
        [ContainerPort(port=80, host_port=8080, host_address="::1")],
    ]
    host = pod(", hostNetwork: true", "[{name: c, image: i, ports: [{containerPort: 80, hostPort: 80}]}]")
    assert message(host).ports == [ContainerPort(port=80)], "it has the node's port without anybody's help"


SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: s
  labels: {kubernetes.io/service-name: svc, endpointslice.kubernetes.io/managed-by: me}
  annotations: {service.cilium.io/weight: "0"}
"""


def test_a_slice_has_its_weight_its_zones_and_its_hints() -> None:
    found = message(
        SLICE + "addressType: IPv4\nports: [{name: a, port: 80}, {name: b}]\nendpoints:\n"
        "- {addresses: [10.0.0.1], zone: z1, hints: {forZones: [{name: z2}, {name: z1}], forNodes: [{name: n}]}}"
    )
    assert (found.weight, found.managed_by, [each.name for each in found.ports]) == (0, "me", ["a"])
    assert (found.endpoints[0].zone, found.endpoints[0].for_zones, found.endpoints[0].for_nodes) == (
        *("z1", ["z1", "z2"]),
        ["n"],
    )


def test_a_slice_of_names_is_taken_and_serves_nobody() -> None:
    found = message(SLICE + "addressType: FQDN\nports: []\nendpoints: [{addresses: [db.example.org.]}]")
    assert found.endpoints == []


def test_a_headless_service_needs_no_ports() -> None:
    assert taken(service("clusterIP: None")).asked_addresses == ("None",)


def test_a_slice_endpoint_is_ready_unless_it_says_no() -> None:
    found = message("""
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, labels: {kubernetes.io/service-name: svc}}
addressType: IPv4
ports: [{name: http, port: 80, protocol: TCP}]
endpoints:
- {addresses: [10.0.0.1], conditions: {}}
- {addresses: [10.0.0.2], conditions: {ready: false}}
- {addresses: [10.0.0.3], conditions: {ready: null}}
""")
    assert found.service == "svc"
    assert [each.ready for each in found.endpoints] == [True, False, True]


def test_a_namespace_bears_its_name_as_a_label() -> None:
    found = message("{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {a: b}}}")
    assert found.labels == {"a": "b", "kubernetes.io/metadata.name": "shop"}


def test_a_real_manifest_with_defaults_and_status_is_taken() -> None:
    text = """
apiVersion: v1
kind: Pod
metadata:
  name: web
  uid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427
  creationTimestamp: "2026-01-01T00:00:00Z"
  resourceVersion: "12"
  managedFields: [{manager: kubectl, operation: Update}]
spec:
  containers:
  - {name: web, image: nginx, imagePullPolicy: Always, resources: {limits: {cpu: 1}}, env: [{name: A, value: b}],
     volumeMounts: [{name: v, mountPath: /v}], livenessProbe: {httpGet: {path: /, port: 80}},
     securityContext: {runAsUser: 0}, terminationMessagePolicy: File, ports: [{containerPort: 80}]}
  dnsPolicy: ClusterFirst
  enableServiceLinks: true
  restartPolicy: Always
  schedulerName: default-scheduler
  securityContext: {}
  serviceAccount: default
  serviceAccountName: default
  terminationGracePeriodSeconds: 30
  tolerations: [{effect: NoExecute, key: a, operator: Exists, tolerationSeconds: 300}]
  volumes: [{name: v, emptyDir: {}}]
status: {phase: Running, podIP: 10.0.0.1, conditions: []}
"""
    assert problems(text) == {}


def test_nulls_that_an_api_server_prunes_are_as_good_as_absent() -> None:
    plain = message(cilium("ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '80'}]}]}]"))
    full = message(
        cilium(
            "description: null, labels: null, log: null, enableDefaultDeny: null, egress: null,"
            " ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '80', endPort: null}]}]}]"
        ).replace("name: rule1", "name: rule1, creationTimestamp: null, labels: null")
    )
    assert (full.rules, full.subject) == (plain.rules, plain.subject)
    assert (full.deny_ingress_by_default, full.deny_egress_by_default) == (True, False)


def test_a_null_label_is_the_empty_one_and_not_none_at_all() -> None:
    """As an API server reads it; a selector without the requirement would select everything."""
    policy = message(network("podSelector: {matchLabels: {app: null}}"))
    assert ("k8s:app", "In", [""]) in [(each.key, each.operator, each.values) for each in policy.subject.requirements]
    assert message(service("ports: [{port: 80}], selector: {app: null}")).selector == {"app": ""}
    assert message(pod(metadata=", labels: {app: null}")).labels == {"app": ""}


@pytest.mark.parametrize(("written", "number"), [("'8'", 8), ("8", 8), ("'0'", 0), ("'255'", 255), ("EchoRequest", 8)])
def test_an_icmp_type_may_be_a_number_text_or_a_name(written: str, number: int) -> None:
    (rule,) = rules(f"ingress: [{{icmps: [{{fields: [{{type: {written}}}]}}]}}]")
    assert [(each.protocol, each.port) for each in rule.ports] == [("ICMP", number + 1)]


def test_a_stateful_set_is_what_it_says() -> None:
    text = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 3
  ordinals: {start: 1}
  podManagementPolicy: Parallel
  updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 2}}
  selector: {matchLabels: {a: b}}
  template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}
  volumeClaimTemplates: [{metadata: {name: data}, spec: {}}]
"""
    found = message(text)
    assert (found.replicas, found.first, found.is_ordered, found.renews, found.renewed_from) == (3, 1, False, True, 2)
    plain = message(text.replace("podManagementPolicy: Parallel", "").replace("type: RollingUpdate", "type: OnDelete"))
    assert (plain.is_ordered, plain.renews) == (True, False)
