"""Maps made by a test itself, of any size, without a program that uses them."""

from __future__ import annotations

import struct
from pathlib import Path

from services.dataplane.kernel import bpf
from services.dataplane.kernel.bpf import Map
from services.dataplane.model import NodeModel
from services.dataplane.shapes import layouts, limits

MAP_CREATE = 0
NO_PREALLOC = 1
LRU_HASH, LPM_TRIE, HASH = (limits.MAP_TYPES[name] for name in ("lru_hash", "lpm_trie", "hash"))

TABLES = tuple(table.name for table in NodeModel("n").tables)
"""Maps that the node fills, in the order in which they are written."""


def make(kind: int, key_bytes: int, value_bytes: int, entries: int) -> Map:
    flags = NO_PREALLOC if kind in (HASH, LPM_TRIE) else 0
    return Map(bpf.call(MAP_CREATE, struct.pack("=IIIII", kind, key_bytes, value_bytes, entries, flags)))


def pin_all(pin_dir: Path, sizes: dict[str, int], default: int = 64) -> None:
    """Every map of a node, with so many entries, pinned as the loader pins them."""
    (pin_dir / "maps").mkdir(parents=True)
    for name, declared in limits.declared_maps().items():
        shape = layouts.MAPS[name]
        size = int(declared.size) if declared.size.isdigit() else sizes.get(name, default)
        if declared.type == limits.MAP_TYPES["ringbuf"]:
            size = 4096
        made = make(declared.type, shape.key_bytes, shape.value_bytes, size)
        try:
            bpf.pin(made.fd, limits.map_path(pin_dir, name))
        finally:
            made.close()
