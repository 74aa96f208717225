"""Route netlink requests of this service, built and read: pure functions, bytes in and out, no socket.

Every function that changes something may be repeated. Numbers are the kernel's: linux/if_link.h, linux/rtnetlink.h,
linux/pkt_sched.h, linux/pkt_cls.h, linux/lwtunnel.h, linux/neighbour.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from services.dataplane.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Request,
    attribute,
    attributes,
    be16,
    be64,
    each,
    from_mac,
    nested,
    text,
    to_int,
    to_mac,
    to_text,
    u8,
    u32,
)

Direction = Literal["ingress", "egress"]

POD_GROUP = 0x706C78  # device group of the host side of every pod's link: how we know ours
REMOVED_GROUP = 0x706C79  # links on their way out: the kernel removes a group in one sweep
POD_ROUTE_PROTOCOL = 112  # who made the route (rtnetlink(7) leaves 5..255 to daemons): routes to pods of this node
NODE_ROUTE_PROTOCOL = 113  # routes to other nodes' pods
ADDRESS_PROTOCOL = 112  # the router's address (IFA_PROTO)
FILTER_PRIORITY = 1  # our filter is the first at its hook
FILTER_HANDLE = 1

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH = 28
RTM_NEWQDISC, RTM_DELQDISC = 36, 37
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46

LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
ADDRESS = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst length, src length, tos, table, protocol, scope, type, flags
NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
TRAFFIC = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info

LOOPBACK_INDEX = 1  # in every network namespace
IFF_UP, IFF_NOARP, IFF_LOWER_UP = 0x1, 0x80, 0x10000
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_LINKINFO = 1, 3, 4, 5, 18
IFLA_GROUP, IFLA_NET_NS_FD = 27, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_VXLAN_LEARNING, IFLA_VXLAN_PORT, IFLA_VXLAN_COLLECT_METADATA = 7, 15, 25
IFA_ADDRESS, IFA_LOCAL, IFA_PROTO = 1, 2, 11
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_METRICS = 1, 4, 5, 7, 8
RTA_ENCAP_TYPE, RTA_ENCAP = 21, 22
RTAX_MTU, LWTUNNEL_ENCAP_IP, LWTUNNEL_IP_ID, LWTUNNEL_IP_DST = 2, 2, 1, 2
RT_TABLE_MAIN, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST = 254, 0, 253, 1
NDA_DST, NDA_LLADDR, NUD_PERMANENT = 1, 2, 0x80
TCA_KIND, TCA_OPTIONS, TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS, TCA_BPF_TAG, TCA_BPF_ID = 1, 2, 6, 7, 8, 10, 11
TCA_BPF_FLAG_ACT_DIRECT = 1
CLSACT_HANDLE, CLSACT_PARENT = 0xFFFF0000, 0xFFFFFFF1
HOOK: dict[Direction, int] = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
ETH_P_ALL = 0x0003


@dataclass(frozen=True, slots=True)
class SeenLink:
    """A link as the kernel reports it."""

    name: str
    index: int
    mac: str  # "02:1b:...", "" when it has none
    mtu_bytes: int
    kind: str  # "veth", "vxlan"..., "" for hardware
    group: int
    peer_index: int  # of a veth, in the namespace of its peer; else 0
    up: bool
    data: bytes = b""  # what the kind reports of itself


@dataclass(frozen=True, slots=True)
class NodeRoute:
    """The way to another node's block of pod addresses.

    Native when `tunnel_id` is None: by way of `node_address` on `device`. Else by `device`, a tunnel in
    collect-metadata mode, to the tunnel endpoint `node_address`, with `tunnel_id` as the network identifier.
    """

    cidr: str  # "10.244.2.0/24"
    node_address: str  # "192.0.2.2"
    device: str
    tunnel_id: int | None = None
    mtu_bytes: int = 0  # 0: the device's
    source: str = ""  # address that the node's own packets take; "": the kernel chooses


@dataclass(frozen=True, slots=True)
class Attached:
    """A program on a hook of a link, as the kernel reports it."""

    direction: Direction
    name: str
    program_id: int
    tag: str  # 16 hex digits: hash of the instructions
    priority: int
    handle: int


# Links


def new_veth(name: str, mac: str, peer: str, peer_mac: str, mtu_bytes: int, namespace: int) -> Request:
    """A veth, both sides down, ours in `POD_GROUP`, the peer in the network namespace behind the fd `namespace`.

    The kernel refuses to bring up a side before the two know each other, so neither is made up.
    """
    other = (
        LINK.pack(0, 0, 0, 0, 0)
        + text(IFLA_IFNAME, peer)
        + attribute(IFLA_ADDRESS, from_mac(peer_mac))
        + u32(IFLA_MTU, mtu_bytes)
        + u32(IFLA_NET_NS_FD, namespace)
    )
    body = (
        LINK.pack(0, 0, 0, 0, 0)
        + text(IFLA_IFNAME, name)
        + attribute(IFLA_ADDRESS, from_mac(mac))
        + u32(IFLA_MTU, mtu_bytes)
        + u32(IFLA_GROUP, POD_GROUP)
        + nested(
            IFLA_LINKINFO,
            text(IFLA_INFO_KIND, "veth"),
            nested(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, other)),
        )
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"create the link {name} with {peer} in the pod")


def new_vxlan(name: str, port: int, mtu_bytes: int) -> Request:
    """A VXLAN device, up, that takes tunnel endpoint and identifier from each packet (collect-metadata mode).

    Without ARP: who is behind the tunnel is decided by routes and programs, so nobody needs to be asked.
    """
    data = nested(
        IFLA_INFO_DATA,
        u8(IFLA_VXLAN_LEARNING, 0),
        be16(IFLA_VXLAN_PORT, port),
        u8(IFLA_VXLAN_COLLECT_METADATA, 1),
    )
    body = (
        LINK.pack(0, 0, 0, IFF_UP | IFF_NOARP, IFF_UP | IFF_NOARP)
        + text(IFLA_IFNAME, name)
        + u32(IFLA_MTU, mtu_bytes)
        + nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "vxlan"), data)
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"create the VXLAN device {name} on UDP port {port}")


def is_wanted_vxlan(link: SeenLink, port: int) -> bool:
    data = attributes(link.data)
    return (
        link.kind == "vxlan"
        and bool(to_int(data.get(IFLA_VXLAN_COLLECT_METADATA)))
        and data.get(IFLA_VXLAN_PORT) == struct.pack("!H", port)
    )


def set_up(index: int) -> Request:
    return Request(RTM_SETLINK, 0, LINK.pack(0, 0, index, IFF_UP, IFF_UP), f"bring up link {index}")


def set_mtu(index: int, mtu_bytes: int) -> Request:
    body = LINK.pack(0, 0, index, 0, 0) + u32(IFLA_MTU, mtu_bytes)
    return Request(RTM_SETLINK, 0, body, f"set the MTU of link {index} to {mtu_bytes}")


def get_link(name: str) -> Request:
    body = LINK.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, name)
    return Request(RTM_GETLINK, 0, body, f"look up the link {name}", accept=(errno.ENODEV,))


def delete_link(name: str) -> Request:
    body = LINK.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, name)
    return Request(RTM_DELLINK, 0, body, f"delete the link {name}", accept=(errno.ENODEV,))


def delete_links(names: list[str]) -> list[Request]:
    """All of them in one sweep: a single removal waits tens of milliseconds, and so does a group of any size."""
    mark = u32(IFLA_GROUP, REMOVED_GROUP)
    return [
        Request(
            RTM_SETLINK,
            0,
            LINK.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, name) + mark,
            f"mark the link {name} for removal",
            accept=(errno.ENODEV,),
        )
        for name in names
    ] + [Request(RTM_DELLINK, 0, LINK.pack(0, 0, 0, 0, 0) + mark, "delete marked links", accept=(errno.ENODEV,))]


def links(messages: list[bytes]) -> list[SeenLink]:
    found = []
    for (_, _, index, flags, _), values in each(messages, LINK):
        info = attributes(values.get(IFLA_LINKINFO, b""))
        kind = to_text(info.get(IFLA_INFO_KIND))
        found.append(
            SeenLink(
                name=to_text(values.get(IFLA_IFNAME)),
                index=index,
                mac=to_mac(values.get(IFLA_ADDRESS)),
                mtu_bytes=to_int(values.get(IFLA_MTU)),
                kind=kind,
                group=to_int(values.get(IFLA_GROUP)),
                peer_index=to_int(values.get(IFLA_LINK)) if kind == "veth" else 0,
                up=bool(flags & IFF_UP),
                data=info.get(IFLA_INFO_DATA, b""),
            )
        )
    return found


# Addresses and neighbours


def new_address(index: int, address: str, protocol: int = 0) -> Request:
    """`address`/32 on a link. `protocol`: who made it, 0 for nobody in particular."""
    packed = IPv4Address(address).packed
    body = (
        ADDRESS.pack(socket.AF_INET, 32, 0, RT_SCOPE_UNIVERSE, index)
        + attribute(IFA_LOCAL, packed)
        + attribute(IFA_ADDRESS, packed)
        + (u8(IFA_PROTO, protocol) if protocol else b"")
    )
    return Request(
        RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body, f"add {address} to link {index}", accept=(errno.EEXIST,)
    )


def delete_address(index: int, address: str) -> Request:
    body = ADDRESS.pack(socket.AF_INET, 32, 0, 0, index) + attribute(IFA_LOCAL, IPv4Address(address).packed)
    return Request(
        RTM_DELADDR, 0, body, f"remove {address} from link {index}", accept=(errno.EADDRNOTAVAIL, errno.ENODEV)
    )


def address_list(index: int) -> bytes:
    """The body of a dump of one link's addresses."""
    return ADDRESS.pack(socket.AF_INET, 0, 0, 0, index)


