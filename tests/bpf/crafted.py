"""Packets of tests/conntrack.py as bytes and back, without scapy: a twin makes and reads thousands.

Checksums are left at 0: other tests look at them.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import replace

from tests.packets import ICMP, ICMP6, SCTP, TCP, UDP, Packet

ETHERNET = bytes.fromhex("0200000000bb0200000000aa")
FLAGS = {"F": 0x01, "S": 0x02, "R": 0x04, "A": 0x10}
MORE4, OFFSET4 = 0x2000, 0x1FFF
FRAGMENT6 = 44
FIRST_BYTES = 64  # of the transport header and payload in a first fragment


def to_bytes(packet: Packet) -> bytes:
    """A frame."""
    return ETHERNET + (b"\x86\xdd" if ":" in packet.source else b"\x08\x00") + _ip(packet)


def _ip(packet: Packet) -> bytes:
    payload = bytes(24) if packet.fragment == "later" else _transport(packet)
    is_first, is_later = packet.fragment == "first", packet.fragment == "later"
    if packet.fragment:
        payload = payload.ljust(FIRST_BYTES, b"\0")
    offset = FIRST_BYTES // 8 if is_later else 0
    if ":" not in packet.source:
        where = offset | MORE4 * is_first
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), packet.datagram, where, 64, packet.protocol, 0)
        ends = socket.inet_aton(packet.source) + socket.inet_aton(packet.destination)
        return header + ends + payload
    following = packet.protocol
    if packet.fragment:
        payload = struct.pack("!BBHI", following, 0, offset << 3 | is_first, packet.datagram) + payload
        following = FRAGMENT6
    header = struct.pack("!IHBB", 0x60000000, len(payload), following, 64)
    ends = b"".join(socket.inet_pton(socket.AF_INET6, address) for address in (packet.source, packet.destination))
    return header + ends + payload


def _transport(packet: Packet) -> bytes:
    if packet.protocol == TCP:
        bits = sum(FLAGS[flag] for flag in packet.flags)
        return struct.pack("!HHIIBBHHH", packet.sport, packet.dport, 0, 0, 0x50, bits, 0, 0, 0)
    if packet.protocol == UDP:
        return struct.pack("!HHHH", packet.sport, packet.dport, 16, 0) + bytes(8)
    if packet.protocol == SCTP:
        return struct.pack("!HHII", packet.sport, packet.dport, 0, 0)
    if packet.about:
        return struct.pack("!BBHI", packet.icmp, 0, 0, 0) + _ip(packet.about)
    return struct.pack("!BBHHH", packet.icmp, 0, 0, packet.sport, 1) + bytes(8)


def from_bytes(frame: bytes, like: Packet) -> Packet:
    """What `like` has become. Fields that no program changes are taken from `like`."""
    return _read(frame[14:], like)


def _read(raw: bytes, like: Packet) -> Packet:
    if ":" not in like.source:
        source, destination = (socket.inet_ntop(socket.AF_INET, raw[at : at + 4]) for at in (12, 16))
        transport = raw[20:]
    else:
        source, destination = (socket.inet_ntop(socket.AF_INET6, raw[at : at + 16]) for at in (8, 24))
        transport = raw[48 if like.fragment else 40 :]
    moved = replace(like, source=source, destination=destination)
    if like.fragment == "later":
        return moved
    if like.protocol not in (ICMP, ICMP6):
        sport, dport = struct.unpack_from("!HH", transport)
        return replace(moved, sport=sport, dport=dport)
    if like.about:
        return replace(moved, about=_read(transport[8:], like.about))
    return replace(moved, sport=int.from_bytes(transport[4:6], "big"))
