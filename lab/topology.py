"""The lab's machine room: hosts on a LAN, a router, a host outside. Effects; needs CAP_NET_ADMIN.

root ns --- control --+                      control: bus and control services
               lan ---+--- router --- outside
  node1 .. nodeN  ----+
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Interface
from typing import Any

from lab import names, namespaces
from lab.plan import DEVICE
from lab.state import Record

BRIDGE = "lan0"  # in the router: the nodes' LAN and the router's leg in it

_FORWARDING = namespaces.IPV4_ONLY | {"ipv4/ip_forward": "1"}


def hosts(lab: Record) -> dict[str, IPv4Interface]:
    """Every host in the LAN but the router, and its address."""
    plan = lab.plan
    return {names.CONTROL: plan.control, names.LAN: plan.lan_host} | {
        node: plan.node(number) for number, node in enumerate(lab.nodes, 1)
    }


def build(lab: Record) -> None:
    """Make every namespace and link of a lab, for which none exists yet."""
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda host: make_namespace(lab, host), [names.ROUTER, names.OUTSIDE, *hosts(lab)]))
        build_router(lab)
        list(threads.map(lambda item: attach_host(lab, *item), hosts(lab).items()))
    attach_outside(lab)
    attach_root(lab)


def make_namespace(lab: Record, host: str) -> None:
    forwards = host == names.ROUTER or host in lab.nodes  # Kubernetes asks this of its nodes too
    namespaces.create(names.namespace(lab.name, host), _FORWARDING if forwards else namespaces.IPV4_ONLY)


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


def configure(netlink: Any, link: str, address: IPv4Interface | None, **settings: Any) -> None:
    """Give a link its address and bring it up."""
    number = index(netlink, link)
    if address is not None:
        netlink.addr("add", index=number, address=str(address.ip), prefixlen=address.network.prefixlen)
    netlink.link("set", index=number, state="up", **settings)


def build_router(lab: Record) -> None:
    with open_netlink(lab, names.ROUTER) as netlink:
        netlink.link("add", ifname=BRIDGE, kind="bridge", br_stp_state=0, br_forward_delay=0)
        configure(netlink, BRIDGE, lab.plan.router)


def attach_host(lab: Record, host: str, address: IPv4Interface) -> None:
    """Connect a host's eth0 to the LAN; the router's end is called as the host."""
    with open_netlink(lab, names.ROUTER) as netlink:
        add_pair(lab, netlink, host, DEVICE, host)
        configure(netlink, host, None, master=index(netlink, BRIDGE))
    with open_netlink(lab, host) as netlink:
        configure(netlink, DEVICE, address)
        netlink.route("add", dst="default", gateway=str(lab.plan.router.ip))


def attach_outside(lab: Record) -> None:
    """The host beyond the router knows the LAN through it, and nothing of pods."""
    with open_netlink(lab, names.ROUTER) as netlink:
        add_pair(lab, netlink, names.OUTSIDE, DEVICE, names.OUTSIDE)
        configure(netlink, names.OUTSIDE, lab.plan.outside_router)
    with open_netlink(lab, names.OUTSIDE) as netlink:
        configure(netlink, DEVICE, lab.plan.outside_host)
        netlink.route("add", dst=str(lab.plan.lan), gateway=str(lab.plan.outside_router.ip))


def attach_root(lab: Record) -> None:
    """The one link that the machine's own namespace sees: to the control host."""
    from pyroute2 import IPRoute

    link = names.management_link(lab.name)
    with IPRoute() as netlink:
        add_pair(lab, netlink, link, "mgmt0", names.CONTROL)
        configure(netlink, link, lab.plan.management_root)
    with open_netlink(lab, names.CONTROL) as netlink:
        configure(netlink, "mgmt0", lab.plan.management_control)


def detach_root(lab: str) -> None:
    """Remove the management link. Safe to repeat."""
    from pyroute2 import IPRoute, NetlinkError

    with IPRoute() as netlink, suppress(NetlinkError):
        for number in netlink.link_lookup(ifname=names.management_link(lab)):
            netlink.link("del", index=number)
