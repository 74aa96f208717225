"""Sockets of real namespaces, found by their cookie and ended, and no others."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from bus.messages.lb import Backend, Frontend, LoadBalancedService
from bus.service import Service, Settings
from bus.testing import Hub
from services.dataplane.keep.sockets import Sockets
from services.dataplane.kernel import bpf, sock_diag
from services.dataplane.kernel.maps import Maps
from services.dataplane.kernel.pins import open_program
from services.dataplane.kernel.sock_diag import NLMSG_DONE, SOCK_DIAG_BY_FAMILY, TCP, UDP, Peer, SocketDiag, Walk, walk
from services.dataplane.parts.services import Services
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.layouts import pack_address
from services.dataplane.shapes.programs import SOCKET_PROGRAMS
from tests.bpf.spaces import NAMESPACES, in_namespace, ip, making_namespaces
from tests.connections import PORT, Connections, command

SO_COOKIE = 57
UDP4, UDP6 = (socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_INET6, socket.SOCK_DGRAM)
TCP4, TCP6 = (socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET6, socket.SOCK_STREAM)


def made(name: str, kind: tuple[int, int], port: int = 0, peer: tuple[str, int] | None = None) -> socket.socket:
    """A socket of a namespace, made on a thread that stands in it; `peer`: connected to it."""

    async def make() -> socket.socket:
        found = socket.socket(*kind)
        found.settimeout(5)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if port:
            found.bind(("", port))
        if peer:
            found.connect(peer)
        return found

    return in_namespace(name, make)


def cookie(of: socket.socket) -> int:
    return int(struct.unpack("=Q", of.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0])


def end(address: str, port: int) -> Peer:
    return pack_address(address), port.to_bytes(2, "big")


def error(of: socket.socket) -> int:
    return of.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def walked(wanted: Mapping[int, Container[Peer]], cgroup: Path | None, protocols: tuple[int, ...] = (UDP, TCP)) -> Walk:
    with ThreadPoolExecutor(1) as thread:  # one that ends: it is anywhere afterwards
        return thread.submit(walk, wanted, protocols, cgroup, threading.Event()).result()


@pytest.fixture
def spaces() -> Iterator[Callable[[str], str]]:
    with making_namespaces() as make:

        def with_loopback(name: str) -> str:
            full = make(name)
            ip("-n", full, "link", "set", "lo", "up")
            return full

        yield with_loopback


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """One that `resident` puts processes into, in a folder of its own as pods have them."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    root = next(Path(fields[1]) for fields in mounts if fields[2] == "cgroup2")
    found = root / f"plxt-{os.getpid()}"
    (found / "pod").mkdir(parents=True)
    yield found
    (found / "pod").rmdir()
    found.rmdir()


@contextmanager
def resident(namespace: str, cgroup: Path) -> Iterator[None]:
    """A process in a namespace and in the cgroup, as every pod has one."""
    command = ["nsenter", f"--net={NAMESPACES / namespace}", "sleep", "infinity"]
    process = subprocess.Popen(command)
    try:
        (cgroup / "pod/cgroup.procs").write_text(str(process.pid))
        while Path(f"/proc/{process.pid}/ns/net").stat().st_ino != (NAMESPACES / namespace).stat().st_ino:
            assert process.poll() is None
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("kind", "address", "protocol"),
    [
        pytest.param(UDP4, "127.0.0.1", UDP, id="udp4"),
        pytest.param(UDP6, "::1", UDP, id="udp6"),
        pytest.param(UDP6, "::ffff:127.0.0.1", UDP, id="udp6-mapped"),
        pytest.param(TCP4, "127.0.0.1", TCP, id="tcp4"),
        pytest.param(TCP6, "::1", TCP, id="tcp6"),
        pytest.param(TCP6, "::ffff:127.0.0.1", TCP, id="tcp6-mapped"),
    ],
)
def test_a_socket_of_a_pod_is_ended_and_its_neighbours_go_on(
    spaces: Callable[[str], str], cgroup: Path, kind: tuple[int, int], address: str, protocol: int
) -> None:
    """Neighbours: another socket to the same place, one of another namespace, one to another port, one that is not
    connected."""
    pod, other = spaces("pod"), spaces("other")
    listening = {name: [made(name, kind, port) for port in (7, 8)] for name in (pod, other)}
    for each in (*listening[pod], *listening[other]):
        if protocol == TCP:
            each.listen()
    ended = made(pod, kind, peer=(address, 7))
    neighbours = [
        made(pod, kind, peer=(address, 7)),
        made(other, kind, peer=(address, 7)),
        made(pod, kind, peer=(address, 8)),
    ]
    free = made(pod, kind, 9)
    asked = {cookie(each): {end(address, 7)} for each in (ended, neighbours[2], free)}
    with resident(pod, cgroup), resident(other, cgroup):
        done = walked(asked, cgroup)
    assert done.ended == [(protocol, cookie(ended))]
    assert done.unconnected == ({cookie(free)} if protocol == UDP else set())
    assert not done.problems
    with pytest.raises(ConnectionAbortedError):
        ended.recv(1)
    for each in neighbours:
        assert error(each) == 0
        assert each.getpeername()[0] == address
        assert each.send(b"on") == 2


