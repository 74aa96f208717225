"""Pod to pod, on one node and across nodes, with Plexus and without, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import product

from bench.bars import FAMILY_NAMES, Figure
from bench.harness import interleave
from bench.load import Load, Place, Pods, run_client, server
from lab.plan import Family

NAMES = {Load.STREAM: "TCP stream", Load.RR: "request/response", Load.CRR: "short connections"}
UNITS = {Load.STREAM: "Gb/s", Load.RR: "1/s", Load.CRR: "1/s"}
PORT = 7000
SLICE_SECONDS = 0.5  # the sides take turns this often
WARM_UP_SECONDS = 0.2  # caches, congestion window, the first entry in connection tracking
WAYS = {"one node": "near", "across nodes": "far", "tunnel": "far"}  # name of a group of figures -> field of Pods
Sides = Mapping[Family, Pods]


def measure_traffic(
    ways: Sequence[str], plexus: Sides, plain: Sides, rounds: int, seconds: float, tell: Callable[[str], None]
) -> Iterator[Figure]:
    """Take every figure of these groups, one after the other.

    Args:
        ways: keys of `WAYS`.
        plexus, plain: the same pods on both sides, by family.
        rounds: measurements of each side per figure. seconds: how long each of them lasts, all its slices together.
        tell: hears what is being measured now.
    Raises: LoadFailed: a pod did not reach the other.
    """
    for family, way in product(plexus, ways):
        both = {"plexus": plexus[family], "plain": plain[family]}
        for load in Load:
            name = f"{way}{FAMILY_NAMES[family]}: {NAMES[load]}"
            tell(name)
            sides = {side: (pods.client, getattr(pods, WAYS[way])) for side, pods in both.items()}
            values = compare(load, sides, rounds, seconds)
            yield Figure(name, UNITS[load], tuple(values["plexus"]), tuple(values["plain"]))


def compare(load: Load, sides: dict[str, tuple[Place, Place]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """The rates of each side, (client, server), in turns; the servers of all sides wait meanwhile."""
    slices = max(1, round(seconds / SLICE_SECONDS))
    with ExitStack() as servers:
        for client, target in sides.values():
            servers.enter_context(server(load, target, PORT))
            run_client(load, client, target, PORT, WARM_UP_SECONDS)

        def rate_of(client: Place, target: Place) -> Callable[[], float]:
            return lambda: run_client(load, client, target, PORT, seconds / slices).rate

        return interleave({name: rate_of(*side) for name, side in sides.items()}, rounds, slices)
