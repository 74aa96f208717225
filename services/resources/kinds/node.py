"""v1 Node."""

from __future__ import annotations

from typing import Any

from bus.messages.resources import Node
from bus.subjects import BLOCK, NODE, POD
from services.resources.kind import Form, Kind, Known


def manifest() -> Form:
    from services.resources.manifests import core, words

    return Form(core.NodeManifest, core.read_node, words.dns_subdomain)


def status(node: Node, known: Known) -> dict[str, Any]:
    health = known.health_of(node.name)
    problems = [f"{check.name}: {check.detail}" for check in health.checks if not check.ok] if health else ["no answer"]
    ready = health is not None and health.ready
    return {
        "status": {
            "addresses": [{"type": "InternalIP", "address": address} for address in node.addresses],
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
        "plexus": {
            "ready": ready,
            "addresses": node.addresses,
            "blocks": [block.cidr for block in known.of(BLOCK).values() if block.node == node.name],
            "pods": sum(pod.node == node.name for pod in known.of(POD).values()),
            "problems": problems,
        },
    }


KIND = Kind(
    name="Node",
    api_version="v1",
    plural="nodes",
    short=("no",),
    state=NODE,
    manifest=manifest,
    is_namespaced=False,
    columns={
        "READY": "plexus.ready",
        "ADDRESSES": "plexus.addresses",
        "BLOCKS": "plexus.blocks",
        "PODS": "plexus.pods",
        "PROBLEMS": "plexus.problems",
    },
    status=status,
    draws_on=(BLOCK, POD),
    asks_nodes=True,
)
