"""The host sides of pods' links as this node made them: seen to be so when the kernel tells of any link, and put back
where somebody else set one down or gave it another name. One that was moved away or removed cannot be: it is named."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from services.dataplane.kernel import rtnl
from services.dataplane.kernel.netlink import Netlink, Refused


@dataclass(frozen=True, slots=True)
class Wanted:
    """A link that there should be."""

    name: str
    index: int
    pod_mac: str
    neighbours: tuple[str, ...]  # the pod's IPv6 addresses: the kernel forgets them when the link goes down


class Mended(NamedTuple):
    """What a look at links found."""

    put_back: list[str]  # what was wrong, in words
    gone: list[str]  # names
    refused: list[str]  # what is wrong still, in words; they are up, and went down maybe


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


def sysctls_of(name: str) -> dict[str, str]:
    """Of the host side of a pod's link."""
    return {f"ipv4/conf/{name}/rp_filter": "0", f"ipv4/conf/{name}/forwarding": "1"}


def mend_pod_links(netlink: Netlink, wanted: Iterable[Wanted]) -> Mended:
    """What the kernel refuses for one link is found there, and keeps no other from being mended."""
    seen = {link.index: link for link in rtnl.list_links(netlink)}
    mended = Mended([], [], [])
    for each in wanted:
        found = seen.get(each.index)
        if found is None or found.kind != "veth":
            mended.gone.append(each.name)
            continue
        if found.up and found.name == each.name:
            continue
        wrong = f"{each.name} was {'down' if found.name == each.name else f'named {found.name}'}"
        try:
            _mend(netlink, found.name, each)
        except Refused as failure:
            if failure.errno == errno.ENODEV:
                mended.gone.append(each.name)
            else:
                mended.refused.append(f"{wrong}: cannot {failure}")
        else:
            mended.put_back.append(wrong)
    return mended


def _mend(netlink: Netlink, name: str, wanted: Wanted) -> None:
    try:
        if name != wanted.name:
            rtnl.rename(netlink, wanted.index, wanted.name)
    finally:  # whatever its name is, the pod is reached by it: programs and routes go by index
        rtnl.set_up(netlink, wanted.index)
        for address in wanted.neighbours:
            rtnl.set_neighbour(netlink, wanted.index, address, wanted.pod_mac)
