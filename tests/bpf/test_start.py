"""A node's process as it starts, in every mode, on the real kernel: devices, programs, and a pod that has a way."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest

from bus import subjects
from bus.labels import canonical_labels
from bus.messages.identity import Identity
from bus.messages.ipam import Block
from bus.messages.resources import Namespace, Pod
from bus.messages.resources import Node as NodeResource
from bus.service import BadSettings, Service, Settings
from bus.testing import Hub
from services.dataplane.__main__ import start
from services.dataplane.fallback.handover import Fallback
from services.dataplane.keep.uplinks import DeviceChanged
from services.dataplane.kernel.links import LinkError, Links
from services.dataplane.load.datapath import Known
from services.dataplane.node import Node
from services.dataplane.parts.counters import counted
from services.dataplane.pods import cni
from services.dataplane.pods.addresses import Attachment
from services.dataplane.pods.verbs import NodePods
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.layouts import DeviceEntry, DeviceKey
from services.dataplane.store.journal import Journal
from tests.bpf.spaces import in_namespace, inside, ip, opened

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loads programs")

ADDRESSES = {4: "192.0.2.1", 6: "2001:db8::1"}
ROUTERS = {4: "10.9.0.1", 6: "fd00:9::1"}
PATIENCE_SECONDS = 20.0
CGROUPS = Path("/sys/fs/cgroup/unified") if Path("/sys/fs/cgroup/unified").exists() else Path("/sys/fs/cgroup")


class Place:
    """A node's namespace with a device, its pins and its disk, over several starts."""

    def __init__(self, namespace: str, folder: Path) -> None:
        self.namespace = namespace
        name = f"plexus-test-start-{os.getpid()}"
        self.folder, self.pins, self.cgroup = folder, Path("/sys/fs/bpf") / name, CGROUPS / name
        self.hub = Hub()
        self.fallback: Fallback | None = None  # as the last start went
        self.known = Known()  # what a life hands on to the next, as in one process

    @asynccontextmanager
    async def running(self, **given: str) -> AsyncIterator[Node]:
        own = {"NODE": "here", "DEVICES": "eth+", "STATE_DIR": self.folder, "PIN_DIR": self.pins, "CGROUP": self.cgroup}
        settings = NodeSettings.of({f"PLEXUS_{name}": str(value) for name, value in {**own, **given}.items()})
        async with AsyncExitStack() as stack:
            journal = Journal.open(self.folder / "endpoints.journal", durable=False)
            stack.push_async_callback(journal.close)
            links = stack.enter_context(closing(Links()))
            service = Service("dataplane", Settings(instance="here"), self.hub.bus())
            node, migration, self.fallback = await start(
                service, settings, links, journal, stack, self.known, filled=False
            )
            await node.restore()
            if migration is not None:
                migration.finish()
            hearing = asyncio.create_task(node.hear())
            try:
                yield node
            finally:
                hearing.cancel()
                await asyncio.wait([hearing])

    def populate(self) -> None:
        self.hub.put(subjects.NODE.of("here"), NodeResource(name="here", addresses=list(ADDRESSES.values())))
        for cidr in ("10.9.0.0/24", "fd00:9::/120"):
            self.hub.put(subjects.BLOCK.of(cidr), Block(cidr=cidr, node="here"))
        namespace, pod = Namespace(name="default"), Pod(namespace="default", name="web", uid="u", node="here")
        self.hub.put(subjects.NAMESPACE.of("default"), namespace)
        self.hub.put(subjects.POD.of("default", "web"), pod)
        identity = Identity(number=1000, labels=canonical_labels(pod, namespace))
        self.hub.put(subjects.IDENTITY.of("1000"), identity)


@pytest.fixture
def place(namespaces: Callable[[str], str], tmp_path: Path) -> Iterator[Place]:
    made = Place(namespaces("node"), tmp_path)
    ip("-n", made.namespace, "link", "add", "eth0", "type", "veth", "peer", "name", "wire")
    ip("-n", made.namespace, "address", "add", "192.0.2.1/24", "dev", "eth0")
    ip("-n", made.namespace, "address", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    for name in ("eth0", "wire"):
        ip("-n", made.namespace, "link", "set", name, "up")
    made.cgroup.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made.pins, ignore_errors=True)
        made.cgroup.rmdir()


def devices(place: Place) -> dict[str, int]:
    """Tunnel devices and their MTU."""
    found = json.loads(inside(place.namespace, "ip", "-j", "link").stdout)
    return {each["ifname"]: each["mtu"] for each in found if each["ifname"].startswith("plexus")}


def has_geneve(place: Place) -> bool:
    made = inside(place.namespace, "ip", "link", "add", "probe", "type", "geneve", "external")
    inside(place.namespace, "ip", "link", "delete", "probe")
    return made.returncode == 0


