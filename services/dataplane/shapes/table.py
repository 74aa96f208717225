"""Wanted and Applied for one map: what it should hold, and which keys have changed since they were last written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

UNKNOWN = b"unknown"
"""Of which value an entry had: no value of a map has these bytes."""


class Table:
    """What one map should hold, as bytes. Pure; kernel/maps.py writes it.

    `take` hands out the difference since the last time; after a failed write `owe` gives it back.

    Args:
        after: tables that are written before this one, because its entries refer to theirs, and deleted after it.
        last: its entries open something: whatever that is judged by, in any other table, is written before this one.
        before_programs: the settings alone say all of it, and programs go by it from their first packet on: it is
            written before they are attached (load/datapath.py).
        stamp_at: the bytes of a value that are not said by `put`, but by `stamp`, and stay as long as the entry does.
    """

    def __init__(
        self,
        name: str,
        *,
        after: tuple[str, ...] = (),
        last: bool = False,
        before_programs: bool = False,
        stamp_at: slice = slice(0, 0),
    ) -> None:
        self.name = name
        self.after = after
        self.last = last
        self.before_programs = before_programs
        self._stamp_at = stamp_at
        self._wanted: dict[bytes, bytes] = {}
        self._dirty: set[bytes] = set()
        self._before: dict[bytes, bytes | None] = {}  # of those of `_dirty` of which it is known
        self.version = 0
        """Another one after each change of what the map should hold."""

    def __len__(self) -> int:
        return len(self._wanted)

    @property
    def wanted(self) -> Mapping[bytes, bytes]:
        return self._wanted

    @property
    def is_dirty(self) -> bool:
        return bool(self._dirty)

    def put(self, key: bytes, value: bytes) -> None:
        before = self._wanted.get(key)
        if before is not None:
            value = self._stamped(value, before)
        if before != value:
            self._change(key, before)
            self._wanted[key] = value

    def delete(self, key: bytes) -> None:
        before = self._wanted.get(key)
        if before is not None:
            self._change(key, before)
            del self._wanted[key]

    def stamp(self, key: bytes, stamp: bytes) -> bytes:
        """The entry bears this from now on; returns its value. Nothing is owed by that: the caller writes it.
        Raises: KeyError: there is no such entry."""
        value = self._wanted[key]
        value = value[: self._stamp_at.start] + stamp + value[self._stamp_at.stop :]
        self._wanted[key] = value
        self.version += 1
        return value

    def changes(self) -> dict[bytes, bytes | None]:
        """What `take` would hand out, by key: the value before (None: there was none), `UNKNOWN` where a write has
        failed or the map was found to hold something else."""
        return {key: self._before.get(key, UNKNOWN) for key in self._dirty}

    def _change(self, key: bytes, before: bytes | None) -> None:
        if key not in self._dirty:
            self._dirty.add(key)
            self._before[key] = before
        self.version += 1

    def _stamped(self, value: bytes, by: bytes) -> bytes:
        at = self._stamp_at
        return value[: at.start] + by[at] + value[at.stop :]

    def take(self) -> tuple[dict[bytes, bytes], list[bytes]]:
        """What to write, and what to delete. Both are owed until written: on failure call `owe` with the keys."""
        dirty, self._dirty = self._dirty, set()
        self._before = {}
        upserts = {key: self._wanted[key] for key in dirty if key in self._wanted}
        return upserts, [key for key in dirty if key not in self._wanted]

    def owe(self, keys: Iterable[bytes]) -> None:
        """These did not reach the map, or the map lost them: they are due again."""
        self._owe(set(keys))

    def _owe(self, keys: set[bytes]) -> None:
        self._dirty |= keys
        for key in keys:
            self._before.pop(key, None)

    def adopt(self, seen: Mapping[bytes, bytes]) -> None:
        """The map holds `seen` already: owe exactly the differences, and no more. Its stamps are taken over."""
        for key, value in seen.items():
            if key in self._wanted:
                self._wanted[key] = self._stamped(self._wanted[key], value)
        self._before = {}
        self._dirty = {key for key, value in self._wanted.items() if seen.get(key) != value}
        self._dirty |= seen.keys() - self._wanted.keys()

    def drift(self, seen: Mapping[bytes, bytes]) -> int:
        """Owe every difference between `seen`, the map as dumped, and what it should hold. Returns how many."""
        return self.drift_at({key: seen.get(key) for key in self.differing(seen)})

    def differing(self, seen: Mapping[bytes, bytes]) -> set[bytes]:
        """Keys whose value in `seen`, the map as dumped, is not what it should be and is not owed either."""
        wrong = {key for key, value in self._wanted.items() if seen.get(key) != value}
        wrong |= seen.keys() - self._wanted.keys()
        return wrong - self._dirty

    def drift_at(self, now: Mapping[bytes, bytes | None]) -> int:
        """Owe those of these keys whose value in the map (None: there is none) is wrong. Returns how many."""
        wrong = self.wrong_at(now)
        self._owe(wrong)
        return len(wrong)

    def wrong_at(self, now: Mapping[bytes, bytes | None]) -> set[bytes]:
        """Those of these keys whose value in the map (None: there is none) is wrong and not owed."""
        return {key for key, value in now.items() if self._wanted.get(key) != value} - self._dirty
