"""Pins that someone takes away, while a node runs and while it does not, under the traffic of two of its pods."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from pyroute2 import netns

from bus import subjects
from bus.labels import canonical_labels
from bus.messages.dataplane import Check
from bus.messages.identity import Identity
from bus.messages.resources import Namespace, Pod
from bus.telemetry import counted
from services.dataplane.kernel import bpf, rtnl
from services.dataplane.kernel.bpf import Map
from services.dataplane.kernel.hooks import ATTACH_TYPE
from services.dataplane.kernel.netlink import Netlink
from services.dataplane.load import loader
from services.dataplane.node import Node
from services.dataplane.pods import cni
from services.dataplane.pods.addresses import Attachment
from services.dataplane.pods.verbs import NodePods
from services.dataplane.shapes.attach import Hook
from services.dataplane.shapes.layouts import MAPS
from services.dataplane.shapes.limits import map_path
from services.dataplane.shapes.programs import SOCKET_PROGRAMS, TC_PROGRAMS, UNITS
from tests.bpf import own_maps
from tests.bpf.attaching import OK, Counter, inside_here, socket_in
from tests.bpf.spaces import in_namespace, opened
from tests.bpf.test_start import Place, place

__all__ = ["place"]  # a fixture

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loads programs")

MECHANISMS = {"tcx": "true", "clsact": "false"}
PATIENCE_SECONDS = 30.0


def tcp_in(namespace: str) -> socket.socket:
    """A TCP socket there."""
    made: list[socket.socket] = []

    def enter() -> None:
        with Path("/run/netns", namespace).open() as file:
            netns.setns(file.fileno())
        made.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    made[0].settimeout(PATIENCE_SECONDS)
    return made[0]


class Traffic:
    """One TCP connection that asks and answers all the time, and numbered datagrams, from one pod to another."""

    def __init__(self, client: str, server: str, address: str) -> None:
        listener, self._tcp = tcp_in(server), tcp_in(client)
        listener.bind((address, 80))
        listener.listen(1)
        self._tcp.connect((address, 80))
        self._served, _ = listener.accept()
        self._served.settimeout(PATIENCE_SECONDS)
        listener.close()
        self._from, self._to = socket_in(client), socket_in(server)
        self._to.setsockopt(socket.SOL_SOCKET, 33, 1 << 28)  # SO_RCVBUFFORCE
        self._to.bind((address, 81))
        self._address = address
        self._stop = threading.Event()
        self.asked = self.sent = 0
        self.problem = ""
        self._threads = [threading.Thread(target=each) for each in (self._talk, self._send)]
        for thread in self._threads:
            thread.start()

    def _talk(self) -> None:
        try:
            while not self._stop.is_set():
                number = self.asked.to_bytes(8, "little")
                for sender, receiver in ((self._tcp, self._served), (self._served, self._tcp)):
                    sender.sendall(number)
                    assert receiver.recv(8, socket.MSG_WAITALL) == number
                self.asked += 1
                time.sleep(0.0005)
        except OSError as problem:
            self.problem = repr(problem)

    def _send(self) -> None:
        while not self._stop.is_set():
            self._from.sendto(self.sent.to_bytes(8, "little"), (self._address, 81))
            self.sent += 1
            time.sleep(0.0002)

    def goes_on(self) -> None:
        """Returns when both have come further than they are now."""
        asked, sent, until = self.asked, self.sent, time.monotonic() + PATIENCE_SECONDS
        while self.asked < asked + 20 or self.sent < sent + 20:
            assert not self.problem and time.monotonic() < until, self.problem or "nothing comes through"
            time.sleep(0.001)

    def end(self, *, may_lose: bool) -> None:
        """Fails when the connection broke, or a datagram is missing that may not be."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        time.sleep(0.05)
        self._to.setblocking(False)
        arrived = []
        with contextlib.suppress(BlockingIOError):
            while True:
                arrived.append(int.from_bytes(self._to.recv(8), "little"))
        for each in (self._tcp, self._served, self._from, self._to):
            each.close()
        assert not self.problem
        assert may_lose or arrived == list(range(self.sent)), (
            f"{self.sent - len(arrived)} of {self.sent} datagrams are missing"
        )


