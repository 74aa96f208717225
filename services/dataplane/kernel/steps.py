"""Steps: programs that those at the hooks jump to (bpf/include/steps.h), and the maps of a generation of programs.

A slot of the array that somebody has emptied, or given another program, is put back within the two seconds from one
look to the next, and counted; meanwhile what would go there is dropped as "Missed tail call".
The kernel empties the array itself when nothing in user space holds it any more, neither a pin nor an open file, though
programs still jump by it: so it is pinned, held open, and filled again by every start.

Everything here blocks, for microseconds. Needs CAP_BPF.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from bus.telemetry import count, logger
from services.dataplane.kernel import bpf
from services.dataplane.kernel.bpf import Map
from services.dataplane.shapes.limits import steps

log = logger(__name__)

ARRAY = "steps"
OF_GENERATION = (ARRAY, "in_hand")
"""Maps that each generation of programs has for itself: they are no state, and what is in them nobody migrates."""


def paths(pin_dir: Path, generation: str) -> list[Path]:
    """Where a generation's own maps are pinned."""
    return [pin_dir / "maps" / f"{name}_{generation}" for name in OF_GENERATION]


def of_others(pin_dir: Path, generation: str) -> list[Path]:
    """Those of other generations. They may go when no hook has a program of theirs any more."""
    found = {path for name in OF_GENERATION for path in (pin_dir / "maps").glob(f"{name}_*")}
    return sorted(found - set(paths(pin_dir, generation)))


def fill(array: Map, step: str, program_fd: int) -> None:
    """Programs jump to it from now on; in one step, where there is another."""
    array.set(_slot(step), program_fd.to_bytes(4, "little"))


def _slot(step: str) -> bytes:
    return steps()[step].to_bytes(4, "little")


class Steps:
    """The pinned steps of a generation, held open. Raises: OSError: one is not pinned."""

    def __init__(self, pin_dir: Path, generation: str) -> None:
        with ExitStack() as opened:
            self._array = Map.open(paths(pin_dir, generation)[0])
            opened.callback(self._array.close)
            self._programs: dict[str, int] = {}
            for step in steps():
                self._programs[step] = bpf.open_pinned(pin_dir / "programs" / step)
                opened.callback(os.close, self._programs[step])
            self._opened = opened.pop_all()

    def close(self) -> None:
        self._opened.close()

    def look(self) -> None:
        """Put back what is not in its slot. Raises: OSError."""
        back = [step for step, fd in self._programs.items() if self._is_elsewhere(step, fd)]
        for step in back:
            fill(self._array, step, self._programs[step])
        if back:
            count("drift", len(back), kind="step")
            log.warning("steps of programs were gone and are put back", steps=back)

    def _is_elsewhere(self, step: str, fd: int) -> bool:
        there = self._array.get(_slot(step))  # the program's number
        return there is None or int.from_bytes(there, "little") != bpf.program_id(fd)
