"""The layouts of version 1 of the maps, as far as what they hold goes on under version 2: pure functions of bytes.

Version 1 knew IPv4 only and kept addresses in 4 bytes; version 2 keeps them in 16, IPv4 as ::ffff:a.b.c.d, under new
names. Both order the two ends of a connection by the last four bytes of the address, then by port, so a flag that
speaks of the low end holds on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.dataplane.shapes.protocols import TCP

MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, 2.5.5.2
NONE = bytes(4)
WAYS_UNKNOWN = bytes(2)  # they are found again with the next packet

Entry = tuple[str, bytes, bytes]
"""The map that it goes to, key, value."""


@dataclass(frozen=True, slots=True)
class OldMap:
    """`convert` gives the entry of version 2, in one of `targets`. `None`: what it held does not go on."""

    key_bytes: int
    value_bytes: int
    convert: Callable[[bytes, bytes], Entry] | None
    targets: tuple[str, ...]


def wide(address: bytes) -> bytes:
    """An address in 16 bytes; none stays none."""
    return MAPPED + address if address != NONE else bytes(16)


def endpoint(key: bytes, value: bytes) -> Entry:
    return "endpoints_v2", wide(key), value


def ipcache(key: bytes, value: bytes) -> Entry:
    bits = int.from_bytes(key[:4], "little") + 8 * len(MAPPED)
    return "ipcache_v2", bits.to_bytes(4, "little") + MAPPED + key[4:], value[:4] + bytes(4) + wide(value[4:])


def connection(key: bytes, value: bytes) -> Entry:
    """Where its packets go next is found anew; what was decided of it (allowed, masqueraded, translated) stays."""
    wide_key = wide(key[:4]) + wide(key[4:8]) + key[8:]
    head = value[:9] + WAYS_UNKNOWN + value[11:12]
    return ("ct_tcp" if key[12] == TCP else "ct_any"), wide_key, head + bytes(16) + wide(value[20:24]) + value[24:]


def nat(key: bytes, value: bytes) -> Entry:
    return "nat_v2", wide(key[:4]) + wide(key[4:8]) + key[8:], wide(value[:4]) + value[4:]


def choice(key: bytes, value: bytes) -> Entry:
    return "choices_v2", wide(key[:4]) + wide(key[4:8]) + key[8:], wide(value[:4]) + value[4:]


def service(key: bytes, value: bytes) -> Entry:
    return "services_v2", wide(key[:4]) + key[4:], value


def backend(key: bytes, value: bytes) -> Entry:
    return "backends_v2", key, wide(value[:4]) + value[4:]


def sock_reverse(key: bytes, value: bytes) -> Entry:
    return "sock_reverse_v2", key[:8] + wide(key[8:12]) + key[12:14] + bytes(6), wide(value[:4]) + value[4:]


MAPS: Mapping[str, OldMap] = {
    "endpoints": OldMap(4, 28, endpoint, ("endpoints_v2",)),
    "ipcache": OldMap(8, 8, ipcache, ("ipcache_v2",)),
    "connections": OldMap(16, 28, connection, ("ct_tcp", "ct_any")),
    "nat": OldMap(16, 8, nat, ("nat_v2",)),
    "choices": OldMap(16, 16, choice, ("choices_v2",)),
    "services": OldMap(8, 8, service, ("services_v2",)),
    "backends": OldMap(8, 8, backend, ("backends_v2",)),
    "sock_reverse": OldMap(16, 8, sock_reverse, ("sock_reverse_v2",)),
    "events": OldMap(0, 0, None, ()),  # what nobody has read by now is lost
}