def addresses(messages: list[bytes]) -> list[tuple[str, int, int]]:
    """(address, scope, who made it) in the kernel's order."""
    return [
        (str(IPv4Address(values[IFA_LOCAL])), scope, to_int(values.get(IFA_PROTO)))
        for (_, _, _, scope, _), values in each(messages, ADDRESS)
        if len(values.get(IFA_LOCAL, b"")) == 4
    ]


def new_neighbour(index: int, address: str, mac: str) -> Request:
    """`address` is at `mac`, for ever."""
    body = (
        NEIGHBOUR.pack(socket.AF_INET, index, NUD_PERMANENT, 0, 0)
        + attribute(NDA_DST, IPv4Address(address).packed)
        + attribute(NDA_LLADDR, from_mac(mac))
    )
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, f"say that {address} is at {mac}")


# Routes


def _route(cidr: str, protocol: int, scope: int, *more: bytes) -> bytes:
    network = IPv4Network(cidr)
    head = ROUTE.pack(socket.AF_INET, network.prefixlen, 0, 0, RT_TABLE_MAIN, protocol, scope, RTN_UNICAST, 0)
    return head + attribute(RTA_DST, network.network_address.packed) + b"".join(more)


def link_route(cidr: str, index: int, protocol: int) -> Request:
    """`cidr` is directly behind a link."""
    body = _route(cidr, protocol, RT_SCOPE_LINK, u32(RTA_OIF, index))
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"route {cidr} to link {index}")


