"""The host sides of pods' links as this node made them: seen to be so when the kernel tells of any link, and put back
where somebody else set one down or gave it another name. One that was moved away or removed cannot be: it is named."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from services.dataplane import rtnl
from services.dataplane.netlink import Netlink


@dataclass(frozen=True, slots=True)
class Wanted:
    """A link that there should be."""

    name: str
    index: int
    pod_mac: str
    neighbours: tuple[str, ...]  # the pod's IPv6 addresses: the kernel forgets them when the link goes down


class LinkEvents:
    """Whether the kernel told of any link, in the network namespace of the maker's thread."""

    GROUP = 1  # RTMGRP_LINK

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, self.GROUP))

    def close(self) -> None:
        self._socket.close()

    def take(self) -> bool:
        """Since the last time. What found no room in the socket counts as told."""
        told = False
        while True:
            try:
                self._socket.recv(1)
            except BlockingIOError:
                return told
            except OSError as failure:
                if failure.errno != errno.ENOBUFS:
                    raise
            told = True


def mend_pod_links(netlink: Netlink, wanted: Iterable[Wanted]) -> tuple[list[str], list[str]]:
    """Returns what was wrong and is put back, in words, and the names of those that are gone. Raises: Refused."""
    seen = {link.index: link for link in rtnl.list_links(netlink)}
    mended, gone = [], []
    for each in wanted:
        found = seen.get(each.index)
        if found is None or found.kind != "veth":
            gone.append(each.name)
            continue
        if found.name != each.name:
            mended.append(f"{each.name} was named {found.name}")
            rtnl.rename(netlink, each.index, each.name)
        elif found.up:
            continue
        else:
            mended.append(f"{each.name} was down")
        rtnl.set_up(netlink, each.index)
        for address in each.neighbours:
            rtnl.set_neighbour(netlink, each.index, address, each.pod_mac)
    return mended, gone
