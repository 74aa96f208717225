"""Everything of the dataplane that writes to the kernel's BPF side: maps. Decides nothing.

Needs CAP_BPF and CAP_NET_ADMIN (maps, programs), CAP_SYS_ADMIN on kernels before 5.8, and the bpf file system at
`pin_dir`. hooks.py attaches programs; links.py holds what needs netlink only.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from bus.telemetry import count, logger
from services.dataplane.batch import to_the_end
from services.dataplane.kernel.bpf import Map
from services.dataplane.shapes import layouts
from services.dataplane.shapes.events import EVENT_DROP, EVENT_POLICY_VERDICT
from services.dataplane.shapes.limits import map_path
from services.dataplane.shapes.table import Table

log = logger(__name__)

NO_ROOM = frozenset({errno.E2BIG, errno.ENOSPC, errno.ENOMEM})  # full as a hash says it, as a trie does; no memory
INLINE_ENTRIES = 256  # more than this are written on a thread: one takes about 3 microseconds

NODE_STATE = layouts.NodeState.layout


class Maps:
    """The pinned maps of this node, open."""

    no_room: Mapping[str, str] = {}
    """By map: what the last write of it found no room for. It is owed."""
    were_new = True
    """No process before this one has written them."""

    def __init__(self, pin_dir: Path) -> None:
        self._maps = {name: Map.open(map_path(pin_dir, name)) for name in layouts.MAPS}
        state = self._maps["node_state"].get(bytes(4)) or bytes(NODE_STATE.size)
        self._epoch, self._seed = NODE_STATE.unpack(state)
        self.were_new = not self._seed
        if not self._seed:
            self._seed = secrets.randbelow(1 << 32)
            self._maps["node_state"].set(bytes(4), NODE_STATE.pack(self._epoch, self._seed))

    def close(self) -> None:
        for each in self._maps.values():
            each.close()

    def __getitem__(self, name: str) -> Map:
        return self._maps[name]

    def dump(self, name: str) -> dict[bytes, bytes]:
        """Every entry. Blocks for about 0.3 microseconds an entry; `read` does not."""
        return dict(self._maps[name].items())

    async def read(self, name: str) -> dict[bytes, bytes]:
        """Every entry, read on a thread; as it is when nobody writes meanwhile."""
        return await to_the_end(asyncio.to_thread(self.dump, name))

    async def look_up(self, name: str, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """What the map answers for each of `keys` now."""
        found = self._maps[name]
        return await to_the_end(asyncio.to_thread(lambda: {key: found.get(key) for key in keys}))

    async def write(self, tables: tuple[Table, ...]) -> int:
        """Write what is owed, new and changed entries in the order of `tables`, then what goes in the reverse order: as
        `part.in_order` has them nothing is opened or broken in between. Returns entries written.

        What found no room stays owed, is counted, and logged with what to do; the rest is written.
        """
        owed = {table.name: (table, *table.take()) for table in tables if table.is_dirty}
        if not owed:
            return 0
        size = sum(len(upserts) + len(gone) for _, upserts, gone in owed.values())
        try:
            if size <= INLINE_ENTRIES:
                self._write(owed)
            else:
                await to_the_end(asyncio.to_thread(self._write, owed))
        except BaseException:
            for table, upserts, gone in owed.values():
                table.owe([*upserts, *gone])
            raise
        return size

    def _write(self, owed: dict[str, tuple[Table, dict[bytes, bytes], list[bytes]]]) -> None:
        try:
            left = {name: self._upsert(name, upserts) for name, (_, upserts, _) in owed.items()}
            for name, (_, _, gone) in reversed(owed.items()):
                self._maps[name].remove_many(gone)
            for name, missing in left.items():
                table, upserts, _ = owed[name]
                if missing:  # what was removed may have made room
                    missing = self._upsert(name, {key: upserts[key] for key in missing})
                self._tell_missing(table, missing)
        finally:  # however far it came: what was written holds for connections that are there, too
            self.raise_epoch()

    def _upsert(self, name: str, upserts: dict[bytes, bytes]) -> dict[bytes, int]:
        """What found no room, and the kernel's reason. It stands in nobody's way: in a full map, what is there already
        can still change."""
        found, entries = self._maps[name], list(upserts.items())
        try:
            written = found.set_many(entries)
        except OSError as problem:
            if problem.errno != errno.ENOMEM:
                raise
            written = 0  # it is not told how many
        return {key: why for key, value in entries[written:] if (why := _set(found, key, value))}

    def _tell_missing(self, table: Table, missing: dict[bytes, int]) -> None:
        told = {name: why for name, why in self.no_room.items() if name != table.name}
        if missing:
            table.owe(missing)
            count("map_full", len(missing), map=table.name)
            is_full = errno.ENOMEM not in missing.values()
            why = "map full: raise its limit or use less" if is_full else "no memory for a map: use less on this node"
            log.error(why, map=table.name, missing=len(missing))
            told[table.name] = f"{why} ({len(missing)} missing)"
        self.no_room = told

    def raise_epoch(self) -> None:
        """Connections are judged again, under what is written now."""
        self._epoch = (self._epoch + 1) & 0xFFFFFFFF
        self._maps["node_state"].set(bytes(4), NODE_STATE.pack(self._epoch, self._seed))

    def mend_epoch(self) -> bool:
        """Whether somebody else wrote it. Set back, connections that policy has ended would go on; so it goes beyond
        what was found, too: all are judged again."""
        found = self._maps["node_state"].get(bytes(4)) or bytes(NODE_STATE.size)
        if found == NODE_STATE.pack(self._epoch, self._seed):
            return False
        self._epoch = max(self._epoch, NODE_STATE.unpack(found)[0])
        self.raise_epoch()
        return True

    def events_lost(self) -> int:
        """Events that the kernel did not pass on since the maps were made: over the rate, or no room."""
        kinds = (EVENT_DROP, EVENT_POLICY_VERDICT)
        values = (self._maps["event_rate"].get(kind.to_bytes(4, "little")) or b"" for kind in kinds)
        return sum(row[2] for value in values for row in layouts.EventRate.layout.iter_unpack(value))


def _set(found: Map, key: bytes, value: bytes) -> int:
    """Why it found no room; 0: it did."""
    try:
        found.set(key, value)
    except OSError as problem:
        if problem.errno not in NO_ROOM:
            raise
        return problem.errno or 0
    return 0
