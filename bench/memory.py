"""How much memory an idle dataplane process holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.bars import Figure
from bench.cluster import Cluster

NAME = "memory: idle dataplane process"


def resident_megabytes(smaps_rollup: str) -> float:
    """Resident memory out of /proc/<pid>/smaps_rollup, in MB (10^6 bytes). Raises ValueError when it is not there."""
    for line in smaps_rollup.splitlines():
        name, _, rest = line.partition(":")
        if name == "Rss":
            return int(rest.split()[0]) * 1024 / 1e6
    raise ValueError("no Rss line")


def measure_memory(cluster: Cluster, nodes: Sequence[str]) -> Figure:
    """One value for each node's dataplane."""
    pids = [cluster.process_of(f"{node}.dataplane") for node in nodes]
    return Figure(NAME, "MB", tuple(resident_megabytes(Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in pids))
