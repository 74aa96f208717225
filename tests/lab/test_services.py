"""Services on real sockets: what a client's datagrams reach, and whose answers they get."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from subprocess import Popen
from typing import Any

import pytest

from lab import execute, namespaces
from services.dataplane.kernel import bpf
from tests.lab.conftest import EXPECTED_DROPS, fresh_space
from tests.lab.space import Space, curl, host
from tests.lab.test_policy import DENY
from tests.labs import Lab, eventually

PORT = 7
NAMED_ECHO = """
import socket, sys
listener = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
listener.bind(("::", 7))
print("listening", flush=True)
while True:
    _, peer = listener.recvfrom(2048)
    listener.sendto(sys.argv[1].encode(), peer)
"""
ONE_SOCKET = """
import json, socket, sys
asking = socket.socket({4: socket.AF_INET, 6: socket.AF_INET6}[int(sys.argv[1])], socket.SOCK_DGRAM)
asking.settimeout(2)
for line in sys.stdin:
    address, times = json.loads(line)
    found = []
    for _ in range(times):
        asking.sendto(b"who", (address, 7))
        try:
            answer, peer = asking.recvfrom(2048)
            found.append([answer.decode(), peer[0]])
        except (OSError, TimeoutError) as problem:
            found.append([repr(problem), ""])
    print(json.dumps(found), flush=True)
"""


@contextmanager
def echoes(space: Space, *pods: str) -> Iterator[None]:
    """Each answers datagrams with its name."""
    started = []
    try:
        for pod in pods:
            started.append(space.lab.start_in(f"{space.name}/{pod}", "/usr/bin/python3", "-c", NAMED_ECHO, pod))
            assert read(started[-1]) == "listening\n"
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def read(process: Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


class Socket:
    """One unconnected UDP socket of a pod."""

    def __init__(self, space: Space, pod: str) -> None:
        command = ("/usr/bin/python3", "-c", ONE_SOCKET, str(space.family))
        self.process = space.lab.start_in(f"{space.name}/{pod}", *command)

    def ask(self, address: str, times: int = 1) -> set[tuple[str, str]]:
        """Who answers, and by what address."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([address, times]) + "\n")
        self.process.stdin.flush()
        answers: list[list[Any]] = json.loads(read(self.process))
        return {(name, peer) for name, peer in answers}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def web(space: Space, name: str, node: str) -> str:
    return space.pod(name, node, label="web", image="sleeper")


def test_datagrams_of_one_socket_stay_with_one_backend_and_answers_bear_what_was_called(space: Space) -> None:
    names = ("b1", "b2", "b3", "b4")
    pods = [web(space, name, node) for name, node in zip(names, ("node2", "node1", "node3", "node2"), strict=True)]
    services = [space.service(name, "web", PORT, "UDP") for name in ("one", "two")]
    space.apply(space.pod("client"), *pods[:3], *services)
    one, two = (space.cluster_address(name) for name in ("one", "two"))
    with echoes(space, *names[:3]):
        asking = Socket(space, "client")
        try:
            ((first, peer),) = asking.ask(one, 60)
            assert first in names and peer == one
            ((second, peer),) = asking.ask(two, 20)
            assert second != first and peer == two, "one socket asks two services at two backends, if there are two"
            for _ in range(5):
                assert asking.ask(one) == {(first, one)}
                assert asking.ask(two) == {(second, two)}
            direct = space.address(first)
            assert asking.ask(direct, 3) == {(first, direct)}
            assert asking.ask(one, 3) == {(first, one)}
            space.apply(pods[3])
            with echoes(space, "b4"):
                assert asking.ask(one, 20) == {(first, one)}
                space.delete(pods[names.index(first)])
                ((third, peer),) = asking.ask(one, 20)
                assert third not in ("", first) and peer == one
        finally:
            asking.close()


def test_sockets_of_one_pod_are_spread_over_backends(space: Space) -> None:
    names = ("b1", "b2")
    pods = [web(space, name, node) for name, node in zip(names, ("node1", "node2"), strict=True)]
    space.apply(space.pod("client"), *pods, space.service("one", "web", PORT, "UDP"))
    one = space.cluster_address("one")
    with echoes(space, *names):
        sockets = [Socket(space, "client") for _ in range(16)]
        try:
            assert {answer for each in sockets for answer in each.ask(one, 3)} == {(name, one) for name in names}
        finally:
            for each in sockets:
                each.close()


