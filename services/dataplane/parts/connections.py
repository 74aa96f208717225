"""Connections that programs follow: they alone write the maps `ct_tcp` and `ct_any`. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from bus.addresses import with_port
from services.dataplane.part import Maps, Part, Row, Shows
from services.dataplane.shapes.layouts import CT_FLAGS, CT_MAPS, TICK_NS, WAYS, Connection, ConnectionKey
from services.dataplane.shapes.protocols import WITH_TYPES, name_of
from services.dataplane.shapes.substitutes import own_port


def _rows(maps: Maps, now: int) -> Iterator[Row]:
    for key, value in chain.from_iterable(maps[name].items() for name in CT_MAPS):
        k, v = ConnectionKey.unpack(key), Connection.unpack(value)
        if v.expires < now:  # as good as absent: the next packet or the next insertion takes its place
            continue
        low, high = (k.low, k.low_port), (k.high, k.high_port)
        origin, other = (low, high) if v.flags & 0x01 else (high, low)
        if k.protocol in WITH_TYPES:
            other = (other[0], 0)  # it has no port, nor an identifier of its own
        yield {
            "protocol": name_of(k.protocol),
            "source": with_port(*origin),
            "destination": with_port(*other),
            "service": with_port(v.service, v.service_port) if v.flags & 0x20 else "",
            "substitute_for": own_port(origin[1], v.substitute) if v.substitute else 0,
            "masquerade_port": v.nat_port,
            "expires_seconds": round((v.expires - now) * TICK_NS / 1e9),
            "flags": [name for bit, name in CT_FLAGS.items() if v.flags & bit],
            "way": WAYS[v.origin_way],
            "reply_way": WAYS[v.reply_way],
        }


class Connections(Part):
    """Shows them."""

    by_rules = True  # the host follows them
    shows = (Shows("ct", "Connections.", _rows),)
