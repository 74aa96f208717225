"""Who reaches whom without any policy, in every mode and family."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from functools import partial

import pytest

from lab import execute, namespaces
from tests.lab.space import Space, curl, host
from tests.labs import Done, eventually

EACH_FAMILY = True

UDP_ECHO = """
import socket, sys
server = socket.socket(socket.AF_INET6 if sys.argv[1] == "6" else socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 7))
print("listening", flush=True)
while True:
    data, peer = server.recvfrom(65536)
    server.sendto(data + b" from " + peer[0].encode(), peer)
"""
UDP_ASK = """
import socket, sys
client = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(2)
client.sendto(b"h" * int(sys.argv[2]), (sys.argv[1], 7))
data, peer = client.recvfrom(65536)
print(data.decode(), "by", peer[0])
"""
SPOOF = """
import socket, struct, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
source, destination = (socket.inet_pton(family, each) for each in sys.argv[1:3])
raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, source, destination)
if family == socket.AF_INET6:
    header = struct.pack("!IHBB16s16s", 6 << 28, 8, 17, 64, source, destination)
for _ in range(5):
    raw.sendto(header + struct.pack("!HHHH", 1000, 9, 8, 0), (sys.argv[2], 0))
"""


def test_pods_reach_each_other_by_address_on_one_node_and_across(space: Space) -> None:
    space.apply(space.pod("a"), space.pod("same"), space.pod("other", "node2"))
    for target in ("same", "other"):
        answer = space.get("a", space.address(target))
        assert f"Hostname: {target}" in answer
        assert f"RemoteAddr: {host(space.address('a'))}:" in answer


def test_reference_scenario_one(space: Space) -> None:
    """Pod to pod by address; a ClusterIP answers from both backends; on the wire it is never seen."""
    web = [space.pod(f"webpod{number}", f"node{number + 1}", label="webpod") for number in (1, 2)]
    space.apply(space.pod("netpod"), *web, space.service("svc", "webpod"))
    service = space.cluster_address("svc")
    with space.lab.capture("node1", "tcp or udp port 8472") as wire:
        for number in (1, 2):
            assert f"Hostname: webpod{number}" in space.get("netpod", space.address(f"webpod{number}"))
        answers = [space.get("netpod", service) for _ in range(16)]
    assert {re.findall(r"Hostname: (\S+)", answer)[0] for answer in answers} == {"webpod1", "webpod2"}
    assert all(f"RemoteAddr: {host(space.address('netpod'))}:" in answer for answer in answers)
    packets = wire.lines()
    assert packets
    assert not [line for line in packets if service in line]
    if space.lab.record.settings.get("routingMode") == "native":
        assert [line for line in packets if space.address("webpod1") in line]


def test_a_connection_that_the_socket_hooks_did_not_see_reaches_the_service_too(space: Space) -> None:
    """The LAN's host is in no node's cgroup; from a pod's namespace entered without its cgroup nothing is translated
    at connect, so the packets themselves carry the ClusterIP to the pod's device."""
    space.apply(space.pod("client"), space.pod("web", "node2"), space.service("svc", "web"))
    place = execute.pod(space.lab.record, f"{space.name}/client")
    command = namespaces.command(place.netns, None, curl(space.cluster_address("svc")))
    answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    assert "Hostname: web" in answer.stdout


def test_a_pod_reaches_itself_through_its_service(space: Space) -> None:
    space.apply(space.pod("web"), space.service("svc", "web"))
    assert "Hostname: web" in space.get("web", space.cluster_address("svc"))


def test_a_service_without_backends_answers_nobody(space: Space) -> None:
    space.apply(space.pod("client"), space.service("svc", "nobody"))
    assert space.exec("client", *curl(space.cluster_address("svc"), seconds=1)).returncode != 0


def test_a_node_reaches_pods_and_services(space: Space) -> None:
    space.apply(space.pod("here"), space.pod("there", "node2"), space.service("svc", "there"))
    for target, name in (
        (space.address("here"), "here"),
        (space.address("there"), "there"),
        (space.cluster_address("svc"), "there"),
    ):
        answer = space.lab.exec_node("node1", *curl(target)).stdout
        assert f"Hostname: {name}" in answer


def test_a_pod_reaches_nodes(space: Space) -> None:
    space.apply(space.pod("a"))
    for node in ("node1", "node2"):
        done = space.exec("a", "ping", "-c", "1", "-W", "2", space.node_address(node))
        assert done.returncode == 0, done.stdout


def test_the_outside_sees_the_nodes_address(space: Space) -> None:
    space.apply(space.pod("a", "node2"))
    outside = space.outside
    with space.lab.capture("outside", "icmp or icmp6 or tcp port 81") as wire:
        assert space.exec("a", "ping", "-c", "1", "-W", "2", outside).returncode == 0
        space.exec("a", *curl(outside, port=81))
    seen = wire.lines()
    request = "ICMP echo request" if space.family == 4 else "ICMP6, echo request"
    assert [line for line in seen if f"{space.node_address('node2')} > {outside}: {request}" in line]
    assert [line for line in seen if f"{outside}.81:" in line]
    assert not [line for line in seen if space.address("a") in line]


