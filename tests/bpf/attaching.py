"""A pod's link with programs that count, a stream of numbered packets both ways, and hands that meddle."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyroute2 import netns

from services.dataplane.kernel import bpf, rtnl
from services.dataplane.kernel.bpf import TCX_EGRESS, TCX_INGRESS
from services.dataplane.kernel.hooks import HEAL_SECONDS, Hooks
from services.dataplane.kernel.links import Links, TcProgram
from services.dataplane.kernel.netlink import Netlink
from services.dataplane.shapes.attach import Direction, Hook, Mechanism
from tests.bpf.spaces import GATEWAY, NAMESPACES, in_namespace, ips, opened

POD = "10.9.0.2"
PORT = 4000
OK, DROP, NEXT = 0, 2, -1  # TC_ACT_OK, _SHOT, _UNSPEC
MECHANISMS: list[Mechanism] = ["tcx", "clsact"]
TYPES: dict[Direction, int] = {"ingress": TCX_INGRESS, "egress": TCX_EGRESS}


class Counter:
    """Makes programs that count IPv4 packets, all in one place, and say what they are told to."""

    def __init__(self) -> None:
        self._map = bpf.call(0, struct.pack("=IIII", 2, 4, 8, 1))
        self._fds = [self._map]

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)

    def program(self, verdict: int) -> int:
        instructions = [
            (0x61, 0x16, 16, 0),  # r6 = skb->protocol
            (0x55, 0x06, 9, 0x0008),  # not IPv4: to the end
            (0x62, 0x0A, -4, 0),  # key = 0
            (0xBF, 0xA2, 0, 0),
            (0x07, 0x02, 0, -4),
            (0x18, 0x11, 0, self._map),
            (0x00, 0x00, 0, 0),
            (0x85, 0x00, 0, 1),  # r0 = value's place
            (0x15, 0x00, 2, 0),
            (0xB7, 0x01, 0, 1),
            (0xDB, 0x10, 0, 0),  # one more, as one step
            (0xB7, 0x00, 0, verdict),
            (0x95, 0x00, 0, 0),
        ]
        raw = b"".join(struct.pack("=BBhi", *each) for each in instructions)
        code, licence = ctypes.create_string_buffer(raw), ctypes.create_string_buffer(b"GPL")
        fd = bpf.call(5, struct.pack("=IIQQ", 3, len(instructions), ctypes.addressof(code), ctypes.addressof(licence)))
        self._fds.append(fd)
        return fd

    @property
    def packets(self) -> int:
        found = bpf.Map(self._map).get(bytes(4))
        assert found is not None
        return int.from_bytes(found, "little")


@dataclass
class Place:
    """A pod with its link, as seen from the node's namespace, where all of this runs."""

    links: Links
    pins: Path
    pod: str
    hooks_of_pod: list[Hook]

    @contextlib.contextmanager
    def process(self, mechanism: Mechanism, program: int, other: int | None = None) -> Iterator[Hooks]:
        """One life of a dataplane. `other`: the program of the egress hook; default: the same."""
        fds = {"from_pod": program, "to_pod": program if other is None else other}
        made = Hooks(self.pins, Path("/nowhere"), fds, enable_tcx=mechanism == "tcx")
        try:
            yield made
        finally:
            made.close()

    async def heal(self, hooks: Hooks, *, is_quiet: bool = True) -> None:
        await hooks.heal(lambda: self.hooks_of_pod, lambda: is_quiet)

    @contextlib.asynccontextmanager
    async def healing(self, hooks: Hooks) -> AsyncIterator[None]:
        async def for_ever() -> None:
            while True:
                await asyncio.sleep(HEAL_SECONDS)
                await self.heal(hooks)

        task = asyncio.ensure_future(for_ever())
        try:
            yield
        finally:
            task.cancel()

    def filters(self, direction: Direction = "ingress") -> list[tuple[int, int]]:
        """(handle, program id) at clsact, in the order in which they run."""
        with Netlink() as netlink:
            found = rtnl.list_attached(netlink, self.hooks_of_pod[0].index, direction)
        return [(each.handle, each.program_id) for each in found]

    def tcx(self, direction: Direction = "ingress") -> list[int]:
        return bpf.tcx_programs(self.hooks_of_pod[0].index, TYPES[direction])

    def how(self) -> set[str]:
        """How our two hooks have exactly one program each; fails when one has none, or several."""
        found = set()
        for hook in self.hooks_of_pod:
            by: dict[str, Sequence[object]] = {"tcx": self.tcx(hook.direction), "clsact": self.filters(hook.direction)}
            used = [name for name, programs in by.items() for _ in programs]
            assert len(used) == 1, f"{hook.direction}: {by}"
            found.add(used[0])
        return found


