"""What a node says on its devices' networks without being asked, and which multicast groups it listens to for that.

Capabilities: CAP_NET_RAW, for frames of its own.

Who has cached where an address is goes on sending there, so whoever begins to answer for one says so: by a gratuitous
ARP (RFC 5227, 3), by an unsolicited neighbour advertisement (RFC 4861, 7.2.6). A neighbour solicitation comes to the
group of the address that it asks for (RFC 4291, 2.7.1): what is not a member may never see one, for the device or a
switch leaves out what nobody listens to.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from services.dataplane.shapes.layouts import L2AnswerEntry, L2AnswerKey

ETH_ARP, ETH_IP6 = 0x0806, 0x86DD
BROADCAST = b"\xff" * 6
ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")
ALL_NODES_MAC = bytes.fromhex("333300000001")
SOLICITED = socket.inet_pton(socket.AF_INET6, "ff02::1:ff00:0")[:13]
OVERRIDE = 0x20000000
GROUPS_EACH = 64  # of one socket: the kernel bounds a socket's memory (net.core.optmem_max)

Group = tuple[int, bytes]  # index of a device, address


def announcement(address: str, mac: bytes) -> bytes:
    """A frame that says that the address is at `mac`."""
    if ":" not in address:
        own = socket.inet_pton(socket.AF_INET, address)
        arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, own, bytes(6), own)
        return BROADCAST + mac + ETH_ARP.to_bytes(2, "big") + arp
    own = socket.inet_pton(socket.AF_INET6, address)
    said = struct.pack("!BBHI16sBB6s", 136, 0, 0, OVERRIDE, own, 2, 1, mac)
    pseudo = own + ALL_NODES + struct.pack("!II", len(said), socket.IPPROTO_ICMPV6)
    said = said[:2] + _checksum(pseudo + said).to_bytes(2, "big") + said[4:]
    head = struct.pack("!IHBB", 6 << 28, len(said), socket.IPPROTO_ICMPV6, 255) + own + ALL_NODES
    return ALL_NODES_MAC + mac + ETH_IP6.to_bytes(2, "big") + head + said


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def group_of(address: str) -> bytes:
    """The multicast address to which is sent who asks for an IPv6 address."""
    return SOLICITED + socket.inet_pton(socket.AF_INET6, address)[13:]


class Announcer:
    """Says and listens in this process's network namespace."""

    def __init__(self) -> None:
        self._listening: list[tuple[socket.socket, set[Group]]] = []

    def say(self, entries: Iterable[tuple[L2AnswerKey, L2AnswerEntry]]) -> None:
        """Each of these addresses is at its device now. Raises: OSError: of one or more it could not be said; of all
        others it was."""
        problem: OSError | None = None
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
            for key, entry in entries:
                try:
                    out.sendto(announcement(key.address, entry.mac), (socket.if_indextoname(key.device), 0))
                except OSError as failure:  # the device may be gone by now
                    problem = failure
        if problem is not None:
            raise problem

    def listen(self, keys: Iterable[L2AnswerKey]) -> None:
        """To who asks for these addresses, and for no other. Raises: OSError."""
        wanted = {(key.device, group_of(key.address)) for key in keys if ":" in key.address}
        for member, groups in list(self._listening):
            for group in groups - wanted:
                _set(member, socket.IPV6_LEAVE_GROUP, group)
                groups.discard(group)
            if not groups:
                member.close()
                self._listening.remove((member, groups))
        missing = wanted.difference(*(groups for _, groups in self._listening))
        for group in sorted(missing):
            member, groups = self._with_room()
            if _set(member, socket.IPV6_JOIN_GROUP, group):
                groups.add(group)

    def close(self) -> None:
        for member, _ in self._listening:
            member.close()
        self._listening = []

    def _with_room(self) -> tuple[socket.socket, set[Group]]:
        found = next((each for each in self._listening if len(each[1]) < GROUPS_EACH), None)
        if found is None:
            found = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC), set()
            self._listening.append(found)
        return found


def _set(member: socket.socket, option: int, group: Group) -> bool:
    """False: the device is gone, and its memberships with it."""
    index, address = group
    try:
        member.setsockopt(socket.IPPROTO_IPV6, option, address + struct.pack("=I", index))
    except OSError as problem:
        if problem.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
            return False
        raise
    return True
