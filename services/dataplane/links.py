"""Links, routes and attached programs of one node: the only code that changes them.

Two threads do the work, so the event loop never waits for the kernel's routing lock: one makes and looks, the other
removes (a removal sleeps for tens of milliseconds, and all that wait at once go in one sweep). Each has one netlink
socket for as long as it lives. Nothing here ever stands in a pod's namespace: a short-lived thread opens a socket
there (netlink.py).

Needs CAP_NET_ADMIN in the node's network namespace, CAP_SYS_ADMIN to enter a pod's, and a writable /proc/sys/net.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from services.dataplane import rtnl
from services.dataplane.batch import Batch
from services.dataplane.netlink import Netlink, NetlinkError, Request, socket_in
from services.dataplane.rtnl import Attached, Direction, NodeRoute, SeenLink

__all__ = [
    "Attached",
    "DeviceInfo",
    "Direction",
    "LinkError",
    "Links",
    "NodeRoute",
    "PodLink",
    "SeenLink",
    "TcProgram",
    "host_link_name",
    "link_mac",
]

T = TypeVar("T")

HOST_PREFIX = "lxc"
SYSCTLS = Path("/proc/sys/net/ipv4")


class LinkError(Exception):
    """The kernel refused. The text says what was tried, why it failed, and what to do."""


@dataclass(frozen=True, slots=True)
class TcProgram:
    """A loaded program for a hook of a link; `fd` stays the caller's."""

    fd: int
    direction: Direction  # seen from the host: what a pod sends is ingress of its host side
    name: str


@dataclass(frozen=True, slots=True)
class PodLink:
    """A pod's link, made."""

    host_name: str
    host_index: int
    host_mac: str
    pod_mac: str
    pod_index: int  # in the pod's namespace


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    name: str
    index: int
    mac: str
    address: str  # its first global IPv4 address, "" when it has none
    mtu_bytes: int


def host_link_name(container_id: str, ifname: str) -> str:
    """The name of the host side: 15 characters, the most that the kernel takes, the same for the same interface."""
    return HOST_PREFIX + _digest(container_id, ifname, "name")[:12]


