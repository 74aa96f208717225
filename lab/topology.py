"""The lab's machine room: hosts on one or two LANs, a router, a host outside. Effects; needs CAP_NET_ADMIN.

root ns --- control --+                         control: bus and control services
               lan ---+--- router --- outside
node1, node3 ... -----+      |
                             +--- node2, node4 ...   with two subnets; with one, they are beside node1
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from lab import names, namespaces
from lab.plan import DEVICE, Interface
from lab.state import Record

BRIDGES = ("lan0", "lan1")  # in the router: a LAN and the router's leg in it, by subnet
DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}


def subnet_of(lab: Record, host: str) -> int:
    """Which LAN a host is in."""
    return lab.plan.subnet_of(lab.nodes.index(host) + 1) if host in lab.nodes else 0


def addresses(lab: Record, host: str) -> list[Interface]:
    """Of a host in a LAN, one for each family."""
    plan = lab.plan
    if host in lab.nodes:
        return [plan.node(lab.nodes.index(host) + 1, family) for family in lab.families]
    own = plan.control if host == names.CONTROL else plan.lan_host
    return [own(family) for family in lab.families]


def hosts(lab: Record) -> list[str]:
    """Every host in a LAN but the router."""
    return [names.CONTROL, names.LAN, *lab.nodes]


def build(lab: Record) -> None:
    """Make every namespace and link of a lab, for which none exists yet."""
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda host: make_namespace(lab, host), [names.ROUTER, names.OUTSIDE, *hosts(lab)]))
        build_router(lab)
        list(threads.map(lambda host: attach_host(lab, host), hosts(lab)))
    attach_outside(lab)
    attach_root(lab)


def make_namespace(lab: Record, host: str) -> None:
    forwards = host == names.ROUTER or host in lab.nodes  # Kubernetes asks this of its nodes too
    namespaces.create(names.namespace(lab.name, host), namespaces.sysctls(lab.families, forwards=forwards))


def open_netlink(lab: Record, host: str) -> Any:
    """A netlink socket in a host's namespace; close it by `with`."""
    from pyroute2 import IPRoute  # 0.1 s: not before it is needed

    with namespaces.inside(names.namespace(lab.name, host)):  # IPRoute(netns=...) would fork, beside our threads
        return IPRoute()


def add_pair(lab: Record, netlink: Any, link: str, peer: str, host: str) -> None:
    """A veth pair: `link` where `netlink` is, `peer` in a host's namespace."""
    with namespaces.path(names.namespace(lab.name, host)).open("rb") as there:
        netlink.link("add", ifname=link, kind="veth", peer={"ifname": peer, "net_ns_fd": there.fileno()})


def index(netlink: Any, link: str) -> int:
    """The index of a link that is there."""
    return int(netlink.link_lookup(ifname=link)[0])


def configure(netlink: Any, link: str, addresses: Sequence[Interface], **settings: Any) -> None:
    """Give a link its addresses and bring it up."""
    number = index(netlink, link)
    for address in addresses:
        netlink.addr("add", index=number, address=str(address.ip), prefixlen=address.network.prefixlen)
    netlink.link("set", index=number, state="up", **settings)


def build_router(lab: Record) -> None:
    with open_netlink(lab, names.ROUTER) as netlink:
        for subnet in range(lab.subnets):
            netlink.link("add", ifname=BRIDGES[subnet], kind="bridge", br_stp_state=0, br_forward_delay=0)
            configure(netlink, BRIDGES[subnet], [lab.plan.router(family, subnet) for family in lab.families])


def attach_host(lab: Record, host: str) -> None:
    """Connect a host's eth0 to its LAN; the router's end is called as the host."""
    subnet = subnet_of(lab, host)
    with open_netlink(lab, names.ROUTER) as netlink:
        add_pair(lab, netlink, host, DEVICE, host)
        configure(netlink, host, [], master=index(netlink, BRIDGES[subnet]))
    with open_netlink(lab, host) as netlink:
        configure(netlink, DEVICE, addresses(lab, host))
        for family in lab.families:
            netlink.route("add", dst=DEFAULT[family], gateway=str(lab.plan.router(family, subnet).ip))


def attach_outside(lab: Record) -> None:
    """The host beyond the router knows the LANs through it, and nothing of pods."""
    plan = lab.plan
    with open_netlink(lab, names.ROUTER) as netlink:
        add_pair(lab, netlink, names.OUTSIDE, DEVICE, names.OUTSIDE)
        configure(netlink, names.OUTSIDE, [plan.outside_router(family) for family in lab.families])
    with open_netlink(lab, names.OUTSIDE) as netlink:
        configure(netlink, DEVICE, [plan.outside_host(family) for family in lab.families])
        for family in lab.families:
            for subnet in range(lab.subnets):
                lan, gateway = plan.lan(family, subnet), plan.outside_router(family).ip
                netlink.route("add", dst=str(lan), gateway=str(gateway))


def attach_root(lab: Record) -> None:
    """The one link that the machine's own namespace sees: to the control host."""
    from pyroute2 import IPRoute

    link = names.management_link(lab.name)
    with IPRoute() as netlink:
        add_pair(lab, netlink, link, "mgmt0", names.CONTROL)
        configure(netlink, link, [lab.plan.management_root])
    with open_netlink(lab, names.CONTROL) as netlink:
        configure(netlink, "mgmt0", [lab.plan.management_control])


def route_block(lab: Record, block: str, node: str | None) -> None:
    """The router sends a block of pod addresses to the node that holds it; None: to nobody. Safe to repeat."""
    from pyroute2 import NetlinkError

    with open_netlink(lab, names.ROUTER) as netlink:
        if node is None:
            with suppress(NetlinkError):
                netlink.route("del", dst=block)
            return
        version = 6 if ":" in block else 4
        gateway = next(str(each.ip) for each in addresses(lab, node) if each.version == version)
        netlink.route("replace", dst=block, gateway=gateway)


def detach_root(lab: str) -> None:
    """Remove the management link. Safe to repeat."""
    from pyroute2 import IPRoute, NetlinkError

    with IPRoute() as netlink, suppress(NetlinkError):
        for number in netlink.link_lookup(ifname=names.management_link(lab)):
            netlink.link("del", index=number)
