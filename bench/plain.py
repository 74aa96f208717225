"""Plain Linux, for comparison: the lab's namespaces and links without Plexus. Static routes, and nothing else.

    pod1 --veth-- node1 --veth-- lan (bridge) --veth-- node2 --veth-- pod3
    pod2 --veth---/

With a tunnel, packets between the nodes go through a VXLAN device of the kernel's. `plain_outside` adds a host in the
LAN that knows nothing of pods, and lets the first node masquerade.

Every pod and node has an address of each family. Addresses are /32 or /128 with a link-scope gateway, as the CNI gives
them, and every neighbour is static, so that neither side spends anything on looking for it. But for masquerade there is
no netfilter rule, and there is no program.

Namespaces are named "plxb-<pid of the bench>-<what>". `plain_pods` removes its own when it ends;
`remove_leftovers` removes those of benches that were killed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from bench.load import Place, Pods
from lab.plan import FAMILIES, Family

PREFIX = "plxb-"
GATEWAYS: dict[Family, str] = {4: "169.254.1.1", 6: "fe80::1"}  # the same for every pod; only a neighbour entry
BITS: dict[Family, int] = {4: 32, 6: 128}
MTU_BYTES = 1500  # of the LAN
VXLAN_OVERHEAD_BYTES = 50  # outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14: RFC 7348
# The nodes' addresses, less their last number; with a tunnel, the second are those of its ends.
LAN: dict[Family, str] = {4: "192.168.77.", 6: "fd00:77::"}
TUNNEL: dict[Family, str] = {4: "192.168.78.", 6: "fd00:78::"}
POD_BLOCKS: dict[Family, str] = {4: "10.1.{node}.", 6: "fd00:10:1:{node}::"}  # likewise, of a node's pods
OUTSIDE_NUMBER = 9  # in LAN
BLOCK_BITS: dict[Family, int] = {4: 24, 6: 64}


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
def plain_pods(*, tunnel: bool = False) -> Iterator[dict[Family, Pods]]:
    """Build the topology, hand out its pods by family, take it down again, also after an error."""
    pid = os.getpid()
    mtu = MTU_BYTES - VXLAN_OVERHEAD_BYTES * tunnel
    try:
        add_lan(pid)
        for number in (1, 2):
            add_node(pid, number)
        places = [add_pod(pid, number, node=node, mtu=mtu) for number, node in ((1, 1), (2, 1), (3, 2))]
        join_nodes(pid, "eth0", LAN)
        if tunnel:
            add_tunnel(pid)
            join_nodes(pid, "vxlan0", TUNNEL)
        route_pods(pid, TUNNEL if tunnel else LAN)
        yield {family: Pods(*(place[family] for place in places)) for family in FAMILIES}
    finally:
        remove(pid)


def plain_outside() -> Place:
    """Inside `plain_pods`, which removes it: a host in the LAN, IPv4, that the first node's pods reach masqueraded."""
    pid = os.getpid()
    outside, lan, node = namespace("outside", pid), namespace("lan", pid), namespace("node1", pid)
    add_namespace(outside)
    add_veth(outside, "eth0", lan, "outside", MTU_BYTES)
    ip("link", "set", "outside", "master", "lan", namespace=lan)
    add_addresses(outside, "eth0", LAN, OUTSIDE_NUMBER)
    rule = "add rule ip nat out oifname eth0 ip saddr 10.1.0.0/16 masquerade"
    chain = "add chain ip nat out { type nat hook postrouting priority srcnat; }"
    in_namespace(node, "nft", f"add table ip nat; {chain}; {rule}")
    return Place("outside", f"{LAN[4]}{OUTSIDE_NUMBER}", ("ip", "netns", "exec", outside))


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
    in_namespace(node, "sh", "-c", "cd /proc/sys/net; echo 1 | tee ipv4/ip_forward ipv6/conf/all/forwarding")
    add_veth(node, "eth0", lan, f"node{number}", MTU_BYTES)
    ip("link", "set", f"node{number}", "master", "lan", namespace=lan)
    add_addresses(node, "eth0", LAN, number)


def add_tunnel(pid: int) -> None:
    """A VXLAN device on each node that leads to the other one."""
    for here, there in ((1, 2), (2, 1)):
        node = namespace(f"node{here}", pid)
        ends = ("local", f"{LAN[4]}{here}", "remote", f"{LAN[4]}{there}", "dev", "eth0")
        ip("link", "add", "vxlan0", "type", "vxlan", "id", "1", "dstport", "8472", *ends, namespace=node)
        add_addresses(node, "vxlan0", TUNNEL, here)
        ip("link", "set", "vxlan0", "up", namespace=node)


def add_addresses(where: str, device: str, network: dict[Family, str], number: int) -> None:
    """An address of each family, usable at once."""
    ip("address", "add", f"{network[4]}{number}/24", "dev", device, namespace=where)
    ip("address", "add", f"{network[6]}{number}/64", "dev", device, "nodad", namespace=where)


def join_nodes(pid: int, device: str, network: dict[Family, str]) -> None:
    """Each node knows the other's hardware address on `device`."""
    for here, there in ((1, 2), (2, 1)):
        hardware = hardware_address(namespace(f"node{there}", pid), device)
        node = namespace(f"node{here}", pid)
        for head in network.values():
            ip("neighbour", "replace", f"{head}{there}", "lladdr", hardware, "dev", device, namespace=node)


def route_pods(pid: int, network: dict[Family, str]) -> None:
    """The other node's pods are behind its address in `network`."""
    for here, there in ((1, 2), (2, 1)):
        for family, head in network.items():
            block = f"{POD_BLOCKS[family].format(node=there)}0/{BLOCK_BITS[family]}"
            ip("route", "add", block, "via", f"{head}{there}", namespace=namespace(f"node{here}", pid))


def add_pod(pid: int, number: int, *, node: int, mtu: int) -> dict[Family, Place]:
    """A pod on a node, as a place to run something, by the family of the address that it is reached by."""
    name = f"pod{number}"
    pod, host = namespace(name, pid), namespace(f"node{node}", pid)
    add_namespace(pod)
    add_veth(pod, "eth0", host, name, mtu)
    gateway_hardware, pod_hardware = hardware_address(host, name), hardware_address(pod, "eth0")
    places: dict[Family, Place] = {}
    for family, gateway in GATEWAYS.items():
        bare = f"{POD_BLOCKS[family].format(node=node)}{number}"
        address = f"{bare}/{BITS[family]}"
        ip("address", "add", address, "dev", "eth0", *(["nodad"] if family == 6 else []), namespace=pod)
        ip("neighbour", "add", gateway, "lladdr", gateway_hardware, "dev", "eth0", namespace=pod)
        if family == 4:
            ip("route", "add", gateway, "dev", "eth0", "scope", "link", namespace=pod)
        ip(f"-{family}", "route", "add", "default", "via", gateway, "dev", "eth0", namespace=pod)
        ip("route", "add", address, "dev", name, namespace=host)
        ip("neighbour", "add", bare, "lladdr", pod_hardware, "dev", name, namespace=host)
        places[family] = Place(name, bare, ("ip", "netns", "exec", pod))
    return places


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
