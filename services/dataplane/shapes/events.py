"""What the kernel's ring buffer holds: the other half of `struct event` in bpf/include/types.h."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from services.dataplane.shapes.layouts import unpack_address

EVENT_DROP = 1
EVENT_POLICY_VERDICT = 5


@dataclass(frozen=True, slots=True)
class Event:
    """A packet that was dropped or judged. `at` is CLOCK_MONOTONIC in ns."""

    at: int
    source_identity: int
    destination_identity: int
    source: str
    destination: str
    source_port: int
    destination_port: int
    protocol: int
    type: int
    reason: int
    direction: int
    policy: int
    cookie: int
    length: int
    line: int
    file: int

    layout: ClassVar[struct.Struct] = struct.Struct("=QII16s16s2s2sBBBBIIIHBx")

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Event:
        at, source_id, destination_id, source, destination, source_port, destination_port, *rest = cls.layout.unpack(
            raw[: cls.layout.size]
        )
        return cls(
            at,
            source_id,
            destination_id,
            unpack_address(source),
            unpack_address(destination),
            int.from_bytes(source_port, "big"),
            int.from_bytes(destination_port, "big"),
            *rest,
        )
