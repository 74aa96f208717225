"""Pins: what keeps maps, programs and links in the kernel when this process is not there.

While it is there it holds each of them itself, so a pin that someone removes takes nothing with it, and is put back
(`Pins`). What the BPF file system loses as a whole tells nobody, so each pin is asked for, every two seconds and in two
microseconds: the file that was pinned, by its inode.

A start that finds no pin of a map may still find the map: programs that are attached use it (`recover`). Then its
connections go on. So it is where the pin is of another map: what is written there would reach no program. A program
that is not pinned any more, or in whose place another is pinned, is loaded anew (load/loader.py).

Everything here blocks. Needs CAP_BPF, and CAP_SYS_ADMIN for `recover`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from bus.telemetry import count, logger
from services.dataplane.kernel import bpf, rtnl
from services.dataplane.kernel.bpf import Map
from services.dataplane.kernel.netlink import Netlink
from services.dataplane.shapes import layouts
from services.dataplane.shapes.layouts import MapShape
from services.dataplane.shapes.limits import ASIDE, MAP_TYPES, declared_maps, map_path, maps_of_generation

log = logger(__name__)

STEPS_READ = 64  # of an array that may be anybody's; ours is smaller
SHOWN = 5  # names in health


class Pins:
    """What is to be pinned below one directory, held open."""

    def __init__(self, pin_dir: Path) -> None:
        self._pin_dir = pin_dir
        self._held: dict[Path, tuple[int, int]] = {}  # file descriptor, and the pin's inode
        self._gone: dict[str, str] = {}  # at the last look: "" is there again, or why not
        self._told = ""

    def close(self) -> None:
        """What is pinned stays."""
        for path in list(self._held):
            self.drop(path)

    def hold(self, path: Path) -> None:
        """Whatever is pinned there now. Raises: OSError: nothing is, or we have no room for more open files."""
        fd = bpf.open_pinned(path)
        self.drop(path)
        self._held[path] = fd, _inode(path)

    def drop(self, path: Path) -> None:
        held = self._held.pop(path, None)
        if held is not None:
            os.close(held[0])

    def held(self, path: Path) -> int | None:
        """The file descriptor of what is to be pinned there; it stays ours."""
        found = self._held.get(path)
        return found and found[0]

    def paths(self) -> list[Path]:
        return list(self._held)

    def look(self) -> None:
        """Put back every pin that is gone, or has another in its place."""
        gone = {path: fd for path, (fd, inode) in self._held.items() if _inode(path) != inode}
        self._gone = {str(path.relative_to(self._pin_dir)): self._put_back(path, fd) for path, fd in gone.items()}
        back = [name for name, why in self._gone.items() if not why]
        if back:
            count("drift", len(back), kind="pin")
            log.warning("pins were gone and are put back", pins=sorted(back))
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self._told = f"{len(back)} were gone and are put back at {at}: {_shown(back)}"

    def _put_back(self, path: Path, fd: int) -> str:
        """Why not; "" when it is."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            bpf.pin(fd, path)
        except OSError as problem:
            return str(problem.strerror or problem)
        self._held[path] = fd, _inode(path)
        return ""

    @property
    def state(self) -> tuple[bool, str]:
        """Whether all were there at the last look, and what was not, then or before: for the check "pins"."""
        missing = {name: why for name, why in self._gone.items() if why}
        if missing:
            why = next(iter(missing.values()))
            return False, (
                f"{len(missing)} are gone, and with the next restart what they keep: {_shown(list(missing))}; they "
                f"cannot be put back ({why}): mount the BPF file system again (mount -t bpf bpf /sys/fs/bpf)"
            )
        return not self._gone, self._told


def open_program(pin_dir: Path, name: str) -> int:
    """A file descriptor of a pinned program; the caller closes it."""
    return bpf.open_pinned(pin_dir / "programs" / name)


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def _inode(path: Path) -> int:
    """0: there is none, or it cannot be seen."""
    try:
        return os.stat(path).st_ino  # noqa: PTH116 (a third of what Path.stat costs, for each pin every two seconds)
    except OSError:
        return 0


# A start without pins