REFUSED = """
import errno, socket, sys
way, address, port, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, socket.SOCK_STREAM if way == "tcp" else socket.SOCK_DGRAM) as one:
    one.settimeout(seconds)
    try:
        if way == "sendto":
            one.sendto(b"hello", (address, port))
        else:
            one.connect((address, port))
        if way != "tcp":
            one.send(b"hello") if way == "udp" else None
            one.recv(9)
        print("answered")
    except TimeoutError:
        print("timed out")
    except OSError as problem:
        print(errno.errorcode[problem.errno])
"""
LONG = 60.0  # seconds: nothing waits for them unless an answer is lost


def past_hooks(place: execute.Place, *command: str) -> str:
    """What a program of a namespace says whose sockets no hook sees: its packets bear the Service's address."""
    entered = namespaces.command(place.netns, None, list(command))
    return subprocess.run(entered, capture_output=True, text=True, timeout=2 * LONG, check=False).stdout.strip()


def callers(space: Space) -> dict[str, Callable[..., str]]:
    """Programs of a pod and of the node, those whose sockets hooks see and those whose they do not."""
    lab = space.lab
    pod = execute.pod(lab.record, f"{space.name}/client")
    node = execute.node(lab.record, "node1")
    return {
        "a pod": lambda *command: space.exec("client", *command).stdout.strip(),
        "a pod past the hooks": lambda *command: past_hooks(pod, *command),
        "the node": lambda *command: lab.exec_node("node1", *command).stdout.strip(),
        "the node past the hooks": lambda *command: past_hooks(node, *command),
    }


def ends(space: Space, ask: Callable[..., str], way: str, address: str, port: int, seconds: float = LONG) -> str:
    """How a call ends: with the name of an error, "timed out" or "answered"."""
    return ask("/usr/bin/python3", "-c", REFUSED, way, address, str(port), str(seconds))


def nobodys(space: Space) -> list[tuple[str, int]]:
    """A Service without backends, an unused port of a Service, and an address that no Service has."""
    space.apply(
        space.pod("client"),
        space.pod("web", "node2"),
        space.service("svc", "web"),
        space.service("empty", "nobody"),
        space.service("silent", "nobody", protocol="UDP"),
    )
    known = space.cluster_address("svc")
    unused = known.rpartition(":")[0] + ":fff7" if space.family == 6 else known.rpartition(".")[0] + ".253"
    return [(known, 81), (unused, 80), *((space.cluster_address(name), 80) for name in ("empty", "silent"))]


def test_who_calls_what_no_service_takes_is_refused_at_once_and_nothing_leaves_the_node(space: Space) -> None:
    """By a socket the call fails; per packet the answer comes from the pod's link, or in by the node's device."""
    targets = nobodys(space)
    before = space.lab.drops()["Service backend not found"]
    with space.lab.capture("node1") as wire:
        for who, ask in callers(space).items():
            for address, port in targets:
                assert ends(space, ask, "tcp", address, port) == "ECONNREFUSED", (who, address, port)
                assert ends(space, ask, "udp", address, port) == "ECONNREFUSED", (who, address, port)
        for who, ask in list(callers(space).items())[::2]:  # who is seen by hooks hears it of a single datagram
            assert ends(space, ask, "sendto", space.cluster_address("silent"), 80) == "ECONNREFUSED", who
        assert space.exec("client", "ping", "-c1", "-W1", targets[0][0]).returncode
        assert space.lab.exec_node("node1", "ping", "-c1", "-W1", targets[0][0]).returncode
    assert not [line for line in wire.lines() if any(f"> {address}" in line for address, _ in targets)]
    assert space.lab.drops()["Service backend not found"] >= before + 2 * 4 * len(targets)
    assert "Hostname: web" in space.get("client", targets[0][0])