def link_mac(container_id: str, ifname: str, side: str) -> str:
    """A locally administered unicast address, the same for the same interface. `side`: "host" or "pod"."""
    octets = bytearray.fromhex(_digest(container_id, ifname, side)[:12])
    octets[0] = octets[0] & 0xFC | 0x02
    return octets.hex(":")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Links:
    """Everything about links in the network namespace of the thread that makes this object, and first uses it."""

    def __init__(self) -> None:
        self._netlink = Netlink()
        self._removing = Netlink()
        self._thread = ThreadPoolExecutor(1, "links")
        self._removal_thread = ThreadPoolExecutor(1, "links remove")
        self._removals: Batch[str] = Batch(self._removal_thread, self._remove)

    def close(self) -> None:
        """Waits for what runs. Links, routes and programs stay as they are."""
        self._thread.shutdown()
        self._removal_thread.shutdown()
        self._netlink.close()
        self._removing.close()

    async def _run(self, work: Callable[..., T], *arguments: object, namespace: int | None = None) -> T:
        """`work` on the thread. A `namespace` comes first among its arguments, as a descriptor of its own: the thread
        may still use it when the caller was cancelled and closed theirs."""
        if namespace is None:
            future = self._thread.submit(work, *arguments)
        else:
            own = os.dup(namespace)
            future = self._thread.submit(work, own, *arguments)
            future.add_done_callback(lambda _: os.close(own))
        try:
            return await asyncio.wrap_future(future)
        except NetlinkError as failure:
            raise LinkError(_advice(failure)) from failure
        except TimeoutError as failure:
            raise LinkError(f"{failure}; try again") from failure
        except BlockingIOError as failure:
            raise LinkError("the kernel gave no answer in time: its routing lock is held; try again") from failure
        except OSError as failure:
            raise LinkError(f"{failure}; is this process privileged (CAP_NET_ADMIN, CAP_SYS_ADMIN)?") from failure

    # A pod's link

    async def create_pod_link(
        self,
        netns_fd: int,
        container_id: str,
        ifname: str,
        address: str,
        gateway: str,
        mtu_bytes: int,
        programs: Sequence[TcProgram] = (),
    ) -> PodLink:
        """Give a pod its interface, `address`/32, its routes by way of `gateway`, and the node the route back.

        `programs` are on the host side before it is up: no packet passes without them. Asking again returns the
        same link, mended where something is missing. After a failure nothing of a link made here is left.

        Args:
            netns_fd: the pod's network namespace, open for as long as this runs.
            gateway: the node's router address. The pod holds a permanent neighbour entry for it, so no packet waits
                for ARP; `host_mac` is what ARP must answer should the pod ask nevertheless.
        Raises: LinkError.
        """
        arguments = (container_id, ifname, address, gateway, mtu_bytes, tuple(programs))
        return await self._run(self._create, *arguments, namespace=netns_fd)

    async def delete_pod_link(self, name: str) -> None:
        """Remove a pod's link from both sides, with its routes and programs; nothing when it is gone already."""
        if not name.startswith(HOST_PREFIX):
            raise ValueError(f"{name} is not the host side of a pod's link")
        try:
            await self._removals.add(name)
        except OSError as failure:
            raise LinkError(f"{failure}; the removal may be asked again") from failure

    async def list_pod_links(self) -> list[SeenLink]:
        """The host sides of pods' links, by name."""
        return await self._run(self._pod_links)

    async def check_pod_link(
        self, netns_fd: int, container_id: str, ifname: str, address: str, gateway: str
    ) -> tuple[str, ...]:
        """What is not as `create_pod_link` left it, in words; empty when all is well."""
        return await self._run(self._check, container_id, ifname, address, gateway, namespace=netns_fd)

    # Programs

    async def attach_tc(self, ifindex: int, prog_fd: int, direction: Direction, name: str) -> None:
        """Attach a program; the one that is there is replaced atomically."""
        await self._run(self._netlink.run, [rtnl.new_clsact(ifindex), rtnl.attach(ifindex, prog_fd, direction, name)])

    async def detach_tc(self, ifindex: int, direction: Direction) -> None:
        """Nothing when nothing is attached, or the link is gone."""
        await self._run(self._netlink.run, [rtnl.detach(ifindex, direction)])

    async def list_tc(self, ifindex: int) -> list[Attached]:
        """Every program on both hooks of a link, ours and others'; empty when the link is gone."""
        return await self._run(self._list_tc, ifindex)

    # The node

    async def device_info(self, name: str) -> DeviceInfo:
        """Raises: LinkError: there is no such device."""
        return await self._run(self._device_info, name)

    async def ensure_vxlan(self, name: str, port: int, mtu_bytes: int) -> DeviceInfo:
        """A VXLAN device in collect-metadata mode, without ARP. One of other making under this name is replaced."""
        return await self._run(self._ensure_vxlan, name, port, mtu_bytes)

    async def ensure_router_address(self, address: str) -> None:
        """The node answers to `address`, the gateway of its pods; an earlier router address goes.

        It is on the loopback device: always up, has no queue, no peer and no MTU to care for, and a pod's packets to
        it are taken in by their destination address, whatever device it is on.
        """
        await self._run(self._ensure_router_address, address)

    async def ensure_node_route(self, route: NodeRoute) -> None:
        """Raises: LinkError: the device is missing, or the node's address is not directly reachable on it."""
        await self._run(self._ensure_node_route, route)

    async def delete_node_route(self, cidr: str) -> None:
        await self._run(self._netlink.run, [rtnl.delete_node_route(cidr)])

    async def list_node_routes(self) -> list[NodeRoute]:
        """The routes to other nodes' pods that we made, by CIDR."""
        return await self._run(self._list_node_routes)

    async def ensure_sysctls(self, devices: Iterable[str] = ()) -> None:
        """Forwarding on; reverse path filters off for all, for links to come, and for `devices`."""
        await self._run(self._ensure_sysctls, tuple(devices))

    # What runs on the threads

    def _create(
        self,
        netns_fd: int,
        container_id: str,
        ifname: str,
        address: str,
        gateway: str,
        mtu_bytes: int,
        programs: tuple[TcProgram, ...],
    ) -> PodLink:
        name = host_link_name(container_id, ifname)
        host_mac = link_mac(container_id, ifname, "host")
        pod_mac = link_mac(container_id, ifname, "pod")
        with Netlink(socket_in(netns_fd)) as pod:
            new = rtnl.new_veth(name, host_mac, ifname, pod_mac, mtu_bytes, netns_fd)
            host = self._make_veth(new, pod, name, ifname, pod_mac)
            try:
                self._netlink.run(_host_side(host.index, address, programs))
                _disable_reverse_path_filter(name)
                pod.run(_pod_side(host.peer_index, address, gateway, host_mac))
            except BaseException:
                self._netlink.run([rtnl.delete_link(name)])
                raise
        return PodLink(name, host.index, host_mac, pod_mac, host.peer_index)

    def _make_veth(self, new: Request, pod: Netlink, name: str, ifname: str, pod_mac: str) -> SeenLink:
        """The host side; one from before is kept when its peer is the pod's interface, else replaced."""
        for _ in range(2):
            try:
                _, messages = self._netlink.run([new, rtnl.get_link(name)])
                return rtnl.links(messages)[0]
            except NetlinkError as failure:
                existing = self._link(self._netlink, name)
                inside = self._link(pod, ifname)
                if existing is None:
                    if inside is not None:
                        raise LinkError(
                            f"the pod has an interface {ifname} already that is not ours: "
                            "remove it, or let the runtime make a new sandbox"
                        ) from failure
                    raise
                if inside is not None and inside.index == existing.peer_index and inside.mac == pod_mac:
                    return existing
                self._netlink.run([rtnl.delete_link(name)])
        raise LinkError(f"the link {name} comes back whenever it is removed: who else makes it?")

    def _remove(self, names: list[str]) -> None:
        self._removing.run(rtnl.delete_links(names))

    def _link(self, netlink: Netlink, name: str) -> SeenLink | None:
        found = rtnl.links(netlink.run([rtnl.get_link(name)])[0])
        return found[0] if found else None

    def _all_links(self) -> list[SeenLink]:
        return rtnl.links(self._netlink.dump(rtnl.RTM_GETLINK, rtnl.LINK.pack(0, 0, 0, 0, 0), "list links"))

    def _pod_links(self) -> list[SeenLink]:
        found = [link for link in self._all_links() if link.group == rtnl.POD_GROUP and link.kind == "veth"]
        return sorted(found, key=lambda link: link.name)

    def _check(self, netns_fd: int, container_id: str, ifname: str, address: str, gateway: str) -> tuple[str, ...]:
        name = host_link_name(container_id, ifname)
        with Netlink(socket_in(netns_fd)) as pod:
            inside = self._link(pod, ifname)
            if inside is None:
                return (f"the pod has no interface {ifname}",)
            body = rtnl.address_list(inside.index)
            addresses = [found for found, _, _ in rtnl.addresses(pod.dump(rtnl.RTM_GETADDR, body, "list addresses"))]
            routes = pod.dump(rtnl.RTM_GETROUTE, rtnl.route_list(0), "list routes")
        problems = []
        if not inside.up:
            problems.append(f"{ifname} in the pod is down")
        if address not in addresses:
            problems.append(f"{ifname} in the pod does not have {address}")
        if not rtnl.has_default_route(routes, gateway, inside.index):
            problems.append(f"the pod has no default route by way of {gateway}")
        host = self._link(self._netlink, name)
        if host is None:
            return (*problems, f"the host side {name} is gone")
        if host.peer_index != inside.index:
            problems.append(f"the host side {name} belongs to another interface than {ifname}")
        if not host.up:
            problems.append(f"the host side {name} is down")
        ours = self._netlink.dump(rtnl.RTM_GETROUTE, rtnl.route_list(rtnl.POD_ROUTE_PROTOCOL), "list routes")
        if not rtnl.has_link_route(ours, address, host.index):
            problems.append(f"the node has no route to {address} by {name}")
        return tuple(problems)

    def _list_tc(self, ifindex: int) -> list[Attached]:
        found: list[Attached] = []
        directions: tuple[Direction, ...] = ("ingress", "egress")
        for direction in directions:
            try:
                body = rtnl.filter_list(ifindex, direction)
                messages = self._netlink.dump(rtnl.RTM_GETTFILTER, body, f"list programs of link {ifindex}")
            except NetlinkError as failure:
                if failure.errno in rtnl.detach(ifindex, direction).accept:
                    continue
                raise
            found += rtnl.attached(messages, direction)
        return found

    def _device_info(self, name: str) -> DeviceInfo:
        link = self._link(self._netlink, name)
        if link is None:
            known = ", ".join(sorted(link.name for link in self._all_links() if link.group != rtnl.POD_GROUP))
            raise LinkError(f"there is no device {name}: name one of {known}")
        body = rtnl.address_list(link.index)
        found = rtnl.addresses(self._netlink.dump(rtnl.RTM_GETADDR, body, f"list addresses of {name}"))
        address = next((address for address, scope, _ in found if scope == rtnl.RT_SCOPE_UNIVERSE), "")
        return DeviceInfo(link.name, link.index, link.mac, address, link.mtu_bytes)

    def _ensure_vxlan(self, name: str, port: int, mtu_bytes: int) -> DeviceInfo:
        link = self._link(self._netlink, name)
        if link is not None and not rtnl.is_wanted_vxlan(link, port):
            self._netlink.run([rtnl.delete_link(name)])
            link = None
        if link is None:
            self._netlink.run([rtnl.new_vxlan(name, port, mtu_bytes)])
        else:
            self._netlink.run([rtnl.set_mtu(link.index, mtu_bytes), rtnl.set_up(link.index)])
        _write(f"conf/{name}/rp_filter", "0")
        return self._device_info(name)

    def _ensure_router_address(self, address: str) -> None:
        body = rtnl.address_list(rtnl.LOOPBACK_INDEX)
        found = rtnl.addresses(self._netlink.dump(rtnl.RTM_GETADDR, body, "list addresses of lo"))
        stale = [
            rtnl.delete_address(rtnl.LOOPBACK_INDEX, other)
            for other, _, protocol in found
            if protocol == rtnl.ADDRESS_PROTOCOL and other != address
        ]
        wanted = rtnl.new_address(rtnl.LOOPBACK_INDEX, address, rtnl.ADDRESS_PROTOCOL)
        self._netlink.run([rtnl.set_up(rtnl.LOOPBACK_INDEX), wanted, *stale])

    def _ensure_node_route(self, route: NodeRoute) -> None:
        link = self._link(self._netlink, route.device)
        if link is None:
            raise LinkError(f"there is no device {route.device} for the route to {route.cidr}: make it first")
        self._netlink.run([rtnl.node_route(route, link.index)])

    def _list_node_routes(self) -> list[NodeRoute]:
        names = {link.index: link.name for link in self._all_links()}
        body = rtnl.route_list(rtnl.NODE_ROUTE_PROTOCOL)
        found = rtnl.node_routes(self._netlink.dump(rtnl.RTM_GETROUTE, body, "list routes"), names)
        return sorted(found, key=lambda route: route.cidr)

    def _ensure_sysctls(self, devices: tuple[str, ...]) -> None:
        _write("ip_forward", "1")
        for scope in ("all", "default", *devices):
            _write(f"conf/{scope}/rp_filter", "0")


