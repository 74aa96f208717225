"""How long a change of policy takes to be enforced everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from bench.bars import Figure
from bench.cluster import Cluster

SELECTED = {"bench": "policy"}  # labels of the pods that the policy is for
NAME = "policy: commit to the last node's maps"


def policy_manifest(port: int) -> str:
    """A policy for every pod of the bench that changes the maps of every node whenever `port` changes."""
    document: dict[str, Any] = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "bench"},
        "spec": {
            "endpointSelector": {"matchLabels": SELECTED},
            "ingress": [
                {
                    "fromEndpoints": [{"matchLabels": SELECTED}],
                    "toPorts": [{"ports": [{"port": str(port), "protocol": "TCP"}]}],
                }
            ],
        },
    }
    return json.dumps(document)


def measure_policy(cluster: Cluster, rounds: int, tell: Callable[[str], None]) -> Figure:
    """Change a policy `rounds` times; each value is from the commit to the last node's maps, as the nodes tell it."""
    tell(NAME)
    milliseconds = []
    for turn in range(rounds):
        cluster.apply(policy_manifest(8000 + turn))
        milliseconds.append(cluster.wait() * 1000)
    cluster.plexus("delete", "-f", "-", stdin=policy_manifest(8000))
    cluster.wait()
    return Figure(NAME, "ms", tuple(milliseconds))