def test_a_step_that_somebody_has_taken_out_is_put_back(space: Space) -> None:
    targets = nobodys(space)
    pins = space.lab.record.pins("node1")
    [array] = (pins / "maps").glob("steps_*")
    with closing(bpf.Map.open(array)) as steps:
        assert steps.remove(bytes(4))
        assert eventually(lambda: steps.get(bytes(4)) is not None, 10)
    assert ends(space, callers(space)["a pod past the hooks"], "tcp", *targets[0]) == "ECONNREFUSED"


@pytest.mark.timeout(120)
def test_told_to_drop_it_says_nothing_and_counts() -> None:
    values = {"serviceNoBackendResponse": "drop", "routingMode": "native"}
    with (
        Lab("test-drop", nodes=2, values=values, expected_drops=EXPECTED_DROPS) as lab,
        fresh_space(lab, 4, "drop") as space,
    ):
        targets = nobodys(space)
        with lab.capture("node1") as wire:
            for who, ask in callers(space).items():
                for address, port in targets:
                    for way in ("tcp", "udp"):
                        before = lab.drops()["Service backend not found"]
                        assert ends(space, ask, way, address, port, 0.2) == "timed out", (who, way, address, port)
                        assert lab.drops()["Service backend not found"] > before, (who, way, address, port)
        assert not [line for line in wire.lines() if any(f"> {address}" in line for address, _ in targets)]


ASK_ONCE = """
import socket, sys
asking = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(2)
asking.sendto(b"who", (sys.argv[1], 7))
answer, peer = asking.recvfrom(2048)
print(answer.decode(), peer[0])
"""


def test_per_packet_too_a_pod_reaches_itself_by_its_service(space: Space) -> None:
    """Though its policy lets nobody in or out: nobody is kept from himself."""
    space.apply(
        space.pod("client"),
        space.service("self", "client"),
        space.service("again", "client", PORT, "UDP"),
        DENY.format(namespace=space.name, app="client", direction="Ingress, Egress"),
    )
    client = execute.pod(space.lab.record, f"{space.name}/client")
    answer = past_hooks(client, *curl(space.cluster_address("self")))
    assert "Hostname: client" in answer
    address = space.cluster_address("again")
    assert f"RemoteAddr: {host(space.cluster_address('self'))}:" in answer
    with echoes(space, "client"):
        assert past_hooks(client, "/usr/bin/python3", "-c", ASK_ONCE, address) == f"client {address}"


ANSWER_STREAMS = """
import socketserver
class Answer(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b"heard " + line)
class Server(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address, daemon_threads = 10, True, True
with Server(("::", 7), Answer) as server:
    print("listening", flush=True)
    server.serve_forever()
"""
ONE_PORT = """
import json, socket, sys
port, streams, datagrams = json.loads(sys.argv[1])
family = socket.AF_INET6 if ":" in streams[0] else socket.AF_INET
def bound(kind):
    made = socket.socket(family, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(5)
    made.bind(("", port))
    return made
opened = {}
for address in streams:
    opened[address] = bound(socket.SOCK_STREAM)
    opened[address].connect((address, 7))
heard, peers = set(), set()
for turn in range(20):
    for address, stream in opened.items():
        stream.sendall(f"{address} {turn}\\n".encode())
    for address, stream in opened.items():
        heard.add((address, stream.recv(2048) == f"heard {address} {turn}\\n".encode()))
asking = bound(socket.SOCK_DGRAM)
for turn in range(20):
    for address in datagrams:
        asking.sendto(b"who", (address, 7))
        peers.add((address, asking.recvfrom(2048)[1][0]))
print(json.dumps([sorted(heard), sorted(peers)]))
"""


