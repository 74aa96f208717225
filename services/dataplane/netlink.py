"""Route netlink in the small: messages as bytes, many in one system call, every answer checked.

A request is one message; `Netlink.run` sends a batch with a single `sendmsg` and reads until each was answered, so
bringing up a pod's interface costs one round trip and not five. There is no event loop and no thread in here: a
caller blocks for as long as the kernel holds its routing lock.

Why not pyroute2: the same batch takes 5 to 10 times longer there, its sockets are made anew for every thread (in
whatever network namespace that thread stands), and it cannot write `encap ip` routes or read a filter's program id.

Needs CAP_NET_ADMIN for every change, CAP_SYS_ADMIN for `socket_in`.
Source: linux/netlink.h, linux/rtnetlink.h, man 7 netlink, man 7 rtnetlink.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_DUMP_INTR = 0x10
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

SOL_NETLINK = 270
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
CLONE_NEWNET = 0x40000000

ANSWER_SECONDS = 10.0  # the routing lock is held for tens of milliseconds at worst; far beyond that something is stuck
RECEIVE_BYTES = 1 << 17  # the kernel fills dumps in pieces of at most 32 KiB

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")

_libc = ctypes.CDLL(None, use_errno=True)


class NetlinkError(OSError):
    """The kernel refused a request. `errno` is its number, `request` says in words what was asked."""

    def __init__(self, number: int, detail: str, request: str) -> None:
        super().__init__(number, detail or os.strerror(number))
        self.request = request

    def __str__(self) -> str:
        return f"{self.request}: {self.strerror} ({errno.errorcode.get(self.errno or 0, self.errno)})"


@dataclass(frozen=True, slots=True)
class Request:
    """One message to the kernel.

    `body` is the family header and attributes. `accept`: error numbers that mean "already so" to the caller.
    `says`: what it does, in words, for the error text.
    """

    type: int
    flags: int
    body: bytes
    says: str
    accept: tuple[int, ...] = ()


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute: length, type, value, padding to 4 bytes."""
    return _ATTRIBUTE.pack(len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=B", value))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def be16(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!H", value))


def be64(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!Q", value))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data` by type; of a repeated one the last. Stops at the first that is malformed."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            break
        found[kind & NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def to_text(value: bytes | None) -> str:
    return "" if value is None else value.rstrip(b"\0").decode(errors="replace")


def to_int(value: bytes | None) -> int:
    return 0 if not value else int.from_bytes(value, "little")


def to_mac(value: bytes | None) -> str:
    return "" if value is None else value.hex(":")


def from_mac(value: str) -> bytes:
    return bytes.fromhex(value.replace(":", ""))


class Netlink:
    """A route netlink socket. It belongs to the network namespace of the thread that made it, wherever it is used.

    Not for two threads at once.
    """

    def __init__(self, transport: socket.socket | None = None) -> None:
        self._socket = transport or open_socket()
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, requests: Sequence[Request]) -> list[list[bytes]]:
        """Carry out `requests` in order, all of them even when one fails.

        Returns: for each request the bodies (family header and attributes) of the messages that answered it.
        Raises: NetlinkError: the first failure whose number is not in that request's `accept`; OSError: no answer.
        """
        first = self._sequence + 1
        self._sequence += len(requests)
        self._socket.send(b"".join(_packed(request, first + place) for place, request in enumerate(requests)))
        answers: list[list[bytes]] = [[] for _ in requests]
        failures: list[NetlinkError | None] = [None] * len(requests)
        waiting = set(range(len(requests)))
        while waiting:
            for kind, flags, sequence, body in self._receive():
                place = sequence - first
                if place not in waiting:
                    continue  # the late answer to a batch that timed out
                if flags & NLM_F_DUMP_INTR:
                    failures[place] = NetlinkError(errno.EINTR, "the list changed while it was read", "list")
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    waiting.discard(place)
                    failures[place] = _failure(kind, flags, body, requests[place]) or failures[place]
                else:
                    answers[place].append(body)
        for failure in failures:
            if failure is not None:
                raise failure
        return answers

    def dump(self, kind: int, body: bytes, says: str) -> list[bytes]:
        """Every object of a kind, read again when it changed meanwhile."""
        for attempt in range(4):
            try:
                return self.run([Request(kind, NLM_F_DUMP, body, says)])[0]
            except NetlinkError as failure:
                if failure.errno != errno.EINTR or attempt == 3:
                    raise
        raise AssertionError("unreachable")

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        data = self._socket.recv(RECEIVE_BYTES)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            if length < 16:
                break
            yield kind, flags, sequence, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3


def _packed(request: Request, sequence: int) -> bytes:
    # A dump is answered by its end mark; asking it for an acknowledgement as well would leave one too many.
    flags = request.flags | NLM_F_REQUEST | (0 if request.flags & NLM_F_DUMP == NLM_F_DUMP else NLM_F_ACK)
    size = 16 + len(request.body)
    return _HEADER.pack(size, request.type, flags, sequence, 0) + request.body + b"\0" * (-size % 4)


def _failure(kind: int, flags: int, body: bytes, request: Request) -> NetlinkError | None:
    number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
    if number == 0 or number in request.accept:
        return None
    detail = ""
    if flags & NLM_F_ACK_TLVS:
        # man 7 netlink: the error number, then the request's header, and its payload unless it was capped.
        skip = 4
        if kind == NLMSG_ERROR:
            skip = 20 if flags & NLM_F_CAPPED else 4 + ((struct.unpack_from("=I", body, 4)[0] + 3) & ~3)
        detail = to_text(attributes(body[skip:]).get(NLMSGERR_ATTR_MSG))
    return NetlinkError(number, detail, request.says)


def open_socket() -> socket.socket:
    """A route netlink socket of the calling thread's network namespace."""
    transport = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        transport.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        transport.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        transport.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        seconds, fraction = divmod(ANSWER_SECONDS, 1)
        transport.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(seconds), int(fraction * 1e6))
        )
        transport.bind((0, 0))
    except BaseException:
        transport.close()
        raise
    return transport


def socket_in(namespace: int) -> socket.socket:
    """A route netlink socket of the network namespace that the file descriptor `namespace` refers to.

    A thread of its own enters the namespace, opens the socket and ends there: no other thread is ever in it.

    Raises: OSError: `namespace` is not a network namespace, or we may not enter it.
    """
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def enter() -> None:
        try:
            if _libc.setns(namespace, CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            made.append(open_socket())
        except OSError as failure:
            failed.append(failure)

    thread = threading.Thread(target=enter, name="enter network namespace", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def each(messages: Iterable[bytes], header: struct.Struct) -> Iterator[tuple[tuple[int, ...], dict[int, bytes]]]:
    """Family header and attributes of every message that is long enough to have them."""
    for body in messages:
        if len(body) >= header.size:
            yield header.unpack_from(body), attributes(body[header.size :])
