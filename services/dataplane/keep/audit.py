"""What the maps hold against what the tables say: looked at every few seconds, and when somebody asks.

Only Python writes these maps, so a map whose entries read byte for byte as they did when it was last found right, with
a table that has not changed since, is right. That is what a look costs as a rule: the kernel hands the entries out in
batches and their hash is taken, off the event loop and with the interpreter released, 0.4 to 0.8 microseconds an entry.
Any other look compares entry by entry, names what differs, and owes it to the map. Maps that traffic fills
(connections, translations, fragments) are no state, and are not looked at.

A difference is told for some seconds, and until a later look finds the map right: whoever asks meanwhile learns of it
though it was mended within a millisecond.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

from bus.service import Service
from bus.telemetry import count, logger
from services.dataplane.batch import to_the_end
from services.dataplane.keep.asked import PER_BUSY
from services.dataplane.kernel.bpf import Map
from services.dataplane.kernel.hooks import TOLD_SECONDS
from services.dataplane.kernel.maps import Maps
from services.dataplane.shapes.layouts import in_words
from services.dataplane.shapes.table import Table

log = logger(__name__)

AUDIT_SECONDS = 2.0  # between looks, at least
IDLE_PER_BUSY = 50.0  # and so much longer than a look took: of a CPU they take a fiftieth at most
CHECK = "drift"
EPOCH = "node_state"  # the map of the number that connections are judged by (Maps.raise_epoch)
NAMED = 3  # keys that a difference is named by


@dataclass(frozen=True, slots=True)
class Drift:
    """One map that did not hold what its table says."""

    table: str
    entries: int  # found by the last look that found any
    keys: tuple[str, ...]  # the first of them, in words
    since: float  # seconds since the epoch
    at: float  # when the last were found
    seen: float = 0.0  # the same on a clock that nobody sets

    def __str__(self) -> str:
        more = f" and {self.entries - len(self.keys)} more" if self.entries > len(self.keys) else ""
        when = "" if self.at - self.since < 1 else f", again and again for {self.at - self.since:.0f} s"
        at = time.strftime("%H:%M:%S", time.gmtime(self.at))
        return f"{self.table} did not hold {', '.join(self.keys)}{more} as written, at {at} UTC{when}"


class Keeper(Protocol):
    """Who writes the maps."""

    service: Service
    is_whole: bool  # it is known what the maps should hold

    async def write(self) -> None:
        """Bring the maps to what the tables say."""

    async def realised(self) -> None:
        """Tell how far what was heard is in the maps, if it is."""


class Audit:
    """Looks at the maps of `tables`. `writing` is held by whoever writes them."""

    def __init__(self, maps: Maps, tables: Iterable[Table], writing: asyncio.Lock, node: Keeper) -> None:
        self._maps = maps
        self._tables = tuple(tables)
        self._writing = writing
        self._node = node
        self.not_healed = ""
        """Why the last healing of all else did not come to its end."""
        self._right: dict[
            str, tuple[int, bytes]
        ] = {}  # by table: its version, and the mark of the map, when both agreed
        self._looking = asyncio.Lock()
        self._began = -1e9  # loop time of the last look
        self._took = 0.0
        self.differing: dict[str, Drift] = {}

    @property
    def problem(self) -> str:
        """What was found and not yet seen to be right again, on one line."""
        return "; ".join(str(each) for _, each in sorted(self.differing.items()))

    def tell(self) -> None:
        """The check "drift"."""
        problem = "; ".join(filter(None, (self.problem, self.not_healed)))
        self._node.service.check(CHECK, not problem, problem)

    async def run_for_ever(self) -> None:
        """Look again and again, as long as it is known what the maps should hold."""
        while True:
            await asyncio.sleep(max(AUDIT_SECONDS, self._took * IDLE_PER_BUSY))
            await self.run_or_tell()

    async def run_or_tell(self, asked_at: float | None = None) -> None:
        """As `run`, as long as it is known what the maps should hold; an error is told by the check."""
        if not self._node.is_whole:
            return
        try:
            await self.run(asked_at=asked_at)
        except OSError as problem:
            self._node.service.check(CHECK, False, str(problem))
            log.warning("maps not looked at to the end, trying again", why=str(problem))

    async def run(self, *, asked_at: float | None = None) -> None:
        """Look, and put back what someone else removed or changed. Raises: OSError."""
        differed = bool(self.differing)
        drifted = await self.look(asked_at=asked_at)
        self.tell()
        if drifted:
            count("drift", drifted, kind="map")
            await self._node.write()
        elif differed and not self.differing:
            await self._node.realised()

    async def look(self, *, asked_at: float | None = None) -> int:
        """Compare every map. What differs is owed; returns how many entries. `asked_at` (loop time): unless a look has
        begun since then. Raises: OSError."""
        now = asyncio.get_running_loop().time
        async with self._looking:
            if asked_at is not None:
                await asyncio.sleep(max(0.0, self._began + self._took * PER_BUSY - now()))
                if self._began >= asked_at:
                    return 0
            self._began = now()
            found = await self._compare_epoch()
            for table in self._tables:
                found += await self._compare(table)
            self._took = now() - self._began
            return found

    async def _compare_epoch(self) -> int:
        """As what is compared below; but it is put back by this look."""
        async with self._writing:
            is_other = self._maps.mend_epoch()
        if is_other:
            self._found(EPOCH, 1, ("the epoch",))
        else:
            self._is_right(EPOCH)
        return int(is_other)

    async def _compare(self, table: Table) -> int:
        name, version = table.name, table.version
        before = await self._mark(name)
        if self._right.get(name) == (version, before) and not table.is_dirty:
            self._is_right(name)
            return 0
        seen = await self._maps.read(name)
        compare = asyncio.to_thread(_differing, dict(table.wanted), seen)
        suspects = await to_the_end(compare)  # or written while it was read
        wrong: set[bytes] = set()
        if suspects:
            async with self._writing:
                wrong = table.wrong_at(await self._maps.look_up(name, suspects))
                table.owe(wrong)
        if wrong:
            self._found(name, len(wrong), tuple(in_words(name, key) for key in sorted(wrong)[:NAMED]))
        elif not table.is_dirty:
            self._is_right(name)
            if table.version == version and await self._mark(name) == before:
                self._right[name] = version, before
        return len(wrong)

    def _is_right(self, name: str) -> None:
        known = self.differing.get(name)
        if known is not None and time.monotonic() - known.seen >= TOLD_SECONDS:
            del self.differing[name]

    def _found(self, name: str, entries: int, keys: tuple[str, ...]) -> None:
        """`keys`: the first of them, in words."""
        known, at = self.differing.get(name), time.time()
        self.differing[name] = Drift(name, entries, keys, known.since if known else at, at, time.monotonic())
        count("map_differences", entries, map=name)
        log.warning("a map did not hold what was written: putting it back", map=name, entries=entries, keys=keys)

    async def _mark(self, name: str) -> bytes:
        return await to_the_end(asyncio.to_thread(mark_of, self._maps[name]))


def _differing(wanted: dict[bytes, bytes], seen: dict[bytes, bytes]) -> set[bytes]:
    return {key for key, value in wanted.items() if seen.get(key) != value} | (seen.keys() - wanted.keys())


def mark_of(found: Map) -> bytes:
    """A hash of all entries as the kernel hands them out, in an order that stays while nobody writes. Blocks."""
    mark = blake2b(digest_size=16)
    for number, keys, values in found.chunks():
        mark.update(memoryview(keys)[: number * found.info.key_bytes])
        mark.update(memoryview(values)[: number * found.value_bytes])
    return mark.digest()
