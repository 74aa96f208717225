"""The rows that say how much a node's maps hold, and for how long: sizes and times.

docs/map-sizes.md says what each limit costs; services/dataplane/shapes/sizes.py decides on what was not given.
"""

from __future__ import annotations

from settings.readers import Duration, Number, Reader, Share
from settings.row import Row

NODE = ("dataplane",)
ENTRIES = Number(1 << 10, 1 << 24)  # that a map can be given
POLICY = Number(256, 65_536)  # of one endpoint
CT_SECONDS = Duration(1, 1 << 31, whole=True)  # a connection's time is kept in 32 bits
SWEEP = Duration(10, 7 * 86_400)  # from one to the next: more often tells no more and costs a CPU

MAP_ENTRIES, CT = "map_entries", "ct_seconds"  # fields of the node's settings that gather many rows


def size(define: str, key: str, text: str, default: int | None = None, published: str = "") -> Row:
    """Entries of one map; without `default` it goes by the node's memory, or by another row."""
    return Row(
        key=key, variable=f"PLEXUS_{define}", read=ENTRIES, default=default, services=NODE, unit="entries",
        define=define, into=MAP_ENTRIES, published=published, text=text,
    )  # fmt: skip


def kept(define: str, key: str, default: str, text: str) -> Row:
    """How long a connection is kept after its last packet."""
    return Row(
        key=key, variable=f"PLEXUS_{define}", read=CT_SECONDS, default=default, services=NODE, unit="duration",
        define=define, into=CT, text=KEPT + text,
    )  # fmt: skip


def without_effect(key: str, read: Reader, why: str, published: str = "") -> Row:
    """Taken because the chart has it."""
    return Row(key=key, read=read, inert=True, published=published, text=f"taken, and changes nothing: {why}")


KEPT = "how long a connection is kept after its last packet: "
ONE_ENTRY = "a connection to a Service is one like any other"

SIZES = (
    Row(
        key="bpf.mapDynamicSizeRatio",
        variable="PLEXUS_MAP_DYNAMIC_SIZE_RATIO",
        read=Share(),
        default="0.0025",
        services=NODE,
        text="share of the node's memory for the maps that traffic fills; 0 turns it off",
    ),
    size("CT_TCP_MAX", "bpf.ctTcpMax", "TCP connections; without it by memory", published="1M (its agent: 512k)"),
    size("CT_ANY_MAX", "bpf.ctAnyMax", "other connections; without it by memory", published="256k"),
    size("NAT_MAX", "bpf.natMax", "masqueraded connections; without it by memory", published="512k"),
    size(
        "SOCK_REVERSE_MAX",
        "extraConfig.bpf-sock-rev-map-max",
        "what sockets believe that they are connected to; without it by memory",
        published="256k",
    ),
    Row(
        key="bpf.policyMapMax",
        variable="PLEXUS_POLICY_MAP_MAX",
        read=POLICY,
        default=16_384,
        services=NODE,
        unit="entries",
        maps=("policy",),
        published="16k",
        text="policy of one endpoint, 256 to 65536; pods of one identity share it",
    ),
    Row(
        key="bpf.lbMapMax",
        variable="PLEXUS_LB_MAP_MAX",
        read=ENTRIES,
        default=65_536,
        services=NODE,
        unit="entries",
        maps=("services", "backends", "living"),
        published="64k with their backends",
        text="Service frontends; four times as many backends, as one stands there once for each frontend",
    ),
    without_effect("bpf.neighMax", ENTRIES, "neighbours are in the kernel's own table", published="512k"),
    without_effect("bpf.nodeMapMax", ENTRIES, "there is no such map", published="16k"),
    size("SERVICES_MAX", "extraConfig.bpf-lb-service-map-max", "Service frontends; without it `bpf.lbMapMax`"),
    size(
        "BACKENDS_MAX",
        "extraConfig.bpf-lb-service-backend-map-max",
        "Service backends, and the same as each Service's own; without it four times `bpf.lbMapMax`",
        published="64k",
    ),
    size(
        "FRAGMENTS_MAX",
        "extraConfig.bpf-fragments-map-max",
        "datagrams that come in IP fragments",
        default=8_192,
        published="8k",
    ),
    size("ENDPOINTS_MAX", "extraConfig.plexus-endpoints-max", "addresses of endpoints", 65_536, published="64k"),
    size("IPCACHE_MAX", "extraConfig.plexus-ipcache-max", "addresses of the cluster", 512_000, published="512k"),
    size("POLICY_MAX", "extraConfig.plexus-policy-max", "policy of the node; without it 64 times `bpf.policyMapMax`"),
    size("NAMED_PORTS_MAX", "extraConfig.plexus-named-ports-max", "addresses and ports that policies name", 65_536),
    size(
        "SOURCE_RANGES_MAX",
        "extraConfig.bpf-lb-source-range-map-max",
        "networks that a Service lets in from outside, or does not",
        default=65_536,
        published="64k",
    ),
    size("MASQ_EXCLUDE_MAX", "extraConfig.plexus-masq-exclude-max", "never masqueraded", 16_384, published="16k"),
    size(
        "AFFINITY_MAX",
        "extraConfig.bpf-lb-affinity-map-max",
        "clients that a Service wants to come back to the same backend",
        default=65_536,
        published="64k",
    ),
    size("CHOICES_MAX", "extraConfig.plexus-choices-max", "backends chosen packet by packet", 65_536),
    size("SOCK_CHOICES_MAX", "extraConfig.plexus-sock-choices-max", "backends of unconnected UDP sockets", 65_536),
    kept("CT_TCP_SECONDS", "extraConfig.bpf-ct-timeout-regular-tcp", "8000s", "TCP, answered"),
    kept("CT_TCP_SYN_SECONDS", "extraConfig.bpf-ct-timeout-regular-tcp-syn", "60s", "TCP, not answered yet"),
    kept(
        "CT_TCP_FIN_SECONDS", "extraConfig.bpf-ct-timeout-regular-tcp-fin", "10s", "TCP, finished by both ends or reset"
    ),
    kept("CT_ANY_SECONDS", "extraConfig.bpf-ct-timeout-regular-any", "60s", "everything else"),
    without_effect("extraConfig.bpf-ct-timeout-service-tcp", CT_SECONDS, ONE_ENTRY),
    without_effect("extraConfig.bpf-ct-timeout-service-tcp-grace", CT_SECONDS, ONE_ENTRY),
    without_effect("extraConfig.bpf-ct-timeout-service-any", CT_SECONDS, ONE_ENTRY),
    Row(
        key="conntrackGCInterval",
        variable="PLEXUS_CONNTRACK_GC_INTERVAL",
        read=SWEEP,
        services=NODE,
        unit="duration",
        text="from one sweep of what is over to the next, 10 s to 7 days; without it by what the last one found",
    ),
    Row(
        key="conntrackGCMaxInterval",
        variable="PLEXUS_CONNTRACK_GC_MAX_INTERVAL",
        read=SWEEP,
        default="12h",
        services=NODE,
        unit="duration",
        text="the most of it",
    ),
)
