"""Links, routes and programs, made in real network namespaces; and CNI from the executable down to the packet."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.dataplane.kernel import bpf, netlink, rtnl
from services.dataplane.kernel.links import (
    DeviceInfo,
    LinkError,
    Links,
    NodeRoute,
    TcProgram,
    host_link_name,
    link_mac,
)
from services.dataplane.pods import cni, cni_server
from services.dataplane.shapes.attach import Direction
from tests.bpf.spaces import GATEWAY, NAMESPACES, device_of, in_namespace, inside, ips, links, opened, program, reaches

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

EXECUTABLE = Path(__file__).parents[2] / "build" / "plexus-cni"


def test_a_pod_has_its_address_its_routes_and_a_way_to_the_node_and_back(namespaces: Callable[[str], str]) -> None:
    node, pod = namespaces("node"), namespaces("pod")

    async def main() -> None:
        with links() as made, opened(pod) as fd:
            await made.ensure_sysctls()
            await made.ensure_router_address(GATEWAY)
            link = await made.create_pod_link(fd, "c1", "eth0", ips("10.9.0.2"), 1400)
            assert link.host_name == host_link_name("c1", "eth0")
            assert (link.host_mac, link.pod_mac) == (link_mac("c1", "eth0", "host"), link_mac("c1", "eth0", "pod"))
            assert await made.check_pod_link(fd, "c1", "eth0", ips("10.9.0.2")) == ()
            seen = await made.list_pod_links()
            assert [(one.name, one.index, one.peer_index, one.mtu_bytes, one.queue) for one in seen] == [
                (link.host_name, link.host_index, link.pod_index, 1400, "noqueue")
            ]
            rate = ("tbf", "rate", "10mbit", "burst", "100kb", "latency", "25ms")
            assert inside(node, "tc", "qdisc", "add", "dev", link.host_name, "root", *rate).returncode == 0
            assert [one.queue for one in await made.list_pod_links()] == ["tbf"]

    in_namespace(node, main)
    inner = json.loads(inside(pod, "ip", "-j", "-d", "address", "show", "eth0").stdout)[0]
    assert (inner["address"], inner["mtu"]) == (link_mac("c1", "eth0", "pod"), 1400)
    assert [found["local"] for found in inner["addr_info"] if found["family"] == "inet"] == ["10.9.0.2"]
    assert "PERMANENT" in inside(pod, "ip", "neigh", "show", GATEWAY).stdout
    assert "UP" in inside(pod, "ip", "link", "show", "lo").stdout
    host = f"/proc/sys/net/ipv4/conf/{host_link_name('c1', 'eth0')}"
    assert inside(node, "cat", f"{host}/rp_filter", f"{host}/forwarding").stdout.split() == ["0", "1"]
    assert reaches(pod, GATEWAY)
    assert reaches(node, "10.9.0.2")


def test_two_pods_reach_each_other_by_plain_routing(namespaces: Callable[[str], str]) -> None:
    node, one, other = namespaces("node"), namespaces("one"), namespaces("other")

    async def main() -> None:
        with links() as made, opened(one) as first, opened(other) as second:
            await made.ensure_sysctls()
            await made.ensure_router_address(GATEWAY)
            await made.create_pod_link(first, "c1", "eth0", ips("10.9.0.2"), 1500)
            await made.create_pod_link(second, "c2", "eth0", ips("10.9.0.3"), 1500)

    in_namespace(node, main)
    assert reaches(one, "10.9.0.3")


def test_asking_again_mends_and_returns_the_same(namespaces: Callable[[str], str]) -> None:
    node, pod = namespaces("node"), namespaces("pod")

    async def main() -> None:
        with links() as made, opened(pod) as fd:
            wish = (fd, "c1", "eth0", ips("10.9.0.2"), 1500)
            first = await made.create_pod_link(*wish)
            assert await made.create_pod_link(*wish) == first
            assert inside(pod, "ip", "address", "flush", "dev", "eth0").returncode == 0
            assert inside(node, "ip", "link", "set", first.host_name, "down").returncode == 0
            problems = await made.check_pod_link(fd, "c1", "eth0", ips("10.9.0.2"))
            assert "eth0 in the pod does not have 10.9.0.2" in problems
            assert f"the host side {first.host_name} is down" in problems
            assert f"the node has no route to 10.9.0.2 by {first.host_name}" in problems
            assert await made.create_pod_link(*wish) == first
            assert await made.check_pod_link(fd, "c1", "eth0", ips("10.9.0.2")) == ()

    in_namespace(node, main)


def test_a_link_whose_pod_is_another_now_is_made_anew(namespaces: Callable[[str], str]) -> None:
    node, old, new = namespaces("node"), namespaces("old"), namespaces("new")

    async def main() -> None:
        with links() as made, opened(old) as before, opened(new) as after:
            await made.create_pod_link(before, "c1", "eth0", ips("10.9.0.2"), 1500)
            await made.create_pod_link(after, "c1", "eth0", ips("10.9.0.2"), 1500)
            assert await made.check_pod_link(after, "c1", "eth0", ips("10.9.0.2")) == ()
            assert await made.check_pod_link(before, "c1", "eth0", ips("10.9.0.2")) == (
                "the pod has no interface eth0",
            )

    in_namespace(node, main)


def test_what_cannot_be_finished_leaves_nothing(namespaces: Callable[[str], str]) -> None:
    node, pod = namespaces("node"), namespaces("pod")
    inside(pod, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")

    async def main() -> None:
        with links() as made, opened(pod) as fd, open("/dev/null") as null:  # noqa: PTH123
            with pytest.raises(LinkError, match="eth0 already"):
                await made.create_pod_link(fd, "c1", "eth0", ips("10.9.0.2"), 1500)
            with pytest.raises(LinkError):
                await made.create_pod_link(null.fileno(), "c1", "eth0", ips("10.9.0.2"), 1500)
            bad = (TcProgram(null.fileno(), "ingress", "bad"),)
            with pytest.raises(LinkError, match="attach"):
                await made.create_pod_link(fd, "c2", "net1", ips("10.9.0.2"), 1500, bad)
            assert await made.list_pod_links() == []
            free = await made.create_pod_link(fd, "c3", "net2", ips("10.9.0.2"), 1500)
            assert free.host_name == host_link_name("c3", "net2")

    in_namespace(node, main)
    assert "net1" not in inside(pod, "ip", "link").stdout


def test_an_add_that_is_repeated_and_fails_leaves_the_pod_its_link(
    namespaces: Callable[[str], str],
) -> None:
    node, pod = namespaces("node"), namespaces("pod")

    async def main() -> None:
        with links() as made, opened(pod) as fd, open("/dev/null") as null:  # noqa: PTH123
            await made.ensure_router_address(GATEWAY)
            await made.create_pod_link(fd, "c1", "eth0", ips("10.9.0.2"), 1500)
            bad = (TcProgram(null.fileno(), "ingress", "bad"),)
            with pytest.raises(LinkError, match="attach"):
                await made.create_pod_link(fd, "c1", "eth0", ips("10.9.0.2"), 1500, bad)
            assert await made.check_pod_link(fd, "c1", "eth0", ips("10.9.0.2")) == ()
            assert reaches(pod, GATEWAY)

    in_namespace(node, main)


def test_a_route_that_is_refused_keeps_no_other_pods_from_being_put_back(
    namespaces: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, pod = namespaces("node"), namespaces("pod")
    set_route = rtnl.set_link_route

    def refuse_one(asking: netlink.Netlink, address: str, index: int, source: str = "") -> None:
        if address == "10.9.0.99":
            raise netlink.Refused(errno.ENOBUFS, "no buffers", "route")
        set_route(asking, address, index)

    async def main() -> None:
        with links() as made, opened(pod) as fd:
            link = await made.create_pod_link(fd, "c1", "eth0", ips("10.9.0.2"), 1500)
            inside(node, "ip", "route", "delete", "10.9.0.2")
            monkeypatch.setattr(rtnl, "set_link_route", refuse_one)
            with pytest.raises(LinkError, match="no buffers"):
                await made.mend_pod_routes({"10.9.0.99": link.host_index, "10.9.0.2": link.host_index})
            assert await made.check_pod_link(fd, "c1", "eth0", ips("10.9.0.2")) == ()

    in_namespace(node, main)


def test_removal_takes_both_sides_and_the_route_and_may_be_repeated(namespaces: Callable[[str], str]) -> None:
    node = namespaces("node")
    pods = [namespaces(f"pod{number}") for number in range(5)]

    async def main() -> None:
        with links() as made, contextlib.ExitStack() as stack:
            fds = [stack.enter_context(opened(pod)) for pod in pods]
            created = await asyncio.gather(
                *(
                    made.create_pod_link(fd, f"c{place}", "eth0", ips(f"10.9.0.{place + 2}"), 1500)
                    for place, fd in enumerate(fds)
                )
            )
            kept, *gone = created
            await asyncio.gather(*(made.delete_pod_link(link.host_name) for link in gone))
            assert [link.name for link in await made.list_pod_links()] == [kept.host_name]
            await made.delete_pod_link(gone[0].host_name)
            with pytest.raises(ValueError, match="lo"):
                await made.delete_pod_link("lo")

    in_namespace(node, main)
    assert "eth0" not in inside(pods[1], "ip", "link").stdout
    assert "10.9.0.3" not in inside(node, "ip", "route").stdout


def test_programs_are_there_before_the_first_packet(namespaces: Callable[[str], str]) -> None:
    """What happens to them later is in test_hooks.py."""
    node, pod = namespaces("node"), namespaces("pod")

    async def main() -> None:
        with links() as made, opened(pod) as fd, program(2) as drop, netlink.Netlink() as asking:
            await made.ensure_router_address(GATEWAY)
            programs = (TcProgram(drop, "ingress", "from pod"), TcProgram(drop, "egress", "to pod"))
            link = await made.create_pod_link(fd, "c1", "eth0", ips("10.9.0.2"), 1500, programs)
            assert not reaches(pod, GATEWAY)
            pairs: tuple[tuple[Direction, str], ...] = (("ingress", "from pod"), ("egress", "to pod"))
            for direction, name in pairs:
                [found] = rtnl.list_attached(asking, link.host_index, direction)
                assert (found.direction, found.name) == (direction, name)
                assert found.program_id == bpf.program_id(drop)
                assert len(found.tag) == 16
            await made.delete_pod_link(link.host_name)
            assert rtnl.list_attached(asking, link.host_index, "ingress") == []

    in_namespace(node, main)


def test_the_tunnel_device_is_made_once_and_one_of_other_making_is_replaced(namespaces: Callable[[str], str]) -> None:
    node = namespaces("node")

    async def main() -> None:
        with links() as made:
            first = await made.ensure_tunnel("plexus_vxlan", "vxlan", 8472, 1450)
            assert first.mtu_bytes == 1450
            again = await made.ensure_tunnel("plexus_vxlan", "vxlan", 8472, 1400)
            assert again == replace(first, mtu_bytes=1400)
            other = await made.ensure_tunnel("plexus_vxlan", "vxlan", 4789, 1400)
            assert other.index != first.index

    in_namespace(node, main)
    seen = json.loads(inside(node, "ip", "-j", "-d", "link", "show", "plexus_vxlan").stdout)[0]
    assert (seen["linkinfo"]["info_data"]["external"], seen["linkinfo"]["info_data"]["port"]) == (True, 4789)
    assert {"UP", "NOARP"} <= set(seen["flags"])


def test_a_tunnel_device_that_was_left_half_made_gets_no_address_of_the_kernels_making(
    namespaces: Callable[[str], str],
) -> None:
    node = namespaces("node")

    async def main() -> None:
        with links() as made, netlink.Netlink() as asking:
            rtnl.add_tunnel(asking, "plexus_vxlan", "vxlan", 8472, 1450)
            left = await device_of(made, "plexus_vxlan")
            assert (await made.ensure_tunnel("plexus_vxlan", "vxlan", 8472, 1450)).index == left.index

    in_namespace(node, main)
    seen = json.loads(inside(node, "ip", "-j", "address", "show", "plexus_vxlan").stdout)[0]
    assert "UP" in seen["flags"]
    assert seen["addr_info"] == []


def test_the_tunnel_device_goes_and_a_device_that_is_none_of_ours_stays(namespaces: Callable[[str], str]) -> None:
    node = namespaces("node")
    inside(node, "ip", "link", "add", "other", "type", "veth", "peer", "name", "its_peer")

    async def main() -> None:
        with links() as made:
            await made.ensure_tunnel("plexus_vxlan", "vxlan", 8472, 1450)
            for _ in range(2):
                await made.delete_tunnel("plexus_vxlan")
            await made.delete_tunnel("other")

    in_namespace(node, main)
    names = {each["ifname"] for each in json.loads(inside(node, "ip", "-j", "link", "show").stdout)}
    assert "plexus_vxlan" not in names
    assert "other" in names


def test_routes_to_other_nodes_are_listed_as_they_were_asked_and_only_ours(namespaces: Callable[[str], str]) -> None:
    node = namespaces("node")
    inside(node, "ip", "link", "add", "out", "type", "veth", "peer", "name", "wire")
    inside(node, "ip", "address", "add", "192.0.2.1/24", "dev", "out")
    inside(node, "ip", "link", "set", "out", "up")
    inside(node, "ip", "route", "add", "10.77.0.0/16", "via", "192.0.2.9")

    async def main() -> None:
        with links() as made:
            info = await device_of(made, "out")
            assert (info.address, info.mtu_bytes) == ("192.0.2.1", 1500)
            await made.ensure_tunnel("plexus_vxlan", "vxlan", 8472, 1450)
            await made.ensure_router_address("10.9.0.1")
            native = NodeRoute("10.9.1.0/24", "192.0.2.2", "out", source="10.9.0.1")
            tunnel = NodeRoute("10.9.2.0/24", "192.0.2.3", "plexus_vxlan", tunnel_id=6, mtu_bytes=1400)
            for route in (native, tunnel, native, tunnel):
                await made.ensure_node_route(route)
            assert await made.list_node_routes() == [native, tunnel]
            moved = replace(tunnel, node_address="192.0.2.4")
            await made.ensure_node_route(moved)
            turned = NodeRoute("10.9.1.0/24", "192.0.2.2", "plexus_vxlan", tunnel_id=6)
            await made.ensure_node_route(turned)
            assert await made.list_node_routes() == [turned, moved]
            for cidr in ("10.9.1.0/24", "10.9.2.0/24", "10.9.2.0/24", "10.77.0.0/16"):
                await made.delete_node_route(cidr)
            assert await made.list_node_routes() == []
            with pytest.raises(LinkError, match="routing mode"):
                await made.ensure_node_route(NodeRoute("10.9.3.0/24", "203.0.113.1", "out"))
            with pytest.raises(LinkError, match="no device nowhere"):
                await made.ensure_node_route(NodeRoute("10.9.3.0/24", "192.0.2.2", "nowhere"))

    in_namespace(node, main)
    assert "10.77.0.0/16" in inside(node, "ip", "route").stdout


def test_a_new_router_address_takes_the_place_of_the_old_and_others_stay(namespaces: Callable[[str], str]) -> None:
    node = namespaces("node")
    inside(node, "ip", "address", "add", "198.51.100.7/32", "dev", "lo")

    async def main() -> None:
        with links() as made:
            for address in ("10.9.0.1", "10.9.0.1", "10.9.1.1"):
                await made.ensure_router_address(address)

    in_namespace(node, main)
    seen = json.loads(inside(node, "ip", "-4", "-j", "address", "show", "lo").stdout)[0]["addr_info"]
    assert {found["local"] for found in seen} >= {"198.51.100.7", "10.9.1.1"}
    assert "10.9.0.1" not in {found["local"] for found in seen}


def test_a_refusal_says_what_was_asked_and_carries_the_kernels_words(namespaces: Callable[[str], str]) -> None:
    node = namespaces("node")

    with opened(node) as fd, netlink.open_within(fd) as opened_there:
        with pytest.raises(netlink.Refused, match=r"^bring up link 77: .+ \(ENODEV\)$") as caught:
            rtnl.set_up(opened_there, 77)
        assert caught.value.errno == errno.ENODEV


# CNI, from the executable down


class NodePods:
    """Pods as the dataplane does them, without policy: links and addresses only."""

    def __init__(self, made: Links) -> None:
        self._links = made
        self._addresses: dict[str, str] = {}

    async def add(self, request: cni.Add) -> cni.PodInterface:
        container, ifname = request.attachment
        address = self._addresses.setdefault(container, f"10.9.0.{len(self._addresses) + 2}")
        link = await self._links.create_pod_link(request.netns_fd, container, ifname, ips(address), 1500)
        return cni.PodInterface(link.host_name, link.host_mac, link.pod_mac, ips(address), 1500)

    async def delete(self, request: cni.Delete) -> None:
        await self._links.delete_pod_link(host_link_name(*request.attachment))

    async def check(self, request: cni.Check) -> tuple[str, ...]:
        container, ifname = request.attachment
        address = self._addresses.get(container, "")
        return await self._links.check_pod_link(request.netns_fd, container, ifname, ips(address))

    async def collect(self, request: cni.Collect) -> None:
        for link in await self._links.list_pod_links():
            if link.name not in {host_link_name(*valid) for valid in request.valid}:
                await self._links.delete_pod_link(link.name)

    async def status(self) -> None: ...


async def run_cni(path: Path, verb: str, container: str, namespace: str, **more: Any) -> tuple[int, Any]:
    configuration = {"cniVersion": "1.1.0", "name": "plexus", "type": "plexus-cni", **more}
    process = await asyncio.create_subprocess_exec(
        EXECUTABLE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": str(NAMESPACES / namespace),
            "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
            "PLEXUS_CNI_SOCKET": str(path),
        },
    )
    output, _ = await process.communicate(json.dumps(configuration).encode())
    assert process.returncode is not None
    return process.returncode, json.loads(output) if output else None


@pytest.fixture
def executable() -> None:
    subprocess.run(["make", "-s", "-C", str(EXECUTABLE.parents[1] / "cni")], check=True)


@pytest.mark.usefixtures("executable")
def test_the_executable_adds_checks_collects_and_removes(namespaces: Callable[[str], str], tmp_path: Path) -> None:
    node, one, other = namespaces("node"), namespaces("one"), namespaces("other")
    path = tmp_path / "cni.sock"

    async def main() -> None:
        with links() as made:
            await made.ensure_sysctls()
            await made.ensure_router_address(GATEWAY)
            server = asyncio.create_task(cni_server.Server(path, NodePods(made)).run())
            await asyncio.sleep(0.05)
            added = await run_cni(path, "ADD", "c1", one)
            assert added[0] == 0
            assert added[1]["ips"] == [{"address": "10.9.0.2/32", "gateway": GATEWAY, "interface": 1}]
            assert await run_cni(path, "ADD", "c1", one) == added
            assert (await run_cni(path, "ADD", "c2", other))[0] == 0
            assert reaches(one, "10.9.0.3")
            assert await run_cni(path, "CHECK", "c1", one, prevResult=added[1]) == (0, None)
            inside(one, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:77")
            _, told = await run_cni(path, "CHECK", "c1", one, prevResult=added[1])
            assert "eth0 in the pod has the MAC address 02:00:00:00:00:77" in told["msg"]
            inside(one, "ip", "link", "set", "eth0", "address", link_mac("c1", "eth0", "pod"))
            assert await run_cni(path, "CHECK", "c1", one, prevResult=added[1]) == (0, None)
            inside(one, "ip", "link", "set", "eth0", "down")
            status, told = await run_cni(path, "CHECK", "c1", one, prevResult=added[1])
            assert (status, told["code"], "down" in told["msg"]) == (1, cni.CHECK_FAILED, True)
            assert await run_cni(path, "STATUS", "", "") == (0, None)
            valid = [{"containerID": "c2", "ifname": "eth0"}]
            assert await run_cni(path, "GC", "", "", **{"cni.dev/valid-attachments": valid}) == (0, None)
            assert [link.name for link in await made.list_pod_links()] == [host_link_name("c2", "eth0")]
            for _ in range(2):
                assert await run_cni(path, "DEL", "c2", "gone") == (0, None)
            assert await made.list_pod_links() == []
            status, told = await run_cni(path, "ADD", "c3", "gone")
            assert (status, told["code"]) == (1, cni.INVALID_ENVIRONMENT)
            server.cancel()
            await asyncio.wait([server])
            status, told = await run_cni(path, "ADD", "c1", one)
            assert (status, told["code"]) == (1, cni.TRY_AGAIN)
            assert "start it" in told["msg"]
            status, told = await run_cni(path, "STATUS", "", "")
            assert (status, told["code"]) == (1, cni.NOT_AVAILABLE)

    in_namespace(node, main)


@pytest.mark.usefixtures("executable")
def test_twenty_pods_at_once_are_added_whole(namespaces: Callable[[str], str], tmp_path: Path) -> None:
    node = namespaces("node")
    pods = [namespaces(f"pod{number}") for number in range(20)]
    path = tmp_path / "cni.sock"

    async def main() -> DeviceInfo:
        with links() as made:
            server = asyncio.create_task(cni_server.Server(path, NodePods(made)).run())
            await asyncio.sleep(0.05)
            answers = await asyncio.gather(*(run_cni(path, "ADD", f"c{place}", pod) for place, pod in enumerate(pods)))
            assert [status for status, _ in answers] == [0] * 20
            assert len({answer["ips"][0]["address"] for _, answer in answers}) == 20
            asked = ((f"c{place}", pod, answers[place][1]) for place, pod in enumerate(pods))
            checks = await asyncio.gather(*(run_cni(path, "CHECK", *names, prevResult=told) for *names, told in asked))
            assert checks == [(0, None)] * 20
            server.cancel()
            await asyncio.wait([server])
            return await device_of(made, "lo")

    assert in_namespace(node, main).name == "lo"
