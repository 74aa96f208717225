"""Which node a pod goes to. Pure.

As even as may be: the node with the fewest pods among those that fit, the first by number when several have as few. The
same cluster and the same pods in the same order always give the same places.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from bus.messages.resources import Node, Pod


def choose(pod: Pod, nodes: Iterable[Node], load: Mapping[str, int]) -> str | None:
    """The node for an unbound pod.

    Args:
        load: pods by node, bound or about to be.
    Returns: None when no node fits.
    """
    fitting = [node.name for node in nodes if fits(pod, node)]
    return min(fitting, key=lambda name: (load.get(name, 0), natural(name)), default=None)


def fits(pod: Pod, node: Node) -> bool:
    """The pod's nodeSelector selects the node."""
    return selects(pod.manifest.get("spec", {}), node)


def selects(spec: Mapping[str, Any], node: Node) -> bool:
    """The node has every label that a nodeSelector asks for; its name counts as kubernetes.io/hostname."""
    wanted: Mapping[str, Any] = spec.get("nodeSelector") or {}
    labels = {"kubernetes.io/hostname": node.name} | node.labels
    return all(labels.get(key) == value for key, value in wanted.items())


def unfit(pod: Pod, nodes: Iterable[Node]) -> str:
    """Why no node has the pod: "no node has what its nodeSelector asks for: disk=ssd"; "" when one may have it."""
    known = list(nodes)
    if not known or any(pod.node == node.name if pod.node else fits(pod, node) for node in known):
        return ""
    if pod.node:
        return f"there is no node {pod.node}, which its nodeName asks for"
    wanted = pod.manifest["spec"]["nodeSelector"]
    return f"no node has what its nodeSelector asks for: {', '.join(f'{key}={wanted[key]}' for key in sorted(wanted))}"


def load(pods: Iterable[Pod], assumed: Iterable[str]) -> Counter[str]:
    """Pods by node: those bound, and the nodes of those about to be."""
    return Counter([pod.node for pod in pods if pod.node]) + Counter(assumed)


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sorts node2 before node10."""
    return tuple((int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name))