def recover(pin_dir: Path) -> list[str]:
    """Pin the maps that programs of ours use and that have no pin, or have another map in their place. Returns their
    names.

    Those count that are attached: at hooks of the network namespace that this thread is in, and by links that are
    pinned here. Where they use several maps of a name, the one that most of them use, and of those the pinned one.
    Programs that are pinned here and attached nowhere count where a map has no pin.
    """
    live = _used_by({*_linked_programs(pin_dir), *_attached_programs()})
    kept: dict[str, Counter[int]] | None = None
    recovered = []
    for name in layouts.MAPS:
        path = map_path(pin_dir, name)
        if path.with_name(path.name + ASIDE).exists():  # a migration was cut off: two maps of the name are in use
            continue
        used = live.get(name)
        if used is None and not path.exists():
            kept = _used_by(_pinned_programs(pin_dir)) if kept is None else kept
            used = kept.get(name)
        if used is None:
            continue
        pinned = _map_number(path)
        number = max(used, key=lambda each: (used[each], each == pinned))  # called at once
        if number != pinned:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(Map(bpf.map_by_id(number))) as found:
                bpf.pin(found.fd, path)
            recovered.append(name)
    if recovered:
        count("drift", len(recovered), kind="pin")
        log.warning("pins of maps were gone or of others, and are put back: programs use the maps", maps=recovered)
    return recovered


def _map_number(path: Path) -> int | None:
    """The kernel's number of the map that is pinned there. None: nothing is, or no map."""
    try:
        fd = bpf.open_pinned(path)
    except OSError:
        return None
    try:
        info = bpf.map_info(fd)
        with closing(Map(bpf.map_by_id(info.id))) as found:  # programs have numbers, too
            return info.id if bpf.identity(found.fd) == bpf.identity(fd) else None
    except OSError:
        return None
    finally:
        os.close(fd)


def _used_by(programs: Iterable[int]) -> dict[str, Counter[int]]:
    """By the name of a map: the kernel's numbers of those that `programs` use, and the steps that they jump to; and how
    many of these use each."""
    used: dict[str, Counter[int]] = {}
    left = set(programs)
    seen: set[int] = set()
    while left:
        program = left.pop()
        seen.add(program)
        with suppress(FileNotFoundError):  # gone just now
            for found in _maps_of(program):
                name, info = found.info.name, found.info
                if name in maps_of_generation() and info.type == MAP_TYPES["prog"]:
                    left |= _programs_in(found) - seen
                shape = MapShape(info.key_bytes, info.value_bytes)
                if name in layouts.MAPS and (shape, info.type) == (layouts.MAPS[name], declared_maps()[name].type):
                    used.setdefault(name, Counter())[info.id] += 1
    return used


def _maps_of(program: int) -> Iterator[Map]:
    """Each is closed when the next one is asked for."""
    fd = bpf.program_by_id(program)
    try:
        numbers = bpf.map_ids(fd)
    finally:
        os.close(fd)
    for number in numbers:
        with closing(Map(bpf.map_by_id(number))) as found:
            yield found


def _programs_in(steps: Map) -> set[int]:
    """The kernel's numbers of the programs that an array for tail calls holds."""
    values = (steps.get(each.to_bytes(4, "little")) for each in range(min(steps.info.max_entries, STEPS_READ)))
    return {int.from_bytes(value, "little") for value in values if value is not None}


def _pinned_programs(pin_dir: Path) -> Iterator[int]:
    for path in (pin_dir / "programs").glob("*"):
        with suppress(OSError):
            fd = bpf.open_pinned(path)
            try:
                yield bpf.program_id(fd)
            finally:
                os.close(fd)


def _linked_programs(pin_dir: Path) -> Iterator[int]:
    for path in (pin_dir / "links").glob("*"):
        with suppress(OSError):
            link = bpf.pinned_link(path)
            if link is not None:
                yield link.program_id


def _attached_programs() -> Iterator[int]:
    with Netlink() as netlink:
        for link in rtnl.list_links(netlink):
            for direction in rtnl.HOOK:
                for each in rtnl.list_attached(netlink, link.index, direction):
                    if each.priority == rtnl.FILTER_PRIORITY and each.handle == rtnl.FILTER_HANDLE:
                        yield each.program_id