def default_route(gateway: str, index: int, protocol: int) -> Request:
    head = ROUTE.pack(socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, protocol, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)
    body = head + attribute(RTA_GATEWAY, IPv4Address(gateway).packed) + u32(RTA_OIF, index)
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"route everything to {gateway}")


def node_route(route: NodeRoute, index: int) -> Request:
    """Source: linux/lwtunnel.h; net/ipv4/ip_tunnel_core.c, ip_tun_build_state."""
    more = [u32(RTA_OIF, index)]
    address = IPv4Address(route.node_address).packed
    scope = RT_SCOPE_UNIVERSE
    if route.tunnel_id is None:
        more.append(attribute(RTA_GATEWAY, address))
    else:
        scope = RT_SCOPE_LINK
        more.append(attribute(RTA_ENCAP_TYPE, struct.pack("=H", LWTUNNEL_ENCAP_IP)))
        encapsulation = be64(LWTUNNEL_IP_ID, route.tunnel_id) + attribute(LWTUNNEL_IP_DST, address)
        more.append(attribute(RTA_ENCAP | 0x8000, encapsulation))
    if route.source:
        more.append(attribute(RTA_PREFSRC, IPv4Address(route.source).packed))
    if route.mtu_bytes:
        more.append(nested(RTA_METRICS, u32(RTAX_MTU, route.mtu_bytes)))
    body = _route(route.cidr, NODE_ROUTE_PROTOCOL, scope, *more)
    says = f"route {route.cidr} to node {route.node_address} by {route.device}"
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, says)


def delete_node_route(cidr: str) -> Request:
    network = IPv4Network(cidr)
    # Scope "nowhere" (255) matches any.
    head = ROUTE.pack(socket.AF_INET, network.prefixlen, 0, 0, RT_TABLE_MAIN, NODE_ROUTE_PROTOCOL, 255, 0, 0)
    body = head + attribute(RTA_DST, network.network_address.packed)
    return Request(RTM_DELROUTE, 0, body, f"remove the route to {cidr}", accept=(errno.ESRCH,))


