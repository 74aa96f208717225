"""A program that never changes, timed in turns with the datapath's: how fast this machine is at this moment.

Processors change their speed by half within minutes. The ratio of two programs that took turns does not follow that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from services.dataplane.kernel import bpf
from services.dataplane.load import compiler

SOURCE = Path(__file__).with_name("yardstick.c")
LOOKUPS = 8  # as in the source
REPEAT, RUNS = 250, 20
PACKET = bytes(60)


@contextmanager
def yardstick() -> Iterator[Callable[[], float]]:
    """How long one value of it takes, in ns. Needs root, and bcc."""
    os.environ["BCC_KERNEL_SOURCE"] = str(compiler.HEADERS)
    from bcc import BPF

    module = BPF(text=SOURCE.read_text(), cflags=compiler.FLAGS)
    try:
        rows = module["rows"]
        for number in range(LOOKUPS):
            rows[rows.Key((0, 0, 0, number))] = rows.Leaf(0, 0)
        program = module.load_func("yardstick", BPF.SCHED_CLS).fd

        def measure() -> float:
            runs = [bpf.run_program(program, PACKET, repeat=REPEAT) for _ in range(RUNS)]
            return median(run.duration_ns for run in runs)

        yield measure
        missed = [number for number in range(LOOKUPS) if not rows[rows.Key((0, 0, 0, number))].packets]
        assert not missed, f"the yardstick did not look at rows {missed}"
    finally:
        module.cleanup()
