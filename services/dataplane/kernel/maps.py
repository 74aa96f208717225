"""Everything of the dataplane that writes to the kernel's BPF side: maps. Decides nothing.

Needs CAP_BPF and CAP_NET_ADMIN (maps, programs), CAP_SYS_ADMIN on kernels before 5.8, and the bpf file system at
`pin_dir`. hooks.py attaches programs; links.py holds what needs netlink only.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bus.telemetry import count, logger
from services.dataplane.batch import to_the_end
from services.dataplane.kernel.bpf import Map
from services.dataplane.shapes import layouts, order
from services.dataplane.shapes.again import EVERYTHING, Again, epoch_after, is_before
from services.dataplane.shapes.layouts import EndpointEntry, NodeState, PolicyMapKey
from services.dataplane.shapes.limits import map_path
from services.dataplane.shapes.order import POLICY
from services.dataplane.shapes.table import Table

log = logger(__name__)

NO_ROOM = frozenset({errno.E2BIG, errno.ENOSPC, errno.ENOMEM})  # full as a hash says it, as a trie does; no memory
STAMPED = {  # where entries bear the epoch that they are as of
    "ct_tcp": slice(4, 8),
    "ct_any": slice(4, 8),
    "choices": slice(24, 28),
    "sock_choices": slice(24, 28),
    "endpoints": layouts.EndpointEntry.epoch_at,
}
ENDPOINTS = "endpoints"
INLINE_ENTRIES = 256  # more than this are written on a thread: one takes about 3 microseconds

Missing = dict[bytes, int]
"""Keys that found no room, and the kernel's reason."""


