"""Plain Linux, for comparison: the lab's namespaces and links without Plexus. Static routes, and nothing else.

    pod1 --veth-- node1 --veth-- lan (bridge) --veth-- node2 --veth-- pod3
    pod2 --veth---/

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
MTU_BYTES = 1500


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
def plain_pods() -> Iterator[Pods]:
    """Build the topology, hand out its pods, take it down again, also after an error."""
    pid = os.getpid()
    try:
        add_lan(pid)
        for number in (1, 2):
            add_node(pid, number)
        client = add_pod(pid, "pod1", node=1, address="10.1.1.1")
        near = add_pod(pid, "pod2", node=1, address="10.1.1.2")
        far = add_pod(pid, "pod3", node=2, address="10.1.2.3")
        join_nodes(pid)
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
    add_veth(node, "eth0", lan, f"node{number}")
    ip("link", "set", f"node{number}", "master", "lan", namespace=lan)
    ip("address", "add", f"192.168.77.{number}/24", "dev", "eth0", namespace=node)


def join_nodes(pid: int) -> None:
    """Static routes and neighbours between the two nodes."""
    for here, there in ((1, 2), (2, 1)):
        node, other = namespace(f"node{here}", pid), namespace(f"node{there}", pid)
        gateway = f"192.168.77.{there}"
        ip("neighbour", "add", gateway, "lladdr", hardware_address(other, "eth0"), "dev", "eth0", namespace=node)
        ip("route", "add", f"10.1.{there}.0/24", "via", gateway, "dev", "eth0", namespace=node)


def add_pod(pid: int, name: str, *, node: int, address: str) -> Place:
    pod, host = namespace(name, pid), namespace(f"node{node}", pid)
    add_namespace(pod)
    add_veth(pod, "eth0", host, name)
    ip("address", "add", f"{address}/32", "dev", "eth0", namespace=pod)
    gateway_hardware = hardware_address(host, name)
    ip("neighbour", "add", GATEWAY, "lladdr", gateway_hardware, "dev", "eth0", namespace=pod)
    ip("route", "add", GATEWAY, "dev", "eth0", "scope", "link", namespace=pod)
    ip("route", "add", "default", "via", GATEWAY, "dev", "eth0", namespace=pod)
    ip("route", "add", f"{address}/32", "dev", name, "scope", "link", namespace=host)
    ip("neighbour", "add", address, "lladdr", hardware_address(pod, "eth0"), "dev", name, namespace=host)
    return Place(name, address, ("ip", "netns", "exec", pod))


def add_veth(here: str, name: str, there: str, peer: str) -> None:
    """A pair of links, one end in each namespace, both up."""
    mtu = str(MTU_BYTES)
    ip(
        *("link", "add", name, "mtu", mtu, "type", "veth"),
        *("peer", "name", peer, "netns", there, "mtu", mtu),
        namespace=here,
    )
    ip("link", "set", name, "up", namespace=here)
    ip("link", "set", peer, "up", namespace=there)


def hardware_address(where: str, link: str) -> str:
    return ip("-brief", "link", "show", "dev", link, namespace=where).split()[2]


def in_namespace(name: str, *command: str) -> None:
    subprocess.run(["ip", "netns", "exec", name, *command], check=True, capture_output=True)
