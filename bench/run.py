"""The run: packets alone, then labs with the plain topology beside them, and every part in turn."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby

from bench.announcements import measure_announcements
from bench.bars import Figure
from bench.cluster import Cluster, ClusterFailed, cluster, pod_manifest
from bench.load import LoadFailed, Pods
from bench.masquerade import Side, measure_masquerade
from bench.memory import measure_memory
from bench.packets import PacketLost, measure_packets
from bench.plain import plain_outside, plain_pods
from bench.pods import CallFailed, measure_pods
from bench.policy import SELECTED, measure_policy
from bench.survival import measure_survival, outside
from bench.traffic import measure_traffic
from lab import state
from lab.errors import LabError
from lab.plan import FAMILIES
from services.dataplane.load.loader import LoadError

NODES = ("node1", "node2", "node3")
PODS = {"client": "node1", "near": "node1", "far": "node2", "third": "node3"}
SETTLE_SECONDS = 2.0  # after a lab is ready, until its processes are idle
FAILURES = (
    PacketLost,
    LoadError,
    ClusterFailed,
    LabError,
    LoadFailed,
    CallFailed,
    subprocess.CalledProcessError,
    OSError,
)


class Part(StrEnum):
    """What can be measured by itself, in the order in which it is done: memory first, while the lab is still idle."""

    PACKETS = "packets"
    ANNOUNCEMENTS = "announcements"
    MEMORY = "memory"
    PODS = "pods"
    POLICY = "policy"
    MASQUERADE = "masquerade"
    TRAFFIC = "traffic"
    SURVIVAL = "survival"
    TUNNEL = "tunnel"


ALONE = (Part.PACKETS, Part.ANNOUNCEMENTS)
"""Parts that need no lab."""

# Of the lab that a part wants; the same lab serves neighbours that want the same. With both families: programs of one
# family are a little shorter, so this is what costs most.
SETTINGS = {
    "native": {"routingMode": "native", "autoDirectNodeRoutes": "true", "ipv6.enabled": "true"},
    "tunnel": {"routingMode": "tunnel", "tunnelProtocol": "vxlan", "ipv6.enabled": "true"},
}


def mode_of(part: Part) -> str:
    """Key of `SETTINGS`."""
    return "tunnel" if part is Part.TUNNEL else "native"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 5  # of each traffic figure, each side
    packet_rounds: int = 25
    seconds: float = 1.5  # one traffic measurement
    pods: int = 30  # ADDs one after the other
    pod_rounds: int = 5  # times 20 ADDs at once
    policies: int = 20  # changes
    announcement_seconds: float = 20.0
    masquerade_seconds: float = 50.0  # 10 000 connections: many more than a quarter of the ports, all within TIME-WAIT


QUICK = Size(
    rounds=3,
    seconds=0.4,
    packet_rounds=7,
    pods=10,
    pod_rounds=2,
    policies=5,
    announcement_seconds=5.0,
    masquerade_seconds=5.0,
)


@dataclass
class Findings:
    """What came out: figures, and for every part that could not be measured why."""

    figures: list[Figure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run(parts: Collection[Part], size: Size, tell: Callable[[str], None]) -> Findings:
    """Measure `parts`. A part that fails is noted with its reason, and the others go on."""
    found = Findings()
    if Part.PACKETS in parts:
        take(Part.PACKETS, measure_packets(list(SETTINGS), size.packet_rounds, tell), found)
    if Part.ANNOUNCEMENTS in parts:
        tell("l2announce alone, with simulated nodes")
        take(Part.ANNOUNCEMENTS, measure_announcements(size.announcement_seconds), found)
    chosen = [part for part in Part if part in parts and part not in ALONE]
    for mode, group in groupby(chosen, mode_of):
        tell(f"a lab of three nodes, routingMode={mode}")
        try:
            with cluster(len(NODES), SETTINGS[mode]) as lab:
                for part in group:
                    take(part, figures_of(part, lab, size, tell), found)
        except ClusterFailed as error:
            found.problems.append(f"no lab with routingMode={mode}: {error}")
    return found


def take(part: Part, figures: Iterable[Figure], found: Findings) -> None:
    """Note the figures of a part, and what hindered the rest of them."""
    try:
        for figure in figures:
            found.figures.append(figure)
    except FAILURES as error:
        said = getattr(error, "stderr", None) or error
        found.problems.append(f"{part}: {str(said).strip()}")


def figures_of(part: Part, lab: Cluster, size: Size, tell: Callable[[str], None]) -> Iterator[Figure]:
    """The figures of a part that needs a lab, as they come."""
    match part:
        case Part.MEMORY:
            time.sleep(SETTLE_SECONDS)
            yield measure_memory(lab, NODES)
        case Part.PODS:
            yield from measure_pods(lab, NODES[0], size.pods, size.pod_rounds, tell)
        case Part.POLICY:
            start_pods(lab)
            yield measure_policy(lab, size.policies, tell)
        case Part.MASQUERADE:
            start_pods(lab)
            ours = Side([lab.place(pod, 4) for pod in ("client", "near")], outside(state.find(lab.name), 4))
            with plain_pods() as plain:
                theirs = Side([plain[4].client, plain[4].near], plain_outside())
                yield from measure_masquerade(ours, theirs, size.masquerade_seconds, tell)
        case Part.SURVIVAL:
            start_pods(lab)
            yield from measure_survival(lab, NODES[:2], size.rounds, tell)
        case Part.TRAFFIC | Part.TUNNEL:
            start_pods(lab)
            plexus = {each: Pods(*(lab.place(pod, each) for pod in ("client", "near", "far"))) for each in FAMILIES}
            ways = ("tunnel",) if part is Part.TUNNEL else ("one node", "across nodes")
            with plain_pods(tunnel=part is Part.TUNNEL) as plain:
                yield from measure_traffic(ways, plexus, plain, size.rounds, size.seconds, tell)


def start_pods(lab: Cluster) -> None:
    """The pods of traffic and policy, at least one on every node. Repeating it changes nothing."""
    for name, node in PODS.items():
        lab.apply(pod_manifest(name, node, **SELECTED))
    lab.wait()
