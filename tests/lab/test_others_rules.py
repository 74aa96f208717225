"""Host ports that rules of others give to a pod, as the CNI plugin portmap does: whoever calls them reaches it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.space import Space, curl, host

PORT = 18080
CLOSED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: closed
  namespace: {namespace}
spec:
  podSelector:
    matchLabels: {{app: server}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector:
        matchLabels: {{app: friend}}
"""


@contextmanager
def host_port(space: Space, pod: str) -> Iterator[None]:
    """PORT of node1 is the pod's port 80. What the pod sends to itself so bears an address of the node, or the pod
    would be answered by itself and not by whom it called."""
    family = "ip6" if ":" in space.address(pod) else "ip"
    node, to = space.node_address("node1"), space.address(pod)
    rules = f"""
        add table {family} others
        add chain {family} others incoming {{ type nat hook prerouting priority dstnat; }}
        add chain {family} others outgoing {{ type nat hook postrouting priority srcnat; }}
        add rule {family} others incoming {family} daddr {node} tcp dport {PORT} dnat to {host(to, 80)}
        add rule {family} others outgoing {family} saddr {to} {family} daddr {to} masquerade
    """
    made = space.lab.exec_node("node1", "nft", rules)
    assert made.returncode == 0, made.stderr
    try:
        yield
    finally:
        space.lab.exec_node("node1", "nft", f"delete table {family} others")


def asked(space: Space, pod: str, *options: str) -> str:
    return space.exec(pod, *curl(space.node_address("node1"), *options, port=PORT)).stdout


@pytest.fixture
def served(space: Space) -> Space:
    space.apply(space.pod("server"), space.pod("near"), space.pod("friend"), space.pod("far", "node2"))
    return space


def test_a_host_port_of_others_leads_to_its_pod_from_everywhere(served: Space) -> None:
    with host_port(served, "server"):
        for client in ("near", "far", "server"):
            assert "Hostname: server" in asked(served, client), client
        assert "Hostname: server" in served.lab.exec_outside(*curl(served.node_address("node1"), port=PORT)).stdout


def test_and_the_pods_policy_holds_for_it(served: Space) -> None:
    served.apply(CLOSED.format(namespace=served.name))
    with host_port(served, "server"):
        assert "Hostname: server" in asked(served, "friend")
        assert asked(served, "near") == ""
