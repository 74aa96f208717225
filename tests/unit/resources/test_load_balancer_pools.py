"""Pools of addresses for LoadBalancers: what is read, what is refused, and in which order they came."""

from __future__ import annotations

import pytest

from bus.messages.resources import AddressRange, Requirement
from bus.subjects import LOAD_BALANCER_POOL
from tests.unit.resources.cluster import Cluster
from tests.unit.resources.manifests import message, problems, taken


def pool(spec: str, name: str = "blue", version: str = "v2") -> str:
    return f"""
apiVersion: cilium.io/{version}
kind: CiliumLoadBalancerIPPool
metadata: {{name: {name}}}
spec: {{{spec}}}
"""


@pytest.mark.parametrize(
    ("spec", "ends"),
    [
        ("blocks: [{cidr: 10.10.200.0/29}]", [("10.10.200.0", "10.10.200.7")]),
        ('blocks: [{cidr: 10.10.200.0/29}], allowFirstLastIPs: "Yes"', [("10.10.200.0", "10.10.200.7")]),
        ('blocks: [{cidr: 10.10.200.0/29}], allowFirstLastIPs: "No"', [("10.10.200.1", "10.10.200.6")]),
        ('blocks: [{cidr: 10.10.200.5/29}], allowFirstLastIPs: "No"', [("10.10.200.1", "10.10.200.6")]),
        ('blocks: [{cidr: 10.0.0.4/31}], allowFirstLastIPs: "No"', [("10.0.0.4", "10.0.0.5")]),
        ('blocks: [{cidr: 10.0.0.4/32}], allowFirstLastIPs: "No"', [("10.0.0.4", "10.0.0.4")]),
        ("blocks: [{cidr: 10.0.0.4}]", [("10.0.0.4", "10.0.0.4")]),
        ('blocks: [{cidr: "fd00::/126"}], allowFirstLastIPs: "No"', [("fd00::1", "fd00::2")]),
        ('blocks: [{cidr: "fd00::2/127"}], allowFirstLastIPs: "No"', [("fd00::2", "fd00::3")]),
        (
            'blocks: [{start: 10.0.0.9, stop: 10.0.0.20}, {start: "FD00:0::1"}], allowFirstLastIPs: "No"',
            [("10.0.0.9", "10.0.0.20"), ("fd00::1", "fd00::1")],
        ),
    ],
)
def test_the_blocks_of_a_pool_are_ranges_with_their_ends_as_far_as_they_are_given(
    spec: str, ends: list[tuple[str, str]]
) -> None:
    assert [(each.first, each.last) for each in message(pool(spec)).ranges] == ends


def test_a_pool_is_read_in_both_versions_and_in_the_words_of_the_older_one() -> None:
    old = taken(pool("cidrs: [{cidr: 10.0.0.0/24}], disabled: true", version="v2alpha1"))
    ((subject, found),) = old.messages
    assert subject == LOAD_BALANCER_POOL.of("blue") and found.disabled  # type: ignore[attr-defined]
    assert found.ranges == [AddressRange(first="10.0.0.0", last="10.0.0.255", written="10.0.0.0/24")]  # type: ignore[attr-defined]
    assert message(pool("blocks: [{cidr: 10.0.0.0/24}]", version="v2alpha1")).ranges == found.ranges  # type: ignore[attr-defined]
    assert "apiVersion" in problems(pool("blocks: [{cidr: 10.0.0.0/24}]", version="v3"))


def test_a_pools_selector_is_over_plain_labels() -> None:
    spec = (
        "blocks: [{cidr: 10.0.0.0/24}], serviceSelector: {matchLabels: {color: blue},"
        " matchExpressions: [{key: io.kubernetes.service.namespace, operator: NotIn, values: [b, a]}]}"
    )
    found = message(pool(spec))
    assert found.selector.requirements == [
        Requirement(key="color", operator="In", values=["blue"]),
        Requirement(key="io.kubernetes.service.namespace", operator="NotIn", values=["a", "b"]),
    ]
    assert message(pool("blocks: [{cidr: 10.0.0.0/24}]")).selector is None


@pytest.mark.parametrize(
    ("spec", "path", "text"),
    [
        ("", "spec.blocks", "is empty"),
        ("blocks: [{}]", "spec.blocks[0]", "a cidr, or a start"),
        ("blocks: [{stop: 10.0.0.1}]", "spec.blocks[0]", "a cidr, or a start"),
        ("blocks: [{cidr: 10.0.0.0/24, start: 10.0.0.1}]", "spec.blocks[0]", "a cidr, or a start"),
        ("blocks: [{cidr: 10.0.0.0/33}]", "spec.blocks[0].cidr", "is not a CIDR"),
        ("blocks: [{cidr: ten}]", "spec.blocks[0].cidr", "is not a CIDR"),
        ("blocks: [{start: 10.0.0.9, stop: 10.0.0.8}]", "spec.blocks[0].stop", "comes before start"),
        ('blocks: [{start: 10.0.0.9, stop: "fd00::1"}]', "spec.blocks[0].stop", "make them agree"),
        ('blocks: [{start: "::ffff:10.0.0.1"}]', "spec.blocks[0].start", "write the IPv4 address"),
        ("blocks: [{cidr: 127.0.0.0/8}]", "spec.blocks[0].cidr", "loopback"),
        ("blocks: [{cidr: 0.0.0.0/0}]", "spec.blocks[0].cidr", "unspecified"),
        ("blocks: [{start: 224.0.0.1}]", "spec.blocks[0]", "multicast"),
        ("blocks: [{cidr: 10.0.0.0/24}, {start: 10.0.0.9}]", "spec.blocks", "overlap"),
        ("blocks: [{cidr: 10.0.0.0/24}], allowFirstLastIPs: maybe", "spec.allowFirstLastIPs", 'use "Yes" or "No"'),
        ("cidrs: [{cidr: 10.0.0.0/24}]", "spec.cidrs", "use spec.blocks"),
        ("blocks: [{cidr: 10.0.0.0/24}], serviceSelector: {matchLabels: {a: b/c}}",
         "spec.serviceSelector.matchLabels[a]", "is not a label value"),
        ("blocks: [{cidr: 10.0.0.0/24}], disable: true", "spec.disable", 'did you mean "disabled"'),
    ],
)  # fmt: skip
def test_a_pool_that_cannot_be_meant_is_refused(spec: str, path: str, text: str) -> None:
    assert text in problems(pool(spec))[path]


def test_pools_have_places_in_the_order_in_which_they_came_and_keep_them(cluster: Cluster) -> None:
    cluster.apply(pool("blocks: [{cidr: 10.0.0.0/24}]", "z"), pool("blocks: [{cidr: 10.0.1.0/24}]", "a"))
    cluster.apply(pool("blocks: [{cidr: 10.0.2.0/24}]", "m"))
    assert {each.name: each.place for each in cluster.store.pools()} == {"z": 1, "a": 2, "m": 3}
    assert cluster.apply(pool("blocks: [{cidr: 10.0.0.0/24}]", "z")) == {"z": "unchanged"}
    cluster.apply(pool("blocks: [{cidr: 10.0.5.0/24}]", "z"))
    assert {each.name: each.place for each in cluster.store.pools()} == {"z": 1, "a": 2, "m": 3}