def with_pod(
    namespaces: Callable[[str], str], pins: Path, program: int, work: Callable[[Place], Awaitable[None]]
) -> None:
    """Runs `work` in a node's namespace, with a pod that a CNI ADD has just made."""
    node, pod = namespaces("node"), namespaces("pod")

    async def main() -> None:
        links = Links()
        try:
            with opened(pod) as fd:
                await links.ensure_sysctls()
                await links.ensure_router_address(GATEWAY)
                programs = (TcProgram(program, "ingress", "from_pod"), TcProgram(program, "egress", "to_pod"))
                link = await links.create_pod_link(fd, "c1", "eth0", ips(POD), 1500, programs)
            directions: tuple[tuple[Direction, str], ...] = (("ingress", "from_pod"), ("egress", "to_pod"))
            hooks = [Hook(link.host_name, link.host_index, direction, name) for direction, name in directions]
            await work(Place(links, pins, pod, hooks))
        finally:
            links.close()

    in_namespace(node, main)


def socket_in(namespace: str) -> socket.socket:
    """A UDP socket there."""
    made: list[socket.socket] = []

    def enter() -> None:
        with (NAMESPACES / namespace).open() as file:
            netns.setns(file.fileno())
        made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return made[0]


class Stream:
    """Numbered packets, both ways at once, for as long as it is open."""

    SO_RCVBUFFORCE = 33

    def __init__(self, place: Place) -> None:
        self._ends = [socket_in(place.pod), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
        for end, address in zip(self._ends, (POD, GATEWAY), strict=True):
            end.setsockopt(socket.SOL_SOCKET, self.SO_RCVBUFFORCE, 1 << 28)
            end.bind((address, PORT))
        self.sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        pod, node = self._ends
        while not self._stop.is_set():
            pod.sendto(self.sent.to_bytes(8, "little"), (GATEWAY, PORT))
            node.sendto(self.sent.to_bytes(8, "little"), (POD, PORT))
            self.sent += 1
            if not self.sent % 16:
                time.sleep(0.0005)

    def end(self) -> tuple[int, list[list[int]]]:
        """How many were sent each way, and the numbers of those that arrived."""
        self._stop.set()
        self._thread.join()
        time.sleep(0.1)
        return self.sent, [self._arrived(end) for end in self._ends]

    @staticmethod
    def _arrived(end: socket.socket) -> list[int]:
        numbers = []
        with end:
            end.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    numbers.append(int.from_bytes(end.recv(16), "little"))
        return numbers


async def check_under_traffic(place: Place, counter: Counter, change: Callable[[], Awaitable[None]]) -> None:
    """While `change` runs, every packet meets exactly one program of ours, and none is lost."""
    before = counter.packets
    stream = Stream(place)
    try:
        await asyncio.sleep(0.05)
        await change()
        await asyncio.sleep(0.05)
    finally:
        sent, arrived = stream.end()
    assert sent > 1000, "not enough traffic to tell anything"
    assert counter.packets - before == 2 * sent, "a packet met no program, or two"
    assert arrived == [list(range(sent))] * 2


def unpin(place: Place) -> None:
    (place.pins / "links" / place.hooks_of_pod[0].pin).unlink()


def unpin_all(place: Place) -> None:
    shutil.rmtree(place.pins / "links")


def detach(place: Place) -> None:
    link = bpf.open_pinned(place.pins / "links" / place.hooks_of_pod[0].pin)
    bpf.detach_link(link)
    os.close(link)


def delete_filter(place: Place) -> None:
    with Netlink() as netlink:
        rtnl.detach(netlink, place.hooks_of_pod[0].index, "ingress")


def delete_clsact(place: Place) -> None:
    tc = inside_here("tc", "qdisc", "delete", "dev", place.hooks_of_pod[0].device, "clsact")
    assert tc == 0


def inside_here(*words: str) -> int:
    """The exit status of a command in the namespace of the calling thread."""
    return os.spawnvp(os.P_WAIT, words[0], words)


@contextlib.contextmanager
def foreign_link(program: int, index: int, flags: int = 0) -> Iterator[int]:
    """A tcx link of somebody else, held by them; behind all that are there, unless the flags say otherwise."""
    link = bpf.call(bpf.LINK_CREATE, struct.pack("=IIII", program, index, TCX_INGRESS, flags))
    try:
        yield link
    finally:
        os.close(link)


def foreign_filter(place: Place, program: int, priority: int, handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with Netlink() as netlink, monkeypatch.context() as patched:
        patched.setattr(rtnl, "FILTER_PRIORITY", priority)
        patched.setattr(rtnl._filter, "__kwdefaults__", {"handle": handle})
        rtnl.attach(netlink, place.hooks_of_pod[0].index, program, "ingress", "theirs")
