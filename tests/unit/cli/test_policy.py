"""Policies of every kind as a person asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.messages.dataplane import ClosedDirection, Endpoint
from bus.messages.policy import NamedPort, PeerNetwork, PolicyRules, Selector, SelectorRule
from bus.messages.resources import LabelSelector, PortRange, Requirement
from bus.subjects import ENDPOINT, RULES, SELECTOR
from tests.unit.cli.cluster import STAR, XWING, Cluster, from_json, plexus

RULE1 = "CiliumNetworkPolicy/default/rule1"


def need(key: str, *values: str) -> LabelSelector:
    return LabelSelector(requirements=[Requirement(key=key, operator="In", values=list(values))])


@pytest.fixture
def ruled(cluster: Cluster) -> Cluster:
    """The empire is closed but for its own, on one port; and a network is denied by a policy of the whole cluster."""
    empire, network = need("k8s:org", "empire"), [PeerNetwork(cidr="10.0.0.0/8", except_cidrs=["10.1.0.0/16"])]
    for selector in (
        Selector(id="s1", selector=empire, members=[STAR]),
        Selector(id="s2", selector=need("cidr:", "x"), networks=network),
        Selector(id="s3", selector=empire, having=NamedPort(name="web", protocol="TCP", port=81), members=[STAR]),
    ):
        cluster.hub.put(SELECTOR.of(selector.id), selector)
    ports = [PortRange(protocol="TCP", port=80, end_port=89), PortRange(protocol="ICMP", port=9)]
    allows = SelectorRule(direction="ingress", selectors=["s1"], ports=ports)
    named = SelectorRule(direction="egress", selectors=["s3"], entities=["world"])
    for rules in (
        PolicyRules(
            kind="CiliumNetworkPolicy",
            namespace="default",
            name="rule1",
            subject="s1",
            rules=[allows, named],
            deny_ingress_by_default=True,
        ),
        PolicyRules(
            kind="CiliumClusterwideNetworkPolicy",
            namespace="",
            name="wide",
            subject="s1",
            denies=[SelectorRule(direction="ingress", selectors=["s2"])],
        ),
    ):
        cluster.hub.put(RULES.of(rules.kind, rules.namespace, rules.name), rules)
    return cluster


def test_what_holds_for_a_pod_is_told_by_direction(ruled: Cluster) -> None:
    assert plexus("policy", "explain", "deathstar").stdout.splitlines() == [
        f"default/deathstar (10.0.2.2), identity {STAR}, ready",
        f"ingress is denied by default, by {RULE1}",
        "  CiliumClusterwideNetworkPolicy//wide denies ingress from 10.0.0.0/8 but 10.1.0.0/16: every port",
        f"  {RULE1} allows ingress from org=empire: TCP 80-89, ICMP type 8",
        "egress is open",
        f"  {RULE1} allows egress to world; org=empire, having TCP 81 as web: every port",
    ]
    found = from_json("policy", "explain", "xwing")
    assert (found["identity"], found["ingress"]["denies_by_default"], found["ingress"]["allows"]) == (XWING, [], [])


def test_a_direction_that_has_no_room_is_told(ruled: Cluster) -> None:
    subject = ENDPOINT.of("node2", "default", "deathstar")
    endpoint = ruled.hub.states("dataplane")[subject]
    assert isinstance(endpoint, Endpoint)
    closed = [ClosedDirection(direction="ingress", why="no room", policies=[RULE1])]
    values = {field: getattr(endpoint, field) for field in endpoint.__struct_fields__}
    ruled.hub.put(subject, Endpoint(**{**values, "closed": closed}))
    assert "  all of it is denied: no room\n" in plexus("policy", "explain", "default/deathstar").stdout


def test_a_policy_is_its_rules_with_whom_they_mean(ruled: Cluster) -> None:
    assert plexus("policy", "get", "rule1").stdout.splitlines()[:2] == [
        f"{RULE1}, for org=empire",
        "  ingress is denied by default",
    ]
    (found,) = from_json("policy", "get", "wide")
    assert found["denies"] == [
        {"direction": "ingress", "peers": ["10.0.0.0/8 but 10.1.0.0/16"], "ports": ["every port"]}
    ]
    assert "there is no policy default/nobody" in plexus("policy", "get", "nobody", status=1).stderr


def test_selectors_name_their_members_and_who_names_them(ruled: Cluster) -> None:
    found = {row["id"]: row for row in from_json("policy", "selectors")}
    assert found["s1"]["members"] == [{"number": STAR, "name": "org=empire"}]
    assert found["s1"]["policies"] == ["CiliumClusterwideNetworkPolicy//wide", RULE1]
    assert "10.0.0.0/8 but 10.1.0.0/16" in plexus("policy", "selectors").stdout


def test_policies_of_every_kind_are_listed(ruled: Cluster) -> None:
    assert [row["metadata"]["name"] for row in from_json("policy", "list")] == ["rule1"]
    assert "CiliumNetworkPolicy" in plexus("policy", "list").stdout


def test_manifests_are_read_without_a_cluster(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    text = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: rule1}
spec: {endpointSelector: {}, ingress: [{}], log: {value: a}}
"""
    good.write_text(text)
    bad.write_text(text.replace("ingress: [{}]", "ingress: [{fromNodes: [{}]}]"))
    said = plexus("policy", "validate", "-f", str(good)).stdout
    assert "ciliumnetworkpolicy/default/rule1 would be taken" in said and "spec.log.value: is taken" in said
    assert (
        "spec.ingress[0].fromNodes: is not supported yet"
        in plexus("policy", "validate", "-f", str(bad), status=1).stderr
    )