def test_who_waits_on_an_ended_socket_is_woken_and_may_connect_it_again(
    spaces: Callable[[str], str], cgroup: Path
) -> None:
    pod = spaces("pod")
    server = made(pod, UDP4, 7)
    waiting = made(pod, UDP4, peer=("127.0.0.1", 7))
    with ThreadPoolExecutor(1) as thread, resident(pod, cgroup):
        heard = thread.submit(waiting.recv, 1)
        walked({cookie(waiting): {end("127.0.0.1", 7)}}, cgroup)
        assert isinstance(heard.exception(), ConnectionAbortedError)
    waiting.connect(("127.0.0.1", 7))
    waiting.send(b"again")
    assert server.recv(10) == b"again"


def test_of_two_sockets_with_the_same_ends_both_are_ended(spaces: Callable[[str], str], cgroup: Path) -> None:
    """The kernel finds the one of them by both, until it is gone."""
    pod = spaces("pod")
    twins = [made(pod, UDP4, 4000, ("127.0.0.1", 7)) for _ in range(2)]
    with resident(pod, cgroup):
        done = walked({cookie(each): {end("127.0.0.1", 7)} for each in twins}, cgroup)
    assert {number for _, number in done.ended} == set(map(cookie, twins))
    assert [error(each) for each in twins] == [errno.ECONNABORTED] * 2


def test_without_a_cgroup_only_the_own_namespace_is_walked_through(spaces: Callable[[str], str]) -> None:
    pod, own = spaces("pod"), spaces("own")
    there, here = (made(name, UDP4, peer=("127.0.0.1", 7)) for name in (pod, own))

    async def main() -> Walk:
        return walked({cookie(each): {end("127.0.0.1", 7)} for each in (there, here)}, None)

    assert in_namespace(own, main).ended == [(UDP, cookie(here))]
    assert (error(there), error(here)) == (0, errno.ECONNABORTED)


