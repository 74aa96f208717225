"""Bytes of the kernel's ring buffer to records. Pure.

A record is the tuple that `LAYOUT` gives, as it is: at 50 000 a second there is no time to make more of it. Addresses
are 16 bytes of either family, ports are in network byte order. `joiner` gives it names; `flow` gives it words.

Source: services/dataplane/bpf/include/types.h, struct event (tests/contract/test_flow_records.py compares); kernel
Documentation/bpf/ringbuf.rst: each record has 8 bytes of header before it, the first 4 are its length and two flags.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

DROP, TRACE, POLICY_VERDICT = 1, 4, 5  # `type` of a record
ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132  # `protocol`

# The columns of a record.
AT: Final = 0  # CLOCK_MONOTONIC, ns
SOURCE_IDENTITY: Final = 1
DESTINATION_IDENTITY: Final = 2
SOURCE: Final = 3  # 16 bytes
DESTINATION: Final = 4
SOURCE_PORT: Final = 5  # see `port`; of ICMP the identifier, and its type as the destination port
DESTINATION_PORT: Final = 6
PROTOCOL: Final = 7
TYPE: Final = 8
REASON: Final = 9
DIRECTION: Final = 10  # of the policy that decided: 0 ingress, 1 egress
POLICY: Final = 11  # of the pod whose policy decided; 0: none
COOKIE: Final = 12  # of the entry that decided; 0: none matched
LENGTH: Final = 13  # bytes of the packet
LINE: Final = 14
FILE: Final = 15

LAYOUT = struct.Struct("=QII16s16sHHBBBBIIIHBx")
Record = tuple[int, int, int, bytes, bytes, int, int, int, int, int, int, int, int, int, int, int]

_BUSY = 1 << 31  # reserved, and not yet written
_DISCARDED = 1 << 30
_HEADER_BYTES = 8
_LENGTH = struct.Struct("=I")


class Taken(NamedTuple):
    """`position`: up to where the buffer was read. `strange`: records of another length, passed over."""

    records: list[Record]
    position: int
    strange: int


def take(data: bytes | memoryview, position: int, produced: int, size: int, most: int) -> Taken:
    """The next records, oldest first, `most` at most; ends at one that is not yet written.

    Args:
        data: the ring's bytes twice in a row, so that no record is cut at the end.
        position, produced: where the reader and the kernel are; both only grow.
        size: of the ring, a power of two.
    """
    records: list[Record] = []
    add, length_at, unpack = records.append, _LENGTH.unpack_from, LAYOUT.unpack_from
    mask, strange, ours = size - 1, 0, LAYOUT.size
    step = (_HEADER_BYTES + ours + 7) & ~7
    while position < produced and len(records) < most:
        start = position & mask
        (length,) = length_at(data, start)
        if length == ours:  # the one that nearly all are
            add(unpack(data, start + _HEADER_BYTES))
            position += step
            continue
        if length & _BUSY:
            break
        if not length & _DISCARDED:
            strange += 1
        position += (_HEADER_BYTES + (length & ~_DISCARDED) + 7) & ~7
    return Taken(records, position, strange)


def port(raw: int) -> int:
    """A port as people write it; `raw` is in network byte order, read on a little-endian machine or any other."""
    return int.from_bytes(raw.to_bytes(2, "little"), "big") if _IS_LITTLE else raw


_IS_LITTLE = struct.pack("=H", 1) == b"\x01\x00"
