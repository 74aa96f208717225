"""Real maps, looked at: as the kernel hands their entries out, and after someone else has touched them."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bus.service import Service, Settings
from bus.testing import Hub
from services.dataplane.keep.audit import Audit, mark_of
from services.dataplane.kernel.maps import Maps
from services.dataplane.shapes.layouts import POLICY_STATIC_BITS, in_words
from services.dataplane.shapes.table import Table
from tests.bpf.own_maps import TABLES, pin_all

BPFFS = Path("/sys/fs/bpf")
MANY = 9000  # more than two batches of a system call
TRIES = {"policy": POLICY_STATIC_BITS + 24, "ipcache": 128, "masq_exclude": 128, "source_ranges": 160}


@pytest.fixture
def maps() -> Iterator[Maps]:
    """A node's maps with room enough."""
    if not os.path.ismount(BPFFS):
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPFFS)], check=True)
    pin_dir = BPFFS / f"plexus-test-audit-{os.getpid()}"
    try:
        pin_all(pin_dir, dict.fromkeys(TABLES, 2 * MANY))
        with closing(Maps(pin_dir)) as found:
            yield found
    finally:
        shutil.rmtree(pin_dir, ignore_errors=True)


def key_of(maps: Maps, name: str, number: int) -> bytes:
    size = maps[name].info.key_bytes
    if name in TRIES:
        return TRIES[name].to_bytes(4, "little") + number.to_bytes(size - 4, "big")
    return number.to_bytes(size, "big")


class Writer:
    """As a node: writes its tables, and has an audit of them."""

    is_whole = True

    def __init__(self, maps: Maps, chance: random.Random) -> None:
        self.maps = maps
        self.service = Service("dataplane", Settings(), Hub().bus())
        self.tables = {name: Table(name) for name in TABLES}
        for name, table in self.tables.items():
            for number in range(MANY):
                table.put(key_of(maps, name, number), chance.randbytes(maps[name].value_bytes))
        self.audit = Audit(maps, self.tables.values(), asyncio.Lock(), self)

    async def write(self) -> None:
        await self.maps.write(tuple(self.tables.values()))

    async def realised(self) -> None:
        """Nobody waits."""


async def test_every_deed_on_every_map_is_found_named_and_put_back(maps: Maps) -> None:
    chance = random.Random(5)
    node = Writer(maps, chance)
    await node.write()
    assert await node.audit.look() == 0
    for name, table in node.tables.items():
        before, mark = maps.dump(name), mark_of(maps[name])
        assert mark_of(maps[name]) == mark, "entries come in one order while nobody writes"
        keys = [key_of(maps, name, chance.randrange(MANY)) for _ in range(2)]
        for deed in ("removed", "changed", "added"):
            key = key_of(maps, name, MANY) if deed == "added" else keys[deed == "changed"]
            if deed == "removed":
                assert maps[name].remove(key)
            else:
                value = before.get(key, bytes(maps[name].value_bytes))
                maps[name].set(key, bytes([value[0] ^ 1]) + value[1:])
            await node.audit.run()
            assert maps.dump(name) == before == dict(table.wanted)
            assert node.audit.differing[name].keys == (in_words(name, key),)
            assert node.audit.differing[name].entries == 1
        assert await node.audit.look() == 0


async def test_what_the_node_itself_writes_while_a_look_goes_on_is_no_drift(maps: Maps) -> None:
    node = Writer(maps, random.Random(6))
    await node.write()
    looking = asyncio.create_task(node.audit.look())
    table, number = node.tables["ipcache"], 0
    while not looking.done():
        async with node.audit._writing:
            table.put(key_of(maps, "ipcache", number), number.to_bytes(maps["ipcache"].value_bytes, "big"))
            await node.write()
        number += 1
        await asyncio.sleep(0)
    assert number > 1 and looking.result() == 0
    assert not node.audit.differing
