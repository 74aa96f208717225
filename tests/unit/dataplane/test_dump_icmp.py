"""The policy map in words: of ICMP the type is shown, not the number that stands for it in a key."""

from __future__ import annotations

import pytest

from bus.messages.dataplane import Dump
from services.dataplane.dump import dump
from services.dataplane.model import NodeModel
from services.dataplane.shapes.layouts import PolicyMapEntry, PolicyMapKey
from tests.unit.dataplane.fake_kernel import MemoryMaps

ECHO_REQUEST, ECHO_REQUEST6 = 8, 128


@pytest.mark.parametrize(
    ("protocol", "port", "bits", "shown"),
    [
        (1, ECHO_REQUEST + 1, 24, "8"),
        (1, 0 + 1, 24, "0"),
        (58, ECHO_REQUEST6 + 1, 24, "128"),
        (58, 0, 8, "any"),
        (6, 80, 24, "80"),
        (6, 8080, 22, "8080-8083"),
    ],
)
def test_an_icmp_type_is_shown_as_it_is_written(protocol: int, port: int, bits: int, shown: str) -> None:
    maps = MemoryMaps()
    key, entry = PolicyMapKey(7, 1000, 0, protocol, port, bits), PolicyMapEntry(0, 0, 0, 0, bits)
    maps["policy"].set(key.pack(), entry.pack())
    [row] = dump("n", Dump(table="policy"), maps, NodeModel("n")).rows
    assert row["port"] == shown
