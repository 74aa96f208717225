"""The node's devices and routes as the kernel has them, and that the kernel tells of a change."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections import defaultdict
from ipaddress import ip_network
from typing import Any

from pyroute2.netlink import NLM_F_DUMP
from pyroute2.netlink import rtnl as kinds
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import RT_SCOPE_UNIVERSE, rtmsg

from services.dataplane.kernel import rtnl
from services.dataplane.kernel.netlink import Netlink, message
from services.dataplane.shapes.devices import NOT_DEFAULT, OURS, PORTS_OF, DeviceInfo, Route, Seen
from services.dataplane.shapes.ip import EVERYTHING

ETHERNET = 1  # linux/if_arp.h
IFF_LOOPBACK = 8
BY_ANOTHER = ("gateway", "via", "encap_type", "multipath")  # a route with one of these leads to no neighbour itself


def list_devices(netlink: Netlink) -> Seen:
    """Every device, chosen or not, and the node's unicast routes but ours to its pods."""
    links = netlink.ask("list links", kinds.RTM_GETLINK, NLM_F_DUMP, message(ifinfmsg))
    addresses: defaultdict[int, list[str]] = defaultdict(list)
    for each in netlink.ask("list addresses", kinds.RTM_GETADDR, NLM_F_DUMP, message(ifaddrmsg)):
        if each["scope"] == RT_SCOPE_UNIVERSE:
            addresses[each["index"]].append(each.get("local") or each.get("address"))
    routes: list[Route] = []
    metrics: dict[int, int] = {}
    networks: defaultdict[int, list[str]] = defaultdict(list)
    for each in _unicast_routes(netlink):
        version = 4 if each["family"] == socket.AF_INET else 6
        network = f"{each.get('dst')}/{each['dst_len']}" if each.get("dst") else EVERYTHING[version]
        by = frozenset(_outputs(each))
        table = each.get("table") or each["table"]
        if network.startswith("fe80:"):
            continue
        routes.append(Route(network, table, by, each.get("priority") or 0))
        if table != rtnl.MAIN_TABLE:
            continue
        for index in by:
            if network == EVERYTHING[version]:
                metrics[index] = min(each.get("priority") or 0, metrics.get(index, NOT_DEFAULT))
            if not any(map(each.get, BY_ANOTHER)) and not ip_network(network).is_link_local:
                networks[index].append(network)  # even everything: a default route without a gateway
    names = {link["index"]: link for link in links}
    devices = []
    for link in links:
        index = link["index"]
        there = addresses[index]
        devices.append(
            DeviceInfo(
                name=link.get("ifname"),
                index=index,
                mac=link.get("address") or "",
                address=next((each for each in there if ":" not in each), ""),
                mtu_bytes=link.get("mtu") or 0,
                address6=next((each for each in there if ":" in each), ""),
                networks=tuple(networks[index]),
                addresses=tuple(there),
                metric=metrics.get(index, NOT_DEFAULT),
                kind=link.get(("linkinfo", "kind")) or "",
                why_not=_why_not(link, names),
            )
        )
    return Seen(tuple(devices), tuple(routes))


def _unicast_routes(netlink: Netlink) -> list[Any]:
    found: list[Any] = []
    for version, family in rtnl.FAMILY.items():
        wanted = message(rtmsg, family=family, type=kinds.rt_type["unicast"])
        says = f"list IPv{version} routes"
        found += netlink.ask(says, kinds.RTM_GETROUTE, NLM_F_DUMP, wanted, rtnl.NO_ROUTES)
    return [each for each in found if each["proto"] != rtnl.POD_ROUTE_PROTOCOL]


def _outputs(route: Any) -> list[int]:
    several = route.get("multipath") or ()
    return [each["oif"] for each in several] or ([route.get("oif")] if route.get("oif") else [])


def _why_not(link: Any, links: dict[int, Any]) -> str:
    """See shapes/devices.py; "": it may lead out."""
    name: str = link.get("ifname")
    master = links.get(link.get("master"))
    if link["flags"] & IFF_LOOPBACK:
        return "loopback"
    if name.startswith(OURS) or link.get("group") == rtnl.POD_GROUP:
        return "one of Plexus's own"
    if link["ifi_type"] != ETHERNET:
        return "no Ethernet"
    if master is not None and (link.get(("linkinfo", "slave_kind")) or _kind(master)) in PORTS_OF:
        return f"a port of {master.get('ifname')}"
    return ""


def _kind(link: Any) -> str:
    return link.get(("linkinfo", "kind")) or ""


class DeviceEvents:
    """What the kernel tells of devices, their addresses and routes, in the network namespace of the maker's thread. Of
    what we make ourselves, links and routes of pods, nothing is told."""

    GROUPS = 1 << 0 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10
    """RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE, each less one."""
    LINKS, ADDRESSES, ROUTES = frozenset({16, 17}), frozenset({20, 21}), frozenset({24, 25})
    IFLA_IFNAME = 3
    LOCAL_TABLE, UNICAST = 255, 1
    OURS = (rtnl.POD_ROUTE_PROTOCOL, rtnl.NODE_ROUTE_PROTOCOL)

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, self.GROUPS))
        self._told = asyncio.Event()

    def close(self) -> None:
        self._socket.close()

    async def wait(self) -> None:
        """Until something was told since the last time."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._read)
        try:
            await self._told.wait()
            self._told.clear()
        finally:
            loop.remove_reader(self._socket)

    def _read(self) -> None:
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as failure:
                if failure.errno != errno.ENOBUFS:
                    raise
                self._told.set()  # something was told, and found no room
                continue
            if self._concerns(data):
                self._told.set()

    def _concerns(self, data: bytes) -> bool:
        while len(data) >= 24:
            size, kind = struct.unpack_from("=IH", data)
            one, data = data[:size], data[max(16, (size + 3) & ~3) :]
            if kind in self.LINKS and not _name_in(one).startswith(OURS):
                return True
            if kind in self.ADDRESSES and struct.unpack_from("=I", one, 20)[0] != rtnl.LOOPBACK_INDEX:
                return True
            if (
                kind in self.ROUTES
                and one[21] not in self.OURS
                and one[20] != self.LOCAL_TABLE
                and one[23] == self.UNICAST
            ):
                return True
        return False


def _name_in(told: bytes) -> str:
    """The link's name, from a message about it: a header of 16 bytes, one of 16, and attributes."""
    at = 32
    while at + 4 <= len(told):
        size, kind = struct.unpack_from("=HH", told, at)
        if kind == DeviceEvents.IFLA_IFNAME:
            return told[at + 4 : at + size].rstrip(b"\0").decode(errors="replace")
        at += max(4, (size + 3) & ~3)
    return ""
