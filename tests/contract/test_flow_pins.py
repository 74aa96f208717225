"""The observer opens the maps that the dataplane pins, and reads their rows as the C writes them."""

from __future__ import annotations

from pathlib import Path

from services.dataplane.shapes import layouts
from services.dataplane.shapes.limits import map_path
from services.hubble import ring


def test_pins_are_where_the_dataplane_has_them() -> None:
    there = Path("/pins")
    assert map_path(there, "events") == there / "maps" / ring.EVENTS_PIN
    assert map_path(there, "event_rate") == there / "maps" / ring.RATE_PIN


def test_a_row_of_the_rate_reads_as_the_dataplane_reads_it() -> None:
    raw = bytes(range(ring.RATE.size))
    assert layouts.EventRate.layout.size == ring.RATE.size
    assert layouts.EventRate(*layouts.EventRate.layout.unpack(raw)).lost == ring.RATE.unpack(raw)[2]
