"""What machine this is: a figure without it says little."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and when the figures were taken."""

    date: str  # UTC, ISO 8601 to the second
    processor: str
    cores: int
    memory_gib: float
    kernel: str
    load_average: float  # over the last minute before the run: well above 0 says that others were busy here

    def line(self) -> str:
        return (
            f"{self.date}, {self.cores} cores {self.processor}, {self.memory_gib:.0f} GiB, Linux {self.kernel}, "
            f"load average before {self.load_average:.1f}"
        )

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def this_machine() -> Machine:
    """Describe the machine that this runs on, now."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        processor=processor(Path("/proc/cpuinfo").read_text()),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=pages / 2**30,
        kernel=platform.release(),
        load_average=os.getloadavg()[0],
    )


def processor(cpuinfo: str) -> str:
    """The model out of /proc/cpuinfo: its name, and its numbers, as a virtual machine's name says little: "Xeon
    (6-143-8)". The architecture where it names none."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    said = {key.strip(): value.strip() for key, _, value in reversed(list(lines))}
    numbers = "-".join(said[key] for key in ("cpu family", "model", "stepping") if key in said)
    name = said.get("model name", platform.machine())
    return f"{name} ({numbers})" if numbers else name
