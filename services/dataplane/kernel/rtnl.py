"""Route netlink requests of this service, in its own words.

Every function that changes something may be repeated. All raise what `Netlink.ask` does.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from socket import AF_INET, AF_INET6, AF_UNSPEC, htons
from typing import Any, Literal

from pyroute2.netlink import NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE
from pyroute2.netlink import rtnl as kinds
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import IFF_NOARP, IFF_UP, ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import NUD_PERMANENT, ndmsg
from pyroute2.netlink.rtnl.rtmsg import (
    LWTUNNEL_ENCAP_IP,
    LWTUNNEL_ENCAP_IP6,
    RT_SCOPE_LINK,
    RT_SCOPE_NOWHERE,
    RT_SCOPE_UNIVERSE,
    rtmsg,
)
from pyroute2.netlink.rtnl.tcmsg import tcmsg
from pyroute2.netlink.rtnl.tcmsg.sched_bpf import TCA_BPF_FLAG_ACT_DIRECT
from pyroute2.protocols import ETH_P_ALL

from services.dataplane.kernel.netlink import Netlink, Refused, message
from services.dataplane.shapes.attach import Direction
from services.dataplane.shapes.ip import EVERYTHING

Protocol = Literal["vxlan", "geneve"]

POD_GROUP = 0x706C78  # device group of the host side of every pod's link: how we know ours
REMOVED_GROUP = 0x706C79  # links on their way out: the kernel removes a group in one sweep
POD_ROUTE_PROTOCOL = 112  # who made the route (rtnetlink(7) leaves 5..255 to daemons): routes to pods of this node
NODE_ROUTE_PROTOCOL = 113  # routes to other nodes' pods
ADDRESS_PROTOCOL = 112  # the router's address (IFA_PROTO)
FILTER_PRIORITY = 1  # our filter is the first at its hook
FILTER_HANDLE = 0x706C78  # not one that the kernel gives to others' filters of this priority

NEW = NLM_F_CREATE | NLM_F_EXCL
SET = NLM_F_CREATE | NLM_F_REPLACE
MAIN_TABLE, LOCAL_TABLE = 254, 255
IPVS_DEVICE = "kube-ipvs0"
FAMILY = {4: AF_INET, 6: AF_INET6}
IFA_F_NODAD = 0x02  # linux/if_addr.h: in use at once; who else could have it?
IFA_F_NOPREFIXROUTE = 0x200
RTNH_F_ONLINK = 4  # linux/rtnetlink.h: the next hop is there, whatever the routes say
ADDR_GEN_MODE_NONE = 1  # linux/if_link.h: the kernel makes no IPv6 address up
NO_ROUTES = (errno.EAFNOSUPPORT, errno.ENOENT)  # a kernel without the family; a table that has had no route yet
LOOPBACK_INDEX = 1  # in every network namespace
HOOK: dict[Direction, int] = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}  # of clsact, linux/pkt_sched.h
CLSACT_HANDLE = 0xFFFF0000


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
    tunnel_port: int = 0  # of a VXLAN or Geneve device in collect-metadata mode; else 0
    queue: str = "noqueue"  # what its packets wait in: "tbf" where somebody has set a rate


@dataclass(frozen=True, slots=True)
class NodeRoute:
    """The way to another node's block of pod addresses.

    Native when `tunnel_id` is None: by way of `node_address` on `device`. Else by `device`, a tunnel in
    collect-metadata mode, to the tunnel endpoint `node_address`, with `tunnel_id` as the network identifier.
    """

    cidr: str  # "10.244.2.0/24" or "fd00:10::/120"
    node_address: str  # "192.0.2.2"; native: of the family of `cidr`
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
    handle: int  # unique within a priority


# Links


def add_veth(netlink: Netlink, name: str, mac: str, peer: str, peer_mac: str, mtu_bytes: int, namespace: int) -> None:
    """A veth, both sides down, ours in `POD_GROUP`, the peer in the network namespace behind the fd `namespace`.

    The kernel refuses to bring up a side before the two know each other, so neither is made up.
    """
    inside = [*_named(peer, mtu_bytes), ("IFLA_ADDRESS", peer_mac), ("IFLA_NET_NS_FD", namespace)]
    info = _info("veth", ("VETH_INFO_PEER", {"attrs": inside}))
    wanted = message(ifinfmsg, [*_named(name, mtu_bytes), ("IFLA_ADDRESS", mac), ("IFLA_GROUP", POD_GROUP), info])
    netlink.ask(f"create the link {name} with {peer} in the pod", kinds.RTM_NEWLINK, NEW, wanted)


def add_tunnel(netlink: Netlink, name: str, protocol: Protocol, port: int, mtu_bytes: int) -> None:
    """A tunnel device, down, that takes endpoint and identifier from each packet (collect-metadata mode).

    Without ARP: who is behind the tunnel is decided by routes and programs, so nobody needs to be asked. Outer UDP
    over IPv6 may come without a checksum (RFC 6936): the inner packet has its own.
    """
    settings: dict[Protocol, list[tuple[str, Any]]] = {
        "vxlan": [
            ("IFLA_VXLAN_LEARNING", 0),
            ("IFLA_VXLAN_PORT", port),
            ("IFLA_VXLAN_COLLECT_METADATA", 1),
            ("IFLA_VXLAN_UDP_ZERO_CSUM6_RX", 1),
        ],
        "geneve": [
            ("IFLA_GENEVE_PORT", port),
            ("IFLA_GENEVE_COLLECT_METADATA", True),
            ("IFLA_GENEVE_UDP_ZERO_CSUM6_RX", 1),
        ],
    }
    info = _info(protocol, *settings[protocol])
    wanted = message(ifinfmsg, [*_named(name, mtu_bytes), info], flags=IFF_NOARP, change=IFF_NOARP)
    netlink.ask(f"create the {protocol} device {name} on UDP port {port}", kinds.RTM_NEWLINK, NEW, wanted)


def _named(name: str, mtu_bytes: int) -> list[tuple[str, Any]]:
    return [("IFLA_IFNAME", name), ("IFLA_MTU", mtu_bytes)]


def _info(kind: str, *data: tuple[str, Any]) -> tuple[str, Any]:
    return "IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": list(data)})]}


def set_up(netlink: Netlink, index: int) -> None:
    wanted = message(ifinfmsg, index=index, flags=IFF_UP, change=IFF_UP)
    netlink.ask(f"bring up link {index}", kinds.RTM_SETLINK, 0, wanted)


def stop_making_addresses(netlink: Netlink, index: int) -> None:
    """No link-local address, and with it no word of the kernel's own, on a link that is not up yet."""
    spec = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", ADDR_GEN_MODE_NONE)]})]}
    wanted = message(ifinfmsg, [("IFLA_AF_SPEC", spec)], index=index)
    missing = (errno.EAFNOSUPPORT,)  # a kernel without IPv6 makes none anyway
    netlink.ask(f"let link {index} have no addresses but ours", kinds.RTM_SETLINK, 0, wanted, missing)


