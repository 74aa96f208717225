"""Pods of two nodes reach each other by Geneve, over either family, and the sender's identity is the tunnel's key.

Devices, routes and hooks are made by the dataplane's own code.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.dataplane.kernel.bpf import Map
from services.dataplane.kernel.hooks import Hooks
from services.dataplane.kernel.links import Links, PodLink, TcProgram
from services.dataplane.kernel.pins import open_program
from services.dataplane.parts.policy.entries import ALLOW
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes import layouts
from services.dataplane.shapes.attach import Hook
from services.dataplane.shapes.ip import PodIp
from services.dataplane.shapes.layouts import EndpointEntry, IpcacheEntry, IpcacheKey, pack_address
from services.dataplane.shapes.limits import declared_maps, map_path
from services.dataplane.shapes.programs import TC_PROGRAMS
from tests.bpf.spaces import device_of, in_namespace, inside, opened
from tests.guest.pinned import pin_all
from tests.guest.prepare import DEVICE_INDEX, NODES, TUNNEL_INDEX, UNDERLAYS, programs_of

PODS = {"node1": ("10.0.0.5", "fd00:10::5"), "node2": ("10.0.1.5", "fd00:10::1:5")}
ROUTERS = {"node1": ("10.0.0.1", "fd00:10::1"), "node2": ("10.0.1.1", "fd00:10::1:1")}
SENDER, RECEIVER, ELSE = 300, 301, 302  # identities; ELSE: what the receiver's node believes of the sender
POLICY = 7
DEVICE_MTU = 1500  # bytes
HEADERS = {4: 20 + 8, 6: 40 + 8}  # bytes of IP and ICMP around what a ping carries
SERVER = """
import socket
heard = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
stream, _ = heard.accept()
stream.sendall(stream.recv(6) * 2000)
"""


def ip(*lines: str, namespace: str = "") -> None:
    words = ["ip", *(["-n", namespace] if namespace else []), "-batch", "-"]
    subprocess.run(words, input="\n".join(lines), text=True, check=True)


class Node:
    """A network namespace with a pod, a Geneve device, and the programs of its own addresses."""

    def __init__(self, name: str, underlay: int) -> None:
        self.name = f"{name}-{underlay}"
        self.pod = f"{self.name}-pod"
        self.address = NODES[name][UNDERLAYS.index(underlay)]
        self.pod_addresses = dict(zip((4, 6), PODS[name], strict=True))
        self.settings = NodeSettings(node=name, ipv6_enabled=True, tunnel_protocol="geneve")
        self.mtu_bytes = self.settings.pod_mtu_bytes(DEVICE_MTU, underlay)
        self._ips = tuple(PodIp(*each) for each in zip(PODS[name], ROUTERS[name], strict=True))
        self._pin_dir = Path(f"/sys/fs/bpf/{self.name}")
        pin_all(programs_of(name, underlay), self._pin_dir)
        ip(f"netns add {self.name}", f"netns add {self.pod}")
        ip(f"link add up-{self.name} type veth peer name eth0 netns {self.name}")
        ip(f"link set up-{self.name} master lan{underlay} up")
        address, address6 = NODES[name]
        ip(
            f"address add {address}/24 dev eth0", f"address add {address6}/64 dev eth0 nodad", "link set eth0 up",
            namespace=self.name,
        )  # fmt: skip
        self.link = in_namespace(self.name, self._bring_up)
        self.maps = {name: Map.open(map_path(self._pin_dir, name)) for name in declared_maps()}

    async def _bring_up(self) -> PodLink:
        """As the dataplane does when it starts, and for a CNI ADD."""
        tunnel_device = self.settings.tunnel_device
        fds = {name: open_program(self._pin_dir, name) for name in TC_PROGRAMS}
        with (
            closing(Links()) as links,
            closing(Hooks(self._pin_dir, Path("/nowhere"), fds, enable_tcx=True)) as hooks,
            opened(self.pod) as pod,
        ):
            tunnel = await links.ensure_tunnel(tunnel_device, "geneve", self.settings.udp_port, self.mtu_bytes)
            device = await device_of(links, "eth0")
            assert (device.index, tunnel.index) == (DEVICE_INDEX, TUNNEL_INDEX), "the programs are compiled for others"
            assert tunnel.mtu_bytes == self.mtu_bytes
            again = await links.ensure_tunnel(tunnel_device, "geneve", self.settings.udp_port, self.mtu_bytes)
            assert again == tunnel, "what is as it should be is not made anew"
            await links.ensure_sysctls(["eth0", tunnel_device], self.settings.families)
            for each in self._ips:
                await links.ensure_router_address(each.gateway)
            await hooks.keep(Hook("eth0", DEVICE_INDEX, "ingress", "from_netdev"))
            await hooks.keep(Hook(tunnel_device, TUNNEL_INDEX, "ingress", "from_overlay"))
            programs = (
                TcProgram(fds["from_pod"], "ingress", "from_pod"),
                TcProgram(fds["to_pod"], "egress", "to_pod"),
            )
            link = await links.create_pod_link(pod, "c1", "eth0", self._ips, self.mtu_bytes, programs)
        for fd in fds.values():
            os.close(fd)
        return link

    def put_pod(self, identity: int, flags: int = 0) -> None:
        mac, gateway = (bytes.fromhex(mac.replace(":", "")) for mac in (self.link.pod_mac, self.link.host_mac))
        entry = EndpointEntry(self.link.host_index, identity, POLICY, flags, mac, gateway).pack()
        for address in self.pod_addresses.values():
            self.maps["endpoints"].set(pack_address(address), entry)

    def know(self, other: Node, identity: int) -> None:
        for address in other.pod_addresses.values():
            self.maps["ipcache"].set(IpcacheKey(address).pack(), IpcacheEntry(identity, other.address).pack())

    def allow_from(self, identity: int) -> None:
        key = layouts.PolicyMapKey(POLICY, identity, layouts.DIRECTIONS.index("ingress"), 0, 0, 0)
        self.maps["policy"].set(key.pack(), layouts.PolicyMapEntry(ALLOW, 1, 0, 0, 0).pack())

    def received(self) -> int:
        """Packets that came by the tunnel."""
        counter = f"/sys/class/net/{self.settings.tunnel_device}/statistics/rx_packets"
        return int(subprocess.check_output(["ip", "netns", "exec", self.name, "cat", counter], text=True))

    def close(self) -> None:
        for each in self.maps.values():
            each.close()


@pytest.fixture(scope="module", params=UNDERLAYS, ids="over IPv{}".format)
def nodes(request: pytest.FixtureRequest) -> Iterator[tuple[Node, Node]]:
    """The first node's pod may be reached by all; the second's only by the identity `SENDER`."""
    underlay: int = request.param
    ip(f"link add lan{underlay} type bridge", f"link set lan{underlay} up")
    near, far = made = Node("node1", underlay), Node("node2", underlay)
    near.put_pod(SENDER)
    near.know(far, RECEIVER)
    far.put_pod(RECEIVER, layouts.FLAG_ENFORCE_INGRESS)
    far.know(near, ELSE)
    far.allow_from(SENDER)
    yield made
    for each in made:
        each.close()


@pytest.mark.parametrize("family", [4, 6])
def test_a_ping_goes_by_geneve_and_bears_the_senders_identity(nodes: tuple[Node, Node], family: int) -> None:
    near, far = nodes
    before = [node.received() for node in nodes]
    found = inside(near.pod, "ping", "-c", "3", "-i", "0.3", "-W", "5", far.pod_addresses[family])
    assert found.returncode == 0 and " 0% packet loss" in found.stdout, found
    assert all(node.received() >= seen + 3 for node, seen in zip(nodes, before, strict=True))


@pytest.mark.parametrize("family", [4, 6])
def test_a_tcp_connection_goes_by_geneve(nodes: tuple[Node, Node], family: int) -> None:
    near, far = nodes
    server = ["ip", "netns", "exec", far.pod, sys.executable, "-c", SERVER]
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as heard:
        assert heard.stdout and heard.stdout.readline() == "listening\n"
        client = f"exec 3<>/dev/tcp/{far.pod_addresses[family]}/8080; echo hello >&3; cat <&3"
        said = inside(near.pod, "bash", "-c", client)
        heard.kill()
    assert said.stdout == "hello\n" * 2000, said


@pytest.mark.parametrize("family", [4, 6])
def test_the_largest_packet_of_a_pod_fits_through_the_tunnel_and_the_pod_knows_its_size(
    nodes: tuple[Node, Node], family: int
) -> None:
    near, far = nodes
    fits = near.mtu_bytes - HEADERS[family]
    ping = ["ping", "-c", "1", "-W", "5", "-M", "do"]
    found = inside(near.pod, *ping, "-s", str(fits), far.pod_addresses[family])
    assert found.returncode == 0, found
    found = inside(near.pod, *ping, "-s", str(fits + 1), far.pod_addresses[family])
    assert found.returncode != 0 and f"mtu: {near.mtu_bytes}" in (found.stdout + found.stderr).replace("=", ": "), found


@pytest.mark.parametrize("family", [4, 6])
def test_another_identity_in_the_key_is_refused(nodes: tuple[Node, Node], family: int) -> None:
    near, far = nodes
    near.put_pod(SENDER + 10)
    try:
        assert inside(near.pod, "ping", "-c", "1", "-W", "3", far.pod_addresses[family]).returncode == 1
    finally:
        near.put_pod(SENDER)


REFUSED = """
import errno, socket, sys
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as one:
            one.settimeout(60)
            try:
                one.connect((address, 80))
                one.send(b"hello")
                one.recv(9)
            except OSError as problem:
                print(errno.errorcode.get(problem.errno, problem))
"""


def test_a_pod_hears_at_once_that_a_service_has_no_backend(nodes: tuple[Node, Node]) -> None:
    """By the step that its program jumps to: a reset, and "port unreachable"."""
    near, _ = nodes
    services = ("10.96.0.9", "fd00:96::9")
    for number, (service, protocol) in enumerate(itertools.product(services, (6, 17)), 1):
        key, value = layouts.ServiceKey(service, 80, protocol), layouts.ServiceEntry(number, 0)
        near.maps["services"].set(key.pack(), value.pack())
    found = inside(near.pod, sys.executable, "-c", REFUSED, *services)
    assert found.stdout.split() == ["ECONNREFUSED"] * 4, found
