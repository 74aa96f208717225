"""How this service stands on pyroute2: sockets in the right namespace, refusals in words, and what pyroute2 lacks.

There is no event loop of ours in here: a caller blocks for as long as the kernel holds its routing lock. An `IPRoute`
belongs to the thread that opened it (pyroute2 opens another socket for any other thread), and is for that thread only.

Needs CAP_NET_ADMIN for every change, CAP_SYS_ADMIN for `within`.
Source: docs/adr/0003-netlink.md
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from pyroute2 import netns
from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink import NLM_F_DUMP_INTR, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.rtmsg import LWTUNNEL_ENCAP_IP, rtmsg
from pyroute2.netlink.rtnl.tcmsg import sched_bpf

T = TypeVar("T")

DUMP_ATTEMPTS = 4

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


rtmsg.encaps[LWTUNNEL_ENCAP_IP] = IpEncapsulation

# Of a bpf filter pyroute2 knows the attributes up to TCA_BPF_FLAGS. Source: linux/pkt_cls.h.
sched_bpf.options.nla_map += (("TCA_BPF_FLAGS_GEN", "uint32"), ("TCA_BPF_TAG", "cdata"), ("TCA_BPF_ID", "uint32"))


class Marshal(MarshalRtnl):  # type: ignore[misc]
    """Remembers that a list changed while it was read: pyroute2 0.9.7 passes over the kernel's mark."""

    interrupted = False

    def parse_one_message(self, key: int, flags: int, *more: Any) -> Any:
        self.interrupted |= bool(flags & NLM_F_DUMP_INTR)
        return super().parse_one_message(key, flags, *more)


def open_route() -> Any:
    """An `IPRoute` of the calling thread, in its network namespace. It must be closed by the same thread."""
    opened = IPRoute(ext_ack=True, strict_check=True)
    opened.set_marshal(Marshal())
    return opened


def within(namespace: int, work: Callable[[Any], T]) -> T:
    """`work(IPRoute)` in the network namespace that the file descriptor `namespace` refers to.

    A thread of its own enters the namespace and ends there: no other thread is ever in it. (`IPRoute(netns=...)`
    lacks that way: it forks this process, with all its threads, for every socket.)

    Raises: OSError: `namespace` is not a network namespace, or we may not enter it; whatever `work` raises.
    """

    def enter() -> T:
        netns.setns(namespace, libc=_libc)
        with open_route() as opened:
            return work(opened)

    with ThreadPoolExecutor(1, "within a pod") as thread:
        return thread.submit(enter).result()


@contextmanager
def asked(says: str, *accept: int) -> Iterator[None]:
    """Around one request. `says`: what it does, in words. `accept`: error numbers that mean "already so".

    Raises: Refused.
    """
    try:
        yield
    except NetlinkError as failure:
        if failure.code not in accept:
            raise Refused(failure.code, failure.args[1], says) from failure


def listed(route: Any, says: str, ask: Callable[[], Iterable[Any]]) -> list[Any]:
    """All messages of a dump, read again when it changed meanwhile.

    Raises: Refused.
    """
    for _ in range(DUMP_ATTEMPTS):
        route.marshal.interrupted = False
        with asked(says):
            found = list(ask())
        if not route.marshal.interrupted:
            return found
    raise Refused(errno.EINTR, "the list changed while it was read", says)