def set_mtu(netlink: Netlink, index: int, mtu_bytes: int) -> None:
    wanted = message(ifinfmsg, [("IFLA_MTU", mtu_bytes)], index=index)
    netlink.ask(f"set the MTU of link {index} to {mtu_bytes}", kinds.RTM_SETLINK, 0, wanted)


def find_link(netlink: Netlink, name: str) -> SeenLink | None:
    wanted = message(ifinfmsg, [("IFLA_IFNAME", name)])
    found = netlink.ask(f"look up the link {name}", kinds.RTM_GETLINK, 0, wanted, (errno.ENODEV,))
    return _seen(found[0]) if found else None


def find_link_at(netlink: Netlink, index: int) -> SeenLink | None:
    wanted = message(ifinfmsg, index=index)
    found = netlink.ask(f"look up the link {index}", kinds.RTM_GETLINK, 0, wanted, (errno.ENODEV,))
    return _seen(found[0]) if found else None


def rename(netlink: Netlink, index: int, name: str) -> None:
    """Down meanwhile where the kernel wants that (before 6.2, linux/net/core/dev.c, dev_change_name), which looks for
    another of that name only then. Down after it, but up when the name is refused. Raises: Refused."""
    wanted = message(ifinfmsg, [("IFLA_IFNAME", name)], index=index)
    says = f"give link {index} the name {name}"
    try:
        netlink.ask(says, kinds.RTM_SETLINK, 0, wanted)
    except Refused as failure:
        if failure.errno != errno.EBUSY:
            raise
        if find_link(netlink, name) is not None:
            raise Refused(errno.EEXIST, os.strerror(errno.EEXIST), says) from failure
        netlink.ask(f"bring down link {index}", kinds.RTM_SETLINK, 0, message(ifinfmsg, index=index, change=IFF_UP))
        try:
            netlink.ask(says, kinds.RTM_SETLINK, 0, wanted)
        except OSError:
            set_up(netlink, index)
            raise


