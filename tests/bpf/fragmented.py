"""Datagrams in fragments."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether

from tests.bpf.datapath import V4, Family, frame, ip
from tests.bpf.reading import read

IDENTIFICATIONS = itertools.count(1000)


def transport(packet: bytes) -> tuple[bytes, int]:
    """The transport header with all that follows, its checksum right, and its protocol."""
    found = read(packet)
    return packet[found.l4 : found.end], found.protocol


def cut(packet: bytes, at: Family, sizes: Iterable[int] = (16, 16), identification: int = 0) -> list[bytes]:
    """The packet's fragments; all but the last have these sizes (bytes, multiples of 8)."""
    found = read(packet)
    scapy = Ether(packet)[at.ip]
    payload, protocol = transport(packet)
    identification = identification or next(IDENTIFICATIONS)
    frames, offset, parts = [], 0, []
    for size in sizes:
        parts.append(payload[offset : offset + size])
        offset += size
    parts.append(payload[offset:])
    offset = 0
    for number, part in enumerate(parts):
        more = int(number < len(parts) - 1)
        if at is V4:
            header: Any = IP(src=scapy.src, dst=scapy.dst, id=identification, flags=more, frag=offset // 8)
            header.proto = protocol
        else:
            header = IPv6(src=scapy.src, dst=scapy.dst)
            header /= IPv6ExtHdrFragment(nh=protocol, offset=offset // 8, m=more, id=identification)
        frames.append(frame(header / part))
        offset += len(part)
    assert found.version == at.version
    return frames


def datagram(source: str, destination: str, sport: int, dport: int) -> bytes:
    return frame(ip(source, destination) / UDP(sport=sport, dport=dport) / bytes(range(40)))
