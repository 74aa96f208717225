"""Route netlink requests of this service, in its own words. `route` is an `IPRoute` (netlink.py) of the calling thread.

Every function that changes something may be repeated. All raise netlink.Refused.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from socket import AF_INET
from typing import Any, Literal

from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP
from pyroute2.netlink.rtnl.rtmsg import LWTUNNEL_ENCAP_IP, RT_SCOPE_LINK, RT_SCOPE_NOWHERE, RT_SCOPE_UNIVERSE

from services.dataplane.netlink import asked, listed

Direction = Literal["ingress", "egress"]

POD_GROUP = 0x706C78  # device group of the host side of every pod's link: how we know ours
REMOVED_GROUP = 0x706C79  # links on their way out: the kernel removes a group in one sweep
POD_ROUTE_PROTOCOL = 112  # who made the route (rtnetlink(7) leaves 5..255 to daemons): routes to pods of this node
NODE_ROUTE_PROTOCOL = 113  # routes to other nodes' pods
ADDRESS_PROTOCOL = 112  # the router's address (IFA_PROTO)
FILTER_PRIORITY = 1  # our filter is the first at its hook
FILTER_HANDLE = 1

LOOPBACK_INDEX = 1  # in every network namespace
HOOK: dict[Direction, int] = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}  # of clsact, linux/pkt_sched.h


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
    tunnel_port: int = 0  # of a VXLAN device in collect-metadata mode; else 0


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


def add_veth(route: Any, name: str, mac: str, peer: str, peer_mac: str, mtu_bytes: int, namespace: int) -> None:
    """A veth, both sides down, ours in `POD_GROUP`, the peer in the network namespace behind the fd `namespace`.

    The kernel refuses to bring up a side before the two know each other, so neither is made up.
    """
    other = {"ifname": peer, "address": peer_mac, "mtu": mtu_bytes, "net_ns_fd": namespace}
    with asked(f"create the link {name} with {peer} in the pod"):
        route.link("add", kind="veth", ifname=name, address=mac, mtu=mtu_bytes, group=POD_GROUP, peer=other)


def add_vxlan(route: Any, name: str, port: int, mtu_bytes: int) -> None:
    """A VXLAN device, up, that takes tunnel endpoint and identifier from each packet (collect-metadata mode).

    Without ARP: who is behind the tunnel is decided by routes and programs, so nobody needs to be asked.
    """
    data = {"vxlan_port": port, "vxlan_learning": 0, "vxlan_collect_metadata": 1}
    with asked(f"create the VXLAN device {name} on UDP port {port}"):
        route.link("add", kind="vxlan", ifname=name, mtu=mtu_bytes, state="up", arp=False, **data)


def set_up(route: Any, index: int) -> None:
    with asked(f"bring up link {index}"):
        route.link("set", index=index, state="up")


def set_mtu(route: Any, index: int, mtu_bytes: int) -> None:
    with asked(f"set the MTU of link {index} to {mtu_bytes}"):
        route.link("set", index=index, mtu=mtu_bytes)


def find_link(route: Any, name: str) -> SeenLink | None:
    found: list[Any] = []
    with asked(f"look up the link {name}", errno.ENODEV):
        found = route.link("get", ifname=name)
    return _seen(found[0]) if found else None


def list_links(route: Any) -> list[SeenLink]:
    return [_seen(message) for message in listed(route, "list links", lambda: route.link("dump"))]


def _seen(message: Any) -> SeenLink:
    kind = message.get(("linkinfo", "kind")) or ""
    collects = kind == "vxlan" and message.get(("linkinfo", "data", "vxlan_collect_metadata"))
    return SeenLink(
        name=message.get("ifname"),
        index=message["index"],
        mac=message.get("address") or "",
        mtu_bytes=message.get("mtu") or 0,
        kind=kind,
        group=message.get("group") or 0,
        peer_index=message.get("link") or 0 if kind == "veth" else 0,
        up=bool(message["flags"] & IFF_UP),
        tunnel_port=message.get(("linkinfo", "data", "vxlan_port")) if collects else 0,
    )


def delete_link(route: Any, name: str) -> None:
    with asked(f"delete the link {name}", errno.ENODEV):
        route.link("del", ifname=name)


def delete_links(route: Any, names: list[str]) -> None:
    """All of them in one sweep: a single removal waits tens of milliseconds, and so does a group of any size."""
    for name in names:
        with asked(f"mark the link {name} for removal", errno.ENODEV):
            route.link("set", ifname=name, group=REMOVED_GROUP)
    with asked("delete marked links", errno.ENODEV):
        route.link("del", group=REMOVED_GROUP)


# Addresses and neighbours


def add_address(route: Any, index: int, address: str, protocol: int = 0) -> None:
    """`address`/32 on a link. `protocol`: who made it, 0 for nobody in particular."""
    maker = {"proto": protocol} if protocol else {}
    with asked(f"add {address} to link {index}", errno.EEXIST):
        route.addr("add", index=index, address=address, prefixlen=32, **maker)


def delete_address(route: Any, index: int, address: str) -> None:
    with asked(f"remove {address} from link {index}", errno.EADDRNOTAVAIL, errno.ENODEV):
        route.addr("del", index=index, address=address, prefixlen=32)


def list_addresses(route: Any, index: int) -> list[tuple[str, bool, int]]:
    """(address, is it global, who made it) in the kernel's order."""
    found = listed(
        route, f"list addresses of link {index}", lambda: route.addr("dump", family=AF_INET, match={"index": index})
    )
    return [(each.get("local"), each["scope"] == RT_SCOPE_UNIVERSE, each.get("proto") or 0) for each in found]


