"""Entries of version 2 of the maps, as this version reads them. The bytes of version 2 are written out by hand."""

from __future__ import annotations

import socket
import struct

import pytest

from services.dataplane.load import layouts_v2
from services.dataplane.shapes import layouts, limits

MAPPED = bytes.fromhex("00000000000000000000ffff")
POD, NODE, SERVICE = (MAPPED + socket.inet_aton(each) for each in ("10.0.0.5", "192.0.2.1", "10.96.0.9"))
CONNECTION = struct.pack(
    "=IIBBBB16s16sHH", 1000, 7, 0xC3, 3, 1, 5, NODE, SERVICE, socket.htons(80), socket.htons(61000)
)


def convert(file: str, value: bytes) -> tuple[str, bytes]:
    """The map of now, and the value there: keys are the same."""
    old = layouts_v2.MAPS[file]
    assert len(value) == old.value_bytes and old.convert
    key = bytes(range(old.key_bytes))
    target, new_key, new_value = old.convert(key, value)
    assert (target,) == old.targets
    assert new_key == key
    [name] = [name for name, each in limits.declared_maps().items() if each.file == target]
    assert layouts.MAPS[name] == layouts.MapShape(len(new_key), len(new_value))
    return name, new_value


@pytest.mark.parametrize("file", ["ct_tcp", "ct_any"])
def test_a_connection_keeps_all_that_was_decided_of_it(file: str) -> None:
    name, value = convert(file, CONNECTION)
    assert name == file
    kept = layouts.Connection(1000, 7, 0xC3, 3, 1, "192.0.2.1", "10.96.0.9", 80, 61000, 5)
    assert layouts.Connection.unpack(value) == kept
    assert value == kept.pack()  # what is reserved is 0


def test_pods_stay_known() -> None:
    name, value = convert("endpoints_v2", struct.pack("=IIIH6s6s2x", 9, 1000, 1001, 3, b"\x02" * 6, b"\x04" * 6))
    assert (name, value) == (
        "endpoints", layouts.EndpointEntry(9, 1000, 1001, 3, b"\x02" * 6, b"\x04" * 6).pack()
    )  # fmt: skip


def test_services_and_backends_keep_their_numbers() -> None:
    assert convert("services_v2", struct.pack("=II", 4, 2)) == ("services", layouts.ServiceEntry(4, 2).pack())
    backend = struct.pack("=16s2s2x", POD, (8080).to_bytes(2, "big"))
    assert convert("backends_v2", backend) == ("backends", layouts.BackendEntry("10.0.0.5", 8080).pack())


def test_the_epoch_and_the_seed_go_on() -> None:
    assert convert("node_state", struct.pack("=II", 9, 77)) == ("node_state", layouts.NodeState(9, 77, 9, 9, 9).pack())