def list_links(netlink: Netlink) -> list[SeenLink]:
    return [_seen(each) for each in netlink.ask("list links", kinds.RTM_GETLINK, NLM_F_DUMP, message(ifinfmsg))]


def _seen(link: Any) -> SeenLink:
    kind = link.get(("linkinfo", "kind")) or ""
    return SeenLink(
        name=link.get("ifname"),
        index=link["index"],
        mac=link.get("address") or "",
        mtu_bytes=link.get("mtu") or 0,
        kind=kind,
        group=link.get("group") or 0,
        peer_index=link.get("link") or 0 if kind == "veth" else 0,
        up=bool(link["flags"] & IFF_UP),
        tunnel_port=_tunnel_port(link, kind),
        queue=link.get("qdisc") or "noqueue",
    )


def _tunnel_port(link: Any, kind: str) -> int:
    data = link.get(("linkinfo", "data")) if kind in ("vxlan", "geneve") else None
    known = {name: value for name, value, *_ in data["attrs"]} if data else {}
    port: int = known.get(f"IFLA_{kind.upper()}_PORT", 0)
    return port if known.get(f"IFLA_{kind.upper()}_COLLECT_METADATA") else 0


def delete_link(netlink: Netlink, name: str) -> None:
    gone = message(ifinfmsg, [("IFLA_IFNAME", name)])
    netlink.ask(f"delete the link {name}", kinds.RTM_DELLINK, 0, gone, (errno.ENODEV,))


def delete_links(netlink: Netlink, names: list[str]) -> None:
    """All of them in one sweep: a single removal waits tens of milliseconds, and so does a group of any size."""
    mark = ("IFLA_GROUP", REMOVED_GROUP)
    for name in names:
        marked = message(ifinfmsg, [("IFLA_IFNAME", name), mark])
        netlink.ask(f"mark the link {name} for removal", kinds.RTM_SETLINK, 0, marked, (errno.ENODEV,))
    netlink.ask("delete marked links", kinds.RTM_DELLINK, 0, message(ifinfmsg, [mark]), (errno.ENODEV,))


# Addresses and neighbours


def add_address(netlink: Netlink, index: int, address: str, protocol: int = 0) -> None:
    """One address, alone, on a link. `protocol`: who made it, 0 for nobody in particular."""
    maker = [("IFA_PROTO", protocol)] if protocol else []
    flags = [("IFA_FLAGS", IFA_F_NODAD | IFA_F_NOPREFIXROUTE)] if ":" in address else []
    says = f"add {address} to link {index}"
    netlink.ask(says, kinds.RTM_NEWADDR, NEW, _address(index, address, *maker, *flags), (errno.EEXIST,))


def add_link_local_address(netlink: Netlink, index: int, address: str) -> None:
    """With the route to all such addresses. In use at once: the two ends of a link are all that there is on it."""
    attributes = [("IFA_LOCAL", address), ("IFA_ADDRESS", address), ("IFA_FLAGS", IFA_F_NODAD)]
    wanted = message(ifaddrmsg, attributes, index=index, family=AF_INET6, prefixlen=64, scope=RT_SCOPE_LINK)
    netlink.ask(f"add {address} to link {index}", kinds.RTM_NEWADDR, NEW, wanted, (errno.EEXIST,))


