"""Pods of two nodes reach each other by Geneve, and the sender's identity travels in the tunnel's key."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.programs import read
from bench.verifier import create_map, load
from services.dataplane import layouts
from services.dataplane.bpf_syscall import Map, pin
from services.dataplane.layouts import EndpointEntry, IpcacheEntry, IpcacheKey, pack_address
from services.dataplane.policy import ALLOW
from tests.guest.prepare import DEVICE_INDEX, NODES, PROGRAMS, TUNNEL_INDEX

POD_INDEX = 20
PODS = {"node1": "10.0.0.5", "node2": "10.0.1.5"}
SENDER, RECEIVER, ELSE = 300, 301, 302  # identities; ELSE: what the receiver's node believes of the sender
POLICY = 7
GENEVE_PORT = 6081
HOOKS = (("plexus_geneve", "ingress", "from_overlay"), ("host", "ingress", "from_pod"), ("host", "egress", "to_pod"))
SERVER = """
import socket
heard = socket.create_server(("", 8080))
print("listening", flush=True)
stream, _ = heard.accept()
stream.sendall(stream.recv(6) * 2000)
"""


def ip(*lines: str, namespace: str = "") -> None:
    words = ["ip", *(["-n", namespace] if namespace else []), "-batch", "-"]
    subprocess.run(words, input="\n".join(lines), text=True, check=True)


class Node:
    """A network namespace with a pod, a Geneve device, and the programs of its own address."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = NODES[name]
        self.pod = PODS[name]
        self.pin_dir = Path(f"/sys/fs/bpf/{name}")
        self._make_links()
        self._load()
        for device, hook, program in HOOKS:
            # by nsenter: `tc -n` mounts another /sys, without pins
            pinned = self.pin_dir / program
            words = f"nsenter --net=/run/netns/{name} tc filter add dev {device} {hook} bpf da object-pinned {pinned}"
            subprocess.run(words.split(), check=True)
        self.maps = {each.name: Map.open(each) for each in (self.pin_dir / "maps").iterdir()}

    def _make_links(self) -> None:
        name, pod = self.name, f"{self.name}-pod"
        ip(f"netns add {name}", f"netns add {pod}")
        ip(f"link add uplink-{name} type veth peer name eth0 index {DEVICE_INDEX} netns {name}")
        ip(f"link set uplink-{name} master lan up")
        ip(
            f"address add {self.address}/24 dev eth0", "link set eth0 up", "link set lo up",
            f"link add plexus_geneve index {TUNNEL_INDEX} type geneve external dstport {GENEVE_PORT}",
            "link set plexus_geneve up",
            f"link add host index {POD_INDEX} type veth peer name eth0 netns {pod}",
            "link set host address 02:00:00:00:00:fe up",
            namespace=name,
        )  # fmt: skip
        ip(
            "link set eth0 address 02:00:00:00:00:01 up", "link set lo up", f"address add {self.pod}/32 dev eth0",
            "route add default dev eth0 via 169.254.1.1 onlink",
            namespace=pod,
        )  # fmt: skip
        for device in ("plexus_geneve", "host"):
            subprocess.run(f"tc -n {name} qdisc add dev {device} clsact".split(), check=True)

    def _load(self) -> None:
        """The node's programs, compiled before the guest booted, pinned with the maps that they share."""
        (self.pin_dir / "maps").mkdir(parents=True)
        maps: dict[str, int] = {}
        for program in read(PROGRAMS):
            if program.configuration != self.name or program.attach_type >= 0:
                continue
            for kind in program.maps:
                if kind.name not in maps:
                    maps[kind.name] = create_map(kind)
                    pin(maps[kind.name], self.pin_dir / "maps" / kind.name)
            fd = load(program, [maps[kind.name] for kind in program.maps])
            pin(fd, self.pin_dir / program.name)
            os.close(fd)
        for fd in maps.values():
            os.close(fd)

    def put_pod(self, identity: int, flags: int = 0) -> None:
        macs = bytes.fromhex("020000000001"), bytes.fromhex("0200000000fe")
        entry = EndpointEntry(POD_INDEX, identity, POLICY, flags, *macs)
        self.maps["endpoints"].set(pack_address(self.pod), entry.pack())

    def know(self, address: str, identity: int, node: str) -> None:
        self.maps["ipcache"].set(IpcacheKey(address).pack(), IpcacheEntry(identity, node).pack())

    def allow_from(self, identity: int) -> None:
        key = layouts.PolicyMapKey(POLICY, identity, layouts.DIRECTIONS.index("ingress"), 0, 0, 0)
        self.maps["policy"].set(key.pack(), layouts.PolicyMapEntry(ALLOW, 1, 0, 0, 0).pack())

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """In the pod."""
        command = ["ip", "netns", "exec", f"{self.name}-pod", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def close(self) -> None:
        for each in self.maps.values():
            each.close()


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    """The first node's pod may be reached by all; the second's only by the identity `SENDER`."""
    ip("link add lan type bridge", "link set lan up")
    near, far = made = Node("node1"), Node("node2")
    near.put_pod(SENDER)
    near.know(far.pod, RECEIVER, far.address)
    far.put_pod(RECEIVER, layouts.FLAG_ENFORCE_INGRESS)
    far.know(near.pod, ELSE, near.address)
    far.allow_from(SENDER)
    yield made
    for each in made:
        each.close()


def test_a_ping_goes_by_geneve_and_bears_the_senders_identity(nodes: tuple[Node, Node]) -> None:
    near, far = nodes
    found = near.run("ping", "-c", "3", "-i", "0.3", "-W", "5", far.pod)
    assert found.returncode == 0 and " 0% packet loss" in found.stdout, found
    for node in nodes:
        counter = ["cat", "/sys/class/net/plexus_geneve/statistics/rx_packets"]
        seen = subprocess.run(["ip", "netns", "exec", node.name, *counter], capture_output=True, text=True, check=True)
        assert int(seen.stdout) >= 3


def test_a_tcp_connection_goes_by_geneve(nodes: tuple[Node, Node]) -> None:
    near, far = nodes
    server = ["ip", "netns", "exec", f"{far.name}-pod", sys.executable, "-c", SERVER]
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as heard:
        assert heard.stdout and heard.stdout.readline() == "listening\n"
        said = near.run("bash", "-c", f"exec 3<>/dev/tcp/{far.pod}/8080; echo hello >&3; cat <&3")
        heard.kill()
    assert said.stdout == "hello\n" * 2000, said


def test_another_identity_in_the_key_is_refused(nodes: tuple[Node, Node]) -> None:
    near, far = nodes
    near.put_pod(SENDER + 10)
    try:
        assert near.run("ping", "-c", "1", "-W", "3", far.pod).returncode == 1
    finally:
        near.put_pod(SENDER)
