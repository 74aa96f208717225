"""Rules where the BPF maps stand: what is written is rendered anew and put in force at once.

What was written is also on disk (`FILE`), as pinned maps outlive a process: until a new process has heard everything,
the pods that were here before keep the rules that they had. The file is there for as long as rules are in force: it
comes before them and goes after them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from bus.telemetry import count, logger
from services.dataplane.batch import to_the_end
from services.dataplane.fallback import rules
from services.dataplane.fallback.rules import Place
from services.dataplane.kernel import nft
from services.dataplane.kernel.bpf import Map, MapInfo
from services.dataplane.kernel.maps import Maps
from services.dataplane.kernel.nft import NftError
from services.dataplane.load import layouts_v2
from services.dataplane.shapes import layouts
from services.dataplane.shapes.again import EVERYTHING, Again
from services.dataplane.shapes.limits import declared_maps
from services.dataplane.shapes.table import Table
from services.dataplane.store import statefile

log = logger(__name__)

FILE = "fallback.tables"
REASONS = {
    "policy_denied": 133,
    "invalid_source": 132,
    "unroutable": 151,
    "no_backend": 158,
    "no_encapsulation": 170,
    "no_connection": 163,
    "forbidden": 176,
}
"""Counters of the rules, and the drop reasons that BPF counts the same packets under."""

_Stored = dict[str, dict[bytes, bytes]]


class Senseless(NftError):
    """The tables hold what makes no rules; what was in force still is."""


class HeldMap(Map):
    """A map in this process's memory."""

    __slots__ = ("entries",)

    def __init__(self, name: str, entries: Mapping[bytes, bytes]) -> None:
        shape = layouts.MAPS[name]
        self.info = MapInfo(0, 0, shape.key_bytes, shape.value_bytes, 0)
        self.value_bytes = shape.value_bytes
        self.entries = dict(entries)

    def close(self) -> None:
        """Nothing is open."""

    def get(self, key: bytes) -> bytes | None:
        return self.entries.get(key)

    def set(self, key: bytes, value: bytes) -> None:
        self.entries[key] = value

    def remove(self, key: bytes) -> bool:
        return self.entries.pop(key, None) is not None

    def set_many(self, entries: Iterable[tuple[bytes, bytes]]) -> int:
        before = len(self.entries)
        self.entries.update(entries)
        return len(self.entries) - before

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        yield from list(self.entries.items())

    def chunks(self, size: int = Map.BATCH) -> Iterator[tuple[int, bytes, bytes]]:
        yield len(self.entries), b"".join(self.entries), b"".join(self.entries.values())


