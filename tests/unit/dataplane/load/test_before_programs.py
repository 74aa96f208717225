"""What programs go by from their first packet on is in its map before they are."""

from __future__ import annotations

from services.dataplane.load.datapath import write_before_programs
from services.dataplane.model import NodeModel
from services.dataplane.shapes.layouts import IpcacheKey, Prefix
from services.dataplane.shapes.table import Table
from tests.unit.dataplane.fake_kernel import MemoryMaps

EXCLUDED = ("10.0.0.0/8", "fd00::/8")


async def test_what_the_settings_say_is_there_and_nothing_else_is_touched() -> None:
    maps = MemoryMaps()
    stale, other = Prefix.of("192.0.2.0/24").pack(), IpcacheKey("10.0.1.7").pack()
    maps["masq_exclude"].set(stale, b"\x01")
    maps["ipcache"].set(other, bytes(24))
    await write_before_programs(maps, NodeModel("n", not_masqueraded=EXCLUDED).tables)
    assert maps.dump("masq_exclude").keys() == {Prefix.of(cidr).pack() for cidr in EXCLUDED}
    assert maps.dump("ipcache").keys() == {other}, "what was here before is known only when all has been heard"


async def test_every_table_that_says_so_is_written() -> None:
    maps = MemoryMaps()
    tables = (Table("backends", before_programs=True), Table("services", after=("backends",)))
    for table in tables:
        table.put(bytes(maps[table.name].info.key_bytes), bytes(maps[table.name].info.value_bytes))
    await write_before_programs(maps, tables)
    assert (len(maps.dump("backends")), len(maps.dump("services"))) == (1, 0)
