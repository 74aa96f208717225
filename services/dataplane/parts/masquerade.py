"""Which packets get the address of the node that they leave the cluster by, as far as it is said by a table. Pure.

The ports that they get are in shapes/ports.py, the rewriting in bpf/include/nat.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bus.addresses import with_port
from services.dataplane.part import Maps, Part, Row, Shows
from services.dataplane.shapes.layouts import NatEntry, NatKey, Prefix
from services.dataplane.shapes.protocols import name_of
from services.dataplane.shapes.table import Table

EXCLUDED = b"\x01"


class Masquerade(Part):
    """The map `masq_exclude`: destinations that see pods' own addresses, and no others.

    Without it a packet to such a destination would be masqueraded, and its connection stay so.

    Args:
        not_masqueraded: CIDRs of either family, "10.0.0.0/8".
    """

    by_rules = True

    def __init__(self, not_masqueraded: Iterable[str]) -> None:
        super().__init__()
        self.table = Table("masq_exclude", before_programs=True)
        self.tables = (self.table,)
        self.shows = (Shows("nat", "Translations of addresses.", _rows),)
        for cidr in not_masqueraded:
            self.table.put(Prefix.of(cidr).pack(), EXCLUDED)


def _rows(maps: Maps, now: int) -> Iterator[Row]:
    for key, value in maps["nat"].items():
        k, v = NatKey.unpack(key), NatEntry.unpack(value)
        whose = with_port(v.pod, v.pod_port)
        is_relayed = bool(v.flags & NatEntry.RELAYED)
        yield {
            "protocol": name_of(k.protocol),
            "pod": "" if is_relayed else whose,
            "client": whose if is_relayed else "",
            "node_address": with_port(k.node, k.node_port),
            "remote": with_port(k.remote, k.remote_port),
        }
