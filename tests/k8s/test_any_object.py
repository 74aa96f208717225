"""Whatever an object at the API server holds, it is read or left; and a policy that is read denies what it meant to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.codec import decode, encode
from bus.labels import selects
from bus.messages.resources import L2AnnouncementPolicy, LoadBalancerPool, Peer, Policy, Service
from services.resources.kubernetes.following import Backoff
from services.resources.kubernetes.mirror import WATCHED, plan_mirror
from services.resources.kubernetes.reading import is_policy, read_object
from services.resources.registry import BY_NAME
from services.resources.store import Store
from tests.k8s.test_source import CLOSED, GROUP, NODE_ONE, POOL, SERVICE_WEB, SLICE_WEB, cilium, clusterwide, pod
from tests.unit.resources.test_any_input import MANIFESTS, VALUES

NAMES = {each.name for each in WATCHED}
OBJECTS = [each for each in MANIFESTS if each.get("kind") in NAMES]
OBJECTS += [yaml.safe_load(each) for each in (CLOSED, NODE_ONE, SERVICE_WEB, SLICE_WEB, cilium("ingress: [{}]"))]
OBJECTS += [yaml.safe_load(each) for each in (POOL, GROUP, clusterwide("ingress: [{}]"))]
OBJECTS.append(pod("web-1"))
for each in OBJECTS:
    if BY_NAME[each["kind"]].is_namespaced:
        each["metadata"].setdefault("namespace", "default")

L2_POLICY = """
apiVersion: cilium.io/v2alpha1
kind: CiliumL2AnnouncementPolicy
metadata: {name: blue}
spec: {nodeSelector: {}, serviceSelector: {}, loadBalancerIPs: true}
"""

DENIES_ALL = """
spec: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}],
  egress: [{to: [{namespaceSelector: {}}]}, {ports: [{port: 53, protocol: UDP}]}]}
"""
DENIES_ALL_TOO = """
spec: {endpointSelector: {}, ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}],
  egress: [{toEntities: [world]}]}
"""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something is, in a tree."""
    found = [path] if path else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [each for key, item in inner for each in places(item, (*path, key))]