def delete_address(netlink: Netlink, index: int, address: str) -> None:
    gone = (errno.EADDRNOTAVAIL, errno.ENODEV)
    netlink.ask(f"remove {address} from link {index}", kinds.RTM_DELADDR, 0, _address(index, address), gone)


def _address(index: int, address: str, *more: tuple[str, Any]) -> Any:
    parsed = ip_address(address)
    attributes = [("IFA_LOCAL", address), ("IFA_ADDRESS", address), *more]
    head = {"family": FAMILY[parsed.version], "prefixlen": parsed.max_prefixlen, "scope": RT_SCOPE_UNIVERSE}
    return message(ifaddrmsg, attributes, index=index, **head)


def list_addresses(netlink: Netlink, index: int) -> list[tuple[str, bool, int]]:
    """(address, is it global, who made it), both families, in the kernel's order."""
    wanted = message(ifaddrmsg, family=AF_UNSPEC, index=index)
    found = netlink.ask(f"list addresses of link {index}", kinds.RTM_GETADDR, NLM_F_DUMP, wanted)
    return [
        (each.get("local") or each.get("address"), each["scope"] == RT_SCOPE_UNIVERSE, each.get("proto") or 0)
        for each in found
    ]


def set_neighbour(netlink: Netlink, index: int, address: str, mac: str) -> None:
    """`address` is at `mac`, for ever."""
    attributes = [("NDA_DST", address), ("NDA_LLADDR", mac)]
    family = FAMILY[ip_address(address).version]
    wanted = message(ndmsg, attributes, family=family, ifindex=index, state=NUD_PERMANENT)
    netlink.ask(f"say that {address} is at {mac}", kinds.RTM_NEWNEIGH, SET, wanted)


# Routes


def _route(cidr: str, protocol: int, scope: int, *attributes: tuple[str, Any], flags: int = 0) -> Any:
    """A unicast route of the main table; to everything it has no destination attribute."""
    network = ip_network(cidr)
    destination = [("RTA_DST", str(network.network_address))] if network.prefixlen else []
    head = {"dst_len": network.prefixlen, "table": MAIN_TABLE, "type": kinds.rt_type["unicast"], "flags": flags}
    family = FAMILY[network.version]
    return message(rtmsg, [*destination, *attributes], family=family, proto=protocol, scope=scope, **head)


def alone(address: str) -> str:
    """The network of one address: "10.0.1.2/32", "fd00::2/128"."""
    return f"{address}/{ip_address(address).max_prefixlen}"


def set_link_route(netlink: Netlink, address: str, index: int, source: str = "") -> None:
    """`address` is right behind a link. `source`: the node's address that it is spoken to from, where the program that
    speaks names none; one that the node has not (any more) is passed over. The route goes with that address."""
    way: tuple[tuple[str, Any], ...] = (("RTA_OIF", index),)
    request = f"route {address} to link {index}"
    if source:
        wanted = _route(alone(address), POD_ROUTE_PROTOCOL, RT_SCOPE_LINK, *way, ("RTA_PREFSRC", source))
        try:
            netlink.ask(f"{request} from {source}", kinds.RTM_NEWROUTE, SET, wanted)
        except Refused as failure:
            if failure.errno != errno.EINVAL:
                raise
        else:
            return
    netlink.ask(request, kinds.RTM_NEWROUTE, SET, _route(alone(address), POD_ROUTE_PROTOCOL, RT_SCOPE_LINK, *way))


def set_default_route(netlink: Netlink, gateway: str, index: int) -> None:
    """Everything of the gateway's family goes to it; it is on the link, whatever other routes say."""
    way = (("RTA_GATEWAY", gateway), ("RTA_OIF", index))
    everything = EVERYTHING[ip_address(gateway).version]
    wanted = _route(everything, POD_ROUTE_PROTOCOL, RT_SCOPE_UNIVERSE, *way, flags=RTNH_F_ONLINK)
    netlink.ask(f"route everything to {gateway}", kinds.RTM_NEWROUTE, SET, wanted)


