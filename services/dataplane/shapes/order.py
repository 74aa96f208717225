"""In which order one write brings policies and the numbers of networks into their maps. Pure.

A network that policies name has a number, and a row by which addresses bear it. Between two states of both maps no
address is to be allowed what neither allows, nor denied what both allow. So what denies is there before the rows, and
goes after them. What allows somebody that addresses bear now changes after the rows have come, and goes before they go:
else an address would be allowed as what it is no more, or not yet. What allows a network whose row comes or goes is
there before it, as is what allows pods and nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from bus.labels import IDENTITY_MAX
from services.dataplane.shapes.layouts import (
    FLAG_ENFORCE_EGRESS,
    FLAG_ENFORCE_INGRESS,
    NO_POLICY,
    POLICY_DENIES,
    EndpointEntry,
)
from services.dataplane.shapes.limits import limit
from services.dataplane.shapes.table import Table

Owed = tuple[Table, dict[bytes, bytes], list[bytes]]
"""What is to be written of a table, and what is to go."""
Step = tuple[str, dict[bytes, bytes], list[bytes]]
"""A part of that, of one map."""

POLICY, IPCACHE = "policy", "ipcache"
AGGREGATES = frozenset(map(limit, ("AGGREGATE_CLUSTER", "AGGREGATE_WORLD", "AGGREGATE_REMOTE_NODE")))
FLAGS_AT = 10  # in a value of the policy map
PEER = slice(8, 12)  # in a key of it
IDENTITY = slice(0, 4)  # in a value of the ipcache


def denies(value: bytes) -> bool:
    """An entry of the policy map does."""
    return bool(value[FLAGS_AT] & POLICY_DENIES)


def steps(owed: Iterable[Owed], held: Callable[[str, bytes], bytes | None]) -> list[Step]:
    """What to write one after the other, and what to remove in the reverse order: as the tables are given, but a part
    of the policies only after all but what is last.

    Args:
        owed: in the order in which their tables are written.
        held: what a map has now.
    """
    outer: list[Step] = []
    inner: list[Step] = []
    last: list[Step] = []
    moving = _moving(owed := list(owed), held)
    for table, upserts, gone in owed:
        if table.name != POLICY:
            (last if table.last else outer).append((table.name, upserts, gone))
            continue
        first = {key: value for key, value in upserts.items() if _is_outer(key, value, moving)}
        late = {key for key in gone if (value := held(POLICY, key)) and _is_outer(key, value, moving)}
        outer.append((POLICY, first, list(late)))
        rest = {key: value for key, value in upserts.items() if key not in first}
        inner.append((POLICY, rest, [key for key in gone if key not in late]))
    return [*outer, *inner, *last]


def _moving(owed: list[Owed], held: Callable[[str, bytes], bytes | None]) -> frozenset[int]:
    """The numbers of networks whose rows come or go."""
    found: list[bytes] = []
    for table, upserts, gone in owed:
        if table.name == IPCACHE:
            found += [value for key, value in upserts.items() if held(IPCACHE, key) is None]
            found += [value for key in gone if (value := held(IPCACHE, key)) is not None]
    numbers = (int.from_bytes(value[IDENTITY], "little") for value in found)
    return frozenset(number for number in numbers if number > IDENTITY_MAX)


def _is_outer(key: bytes, value: bytes, moving: frozenset[int]) -> bool:
    """The entry of the policy map is there before rows of the ipcache, and goes after them."""
    peer = int.from_bytes(key[PEER], "little")
    return denies(value) or peer in moving or not (peer > IDENTITY_MAX or peer in AGGREGATES)


def shut(endpoint: bytes) -> bytes:
    """The pod's entry, closed to all but its node."""
    flags = FLAG_ENFORCE_INGRESS | FLAG_ENFORCE_EGRESS
    return replace(EndpointEntry.unpack(endpoint), policy=NO_POLICY, flags=flags).pack()