def changed(found: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    found = copy.deepcopy(found)
    at: Any = found
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return found


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_an_object_with_anything_anywhere_is_read_or_left(data: st.DataObject) -> None:
    found = data.draw(st.sampled_from(OBJECTS))
    kind = BY_NAME[found["kind"]]
    for _ in range(data.draw(st.integers(1, 3))):
        found = changed(found, data.draw(st.sampled_from(places(found))), data.draw(VALUES))
        if not isinstance(found.get("metadata"), dict):
            break
    seen = read_object(kind, found)
    if seen is None:
        return
    if seen.resource is not None:
        for subject, message in seen.resource.messages:
            assert decode(subject, encode(message), type(message)) == message
    plan_mirror(Store(), {seen.key: seen})


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_policy_that_is_spoilt_anywhere_below_its_directions_denies_as_before(data: st.DataObject) -> None:
    name, text = data.draw(
        st.sampled_from(
            [
                ("NetworkPolicy", DENIES_ALL),
                ("CiliumNetworkPolicy", DENIES_ALL_TOO),
                ("CiliumClusterwideNetworkPolicy", DENIES_ALL_TOO),
            ]
        )
    )
    place = {"namespace": "default"} if BY_NAME[name].is_namespaced else {}
    whole = {"metadata": {"name": "p", **place}, **yaml.safe_load(text)}
    inside = [each for each in places(whole) if each[:2] in (("spec", "ingress"), ("spec", "egress")) and len(each) > 3]
    unknown = data.draw(st.booleans())
    path = data.draw(st.sampled_from(inside))
    if unknown:
        path = (*path[:3], "fieldOfTomorrow")
    seen = read_object(BY_NAME[name], changed(whole, path, data.draw(VALUES)))
    assert seen is not None and seen.resource is not None
    for _, message in seen.resource.messages:
        assert isinstance(message, Policy)
        assert message.deny_ingress_by_default and message.deny_egress_by_default


def test_every_kind_that_governs_pods_is_closed_where_it_cannot_be_kept() -> None:
    assert {each.name for each in WATCHED if is_policy(each)} == {
        each.name for each in WATCHED if each.state.message is Policy
    }


def test_source_ranges_that_cannot_be_read_let_nobody_in() -> None:
    found = yaml.safe_load(SERVICE_WEB.replace("NodePort", "LoadBalancer"))
    found["metadata"]["namespace"] = "default"
    for ranges, kept in ((["nonsense"], ["255.255.255.255/32"]), (["nonsense", "10.0.0.0/8"], ["10.0.0.0/8"])):
        found["spec"]["loadBalancerSourceRanges"] = ranges
        seen = read_object(BY_NAME["Service"], found)
        assert seen is not None and seen.resource is not None
        ((_, service),) = seen.resource.messages
        assert isinstance(service, Service) and service.source_ranges == kept


def test_a_word_on_source_ranges_is_read_in_any_case_and_an_unknown_one_lets_nobody_in() -> None:
    found = yaml.safe_load(SERVICE_WEB.replace("NodePort", "LoadBalancer"))
    found["metadata"]["namespace"] = "default"
    found["spec"]["loadBalancerSourceRanges"] = ["10.0.0.0/8"]
    nobody, ranges = (["255.255.255.255/32"], False), ["10.0.0.0/8"]
    for word, kept in (
        ("deny", (ranges, True)), ("Deny", (ranges, True)), ("DENY", (ranges, True)), ("deny ", (ranges, True)),
        ("Allow", (ranges, False)), ("denied", nobody), ("", nobody),
    ):  # fmt: skip
        found["metadata"]["annotations"] = {"service.cilium.io/src-ranges-policy": word}
        seen = read_object(BY_NAME["Service"], found)
        assert seen is not None and seen.resource is not None
        ((_, service),) = seen.resource.messages
        assert isinstance(service, Service) and (service.source_ranges, service.denies_sources) == kept, word
    found["metadata"]["annotations"]["Service.cilium.io/src-ranges-policy"] = "allow"
    found["metadata"]["annotations"]["service.cilium.io/src-ranges-policy"] = "deny"
    seen = read_object(BY_NAME["Service"], found)
    assert seen is not None and seen.resource is not None
    ((_, service),) = seen.resource.messages
    assert isinstance(service, Service) and service.source_ranges == nobody[0], "two words that do not agree"


def test_a_nodes_policy_governs_no_pod() -> None:
    """`nodeSelector` is not done yet; closed by mistake it would be every pod of its namespace."""
    found = yaml.safe_load(
        cilium("ingress: [{}]").replace("endpointSelector: {matchLabels: {app: web}}", "nodeSelector: {}")
    )
    found["metadata"]["namespace"] = "default"
    seen = read_object(BY_NAME["CiliumNetworkPolicy"], found)
    assert seen is not None and seen.resource is None and seen.told


@pytest.mark.parametrize(
    ("selector", "path"),
    [
        ("{matchExpressions: [{key: a, operator: Has}]}", "matchExpressions[0].operator"),
        ("{matchLabel: {a: b}}", "matchLabel"),
        ("{matchLabels: {a: b}, fieldOfTomorrow: 1}", "fieldOfTomorrow"),
        ("{matchExpressions: [{key: a, operator: Exists, field: 1}]}", "matchExpressions[0].field"),
        ("{matchExpressions: [{key: a/b/c, operator: DoesNotExist}]}", "matchExpressions[0].key"),
        ("{matchExpressions: [{key: a, operator: NotIn}]}", "matchExpressions[0].values"),
    ],
)
def test_a_selector_that_cannot_be_read_whole_selects_nobody(selector: str, path: str) -> None:
    announced = yaml.safe_load(L2_POLICY)
    pool = yaml.safe_load(POOL)
    for found, field in ((announced, "nodeSelector"), (announced, "serviceSelector"), (pool, "serviceSelector")):
        found = copy.deepcopy(found)
        found["spec"][field] = yaml.safe_load(selector)
        seen = read_object(BY_NAME[found["kind"]], found)
        assert seen is not None and seen.resource is not None
        ((_, said),) = seen.resource.messages
        if isinstance(said, LoadBalancerPool):
            kept = said.selector
        else:
            assert isinstance(said, L2AnnouncementPolicy)
            kept, other = (said.nodes, said.services) if field == "nodeSelector" else (said.services, said.nodes)
            assert other is not None and other.requirements == [], "the other one is of all"
        assert kept is not None
        assert not any(selects(kept, labels) for labels in ({}, {"a": "b"}, {"": ""}))
        told = {each.path: each.text for each in seen.told}
        assert f"spec.{field}.{path}" in told and "selects nobody" in told[f"spec.{field}"]
        assert any("selects nobody" in each for each in said.warnings)


EVERYONE = ("ingress", "all")


def closed_policies(rule: str) -> list[Policy]:
    """What is kept of a CiliumNetworkPolicy, and of a clusterwide one, with this rule."""
    found = []
    for text in (cilium(rule), clusterwide(rule)):
        raw = yaml.safe_load(text)
        kind = BY_NAME[raw["kind"]]
        if kind.is_namespaced:
            raw["metadata"]["namespace"] = "default"
        seen = read_object(kind, raw)
        assert seen is not None and seen.resource is not None and seen.told
        ((_, policy),) = seen.resource.messages
        assert isinstance(policy, Policy) and policy.warnings and policy.manifest["spec"] == raw["spec"]
        assert "k8s:app" in {each.key for each in policy.subject.requirements}
        found.append(policy)
    return found


def denied(policy: Policy) -> list[tuple[str, str]]:
    """Direction, and the entity or the value of the label "role", of each peer that is denied every port."""
    return [(rule.direction, _named(peer)) for rule in policy.denies if not rule.ports for peer in rule.peers]


def _named(peer: Peer) -> str:
    wanted = peer.selector.requirements if peer.selector is not None else []
    return peer.entity or "".join(value for each in wanted if each.key == "k8s:role" for value in each.values)


def test_an_entry_that_denies_and_cannot_be_read_denies_everyone() -> None:
    bad = "{fromEndpoints: [{matchLabels: {role: bad}}]}"
    for unread in ("{fromGroups: [{}]}", "{fieldOfTomorrow: 1}", "nonsense", "{fromNodes: [{}], toPorts: []}"):
        for policy in closed_policies(f"ingress: [{{fromEntities: [all]}}], ingressDeny: [{bad}, {unread}]"):
            assert denied(policy) == [("ingress", "bad"), EVERYONE]
            assert len(policy.rules) == 1, "what it allows stays"
    for policy in closed_policies(f"ingressDeny: [{bad}], egressDeny: [{{toFQDNs: [{{matchName: a.b}}]}}]"):
        assert denied(policy) == [("ingress", "bad"), ("egress", "all")]


def test_a_policy_that_cannot_be_read_denies_what_it_denied() -> None:
    bad = "{fromEndpoints: [{matchLabels: {role: bad}}]}"
    spoilt = "fieldOfTomorrow: 1"
    for policy in closed_policies(f"ingress: [{{fromEntities: [all]}}], ingressDeny: [{bad}], {spoilt}"):
        assert (denied(policy), policy.rules) == ([("ingress", "bad")], [])
        assert (policy.deny_ingress_by_default, policy.deny_egress_by_default) == (True, False)
    for policy in closed_policies(f"ingressDeny: [{bad}, {{fromGroups: [{{}}]}}], {spoilt}"):
        assert denied(policy) == [("ingress", "bad"), EVERYONE]
    for unread in ("{}", "0", "null", "nonsense", "{fromEntities: [all]}"):
        for policy in closed_policies(f"ingressDeny: {unread}, {spoilt}"):
            assert denied(policy) == [EVERYONE]
    for policy in closed_policies(
        f"ingressDeny: [{bad}], enableDefaultDeny: {{ingress: false, egress: false}}, {spoilt}"
    ):
        assert denied(policy) == [("ingress", "bad")]
        assert not policy.deny_ingress_by_default and not policy.deny_egress_by_default


def test_a_policy_that_is_too_large_denies_everyone_where_it_denied_somebody() -> None:
    found = yaml.safe_load(cilium("ingress: [{fromEntities: [all]}]"))
    found["metadata"]["namespace"] = "default"
    cidrs = [f"10.{at >> 12}.{at >> 4 & 255}.{at % 16 * 16}/28" for at in range(50_000)]
    found["spec"]["ingressDeny"] = [{"fromCIDR": cidrs}]
    seen = read_object(BY_NAME["CiliumNetworkPolicy"], found)
    assert seen is not None and seen.resource is not None
    ((_, policy),) = seen.resource.messages
    assert isinstance(policy, Policy)
    assert (denied(policy), policy.rules) == ([EVERYONE], []) and "too large" in policy.warnings[0]


def test_a_policy_that_cannot_be_read_keeps_the_default_deny_that_it_names() -> None:
    for said, ingress, egress in (
        ("{ingress: true}", True, True),
        ("{ingress: true, egress: false}", True, False),
        ("{ingress: 'yes', egress: false}", True, False),
        ("{ingress: false}", False, True),
        ("{}", False, True),
        ("{Ingress: true}", True, True),
        ("nonsense", True, True),
    ):
        for policy in closed_policies(
            f"egress: [{{toEntities: [all]}}], enableDefaultDeny: {said}, fieldOfTomorrow: 1"
        ):
            assert (policy.deny_ingress_by_default, policy.deny_egress_by_default) == (ingress, egress), said
            assert policy.rules == []


def test_each_failure_is_waited_out_twice_as_long_and_never_longer_than_the_most() -> None:
    backoff = Backoff(first_seconds=1.0, most_seconds=5.0, chance=lambda: 1.0)
    assert [backoff.seconds() for _ in range(4)] == [1.0, 2.0, 4.0, 5.0]
    assert backoff.seconds(7.0) == 12.0, "the server's own wish comes on top"
    backoff.reset()
    assert backoff.seconds() == 1.0
    assert Backoff(first_seconds=1.0, chance=lambda: 0.0).seconds() == 0.5
