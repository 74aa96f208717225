"""Packets read a second time, in Python and by the RFCs: what the programs in the kernel are held to."""

from __future__ import annotations

import struct
from dataclasses import dataclass

ETHERNET = 14
IPV4, IPV6 = 0x0800, 0x86DD
TCP, UDP, ICMP, ICMP6, SCTP = 6, 17, 1, 58, 132
HOP_BY_HOP, ROUTING, FRAGMENT, OPTIONS = 0, 43, 44, 60
LEAST = {TCP: 20, UDP: 8, ICMP: 8, ICMP6: 8, SCTP: 8}  # bytes of a header that can be judged
CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}  # SCTP's covers no address and no header of ours touches it
ERRORS4 = (3, 4, 5, 11, 12)


class Malformed(Exception):
    """No program may let this pass."""


@dataclass(frozen=True)
class Reading:
    """Where things lie in a frame; offsets are from its first byte."""

    version: int
    source: bytes
    destination: bytes
    protocol: int  # -1: in a later fragment, which does not say it
    l4: int
    end: int  # of the IP packet, as far as it is there
    fragment: bool = False  # of a datagram with more fragments
    offset: int = 0  # bytes of the datagram before this fragment
    more: bool = False
    identification: int = 0


def read(frame: bytes) -> Reading:
    """Raises: Malformed: no IP packet with a transport header that can be judged."""
    if len(frame) < ETHERNET + 1:
        raise Malformed("no packet")
    kind = int.from_bytes(frame[12:14], "big")
    if kind == IPV4:
        found = _read4(frame)
    elif kind == IPV6:
        found = _read6(frame)
    else:
        raise Malformed("no IP")
    if found.offset:
        return found
    if found.protocol not in LEAST or found.protocol == (ICMP6 if kind == IPV4 else ICMP):
        raise Malformed(f"protocol {found.protocol}")
    if len(frame) < found.l4 + LEAST[found.protocol]:
        raise Malformed("the transport header is cut")
    return found


def _read4(frame: bytes) -> Reading:
    if len(frame) < ETHERNET + 20:
        raise Malformed("the IPv4 header is cut")
    first, _, total, identification, fragment, _, protocol = struct.unpack_from("!BBHHHBB", frame, ETHERNET)
    header = (first & 15) * 4
    if first >> 4 != 4 or header < 20 or total < header:
        raise Malformed("the IPv4 header contradicts itself")
    offset, more = (fragment & 0x1FFF) * 8, bool(fragment & 0x2000)
    return Reading(
        4,
        frame[26:30],
        frame[30:34],
        protocol,
        ETHERNET + header,
        min(len(frame), ETHERNET + total),
        bool(offset or more),
        offset,
        more,
        identification,
    )


def _read6(frame: bytes) -> Reading:
    if len(frame) < ETHERNET + 40:
        raise Malformed("the IPv6 header is cut")
    payload, following = struct.unpack_from("!HB", frame, ETHERNET + 4)
    if frame[ETHERNET] >> 4 != 6:
        raise Malformed("not IPv6")
    source, destination = frame[22:38], frame[38:54]
    mapped = bytes(10) + b"\xff\xff"
    if source.startswith(mapped) or destination.startswith(mapped):
        raise Malformed("an IPv4 address in IPv6")
    at, walked, fragment = ETHERNET + 40, 0, (False, 0, False, 0)
    while following in (HOP_BY_HOP, ROUTING, FRAGMENT, OPTIONS):
        walked += 1
        if following == ROUTING or walked > 6 or (following == FRAGMENT and fragment[0]):
            raise Malformed("an extension header that may not be")
        if len(frame) < at + (8 if following == FRAGMENT else 2):
            raise Malformed("an extension header is cut")
        if following == FRAGMENT:
            following, _, bits, identification = struct.unpack_from("!BBHI", frame, at)
            fragment = (bool(bits & 0xFFF9), bits & 0xFFF8, bool(bits & 1), identification)
            at += 8
            if fragment[1]:
                following = -1
        else:
            following, units = frame[at], frame[at + 1]
            at += 8 + units * 8
    return Reading(6, source, destination, following, at, min(len(frame), ETHERNET + 40 + payload), *fragment)


def ones_sum(data: bytes) -> int:
    """RFC 1071: what a checksum field must hold so that the sum over all of `data`, with the field 0, is right."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def with_right_checksums(frame: bytes) -> bytes:
    """The same packet with every checksum computed anew, also that of the header which an ICMP error quotes.

    One of 0 in UDP over IPv4 stays, as it means that there is none. A fragment's transport checksum is about all
    of its datagram: see `whole`. What does not read stays as it is.
    """
    try:
        found = read(frame)
    except Malformed:
        return frame
    packet = bytearray(frame)
    if found.version == 4:
        _mend_header(packet, ETHERNET)
    if found.fragment:
        return bytes(packet)
    kind = packet[found.l4]
    if found.protocol == ICMP and kind in ERRORS4:
        _mend_header(packet, found.l4 + 8)
    if found.protocol in CHECKSUM_AT:
        at = found.l4 + CHECKSUM_AT[found.protocol]
        if not (found.version == 4 and found.protocol == UDP and packet[at : at + 2] == b"\0\0"):
            packet[at : at + 2] = bytes(2)
            data = bytes(packet[found.l4 : found.end])
            pseudo = found.source + found.destination + struct.pack("!II", len(data), found.protocol)
            value = ones_sum((b"" if found.protocol == ICMP else pseudo) + data)
            if found.protocol == UDP and not value:
                value = 0xFFFF
            packet[at : at + 2] = value.to_bytes(2, "big")
    return bytes(packet)


def _mend_header(packet: bytearray, at: int) -> None:
    """The checksum of the IPv4 header at this offset."""
    length = (packet[at] & 15) * 4 if at < len(packet) else 0
    if 20 <= length <= len(packet) - at:
        packet[at + 10 : at + 12] = bytes(2)
        packet[at + 10 : at + 12] = ones_sum(bytes(packet[at : at + length])).to_bytes(2, "big")


def whole(frames: list[bytes]) -> bytes:
    """The packet whose fragments these are, as its receiver puts it together (RFC 791, RFC 8200, 4.5)."""
    read_ones = sorted(((read(frame), frame) for frame in frames), key=lambda each: each[0].offset)
    payload = b""
    for found, frame in read_ones:
        assert found.offset == len(payload), "a fragment is missing"
        payload += frame[found.l4 : found.end]
    assert not read_ones[-1][0].more, "the last fragment is missing"
    found, first = read_ones[0]
    packet = bytearray(first[: ETHERNET + (20 if found.version == 4 else 40)])
    if found.version == 4:
        packet[ETHERNET] = 0x45
        packet[ETHERNET + 2 : ETHERNET + 4] = (20 + len(payload)).to_bytes(2, "big")
        packet[ETHERNET + 6 : ETHERNET + 8] = bytes(2)
        _mend_header(packet, ETHERNET)
    else:
        packet[ETHERNET + 4 : ETHERNET + 6] = len(payload).to_bytes(2, "big")
        packet[ETHERNET + 6] = found.protocol
    return bytes(packet) + payload