def set_neighbour(route: Any, index: int, address: str, mac: str) -> None:
    """`address` is at `mac`, for ever."""
    with asked(f"say that {address} is at {mac}"):
        route.neigh("replace", ifindex=index, dst=address, lladdr=mac, state="permanent")


# Routes


def set_link_route(route: Any, address: str, index: int) -> None:
    """`address` is directly behind a link."""
    with asked(f"route {address} to link {index}"):
        route.route("replace", dst=f"{address}/32", oif=index, proto=POD_ROUTE_PROTOCOL, scope=RT_SCOPE_LINK)


def set_default_route(route: Any, gateway: str, index: int) -> None:
    with asked(f"route everything to {gateway}"):
        route.route("replace", dst="0.0.0.0/0", gateway=gateway, oif=index, proto=POD_ROUTE_PROTOCOL)


def set_node_route(route: Any, wanted: NodeRoute, index: int) -> None:
    """Source: linux/lwtunnel.h; net/ipv4/ip_tunnel_core.c, ip_tun_build_state."""
    more: dict[str, Any] = {"gateway": wanted.node_address}
    if wanted.tunnel_id is not None:
        attributes = [("LWTUNNEL_IP_ID", wanted.tunnel_id), ("LWTUNNEL_IP_DST", wanted.node_address)]
        # As plain attributes: pyroute2's `encap=` knows a fixed list of kinds, without this one.
        encapsulation = [("RTA_ENCAP_TYPE", LWTUNNEL_ENCAP_IP), ("RTA_ENCAP", {"attrs": attributes})]
        more = {"scope": RT_SCOPE_LINK, "attrs": encapsulation}
    if wanted.source:
        more["prefsrc"] = wanted.source
    if wanted.mtu_bytes:
        more["metrics"] = {"mtu": wanted.mtu_bytes}
    with asked(f"route {wanted.cidr} to node {wanted.node_address} by {wanted.device}"):
        route.route("replace", dst=wanted.cidr, oif=index, proto=NODE_ROUTE_PROTOCOL, **more)


def delete_node_route(route: Any, cidr: str) -> None:
    with asked(f"remove the route to {cidr}", errno.ESRCH):
        route.route("del", dst=cidr, proto=NODE_ROUTE_PROTOCOL, scope=RT_SCOPE_NOWHERE)  # "nowhere" matches any


def has_route(route: Any, address: str, index: int, gateway: str | None = None) -> bool:
    """Is `address`/32 ("": everything) routed to a link, by way of `gateway`?"""
    found = listed(route, "list routes", lambda: route.route("dump", family=AF_INET, match={"oif": index}))
    wanted = (address or None, 32 if address else 0, gateway)
    return any((each.get("dst"), each["dst_len"], each.get("gateway")) == wanted for each in found)


def list_node_routes(route: Any) -> list[NodeRoute]:
    """The routes to other nodes' pods that we made, by CIDR."""
    names = {link.index: link.name for link in list_links(route)}
    match = {"proto": NODE_ROUTE_PROTOCOL}
    found = listed(route, "list routes", lambda: route.route("dump", family=AF_INET, match=match))
    return sorted((_node_route(each, names) for each in found), key=lambda each: each.cidr)


def _node_route(message: Any, names: dict[int, str]) -> NodeRoute:
    tunnelled = message.get("encap_type") == LWTUNNEL_ENCAP_IP
    index = message.get("oif")
    return NodeRoute(
        cidr=f"{message.get('dst')}/{message['dst_len']}",
        node_address=message.get(("encap", "dst") if tunnelled else "gateway") or "",
        device=names.get(index, f"link {index}"),
        tunnel_id=message.get(("encap", "id")) if tunnelled else None,
        mtu_bytes=message.get(("metrics", "mtu")) or 0,
        source=message.get("prefsrc") or "",
    )


# Programs


def attach(route: Any, index: int, program: int, direction: Direction, name: str) -> None:
    """Attach the program behind the fd `program`; one that is there already is replaced in a single step."""
    with asked(f"add clsact to link {index}", errno.EEXIST):
        route.tc("add", "clsact", index)
    with asked(f"attach {name} to link {index}, {direction}"):
        route.tc("replace-filter", "bpf", fd=program, name=name, direct_action=True, **_place(index, direction))


def detach(route: Any, index: int, direction: Direction) -> None:
    with asked(f"detach the {direction} program of link {index}", errno.ENOENT, errno.EINVAL, errno.ENODEV):
        route.tc("del-filter", "bpf", **_place(index, direction))


def _place(index: int, direction: Direction) -> dict[str, int]:
    return {"index": index, "handle": FILTER_HANDLE, "parent": HOOK[direction], "prio": FILTER_PRIORITY}


def list_attached(route: Any, index: int) -> list[Attached]:
    """Every program on both hooks of a link, ours and others'; empty when the link is gone."""
    return [each for direction in HOOK for each in _attached(route, index, direction)]


def _attached(route: Any, index: int, direction: Direction) -> list[Attached]:
    says = f"list the {direction} programs of link {index}"
    found = listed(route, says, lambda: route.get_filters(index, parent=HOOK[direction]))
    return [
        Attached(
            direction=direction,
            name=message.get(("options", "tca_bpf_name")) or "",
            program_id=message.get(("options", "tca_bpf_id")),
            tag=(message.get(("options", "tca_bpf_tag")) or b"").hex(),
            priority=message["info"] >> 16,
            handle=message["handle"],
        )
        for message in found
        if message.get("kind") == "bpf" and message.get(("options", "tca_bpf_id"))
    ]
