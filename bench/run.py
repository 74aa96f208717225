"""The run: a lab, the plain topology beside it, and every part in turn."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby

from bench.bars import Figure
from bench.cluster import Cluster, ClusterFailed, cluster, pod_manifest
from bench.load import LoadFailed, Pods
from bench.memory import measure_memory
from bench.plain import plain_pods
from bench.pods import CallFailed, measure_pods
from bench.policy import SELECTED, measure_policy
from bench.survival import measure_survival
from bench.traffic import measure_traffic
from lab.errors import LabError

NODES = ("node1", "node2", "node3")
PODS = {"client": "node1", "near": "node1", "far": "node2", "third": "node3"}
SETTLE_SECONDS = 2.0  # after a lab is ready, until its processes are idle
FAILURES = (ClusterFailed, LabError, LoadFailed, CallFailed, subprocess.CalledProcessError, OSError)


class Part(StrEnum):
    """What can be measured by itself, in the order in which it is done: memory first, while the lab is still idle."""

    MEMORY = "memory"
    PODS = "pods"
    POLICY = "policy"
    TRAFFIC = "traffic"
    SURVIVAL = "survival"
    TUNNEL = "tunnel"


SETTINGS = {  # of the lab that a part wants; the same lab serves neighbours that want the same
    "native": {"routingMode": "native", "autoDirectNodeRoutes": "true"},
    "tunnel": {"routingMode": "tunnel", "tunnelProtocol": "vxlan"},
}


def mode_of(part: Part) -> str:
    """Key of `SETTINGS`."""
    return "tunnel" if part is Part.TUNNEL else "native"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 5  # of each traffic figure, each side
    seconds: float = 2.0  # one traffic measurement
    pods: int = 30  # ADDs one after the other
    pod_rounds: int = 5  # times 20 ADDs at once
    policies: int = 20  # changes


QUICK = Size(rounds=3, seconds=0.4, pods=10, pod_rounds=2, policies=5)


@dataclass
class Findings:
    """What came out: figures, and for every part that could not be measured why."""

    figures: list[Figure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run(parts: Collection[Part], size: Size, tell: Callable[[str], None]) -> Findings:
    """Measure `parts`. A part that fails is noted with its reason, and the others go on."""
    found = Findings()
    chosen = [part for part in Part if part in parts]
    for mode, group in groupby(chosen, mode_of):
        tell(f"a lab of three nodes, routingMode={mode}")
        try:
            with cluster(len(NODES), **SETTINGS[mode]) as lab:
                for part in group:
                    measure(part, lab, size, tell, found)
        except ClusterFailed as error:
            found.problems.append(f"no lab with routingMode={mode}: {error}")
    return found


def measure(part: Part, lab: Cluster, size: Size, tell: Callable[[str], None], found: Findings) -> None:
    try:
        for figure in figures_of(part, lab, size, tell):
            found.figures.append(figure)
    except FAILURES as error:
        said = getattr(error, "stderr", None) or error
        found.problems.append(f"{part}: {str(said).strip()}")


def figures_of(part: Part, lab: Cluster, size: Size, tell: Callable[[str], None]) -> Iterator[Figure]:
    """The figures of one part, as they come."""
    match part:
        case Part.MEMORY:
            time.sleep(SETTLE_SECONDS)
            yield measure_memory(lab, NODES)
        case Part.PODS:
            yield from measure_pods(lab, NODES[0], size.pods, size.pod_rounds, tell)
        case Part.POLICY:
            start_pods(lab)
            yield measure_policy(lab, size.policies, tell)
        case Part.SURVIVAL:
            start_pods(lab)
            yield from measure_survival(lab, NODES[:2], size.rounds, tell)
        case Part.TRAFFIC | Part.TUNNEL:
            start_pods(lab)
            plexus = Pods(lab.place("client"), lab.place("near"), lab.place("far"))
            ways = ("tunnel",) if part is Part.TUNNEL else ("one node", "across nodes")
            with plain_pods(tunnel=part is Part.TUNNEL) as plain:
                yield from measure_traffic(ways, plexus, plain, size.rounds, size.seconds, tell)


def start_pods(lab: Cluster) -> None:
    """The pods of traffic and policy, at least one on every node. Repeating it changes nothing."""
    for name, node in PODS.items():
        lab.apply(pod_manifest(name, node, **SELECTED))
    lab.wait()
