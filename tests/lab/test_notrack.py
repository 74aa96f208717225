"""`installNoConntrackIptablesRules`: the node's own connection tracking does not see what goes between it and pods."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab.plan import FAMILIES
from services.dataplane.kernel.notrack import TABLE
from tests.lab.conftest import EXPECTED_DROPS, fresh_space
from tests.lab.space import Space, curl
from tests.lab.test_fallback import fallback
from tests.labs import Lab, eventually

WATCH = """
table inet plexus_test_watch {{
    counter pod_tracked {{ }}
    counter pod_untracked {{ }}
    counter node_tracked {{ }}
    counter node_untracked {{ }}
    chain leaving {{
        type filter hook output priority 0;
        {ip} daddr {pod} ct state untracked counter name pod_untracked
        {ip} daddr {pod} ct state new,established counter name pod_tracked
        {ip} daddr {node} meta l4proto tcp ct state untracked counter name node_untracked
        {ip} daddr {node} meta l4proto tcp ct state new,established counter name node_tracked
    }}
    chain arriving {{
        type filter hook input priority 0;
        {ip} saddr {pod} ct state untracked counter name pod_untracked
        {ip} saddr {pod} ct state new,established counter name pod_tracked
    }}
}}
"""


@pytest.fixture(scope="module")
def untracked() -> Iterator[Lab]:
    values = {"routingMode": "native", "ipv6.enabled": True, "installNoConntrackIptablesRules": True}
    with Lab("test-notrack", nodes=2, values=values, expected_drops=EXPECTED_DROPS) as made:
        yield made


@pytest.fixture(params=FAMILIES, ids=["v4", "v6"])
def space(untracked: Lab, request: pytest.FixtureRequest) -> Iterator[Space]:
    with fresh_space(untracked, request.param, request.node.nodeid) as made:
        yield made


def counted(lab: Lab) -> dict[str, int]:
    listed = json.loads(
        lab.exec_node("node1", "nft", "-j", "list", "counters", "table", "inet", "plexus_test_watch").stdout
    )
    found = [each["counter"] for each in listed["nftables"] if "counter" in each]
    return {each["name"]: each["packets"] for each in found}


def has_rules(lab: Lab) -> bool:
    return TABLE in lab.exec_node("node1", "nft", "list", "tables").stdout


def test_what_goes_between_the_node_and_a_pod_is_not_tracked_and_other_connections_are(space: Space) -> None:
    lab, pod, node = space.lab, space.address, space.node_address("node2")
    space.apply(space.pod("server"), space.service("web", "server"))
    assert eventually(lambda: has_rules(lab), 10)
    family = {"ip": "ip6" if space.family == 6 else "ip", "pod": pod("server"), "node": node}
    watching = ("sh", "-c", f"echo '{WATCH.format(**family)}' | nft -f -")
    told = lab.exec_node("node1", *watching)
    assert told.returncode == 0, told.stderr
    try:
        for address in (pod("server"), space.cluster_address("web")):
            assert "Hostname: server" in lab.exec_node("node1", *curl(address)).stdout
        lab.exec_node("node1", *curl(node, port=1))  # nobody listens there: a SYN and a RST
        found = counted(lab)
        assert (found["pod_tracked"], found["node_untracked"]) == (0, 0)
        assert found["pod_untracked"] >= 10  # two requests, both ways, however acknowledgements are saved
        assert found["node_tracked"] >= 1
        lab.exec_node("node1", "nft", "delete", "table", "inet", TABLE)
        assert "Hostname: server" in lab.exec_node("node1", *curl(pod("server"))).stdout
        assert counted(lab)["pod_tracked"] > 0  # the counter can count
        assert eventually(lambda: has_rules(lab), 10)
    finally:
        lab.exec_node("node1", "nft", "delete", "table", "inet", "plexus_test_watch")


def test_while_rules_stand_in_for_programs_the_host_tracks_pods(space: Space) -> None:
    """They judge by what it tracks."""
    space.apply(space.pod("server"))
    assert eventually(lambda: has_rules(space.lab), 10)
    with fallback(space.lab, "node1"):
        assert not has_rules(space.lab)
        assert "Hostname: server" in space.lab.exec_node("node1", *curl(space.address("server"))).stdout
    assert eventually(lambda: has_rules(space.lab), 10)
