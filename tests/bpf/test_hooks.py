"""Programs on real hooks of real devices: by tcx and by clsact, replaced and moved under traffic, healed, shared."""

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
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyroute2 import netns

from bus.telemetry import counted
from services.dataplane import bpf_syscall, loader, rtnl
from services.dataplane.attach import Hook, Mechanism
from services.dataplane.bpf_syscall import TCX_EGRESS, TCX_INGRESS
from services.dataplane.hooks import HEAL_SECONDS, Hooks
from services.dataplane.links import LinkError, Links, TcProgram
from services.dataplane.netlink import Netlink
from services.dataplane.rtnl import Direction
from tests.bpf.conftest import BPFFS
from tests.bpf.test_links import GATEWAY, NAMESPACES, in_namespace, inside, namespaces, opened, reaches

__all__ = ["namespaces"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

POD = "10.9.0.2"
PORT = 4000
OK, DROP, NEXT = 0, 2, -1
MECHANISMS: list[Mechanism] = ["tcx", "clsact"]
TYPES: dict[Direction, int] = {"ingress": TCX_INGRESS, "egress": TCX_EGRESS}


class Counter:
    """Makes programs that count IPv4 packets, all in one place, and say what they are told to."""

    def __init__(self) -> None:
        self._map = bpf_syscall._bpf(0, struct.pack("=IIII", 2, 4, 8, 1))
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
        fd = bpf_syscall._bpf(
            5, struct.pack("=IIQQ", 3, len(instructions), ctypes.addressof(code), ctypes.addressof(licence))
        )
        self._fds.append(fd)
        return fd

    @property
    def packets(self) -> int:
        found = bpf_syscall.Map(self._map).get(bytes(4))
        assert found is not None
        return int.from_bytes(found, "little")


@pytest.fixture
def counter() -> Iterator[Counter]:
    made = Counter()
    yield made
    made.close()


@pytest.fixture
def pins() -> Iterator[Path]:
    """A pin directory of our own. What is pinned in it, and nowhere else, goes with it."""
    made = BPFFS / f"plexus-test-hooks-{os.getpid()}"
    (made / "links").mkdir(parents=True)
    yield made
    shutil.rmtree(made)


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
    async def healing(self, hooks: Hooks) -> object:
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
        return bpf_syscall.tcx_programs(self.hooks_of_pod[0].index, TYPES[direction])

    def how(self) -> set[str]:
        """How our two hooks have exactly one program each; fails when one has none, or several."""
        found = set()
        for hook in self.hooks_of_pod:
            by = {"tcx": self.tcx(hook.direction), "clsact": self.filters(hook.direction)}
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
                link = await links.create_pod_link(fd, "c1", "eth0", POD, GATEWAY, 1500, programs)
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


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_program_is_replaced_under_traffic_and_every_packet_meets_one(
    namespaces: Callable[[str], str], pins: Path, counter: Counter, mechanism: Mechanism
) -> None:
    versions = [counter.program(OK) for _ in range(2)]

    async def work(place: Place) -> None:
        with place.process(mechanism, versions[0]) as hooks:
            await place.heal(hooks)
        assert place.how() == {mechanism}

        async def change() -> None:
            for turn in range(100):
                with place.process(mechanism, versions[turn % 2]) as hooks:
                    assert await hooks.adopt(place.hooks_of_pod) == {}
                await asyncio.sleep(0.003)

        await check_under_traffic(place, counter, change)
        assert place.how() == {mechanism}

    with_pod(namespaces, pins, versions[1], work)


def test_a_program_moves_to_the_other_mechanism_under_traffic_and_every_packet_meets_one(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    versions = [counter.program(OK) for _ in range(2)]

    async def work(place: Place) -> None:
        async def change() -> None:
            for turn in range(10):
                mechanism = MECHANISMS[turn % 2]
                with place.process(mechanism, versions[turn // 2 % 2]) as hooks:  # an upgrade now and then
                    await hooks.adopt(place.hooks_of_pod)
                    await place.heal(hooks)
                    assert hooks.state == (True, mechanism)
                assert place.how() == {mechanism}

        await check_under_traffic(place, counter, change)

    with_pod(namespaces, pins, versions[0], work)


def test_a_new_pod_begins_with_clsact_and_moves_to_tcx_when_it_is_quiet(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program = counter.program(OK)

    async def work(place: Place) -> None:
        assert place.how() == {"clsact"}
        assert not place.links.is_quiet
        with place.process("tcx", program) as hooks:
            await place.heal(hooks, is_quiet=False)
            assert place.how() == {"clsact"}
            assert hooks.state == (True, "tcx, 2 of 2 not moved yet")
            await place.heal(hooks, is_quiet=True)
            assert place.how() == {"tcx"}
            assert hooks.state == (True, "tcx")

    with_pod(namespaces, pins, program, work)


def test_a_restart_takes_over_pinned_links_as_they_are(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program, newer = counter.program(OK), counter.program(OK)

    def ids() -> list[int]:
        found = [bpf_syscall.pinned_link(path) for path in sorted((pins / "links").iterdir())]
        return [each.id for each in found if each is not None]

    async def work(place: Place) -> None:
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
        before = ids()
        assert len(before) == 2
        for each in (program, newer):
            with place.process("tcx", each) as hooks:
                await hooks.adopt(place.hooks_of_pod)
                assert hooks.state == (True, "tcx")
            assert ids() == before
            assert place.tcx() == place.tcx("egress") == [bpf_syscall.program_id(each)]

    with_pod(namespaces, pins, program, work)


def _unpin(place: Place) -> None:
    (place.pins / "links" / place.hooks_of_pod[0].pin).unlink()


def _unpin_all(place: Place) -> None:
    shutil.rmtree(place.pins / "links")


def _detach(place: Place) -> None:
    link = bpf_syscall.open_pinned(place.pins / "links" / place.hooks_of_pod[0].pin)
    bpf_syscall.detach_link(link)
    os.close(link)


def _delete_filter(place: Place) -> None:
    with Netlink() as netlink:
        rtnl.detach(netlink, place.hooks_of_pod[0].index, "ingress")


def _delete_clsact(place: Place) -> None:
    tc = inside_here("tc", "qdisc", "delete", "dev", place.hooks_of_pod[0].device, "clsact")
    assert tc == 0


def inside_here(*words: str) -> int:
    """The exit status of a command in the namespace of the calling thread."""
    return os.spawnvp(os.P_WAIT, words[0], words)


@pytest.mark.parametrize(
    ("mechanism", "remove", "hooks_hit"),
    [
        ("tcx", _unpin, 1),
        ("tcx", _unpin_all, 2),
        ("tcx", _detach, 1),
        ("clsact", _delete_filter, 1),
        ("clsact", _delete_clsact, 2),
    ],
)
def test_what_was_removed_by_hand_is_back_within_five_seconds_and_counted(
    namespaces: Callable[[str], str],
    pins: Path,
    counter: Counter,
    mechanism: Mechanism,
    remove: Callable[[Place], None],
    hooks_hit: int,
) -> None:
    program = counter.program(DROP)

    async def work(place: Place) -> None:
        with place.process(mechanism, program) as hooks:
            await place.heal(hooks)
            assert place.how() == {mechanism}
            async with place.healing(hooks):
                before = counted("plexus_drift_total", kind="program")
                remove(place)
                removed = time.monotonic()
                while counted("plexus_drift_total", kind="program") < before + hooks_hit:
                    assert time.monotonic() - removed < 5
                    await asyncio.sleep(0.01)
                assert place.how() == {mechanism}
                await asyncio.sleep(HEAL_SECONDS + 0.5)
                assert counted("plexus_drift_total", kind="program") == before + hooks_hit, "counted twice"
        assert not reaches(place.pod, GATEWAY)

    with_pod(namespaces, pins, program, work)


def test_a_program_that_was_exchanged_by_hand_is_put_back(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program, strange = counter.program(DROP), counter.program(OK)

    async def work(place: Place) -> None:
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
            link = bpf_syscall.open_pinned(place.pins / "links" / place.hooks_of_pod[0].pin)
            bpf_syscall.replace_program(link, strange)
            os.close(link)
            await place.heal(hooks)
            assert place.tcx() == [bpf_syscall.program_id(program)]

    with_pod(namespaces, pins, program, work)


def test_a_restart_after_an_older_version_leaves_none_of_its_filters(
    namespaces: Callable[[str], str], pins: Path, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, program = counter.program(OK), counter.program(OK)

    async def work(place: Place) -> None:
        monkeypatch.undo()
        assert place.filters() == [(1, bpf_syscall.program_id(older))]
        with place.process("clsact", program) as hooks:
            await hooks.adopt(place.hooks_of_pod)
        assert place.filters() == [(rtnl.FILTER_HANDLE, bpf_syscall.program_id(program))]

    monkeypatch.setattr(rtnl.detach, "__defaults__", (1,))
    monkeypatch.setattr(rtnl._filter, "__kwdefaults__", {"handle": 1})
    with_pod(namespaces, pins, older, work)


# Others


@contextlib.contextmanager
def foreign_link(program: int, index: int) -> Iterator[int]:
    """A tcx link of somebody else, held by them."""
    link = bpf_syscall._bpf(bpf_syscall.LINK_CREATE, struct.pack("=IIII", program, index, TCX_INGRESS, 0))
    try:
        yield link
    finally:
        os.close(link)


def foreign_filter(place: Place, program: int, priority: int, handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with Netlink() as netlink, monkeypatch.context() as patched:
        patched.setattr(rtnl, "FILTER_PRIORITY", priority)
        patched.setattr(rtnl._filter, "__kwdefaults__", {"handle": handle})
        rtnl.attach(netlink, place.hooks_of_pod[0].index, program, "ingress", "theirs")


def test_ours_comes_first_and_others_stay_in_both_mechanisms(
    namespaces: Callable[[str], str], pins: Path, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, newer, theirs = counter.program(NEXT), counter.program(NEXT), counter.program(NEXT)
    mine, latest, their_id = map(bpf_syscall.program_id, (ours, newer, theirs))

    async def work(place: Place) -> None:
        for priority, handle in ((1, 1), (1, 2), (5, 1)):
            foreign_filter(place, theirs, priority, handle, monkeypatch)
        others = sorted([(1, their_id), (2, their_id), (1, their_id)])

        def check(tcx: list[int], filters: list[int]) -> None:
            """By tcx and by clsact, in order: ours, and theirs all along."""
            assert place.tcx() == [*tcx, their_id]
            found = place.filters()
            assert [number for handle, number in found if handle == rtnl.FILTER_HANDLE] == filters
            assert sorted(each for each in found if each[0] != rtnl.FILTER_HANDLE) == others

        with foreign_link(theirs, place.hooks_of_pod[0].index):
            with place.process("tcx", ours) as hooks:
                check([], [mine])
                await place.heal(hooks)
                check([mine], [])
            with place.process("tcx", newer) as hooks:
                await hooks.adopt(place.hooks_of_pod)
                check([latest], [])
            with place.process("clsact", ours) as hooks:
                await hooks.adopt(place.hooks_of_pod)
                await place.heal(hooks)
                check([], [mine])
                assert place.filters()[0] == (rtnl.FILTER_HANDLE, mine), "one of theirs runs before ours"
            assert reaches(place.pod, GATEWAY)

    with_pod(namespaces, pins, ours, work)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_ours_drops_stays_dropped_though_somebody_elses_program_passes_all(
    namespaces: Callable[[str], str],
    pins: Path,
    counter: Counter,
    monkeypatch: pytest.MonkeyPatch,
    mechanism: Mechanism,
) -> None:
    drop, passing = counter.program(DROP), counter.program(OK)

    async def work(place: Place) -> None:
        _delete_filter(place)
        if mechanism == "clsact":
            foreign_filter(place, passing, 1, 1, monkeypatch)
        with contextlib.ExitStack() as stack:
            if mechanism == "tcx":
                stack.enter_context(foreign_link(passing, place.hooks_of_pod[0].index))
            assert reaches(place.pod, GATEWAY)
            with place.process(mechanism, drop, passing) as hooks:
                await place.heal(hooks)
            assert not reaches(place.pod, GATEWAY)

    with_pod(namespaces, pins, passing, work)


# Devices that go, and what cannot be done


def test_the_pins_of_a_device_that_is_gone_go(namespaces: Callable[[str], str], pins: Path, counter: Counter) -> None:
    program = counter.program(OK)

    async def work(place: Place) -> None:
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
            assert len(list((pins / "links").iterdir())) == 2
            before = counted("plexus_drift_total", kind="program")
            gone, place.hooks_of_pod = place.hooks_of_pod, []
            await place.heal(hooks)
            assert len(list((pins / "links").iterdir())) == 2, "a pod that is on its way out stays guarded"
            await place.links.delete_pod_link(gone[0].device)
            await place.heal(hooks)
            assert list((pins / "links").iterdir()) == []
            assert counted("plexus_drift_total", kind="program") == before

    with_pod(namespaces, pins, program, work)


def test_a_device_that_came_back_under_its_name_has_its_program(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program = counter.program(OK)

    async def work(place: Place) -> None:
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
        await place.links.delete_pod_link(place.hooks_of_pod[0].device)
        with opened(place.pod) as fd:
            link = await place.links.create_pod_link(fd, "c1", "eth0", POD, GATEWAY, 1500)
        place.hooks_of_pod = [
            Hook(link.host_name, link.host_index, each.direction, each.program) for each in place.hooks_of_pod
        ]
        with place.process("tcx", program) as hooks:
            assert await hooks.adopt(place.hooks_of_pod) == {}
            assert place.how() == {"tcx"}

    with_pod(namespaces, pins, program, work)


def test_a_device_that_somebody_removed_is_told_once_and_keeps_nobody_else_waiting(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program = counter.program(OK)

    async def work(place: Place) -> None:
        with place.process("tcx", program) as hooks:
            missing = Hook("gone", 999, "ingress", "from_pod")
            present = list(place.hooks_of_pod)
            place.hooks_of_pod = [missing, *present]
            await place.heal(hooks)
            ok, said = hooks.state
            assert not ok
            assert "gone ingress" in said
            assert "ENODEV" in said or "No such device" in said
            place.hooks_of_pod = present
            await place.heal(hooks)
            assert hooks.state == (True, "tcx")
            with pytest.raises(LinkError):
                await hooks.keep(missing)

    with_pod(namespaces, pins, program, work)


# Routes and sockets


def test_a_pods_route_removed_by_hand_is_told_and_comes_back(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program = counter.program(OK)

    async def work(place: Place) -> None:
        wanted = {POD: place.hooks_of_pod[0].index}
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
            assert not hooks.routes_gone
            assert await place.links.mend_pod_routes(wanted) == []
            assert inside_here("ip", "route", "delete", POD) == 0
            await place.heal(hooks)
            assert hooks.routes_gone
            assert await place.links.mend_pod_routes({**wanted, "10.9.0.99": 999}) == [POD]
            assert reaches(place.pod, GATEWAY)

    with_pod(namespaces, pins, program, work)


def test_a_socket_program_whose_link_was_removed_by_hand_is_back_and_counted(programs: Path, counter: Counter) -> None:
    group = next(path for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if path.is_dir())
    group = group / f"plexus-test-hooks-{os.getpid()}"
    group.mkdir()

    def pinned(name: str) -> bpf_syscall.LinkInfo | None:
        return bpf_syscall.pinned_link(programs / "links" / name)

    async def main() -> None:
        hooks = Hooks(programs, group, {}, enable_tcx=True)
        try:
            await hooks.keep_sockets()
            unpinned, detached, *_ = loader.SOCKET_PROGRAMS
            before = counted("plexus_drift_total", kind="program")
            (programs / "links" / unpinned).unlink()
            link = bpf_syscall.open_pinned(programs / "links" / detached)
            bpf_syscall.detach_link(link)
            os.close(link)
            await hooks.heal(list, lambda: True)
            for name in loader.SOCKET_PROGRAMS:
                found = pinned(name)
                assert found is not None
                assert found.target == group.stat().st_ino
            assert counted("plexus_drift_total", kind="program") == before + 2
            await hooks.heal(list, lambda: True)
            assert counted("plexus_drift_total", kind="program") == before + 2
        finally:
            hooks.close()
            for name in loader.SOCKET_PROGRAMS:
                (programs / "links" / name).unlink(missing_ok=True)

    try:
        asyncio.run(main())
    finally:
        group.rmdir()
