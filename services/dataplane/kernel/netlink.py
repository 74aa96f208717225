"""How this service stands on pyroute2: sockets in the right namespace, refusals in words, and what pyroute2 lacks.

Messages are pyroute2's classes, and so is the socket: its plain one, not `IPRoute`, whose event loop behind every call
costs a pod's start more time than the kernel does (docs/adr/0003-netlink.md). A caller blocks for as long as the kernel
holds its routing lock.

Needs CAP_NET_ADMIN for every change, CAP_SYS_ADMIN for `open_within`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyroute2 import netns
from pyroute2.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    nla,
)
from pyroute2.netlink.rtnl.iprsocket import IPRSocket
from pyroute2.netlink.rtnl.rtmsg import LWTUNNEL_ENCAP_IP, LWTUNNEL_ENCAP_IP6, rtmsg
from pyroute2.netlink.rtnl.tcmsg import sched_bpf

ANSWER_SECONDS = 10.0  # the routing lock is held for tens of milliseconds at worst; far beyond that something is stuck
DUMP_ATTEMPTS = 4
HEADER_BYTES = 16

_libc = ctypes.CDLL(None, use_errno=True)  # pyroute2 would start ldconfig to find it


class Refused(OSError):
    """The kernel refused a request. `errno` is its number, `request` says in words what was asked."""

    def __init__(self, number: int, detail: str, request: str) -> None:
        super().__init__(number, detail)
        self.request = request

    def __str__(self) -> str:
        return f"{self.request}: {self.strerror} ({errno.errorcode.get(self.errno or 0, self.errno)})"


class IpEncapsulation(nla):  # type: ignore[misc]
    """`encap ip` of a route, which pyroute2 lacks. Source: linux/lwtunnel.h."""

    prefix = "LWTUNNEL_IP_"
    nla_map = (("LWTUNNEL_IP_UNSPEC", "none"), ("LWTUNNEL_IP_ID", "be64"), ("LWTUNNEL_IP_DST", "ip4addr"))


class Ip6Encapsulation(nla):  # type: ignore[misc]
    """The same to a tunnel endpoint that has an IPv6 address."""

    prefix = "LWTUNNEL_IP6_"
    nla_map = (("LWTUNNEL_IP6_UNSPEC", "none"), ("LWTUNNEL_IP6_ID", "be64"), ("LWTUNNEL_IP6_DST", "ip6addr"))


rtmsg.encaps[LWTUNNEL_ENCAP_IP] = IpEncapsulation
rtmsg.encaps[LWTUNNEL_ENCAP_IP6] = Ip6Encapsulation

# Of a bpf filter pyroute2 knows the attributes up to TCA_BPF_FLAGS. Source: linux/pkt_cls.h.
sched_bpf.options.nla_map += (("TCA_BPF_FLAGS_GEN", "uint32"), ("TCA_BPF_TAG", "cdata"), ("TCA_BPF_ID", "uint32"))


def message(form: Any, attributes: Iterable[tuple[str, Any]] = (), **fields: int) -> Any:
    """A message of pyroute2's class `form`: header `fields` and attributes, both by pyroute2's names."""
    made = form()
    made.setvalue({**fields, "attrs": list(attributes)})
    return made


class Netlink:
    """A route netlink socket. It belongs to the network namespace of the thread that made it, wherever it is used.

    Not for two threads at once.
    """

    def __init__(self) -> None:
        self._socket = IPRSocket(ext_ack=True, strict_check=True)
        self._socket.socket.settimeout(ANSWER_SECONDS)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, says: str, kind: int, flags: int, request: Any, accept: tuple[int, ...] = ()) -> list[Any]:
        """The messages that answer `request`; a list is read again when it changed meanwhile.

        Args:
            says: what it does, in words, for the error text.
            request: of a class of pyroute2's, as `message` makes it.
            accept: error numbers that mean "already so".
        Raises: Refused; TimeoutError: no answer.
        """
        # A list is answered by its end mark; asking for an acknowledgement as well would leave one too many.
        flags |= NLM_F_REQUEST if flags & NLM_F_DUMP == NLM_F_DUMP else NLM_F_REQUEST | NLM_F_ACK
        for _ in range(DUMP_ATTEMPTS):
            self._sequence += 1
            self._socket.put(request, kind, flags, msg_seq=self._sequence)
            found, end, whole = self._answers()
            # Read here, because pyroute2 passes over the error number in the end mark of a list.
            number = -struct.unpack_from("=i", end.data, end.offset + HEADER_BYTES)[0]
            if number and number not in accept:
                raise Refused(number, end.get("msg") or os.strerror(number), says)
            if whole:
                return found
        raise Refused(errno.EINTR, "the list changed while it was read", says)

    def _answers(self) -> tuple[list[Any], Any, bool]:
        """The messages before the end mark, the end mark, and whether nothing changed meanwhile."""
        found: list[Any] = []
        whole = True
        while True:
            for answer in self._socket.get():
                header = answer["header"]
                if header["sequence_number"] != self._sequence:
                    continue  # the late answer to a request that timed out
                # pyroute2 passes over the kernel's mark that a list changed while it was read.
                whole = whole and not header["flags"] & NLM_F_DUMP_INTR
                if header["type"] in (NLMSG_ERROR, NLMSG_DONE):
                    return found, answer, whole
                found.append(answer)


def open_within(namespace: int, prepare: Callable[[], None] = lambda: None) -> Netlink:
    """A socket in the network namespace that the file descriptor `namespace` refers to.

    A thread of its own enters the namespace, does `prepare`, opens the socket and ends there: no other thread is ever
    in it.
    (pyroute2's `netns=` lacks that way: it forks this process, with all its threads, for every socket.)

    Raises: OSError: `namespace` is not a network namespace, or we may not enter it.
    """

    def enter() -> Netlink:
        netns.setns(namespace, libc=_libc)
        prepare()
        return Netlink()

    with ThreadPoolExecutor(1, "enter network namespace") as thread:
        return thread.submit(enter).result()
