"""How full every map is: gauges, and a check that says which limit to raise before there is no room left.

`plexus_bpf_map_entries{map=}`, `plexus_bpf_map_max_entries{map=}` and `plexus_bpf_map_pressure{map=}`, the first by the
second. What Python fills is counted without asking the kernel: it is what the map should hold, so over 1.0 is what it
has no room for. Maps that traffic fills are counted by a sample of their buckets, within a few per cent.

A full map is a fault where a limit makes it one. What is swept may be full of what is over: it is swept first, and
complained of if that made no room. What is only evicted from (`sweep.UNSWEPT`) is full in the end on every node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from bus.service import Service
from bus.telemetry import count, logger
from services.dataplane.batch import to_the_end
from services.dataplane.keep.sweep import UNSWEPT, Sweeper
from services.dataplane.kernel.maps import Maps
from services.dataplane.shapes.limits import MAP_TYPES, declared_maps
from services.dataplane.shapes.sizes import HELM, MAKES_LARGER
from services.dataplane.shapes.table import Table

log = logger(__name__)

WATCH_SECONDS = 15.0
HIGH = 0.9  # where the check begins to complain


class Pressure:
    """The maps that can be full."""

    def __init__(self, service: Service, maps: Maps, tables: Iterable[Table], sweeper: Sweeper) -> None:
        self._service = service
        self._maps = maps
        self._tables = {table.name: table for table in tables}
        evicting = [name for name, each in declared_maps().items() if each.type == MAP_TYPES["lru_hash"]]
        self._counted = dict.fromkeys(evicting, 0)
        self._high: set[str] = set()
        self._sweeper = sweeper
        self._swept_at: dict[str, int] = {}  # maps that were seen full -> how many sweeps there had been then
        for name in (*self._tables, *evicting):
            self._show(name)

    def _show(self, name: str) -> None:
        self._service.gauge("bpf_map_entries", lambda: self.entries(name), map=name)
        self._service.gauge("bpf_map_max_entries", lambda: self._maps[name].info.max_entries, map=name)
        self._service.gauge("bpf_map_pressure", lambda: self.pressure(name), map=name)

    def entries(self, name: str) -> int:
        return len(self._tables[name]) if name in self._tables else self._counted[name]

    def pressure(self, name: str) -> float:
        return self.entries(name) / self._maps[name].info.max_entries

    async def watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(WATCH_SECONDS)

    async def look(self) -> None:
        """Count, and say what is nearly full. A map is logged once, and again after it was well."""
        try:
            self._counted = await to_the_end(asyncio.to_thread(self._count))
        except OSError as problem:  # the kernel is short of memory, say: what was counted before stands
            log.warning("maps not counted, trying again", why=str(problem))
            count("map_count_failed")
        high = {name for name in self._tables if self.pressure(name) > HIGH} | self._full_of_what_is_alive()
        for name in high - self._high:
            log.warning(
                "a map is nearly full: raise its limit or use less",
                map=name,
                entries=self.entries(name),
                limit=self._maps[name].info.max_entries,
                setting=setting_of(name),
            )
        self._high = high
        told = (f"{name} is {self.pressure(name):.0%} full: raise {setting_of(name)}" for name in sorted(high))
        self._service.check("maps", not high, "; ".join(told))

    def _full_of_what_is_alive(self) -> set[str]:
        """Maps of traffic that a sweep since they were seen full has left so. One that is seen full now is swept."""
        full = {name for name in self._counted if name not in UNSWEPT and self.pressure(name) > HIGH}
        turns = self._sweeper.turns
        if full - self._swept_at.keys():
            self._sweeper.hasten()
        self._swept_at = {name: self._swept_at.get(name, turns) for name in full}
        return {name for name, before in self._swept_at.items() if turns > before}

    def _count(self) -> dict[str, int]:
        return {name: self._maps[name].count_about() for name in self._counted}


def setting_of(name: str) -> str:
    """What makes a map larger."""
    size = declared_maps()[name].size
    return MAKES_LARGER.get(name) or HELM.get(size) or f"{size} in bpf/include/limits.h"
