"""Sockets as the kernel lists them, namespace by namespace, and the end of some (NETLINK_SOCK_DIAG). Effects.

The kernel ends a socket (SOCK_DESTROY, as `ss -K` does) by its cookie, which no other socket has, so that nothing else
is met. Whoever waits on it gets ECONNABORTED. The kernel needs CONFIG_INET_DIAG_DESTROY for that.

A pod that may send netlink messages can send them to a socket in its namespace. So answers are taken of the kernel
alone, which has them ready when the question returns: nobody is waited for, and few messages of others are passed over.
An answer that is not of the form it should have is refused as a whole.

A namespace of the cgroup is that of a process in it, so a dataplane that does not see the node's processes (a pod
without `hostPID`) finds its own alone. The kernel lists each of the others as 0, and the walk says so.

Needs CAP_NET_ADMIN, and CAP_SYS_ADMIN to enter namespaces.
Source: linux/inet_diag.h, linux/sock_diag.h
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pyroute2 import netns

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x001, 0x004, 0x300
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE = 1, 2, 3

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
ESTABLISHED, CLOSE = 1, 7  # of UDP: connected, not connected. Source: net/tcp_states.h
STATES = {UDP: 1 << ESTABLISHED | 1 << CLOSE, TCP: 0b1011_0011_0110}
"""Those that are listed. Of TCP: ESTABLISHED 1, SYN_SENT 2, FIN_WAIT1 4, FIN_WAIT2 5, CLOSE_WAIT 8, LAST_ACK 9 and
CLOSING 11: something is still awaited of the other end."""

HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
REQUEST = struct.Struct("=BBBxI48s")  # inet_diag_req_v2: family, protocol, extensions, states, id
FOUND = struct.Struct("=BBxx2s2s16s16sIQ20x")  # inet_diag_msg: family, state, id (ports, addresses, device, cookie)
ID_AT, ID_BYTES = 4, 48  # of inet_diag_msg's id, which is given back as it is
COOKIE, COOKIE_AT = struct.Struct("=Q"), 44
NUMBER = struct.Struct("=i")
OTHERS_MAX = 1000  # messages that are not of the kernel's, while one answer is read
BUFFER_BYTES = 1 << 17  # the kernel makes parts of a list at most 32 kB
HIDDEN = "0"  # in cgroup.procs: a process that has no number in the reader's pid namespace
MAPPED = bytes(10) + b"\xff\xff"  # what IPv4 begins with where an address is 16 bytes

Peer = tuple[bytes, bytes]  # address and port as in `Found`

_libc = ctypes.CDLL(None, use_errno=True)  # pyroute2 would start ldconfig to find it


class Found(NamedTuple):
    """One socket. Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d; ports 2 bytes, as on the wire."""

    cookie: int
    state: int
    address: bytes  # of the other end
    port: bytes
    family: int
    identifier: bytes  # to the kernel


class Unanswered(OSError):
    """What came is no answer of the kernel's."""


def answers(data: bytes, sequence: int, cookies: Container[int]) -> tuple[list[Found], int | None]:
    """One datagram taken apart: those of the sockets in it that have one of `cookies`, and, if the answer ends with it,
    the kernel's error number (0: none).

    Raises: Unanswered: it is not of the form that the kernel gives it.
    """
    found: list[Found] = []
    for kind, number, body in _messages(data):
        if number != sequence or kind == NLMSG_NOOP:
            continue  # the late answer to a question that is not waited for any more
        if kind in (NLMSG_ERROR, NLMSG_DONE):
            if len(body) < NUMBER.size:
                raise _unanswered(f"a message of {len(body)} bytes ends the answer")
            return found, -NUMBER.unpack_from(body)[0]
        if kind != SOCK_DIAG_BY_FAMILY or len(body) < FOUND.size:
            raise _unanswered(f"a message of type {kind} with {len(body)} bytes")
        if COOKIE.unpack_from(body, COOKIE_AT)[0] in cookies:
            found.append(_socket(body))
    return found, None


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while len(data) - at >= HEADER.size:
        size, kind, _, number, _ = HEADER.unpack_from(data, at)
        if not HEADER.size <= size <= len(data) - at:
            raise _unanswered(f"a message of {size} bytes in {len(data) - at}")
        yield kind, number, data[at + HEADER.size : at + size]
        at += (size + 3) & ~3
    if len(data) > at:
        raise _unanswered(f"{len(data) - at} bytes after the last message")


def _socket(body: bytes) -> Found:
    family, state, _, port, _, address, _, cookie = FOUND.unpack_from(body)
    if family == socket.AF_INET:
        address = MAPPED + address[:4]
    return Found(cookie, state, address, port, family, body[ID_AT : ID_AT + ID_BYTES])


def _unanswered(what: str) -> Unanswered:
    return Unanswered(errno.EBADMSG, f"not an answer of the kernel's: {what}")