def _host_side(index: int, address: str, programs: tuple[TcProgram, ...]) -> list[Request]:
    hooks = [rtnl.attach(index, program.fd, program.direction, program.name) for program in programs]
    return [
        *([rtnl.new_clsact(index)] if hooks else []),
        *hooks,
        rtnl.set_up(index),
        rtnl.link_route(f"{address}/32", index, rtnl.POD_ROUTE_PROTOCOL),
    ]


def _pod_side(index: int, address: str, gateway: str, gateway_mac: str) -> list[Request]:
    return [
        rtnl.set_up(rtnl.LOOPBACK_INDEX),
        rtnl.set_up(index),
        rtnl.new_address(index, address),
        rtnl.link_route(f"{gateway}/32", index, rtnl.POD_ROUTE_PROTOCOL),
        rtnl.new_neighbour(index, gateway, gateway_mac),
        rtnl.default_route(gateway, index, rtnl.POD_ROUTE_PROTOCOL),
    ]


def _disable_reverse_path_filter(name: str) -> None:
    _write(f"conf/{name}/rp_filter", "0")
    _write(f"conf/{name}/forwarding", "1")


def _write(path: str, value: str) -> None:
    """Set a sysctl of the calling thread's network namespace."""
    file = SYSCTLS / path
    try:
        file.write_text(value)
    except OSError as failure:
        raise LinkError(f"cannot write {value} to {file}: {failure.strerror}; mount /proc/sys writable") from failure


def _advice(failure: NetlinkError) -> str:
    hints = {
        errno.EPERM: "run with CAP_NET_ADMIN in the node's network namespace",
        errno.EOPNOTSUPP: "this kernel lacks the feature; see the README for the options it needs",
        errno.ENETUNREACH: "the next hop is not on that device's network; check the routing mode and its address",
    }
    return f"cannot {failure}; {hints.get(failure.errno or 0, 'try again; if it stays so, report it with this text')}"
