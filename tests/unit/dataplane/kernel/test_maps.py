"""Writing the maps: whatever fails in between is owed again, and connections are judged by what was written."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Iterable

import pytest

from bus.telemetry import counted
from services.dataplane.model import NodeModel
from services.dataplane.shapes.layouts import MAPS
from services.dataplane.shapes.table import Table
from tests.unit.dataplane.fake_kernel import MemoryMap, MemoryMaps


class FailingMap(MemoryMap):
    """Fails once, before or after its `step`, "set" or "remove"."""

    __slots__ = ("failing", "late")

    def __init__(self, name: str, failing: str, *, late: bool) -> None:
        super().__init__(name)
        self.failing = failing
        self.late = late

    def set_many(self, entries: Iterable[tuple[bytes, bytes]]) -> int:
        self._fail("set", late=False)
        written = super().set_many(entries)
        self._fail("set", late=True)
        return written

    def remove_many(self, keys: Iterable[bytes]) -> int:
        self._fail("remove", late=False)
        removed = super().remove_many(keys)
        self._fail("remove", late=True)
        return removed

    def _fail(self, step: str, *, late: bool) -> None:
        if (self.failing, self.late) == (step, late):
            self.failing = ""
            raise OSError(errno.EFAULT, "bad address")


def entry(name: str, number: int) -> tuple[bytes, bytes]:
    shape = MAPS[name]
    return number.to_bytes(shape.key_bytes, "little"), number.to_bytes(shape.value_bytes, "little")


TABLES = tuple(table.name for table in NodeModel("n").tables)
STEPS = [(step, name) for step in ("set", "remove") for name in TABLES]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("step", "name"), STEPS)
async def test_after_a_failure_at_any_step_connections_are_judged_again_and_the_next_write_is_whole(
    step: str, name: str, late: bool
) -> None:
    maps = MemoryMaps()
    tables = {each: Table(each) for each in TABLES}
    for each, table in tables.items():
        table.put(*entry(each, 1))
    await maps.write(tuple(tables.values()))
    for each, table in tables.items():
        table.delete(entry(each, 1)[0])
        table.put(*entry(each, 2))
    failing = FailingMap(name, step, late=late)
    failing.entries.update(maps.memory[name].entries)
    maps.memory[name] = maps._maps[name] = failing
    before = maps.memory["node_state"].get(bytes(4))
    with pytest.raises(OSError, match="bad address"):
        await maps.write(tuple(tables.values()))
    after = maps.memory["node_state"].get(bytes(4))
    assert after != before
    await maps.write(tuple(tables.values()))
    assert maps.memory["node_state"].get(bytes(4)) != after
    for each, table in tables.items():
        assert maps.memory[each].entries == dict(table.wanted) == dict([entry(each, 2)])


class PoorMap(MemoryMap):
    """Has no memory for some keys, and in a batch does not say how far it came."""

    __slots__ = ("poor",)

    def __init__(self, name: str, poor: set[bytes]) -> None:
        super().__init__(name)
        self.poor = poor

    def set(self, key: bytes, value: bytes) -> None:
        if key in self.poor:
            raise OSError(errno.ENOMEM, "no memory")
        super().set(key, value)

    def set_many(self, entries: Iterable[tuple[bytes, bytes]]) -> int:
        for key, value in entries:
            self.set(key, value)
        return super().set_many(entries)


async def test_what_the_kernel_has_no_memory_for_is_owed_and_the_rest_is_written() -> None:
    maps = MemoryMaps()
    entries = dict(entry("policy", number) for number in range(10))
    poor = PoorMap("policy", set(list(entries)[3:5]))
    maps.memory["policy"] = maps._maps["policy"] = poor
    tables = Table("policy"), Table("endpoints")
    for key, value in entries.items():
        tables[0].put(key, value)
    tables[1].put(*entry("endpoints", 1))
    before = counted("map_full", map="policy")
    await maps.write(tables)
    assert poor.entries == {key: value for key, value in entries.items() if key not in poor.poor}
    assert maps.memory["endpoints"].entries == dict([entry("endpoints", 1)])
    assert counted("map_full", map="policy") - before == 2
    assert maps.no_room == {"policy": "no memory for a map: use less on this node (2 missing)"}
    poor.poor = set()
    await maps.write(tables)
    assert poor.entries == entries
    assert not tables[0].is_dirty and not maps.no_room


class SlowMap(MemoryMap):
    __slots__ = ("begun", "done", "go_on")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.done = False

    def set_many(self, entries: Iterable[tuple[bytes, bytes]]) -> int:
        self.begun.set()
        self.go_on.wait(10)
        self.done = True
        return super().set_many(entries)


async def test_a_write_that_is_cancelled_comes_to_its_end_first() -> None:
    """Else it would go on without the lock that its caller held, and on files that were closed."""
    maps = MemoryMaps()
    slow = SlowMap("services")
    maps.memory["services"] = maps._maps["services"] = slow
    table = Table("services")
    for number in range(1000):
        table.put(*entry("services", number))
    writing = asyncio.ensure_future(maps.write((table,)))
    await asyncio.to_thread(slow.begun.wait, 10)
    writing.cancel()
    await asyncio.sleep(0.01)
    writing.cancel()
    await asyncio.sleep(0.01)
    assert not writing.done()
    slow.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert slow.done
    assert len(slow.entries) == 1000
