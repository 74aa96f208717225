"""Links and routes of one node: the only code that changes them. (hooks.py keeps programs attached.)

Two threads do the work, so the event loop never waits for the kernel's routing lock: one makes and looks, the other
removes (a removal sleeps for tens of milliseconds, and those that wait at once go in few sweeps). Each has one netlink
socket for as long as it lives. Neither ever stands in a pod's namespace: a short-lived thread opens a socket there
(netlink.py).

Needs CAP_NET_ADMIN in the node's network namespace, CAP_SYS_ADMIN to enter a pod's, and a writable /proc/sys/net.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TypeVar

from services.dataplane.batch import Batch
from services.dataplane.kernel import rtnl
from services.dataplane.kernel.devices import DeviceEvents, list_devices
from services.dataplane.kernel.netlink import Netlink, Refused, open_within
from services.dataplane.kernel.pod_links import LinkEvents, Mended, Wanted, mend_pod_links, sysctls_of
from services.dataplane.kernel.rtnl import NodeRoute, Protocol, SeenLink
from services.dataplane.kernel.tunnel import Tunnel, TunnelGone, mend_tunnel
from services.dataplane.shapes.attach import Direction
from services.dataplane.shapes.devices import DeviceInfo, Seen
from services.dataplane.shapes.ip import EVERYTHING, PodIp

__all__ = [
    "DeviceInfo",
    "Direction",
    "LinkError",
    "Links",
    "NodeRoute",
    "PodLink",
    "SeenLink",
    "TcProgram",
    "TunnelGone",
    "host_link_name",
    "link_mac",
]

T = TypeVar("T")

HOST_PREFIX = "lxc"
SYSCTLS = Path("/proc/sys/net")
FORWARD_IPV6 = "ipv6/conf/all/forwarding"
SWEEP_LINKS = 5  # one sweep holds the routing lock: 20 ms, and 25 ms more a link with tcx programs
QUIET_SECONDS = 2.0  # pods that come in a row come closer together


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


def host_link_name(container_id: str, ifname: str) -> str:
    """The name of the host side: 15 characters, the most that the kernel takes, the same for the same interface."""
    return HOST_PREFIX + _digest(container_id, ifname, "name")[:12]


def link_mac(container_id: str, ifname: str, side: str) -> str:
    """A locally administered unicast address, the same for the same interface. `side`: "host" or "pod"."""
    octets = bytearray.fromhex(_digest(container_id, ifname, side)[:12])
    octets[0] = octets[0] & 0xFC | 0x02
    return octets.hex(":")


def link_local(mac: str) -> str:
    """The IPv6 address that the kernel would make of a MAC address for its own link (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Links:
    """Everything about links in the network namespace of the thread that makes this object, and first uses it."""

    def __init__(self) -> None:
        self._netlink = Netlink()
        self._removing = Netlink()
        self._told = LinkEvents()
        self._device_events = DeviceEvents()
        self._thread = ThreadPoolExecutor(1, "links")
        self._removal_thread = ThreadPoolExecutor(1, "links remove")
        self._removals: Batch[str] = Batch(self._removal_thread, self._remove)
        self._at_work = 0  # pods' links that are being made or removed
        self._worked_at = -QUIET_SECONDS  # by the monotonic clock
        self._sources: dict[int, str] = {}  # by IP version: see speak_to_pods_from
        self._tunnel: Tunnel | None = None  # as `ensure_tunnel` made it
        self._sysctls: tuple[tuple[str, ...], tuple[int, ...]] = (), ()  # devices and families of `ensure_sysctls`

    def close(self) -> None:
        """Waits for what runs. Links, routes and programs stay as they are."""
        self._thread.shutdown()
        self._removal_thread.shutdown()
        self._netlink.close()
        self._removing.close()
        self._told.close()
        self._device_events.close()

    def speak_to_pods_from(self, addresses: Iterable[str]) -> None:
        """The node's own address of each family, from which it speaks to its pods where a program names none: a server
        that listens at any address then answers a pod from the address that it called. Else the kernel takes the first
        that the node has, the gateway of its pods. Holds for routes that are made from now on."""
        self._sources = {ip_address(each).version: each for each in addresses if each}

    def _source(self, address: str) -> str:
        return self._sources.get(ip_address(address).version, "")

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
        except OSError as failure:
            raise LinkError(advice(failure)) from failure

    # A pod's link

    async def create_pod_link(
        self,
        netns_fd: int,
        container_id: str,
        ifname: str,
        ips: Sequence[PodIp],
        mtu_bytes: int,
        programs: Sequence[TcProgram] = (),
    ) -> PodLink:
        """Give a pod its interface, its addresses, its routes by way of their gateways, and the node the routes back.

        `programs` are on the host side before it is up: no packet passes without them. Asking again returns the
        same link, mended where something is missing. After a failure nothing of a link made here is left.

        Args:
            netns_fd: the pod's network namespace, open for as long as this runs.
            ips: one of each family at most. A gateway is the node's router address. The pod holds a permanent
                neighbour entry for it, so no packet waits for ARP or NDP; `host_mac` is what they must answer should
                the pod ask nevertheless. The node holds one for the pod's IPv6 address, for NDP there asks many.
        Raises: LinkError.
        """
        arguments = (container_id, ifname, tuple(ips), mtu_bytes, tuple(programs))
        with self._working():
            return await self._run(self._create, *arguments, namespace=netns_fd)

    async def delete_pod_link(self, name: str) -> None:
        """Remove a pod's link from both sides, with its routes and programs; nothing when it is gone already."""
        if not name.startswith(HOST_PREFIX):
            raise ValueError(f"{name} is not the host side of a pod's link")
        try:
            with self._working():
                await self._removals.add(name)
        except OSError as failure:
            raise LinkError(f"{failure}; the removal may be asked again") from failure

    async def list_pod_links(self) -> list[SeenLink]:
        """The host sides of pods' links, by name."""
        return await self._run(self._pod_links)

    async def check_pod_link(
        self, netns_fd: int, container_id: str, ifname: str, ips: Sequence[PodIp]
    ) -> tuple[str, ...]:
        """What is not as `create_pod_link` left it, in words; empty when all is well."""
        return await self._run(self._check, container_id, ifname, tuple(ips), namespace=netns_fd)

    def host_name(self, container_id: str, ifname: str) -> str:
        """Of a pod's link, made or not."""
        return host_link_name(container_id, ifname)

    async def list_pod_routes(self) -> dict[str, int]:
        """The routes to pods that we made: address -> index of the host side."""
        return await self._run(rtnl.list_link_routes, self._netlink)

    async def list_router_addresses(self) -> list[str]:
        """What `ensure_router_address` has made, by this process or one before it."""
        found = await self._run(rtnl.list_addresses, self._netlink, rtnl.LOOPBACK_INDEX)
        return [address for address, _, maker in found if maker == rtnl.ADDRESS_PROTOCOL]

    async def list_used_addresses(self) -> set[str]:
        """Every single address that the node routes somewhere or answers to, for whatever reason."""
        routed = await self._run(rtnl.list_routed_addresses, self._netlink)
        return routed | (await self.own_addresses()).keys()

    async def mend_pod_routes(self, wanted: Mapping[str, int]) -> list[str]:
        """Put back the routes to pods, address -> index of the host side, that are gone. Returns their addresses."""
        return await self._run(self._mend_pod_routes, dict(wanted))

    def take_links_changed(self) -> bool:
        """Whether the kernel told of any link since this was asked the last time."""
        return self._told.take()

    async def mend_pod_links(self, wanted: Iterable[Wanted]) -> Mended:
        """See pod_links.mend_pod_links; routes are another matter. Raises: LinkError."""
        return await self._run(mend_pod_links, self._netlink, tuple(wanted))

    @property
    def is_quiet(self) -> bool:
        """No pod's link is being made or removed, or was within `QUIET_SECONDS`."""
        return not self._at_work and time.monotonic() - self._worked_at >= QUIET_SECONDS

    @contextmanager
    def _working(self) -> Iterator[None]:
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1
            self._worked_at = time.monotonic()

    # The node

    async def list_devices(self) -> Seen:
        """Every device of the node, and its routes. Raises: LinkError."""
        return await self._run(list_devices, self._netlink)

    async def devices_told(self) -> None:
        """Returns when the kernel has told of a device, an address or a route that is not a pod's."""
        await self._device_events.wait()

    async def ensure_tunnel(
        self, name: str, protocol: Protocol, port: int, mtu_bytes: int, others: Iterable[str] = ()
    ) -> DeviceInfo:
        """A tunnel device in collect-metadata mode, without ARP. One of other making under this name is replaced.

        Args:
            others: tunnel devices that it takes the place of, maybe at their port. They go when it is made.
        Raises: LinkError: this kernel has no such devices; `others` are there still.
        """
        made = await self._run(self._ensure_tunnel, name, protocol, port, mtu_bytes, tuple(others))
        self._tunnel = Tunnel(name, made.index, protocol, port, mtu_bytes)
        return made

    async def mend_tunnel(self) -> str:
        """The device that `ensure_tunnel` made gets back its name, its MTU, and is set up. Returns what was wrong.

        Raises: TunnelGone: it is to be made anew. LinkError: the kernel refused.
        """
        return await self._run(mend_tunnel, self._netlink, self._tunnel) if self._tunnel else ""

    async def delete_tunnel(self, name: str) -> None:
        """Its programs and routes go with it. Nothing when there is none, or a device of another kind has the name."""
        await self._run(self._delete_tunnel, name)

    async def own_addresses(self) -> dict[str, str]:
        """What the node answers to, of both families: address -> name of its device; see rtnl.list_own_addresses."""
        return await self._run(rtnl.list_own_addresses, self._netlink)

    async def ensure_router_address(self, address: str) -> None:
        """The node answers to `address`, the gateway of its pods; an earlier router address of its family goes.

        It is on the loopback device: always up, has no queue, no peer and no MTU to care for, and a pod's packets to
        it are taken in by their destination address, whatever device it is on.
        """
        await self._run(self._ensure_router_address, address)

    async def ensure_node_route(self, route: NodeRoute) -> None:
        """Raises: LinkError: the device is missing, or the node's address is not directly reachable on it."""
        await self._run(self._ensure_node_route, route)

    async def delete_node_route(self, cidr: str) -> None:
        await self._run(rtnl.delete_node_route, self._netlink, cidr)

    async def list_node_routes(self) -> list[NodeRoute]:
        """The routes to other nodes' pods that we made, by CIDR."""
        return await self._run(rtnl.list_node_routes, self._netlink)

    async def ensure_sysctls(self, devices: Iterable[str] = (), families: Iterable[int] = (4,)) -> None:
        """Forwarding on for `families`; reverse path filters off for all, for links to come, and for `devices`.

        Forwarding would end what the node learns from IPv6 routers: who listened to them goes on listening.
        """
        self._sysctls = tuple(devices), tuple(families)
        await self._run(self._ensure_sysctls, *self._sysctls)

    async def mend_sysctls(self, pods: Iterable[str] = ()) -> list[str]:
        """What `ensure_sysctls` set, and what the links `pods` were given, is put back. Returns what was other, in
        words. Raises: LinkError: /proc/sys cannot be written."""
        return await self._run(self._ensure_sysctls, *self._sysctls, tuple(pods))

    # What runs on the threads

    def _create(
        self,
        netns_fd: int,
        container_id: str,
        ifname: str,
        ips: tuple[PodIp, ...],
        mtu_bytes: int,
        programs: tuple[TcProgram, ...],
    ) -> PodLink:
        name = host_link_name(container_id, ifname)
        host_mac = link_mac(container_id, ifname, "host")
        pod_mac = link_mac(container_id, ifname, "pod")
        ipv6 = [ip for ip in ips if ":" in ip.address]
        with open_within(netns_fd, _quiet_ipv6 if ipv6 else _nothing) as pod:
            host, is_new = self._make_veth(netns_fd, pod, name, host_mac, ifname, pod_mac, mtu_bytes)
            try:
                for program in programs:
                    rtnl.attach(self._netlink, host.index, program.fd, program.direction, program.name)
                rtnl.stop_making_addresses(self._netlink, host.index)
                rtnl.set_up(self._netlink, host.index)
                for ip in ips:
                    rtnl.set_link_route(self._netlink, ip.address, host.index, self._source(ip.address))
                for ip in ipv6:
                    rtnl.set_neighbour(self._netlink, host.index, ip.address, pod_mac)
                for path, value in sysctls_of(name).items():
                    _write(path, value)
                _bring_up(pod, host.peer_index, ips, host_mac, link_local(pod_mac) if ipv6 else "")
            except BaseException:
                if is_new:  # or else a pod has it, and may go on with it
                    rtnl.delete_link(self._netlink, name)
                raise
        return PodLink(name, host.index, host_mac, pod_mac, host.peer_index)

    def _make_veth(
        self, netns_fd: int, pod: Netlink, name: str, host_mac: str, ifname: str, pod_mac: str, mtu_bytes: int
    ) -> tuple[SeenLink, bool]:
        """The host side, and whether it is new; one from before is kept when its peer is the pod's interface, else
        replaced."""
        for _ in range(2):
            try:
                rtnl.add_veth(self._netlink, name, host_mac, ifname, pod_mac, mtu_bytes, netns_fd)
            except Refused as failure:
                existing = rtnl.find_link(self._netlink, name)
                inside = rtnl.find_link(pod, ifname)
                if existing is None:
                    if inside is not None:
                        raise LinkError(
                            f"the pod has an interface {ifname} already that is not ours: "
                            "remove it, or let the runtime make a new sandbox"
                        ) from failure
                    raise
                if inside is not None and inside.index == existing.peer_index and inside.mac == pod_mac:
                    return existing, False
                rtnl.delete_link(self._netlink, name)
            else:
                made = rtnl.find_link(self._netlink, name)
                if made is not None:
                    return made, True
        raise LinkError(f"the link {name} does not stay as it is made: who else makes or removes it?")

    def _mend_pod_routes(self, wanted: dict[str, int]) -> list[str]:
        seen = rtnl.list_link_routes(self._netlink)
        gone = [address for address, index in wanted.items() if seen.get(address) != index]
        mended, refused = [], []
        for address in gone:
            try:
                rtnl.set_link_route(self._netlink, address, wanted[address], self._source(address))
                mended.append(address)
            except Refused as failure:  # its link is gone or down: the pod's own trouble, told by CHECK
                if failure.errno not in (errno.ENODEV, errno.ENETDOWN):
                    refused.append(failure)
        if refused:
            raise refused[0]
        return mended

    def _remove(self, names: list[str]) -> None:
        for start in range(0, len(names), SWEEP_LINKS):
            rtnl.delete_links(self._removing, names[start : start + SWEEP_LINKS])

    def _pod_links(self) -> list[SeenLink]:
        found = [
            each for each in rtnl.list_links(self._netlink) if each.group == rtnl.POD_GROUP and each.kind == "veth"
        ]
        return sorted(found, key=lambda link: link.name)

    def _check(self, netns_fd: int, container_id: str, ifname: str, ips: tuple[PodIp, ...]) -> tuple[str, ...]:
        name = host_link_name(container_id, ifname)
        with open_within(netns_fd) as pod:
            inside, problems = _check_inside(pod, ifname, ips)
        if inside is None:
            return tuple(problems)
        pod_mac, host_mac = (link_mac(container_id, ifname, side) for side in ("pod", "host"))
        if inside.mac != pod_mac:
            problems.append(f"{ifname} in the pod has the MAC address {inside.mac}, not {pod_mac}")
        host = rtnl.find_link(self._netlink, name)
        if host is None:
            return (*problems, f"the host side {name} is gone")
        if host.peer_index != inside.index:
            problems.append(f"the host side {name} belongs to another interface than {ifname}")
        if host.mac != host_mac:
            problems.append(f"the host side {name} has the MAC address {host.mac}, not {host_mac}")
        if not host.up:
            problems.append(f"the host side {name} is down")
        for address, _ in ips:
            if not rtnl.has_route(self._netlink, rtnl.alone(address), host.index):
                problems.append(f"the node has no route to {address} by {name}")
        return tuple(problems)

    def _ensure_tunnel(
        self, name: str, protocol: Protocol, port: int, mtu_bytes: int, others: tuple[str, ...]
    ) -> DeviceInfo:
        link = rtnl.find_link(self._netlink, name)
        if link is not None and (link.kind, link.tunnel_port) == (protocol, port):
            rtnl.set_mtu(self._netlink, link.index, mtu_bytes)
        else:
            rtnl.delete_link(self._netlink, name)
            link = self._make_tunnel(name, protocol, port, mtu_bytes)
        for other in others:
            self._delete_tunnel(other)
        rtnl.stop_making_addresses(self._netlink, link.index)  # nor may one that an earlier start left half made
        rtnl.set_up(self._netlink, link.index)
        _write(f"ipv4/conf/{name}/rp_filter", "0")
        found = list_devices(self._netlink).at(link.index)
        if found is None:
            raise LinkError(f"the device {name} does not stay when it is set up: who else removes it?")
        return found

    def _make_tunnel(self, name: str, protocol: Protocol, port: int, mtu_bytes: int) -> SeenLink:
        """Made, not up."""
        try:
            rtnl.add_tunnel(self._netlink, name, protocol, port, mtu_bytes)
        except Refused as failure:
            if failure.errno != errno.EOPNOTSUPP:
                raise
            other = {"vxlan": "geneve", "geneve": "vxlan"}[protocol]
            raise LinkError(
                f"this kernel has no {protocol} devices (CONFIG_{protocol.upper()}): "
                f"load the module {protocol}, or set tunnelProtocol to {other} on every node"
            ) from failure
        made = rtnl.find_link(self._netlink, name)
        if made is None:
            raise LinkError(f"the device {name} does not stay as it is made: who else removes it?")
        return made

    def _delete_tunnel(self, name: str) -> None:
        link = rtnl.find_link(self._netlink, name)
        if link is not None and link.tunnel_port:
            rtnl.delete_link(self._netlink, name)

    def _ensure_router_address(self, address: str) -> None:
        rtnl.set_up(self._netlink, rtnl.LOOPBACK_INDEX)
        rtnl.add_address(self._netlink, rtnl.LOOPBACK_INDEX, address, rtnl.ADDRESS_PROTOCOL)
        for other, _, maker in rtnl.list_addresses(self._netlink, rtnl.LOOPBACK_INDEX):
            if maker == rtnl.ADDRESS_PROTOCOL and other != address and (":" in other) == (":" in address):
                rtnl.delete_address(self._netlink, rtnl.LOOPBACK_INDEX, other)

    def _ensure_node_route(self, route: NodeRoute) -> None:
        link = rtnl.find_link(self._netlink, route.device)
        if link is None:
            raise LinkError(f"there is no device {route.device} for the route to {route.cidr}: make it first")
        rtnl.set_node_route(self._netlink, route, link.index)

    def _ensure_sysctls(
        self, devices: tuple[str, ...], families: tuple[int, ...], pods: tuple[str, ...] = ()
    ) -> list[str]:
        wanted = {"ipv4/ip_forward": "1"} if 4 in families else {}
        wanted |= {f"ipv4/conf/{scope}/rp_filter": "0" for scope in ("all", "default", *devices)}
        others = [(path, _set(path, value)) for path, value in wanted.items()]
        for name in pods:
            try:
                others += [(path, _set(path, value)) for path, value in sysctls_of(name).items()]
            except LinkError:
                if (SYSCTLS / "ipv4/conf" / name).exists():  # else its pod has gone
                    raise
        if 6 in families:
            others.append((FORWARD_IPV6, _forward_ipv6()))
        return [f"net.{path.replace('/', '.')} was {value}" for path, value in others if value]


def _forward_ipv6() -> str:
    """Returns what it was, "" when it was on. Source: linux/Documentation/networking/ip-sysctl.rst: accept_ra=1 ends
    with forwarding, 2 does not."""
    if not (SYSCTLS / FORWARD_IPV6).exists():
        raise LinkError("this kernel has no IPv6: enable it (boot without ipv6.disable=1), or set ipv6.enabled=false")
    if (SYSCTLS / FORWARD_IPV6).read_text().strip() == "1":
        return ""
    for listens in (SYSCTLS / "ipv6/conf").glob("*/accept_ra"):
        if listens.parent.name not in ("all", "default") and listens.read_text().strip() == "1":
            _write(f"ipv6/conf/{listens.parent.name}/accept_ra", "2")
    return _set(FORWARD_IPV6, "1")


def _quiet_ipv6() -> None:
    """In a pod's namespace, before it has its interface: that gets IPv6, only what we give it, and hears no router."""
    for scope in ("all", "default"):
        _write(f"ipv6/conf/{scope}/disable_ipv6", "0")
    for name, value in (("accept_ra", "0"), ("accept_dad", "0"), ("addr_gen_mode", str(rtnl.ADDR_GEN_MODE_NONE))):
        _write(f"ipv6/conf/default/{name}", value)


def _nothing() -> None: ...


def _bring_up(pod: Netlink, index: int, ips: tuple[PodIp, ...], gateway_mac: str, local: str) -> None:
    """`local`: its link-local address, which every IPv6 interface has (RFC 4291, 2.8); "": without IPv6."""
    rtnl.set_up(pod, rtnl.LOOPBACK_INDEX)
    rtnl.set_up(pod, index)
    if local:
        rtnl.add_link_local_address(pod, index, local)
    for address, gateway in ips:
        rtnl.add_address(pod, index, address)
        rtnl.set_neighbour(pod, index, gateway, gateway_mac)
        rtnl.set_default_route(pod, gateway, index)


def _check_inside(pod: Netlink, ifname: str, ips: tuple[PodIp, ...]) -> tuple[SeenLink | None, list[str]]:
    inside = rtnl.find_link(pod, ifname)
    if inside is None:
        return None, [f"the pod has no interface {ifname}"]
    problems = []
    if not inside.up:
        problems.append(f"{ifname} in the pod is down")
    present = {found for found, _, _ in rtnl.list_addresses(pod, inside.index)}
    for address, gateway in ips:
        if address not in present:
            problems.append(f"{ifname} in the pod does not have {address}")
        if not rtnl.has_route(pod, EVERYTHING[ip_address(gateway).version], inside.index, gateway):
            problems.append(f"the pod has no default route by way of {gateway}")
    return inside, problems


def _set(path: str, value: str) -> str:
    """As `_write`. Returns what it was, "" when it was `value` already."""
    try:
        before = (SYSCTLS / path).read_text().strip()
    except OSError:
        before = "unknown"  # why, writing will say
    if before == value:
        return ""
    _write(path, value)
    return before


def _write(path: str, value: str) -> None:
    """Set a sysctl of the calling thread's network namespace."""
    file = SYSCTLS / path
    try:
        file.write_text(value)
    except OSError as failure:
        raise LinkError(f"cannot write {value} to {file}: {failure.strerror}; mount /proc/sys writable") from failure


def advice(failure: OSError) -> str:
    """What failed, why, and what to do."""
    if isinstance(failure, TimeoutError):
        return "the kernel gave no answer in time: its routing lock is held; try again"
    if not isinstance(failure, Refused):
        privileges = "is this process privileged (CAP_NET_ADMIN, CAP_SYS_ADMIN)?"
        return f"{failure}; {'the device is gone' if failure.errno == errno.ENODEV else privileges}"
    hints = {
        errno.EPERM: "run with CAP_NET_ADMIN in the node's network namespace",
        errno.EOPNOTSUPP: "this kernel lacks the feature; see the README for the options it needs",
        errno.EHOSTUNREACH: "the next hop is not on that device's network; check the routing mode and its address",
        errno.ENETUNREACH: "the next hop is not on that device's network; check the routing mode and its address",
    }
    return f"cannot {failure}; {hints.get(failure.errno or 0, 'try again; if it stays so, report it with this text')}"
