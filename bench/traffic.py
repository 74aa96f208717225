"""Pod to pod, on one node and across nodes, with Plexus and without, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from bench.bars import Figure
from bench.harness import interleave
from bench.load import Load, Place, Pods, run_client, server

NAMES = {Load.STREAM: "TCP stream", Load.RR: "request/response", Load.CRR: "short connections"}
UNITS = {Load.STREAM: "Gb/s", Load.RR: "1/s", Load.CRR: "1/s"}
PORT = 7000
WARM_UP_SECONDS = 0.2  # caches, congestion window, the first entry in connection tracking


def measure_traffic(
    plexus: Pods, plain: Pods, rounds: int, seconds: float, tell: Callable[[str], None]
) -> Iterator[Figure]:
    """Take every figure of the table, one after the other.

    Args:
        rounds: measurements of each side per figure. seconds: how long each of them lasts.
        tell: hears what is being measured now.
    Raises: LoadFailed: a pod did not reach the other.
    """
    for where, target in (("one node", "near"), ("across nodes", "far")):
        for load in Load:
            name = f"{where}: {NAMES[load]}"
            tell(name)
            sides = {
                "plexus": (plexus.client, getattr(plexus, target)),
                "plain": (plain.client, getattr(plain, target)),
            }
            values = compare(load, sides, rounds, seconds)
            yield Figure(name, UNITS[load], tuple(values["plexus"]), tuple(values["plain"]))


def compare(load: Load, sides: dict[str, tuple[Place, Place]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """The rates of each side, (client, server), in turns; the servers of all sides wait meanwhile."""
    with ExitStack() as servers:
        for client, target in sides.values():
            servers.enter_context(server(load, target, PORT))
            run_client(load, client, target, PORT, WARM_UP_SECONDS)

        def rate_of(client: Place, target: Place) -> Callable[[], float]:
            return lambda: run_client(load, client, target, PORT, seconds).rate

        return interleave({name: rate_of(*side) for name, side in sides.items()}, rounds)
