"""A kernel without tcx: clsact without being told, healed as ever; and socket hooks of both families."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.dataplane.kernel import bpf
from services.dataplane.kernel.bpf import Map
from services.dataplane.kernel.hooks import Hooks
from services.dataplane.shapes import layouts
from services.dataplane.shapes.limits import map_path
from tests.bpf.attaching import OK, Counter, Place, delete_clsact, delete_filter, with_pod
from tests.bpf.spaces import GATEWAY, making_namespaces, reaches
from tests.guest.pinned import pin_all
from tests.guest.prepare import programs_of

SERVICES = {"10.96.0.1": "127.0.0.1", "fd00:96::1": "::1"}  # to what stands behind it
EMPTY = ("10.96.0.9", "fd00:96::9")  # Services without backends
SERVICE_PORT, PORT = 80, 8081
GROUP = Path("/sys/fs/cgroup/clients")
CLIENT = """
import errno, os, socket, sys
open("/sys/fs/cgroup/clients/cgroup.procs", "w").write(str(os.getpid()))
def call(address, kind):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as one:
        one.settimeout(20)
        if kind == socket.SOCK_STREAM:
            one.connect((address, 80))
            one.sendall(b"hello")
            return one.recv(9).decode(), one.getpeername()[0]
        one.sendto(b"hello", (address, 80))
        said, sender = one.recvfrom(9)
        return said.decode(), sender[0]
if sys.argv[1] == "refused":
    for address in sys.argv[2:]:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            try:
                call(address, kind)
            except OSError as problem:
                print(errno.errorcode.get(problem.errno, problem))
    sys.exit()
for address in sys.argv[1:]:
    print(*call(address, socket.SOCK_STREAM), *call(address, socket.SOCK_DGRAM))
"""


@pytest.fixture
def namespaces() -> Iterator[Callable[[str], str]]:
    with making_namespaces() as make:
        yield make


def test_asked_for_tcx_a_kernel_without_it_has_clsact_and_what_was_removed_by_hand_comes_back(
    namespaces: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not bpf.has_tcx()
    pins = Path("/sys/fs/bpf/hooks")
    pins.mkdir()

    async def work(place: Place) -> None:
        with place.process("tcx", program) as hooks:
            assert hooks.mechanism == "clsact"
            await place.heal(hooks)
            left = [place.filters(direction) for direction in ("ingress", "egress")]
            assert [len(each) for each in left] == [1, 1]
            for remove in (delete_filter, delete_clsact):
                remove(place)
                assert not place.filters("ingress")
                await place.heal(hooks)
                assert [place.filters(direction) for direction in ("ingress", "egress")] == left
            assert not hooks.state[0], "what was put back is told for a while"
            monkeypatch.setattr("services.dataplane.kernel.hooks.TOLD_SECONDS", 0.0)
            await place.heal(hooks)
            assert hooks.state == (True, "clsact")
        before = counter.packets
        assert reaches(place.pod, GATEWAY)
        assert counter.packets == before + 2
        assert not list(pins.rglob("*-ingress")), "clsact needs no pin"

    with closing(Counter()) as counter:
        program = counter.program(OK)
        with_pod(namespaces, pins, program, work)


def test_a_process_of_the_cgroup_reaches_services_by_the_socket_hooks_of_both_families() -> None:
    pins = Path("/sys/fs/bpf/sockets")
    pin_all(programs_of("node1", 4), pins)
    for number, (service, backend) in enumerate(SERVICES.items(), 1):
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
            put(pins, "services", layouts.ServiceKey(service, SERVICE_PORT, protocol), layouts.ServiceEntry(number, 1))
        put(pins, "backends", layouts.BackendKey(number, 0), layouts.BackendEntry(backend, PORT))
    for number, (service, protocol) in enumerate(
        itertools.product(EMPTY, (socket.IPPROTO_TCP, socket.IPPROTO_UDP)), 10
    ):
        put(pins, "services", layouts.ServiceKey(service, SERVICE_PORT, protocol), layouts.ServiceEntry(number, 0))
    GROUP.mkdir()

    async def attach() -> None:
        with closing(Hooks(pins, GROUP, {}, enable_tcx=True)) as hooks:
            await hooks.keep_sockets()

    asyncio.run(attach())
    server = subprocess.Popen([sys.executable, "-c", ECHO, str(PORT)], stdout=subprocess.PIPE, text=True)
    with server:
        assert server.stdout and server.stdout.readline() == "listening\n"
        client = [sys.executable, "-c", CLIENT, *SERVICES]
        found = subprocess.run(client, capture_output=True, text=True, check=False)
        server.kill()
    refused = subprocess.run([*client[:3], "refused", *EMPTY], capture_output=True, text=True, check=False)
    assert bpf.has_set_retval(), "Debian's kernel has it"
    assert refused.stdout.split() == ["ECONNREFUSED"] * 4, refused
    assert found.stdout.splitlines() == [f"HELLO {each} HELLO {each}" for each in SERVICES], found


ECHO = """
import selectors, socket, sys
address, sockets = ("::", int(sys.argv[1])), selectors.DefaultSelector()
stream = socket.create_server(address, family=socket.AF_INET6, dualstack_ipv6=True)
datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
datagrams.bind(address)
for each in (stream, datagrams):
    sockets.register(each, selectors.EVENT_READ)
print("listening", flush=True)
while True:
    for key, _ in sockets.select():
        if key.fileobj is stream:
            with stream.accept()[0] as one:
                one.sendall(one.recv(9).upper())
        else:
            said, client = datagrams.recvfrom(9)
            datagrams.sendto(said.upper(), client)
"""


def put(
    pins: Path,
    name: str,
    key: layouts.ServiceKey | layouts.BackendKey,
    value: layouts.ServiceEntry | layouts.BackendEntry,
) -> None:
    with closing(Map.open(map_path(pins, name))) as opened:
        opened.set(key.pack(), value.pack())
