"""In which order tables are written: computed from what each says that it is written after.

A mistake in that (a table that is unknown, there twice, or after itself by way of others) is an error at the start, not
a map that stays empty.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.dataplane.shapes.layouts import MAPS
from services.dataplane.shapes.table import Table


class Misfit(Exception):
    """Parts do not go together; the text says why. A mistake of ours, found at the start."""


def in_order(tables: Iterable[Table]) -> tuple[Table, ...]:
    """Each after those that it says it is written after, else as given; entries are removed in the reverse order.

    Raises: Misfit.
    """
    left = list(tables)
    names = [table.name for table in left]
    for table in left:
        if table.name not in MAPS:
            raise Misfit(f"there is no map {table.name}: layouts.MAPS says how maps look")
        if names.count(table.name) > 1:
            raise Misfit(f"the table {table.name} is there twice")
        unknown = [name for name in table.after if name not in names]
        if unknown:
            raise Misfit(f"the table {table.name} is written after {', '.join(unknown)}, which nobody has")
    found: list[Table] = []
    done: set[str] = set()
    while left:
        ready = next((table for table in left if done.issuperset(table.after)), None)
        if ready is None:
            raise Misfit(f"tables are written after each other: {', '.join(table.name for table in left)}")
        left.remove(ready)
        found.append(ready)
        done.add(ready.name)
    return tuple(found)
