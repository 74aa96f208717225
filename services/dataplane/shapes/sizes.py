"""How many entries each map has room for, and how long connections are kept. Pure.

The maps that traffic fills (connections, masquerade, sockets) are sized by the node's memory, unless they were given a
size; the others have fixed ones. Every name here is that of a number in bpf/include/limits.h: the `define` of a row in
settings/limits.py, which says its default and what sets it. docs/map-sizes.md shows what comes of it.

Source: Cilium's option bpf-map-dynamic-size-ratio: its rule, its bounds and its element sizes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bus.durations import seconds_of
from settings.limits import CT, ENTRIES, MAP_ENTRIES, SWEEP
from settings.rows import KEYS, ROWS


def _default(key: str) -> int:
    found = KEYS[key].default
    assert isinstance(found, int)
    return found


def _seconds(key: str) -> int:
    return int(seconds_of(str(KEYS[key].default)))


RATIO = float(str(KEYS["bpf.mapDynamicSizeRatio"].default))  # of the node's memory, that the sized maps may take
MOST = ENTRIES.most  # entries that a map can be given
POLICY_ENTRIES = _default("bpf.policyMapMax")  # of one endpoint
LB_ENTRIES = _default("bpf.lbMapMax")
FULL_POLICIES = 64  # as many endpoints with all the entries that they may have fill the node's policy map
NAT_SHARE = 2, 3  # of the connections that may be there, TCP and others, as many may be masqueraded


@dataclass(frozen=True, slots=True)
class Sized:
    """A map that is sized by memory. `element_bytes` is the rule's figure, not what an entry of ours takes."""

    entries: int  # when sizing is off; also its weight against the others
    element_bytes: int
    least: int


SIZED: Mapping[str, Sized] = {
    "CT_TCP_MAX": Sized(524_288, 94, 131_072),
    "CT_ANY_MAX": Sized(262_144, 94, 65_536),
    "NAT_MAX": Sized(524_288, 94, 131_072),
    "NEIGH_MAX": Sized(524_288, 24, 131_072),  # no map of ours: it only has its share in the rule
    "SOCK_REVERSE_MAX": Sized(262_144, 48, 65_536),
}
HELM: Mapping[str, str] = {row.define: row.key for row in ROWS if row.into}
"""The chart's key for each number; PLEXUS_<NAME> is what a node reads."""

NAMES = tuple(row.define for row in ROWS if row.into == MAP_ENTRIES)
FIXED: Mapping[str, int] = {
    **{name: _default(HELM[name]) for name in NAMES if KEYS[HELM[name]].default is not None},
    "POLICY_MAX": FULL_POLICIES * POLICY_ENTRIES,
    "SERVICES_MAX": LB_ENTRIES,
    "BACKENDS_MAX": 4 * LB_ENTRIES,
}
"""Entries of the other maps when nobody asks."""

SECONDS: Mapping[str, int] = {row.define: _seconds(row.key) for row in ROWS if row.into == CT}
"""How long a connection is kept after its last packet."""

SWEEP_SECONDS_LEAST = SWEEP.least  # between two sweeps of what is over
SWEEP_SECONDS_MOST = float(_seconds("conntrackGCMaxInterval"))

MAKES_LARGER: Mapping[str, str] = {name: row.key for row in ROWS for name in row.maps}
"""The key that makes a map larger, where it is not the number's own."""


class SizeError(ValueError):
    """A map cannot be of the size that was asked for; the text says what would be right."""


def entries_by_memory(memory_bytes: int, ratio: float = RATIO) -> dict[str, int]:
    """Entries of the sized maps by the rule, each within its bounds. `ratio` 0: sizing is off.

    Each map's share of `ratio * memory_bytes` is in proportion to its entries when sizing is off.
    """
    if not ratio:
        found = {name: each.entries for name, each in SIZED.items()}
    else:
        room_bytes = int(memory_bytes * ratio)
        total_bytes = sum(each.entries * each.element_bytes for each in SIZED.values())
        found = {
            name: min(max(each.entries * room_bytes // total_bytes, each.least), MOST) for name, each in SIZED.items()
        }
    return found | {"NAT_MAX": min(found["NAT_MAX"], nat_most(found))}


def nat_most(entries: Mapping[str, int]) -> int:
    """The most mappings that so many connections may have. More would be of use to nobody."""
    share, of = NAT_SHARE
    return (entries["CT_TCP_MAX"] + entries["CT_ANY_MAX"]) * share // of


def map_sizes(
    memory_bytes: int,
    *,
    ratio: float = RATIO,
    asked: Mapping[str, int] | None = None,
    policy_entries: int = POLICY_ENTRIES,
    lb_entries: int = LB_ENTRIES,
) -> dict[str, int]:
    """Entries of every map, by name.

    Args:
        memory_bytes: the node's.
        asked: sizes that were given; the rule decides on the other maps only.
        policy_entries: of one endpoint; the node's map has room for `FULL_POLICIES` of that.
        lb_entries: Services; of backends, which stand in the map once for each port of a Service, four times as many.
    Raises: SizeError: more mappings were asked for than there may be.
    """
    asked = asked or {}
    found = {**entries_by_memory(memory_bytes, ratio), **FIXED}
    found |= {
        "POLICY_MAX": FULL_POLICIES * policy_entries,
        "SERVICES_MAX": lb_entries,
        "BACKENDS_MAX": min(4 * lb_entries, MOST),
    }
    found |= asked
    most = nat_most(found)
    if asked.get("NAT_MAX", 0) > most:
        raise SizeError(
            f"{found['NAT_MAX']} masqueraded connections are more than two thirds of {found['CT_TCP_MAX']} TCP and "
            f"{found['CT_ANY_MAX']} other connections: bpf.natMax is at most {most}, or raise bpf.ctTcpMax"
        )
    found["NAT_MAX"] = min(found["NAT_MAX"], most)
    return {name: found[name] for name in NAMES}
