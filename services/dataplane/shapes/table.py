"""Wanted and Applied for one map: what it should hold, and which keys have changed since they were last written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Table:
    """What one map should hold, as bytes. Pure; kernel/maps.py writes it.

    `take` hands out the difference since the last time; after a failed write `owe` gives it back.

    Args:
        after: tables that are written before this one, because its entries refer to theirs, and deleted after it.
        last: its entries open something: whatever that is judged by, in any other table, is written before this one.
        before_programs: the settings alone say all of it, and programs go by it from their first packet on: it is
            written before they are attached (load/datapath.py).
    """

    def __init__(
        self, name: str, *, after: tuple[str, ...] = (), last: bool = False, before_programs: bool = False
    ) -> None:
        self.name = name
        self.after = after
        self.last = last
        self.before_programs = before_programs
        self._wanted: dict[bytes, bytes] = {}
        self._dirty: set[bytes] = set()
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
        if self._wanted.get(key) != value:
            self._wanted[key] = value
            self._dirty.add(key)
            self.version += 1

    def delete(self, key: bytes) -> None:
        if self._wanted.pop(key, None) is not None:
            self._dirty.add(key)
            self.version += 1

    def take(self) -> tuple[dict[bytes, bytes], list[bytes]]:
        """What to write and what to delete. Both are owed until written: on failure call `owe` with the keys."""
        dirty, self._dirty = self._dirty, set()
        upserts = {key: self._wanted[key] for key in dirty if key in self._wanted}
        return upserts, [key for key in dirty if key not in self._wanted]

    def owe(self, keys: Iterable[bytes]) -> None:
        """These did not reach the map, or the map lost them: they are due again."""
        self._dirty.update(keys)

    def adopt(self, seen: Mapping[bytes, bytes]) -> None:
        """The map holds `seen` already: owe exactly the differences, and no more."""
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
        self._dirty |= wrong
        return len(wrong)

    def wrong_at(self, now: Mapping[bytes, bytes | None]) -> set[bytes]:
        """Those of these keys whose value in the map (None: there is none) is wrong and not owed."""
        return {key for key, value in now.items() if self._wanted.get(key) != value} - self._dirty