def set_node_route(netlink: Netlink, node: NodeRoute, index: int) -> None:
    """Source: linux/lwtunnel.h; net/ipv4/ip_tunnel_core.c, ip_tun_build_state."""
    scope = RT_SCOPE_UNIVERSE
    way: list[tuple[str, Any]] = [("RTA_OIF", index)]
    if node.tunnel_id is None:
        way.append(("RTA_GATEWAY", node.node_address))
    else:
        scope = RT_SCOPE_LINK
        form, kind = ("IP6", LWTUNNEL_ENCAP_IP6) if ":" in node.node_address else ("IP", LWTUNNEL_ENCAP_IP)
        encapsulation = [(f"LWTUNNEL_{form}_ID", node.tunnel_id), (f"LWTUNNEL_{form}_DST", node.node_address)]
        way += [("RTA_ENCAP_TYPE", kind), ("RTA_ENCAP", {"attrs": encapsulation})]
    if node.source:
        way.append(("RTA_PREFSRC", node.source))
    if node.mtu_bytes:
        way.append(("RTA_METRICS", {"attrs": [("RTAX_MTU", node.mtu_bytes)]}))
    says = f"route {node.cidr} to node {node.node_address} by {node.device}"
    netlink.ask(says, kinds.RTM_NEWROUTE, SET, _route(node.cidr, NODE_ROUTE_PROTOCOL, scope, *way))


def delete_node_route(netlink: Netlink, cidr: str) -> None:
    gone = _route(cidr, NODE_ROUTE_PROTOCOL, RT_SCOPE_NOWHERE)  # "nowhere" matches any scope
    netlink.ask(f"remove the route to {cidr}", kinds.RTM_DELROUTE, 0, gone, (errno.ESRCH,))


def _list_routes(netlink: Netlink, protocol: int, version: int) -> list[Any]:
    wanted = message(rtmsg, family=FAMILY[version], proto=protocol)
    return netlink.ask(f"list IPv{version} routes", kinds.RTM_GETROUTE, NLM_F_DUMP, wanted, NO_ROUTES)


def list_routed_addresses(netlink: Netlink) -> set[str]:
    """Single addresses that have a route of their own, whoever made it."""
    found = set()
    for version, family in FAMILY.items():
        wanted = message(rtmsg, family=family, table=MAIN_TABLE, type=kinds.rt_type["unicast"])
        for each in netlink.ask(f"list IPv{version} routes", kinds.RTM_GETROUTE, NLM_F_DUMP, wanted, NO_ROUTES):
            if each["dst_len"] == ip_network(EVERYTHING[version]).max_prefixlen and each.get("dst"):
                found.add(each.get("dst"))
    return found


def list_link_routes(netlink: Netlink) -> dict[str, int]:
    """The routes to pods of this node that we made: address -> index of the link."""
    found = (each for version in FAMILY for each in _list_routes(netlink, POD_ROUTE_PROTOCOL, version))
    return {each.get("dst"): each.get("oif") for each in found}


def has_route(netlink: Netlink, cidr: str, index: int, gateway: str | None = None) -> bool:
    """Did we route `cidr` to a link, by way of `gateway`?"""
    network = ip_network(cidr)
    wanted = (str(network.network_address) if network.prefixlen else None, network.prefixlen, index, gateway)
    return any(
        (each.get("dst"), each["dst_len"], each.get("oif"), each.get("gateway")) == wanted
        for each in _list_routes(netlink, POD_ROUTE_PROTOCOL, network.version)
    )


def list_own_addresses(netlink: Netlink) -> dict[str, str]:
    """What the node's stack takes in for itself: address -> name of its device.

    Without loopback, what only one link knows (fe80::), and the Services of an IPVS balancer, which are its own affair.
    An address that the kernel does not answer to yet, or not here, has no such route: a duplicate, one of a VRF.
    """
    names = {link.index: link.name for link in list_links(netlink)}
    found = {}
    for version, family in FAMILY.items():
        wanted = message(rtmsg, family=family, table=LOCAL_TABLE, type=kinds.rt_type["local"])
        for each in netlink.ask(f"list IPv{version} addresses", kinds.RTM_GETROUTE, NLM_F_DUMP, wanted, NO_ROUTES):
            address = ip_address(each.get("dst") or "::")
            device = names.get(each.get("oif"), "")
            is_others = address.is_loopback or (version == 6 and address.is_link_local) or device == IPVS_DEVICE
            if each["dst_len"] == address.max_prefixlen and not is_others:
                found[str(address)] = device
    return found