def test_per_packet_one_source_port_speaks_to_two_services_and_their_backend_at_once(space: Space) -> None:
    """Streams and datagrams, whichever comes first, with a backend on the same node and on another."""
    names = {
        (backend, protocol): [f"{backend}-{protocol.lower()}-{number}" for number in (1, 2)]
        for backend in ("near", "far")
        for protocol in ("TCP", "UDP")
    }
    services = [
        space.service(name, backend, PORT, protocol)
        for (backend, protocol), services in names.items()
        for name in services
    ]
    pods = [space.pod("near", "node1", image="sleeper"), space.pod("far", "node2", image="sleeper")]
    space.apply(space.pod("client"), *pods, *services)
    client = execute.pod(space.lab.record, f"{space.name}/client")
    port = 40000
    for backend in ("near", "far"):
        streams, datagrams = (
            [space.cluster_address(name) for name in names[backend, protocol]] + [space.address(backend)]
            for protocol in ("TCP", "UDP")
        )
        answering = space.lab.start_in(f"{space.name}/{backend}", "/usr/bin/python3", "-c", ANSWER_STREAMS)
        try:
            assert read(answering) == "listening\n"
            with echoes(space, backend):
                for turn in (1, -1):
                    port += 1
                    asked = json.dumps([port, streams[::turn], datagrams[::turn]])
                    said = past_hooks(client, "/usr/bin/python3", "-c", ONE_PORT, asked)
                    heard, peers = json.loads(said)
                    assert heard == [[address, True] for address in sorted(streams)]
                    assert peers == [[address, address] for address in sorted(datagrams)]
        finally:
            answering.kill()
            answering.wait()


def test_a_client_comes_back_to_its_backend_by_socket_and_per_packet_and_over_a_restart(space: Space) -> None:
    names = ("b1", "b2", "b3")
    pods = [space.pod(name, node, label="web") for name, node in zip(names, ("node1", "node2", "node3"), strict=True)]
    lasting = space.service("lasting", "web").replace("spec:", "spec:\n  sessionAffinity: ClientIP")
    space.apply(space.pod("client"), *pods, lasting)
    address, past = space.cluster_address("lasting"), execute.pod(space.lab.record, f"{space.name}/client")
    ways: dict[str, Callable[[str], str]] = {
        "by socket": lambda address: space.get("client", address),
        "per packet": lambda address: past_hooks(past, *curl(address)),
    }

    def answers(way: str) -> set[str]:
        return {ways[way](address).partition("\n")[0].removeprefix("Hostname: ") for _ in range(12)}

    chosen = {way: answers(way) for way in ways}
    for way, found in chosen.items():
        assert len(found) == 1 and found <= set(names), way
    rows = json.loads(space.lab.plexus("bpf", "lb", "list", "--affinity", "--node", "node1", "-o", "json").stdout)
    known = {each["client"] for each in rows if each["service"] == f"{space.name}/lasting"}
    assert {space.address("client")} < known, "and the cookie of its namespace"
    space.lab.kill(node="node1")
    space.lab.revive(node="node1")
    space.lab.wait()
    assert {way: answers(way) for way in ways} == chosen
    (gone,) = chosen["by socket"]
    space.delete(pods[names.index(gone)])
    for way in ways:
        found = answers(way)
        assert len(found) == 1 and found <= set(names) - {gone}, way


def test_a_host_port_leads_to_its_pod_at_its_nodes_address_for_pods_and_nodes_and_past_the_hooks(space: Space) -> None:
    """And to nobody when the pod is gone; an address that is not its node's a pod does not get."""
    wanted = "- containerPort: 80\n      hostPort: 8088"
    web = space.pod("web", "node2").replace("- containerPort: 80", wanted)
    strangers = space.outside
    thief = space.pod("thief", "node2").replace("- containerPort: 80", f'{wanted}\n      hostIP: "{strangers}"')
    space.apply(space.pod("client"), space.pod("near", "node2"), web, thief)
    at = space.node_address("node2")
    client = execute.pod(space.lab.record, f"{space.name}/client")
    asked = curl(at, port=8088)
    callers: dict[str, Callable[[], str]] = {
        "a pod of another node": lambda: space.get("client", at, port=8088),
        "a pod of this node": lambda: space.get("near", at, port=8088),
        "the pod itself": lambda: space.get("web", at, port=8088),
        "past the hooks": lambda: past_hooks(client, *asked),
        "another node": lambda: space.lab.exec_node("node1", *asked).stdout,
        "its node": lambda: space.lab.exec_node("node2", *asked).stdout,
        "a host outside": lambda: space.lab.exec_outside(*asked).stdout,
    }
    for who, ask in callers.items():
        assert "Hostname: web" in ask(), who
    assert "Hostname" not in space.get("client", strangers, port=8088)
    space.delete(web)
    for who in ("a pod of another node", "another node", "its node", "a host outside"):
        assert "Hostname" not in callers[who](), who
