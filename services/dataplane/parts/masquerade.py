"""Which packets get the address of the node that they leave the cluster by, as far as it is said by a table. Pure.

The ports that they get are in shapes/ports.py, the rewriting in bpf/include/nat.h.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.dataplane.part import Part
from services.dataplane.shapes.layouts import Prefix
from services.dataplane.shapes.table import Table

EXCLUDED = b"\x01"


class Masquerade(Part):
    """The map `masq_exclude`: destinations that see pods' own addresses, and no others.

    Programs go by it from their first packet on, so it is written before them (load/datapath.py).

    Args:
        not_masqueraded: CIDRs of either family, "10.0.0.0/8".
    """

    def __init__(self, not_masqueraded: Iterable[str]) -> None:
        super().__init__()
        self.table = Table("masq_exclude")
        self.tables = (self.table,)
        for cidr in not_masqueraded:
            self.table.put(Prefix.of(cidr).pack(), EXCLUDED)
