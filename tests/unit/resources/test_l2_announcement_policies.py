"""L2 announcement policies: what is read, what is refused, and what is warned of."""

from __future__ import annotations

import pytest

from bus.messages.resources import Requirement
from bus.subjects import L2_POLICY
from tests.unit.resources.manifests import message, problems, taken


def policy(spec: str, version: str = "v2alpha1") -> str:
    return f"""
apiVersion: cilium.io/{version}
kind: CiliumL2AnnouncementPolicy
metadata: {{name: blue}}
spec: {{{spec}}}
"""


def test_a_policy_says_which_services_which_nodes_which_devices_and_which_addresses() -> None:
    spec = """
serviceSelector: {matchLabels: {color: blue}},
nodeSelector: {matchExpressions: [{key: node-role.kubernetes.io/control-plane, operator: DoesNotExist}]},
interfaces: ["^ens[0-9]+", eth],
externalIPs: true, loadBalancerIPs: true
"""
    found = message(policy(spec))
    assert found.services.requirements == [Requirement(key="color", operator="In", values=["blue"])]
    assert found.nodes.requirements == [
        Requirement(key="node-role.kubernetes.io/control-plane", operator="DoesNotExist")
    ]
    assert found.interfaces == ["^ens[0-9]+", "eth"]
    assert found.external_addresses and found.load_balancer_addresses
    ((subject, _),) = taken(policy(spec)).messages
    assert subject == L2_POLICY.of("blue")


def test_a_policy_without_selectors_is_for_all_and_one_that_announces_nothing_is_warned_of() -> None:
    found = taken(policy(""))
    ((_, said),) = found.messages
    assert said.services is None and said.nodes is None and said.interfaces == []  # type: ignore[attr-defined]
    assert [each.path for each in found.warnings] == ["spec"]
    assert not taken(policy("externalIPs: true")).warnings


@pytest.mark.parametrize(
    ("spec", "path", "text"),
    [
        ('interfaces: ["eth("]', "spec.interfaces[0]", "missing )"),
        ('interfaces: [eth, "(?=a)"]', "spec.interfaces[1]", "is not a regular expression"),
        (f"interfaces: [{'a' * 257}]", "spec.interfaces[0]", "at most 256"),
        (f"interfaces: [{', '.join(['a'] * 101)}]", "spec.interfaces", "at most 100"),
        ("serviceSelector: {matchLabels: {a: b/c}}", "spec.serviceSelector.matchLabels[a]", "is not a label value"),
        ("nodeSelector: {matchExpressions: [{key: a, operator: Has}]}",
         "spec.nodeSelector.matchExpressions[0].operator", "Has"),
        ("externalIps: true", "spec.externalIps", 'did you mean "externalIPs"'),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_be_meant_is_refused(spec: str, path: str, text: str) -> None:
    assert text in problems(policy(spec))[path]


def test_other_versions_are_refused() -> None:
    assert "apiVersion" in problems(policy("externalIPs: true", "v2"))