def test_a_start_with_other_settings_leaves_no_device_of_the_settings_before(place: Place) -> None:
    async def main() -> None:
        async with place.running() as node:
            assert (node.mtu_bytes, devices(place)) == (1450, {"plexus_vxlan": 1450})
        if has_geneve(place):
            async with place.running(TUNNEL_PROTOCOL="geneve"):
                assert devices(place) == {"plexus_geneve": 1450}
        else:
            with pytest.raises(LinkError, match="no geneve devices"):
                async with place.running(TUNNEL_PROTOCOL="geneve"):
                    pass
            assert devices(place) == {"plexus_vxlan": 1450}  # what works goes on
        async with place.running(IPV4_ENABLED="false", IPV6_ENABLED="true", TUNNEL_PORT="8473") as node:
            assert (node.mtu_bytes, devices(place)) == (1430, {"plexus_vxlan": 1430})
        async with place.running(ROUTING_MODE="native", IPV6_ENABLED="true") as node:
            assert (node.mtu_bytes, devices(place)) == (1500, {})
        ip("-n", place.namespace, "link", "set", "eth0", "mtu", "1300")
        with pytest.raises(BadSettings, match="1280"):
            async with place.running(IPV6_ENABLED="true"):
                pass

    in_namespace(place.namespace, main)


@pytest.mark.parametrize(
    ("families", "given"),
    [
        ((4,), {}),
        ((4, 6), {"IPV6_ENABLED": "true"}),
        ((6,), {"IPV4_ENABLED": "false", "IPV6_ENABLED": "true"}),
        ((4, 6), {"IPV6_ENABLED": "true", "ROUTING_MODE": "native"}),
        ((4, 6), {"IPV6_ENABLED": "true", "FORCE_FALLBACK": "true"}),
    ],
)
def test_a_pod_reaches_its_node_and_the_node_the_pod_in_every_family(
    place: Place, namespaces: Callable[[str], str], families: tuple[int, ...], given: dict[str, str]
) -> None:
    pod = namespaces("pod")
    place.populate()

    async def main() -> None:
        async with place.running(**given) as node:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not (node.service.is_ready and len(node.routes.routers) == len(families)):
                    await asyncio.sleep(0.01)
            with opened(pod) as fd:
                ask = cni.Add(Attachment("c1", "eth0"), "plexus", "default", "web", "u", "/x", fd, "1.1.0")
                made = await NodePods(node).add(ask)
            assert [each.gateway for each in made.ips] == [ROUTERS[version] for version in families]
            for version, each in zip(families, made.ips, strict=True):
                for target in (ROUTERS[version], ADDRESSES[version]):
                    told = await asyncio.to_thread(inside, pod, "ping", "-c1", "-W2", target)
                    assert told.returncode == 0, f"{each.address} to {target}: {told.stdout} {dropped(node)}"
                told = await asyncio.to_thread(inside, place.namespace, "ping", "-c1", "-W2", each.address)
                assert told.returncode == 0, f"node to {each.address}: {told.stdout} {dropped(node)}"

    in_namespace(place.namespace, main)