@pytest.mark.parametrize("size", [5, 4000], ids=["small", "in-fragments"])
def test_udp_is_answered_by_address_and_through_a_service(space: Space, size: int) -> None:
    space.apply(space.pod("client"), space.pod("echo", "node2"), space.service("svc", "echo", 7, "UDP"))
    server = space.lab.start_in(f"{space.name}/echo", "/usr/bin/python3", "-c", UDP_ECHO, str(space.family))
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        for target in (space.address("echo"), space.cluster_address("svc")):
            said = space.exec("client", "/usr/bin/python3", "-c", UDP_ASK, target, str(size)).stdout
            assert said == f"{'h' * size} from {space.address('client')} by {target}\n"
    finally:
        server.kill()
        server.communicate()


def test_a_server_of_the_node_that_listens_at_any_address_answers_from_the_one_that_was_called(space: Space) -> None:
    """UDP has no connection that would remember it: the node's route to the pod says who speaks."""
    space.apply(space.pod("same"), space.pod("other", "node2"))
    server = space.lab.start(
        execute.node(space.lab.record, "node1"), "/usr/bin/python3", "-c", UDP_ECHO, str(space.family)
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        target = space.node_address("node1")
        for pod in ("same", "other"):
            said = space.exec(pod, "/usr/bin/python3", "-c", UDP_ASK, target, "5").stdout
            assert said.endswith(f" by {target}\n"), said
    finally:
        server.kill()
        server.communicate()


def test_a_large_ping_is_answered(space: Space) -> None:
    """An echo that is cut into fragments, by a pod of another node and by the host outside."""
    space.apply(space.pod("a"), space.pod("b", "node2"))
    for target in (space.address("b"), space.outside):
        done = space.exec("a", "ping", "-c", "1", "-W", "2", "-s", "4000", target)
        assert done.returncode == 0, done.stdout


def test_what_is_cut_into_fragments_reaches_a_nodes_own_addresses_too(space: Space) -> None:
    """Answers of another node's pod to the node, whichever of its addresses it called from; and of a node to a pod."""
    space.apply(space.pod("here"), space.pod("there", "node2"))
    large = ("ping", "-c", "2", "-i", "0.2", "-W", "2", "-s", "3000")
    for target in (space.address("here"), space.address("there")):
        done = space.lab.exec_node("node1", *large, target)
        assert done.returncode == 0 and " 0% packet loss" in done.stdout, done.stdout
    for target in (space.node_address("node1"), space.node_address("node2"), router(space, "node2")):
        done = space.exec("here", *large, target)
        assert done.returncode == 0 and " 0% packet loss" in done.stdout, done.stdout


def router(space: Space, node: str) -> str:
    """The address of the node among its pods': what it sends to pods from."""
    said = space.lab.exec_node(node, "ip", "-o", "address", "show", "dev", "lo", "scope", "global").stdout
    [address] = re.findall(r"inet (\S+)/" if space.family == 4 else r"inet6 (\S+)/", said)
    return str(address)


def test_a_full_segment_passes_across_nodes(space: Space) -> None:
    """The pods' MTU leaves room for the tunnel: 200 kB arrive, and no packet was too long."""
    space.apply(space.pod("a"), space.pod("b", "node2"))
    space.exec("a", "/bin/sh", "-c", "head -c 200000 /dev/zero > /tmp/plexus-test-body")
    body = space.get("a", space.address("b"), "--data-binary", "@/tmp/plexus-test-body", seconds=5)
    assert "Content-Length: 200000" in body


def test_a_packet_with_anothers_source_address_is_dropped_and_counted(space: Space) -> None:
    space.apply(space.pod("liar"), space.pod("victim"), space.pod("target"))
    before = space.lab.drops()["Invalid source ip"]
    with space.lab.capture("node1", f"dst host {space.address('target')}", device="any") as wire:
        space.exec("liar", "/usr/bin/python3", "-c", SPOOF, space.address("victim"), space.address("target"))
    assert space.lab.drops()["Invalid source ip"] >= before + 5
    assert all(" In " in line for line in wire.lines())  # seen as it left the pod, and nowhere else


def test_a_pod_reaches_its_node_by_any_address_that_the_node_has(space: Space) -> None:
    """As a resolver does that listens on every node, on an address of its own."""
    address, bits = {4: ("169.254.20.10", 32), 6: ("fd00:53::a", 128)}[space.family]
    node = execute.node(space.lab.record, "node1")
    space.apply(space.pod("client"))

    def is_known() -> bool:
        return any(row["prefix"] == f"{address}/{bits}" for row in space.lab.dump("node1", "ipcache"))

    def answers(from_where: Callable[..., Done]) -> bool:
        return "Directory listing" in from_where(*curl(address, port=8053, seconds=1)).stdout

    assert not is_known()
    space.lab.exec_node("node1", "ip", "address", "add", f"{address}/{bits}", "dev", "lo")
    server = space.lab.start(node, "/usr/bin/python3", "-m", "http.server", "8053", "--bind", address)
    try:
        assert eventually(is_known)
        assert eventually(lambda: answers(partial(space.lab.exec_node, "node1")))
        assert answers(partial(space.exec, "client"))
    finally:
        server.kill()
        server.communicate()
        space.lab.exec_node("node1", "ip", "address", "delete", f"{address}/{bits}", "dev", "lo")
    assert eventually(lambda: not is_known())
