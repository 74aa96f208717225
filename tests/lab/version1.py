"""A node's maps as an earlier version of the product would have left them, made of those that are there: for upgrades.

The running programs go on with the maps that they have; only what the next start finds under the pinned names is of
the earlier version. Version 1, which is made of version 2, knew IPv4 alone, so what speaks of IPv6 is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from services.dataplane.kernel.bpf import Map
from services.dataplane.load import layouts_v1, layouts_v2
from services.dataplane.load.layouts_v1 import MAPPED, NONE, OldMap
from tests.bpf.maps import make_map
from tests.lab import version2

Entry = tuple[bytes, bytes]
HASH, LRU, LPM = 1, 9, 11


class NotOfVersion1(Exception):
    """It speaks of IPv6."""


def narrow(address: bytes) -> bytes:
    """An address in 4 bytes; the inverse of layouts_v1.wide."""
    if address == bytes(16):
        return NONE
    if not address.startswith(MAPPED):
        raise NotOfVersion1
    return address[12:]


def two_ends(key: bytes) -> bytes:
    return narrow(key[:16]) + narrow(key[16:32]) + key[32:]


def endpoint(key: bytes, value: bytes) -> Entry:
    return narrow(key), value


def ipcache(key: bytes, value: bytes) -> Entry:
    bits = int.from_bytes(key[:4], "little") - 8 * len(MAPPED)
    if bits < 0:
        raise NotOfVersion1
    return bits.to_bytes(4, "little") + narrow(key[4:]), value[:4] + narrow(value[8:])


def connection(key: bytes, value: bytes) -> Entry:
    return two_ends(key), value[:12] + bytes(8) + narrow(value[28:44]) + value[44:]


def translation(key: bytes, value: bytes) -> Entry:
    return two_ends(key), narrow(value[:16]) + value[16:]


def service(key: bytes, value: bytes) -> Entry:
    return narrow(key[:16]) + key[16:], value


def backend(key: bytes, value: bytes) -> Entry:
    return key, narrow(value[:16]) + value[16:]


def sock_reverse(key: bytes, value: bytes) -> Entry:
    return key[:8] + narrow(key[8:24]) + key[24:26] + bytes(2), narrow(value[:16]) + value[16:]


WAYS_BACK: dict[str, tuple[int, Callable[[bytes, bytes], Entry]]] = {  # by its name then: its type, and how
    "endpoints": (HASH, endpoint),
    "ipcache": (LPM, ipcache),
    "connections": (LRU, connection),
    "nat": (LRU, translation),
    "choices": (LRU, translation),
    "services": (HASH, service),
    "backends": (HASH, backend),
    "sock_reverse": (LRU, sock_reverse),
}


def turn_back(maps: Path, version: int) -> dict[str, int]:
    """Pin maps of `version`, 1 or 2, in the place of this version's. Returns entries by map."""
    taken = _turn_back(maps, layouts_v2.MAPS, version2.WAYS_BACK)
    return taken if version == 2 else taken | _turn_back(maps, layouts_v1.MAPS, WAYS_BACK)


def _turn_back(
    maps: Path, earlier: Mapping[str, OldMap], ways: Mapping[str, tuple[int, Callable[[bytes, bytes], Entry]]]
) -> dict[str, int]:
    taken = {}
    for name, (kind, convert) in ways.items():
        old, entries, room = earlier[name], dict[bytes, bytes](), 0
        for file in old.targets:
            with closing(Map.open(maps / file)) as found:
                room += found.info.max_entries
                entries |= converted(found, convert)
        make_map(maps / name, kind, old.key_bytes, old.value_bytes, room)
        with closing(Map.open(maps / name)) as made:
            assert made.set_many(entries.items()) == len(entries)
        for file in old.targets:
            (maps / file).unlink()
        taken[name] = len(entries)
    return taken


def converted(found: Map, convert: Callable[[bytes, bytes], Entry]) -> dict[bytes, bytes]:
    entries = {}
    for key, value in found.items():
        try:
            narrowed, narrowed_value = convert(key, value)
        except NotOfVersion1:
            continue
        entries[narrowed] = narrowed_value
    return entries