def list_node_routes(netlink: Netlink) -> list[NodeRoute]:
    """The routes to other nodes' pods that we made, by CIDR."""
    names = {link.index: link.name for link in list_links(netlink)}
    seen = [each for version in FAMILY for each in _list_routes(netlink, NODE_ROUTE_PROTOCOL, version)]
    return sorted((_node_route(each, names) for each in seen), key=lambda each: each.cidr)


def _node_route(found: Any, names: dict[int, str]) -> NodeRoute:
    tunnelled = found.get("encap_type") in (LWTUNNEL_ENCAP_IP, LWTUNNEL_ENCAP_IP6)
    index = found.get("oif")
    return NodeRoute(
        cidr=f"{found.get('dst')}/{found['dst_len']}",
        node_address=found.get(("encap", "dst") if tunnelled else "gateway") or "",
        device=names.get(index, f"link {index}"),
        tunnel_id=found.get(("encap", "id")) if tunnelled else None,
        mtu_bytes=found.get(("metrics", "mtu")) or 0,
        source=found.get("prefsrc") or "",
    )


# Programs


def attach(netlink: Netlink, index: int, program: int, direction: Direction, name: str) -> None:
    """Attach the program behind the fd `program`; one that is there already is replaced in a single step."""
    clsact = message(tcmsg, [("TCA_KIND", "clsact")], index=index, handle=CLSACT_HANDLE, parent=kinds.TC_H_CLSACT)
    netlink.ask(f"add clsact to link {index}", kinds.RTM_NEWQDISC, NEW, clsact, (errno.EEXIST,))
    options = [("TCA_BPF_FD", program), ("TCA_BPF_NAME", name), ("TCA_BPF_FLAGS", TCA_BPF_FLAG_ACT_DIRECT)]
    wanted = _filter(index, direction, ("TCA_OPTIONS", {"attrs": options}))
    netlink.ask(f"attach {name} to link {index}, {direction}", kinds.RTM_NEWTFILTER, NLM_F_CREATE, wanted)


def detach(netlink: Netlink, index: int, direction: Direction, handle: int = FILTER_HANDLE) -> None:
    """clsact stays: others may use it. Nothing when nothing is attached, or the link is gone."""
    gone = (errno.ENOENT, errno.EINVAL, errno.ENODEV)
    says = f"detach the {direction} program of link {index}"
    netlink.ask(says, kinds.RTM_DELTFILTER, 0, _filter(index, direction, handle=handle), gone)


def _filter(index: int, direction: Direction, *more: tuple[str, Any], handle: int = FILTER_HANDLE) -> Any:
    info = FILTER_PRIORITY << 16 | htons(ETH_P_ALL)
    attributes = [("TCA_KIND", "bpf"), *more]
    return message(tcmsg, attributes, index=index, handle=handle, parent=HOOK[direction], info=info)


def list_attached(netlink: Netlink, index: int, direction: Direction) -> list[Attached]:
    """Every program at clsact on a hook of a link, ours and others'; empty when the link is gone."""
    wanted = message(tcmsg, index=index, parent=HOOK[direction])
    gone = (errno.ENOENT, errno.EINVAL, errno.ENODEV)
    says = f"list the {direction} programs of link {index}"
    return [
        Attached(
            direction=direction,
            name=found.get(("options", "tca_bpf_name")) or "",
            program_id=found.get(("options", "tca_bpf_id")),
            tag=(found.get(("options", "tca_bpf_tag")) or b"").hex(),
            priority=found["info"] >> 16,
            handle=found["handle"],
        )
        for found in netlink.ask(says, kinds.RTM_GETTFILTER, NLM_F_DUMP, wanted, gone)
        if found.get("kind") == "bpf" and found.get(("options", "tca_bpf_id"))
    ]
