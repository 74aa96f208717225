"""Session affinity: a client comes back to its backend, packet by packet and by its sockets, and for how long."""

from __future__ import annotations

import asyncio
import itertools
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import cast

import pytest

from bus.messages.lb import Backend, Frontend, LoadBalancedService
from services.dataplane.kernel.maps import Maps
from services.dataplane.parts.services import Services
from services.dataplane.shapes.layouts import TICK_NS, AffinityEntry, AffinityKey, ServiceEntry
from tests.bpf.datapath import V4, V6, Datapath, Family, tcp, udp
from tests.bpf.spaces import in_namespace, ip, making_namespaces
from tests.bpf.test_sockets import UDP4, UDP6, caller, cgroup, hooked
from tests.connections import PORT, Connections

__all__ = ["cgroup", "hooked"]  # fixtures

AFFINITY = 10  # ticks
TRIES = 20  # of a client that is led by chance among three backends: all to one in one of 10^9 runs


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // TICK_NS


@pytest.fixture
def node(datapath: Datapath) -> Datapath:
    for at in (V4, V6):
        datapath.endpoint(at.pod, 256)
        datapath.endpoint(at.neighbour, 257)
        for address, _ in there(at):
            datapath.who(address, 300, at.other_node)
    datapath.maps.raise_epoch()
    return datapath


def there(at: Family) -> list[tuple[str, int]]:
    return [(at.remote[:-1] + last, 8080) for last in "567"]


def led_to(node: Datapath, at: Family, client: str, port: int = 80, protocol: int = 6) -> str:
    """The backend of one new connection."""
    make = tcp if protocol == 6 else udp
    return str(node.passes("from_pod", make(client, at.service, node.free_port(), port))[at.ip].dst)


@pytest.mark.parametrize("protocol", [6, 17])
def test_a_client_comes_back_to_its_backend_and_another_has_its_own(node: Datapath, at: Family, protocol: int) -> None:
    node.service(at.service, 80, protocol, there(at), affinity=AFFINITY)
    first = led_to(node, at, at.pod, protocol=protocol)
    assert {led_to(node, at, at.pod, protocol=protocol) for _ in range(TRIES)} == {first}
    key, entry = node.affinities().popitem()
    assert (key.client, entry.address, entry.port) == (at.pod, first, 8080)
    assert led_to(node, at, at.neighbour, protocol=protocol)
    assert {key.client for key in node.affinities()} == {at.pod, at.neighbour}


def test_without_affinity_nothing_is_remembered(node: Datapath, at: Family) -> None:
    node.service(at.service, 80, 6, there(at))
    assert len({led_to(node, at, at.pod) for _ in range(TRIES)}) > 1
    assert not node.affinities()


def test_who_stays_away_for_too_long_is_led_by_chance_and_each_use_begins_the_time_anew(
    node: Datapath, at: Family
) -> None:
    node.service(at.service, 80, 6, there(at), affinity=AFFINITY)
    first = led_to(node, at, at.pod)
    for ago, is_known in ((AFFINITY, True), (-1, True), (AFFINITY + 2, False)):  # -1: by another CPU, just now
        found = set()
        for _ in range(TRIES):
            ((key, entry),) = node.affinities().items()
            node.affinity(key, AffinityEntry(first, 8080, now() - ago))
            found.add(led_to(node, at, at.pod))
            ((_, entry),) = node.affinities().items()
            assert abs(now() - entry.used) <= 1
        assert (found == {first}) == is_known


def test_a_backend_that_is_gone_is_not_believed_whatever_the_map_says(node: Datapath, at: Family) -> None:
    node.service(at.service, 80, 6, there(at), affinity=AFFINITY)
    first = led_to(node, at, at.pod)
    left = [each for each in there(at) if each[0] != first]
    node.service(at.service, 80, 6, left, affinity=AFFINITY)
    second = led_to(node, at, at.pod)
    assert second in {address for address, _ in left}
    node.service(at.service, 80, 6, there(at), affinity=AFFINITY)
    assert {led_to(node, at, at.pod) for _ in range(TRIES)} == {second}, "it stays where it is when the first is back"


def test_where_only_backends_of_this_node_serve_a_client_is_remembered_apart(node: Datapath, at: Family) -> None:
    """One number, two addresses: at the one all serve, at the other the first alone."""
    node.service(at.service, 80, 6, there(at), affinity=AFFINITY)
    (first, _), *others = there(at)
    node.affinity(AffinityKey(1, at.pod), AffinityEntry(others[0][0], 8080, now()))
    assert led_to(node, at, at.pod) == others[0][0]
    node.service(at.service, 81, 6, there(at)[:1], flags=ServiceEntry.LOCAL, affinity=AFFINITY)
    node.service(at.service, 80, 6, there(at), affinity=AFFINITY)
    assert led_to(node, at, at.pod, 81) == first
    assert led_to(node, at, at.pod) == others[0][0]


