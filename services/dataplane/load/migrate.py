"""Entries of pinned maps that were made for another layout or another number of entries, into those of this version.

The order, of which loader.py and __main__.py do a part each:

1. `begin`: a map that is to have another size is set aside under its name with "_before"; one of an older layout has
   another name anyhow. Programs that run go on with either: a name is no more than a way to find a map.
2. The new programs are loaded, and with them the new maps made.
3. `copy`: every entry, before any new program is attached. Does one not fit, nothing has happened: `undo`.
4. The new programs are attached.
5. `finish`: what the old programs wrote meanwhile, then the old maps are unpinned. They go with the last program
   that uses them.

Killed before step 4, the next start begins anew; killed after, it goes on with step 3: a directory beside the maps
tells.
Between 4 and 5 (milliseconds) one hook has its new program while another still has its old one: the connections that
are there go on in both maps; one that begins just then may need its first packet sent again.

Everything here blocks: 4 microseconds an entry.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from services.dataplane.kernel.bpf import Map
from services.dataplane.load import layouts_v1, layouts_v2
from services.dataplane.load.layouts_v1 import Entry, OldMap
from services.dataplane.shapes.layouts import CT_MAPS
from services.dataplane.shapes.limits import ASIDE, MAP_TYPES, declared_maps

ARRAYS = frozenset({MAP_TYPES["array"], MAP_TYPES["percpu_array"]})
EVICTING = frozenset({MAP_TYPES["lru_hash"]})  # makes room by itself
WITHOUT_ENTRIES = frozenset({MAP_TYPES["ringbuf"]})
EXPIRING = frozenset(declared_maps()[name].file for name in CT_MAPS)  # values begin with the tick of their end
OLDER: tuple[Mapping[str, OldMap], ...] = (layouts_v2.MAPS, layouts_v1.MAPS)
"""Of each version before this one, the latest first: what two of them hold of one key is the later one's."""
CHUNK = 4096
COPIED = "copied"  # a directory in the pin directory, from the end of the first copy to the end of the last


class DoesNotFit(Exception):
    """The entries of a map do not fit into the one that takes its place."""

    def __init__(self, file: str, entries: int, room: int) -> None:
        super().__init__(f"the map {file} holds {entries} entries and is to have room for {room}: raise its limit")


@dataclass(frozen=True, slots=True)
class Source:
    """A pinned map whose entries go elsewhere. `convert` None: they do not."""

    file: str
    convert: Callable[[bytes, bytes], Entry] | None
    targets: tuple[str, ...]

    @classmethod
    def aside(cls, file: str) -> Source:
        """The map `file`, set aside: its entries stay as they are, if that is a name of this version's."""
        return cls(file + ASIDE, _to_now(lambda key, value: (file, key, value)), _files_now(file))


class Migration:
    """See the module. Without sources there is nothing to copy.

    `may_be_live`: an earlier start got past step 3, so programs may run with the maps that it made.
    """

    def __init__(self, pin_dir: Path, sources: Iterable[Source], *, may_be_live: bool) -> None:
        self._may_be_live = may_be_live
        self._maps = pin_dir / "maps"
        self._copied = pin_dir / COPIED
        self._sources = tuple(sources)
        self._left: tuple[Path, ...] = ()

    def leave(self, files: Iterable[Path]) -> None:
        """Pinned maps that only programs of before use, and whose entries go nowhere: `finish` lets them go."""
        self._left = tuple(files)

    def __bool__(self) -> bool:
        return bool(self._sources)

    @property
    def files(self) -> list[str]:
        """The maps that are left behind."""
        return [source.file for source in self._sources]

    def copy(self) -> int:
        """Every entry that its target does not have, or has of earlier. Returns how many. Safe to repeat.

        Raises: DoesNotFit: a target has no room left.
        """
        with ExitStack() as stack:
            copied = sum(self._copy(source, stack) for source in self._sources if source.convert is not None)
        if self:
            self._copied.mkdir(exist_ok=True)
        return copied

    def finish(self) -> int:
        """Copy once more, and let the old maps go. Returns entries copied now."""
        copied = self.copy()
        for source in self._sources:
            (self._maps / source.file).unlink(missing_ok=True)
        for file in self._left:
            file.unlink(missing_ok=True)
        self._forget_copied()
        self._sources = ()
        return copied

    def start_anew(self) -> None:
        """What an earlier start copied and no program has used is outdated."""
        if not self._may_be_live:
            for source in self._sources:
                for file in source.targets:
                    (self._maps / file).unlink(missing_ok=True)

    def undo(self) -> None:
        """The maps set aside take their places again, with all that they hold, and what was copied goes. Where programs
        may run with the new maps all stays as it is: the next start goes on with step 3."""
        if not self._may_be_live:
            self._forget_copied()
            self.start_anew()
            for source in self._sources:
                if source.file.endswith(ASIDE):
                    (self._maps / source.file).rename(self._maps / source.file.removesuffix(ASIDE))
        self._sources = ()

    def _forget_copied(self) -> None:
        with suppress(FileNotFoundError):
            self._copied.rmdir()

    def _copy(self, source: Source, stack: ExitStack) -> int:
        assert source.convert is not None
        old = stack.enter_context(closing(Map.open(self._maps / source.file)))
        if old.info.type in WITHOUT_ENTRIES:
            return 0
        targets: dict[str, Map] = {}
        copied = 0
        for chunk in _chunks(old.items()):
            wanted: dict[str, list[tuple[bytes, bytes]]] = {}
            for raw_key, raw_value in chunk:
                file, key, value = source.convert(raw_key, raw_value)
                if file not in targets:
                    targets[file] = stack.enter_context(closing(Map.open(self._maps / file)))
                if _is_wanted(targets[file], file, key, value):
                    wanted.setdefault(file, []).append((key, value))
            for file, entries in wanted.items():
                copied += _write(targets[file], file, entries)
        return copied


