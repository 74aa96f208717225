"""What traffic does while parts of the product are dead, in every mode and family."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lab import processes, state, supervisor
from lab.up import up
from tests.lab.space import Space
from tests.lab.test_policy import DENY, STREAM_SERVER
from tests.labs import eventually

COUNTING_CLIENT = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 9000), 5)
connection.settimeout(5)
count = 0
while True:
    connection.sendall(b"%08d" % count)
    answer = b""
    while len(answer) < 8:
        answer += connection.recv(8 - len(answer))
    assert int(answer) == count
    count += 1
    print(count, flush=True)
    time.sleep(0.01)
"""


class Stream:
    """A TCP stream between two pods that counts up."""

    def __init__(self, process: object, read: Iterator[str]) -> None:
        self._read = read

    def progress(self, steps: int = 20) -> bool:
        """It counts on: `steps` more answers arrive."""
        try:
            for _ in range(steps):
                int(next(self._read))
        except (StopIteration, ValueError):
            return False
        return True


@contextmanager
def stream(space: Space) -> Iterator[Stream]:
    server = space.lab.start_in(f"{space.name}/server", "/usr/bin/python3", "-c", STREAM_SERVER)
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    address = space.address("server")
    client = space.lab.start_in(f"{space.name}/client", "/usr/bin/python3", "-c", COUNTING_CLIENT, address)
    assert client.stdout is not None
    try:
        yield Stream(client, iter(client.stdout.readline, ""))
    finally:
        for process in (client, server):
            process.kill()
            process.communicate()


def test_a_stream_does_not_notice_that_both_dataplanes_die_and_return(space: Space) -> None:
    space.apply(space.pod("client"), space.pod("server", "node2"))
    with stream(space) as counting:
        assert counting.progress()
        for node in ("node1", "node2"):
            space.lab.kill(node=node)
        assert counting.progress(100)
        for node in ("node1", "node2"):
            space.lab.revive(node=node)
        assert counting.progress(100)
    space.apply(space.pod("late"))
    assert "Hostname: server" in space.get("late", space.address("server"))


def test_new_connections_are_made_and_denied_while_dataplanes_are_dead(space: Space) -> None:
    space.apply(
        space.pod("client"),
        space.pod("server", "node2"),
        space.pod("closed", "node2"),
        DENY.format(namespace=space.name, app="closed", direction="Ingress"),
    )
    try:
        for node in ("node1", "node2"):
            space.lab.kill(node=node)
        assert space.get("client", space.address("server"))
        assert not space.get("client", space.address("closed"), seconds=1)
    finally:
        for node in ("node1", "node2"):
            space.lab.revive(node=node)


def test_without_a_bus_traffic_goes_on_and_with_it_new_policy_is_applied(space: Space) -> None:
    space.apply(space.pod("client"), space.pod("server", "node2"))
    with stream(space) as counting:
        try:
            space.lab.kill(bus=True)
            assert counting.progress(100)
            assert space.get("client", space.address("server"))
        finally:
            space.lab.revive(bus=True)
        assert eventually(lambda: space.lab.plexus("wait", "--timeout", "5s", check=False).returncode == 0, 20)
        assert counting.progress()
    space.apply(DENY.format(namespace=space.name, app="server", direction="Ingress"))
    assert not space.get("client", space.address("server"), seconds=1)


def test_a_control_service_that_was_killed_catches_up(space: Space) -> None:
    space.apply(space.pod("client"), space.pod("server", "node2"))
    try:
        space.lab.kill(control="policy")
        space.lab.apply(DENY.format(namespace=space.name, app="server", direction="Ingress"))
        time.sleep(0.3)
        assert space.get("client", space.address("server"))  # the last rules stay
    finally:
        space.lab.revive(control="policy")
    space.lab.wait()
    assert not space.get("client", space.address("server"), seconds=1)


def test_a_service_that_dies_by_itself_is_started_again(space: Space) -> None:
    identity = space.lab.record.directory.process("lb")
    first = state.read(identity, state.ProcessId)
    assert first is not None
    processes.kill(first, signal.SIGKILL)
    assert eventually(lambda: state.read(identity, state.ProcessId) != first, 10)
    assert eventually(lambda: space.lab.plexus("lab", "status", check=False).returncode == 0, 20)


def test_pods_outlive_the_supervisor_and_the_next_one_takes_them_over(space: Space) -> None:
    space.apply(space.pod("client"), space.pod("server", "node2"))
    directory = space.lab.record.directory
    sandboxes = {box.name: box for box in directory.sandboxes()}
    with stream(space) as counting:
        dead = state.read(directory.process("supervisor"), state.ProcessId)
        assert dead is not None
        assert processes.kill_and_wait([dead]) == []
        assert counting.progress()
        assert not supervisor.is_alive(space.lab.record)
        _, made = up(space.lab.name, len(space.lab.nodes), dict(space.lab.record.values))
        assert not made
        assert counting.progress()
    assert {box.name: box for box in directory.sandboxes()} == sandboxes
    space.delete(space.pod("server", "node2"))
    assert eventually(lambda: all(box.name != "server" for box in directory.sandboxes()))


def test_programs_and_routes_that_were_removed_by_hand_are_back_within_five_seconds(space: Space) -> None:
    space.apply(space.pod("client"), space.pod("server"))
    links = space.lab.record.pins("node1") / "links"
    address = space.address("server")
    way = space.lab.exec_node("node1", "ip", "route", "get", address).stdout.split()
    interface = way[way.index("dev") + 1]
    mine = [links / f"{interface}-{direction}" for direction in ("ingress", "egress")]
    assert eventually(lambda: all(each.exists() for each in mine), 30), "the pod's programs have not moved to tcx"
    removed = [*mine, links / "eth0-ingress", links / "connect4"]
    for each in removed:
        each.unlink()
    assert space.lab.exec_node("node1", "ip", "route", "delete", address).returncode == 0
    assert eventually(lambda: all(each.exists() for each in removed), 5)
    assert eventually(lambda: interface in space.lab.exec_node("node1", "ip", "route", "get", address).stdout, 5)
    assert "Hostname: server" in space.get("client", address)
    assert eventually(lambda: space.lab.plexus("lab", "status", check=False).returncode == 0)