def where_threads_are() -> dict[str, Path]:
    """By thread of this process: its network namespace."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it ended just now
            found[task.name] = (task / "ns/net").readlink()
    return found


def test_a_walk_leaves_every_other_thread_where_it_is(spaces: Callable[[str], str], cgroup: Path) -> None:
    pods = [spaces(f"pod{number}") for number in range(2)]
    held = [made(pod, UDP4, peer=("127.0.0.1", 7)) for pod in pods]
    leave = threading.Event()
    with ThreadPoolExecutor(1) as bystander, resident(pods[0], cgroup), resident(pods[1], cgroup):
        bystander.submit(leave.wait)
        before = where_threads_are()
        done = walked({cookie(each): {end("127.0.0.1", 7)} for each in held}, cgroup)
        after = where_threads_are()
        leave.set()
    assert len(done.ended) == 2
    stayed = before.keys() & after.keys()
    assert len(stayed) >= 2
    assert {each: after[each] for each in stayed} == {each: before[each] for each in stayed}


def test_a_process_that_ends_during_the_walk_is_no_trouble(
    spaces: Callable[[str], str], cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, stays = spaces("gone"), spaces("stays")
    held = made(stays, UDP4, peer=("127.0.0.1", 7))
    with ThreadPoolExecutor(1) as ending, resident(stays, cgroup), suppress(ProcessLookupError):
        leaving = resident(gone, cgroup)
        leaving.__enter__()
        namespaces = sock_diag._namespaces

        def and_then_it_ends(cgroup: Path | None, done: Walk) -> Iterator[object]:
            found = list(namespaces(cgroup, done))
            assert len(found) == 3
            ending.submit(leaving.__exit__, None, None, None).result()
            return iter(found)

        monkeypatch.setattr(sock_diag, "_namespaces", and_then_it_ends)
        done = walked({cookie(held): {end("127.0.0.1", 7)}, 12345: {end("127.0.0.1", 7)}}, cgroup)
    assert done.ended == [(UDP, cookie(held))]
    assert done.is_whole
    assert not done.problems


HIDDEN_WALK = """
import sys, threading
from pathlib import Path
from services.dataplane.kernel.sock_diag import UDP, walk
done = walk({12345: {(bytes(16), bytes(2))}}, [UDP], Path(sys.argv[1]), threading.Event())
print(done.is_whole, *done.problems)
"""


@pytest.mark.parametrize("hidden", [True, False])
def test_a_walk_that_may_not_see_the_processes_is_not_whole_and_says_why(
    spaces: Callable[[str], str], cgroup: Path, hidden: bool
) -> None:
    """Entries of sockets that were not seen stay, for who sees them."""
    pod, enter = spaces("pod"), ["unshare", "--pid", "--fork", "--mount-proc"] if hidden else []
    with resident(pod, cgroup):
        said = subprocess.run(
            [*enter, sys.executable, "-c", HIDDEN_WALK, str(cgroup)], check=True, capture_output=True, text=True
        ).stdout.strip()
    assert said.startswith("False processes in ") and "hostPID" in said if hidden else said == "True"


def test_what_a_pod_says_to_the_netlink_socket_in_its_namespace_is_not_heard(spaces: Callable[[str], str]) -> None:
    pod = spaces("pod")
    held = made(pod, UDP4, peer=("127.0.0.1", 7))

    async def main() -> tuple[int, ...]:
        with (
            SocketDiag() as diag,
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, sock_diag.NETLINK_SOCK_DIAG) as own,
        ):
            own.bind((0, 0))
            to = diag._socket.getsockname()
            for sequence in range(3):
                own.sendto(struct.pack("=IHHIIi", 20, NLMSG_DONE, 0, sequence, 0, 0), to)
                own.sendto(struct.pack("=IHHII", 1 << 20, SOCK_DIAG_BY_FAMILY, 0, sequence, 0), to)
            return tuple(each.cookie for each in diag.sockets(socket.AF_INET, UDP, {cookie(held)}))

    diag_port = in_namespace(pod, main)
    assert diag_port == (cookie(held),)


GONE = "ECONNABORTED"


class Node:
    """The node's socket hooks on a cgroup, its Services, and what ends sockets."""

    def __init__(self, maps: Maps, cgroup: Path, *, ends_tcp: bool = False, ends_pods: bool = True) -> None:
        self.maps, self.tables = maps, Services()
        chosen = NodeSettings(
            node="n", cgroup=cgroup, terminate_all_protocols=ends_tcp, terminate_pod_connections=ends_pods
        )
        self.service = Service("dataplane", Settings(), Hub().bus())
        self.sockets = Sockets(self.service, chosen, self.tables)

    async def serve(self, address: str, *addresses: str) -> None:
        """The Service has these backends, by UDP and TCP."""
        backends = [Backend(address=each, port=PORT) for each in addresses]
        fronts = [
            Frontend(address=address, port=PORT, protocol="TCP", backends=backends),
            Frontend(address=address, port=PORT, protocol="UDP", backends=backends),
        ]
        self.tables.put(LoadBalancedService(namespace="n", name="s", frontends=fronts))
        await self.maps.write(self.tables.tables)
        self.sockets.written()

    def entries(self) -> int:
        return len(self.maps.dump("sock_reverse"))


@contextmanager
def hooks_on(programs: Path, cgroup: Path) -> Iterator[Maps]:
    """Socket programs are attached to the cgroup; the maps that they go by."""
    links = programs / "test-sockets"
    links.mkdir()
    with ExitStack() as stack:
        for name, kind in SOCKET_PROGRAMS.items():
            fd = open_program(programs, name)
            stack.callback(os.close, fd)
            bpf.attach_cgroup(fd, cgroup, kind, links / name)
            stack.callback((links / name).unlink)
        maps = stack.enter_context(closing(Maps(programs)))
        found = maps["sock_reverse"]
        found.remove_many([key for key, _ in found.items()])
        yield maps
    links.rmdir()


@pytest.fixture
def hooked(programs: Path, cgroup: Path) -> Iterator[Maps]:
    with hooks_on(programs, cgroup) as maps:
        yield maps