def begin(pin_dir: Path, resized: Collection[str]) -> Migration:
    """What is to be migrated, with the maps of another size set aside.

    Args:
        resized: files of pinned maps that have this version's layout and another number of entries.
    """
    maps = pin_dir / "maps"
    maps.mkdir(parents=True, exist_ok=True)
    copied = pin_dir / COPIED
    left = _left(maps)
    if copied.exists() and (resized or not left):  # an earlier start was killed: what it was to copy goes first
        Migration(pin_dir, left, may_be_live=True).finish()
    for file in resized:
        if not (maps / (file + ASIDE)).exists():  # or else: made by an earlier start, and never used
            (maps / file).rename(maps / (file + ASIDE))
    migration = Migration(pin_dir, _left(maps), may_be_live=copied.exists())
    migration.start_anew()
    return migration


def _left(maps: Path) -> list[Source]:
    """Every map whose entries are to go elsewhere."""
    aside = [Source.aside(each.name.removesuffix(ASIDE)) for each in maps.iterdir() if each.name.endswith(ASIDE)]
    return aside + [source for version in OLDER for source in _outdated(maps, version)]


def _outdated(maps: Path, version: Mapping[str, OldMap]) -> list[Source]:
    """Pinned maps of an earlier version, which this one has under other names."""
    current = {each.file for each in declared_maps().values()}
    return [
        Source(file, old.convert and _to_now(old.convert), tuple(chain.from_iterable(map(_files_now, old.targets))))
        for file, old in version.items()
        if file not in current and _shape(maps / file) == (old.key_bytes, old.value_bytes)
    ]


def _to_now(convert: Callable[[bytes, bytes], Entry]) -> Callable[[bytes, bytes], Entry]:
    """By every layout between that of `convert` and this version's."""

    def converted(key: bytes, value: bytes) -> Entry:
        entry = convert(key, value)
        while (later := _old_map(entry[0])) and later.convert:
            entry = later.convert(entry[1], entry[2])
        return entry

    return converted


def _files_now(file: str) -> tuple[str, ...]:
    later = _old_map(file)
    return tuple(chain.from_iterable(map(_files_now, later.targets))) if later else (file,)


def _old_map(file: str) -> OldMap | None:
    return next((version[file] for version in OLDER if file in version), None)


def check_room(pin_dir: Path, wanted: Mapping[str, int]) -> None:
    """Raises: DoesNotFit: a map that is to have this many entries holds more, and would refuse them."""
    for file, room in wanted.items():
        with closing(Map.open(pin_dir / "maps" / file)) as found:
            if found.info.type in ARRAYS | EVICTING | WITHOUT_ENTRIES or found.info.max_entries <= room:
                continue
            entries = sum(1 for _ in found.items())
            if entries > room:
                raise DoesNotFit(file, entries, room)


def _shape(path: Path) -> tuple[int, int] | None:
    if not path.exists():
        return None
    with closing(Map.open(path)) as found:
        return found.info.key_bytes, found.info.value_bytes


def _chunks(entries: Iterator[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    chunk: list[tuple[bytes, bytes]] = []
    for entry in entries:
        chunk.append(entry)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    yield chunk


def _is_wanted(target: Map, file: str, key: bytes, value: bytes) -> bool:
    if target.info.type in ARRAYS:
        if int.from_bytes(key, "little") >= target.info.max_entries:
            return False
        return not any(target.get(key) or b"")
    there = target.get(key)
    return there is None or (file in EXPIRING and there[:4] != value[:4] and _tick(there) < _tick(value))


def _tick(value: bytes) -> int:
    return int.from_bytes(value[:4], "little")


def _write(target: Map, file: str, entries: list[tuple[bytes, bytes]]) -> int:
    try:
        written = target.set_many(entries)
    except OSError as problem:
        if problem.errno != errno.ENOMEM:
            raise
        written = 0
    if written < len(entries):
        raise DoesNotFit(file, target.info.max_entries + len(entries) - written, target.info.max_entries)
    return written