def test_devices_are_followed_as_they_come_and_go(place: Place) -> None:
    """By what the kernel tells: programs, the address that packets bear, reverse paths, neighbours' device."""
    place.populate()
    place.hub.put(subjects.NODE.of("there"), NodeResource(name="there", addresses=["198.51.100.2"]))
    place.hub.put(subjects.BLOCK.of("10.9.1.0/24"), Block(cidr="10.9.1.0/24", node="there"))
    there = "-n", place.namespace

    def seen(node: Node) -> dict[str, DeviceEntry]:
        names = {each.index: each.name for each in node.uplinks.chosen}
        entries = ((DeviceKey.unpack(key).index, value) for key, value in node.maps["devices"].items())
        return {names.get(index, str(index)): DeviceEntry.unpack(value) for index, value in entries}

    def attached(name: str) -> set[str]:
        return {path.name for path in (place.pins / "links").iterdir() if path.name.startswith(f"{name}-")}

    async def until(claim: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not claim():
                await asyncio.sleep(0.01)

    async def main() -> None:
        given = {"IPV6_ENABLED": "true", "ROUTING_MODE": "native", "SERVICE_CIDR": "10.96.0.0/16"}
        async with place.running(**given) as node:
            following = asyncio.create_task(node.uplinks.run_for_ever())
            await until(lambda: node.is_whole)
            own = DeviceEntry("192.0.2.1", "2001:db8::1")
            assert seen(node) == {"eth0": own}, "no route leads to the only other node's pods"
            for command in (
                "link add eth1 type veth peer name wire1",
                "link set wire1 up",
                "link set eth1 up",
                "address add 198.51.100.1/24 dev eth1",
                "address add 2001:db8:51::1/64 dev eth1 nodad",
            ):
                ip(*there, *command.split())
            second = DeviceEntry("198.51.100.1", "2001:db8:51::1", has_pods=True)
            await until(lambda: seen(node).get("eth1") == second)
            assert not seen(node)["eth0"].has_pods, "the only other node is not there"
            assert attached("eth1") == {"eth1-ingress", "eth1-egress"}
            filter_file = Path("/proc/sys/net/ipv4/conf/eth1/rp_filter")
            assert filter_file.read_text().strip() == "0"
            await node.looks.run()
            assert node.routes.made["10.9.1.0/24"].device == "eth1"
            ip(*there, "link", "set", "eth1", "name", "eth7")
            await until(lambda: attached("eth7") and not attached("eth1"))
            assert seen(node)["eth7"] == second
            ip(*there, "address", "add", "198.51.100.130/25", "dev", "eth7")
            await until(lambda: "198.51.100.130" in node.uplinks.chosen[-1].addresses)
            assert seen(node)["eth7"] == second, "what it has borne, it bears"
            ip(*there, "address", "delete", "198.51.100.1/24", "dev", "eth7")
            await until(lambda: seen(node)["eth7"].address == "198.51.100.130")
            ip(*there, "link", "delete", "eth7")
            await until(lambda: set(seen(node)) == {"eth0"} and not attached("eth7"))
            assert not following.done()
            ip(*there, "address", "delete", "192.0.2.1/24", "dev", "eth0")
            await until(lambda: "no more" in node.uplinks.problem)
            assert seen(node)["eth0"].address6 == "2001:db8::1", "and all else goes on"
            ip(*there, "address", "add", "192.0.2.7/24", "dev", "eth0")
            with pytest.raises(DeviceChanged, match=r"192\.0\.2\.1"):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await following

    in_namespace(place.namespace, main)


def test_a_datapath_that_is_begun_anew_has_the_devices_for_which_it_was(place: Place) -> None:
    """One that is taken for the node's address alone, which a start has not heard yet."""
    place.populate()
    addresses = ["192.0.2.1", "198.51.100.1"]
    place.hub.put(subjects.NODE.of("here"), NodeResource(name="here", addresses=addresses))
    for command in (
        "route add default via 192.0.2.254",
        "link add eth1 type veth peer name wire1",
        "link set eth1 mtu 1400",
        "link set wire1 up",
        "link set eth1 up",
        "address add 198.51.100.1/24 dev eth1",
    ):
        ip("-n", place.namespace, *command.split())

    async def life(names: list[str], mtu_bytes: int, then: Callable[[], object] = lambda: None) -> None:
        async with place.running(DEVICES="", ROUTING_MODE="native") as node:
            assert ([each.name for each in node.uplinks.chosen], node.mtu_bytes) == (names, mtu_bytes)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not node.is_whole:
                    await asyncio.sleep(0.01)
            await node.looks.run()
            assert node.uplinks.problem == ""
            then()
            await node.uplinks.follow()

    async def main() -> None:
        with pytest.raises(DeviceChanged, match="1400 bytes fit through every device, and pods have 1500"):
            await life(["eth0"], 1500)
        await life(["eth0", "eth1"], 1400)
        with pytest.raises(DeviceChanged, match="eth0 is gone: beginning anew with eth1"):
            await life(["eth0", "eth1"], 1400, lambda: ip("-n", place.namespace, "link", "delete", "eth0"))
        await life(["eth1"], 1400)

    in_namespace(place.namespace, main)


def test_where_no_device_is_meant_a_start_says_which_there_are(place: Place) -> None:
    async def main() -> None:
        for asked in ("bond+", ""):
            with pytest.raises(LinkError, match=r"eth0 \(.*wire \("):
                async with place.running(DEVICES=asked):
                    pass
        ip("-n", place.namespace, "route", "add", "default", "via", "192.0.2.254")
        async with place.running(DEVICES="") as node:
            assert [each.name for each in node.uplinks.chosen] == ["eth0"]

    in_namespace(place.namespace, main)


def test_a_bond_is_taken_and_its_ports_are_not(place: Place) -> None:
    async def main() -> None:
        there = "-n", place.namespace
        for command in (
            "link add bridge0 type bridge",
            "link add port0 type veth peer name port1",
            "link set port0 master bridge0",
            "link set bridge0 up",
            "address add 198.51.100.1/24 dev bridge0",
        ):
            ip(*there, *command.split())
        async with place.running(DEVICES="bridge0 port+") as node:
            assert [each.name for each in node.uplinks.chosen] == ["bridge0", "port1"]

    in_namespace(place.namespace, main)


def dropped(node: Node) -> dict[tuple[int, int], tuple[int, int]]:
    """What was counted, for the words of a failure: (reason, direction) -> (packets, bytes)."""
    return counted(node.maps["counters"])
