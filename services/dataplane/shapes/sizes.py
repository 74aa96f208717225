"""How many entries each map has room for, and how long connections are kept. Pure.

The maps that traffic fills (connections, masquerade, sockets) are sized by the node's memory, unless they were given a
size; the others have fixed ones. Every name here is that of a number in bpf/include/limits.h, and PLEXUS_<NAME> is the
variable that sets it. docs/map-sizes.md shows what comes of it.

Source: Cilium's option bpf-map-dynamic-size-ratio: its rule, its bounds and its element sizes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RATIO = 0.0025  # the share of the node's memory that the sized maps may take
LEAST, MOST = 1 << 10, 1 << 24  # entries that a map can be given
POLICY_ENTRIES, POLICY_ENTRIES_LEAST, POLICY_ENTRIES_MOST = 16_384, 256, 65_536  # of one endpoint
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
FIXED: Mapping[str, int] = {
    "CHOICES_MAX": 65_536,
    "SOCK_CHOICES_MAX": 65_536,
    "FRAGMENTS_MAX": 8_192,
    "ENDPOINTS_MAX": 65_536,
    "IPCACHE_MAX": 512_000,
    "POLICY_MAX": FULL_POLICIES * POLICY_ENTRIES,
    "NAMED_PORTS_MAX": 65_536,
    "SERVICES_MAX": 65_536,
    "BACKENDS_MAX": 262_144,
    "MASQ_EXCLUDE_MAX": 16_384,
}
NAMES = tuple(name for name in (*SIZED, *FIXED) if name != "NEIGH_MAX")

SECONDS: Mapping[str, int] = {
    "CT_TCP_SECONDS": 8_000,
    "CT_TCP_SYN_SECONDS": 60,
    "CT_TCP_FIN_SECONDS": 10,
    "CT_ANY_SECONDS": 60,
}
"""How long a connection is kept after its last packet."""

SWEEP_SECONDS_LEAST, SWEEP_SECONDS_MOST = 10.0, 12 * 3600.0  # between two sweeps of what is over

OURS = (
    "CHOICES",
    "SOCK_CHOICES",
    "ENDPOINTS",
    "IPCACHE",
    "POLICY",
    "NAMED_PORTS",
    "MASQ_EXCLUDE",
)  # maps for which the chart has no key

HELM: Mapping[str, str] = {
    "CT_TCP_MAX": "bpf.ctTcpMax",
    "CT_ANY_MAX": "bpf.ctAnyMax",
    "NAT_MAX": "bpf.natMax",
    "SOCK_REVERSE_MAX": "extraConfig.bpf-sock-rev-map-max",
    "FRAGMENTS_MAX": "extraConfig.bpf-fragments-map-max",
    "SERVICES_MAX": "extraConfig.bpf-lb-service-map-max",
    "BACKENDS_MAX": "extraConfig.bpf-lb-service-backend-map-max",
    **{f"{name}_MAX": f"extraConfig.plexus-{name.lower().replace('_', '-')}-max" for name in OURS},
    "CT_TCP_SECONDS": "extraConfig.bpf-ct-timeout-regular-tcp",
    "CT_TCP_SYN_SECONDS": "extraConfig.bpf-ct-timeout-regular-tcp-syn",
    "CT_TCP_FIN_SECONDS": "extraConfig.bpf-ct-timeout-regular-tcp-fin",
    "CT_ANY_SECONDS": "extraConfig.bpf-ct-timeout-regular-any",
}
"""The chart's key for each number; PLEXUS_<NAME> is what a node reads."""


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
    lb_entries: int = FIXED["SERVICES_MAX"],
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