class RuleMaps(Maps):
    """See the module.

    Args:
        place: what the rules need to know of the node, asked before each rendering.
        state_dir: where the file is kept.
        tables: names of those that rules are made of; what else is written is only held.
        tell: called when `problem` changes.
    """

    def __init__(
        self,
        place: Callable[[], Place],
        state_dir: Path,
        tables: Iterable[str],
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self._place = place
        self._tables = tuple(tables)
        self._tell = tell
        self.problem = ""
        """Why the rules, or the file, are not as the tables are."""
        self._file = state_dir / FILE
        stored = _read(self._file)
        self.were_new = not stored  # else rules from before are in force, and may know more than the disk
        self._maps = {name: HeldMap(name, stored.get(name, {})) for name in layouts.MAPS}
        self._in_force = ""  # the mark of the rules that are
        self._stored = ""  # the mark of what the file holds
        self._counted: dict[str, tuple[int, int]] = {}
        self._applying = asyncio.Lock()
        self._writable = asyncio.Event()
        self._writable.set()
        self._said_all = False
        self.is_whole = asyncio.Event()
        """Everything that the node's model says is in force."""

    def close(self) -> None:
        """The rules stay."""

    def raise_epoch(self) -> None:
        """Every packet is judged anew anyway."""

    def mend_epoch(self) -> bool:
        return False

    async def write(self, tables: tuple[Table, ...], again: Callable[[], Again] = lambda: EVERYTHING) -> int:
        """As `Maps.write`. What makes no rules, or nft refuses, stays owed, and shows: what was in force still is.

        `heal` tries again.
        """
        await self._writable.wait()
        owed = {table.name: (table, *table.take()) for table in tables if table.is_dirty}
        try:
            for name, (_, upserts, gone) in owed.items():
                self._maps[name].set_many(upserts.items())
                self._maps[name].remove_many(gone)
            self._said_all = self._said_all or {*self._tables} <= {table.name for table in tables}
            await self.apply()
        except BaseException as problem:
            for table, upserts, gone in owed.values():
                table.owe([*upserts, *gone])
            if not isinstance(problem, NftError):
                raise
            return 0  # counted and told by `apply`
        return sum(len(upserts) + len(gone) for _, upserts, gone in owed.values())

    def serve(self, what: int) -> None:
        """Rules look for all that they are made of."""

    def stop_writes(self) -> None:
        """Whoever writes waits, until `resume_writes`: what is dumped from here on is all that there is."""
        self._writable.clear()

    def resume_writes(self) -> None:
        self._writable.set()

    def forget(self) -> None:
        """As if nothing had ever been written."""
        self._maps.update({name: HeldMap(name, {}) for name in self._maps})

    async def apply(self) -> bool:
        """Put in force what the tables and the place say now. Returns whether anything changed. Raises: NftError."""
        async with self._applying:
            return await self._apply()

    async def heal(self) -> bool:
        """As `apply`. Returns whether somebody had removed the rules. Raises: NftError."""
        async with self._applying:
            is_there = not self._in_force or await nft.has_chain(self._in_force, rules.TABLE)
            if is_there:
                await self._count()
            else:
                self._in_force = ""
            await self._apply()
            return not is_there

    async def _apply(self) -> bool:
        place = self._place()
        tables = {name: self.dump(name) for name in self._tables}
        mark, held = _mark(tables, place), self._said_all
        is_new = mark != self._in_force
        script = ""
        if is_new:
            await self._count()
            script = await self._rendered(tables, place, mark)
        problem = ""
        was_there = self._file.exists()
        if mark != self._stored:
            try:
                await to_the_end(asyncio.to_thread(_store, self._file, tables))
                self._stored = mark
            except OSError as failure:
                problem = f"rules are not on the disk, and a restart begins with older ones: {failure}"
        if is_new:
            try:
                await to_the_end(nft.apply(script))
            except NftError as failure:
                if not (was_there or self._in_force):  # there were none before either
                    self._file.unlink(missing_ok=True)
                    self._stored = ""
                self._refused(failure)
                raise
            self._in_force = mark
        self._show(problem)
        if held:
            self.is_whole.set()
        return is_new

    async def _count(self) -> None:
        """What the rules have counted, also in the map that programs count in; its direction is not told apart."""
        self._counted |= await nft.counters(rules.TABLE, rules.COUNTERS)
        for name, each in self._counted.items():
            index = 2 * REASONS[name]
            self._maps["counters"].set(index.to_bytes(4, "little"), layouts.Counter.layout.pack(*each))

    async def _rendered(self, tables: rules.Tables, place: Place, mark: str) -> str:
        """Raises: Senseless."""
        try:
            return await to_the_end(asyncio.to_thread(rules.render, tables, place, self._counted, mark))
        except Exception as failure:  # whatever it is, the last rules stay
            senseless = Senseless(f"what is said makes no rules: {failure!r}")
            self._refused(senseless)
            raise senseless from failure

    def _refused(self, failure: Exception) -> None:
        count("rules_refused")
        self._show(f"rules are as they were before: {failure}")

    def _show(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error("not all is in force, trying again: correct what is said", why=problem)
        if problem != self.problem:
            self.problem = problem
            self._tell()

    async def remove(self) -> None:
        """The rules, and the file that says that there are some. Raises: OSError: they may still be there."""
        async with self._applying:
            await nft.apply(rules.removal())
            self._in_force = self._stored = ""
            self._file.unlink(missing_ok=True)


def is_in_force(state_dir: Path) -> bool:
    """This process, or one before it, has put rules in force and not taken them away."""
    return (state_dir / FILE).exists()


def _mark(tables: Mapping[str, Mapping[bytes, bytes]], place: Place) -> str:
    found = hashlib.sha256(repr(place).encode())
    for name in sorted(tables):
        found.update(name.encode())
        for key, value in sorted(tables[name].items()):
            found.update(key + value)
    return f"rules_{found.hexdigest()[:16]}"


def _read(file: Path) -> _Stored:
    """Tables of this layout and of the one before; what does not read is as if it had never been."""
    try:
        state, _ = statefile.parse(file.read_bytes())
        found = {name: msgspec.msgpack.decode(body, type=dict[bytes, bytes]) for name, body in state.items()}
    except FileNotFoundError:
        return {}
    except (OSError, statefile.Corrupt, msgspec.MsgspecError) as problem:
        log.warning("rules from before are not known: pods are closed until all is heard", why=str(problem))
        return {}
    return {name: dict(_of_this_layout(name, found[name])) for name in layouts.MAPS if name in found}


def _of_this_layout(name: str, entries: Mapping[bytes, bytes]) -> Iterator[tuple[bytes, bytes]]:
    shape = layouts.MAPS[name]
    before = next((each for each in layouts_v2.MAPS.values() if declared_maps()[name].file in each.targets), None)
    for key, value in entries.items():
        if (len(key), len(value)) == (shape.key_bytes, shape.value_bytes):
            yield key, value
        elif before and before.convert and (len(key), len(value)) == (before.key_bytes, before.value_bytes):
            yield before.convert(key, value)[1:]


def _store(file: Path, tables: Mapping[str, Mapping[bytes, bytes]]) -> None:
    """Raises: OSError: it is as it was."""
    state = {name: msgspec.msgpack.encode(entries) for name, entries in tables.items()}
    statefile.replace(file, statefile.first_state(state))