class Pods:
    """Two pods of a node."""

    def __init__(self, place: Place, namespaces: Callable[[str], str], mechanism: str) -> None:
        self._place, self._mechanism = place, mechanism
        self.namespaces = [namespaces("client"), namespaces("server")]
        self.addresses: list[str] = []

    @contextlib.asynccontextmanager
    async def node(self) -> AsyncIterator[Node]:
        async with self._place.running(ENABLE_TCX=MECHANISMS[self._mechanism], ROUTING_MODE="native") as node:
            while not node.service.is_ready:
                await asyncio.sleep(0.02)
            if not self.addresses:
                for container_id, namespace in zip(("c1", "c2"), self.namespaces, strict=True):
                    with opened(namespace) as fd:
                        pod = "web" if container_id == "c1" else "other"
                        ask = cni.Add(Attachment(container_id, "eth0"), "plexus", "default", pod, "", "/x", fd, "1.1.0")
                        self.addresses.append((await NodePods(node).add(ask)).ips[0].address)
            while (await _healed(node)).hooks.state != (True, self._mechanism):
                await asyncio.sleep(0.02)
            yield node

    @contextlib.contextmanager
    def traffic(self, *, may_lose: bool = False) -> Iterator[Traffic]:
        client, server = self.namespaces
        made = Traffic(client, server, self.addresses[1])
        try:
            made.goes_on()
            yield made
            made.goes_on()
        finally:
            made.end(may_lose=may_lose)


async def _healed(node: Node) -> Node:
    await node.looks.run()
    return node


def say_other(place: Place) -> None:
    """Pods are closed until they are known."""
    place.populate()
    other = Pod(namespace="default", name="other", uid="", node="here", labels={"app": "other"})
    place.hub.put(subjects.POD.of("default", "other"), other)
    labels = canonical_labels(other, Namespace(name="default"))
    place.hub.put(subjects.IDENTITY.of("1001"), Identity(number=1001, labels=labels))


def maps_of(place: Place) -> dict[str, int]:
    """The kernel's number of each pinned map."""
    found = {}
    for name in MAPS:
        with contextlib.closing(Map.open(map_path(place.pins, name))) as opened_map:
            found[name] = opened_map.info.id
    return found


def pinned(place: Place) -> set[str]:
    return {str(path.relative_to(place.pins)) for path in place.pins.rglob("*") if path.is_file()}


def first_link(place: Place) -> Path:
    return min((place.pins / "links").glob("lxc*-ingress"), default=place.pins / "links" / "connect4")


TAKEN: dict[str, Callable[[Place], Path]] = {
    "a map": lambda place: map_path(place.pins, "ct_tcp"),
    "a program": lambda place: place.pins / "programs" / "from_pod",
    "the link of a socket program": lambda place: place.pins / "links" / "connect4",
    "a link": first_link,
    "all maps": lambda place: place.pins / "maps",
    "all": lambda place: place.pins,
}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_is_unpinned_under_a_running_node_is_told_and_put_back_and_no_packet_is_lost(
    place: Place, namespaces: Callable[[str], str], mechanism: str
) -> None:
    pods = Pods(place, namespaces, mechanism)
    say_other(place)

    def take(path: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    async def main() -> None:
        async with pods.node() as node:
            maps, files = maps_of(place), pinned(place)
            for what, where in TAKEN.items():
                with pods.traffic() as traffic:
                    take(where(place))
                    gone = files - pinned(place)
                    assert gone, what
                    traffic.goes_on()
                    before = counted("drift", kind="pin"), counted("drift", kind="program")
                    await node.looks.run()
                    hit = len(gone)
                    assert (counted("drift", kind="pin") - hit, counted("drift", kind="program")) == before, what
                    assert (pinned(place), maps_of(place)) == (files, maps), what
                    assert not told(node).ok and min(gone) in told(node).detail, what
                    await node.looks.run()
                    assert told(node).ok, what
            take(place.pins)
            await node.looks.run()
        with pods.traffic() as traffic:
            async with pods.node():
                traffic.goes_on()
                assert (pinned(place), maps_of(place)) == (files, maps)

    in_namespace(place.namespace, main)


def told(node: Node, name: str = "pins") -> Check:
    """What health says of pins, or of something else."""
    [check] = [each for each in node.service.health().checks if each.name == name]
    return check


@pytest.fixture
def own_filesystem(place: Place, tmp_path: Path) -> Iterator[Path]:
    """The place's pins are on a BPF file system that nobody else uses."""
    mounted = tmp_path / "bpf"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(mounted)], check=True)
    place.pins = mounted / "plexus"
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=False, capture_output=True)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_file_system_that_is_gone_is_told_until_there_is_one_and_no_packet_is_lost(
    place: Place, own_filesystem: Path, namespaces: Callable[[str], str], mechanism: str
) -> None:
    pods = Pods(place, namespaces, mechanism)
    say_other(place)

    async def main() -> None:
        async with pods.node() as node:
            maps, files = maps_of(place), pinned(place)
            with pods.traffic() as traffic:
                subprocess.run(["umount", str(own_filesystem)], check=True)
                for _ in range(2):
                    await node.looks.run()
                    assert not told(node).ok and "mount -t bpf" in told(node).detail
                    assert "links/connect4" in told(node).detail
                traffic.goes_on()
                subprocess.run(["mount", "-t", "bpf", "bpf", str(own_filesystem)], check=True)
                for _ in range(2):
                    await node.looks.run()
                assert told(node).ok and (pinned(place), maps_of(place)) == (files, maps)
        with pods.traffic() as traffic:
            async with pods.node():
                traffic.goes_on()
                assert maps_of(place) == maps

    in_namespace(place.namespace, main)