def route_list(protocol: int) -> bytes:
    """The body of a dump of the routes that `protocol` made; 0: all."""
    return ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, protocol, 0, 0, 0)


def has_default_route(messages: list[bytes], gateway: str, index: int) -> bool:
    packed = IPv4Address(gateway).packed
    return any(
        head[1] == 0 and values.get(RTA_GATEWAY) == packed and to_int(values.get(RTA_OIF)) == index
        for head, values in each(messages, ROUTE)
    )


def has_link_route(messages: list[bytes], address: str, index: int) -> bool:
    packed = IPv4Address(address).packed
    return any(
        head[1] == 32 and values.get(RTA_DST) == packed and to_int(values.get(RTA_OIF)) == index
        for head, values in each(messages, ROUTE)
    )


def node_routes(messages: list[bytes], names: dict[int, str]) -> list[NodeRoute]:
    """Our routes to other nodes. `names`: link index -> name."""
    found = []
    for head, values in each(messages, ROUTE):
        index = to_int(values.get(RTA_OIF))
        destination = values.get(RTA_DST, b"")
        if head[5] != NODE_ROUTE_PROTOCOL or len(destination) != 4:
            continue
        metrics = attributes(values.get(RTA_METRICS, b""))
        encapsulation = attributes(values.get(RTA_ENCAP, b""))
        tunnelled = to_int(values.get(RTA_ENCAP_TYPE)) == LWTUNNEL_ENCAP_IP
        address = encapsulation.get(LWTUNNEL_IP_DST) if tunnelled else values.get(RTA_GATEWAY)
        identifier = int.from_bytes(encapsulation.get(LWTUNNEL_IP_ID, b"\0"), "big") if tunnelled else None
        source = values.get(RTA_PREFSRC, b"")
        found.append(
            NodeRoute(
                cidr=f"{IPv4Address(destination)}/{head[1]}",
                node_address=str(IPv4Address(address)) if address and len(address) == 4 else "",
                device=names.get(index, f"link {index}"),
                tunnel_id=identifier,
                mtu_bytes=to_int(metrics.get(RTAX_MTU)),
                source=str(IPv4Address(source)) if len(source) == 4 else "",
            )
        )
    return found


# Programs


def new_clsact(index: int) -> Request:
    body = TRAFFIC.pack(0, index, CLSACT_HANDLE, CLSACT_PARENT, 0) + text(TCA_KIND, "clsact")
    return Request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body, f"add clsact to link {index}", accept=(errno.EEXIST,))


def _filter(index: int, direction: Direction) -> bytes:
    info = FILTER_PRIORITY << 16 | socket.htons(ETH_P_ALL)
    return TRAFFIC.pack(0, index, FILTER_HANDLE, HOOK[direction], info) + text(TCA_KIND, "bpf")


def attach(index: int, program: int, direction: Direction, name: str) -> Request:
    """Attach the program behind the fd `program`; one that is there already is replaced in a single step."""
    options = nested(
        TCA_OPTIONS,
        u32(TCA_BPF_FD, program),
        text(TCA_BPF_NAME, name),
        u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT),
    )
    body = _filter(index, direction) + options
    return Request(RTM_NEWTFILTER, NLM_F_CREATE, body, f"attach {name} to link {index}, {direction}")


def detach(index: int, direction: Direction) -> Request:
    return Request(
        RTM_DELTFILTER,
        0,
        _filter(index, direction),
        f"detach the {direction} program of link {index}",
        accept=(errno.ENOENT, errno.EINVAL, errno.ENODEV),
    )


def filter_list(index: int, direction: Direction) -> bytes:
    return TRAFFIC.pack(0, index, 0, HOOK[direction], 0)


def attached(messages: list[bytes], direction: Direction) -> list[Attached]:
    found = []
    for (_, _, handle, _, info), values in each(messages, TRAFFIC):
        options = attributes(values.get(TCA_OPTIONS, b""))
        if to_text(values.get(TCA_KIND)) != "bpf" or TCA_BPF_ID not in options:
            continue
        found.append(
            Attached(
                direction=direction,
                name=to_text(options.get(TCA_BPF_NAME)),
                program_id=to_int(options.get(TCA_BPF_ID)),
                tag=options.get(TCA_BPF_TAG, b"").hex(),
                priority=info >> 16,
                handle=handle,
            )
        )
    return found
