"""Pod to pod, on one node and across nodes, with Plexus and without, in turns.

The ends of a stream are pinned to a processor each (`Load.processors`): where they run decides more than what is
between them. Measured on a machine that others kept busy, packets of 64 kB, Gbit for each second of a processor: 10
through the tunnel where the ends were apart and 12 where they shared one, in single runs of either side.
Unpinned, single runs of one side came out at 8 to 14, and the medians of the rates at ratios of 0.75 to 1.1. Pinned
apart, the medians of the pairs per processor were 0.94 to 1.01 (tunnel, IPv4), 0.98 to 1.02 (tunnel, IPv6), 0.98 to
1.01 (one node, IPv4) and 1.04 to 1.09 (one node, IPv6). Of about 95 ms of a processor for a Gbit through the tunnel, 30
are copies from and to the ends and 10 are wake-ups; the datapath's programs and look-ups are 3.5. None of it was
taken on a quiet machine. A redirect into a pod costs a stream what forwarding does (1.00, between bare namespaces).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product

from bench.bars import FAMILY_NAMES, Figure
from bench.harness import interleave
from bench.load import Load, Place, Pods, Result, run_both, run_client, server, total
from lab.plan import Family

NAMES = {Load.STREAM: "TCP stream", Load.RR: "request/response", Load.CRR: "short connections"}
UNITS = {Load.STREAM: "Gb/s", Load.RR: "1/s", Load.CRR: "1/s"}
PER_PROCESSOR = "TCP stream, per CPU"  # a second figure of a stream
PER_PROCESSOR_UNIT = "Gb/CPU-s"
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
        group = f"{way}{FAMILY_NAMES[family]}"
        for load in Load:
            tell(f"{group}: {NAMES[load]}")
            sides = {side: (pods.client, getattr(pods, WAYS[way])) for side, pods in both.items()}
            yield from figures(group, load, compare(load, sides, rounds, seconds))


def figures(group: str, load: Load, found: Mapping[str, Sequence[Result]]) -> Iterator[Figure]:
    """What to tell of the sides "plexus" and "plain". A stream is told a second time, as what a processor carries in a
    second that it works: whoever else is busy here takes from the first figure and not from that one."""
    ours, plain = found["plexus"], found["plain"]

    def both(value: Callable[[Result], float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return tuple(map(value, ours)), tuple(map(value, plain))

    others = tuple(map(max, *both(lambda result: result.others)))
    name = f"{group}: {NAMES[load]}"
    yield Figure(name, UNITS[load], *both(lambda result: result.rate), others=others)
    if load is Load.STREAM:
        name = f"{group}: {PER_PROCESSOR}"
        yield Figure(name, PER_PROCESSOR_UNIT, *both(lambda result: result.rate_per_processor))


def compare(load: Load, sides: dict[str, tuple[Place, Place]], rounds: int, seconds: float) -> dict[str, list[Result]]:
    """What each side, (client, server), did in each round, in turns slice by slice; the servers of all sides wait."""
    slices = max(1, round(seconds / SLICE_SECONDS))
    with ExitStack() as servers:
        measures: dict[str, Callable[[], Result]] = {}
        for name, (client, target) in sides.items():
            pid = servers.enter_context(server(load, target, PORT))
            run_client(load, client, target, PORT, WARM_UP_SECONDS)
            measures[name] = partial(run_both, load, client, target, PORT, seconds / slices, pid)
        found = interleave(measures, rounds * slices)
    return {
        name: [total(taken[first : first + slices]) for first in range(0, len(taken), slices)]
        for name, taken in found.items()
    }
