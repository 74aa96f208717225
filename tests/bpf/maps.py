"""Maps made by hand, as another version of the product would have made them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from services.dataplane.kernel import bpf

MAP_CREATE = 0
NO_PREALLOC = 1
LPM_TRIE = 11


def make_map(path: Path, kind: int, key_bytes: int, value_bytes: int, entries: int) -> None:
    """Make a map and pin it at `path`. Source: union bpf_attr, BPF_MAP_CREATE."""
    flags = NO_PREALLOC if kind == LPM_TRIE else 0
    made = bpf.call(MAP_CREATE, struct.pack("=IIIII", kind, key_bytes, value_bytes, entries, flags))
    try:
        bpf.pin(made, path)
    finally:
        os.close(made)
