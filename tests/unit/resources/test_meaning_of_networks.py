"""What peers by address, deny rules and clusterwide policies become."""

from __future__ import annotations

import pytest

from bus.messages.resources import CIDRGroup, LabelSelector, Peer, Policy, PortRange, Requirement, Rule, ServicePeer
from bus.subjects import CIDR_GROUP, POLICY
from tests.unit.resources.manifests import cidr_group, cilium, clusterwide, message, network, taken

PODS = Requirement(key="k8s:io.kubernetes.pod.namespace", operator="Exists")
OWN = Requirement(key="k8s:io.kubernetes.pod.namespace", operator="In", values=["default"])


def peers_in(text: str) -> list[Peer]:
    (rule,) = message(text).rules
    assert isinstance(rule, Rule)
    assert not rule.any_peer
    return rule.peers


def test_an_ip_block_is_its_network_but_for_its_exceptions() -> None:
    text = network(
        "policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.2.0.0/16, 10.1.0.0/16]}},"
        " {ipBlock: {cidr: '2001:DB8::/32'}}], ports: [{port: 80}]}]"
    )
    assert peers_in(text) == [
        Peer(cidr="10.0.0.0/8", except_cidrs=["10.1.0.0/16", "10.2.0.0/16"]),
        Peer(cidr="2001:db8::/32"),
    ]


def test_an_address_is_a_network_of_itself() -> None:
    assert peers_in(cilium("egress: [{toCIDR: [192.0.2.1, '2001:db8::1', 10.0.0.0/8]}]")) == [
        Peer(cidr="192.0.2.1/32"),
        Peer(cidr="2001:db8::1/128"),
        Peer(cidr="10.0.0.0/8"),
    ]


def test_a_set_is_a_network_or_groups_of_them_by_name_or_by_labels() -> None:
    text = cilium(
        "ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]},"
        " {cidrGroupRef: office, except: [10.0.0.0/9]},"
        " {cidrGroupSelector: {matchLabels: {tier: a}}}, {cidrGroupSelector: {}}]}]"
    )
    wanted = Requirement(key="tier", operator="In", values=["a"])
    assert peers_in(text) == [
        Peer(cidr="10.0.0.0/8", except_cidrs=["10.96.0.0/12"]),
        Peer(cidr_group="office", except_cidrs=["10.0.0.0/9"]),
        Peer(cidr_groups=LabelSelector(requirements=[wanted])),
        Peer(cidr_groups=LabelSelector()),
    ]


@pytest.mark.parametrize("version", ["v2", "v2alpha1"])
def test_a_group_has_each_network_once_in_its_one_form(version: str) -> None:
    resource = taken(cidr_group("192.0.2.1, 10.1.2.3/8, 10.0.0.0/8, '2001:DB8::/32'", version))
    ((subject, group),) = resource.messages
    assert subject == CIDR_GROUP.of("office")
    assert isinstance(group, CIDRGroup)
    assert group.cidrs == ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"]
    assert (group.name, group.labels) == ("office", {"tier": "a"})


def test_services_are_meant_by_name_or_by_labels() -> None:
    text = cilium(
        "egress: [{toServices: [{k8sService: {serviceName: web, namespace: blue}},"
        " {k8sServiceSelector: {selector: {matchLabels: {tier: a}}}}]}]"
    )
    wanted = LabelSelector(requirements=[Requirement(key="tier", operator="In", values=["a"])])
    assert peers_in(text) == [
        Peer(services=ServicePeer(name="web", namespace="blue")),
        Peer(services=ServicePeer(selector=wanted)),
    ]
    (warning,) = taken(text).warnings
    assert warning.path == "spec.egress[0].toServices[1].k8sServiceSelector"
    assert "every one" in warning.text


def test_what_is_denied_stands_apart_and_denies_its_direction_by_default() -> None:
    policy = message(
        cilium("ingressDeny: [{fromEntities: [world], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]")
    )
    assert policy.rules == []
    assert policy.denies == [
        Rule(direction="ingress", peers=[Peer(entity="world")], ports=[PortRange(protocol="TCP", port=80)])
    ]
    assert (policy.deny_ingress_by_default, policy.deny_egress_by_default) == (True, False)


def test_what_is_denied_may_leave_the_rest_open() -> None:
    policy = message(cilium("egressDeny: [{toCIDR: [169.254.169.254]}], enableDefaultDeny: {egress: false}"))
    assert policy.denies == [Rule(direction="egress", peers=[Peer(cidr="169.254.169.254/32")])]
    assert not policy.deny_egress_by_default


def test_a_deny_rule_for_nobody_denies_nobody() -> None:
    policy = message(cilium("ingressDeny: [{fromEndpoints: []}, {}]"))
    assert (policy.denies, policy.deny_ingress_by_default) == ([], True)


def test_a_clusterwide_policy_is_for_pods_of_every_namespace_and_of_the_one_that_it_names() -> None:
    resource = taken(
        clusterwide(
            "ingress: [{fromEndpoints: [{matchLabels: {app: a}}, {},"
            " {matchLabels: {io.kubernetes.pod.namespace: blue}}]}]"
        )
    )
    ((subject, policy),) = resource.messages
    assert isinstance(policy, Policy)
    assert subject == POLICY.of("CiliumClusterwideNetworkPolicy", "", "rule1")
    assert policy.subject == LabelSelector(requirements=[PODS])
    app = Requirement(key="k8s:app", operator="In", values=["a"])
    blue = Requirement(key="k8s:io.kubernetes.pod.namespace", operator="In", values=["blue"])
    assert [peer.selector for peer in policy.rules[0].peers] == [
        LabelSelector(requirements=[app, PODS]),
        LabelSelector(requirements=[PODS]),
        LabelSelector(requirements=[blue]),
    ]


@pytest.mark.parametrize(
    "label", ["matchLabels: {'reserved:world': ''}", "matchExpressions: [{key: 'reserved:world', operator: Exists}]"]
)
def test_a_reserved_label_is_the_entity(label: str) -> None:
    assert peers_in(cilium(f"ingress: [{{fromEndpoints: [{{{label}}}]}}]")) == [Peer(entity="world")]


def test_a_reserved_label_that_must_not_be_there_is_no_condition_on_pods() -> None:
    without = "{matchExpressions: [{key: 'reserved:init', operator: DoesNotExist}]}"
    (peer,) = peers_in(cilium(f"ingress: [{{fromEndpoints: [{without}]}}]"))
    absent = Requirement(key="reserved:init", operator="DoesNotExist")
    assert peer.selector == LabelSelector(requirements=[OWN, absent])


@pytest.mark.parametrize("entity", ["none", "ingress", "cluster-mesh"])
def test_an_entity_that_nobody_is_of_is_none(entity: str) -> None:
    assert peers_in(cilium(f"ingress: [{{fromEntities: [{entity}]}}]")) == [Peer(entity="none")]
