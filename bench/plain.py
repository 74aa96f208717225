"""Plain Linux, for comparison: the lab's namespaces and links without Plexus. Static routes, and nothing else.

    pod1 --veth-- node1 --veth-- lan (bridge) --veth-- node2 --veth-- pod3
    pod2 --veth---/

With a tunnel, packets between the nodes go through a VXLAN device of the kernel's.

Addresses are /32 with a link-scope gateway, as the CNI gives them, and every neighbour is static, so that neither side
spends anything on ARP. There is no netfilter rule and no program.

Namespaces are named "plxb-<pid of the bench>-<what>". `plain_pods` removes its own when it ends;
`remove_leftovers` removes those of benches that were killed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from bench.load import Place, Pods

PREFIX = "plxb-"
GATEWAY = "169.254.1.1"  # link-local, the same for every pod; it exists only as a neighbour entry
MTU_BYTES = 1500  # of the LAN
VXLAN_OVERHEAD_BYTES = 50  # outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14: RFC 7348
LAN = "192.168.77"  # the nodes' addresses; with a tunnel, 192.168.78 are those of its ends
TUNNEL = "192.168.78"


def namespace(what: str, pid: int) -> str:
    return f"{PREFIX}{pid}-{what}"


def owner_of(name: str) -> int | None:
    """The process id in a namespace's name; None when the name is not ours."""
    head, _, _ = name.removeprefix(PREFIX).partition("-")
    return int(head) if name.startswith(PREFIX) and head.isdigit() else None


def ip(*arguments: str, namespace: str = "") -> str:
    """Run iproute2's `ip`. Raises subprocess.CalledProcessError with what it said."""
    command = ["ip", *(["-n", namespace] if namespace else []), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def existing() -> list[str]:
    """The names of all network namespaces made by benches."""
    names = (line.split()[0] for line in ip("netns", "list").splitlines() if line)
    return [name for name in names if owner_of(name) is not None]


def remove(pid: int) -> None:
    """Remove every namespace of one bench, and with them their links and routes. Repeating it does nothing."""
    for name in existing():
        if owner_of(name) == pid:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def remove_leftovers() -> None:
    """Remove the namespaces of benches that no longer run."""
    for pid in {owner_of(name) for name in existing()}:
        if pid is not None and not os.path.exists(f"/proc/{pid}"):  # noqa: PTH110  # one system call
            remove(pid)


@contextmanager
def plain_pods(*, tunnel: bool = False) -> Iterator[Pods]:
    """Build the topology, hand out its pods, take it down again, also after an error."""
    pid = os.getpid()
    mtu = MTU_BYTES - VXLAN_OVERHEAD_BYTES * tunnel
    try:
        add_lan(pid)
        for number in (1, 2):
            add_node(pid, number)
        client = add_pod(pid, "pod1", node=1, address="10.1.1.1", mtu=mtu)
        near = add_pod(pid, "pod2", node=1, address="10.1.1.2", mtu=mtu)
        far = add_pod(pid, "pod3", node=2, address="10.1.2.3", mtu=mtu)
        join_nodes(pid, "eth0", LAN)
        if tunnel:
            add_tunnel(pid)
            join_nodes(pid, "vxlan0", TUNNEL)
        route_pods(pid, TUNNEL if tunnel else LAN)
        yield Pods(client, near, far)
    finally:
        remove(pid)


def add_namespace(name: str) -> None:
    ip("netns", "add", name)
    ip("link", "set", "lo", "up", namespace=name)


def add_lan(pid: int) -> None:
    lan = namespace("lan", pid)
    add_namespace(lan)
    ip("link", "add", "lan", "type", "bridge", "forward_delay", "0", namespace=lan)
    ip("link", "set", "lan", "up", namespace=lan)


def add_node(pid: int, number: int) -> None:
    """A node: its namespace, forwarding, and a link into the LAN."""
    node, lan = namespace(f"node{number}", pid), namespace("lan", pid)
    add_namespace(node)
    in_namespace(node, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    add_veth(node, "eth0", lan, f"node{number}", MTU_BYTES)
    ip("link", "set", f"node{number}", "master", "lan", namespace=lan)
    ip("address", "add", f"{LAN}.{number}/24", "dev", "eth0", namespace=node)


def add_tunnel(pid: int) -> None:
    """A VXLAN device on each node that leads to the other one."""
    for here, there in ((1, 2), (2, 1)):
        node = namespace(f"node{here}", pid)
        ends = ("local", f"{LAN}.{here}", "remote", f"{LAN}.{there}", "dev", "eth0")
        ip("link", "add", "vxlan0", "type", "vxlan", "id", "1", "dstport", "8472", *ends, namespace=node)
        ip("address", "add", f"{TUNNEL}.{here}/24", "dev", "vxlan0", namespace=node)
        ip("link", "set", "vxlan0", "up", namespace=node)


def join_nodes(pid: int, device: str, network: str) -> None:
    """Each node knows the other's hardware address on `device`."""
    for here, there in ((1, 2), (2, 1)):
        hardware = hardware_address(namespace(f"node{there}", pid), device)
        node = namespace(f"node{here}", pid)
        ip("neighbour", "replace", f"{network}.{there}", "lladdr", hardware, "dev", device, namespace=node)


def route_pods(pid: int, network: str) -> None:
    """The other node's pods are behind its address in `network`."""
    for here, there in ((1, 2), (2, 1)):
        ip("route", "add", f"10.1.{there}.0/24", "via", f"{network}.{there}", namespace=namespace(f"node{here}", pid))


def add_pod(pid: int, name: str, *, node: int, address: str, mtu: int) -> Place:
    pod, host = namespace(name, pid), namespace(f"node{node}", pid)
    add_namespace(pod)
    add_veth(pod, "eth0", host, name, mtu)
    ip("address", "add", f"{address}/32", "dev", "eth0", namespace=pod)
    gateway_hardware = hardware_address(host, name)
    ip("neighbour", "add", GATEWAY, "lladdr", gateway_hardware, "dev", "eth0", namespace=pod)
    ip("route", "add", GATEWAY, "dev", "eth0", "scope", "link", namespace=pod)
    ip("route", "add", "default", "via", GATEWAY, "dev", "eth0", namespace=pod)
    ip("route", "add", f"{address}/32", "dev", name, "scope", "link", namespace=host)
    ip("neighbour", "add", address, "lladdr", hardware_address(pod, "eth0"), "dev", name, namespace=host)
    return Place(name, address, ("ip", "netns", "exec", pod))


def add_veth(here: str, name: str, there: str, peer: str, mtu: int) -> None:
    """A pair of links, one end in each namespace, both up."""
    ip(
        *("link", "add", name, "mtu", str(mtu), "type", "veth"),
        *("peer", "name", peer, "netns", there, "mtu", str(mtu)),
        namespace=here,
    )
    ip("link", "set", name, "up", namespace=here)
    ip("link", "set", peer, "up", namespace=there)


def hardware_address(where: str, link: str) -> str:
    return ip("-brief", "link", "show", "dev", link, namespace=where).split()[2]


def in_namespace(name: str, *command: str) -> None:
    subprocess.run(["ip", "netns", "exec", name, *command], check=True, capture_output=True)
