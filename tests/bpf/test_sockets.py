"""Sockets of real namespaces, found by their cookie and ended, and no others."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from services.dataplane import sock_diag
from services.dataplane.layouts import pack_address
from services.dataplane.sock_diag import NLMSG_DONE, SOCK_DIAG_BY_FAMILY, TCP, UDP, Peer, SocketDiag, Walk, walk
from tests.bpf.spaces import NAMESPACES, in_namespace, ip, making_namespaces

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

        def and_then_it_ends(cgroup: Path | None) -> Iterator[object]:
            found = list(namespaces(cgroup))
            assert len(found) == 3
            ending.submit(leaving.__exit__, None, None, None).result()
            return iter(found)

        monkeypatch.setattr(sock_diag, "_namespaces", and_then_it_ends)
        done = walked({cookie(held): {end("127.0.0.1", 7)}, 12345: {end("127.0.0.1", 7)}}, cgroup)
    assert done.ended == [(UDP, cookie(held))]
    assert done.is_whole
    assert not done.problems


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
