"""What the machine's processors do, and for whom. A figure of a busy machine says little of what was measured."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

PROC = Path("/proc")
IDLE = slice(3, 5)  # of a line of /proc/stat: idle, and idle while a disk is waited for
GUEST = 8  # from here on the line counts twice: what guests took is in the first two
THREAD = "ksoftirqd/"  # one a processor: takes over what packets ask for when there is too much


def usable_processors() -> list[int]:
    """The numbers of those that we may run on, lowest first."""
    return sorted(os.sched_getaffinity(0))


def busy_seconds() -> float:
    """Processor time that was not idle since the machine started, with what the machine below took away (steal)."""
    return busy_of(PROC.joinpath("stat").read_text(), usable_processors(), os.sysconf("SC_CLK_TCK"))


def busy_of(stat: str, processors: list[int], ticks_a_second: int) -> float:
    """The same, out of /proc/stat."""
    busy = 0
    wanted = {f"cpu{number}" for number in processors}
    for line in stat.splitlines():
        name, *fields = line.split() or [""]
        if name in wanted:
            ticks = [int(field) for field in fields[:GUEST]]
            busy += sum(ticks) - sum(ticks[IDLE])
    return busy / ticks_a_second


def ran_seconds(pid: int) -> float:
    """How long a process of one thread has run, to the nanosecond: with what the kernel did for packets in its time."""
    return int(PROC.joinpath(str(pid), "schedstat").read_text().split()[0]) / 1e9


@cache
def softirq_threads() -> tuple[int, ...]:
    """The pids of the kernel's threads for packets."""
    names = ((each, each.joinpath("comm")) for each in PROC.iterdir() if each.name.isdigit())
    return tuple(int(each.name) for each, comm in names if _read(comm).startswith(THREAD))


def _read(path: Path) -> str:
    """ "" when the process is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""
