"""How large the programs are, and how much the verifier has to look at: recorded in instructions.json beside this file.

`make instructions` measures anew (a minute where the C changed), prints what changed, and writes the file, so that
growth is seen where the change is reviewed. "loaded" is the program's size in instructions as the kernel keeps it:
without what a constant (bpf/include/constants.h) never leads to. "verified" is what the verifier goes through on all
paths, of which it takes a million. Both differ from kernel to kernel, so the file says which it was.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from bench.programs import all_programs, configurations
from bench.verifier import verify_all
from services.dataplane.kernel.program import Refused

RECORD = Path(__file__).with_name("instructions.json")
STALE = 0.05  # a share; less than this may go unrecorded


@dataclass(frozen=True)
class Count:
    loaded: int
    verified: int


MOST = Count(loaded=8_000, verified=400_000)
"""The budget of every program in every configuration: what grows meets this, and not a kernel that refuses it."""


@dataclass(frozen=True)
class Counts:
    """By (configuration, program)."""

    kernel: str  # "6.18"
    programs: dict[tuple[str, str], Count]


@dataclass(frozen=True)
class Change:
    what: str  # "from_pod (native): loaded"
    before: int
    now: int

    @property
    def share(self) -> float:
        return self.now / self.before - 1 if self.before else 1.0

    def __str__(self) -> str:
        return f"{self.what} {self.before} -> {self.now} ({self.share:+.1%})"


def measure() -> Counts:
    """Load everything on this kernel. Needs root. Raises: Refused."""
    programs = all_programs(configurations())
    counts = {}
    for each, verified in zip(programs, verify_all(programs), strict=True):
        if isinstance(verified, Refused):
            raise verified
        counts[each.configuration, each.name] = Count(verified.kept, verified.verified)
    return Counts(".".join(os.uname().release.split(".")[:2]), counts)


def changes(before: Counts, now: Counts) -> list[Change]:
    """What differs, the largest growth first. Programs that are new or gone count as grown from or to nothing."""
    found = []
    nothing = Count(0, 0)
    for configuration, name in sorted(before.programs.keys() | now.programs.keys()):
        old, new = (each.programs.get((configuration, name), nothing) for each in (before, now))
        what = f"{name} ({configuration}):"
        if before.kernel == now.kernel:
            found.append(Change(f"{what} loaded", old.loaded, new.loaded))
            found.append(Change(f"{what} verified", old.verified, new.verified))
    return sorted((each for each in found if each.before != each.now), key=lambda each: -each.share)


def as_text(counts: Counts) -> str:
    """The record: a line for each program, so that a difference reads well."""
    by_configuration: dict[str, list[str]] = {}
    for (configuration, name), count in counts.programs.items():
        line = f'   "{name}": {{"loaded": {count.loaded}, "verified": {count.verified}}}'
        by_configuration.setdefault(configuration, []).append(line)
    parts = [f'  "{name}": {{\n' + ",\n".join(lines) + "\n  }" for name, lines in by_configuration.items()]
    return f'{{\n "kernel": "{counts.kernel}",\n "programs": {{\n' + ",\n".join(parts) + "\n }\n}\n"


def of_text(text: str) -> Counts:
    """What `as_text` wrote."""
    raw = json.loads(text)
    programs = {
        (configuration, name): Count(count["loaded"], count["verified"])
        for configuration, found in raw["programs"].items()
        for name, count in found.items()
    }
    return Counts(raw["kernel"], programs)


def main() -> None:
    now = measure()
    if RECORD.exists():
        for change in changes(of_text(RECORD.read_text()), now):
            print(change)
    RECORD.write_text(as_text(now))
    verified = max(each.verified for each in now.programs.values())
    loaded = max(each.loaded for each in now.programs.values())
    print(
        f"{len(now.programs)} programs on kernel {now.kernel}: at most {verified} instructions verified, of "
        f"{MOST.verified}, and {loaded} loaded, of {MOST.loaded}"
    )


if __name__ == "__main__":
    main()