@pytest.mark.parametrize(
    ("mechanism", "taken", "lost"),
    [
        ("tcx", ["maps"], set()),
        ("tcx", ["programs"], set()),
        ("tcx", ["maps", "programs"], set()),
        ("clsact", ["maps", "programs"], set()),
        (
            "clsact",
            ["maps", "programs", "links"],
            {"sock_reverse", "sock_choices"},
        ),  # which programs at sockets alone use
    ],
)
def test_a_start_finds_maps_without_pins_by_the_programs_that_use_them(
    place: Place, namespaces: Callable[[str], str], mechanism: str, taken: list[str], lost: set[str]
) -> None:
    pods = Pods(place, namespaces, mechanism)
    say_other(place)

    async def main() -> None:
        async with pods.node():
            maps, files = maps_of(place), pinned(place)
        with pods.traffic() as traffic:
            for each in taken:
                shutil.rmtree(place.pins / each)
            traffic.goes_on()
            async with pods.node():
                traffic.goes_on()
                found = maps_of(place)
                assert {name for name in maps if found[name] != maps[name]} == lost
                assert pinned(place) == files

    in_namespace(place.namespace, main)


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name(one.name + "_aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def other_maps(place: Place, *names: str) -> None:
    """Empty ones of the same kind and size in their places."""
    for path in (map_path(place.pins, name) for name in names):
        with contextlib.closing(Map.open(path)) as found:
            info = found.info
        with contextlib.closing(own_maps.make(info.type, info.key_bytes, info.value_bytes, info.max_entries)) as made:
            bpf.pin(made.fd, path)


def other_programs(place: Place) -> None:
    """Such as let everything pass."""
    with contextlib.closing(Counter()) as counter:
        for name in TC_PROGRAMS:
            bpf.pin(counter.program(OK), place.pins / "programs" / name)


def other_maps_and_programs(place: Place) -> None:
    other_maps(place, *MAPS)
    other_programs(place)


OTHERS: dict[str, Callable[[Place], None]] = {
    "the map of policies": lambda place: other_maps(place, "policy"),
    "every map": lambda place: other_maps(place, *MAPS),
    "maps exchanged": lambda place: exchange(map_path(place.pins, "ct_tcp"), map_path(place.pins, "ct_any")),
    "a map and a program exchanged": (
        lambda place: exchange(map_path(place.pins, "ct_tcp"), place.pins / "programs" / "from_pod")
    ),
    "programs that let all pass": other_programs,
    "programs exchanged": (
        lambda place: exchange(place.pins / "programs" / "from_pod", place.pins / "programs" / "to_pod")
    ),
    "all of it": other_maps_and_programs,
}


def entries_of(place: Place, name: str) -> dict[bytes, bytes]:
    with contextlib.closing(Map.open(map_path(place.pins, name))) as found:
        return dict(found.items())


def attached_tag(hook: Hook) -> str:
    """Of the program that a packet meets first there."""
    numbers = bpf.tcx_programs(hook.index, ATTACH_TYPE[hook.direction])
    if not numbers:
        with Netlink() as netlink:
            numbers = [each.program_id for each in rtnl.list_attached(netlink, hook.index, hook.direction)]
    fd = bpf.program_by_id(numbers[0])
    try:
        return bpf.identity(fd).split()[2]
    finally:
        os.close(fd)


def identities(place: Place) -> dict[str, str]:
    """Of all that is pinned, by its path."""
    [array] = (place.pins / "maps").glob("steps_*")
    return loader.identities(place.pins, array.name.removeprefix("steps_"))


def tags(place: Place) -> dict[str, str]:
    """Of each pinned program: what its instructions are."""
    return {name: identities(place)[f"programs/{name}"].split()[2] for unit in UNITS.values() for name in unit}


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("what", OTHERS)
def test_a_start_believes_no_pin_by_its_name_and_no_packet_is_lost(
    place: Place, namespaces: Callable[[str], str], mechanism: str, what: str
) -> None:
    """Programs go on with the maps that they have, so those are pinned again and written; and what is attached are our
    programs."""
    pods = Pods(place, namespaces, mechanism)
    say_other(place)

    async def main() -> None:
        async with pods.node():
            maps, files, programs = maps_of(place), pinned(place), tags(place)
            entries = {name: entries_of(place, name) for name in ("policy", "endpoints", "ipcache")}
        with pods.traffic() as traffic:
            OTHERS[what](place)
            async with pods.node() as node:
                traffic.goes_on()
                assert (maps_of(place), pinned(place), tags(place)) == (maps, files, programs)
                assert {name: entries_of(place, name) for name in entries} == entries
                hooks = node.pod_hooks()
                assert [attached_tag(hook) for hook in hooks] == [programs[hook.program] for hook in hooks]
        first = identities(place)
        async with pods.node():
            assert identities(place) == first, "loaded once more"

    in_namespace(place.namespace, main)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_is_detached_by_hand_is_attached_again(
    place: Place, namespaces: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    """From pods, from the device, and from the sockets. What passes meanwhile may be dropped by what is left."""
    pods = Pods(place, namespaces, mechanism)
    say_other(place)

    def detach_all() -> int:
        links = 0
        for pin in (place.pins / "links").iterdir():
            link = bpf.open_pinned(pin)
            bpf.detach_link(link)
            os.close(link)
            links += 1
        with Netlink() as netlink:
            devices = [each for each in rtnl.list_links(netlink) if each.name == "eth0" or each.name.startswith("lxc")]
            filters = sum(len(rtnl.list_attached(netlink, each.index, "ingress")) for each in devices)
        for each in devices:
            inside_here("tc", "qdisc", "delete", "dev", each.name, "clsact")
        return links + filters + (2 if filters else 0)  # the pods' egress

    async def main() -> None:
        async with pods.node() as node:
            with pods.traffic(may_lose=True) as traffic:
                before, revision = counted("drift", kind="program"), node.service.revision
                hit = detach_all()
                assert node.service.compare is not None
                await node.service.compare()  # as when somebody asks for health
                assert counted("drift", kind="program") == before + hit
                check = told(node, "programs")
                assert not check.ok and f"{hit} not as it was left" in check.detail and "connect4: " in check.detail
                node._heard = {"resources": 1 << 40}
                await node.realised()
                assert node.service.revision == revision, "told as realised while some were not judged"
                monkeypatch.setattr("services.dataplane.kernel.hooks.TOLD_SECONDS", 0.0)
                await node.looks.run()
                assert told(node, "programs").ok and node.hooks.state == (True, mechanism)
                assert node.service.revision == {"resources": 1 << 40}
                attached = [bpf.pinned_link(place.pins / "links" / each) for each in SOCKET_PROGRAMS]
                assert all(each is not None and each.target for each in attached)
                traffic.goes_on()

    in_namespace(place.namespace, main)
