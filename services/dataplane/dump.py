"""The maps in words, for `plexus bpf ... list`: what the parts show. Rows have stable keys."""

from __future__ import annotations

import time
from itertools import islice

from bus.messages.dataplane import Dump, DumpRows
from services.dataplane.kernel.maps import Maps
from services.dataplane.model import NodeModel
from services.dataplane.shapes.layouts import TICK_NS


def dump(node: str, question: Dump, maps: Maps, model: NodeModel) -> DumpRows:
    """What a map holds in the kernel now. Blocks for about 4 microseconds a row: call it on a thread."""
    shown = model.shown.get(question.table)
    if shown is None:
        return DumpRows(node=node, problem=f"it has no table of that name; it has {', '.join(sorted(model.shown))}")
    rows = shown.rows(maps, time.clock_gettime_ns(time.CLOCK_MONOTONIC) // TICK_NS)
    most = max(0, question.limit)
    found = list(islice(rows, most + 1))
    return DumpRows(node=node, rows=found[:most], truncated=len(found) > most)