class SocketDiag:
    """In the network namespace of the thread that makes it. Not for two threads at once."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        self._socket.setblocking(False)
        self._sequence = 0

    def __enter__(self) -> SocketDiag:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def sockets(self, family: int, protocol: int, cookies: Container[int]) -> list[Found]:
        """Those of TCP or UDP that are of `family` and have one of `cookies`. A microsecond for each that there is.

        Raises: OSError: the kernel lists none (no CONFIG_INET_UDP_DIAG: ENOENT); Unanswered.
        """
        self._ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, REQUEST.pack(family, protocol, 0, STATES[protocol], bytes(ID_BYTES)))
        sockets, number = self._answer(cookies)
        _check(number)
        return sockets

    def end(self, found: Found, protocol: int) -> bool:
        """End that socket. False: there is none like it any more.

        Raises: OSError: EOPNOTSUPP: this kernel ends no sockets. Unanswered.
        """
        self._ask(SOCK_DESTROY, NLM_F_ACK, REQUEST.pack(found.family, protocol, 0, 0, found.identifier))
        _, number = self._answer(())
        if number in (errno.ENOENT, errno.ESTALE):
            return False
        _check(number)
        return True

    def _ask(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, self._sequence, 0)
        self._socket.sendto(header + body, (0, 0))

    def _answer(self, cookies: Container[int]) -> tuple[list[Found], int]:
        sockets: list[Found] = []
        while True:
            found, number = answers(self._receive(), self._sequence, cookies)
            sockets += found
            if number is not None:
                return sockets, number

    def _receive(self) -> bytes:
        for _ in range(OTHERS_MAX):
            data, _, flags, (port_id, _) = self._socket.recvmsg(BUFFER_BYTES)
            if port_id:
                continue  # not of the kernel's
            if flags & socket.MSG_TRUNC:
                raise _unanswered(f"more than {BUFFER_BYTES} bytes")
            return data
        raise _unanswered(f"{OTHERS_MAX} messages of others")


def _check(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))


@dataclass(slots=True)
class Walk:
    """What one walk through namespaces found."""

    ended: list[tuple[int, int]] = field(default_factory=list)  # protocol, cookie
    unconnected: set[int] = field(default_factory=set)  # cookies of those that have no other end at this moment
    problems: list[str] = field(default_factory=list)
    lacks: str = ""  # what this kernel cannot do at all
    is_whole: bool = True  # every namespace was seen, or every socket that was asked for


def walk(
    wanted: Mapping[int, Container[Peer]], protocols: Iterable[int], cgroup: Path | None, stop: threading.Event
) -> Walk:
    """End each socket that has the cookie and one of the other ends that are wanted, in the namespace of the calling
    thread and in those of the processes of `cgroup`.

    The calling thread is in any of them afterwards: it is to be one that ends now. A namespace or a process that goes
    meanwhile is passed over, and its sockets with it.
    """
    done, left = Walk(), set(wanted)
    for processes in _namespaces(cgroup, done):
        if not left:
            break
        if stop.is_set() or done.lacks:
            done.is_whole = False
            break
        try:
            if _enter(processes):
                _end_here(wanted, left, protocols, done)
        except OSError as problem:
            done.is_whole = False
            done.problems.append(str(problem))
    return done


def _end_here(wanted: Mapping[int, Container[Peer]], left: set[int], protocols: Iterable[int], done: Walk) -> None:
    with SocketDiag() as diag:
        for protocol in protocols:
            for family in (socket.AF_INET, socket.AF_INET6):  # a socket of IPv6 may speak to ::ffff:a.b.c.d
                try:
                    found = diag.sockets(family, protocol, left)
                except OSError as problem:
                    if problem.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
                        raise
                    done.lacks = "lists no sockets (CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG)"
                    return
                left.difference_update(each.cookie for each in found)
                done.unconnected |= {each.cookie for each in found if each.state == CLOSE}
                gone = [each for each in found if (each.address, each.port) in wanted[each.cookie]]
                _end_each(diag, gone, protocol, done)


def _end_each(diag: SocketDiag, gone: list[Found], protocol: int, done: Walk) -> None:
    """Of two UDP sockets with the same ends the kernel finds one, so who was not found is asked for again."""
    while gone:
        remaining = []
        for each in gone:
            try:
                is_ended = diag.end(each, protocol)
            except OSError as problem:
                if problem.errno != errno.EOPNOTSUPP:
                    raise
                done.lacks = "ends no sockets (CONFIG_INET_DIAG_DESTROY)"
                return
            if is_ended:
                done.ended.append((protocol, each.cookie))
            else:
                remaining.append(each)
        if len(remaining) == len(gone):
            return  # closed meanwhile
        gone = remaining


def _namespaces(cgroup: Path | None, done: Walk) -> Iterator[Sequence[str]]:
    """That of the calling thread (no process named), then every other one: processes that are in it. Whoever comes to
    the end of them learns whether these were all."""
    own = Path("/proc/thread-self/ns/net").stat()
    yield ()
    found: dict[tuple[int, int], list[str]] = {}
    is_any_hidden = False
    for process in _processes(cgroup) if cgroup is not None else ():
        if process == HIDDEN:
            is_any_hidden = True
            continue
        with suppress(OSError):  # it has ended
            seen = os.stat(f"/proc/{process}/ns/net")  # noqa: PTH116 (thousands of them)
            found.setdefault((seen.st_dev, seen.st_ino), []).append(process)
    found.pop((own.st_dev, own.st_ino), None)
    yield from found.values()
    if is_any_hidden:
        done.is_whole = False
        done.problems.append(f"processes in {cgroup} are not seen, nor their sockets: run the dataplane with hostPID")


def _processes(cgroup: Path) -> Iterator[str]:
    for folder, _, _ in os.walk(cgroup):
        with suppress(OSError):  # it is gone, or a threaded one, whose processes its parent lists
            yield from (Path(folder) / "cgroup.procs").read_text().split()


def _enter(processes: Sequence[str]) -> bool:
    """Whether the calling thread is in the namespace of these now. Raises: OSError: it may not enter it."""
    for process in processes:
        try:
            namespace = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # it has ended
        try:
            netns.setns(namespace, libc=_libc)
        finally:
            os.close(namespace)
        return True
    return not processes
