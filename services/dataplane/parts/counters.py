"""Packets and bytes by reason, as programs count them in the map `counters`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bus.telemetry import Labels
from services.dataplane.part import Entries, Maps, Part, Row, Shows
from services.dataplane.shapes.layouts import DIRECTIONS, Counter
from services.dataplane.shapes.reasons import DROP_MIN, reason_name


def counted(counters: Entries) -> dict[tuple[int, int], tuple[int, int]]:
    """(reason, direction) -> (packets, bytes), over all CPUs, of what was ever counted."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for key, raw in counters.items():
        packets, octets = map(sum, zip(*Counter.layout.iter_unpack(raw), strict=True))
        if packets:
            index = int.from_bytes(key, "little")
            found[index // 2, index % 2] = (packets, octets)
    return found


def dropped(counters: Entries) -> Mapping[Labels, int]:
    """Packets by reason and direction, as a metric has them."""
    return {
        (("direction", DIRECTIONS[direction]), ("reason", reason_name(reason))): packets
        for (reason, direction), (packets, _) in counted(counters).items()
        if reason >= DROP_MIN
    }


def _rows(maps: Maps, now: int) -> Iterator[Row]:
    for (reason, direction), (packets, octets) in sorted(counted(maps["counters"]).items()):
        yield {
            "reason": reason_name(reason),
            "reason_code": reason,
            "direction": DIRECTIONS[direction],
            "packets": packets,
            "bytes": octets,
        }


class Counters(Part):
    """Shows them."""

    by_rules = True  # rules count
    shows = (Shows("counters", "Packets and bytes by reason.", _rows),)