class Maps:
    """The pinned maps of this node, open."""

    no_room: Mapping[str, str] = {}
    """By map: what the last write of it found no room for. It is owed."""
    missing: Mapping[str, Missing] = {}
    """The same by key."""
    shut: frozenset[int] = frozenset()
    """Policies that lack an entry that denies: their pods are closed until a write has come to its end without that."""
    were_new = True
    """No process before this one has written them."""

    def __init__(self, pin_dir: Path) -> None:
        self._maps = {name: Map.open(map_path(pin_dir, name)) for name in layouts.MAPS}
        self._state = self._state_held()
        self.were_new = not self._state.seed
        if self.were_new:
            self._set_state(self._state._replace(seed=1 + secrets.randbelow((1 << 32) - 1)))
            if self._epochs_borne():  # what they were judged by is not known: `node_state` alone is new
                self._go_on_after_all(self._state.epoch)

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

    async def write(self, tables: tuple[Table, ...], again: Callable[[], Again] = lambda: EVERYTHING) -> int:
        """Write what is owed, new and changed entries in the order of `tables`, then what goes in the reverse order: as
        `part.in_order` has them nothing is opened or broken in between. Returns entries written.

        What found no room stays owed, is counted, and logged with what to do; the rest is written.

        Args:
            again: says which connections are to be judged again after what is owed now. However far a write comes that
                fails, what was written holds for connections that are there, too: then it is all of them.
        """
        if not any(table.is_dirty for table in tables):
            return 0
        concerned = again()
        owed = [(table, *table.take()) for table in tables if table.is_dirty]
        endpoints = next((table for table in tables if table.name == ENDPOINTS), None)
        size = sum(len(upserts) + len(gone) for _, upserts, gone in owed)
        try:
            if size <= INLINE_ENTRIES:
                self._write(owed, endpoints)
            else:
                await to_the_end(asyncio.to_thread(self._write, owed, endpoints))
            self._judge_again(concerned if not self.no_room else EVERYTHING, endpoints)
        except BaseException:
            self.raise_epoch()
            for table, upserts, gone in owed:
                table.owe([*upserts, *gone])
            raise
        finally:  # what is closed is not as it should be, and the next write has to open it
            if self.shut and endpoints is not None:
                endpoints.owe(self._governed(endpoints, self.shut))
        return size

    def _write(self, owed: list[order.Owed], endpoints: Table | None) -> None:
        steps = order.steps(owed, lambda name, key: self._maps[name].get(key))
        left: dict[str, Missing] = {table.name: {} for table, _, _ in owed}
        for name, upserts, _ in steps:
            missing = self._upsert(name, self._as_shut(name, upserts))
            left[name] |= missing
            if name == POLICY:
                self._shut([key for key in missing if order.denies(upserts[key])], endpoints)
        for name, _, gone in reversed(steps):
            self._maps[name].remove_many(gone)
        lacking: set[int] = set()  # policies
        for table, upserts, _ in owed:
            missing = left[table.name]
            if missing:  # what was removed may have made room
                again = {key: upserts[key] for key in missing}
                if table.name == POLICY:
                    denying = {key: value for key, value in again.items() if order.denies(value)}
                    missing = self._upsert(POLICY, denying)
                    lacking = {PolicyMapKey.unpack(key).policy for key in missing}
                    again = {key: value for key, value in again.items() if key not in denying}
                else:
                    missing = {}
                missing |= self._upsert(table.name, self._as_shut(table.name, again))
            self._tell_missing(table, missing)
        self._open_all_but(frozenset(lacking), endpoints)

    def _upsert(self, name: str, upserts: Mapping[bytes, bytes]) -> Missing:
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

    # Who is denied everything because not all that denies has found room

    def _shut(self, denying: list[bytes], endpoints: Table | None) -> None:
        """Pods of these policies are closed, until the model closes the direction alone, or there is room."""
        if denying:
            self.shut |= {PolicyMapKey.unpack(key).policy for key in denying}
            if endpoints is not None:
                closed = self._governed(endpoints, self.shut)
                self._upsert(ENDPOINTS, {key: order.shut(value) for key, value in closed.items()})

    def _open_all_but(self, lacking: frozenset[int], endpoints: Table | None) -> None:
        """Of those that are closed, these policies still lack what denies; the others have only what they should."""
        before, self.shut = self.shut, self.shut & lacking
        if before != self.shut and endpoints is not None:
            self._upsert(ENDPOINTS, self._as_shut(ENDPOINTS, self._governed(endpoints, before - self.shut)))

    def _governed(self, endpoints: Table, policies: frozenset[int]) -> dict[bytes, bytes]:
        """Pods that the map has under one of these policies, or is to have; as they should be."""
        found = {key: (value, self._maps[ENDPOINTS].get(key)) for key, value in endpoints.wanted.items()}
        return {
            key: value
            for key, (value, held) in found.items()
            if held is not None and policies & {EndpointEntry.unpack(each).policy for each in (value, held)}
        }

    def _as_shut(self, name: str, upserts: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
        if name != ENDPOINTS or not self.shut:
            return upserts
        policies = {key: EndpointEntry.unpack(value).policy for key, value in upserts.items()}
        return {key: order.shut(value) if policies[key] in self.shut else value for key, value in upserts.items()}

    def _tell_missing(self, table: Table, missing: Missing) -> None:
        told = {name: why for name, why in self.no_room.items() if name != table.name}
        self.missing = {name: found for name, found in self.missing.items() if name != table.name}
        if missing:
            table.owe(missing)
            self.missing[table.name] = missing
            count("map_full", len(missing), map=table.name)
            is_full = errno.ENOMEM not in missing.values()
            why = "map full: raise its limit or use less" if is_full else "no memory for a map: use less on this node"
            log.error(why, map=table.name, missing=len(missing))
            told[table.name] = f"{why} ({len(missing)} missing)"
        self.no_room = told

    def serve(self, what: int) -> None:
        """Programs look for this from here on, `SERVES_*`, and for nothing else that few nodes have."""
        if what != self._state.serves:
            self._set_state(self._state._replace(serves=what))

    def raise_epoch(self) -> None:
        """Every connection is judged again, under what is written now."""
        self._judge_again(EVERYTHING, None)

    def _judge_again(self, again: Again, endpoints: Table | None) -> None:
        """The epoch first: who is judged under it has read what is written now. Only then do entries say that what was
        judged before it is not enough."""
        if again.is_nobody:
            return
        epoch = (self._state.epoch + 1) & 0xFFFFFFFF
        count("epochs_raised", scope="node" if again.everything else "part")
        self._set_state(
            self._state._replace(
                epoch=epoch,
                all=epoch if again.everything else self._state.all,
                services=epoch if again.everything or again.services else self._state.services,
                ahead=epoch if again.everything or again.ahead else self._state.ahead,
            )
        )
        if endpoints is not None and not again.everything:
            for key in again.endpoints:
                self._maps["endpoints"].set(key, endpoints.stamp(key, epoch.to_bytes(4, "little")))

    def _state_held(self) -> NodeState:
        return NodeState.unpack(self._maps["node_state"].get(bytes(4)) or bytes(layouts.NODE_STATE.size))

    def _set_state(self, state: NodeState) -> None:
        self._state = state
        self._maps["node_state"].set(bytes(4), state.pack())

    def mend_epoch(self) -> bool:
        """Whether somebody else wrote it. Connections that policy has ended would go on; so it goes beyond whatever
        they may bear by now: all are judged again."""
        if (self._maps["node_state"].get(bytes(4)) or b"") == self._state.pack():
            return False
        self._go_on_after_all(self._state.epoch, self._state_held().epoch)
        return True

    def _epochs_borne(self) -> set[int]:
        return {
            int.from_bytes(value[at], "little") for name, at in STAMPED.items() for _, value in self._maps[name].items()
        }

    def _go_on_after_all(self, *epochs: int) -> None:
        """With an epoch that is after these and after every one that an entry bears. Where they lie so far apart that
        none is, what would count as newer is taken away; but for pods, whose connections are then judged each time.
        Blocks for as long as it takes to read all connections, twice (`dump`)."""
        borne = self._epochs_borne()
        epoch = epoch_after(borne.union(epochs))
        self._state = self._state._replace(epoch=(epoch - 1) & 0xFFFFFFFF)
        self.raise_epoch()
        newer = {each for each in borne if not is_before(each, epoch)}
        for name, at in STAMPED.items():
            if newer and name != "endpoints":
                entries = self._maps[name].items()
                self._maps[name].remove_many(
                    [key for key, value in entries if int.from_bytes(value[at], "little") in newer]
                )


def _set(found: Map, key: bytes, value: bytes) -> int:
    """Why it found no room; 0: it did."""
    try:
        found.set(key, value)
    except OSError as problem:
        if problem.errno not in NO_ROOM:
            raise
        return problem.errno or 0
    return 0