def test_services_remember_a_client_apart(node: Datapath, at: Family) -> None:
    node.service(at.service, 80, 6, there(at), number=1, affinity=AFFINITY)
    node.service(at.service, 81, 6, there(at), number=2, affinity=AFFINITY)
    for number, port in ((1, 80), (2, 81)):
        node.affinity(AffinityKey(number, at.pod), AffinityEntry(there(at)[number][0], 8080, now()))
        assert led_to(node, at, at.pod, port) == there(at)[number][0]


# At the socket: a network namespace is one client.

PODS = ("one", "two")
LASTS = range(1, 9)  # of the backends' addresses


def backends_of(family: int) -> list[str]:
    """Addresses that each namespace has itself: so a socket reaches all of them without a node."""
    return [f"127.0.0.{last}" if family == 4 else f"fd00:5::{last}" for last in LASTS]


@pytest.fixture
def pods() -> Iterator[list[str]]:
    with making_namespaces() as make:
        names = [make(name) for name in PODS]
        for each in names:
            ip("-n", each, "link", "set", "lo", "up")
            for address in backends_of(6):
                ip("-n", each, "address", "add", f"{address}/128", "dev", "lo", "nodad")
        yield names


@contextmanager
def answering(pods: list[str], family: int) -> Iterator[None]:
    """Each backend's address answers datagrams with itself."""
    kind = UDP4 if family == 4 else UDP6

    async def listen(address: str) -> socket.socket:
        found = socket.socket(*kind)
        found.bind((address, PORT))
        return found

    with ExitStack() as stack, selectors.DefaultSelector() as waiting:
        for pod in pods:
            for address in backends_of(family):
                held = stack.enter_context(in_namespace(pod, lambda at=address: listen(at)))  # type: ignore[misc]
                waiting.register(held, selectors.EVENT_READ, address)
        stop, stopped = socket.socketpair()
        waiting.register(stopped, selectors.EVENT_READ, "")
        stack.callback(stopped.close)
        stack.callback(stop.close)

        def answer() -> None:
            while True:
                for key, _ in waiting.select():
                    if not key.data:
                        return
                    held = cast(socket.socket, key.fileobj)
                    held.sendto(key.data.encode(), held.recvfrom(64)[1])

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            stop.send(b"!")
            thread.join()


class Clients:
    """Programs in two namespaces and in the cgroup, each of which asks by as many sockets as one likes."""

    def __init__(self, stack: ExitStack, pods: list[str], cgroup: Path, family: int, way: str) -> None:
        self._callers = [stack.enter_context(closing(caller(pod, cgroup, family, "SOCK_DGRAM"))) for pod in pods]
        self._way = way
        self._names = map(str, itertools.count())

    def reached(self, address: str) -> list[set[str]]:
        """By namespace: who answers, of many sockets."""
        return [{self._ask(each, address) for _ in range(TRIES)} for each in self._callers]

    def _ask(self, caller: Connections, address: str) -> str:
        name = next(self._names)
        if self._way == "sendmsg":
            return caller.send_to(name, address)
        assert caller.connect(name, address) == "connected"
        return caller.ask(name)


def serve(maps: Maps, tables: Services, address: str, backends: list[str], seconds: int = 3600) -> None:
    found = [Backend(address=each, port=PORT) for each in backends]
    fronts = [Frontend(address=address, port=PORT, protocol="UDP", backends=found)]
    tables.put(LoadBalancedService(namespace="n", name="s", frontends=fronts, affinity_seconds=seconds))
    asyncio.run(maps.write(tables.tables))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("way", ["connect", "sendmsg"])
def test_all_sockets_of_a_namespace_come_to_one_backend_also_when_the_node_has_begun_anew(
    pods: list[str], cgroup: Path, hooked: Maps, family: int, way: str
) -> None:
    address = "10.96.7.7" if family == 4 else "fd00:96::77"
    hooked["affinity"].remove_many([key for key, _ in hooked["affinity"].items()])
    hooked["services"].remove_many([key for key, _ in hooked["services"].items()])
    tables = Services()
    serve(hooked, tables, address, backends_of(family))
    with answering(pods, family), ExitStack() as stack:
        clients = Clients(stack, pods, cgroup, family, way)
        before = clients.reached(address)
        assert list(map(len, before)) == [1, 1]
        assert len(hooked.dump("affinity")) == len(pods)
        again = Services()  # another process, which adopts what it finds
        again.adopt(hooked.dump)
        serve(hooked, again, address, backends_of(family))
        assert clients.reached(address) == before
        (first,) = before[0]
        left = [each for each in backends_of(family) if each != first]
        serve(hooked, again, address, left)
        after = clients.reached(address)
        assert list(map(len, after)) == [1, 1]
        assert after[0] != before[0]
        assert before[1] in (before[0], after[1]), "who had another backend stays there"
        serve(hooked, again, address, left, seconds=0)
        assert min(map(len, clients.reached(address))) > 1, "and without affinity they are spread"
