"""The layouts of version 2 of the maps, into those of version 3: pure functions of bytes.

Version 3 gives room to what is to come (docs/map-layouts.md): wider flags, and fields that nothing fills so far, which
are 0. Nothing of what version 2 knew is lost.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.dataplane.load.layouts_v1 import Entry, OldMap


def endpoint(key: bytes, value: bytes) -> Entry:
    return "endpoints_v3", key, value[:14] + bytes(2 + 8) + value[14:26] + bytes(4)


def _connection(value: bytes) -> bytes:
    expires_and_epoch, flags, ways, substitute = value[:8], value[8:9], value[9:11], value[11:12]
    hop, service, service_port, nat_port = value[12:28], value[28:44], value[44:46], value[46:48]
    head = expires_and_epoch + flags + bytes(3) + ways + substitute + bytes(1)
    return head + nat_port + service_port + bytes(4) + hop + service + bytes(40)


def connection_tcp(key: bytes, value: bytes) -> Entry:
    return "ct_tcp_v3", key, _connection(value)


def connection_any(key: bytes, value: bytes) -> Entry:
    return "ct_any_v3", key, _connection(value)


def service(key: bytes, value: bytes) -> Entry:
    return "services_v3", key, value + bytes(24)


def backend(key: bytes, value: bytes) -> Entry:
    return "backends_v3", key, value[:18] + bytes(6)


def node_state(key: bytes, value: bytes) -> Entry:
    """Allowed is what bears the epoch, and no other, as it was."""
    epoch = value[:4]
    return "node_state_v3", key, value + epoch + epoch + epoch + bytes(12)


MAPS: Mapping[str, OldMap] = {
    "endpoints_v2": OldMap(16, 28, endpoint, ("endpoints_v3",)),
    "ct_tcp": OldMap(40, 48, connection_tcp, ("ct_tcp_v3",)),
    "ct_any": OldMap(40, 48, connection_any, ("ct_any_v3",)),
    "services_v2": OldMap(20, 8, service, ("services_v3",)),
    "backends_v2": OldMap(8, 20, backend, ("backends_v3",)),
    "node_state": OldMap(4, 8, node_state, ("node_state_v3",)),
}
