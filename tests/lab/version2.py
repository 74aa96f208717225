"""A node's maps as version 2 of the product would have left them, as tests/lab/version1.py has those of version 1.

What came later has no place there and is left out: flags beyond the eighth, an endpoint's epoch, which of the node's
addresses a port is of.
"""

from __future__ import annotations

from collections.abc import Callable

Entry = tuple[bytes, bytes]
ARRAY, HASH, LRU = 2, 1, 9


def endpoint(key: bytes, value: bytes) -> Entry:
    return key, value[:14] + value[24:36] + bytes(2)


def connection(key: bytes, value: bytes) -> Entry:
    ways_and_substitute, nat_port, service_port = value[12:15], value[16:18], value[18:20]
    return key, value[:9] + ways_and_substitute + value[24:56] + service_port + nat_port


def service(key: bytes, value: bytes) -> Entry:
    return key, value[:8]


def backend(key: bytes, value: bytes) -> Entry:
    return key, value[:20]


WAYS_BACK: dict[str, tuple[int, Callable[[bytes, bytes], Entry]]] = {  # by its name then: its type, and how
    "endpoints_v2": (HASH, endpoint),
    "ct_tcp": (LRU, connection),
    "ct_any": (LRU, connection),
    "services_v2": (HASH, service),
    "backends_v2": (HASH, backend),
    "node_state": (ARRAY, service),
}
