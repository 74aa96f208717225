"""Entries of version 1 of the maps, as version 2 reads them. The bytes of version 1 are written out by hand."""

from __future__ import annotations

import socket
import struct

from services.dataplane.load import layouts_v1

POD, OTHER, SERVICE, NODE = (socket.inet_aton(each) for each in ("10.0.0.5", "10.0.1.7", "10.96.0.9", "192.0.2.1"))
MAPPED = bytes.fromhex("00000000000000000000ffff")
NOWHERE = bytes(4)
NONE = bytes(16)


def convert(file: str, key: bytes, value: bytes) -> layouts_v1.Entry:
    old = layouts_v1.MAPS[file]
    assert (len(key), len(value)) == (old.key_bytes, old.value_bytes)
    assert old.convert is not None
    target, new_key, new_value = old.convert(key, value)
    assert target in old.targets
    return target, new_key, new_value


def connection(protocol: int, flags: int = 0x42) -> layouts_v1.Entry:
    key = struct.pack("=4s4sHHB3x", POD, OTHER, 0x1234, 0x5678, protocol)
    value = struct.pack("=IIBBBx4s4s4sHH", 1000, 7, flags, 3, 1, OTHER, POD, SERVICE, 0x5000, 0x6000)
    return convert("connections", key, value)


def test_a_connection_keeps_what_was_decided_of_it_and_finds_its_way_anew() -> None:
    target, key, value = connection(6)
    assert target == "ct_tcp"
    assert key == struct.pack("=16s16sHHB3x", MAPPED + POD, MAPPED + OTHER, 0x1234, 0x5678, 6)
    expected = struct.pack("=IIBBBx16s16sHH", 1000, 7, 0x42, 0, 0, NONE, MAPPED + SERVICE, 0x5000, 0x6000)
    assert value == expected


def test_connections_of_other_protocols_have_a_map_of_their_own() -> None:
    assert {connection(protocol)[0] for protocol in (1, 17, 132)} == {"ct_any"}


def test_a_connection_without_a_service_has_none() -> None:
    key = struct.pack("=4s4sHHB3x", POD, OTHER, 1, 2, 17)
    value = struct.pack("=IIBBBx4s4s4sHH", 1, 1, 0, 0, 0, NOWHERE, NOWHERE, NOWHERE, 0, 0)
    assert convert("connections", key, value)[2] == struct.pack("=IIBBBx16s16sHH", 1, 1, 0, 0, 0, NONE, NONE, 0, 0)


def test_a_masqueraded_port_still_belongs_to_its_pod() -> None:
    key = struct.pack("=4s4sHHB3x", OTHER, NODE, 443, 61000, 6)
    assert convert("nat", key, struct.pack("=4sH2x", POD, 5000)) == (
        "nat_v2",
        struct.pack("=16s16sHHB3x", MAPPED + OTHER, MAPPED + NODE, 443, 61000, 6),
        struct.pack("=16sH2x", MAPPED + POD, 5000),
    )


def test_a_client_keeps_the_backend_that_was_chosen_for_it() -> None:
    key = struct.pack("=4s4sHHB3x", POD, SERVICE, 5000, 80, 6)
    assert convert("choices", key, struct.pack("=4sH2xII", OTHER, 8080, 3, 9)) == (
        "choices_v2",
        struct.pack("=16s16sHHB3x", MAPPED + POD, MAPPED + SERVICE, 5000, 80, 6),
        struct.pack("=16sH2xII", MAPPED + OTHER, 8080, 3, 9),
    )


def test_a_socket_still_believes_to_talk_to_its_service() -> None:
    key = struct.pack("=Q4sH2x", 77, OTHER, 8080)
    assert convert("sock_reverse", key, struct.pack("=4sH2x", SERVICE, 80)) == (
        "sock_reverse_v2",
        struct.pack("=Q16sH6x", 77, MAPPED + OTHER, 8080),
        struct.pack("=16sH2x", MAPPED + SERVICE, 80),
    )


def test_services_and_backends_keep_their_numbers() -> None:
    key = struct.pack("=4sHBx", SERVICE, 80, 6)
    assert convert("services", key, struct.pack("=II", 4, 2)) == (
        "services_v2",
        struct.pack("=16sHBx", MAPPED + SERVICE, 80, 6),
        struct.pack("=II", 4, 2),
    )
    key = struct.pack("=II", 4, 1)
    assert convert("backends", key, struct.pack("=4sH2x", OTHER, 8080)) == (
        "backends_v2",
        key,
        struct.pack("=16sH2x", MAPPED + OTHER, 8080),
    )


def test_pods_and_who_an_address_is_stay_known() -> None:
    value = struct.pack("=IIIH6s6s2x", 9, 1000, 1000, 3, b"\x02" * 6, b"\x04" * 6)
    assert convert("endpoints", POD, value) == ("endpoints_v2", MAPPED + POD, value)
    assert convert("ipcache", struct.pack("=I4s", 24, OTHER), struct.pack("=I4s", 1000, NODE)) == (
        "ipcache_v2",
        struct.pack("=I16s", 120, MAPPED + OTHER),
        struct.pack("=II16s", 1000, 0, MAPPED + NODE),
    )
    assert convert("ipcache", struct.pack("=I4s", 32, POD), struct.pack("=I4s", 1000, NOWHERE))[2][8:] == NONE