def caller(namespace: str, cgroup: Path, family: int, kind: str) -> Connections:
    """A program in the cgroup and, if one is named, in a namespace."""
    enter = ["nsenter", f"--net={NAMESPACES / namespace}"] if namespace else []
    whole = ["sh", "-c", f'echo $$ > {cgroup}/pod/cgroup.procs; exec "$@"', "sh", *enter, *command(family, kind)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return Connections(subprocess.Popen(whole, **pipes))  # type: ignore[call-overload]  # as the dictionary has them


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("ends_tcp", [False, True])
@pytest.mark.parametrize("ends_pods", [False, True])
def test_what_is_ended_is_what_the_settings_say_and_came_by_the_service(
    spaces: Callable[[str], str], cgroup: Path, hooked: Maps, family: int, ends_tcp: bool, ends_pods: bool
) -> None:
    own, pod = spaces("own"), spaces("pod")
    address, backend = ("10.96.7.7", "127.0.0.1") if family == 4 else ("fd00:96::77", "::1")
    kinds = {"SOCK_DGRAM": UDP4 if family == 4 else UDP6, "SOCK_STREAM": TCP4 if family == 4 else TCP6}
    node = Node(hooked, cgroup, ends_tcp=ends_tcp, ends_pods=ends_pods)

    async def main() -> None:
        with ExitStack() as stack:
            for space in (own, pod):
                for kind in kinds.values():
                    server = stack.enter_context(made(space, kind, PORT))
                    if kind[1] == socket.SOCK_STREAM:
                        server.listen()
            await node.serve(address, backend)
            task = asyncio.create_task(node.sockets.run(hooked["sock_reverse"]))
            callers = {
                (space, kind): stack.enter_context(closing(caller(space, cgroup, family, kind)))
                for space in (own, pod)
                for kind in kinds
            }
            for held in callers.values():
                assert held.connect("one", address) == "connected"
                assert held.connect("direct", backend) == "connected"
            for space in (own, pod):
                udp = callers[space, "SOCK_DGRAM"]
                assert udp.connect("turned", address) == "connected"
                assert udp.connect_again("turned", backend) == "connected"
            assert node.entries() == 4
            met = {
                (space, kind)
                for space, kind in callers
                if (space == own or ends_pods) and (kind == "SOCK_DGRAM" or ends_tcp)
            }
            for each in met:
                callers[each].begin_to_wait("one")
            await node.serve(address)
            for each in met:
                assert await asyncio.to_thread(callers[each].waited) == GONE
            for each, held in callers.items():
                assert held.state("direct") == [backend, 0]
                if each not in met:
                    assert held.state("one") == [address, 0]
                if each[1] == "SOCK_DGRAM":
                    assert held.state("turned") == [backend, 0]
            task.cancel()
            await asyncio.wait([task])
            assert node.entries() == 4 - len(met)

    in_namespace(own, main)


def test_entries_of_sockets_that_are_closed_go_when_it_is_certain_that_they_are(
    spaces: Callable[[str], str], cgroup: Path, hooked: Maps
) -> None:
    pod = spaces("pod")
    node = Node(hooked, cgroup)
    reverse, stop = hooked["sock_reverse"], threading.Event()
    asyncio.run(node.serve("10.96.7.7", "127.0.0.1"))
    with closing(caller(pod, cgroup, 4, "SOCK_DGRAM")) as closed:
        assert closed.connect("one", "10.96.7.7") == "connected"
    with closing(caller(pod, cgroup, 4, "SOCK_DGRAM")) as lives:
        asyncio.run(node.serve("10.96.7.7", "127.0.0.2"))
        assert lives.connect("one", "10.96.7.7") == "connected"
        for is_news, left in ((True, 2), (False, 1), (False, 1)):
            with ThreadPoolExecutor(1) as thread:
                done = thread.submit(node.sockets.turn, reverse, is_news, stop).result()
            assert not done.ended
            assert not done.problems
            assert node.entries() == left
        assert lives.state("one") == ["10.96.7.7", 0]


def test_a_backend_that_is_there_again_while_its_sockets_are_looked_for_keeps_them(
    spaces: Callable[[str], str], cgroup: Path, hooked: Maps, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, node = spaces("pod"), Node(hooked, cgroup)
    asyncio.run(node.serve("10.96.7.7", "127.0.0.1"))
    with closing(caller(pod, cgroup, 4, "SOCK_DGRAM")) as lives:
        assert lives.connect("one", "10.96.7.7") == "connected"
        asyncio.run(node.serve("10.96.7.7"))
        namespaces = sock_diag._namespaces

        def and_it_comes_back(cgroup: Path | None, done: Walk) -> Iterator[object]:
            asyncio.run(node.serve("10.96.7.7", "127.0.0.1"))
            return namespaces(cgroup, done)

        with monkeypatch.context() as patched, ThreadPoolExecutor(1) as thread:
            patched.setattr(sock_diag, "_namespaces", and_it_comes_back)
            done = thread.submit(node.sockets.turn, hooked["sock_reverse"], False, threading.Event()).result()
        assert not done.ended
        assert not done.problems
        assert node.entries() == 1
        assert lives.state("one") == ["10.96.7.7", 0]
        asyncio.run(node.serve("10.96.7.7"))
        with ThreadPoolExecutor(1) as thread:
            done = thread.submit(node.sockets.turn, hooked["sock_reverse"], False, threading.Event()).result()
        assert [protocol for protocol, _ in done.ended] == [UDP]
