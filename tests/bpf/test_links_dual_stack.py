"""Both families on one node: what a pod gets, how nodes are reached, and the tunnels between them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from services.dataplane.kernel import rtnl
from services.dataplane.kernel.links import LinkError, NodeRoute, host_link_name, link_local, link_mac
from tests.bpf.spaces import GATEWAY, GATEWAY6, device_of, in_namespace, inside, ip, ips, links, opened, reaches

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

BOTH = ("10.9.0.2", "fd00:9::2")


@pytest.mark.parametrize("addresses", [BOTH, BOTH[1:]])
def test_a_pod_has_every_address_with_routes_and_neighbours_and_nothing_that_nobody_gave_it(
    namespaces: Callable[[str], str], addresses: tuple[str, ...]
) -> None:
    node, pod, other = namespaces("node"), namespaces("pod"), namespaces("other")

    async def main() -> None:
        with links() as made, opened(pod) as fd, opened(other) as second:
            await made.ensure_sysctls((), (4, 6))
            await made.ensure_router_address(GATEWAY)
            await made.ensure_router_address(GATEWAY6)
            wish = (fd, "c1", "eth0", ips(*addresses), 1400)
            first = await made.create_pod_link(*wish)
            assert await made.check_pod_link(*wish[:4]) == ()
            assert await made.create_pod_link(*wish) == first
            await made.create_pod_link(second, "c2", "eth0", ips("fd00:9::3"), 1400)
            assert reaches(pod, "fd00:9::3")
            assert inside(pod, "ip", "-6", "address", "flush", "dev", "eth0").returncode == 0
            problems = await made.check_pod_link(*wish[:4])
            assert "eth0 in the pod does not have fd00:9::2" in problems
            await made.create_pod_link(*wish)
            assert await made.check_pod_link(*wish[:4]) == ()

    in_namespace(node, main)
    found = json.loads(inside(pod, "ip", "-j", "address", "show", "eth0").stdout)[0]["addr_info"]
    local = link_local(link_mac("c1", "eth0", "pod"))
    assert [(each["local"], each["scope"], each["prefixlen"]) for each in found if ":" not in each["local"]] == [
        (each, "global", 32) for each in addresses if ":" not in each
    ]
    assert {(each["local"], each["scope"], each["prefixlen"]) for each in found if ":" in each["local"]} == {
        (BOTH[1], "global", 128),
        (local, "link", 64),
    }
    assert "fe80::/64" in inside(pod, "ip", "-6", "route", "show", "dev", "eth0").stdout
    assert reaches(pod, f"{local}%eth0")
    assert not any(each.get("tentative") for each in found)
    assert f"{GATEWAY6} lladdr {link_mac('c1', 'eth0', 'host')} PERMANENT" in inside(
        pod, "ip", "-6", "neigh", "show", "dev", "eth0"
    ).stdout.replace("router ", "")
    host = host_link_name("c1", "eth0")
    assert f"fd00:9::2 lladdr {link_mac('c1', 'eth0', 'pod')} PERMANENT" in inside(
        node, "ip", "-6", "neigh", "show", "dev", host
    ).stdout.replace("router ", "")
    assert inside(node, "ip", "-6", "address", "show", "dev", host).stdout == ""
    conf = "/proc/sys/net/ipv6/conf/eth0"
    assert inside(pod, "cat", f"{conf}/accept_ra", f"{conf}/disable_ipv6").stdout.split() == ["0", "0"]
    assert reaches(pod, GATEWAY6)
    assert reaches(node, "fd00:9::2")
    assert reaches(pod, GATEWAY) == (addresses == BOTH)


def test_a_runtime_that_switched_ipv6_off_in_the_pod_is_overruled(namespaces: Callable[[str], str]) -> None:
    node, pod = namespaces("node"), namespaces("pod")
    for scope in ("all", "default"):
        inside(pod, "sysctl", "-w", f"net.ipv6.conf.{scope}.disable_ipv6=1")

    async def main() -> None:
        with links() as made, opened(pod) as fd:
            await made.create_pod_link(fd, "c1", "eth0", ips(*BOTH), 1500)
            assert await made.check_pod_link(fd, "c1", "eth0", ips(*BOTH)) == ()

    in_namespace(node, main)


def test_a_node_that_begins_to_forward_goes_on_listening_to_routers_only_where_it_did(
    namespaces: Callable[[str], str],
) -> None:
    node = namespaces("node")
    for name in ("hears", "deaf"):
        inside(node, "ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}_peer")
    conf = "/proc/sys/net/ipv6/conf"
    inside(
        node,
        "sh",
        "-c",
        f"echo 0 > {conf}/all/forwarding; echo 1 > {conf}/hears/accept_ra; echo 0 > {conf}/deaf/accept_ra",
    )

    async def main() -> None:
        with links() as made:
            for _ in range(2):
                await made.ensure_sysctls((), (6,))

    def seen() -> list[str]:
        return inside(
            node, "cat", *(f"{conf}/{name}" for name in ("all/forwarding", "hears/accept_ra", "deaf/accept_ra"))
        ).stdout.split()

    in_namespace(node, main)
    assert seen() == ["1", "2", "0"]
    inside(node, "sh", "-c", f"echo 1 > {conf}/hears/accept_ra")
    in_namespace(node, main)
    assert seen() == ["1", "1", "0"], "who forwards already has said what it wants"


def test_a_default_route_without_a_gateway_means_that_all_are_neighbours(namespaces: Callable[[str], str]) -> None:
    node = namespaces("node")
    for command in (
        "link add out type veth peer name wire",
        "link set out up",
        "link set wire up",
        "address add 192.0.2.1/32 dev out",
        "address add 169.254.3.1/16 dev out",
        "address add 2001:db8::1/64 dev out nodad",
        "route add default dev out metric 7",
        "-6 route add default via 2001:db8::ff",
    ):
        inside(node, "ip", *command.split())

    async def main() -> None:
        with links() as made:
            info = await device_of(made, "out")
            assert set(info.networks) == {"0.0.0.0/0", "2001:db8::/64"}
            assert info.metric == 7

    in_namespace(node, main)


def test_routes_to_other_nodes_of_both_families_over_both_underlays_are_listed_as_asked(
    namespaces: Callable[[str], str],
) -> None:
    node = namespaces("node")
    inside(node, "ip", "link", "add", "out", "type", "veth", "peer", "name", "wire")
    for address in ("192.0.2.1/24", "2001:db8::1/64"):
        inside(node, "ip", "address", "add", address, "dev", "out", *(["nodad"] if ":" in address else []))
    for name in ("out", "wire"):
        inside(node, "ip", "link", "set", name, "up")
    inside(node, "ip", "-6", "route", "add", "default", "via", "2001:db8::ff")

    async def main() -> None:
        with links() as made:
            info = await device_of(made, "out")
            assert (info.address, info.address6) == ("192.0.2.1", "2001:db8::1")
            assert (info.own(4), info.own(6)) == ("192.0.2.1", "2001:db8::1")
            assert set(info.networks) == {"192.0.2.0/24", "2001:db8::/64"}
            await made.ensure_tunnel("plexus_vxlan", "vxlan", 8472, 1430)
            await made.ensure_router_address("10.9.0.1")
            await made.ensure_router_address("fd00:9::1")
            routes = [
                NodeRoute("10.9.1.0/24", "2001:db8::2", "plexus_vxlan", tunnel_id=6, mtu_bytes=1430, source="10.9.0.1"),
                NodeRoute(
                    "fd00:9:1::/120", "192.0.2.2", "plexus_vxlan", tunnel_id=6, mtu_bytes=1430, source="fd00:9::1"
                ),
                NodeRoute("fd00:9:2::/120", "2001:db8::2", "plexus_vxlan", tunnel_id=6),
                NodeRoute("fd00:9:3::/120", "2001:db8::3", "out", source="fd00:9::1"),
            ]
            for route in (*routes, *routes):
                await made.ensure_node_route(route)
            assert await made.list_node_routes() == routes
            turned = NodeRoute("fd00:9:3::/120", "2001:db8::3", "plexus_vxlan", tunnel_id=6)
            await made.ensure_node_route(turned)
            assert await made.list_node_routes() == [*routes[:3], turned]
            for route in (*routes, routes[0]):
                await made.delete_node_route(route.cidr)
            assert await made.list_node_routes() == []
            with pytest.raises(LinkError, match="routing mode"):
                await made.ensure_node_route(NodeRoute("fd00:9:3::/120", "2001:db8:1::1", "out"))

    in_namespace(node, main)
    assert "default" in inside(node, "ip", "-6", "route").stdout
    assert inside(node, "ip", "-6", "address", "show", "dev", "plexus_vxlan").stdout == ""


def test_a_packet_takes_a_tunnel_over_ipv6_in_both_families(namespaces: Callable[[str], str]) -> None:
    """The kernel's own tunnel between two nodes, without programs: route, encapsulation and checksum are right."""
    nodes = [namespaces("one"), namespaces("two")]
    ip("-n", nodes[0], "link", "add", "out", "type", "veth", "peer", "name", "out", "netns", nodes[1])
    for place, node in enumerate(nodes):
        ip("-n", node, "address", "add", f"2001:db8::{place + 1}/64", "dev", "out", "nodad")
        ip("-n", node, "link", "set", "out", "up")
    for place, node in enumerate(nodes):
        here, there = place + 1, 2 - place

        async def main(here: int = here, there: int = there) -> None:
            with links() as made:
                await made.ensure_tunnel("plexus_vxlan", "vxlan", 8472, 1430)
                for router in (f"10.9.{here}.1", f"fd00:9:{here}::1"):
                    await made.ensure_router_address(router)
                for cidr, source in (
                    (f"10.9.{there}.0/24", f"10.9.{here}.1"),
                    (f"fd00:9:{there}::/120", f"fd00:9:{here}::1"),
                ):
                    route = NodeRoute(cidr, f"2001:db8::{there}", "plexus_vxlan", tunnel_id=6, source=source)
                    await made.ensure_node_route(route)

        in_namespace(node, main)
        # No program says here which device the frame is for: the neighbours do.
        ip("-n", node, "link", "set", "plexus_vxlan", "address", f"02:00:00:00:00:0{here}")
        for address in (f"10.9.{there}.1", f"fd00:9:{there}::1"):
            mac = f"02:00:00:00:00:0{there}"
            ip("-n", node, "neigh", "add", address, "lladdr", mac, "dev", "plexus_vxlan", "nud", "permanent")
    for address in ("10.9.2.1", "fd00:9:2::1"):  # the underlay's own addresses are under test for up to two seconds
        assert inside(nodes[0], "ping", "-c5", "-i.5", "-W1", address).returncode == 0


def test_a_kernel_without_geneve_says_so_and_what_to_do_and_the_other_tunnel_stays(
    namespaces: Callable[[str], str],
) -> None:
    node = namespaces("node")
    if inside(node, "ip", "link", "add", "g", "type", "geneve", "external").returncode == 0:
        pytest.skip("this kernel has Geneve devices")

    async def main() -> None:
        with links() as made:
            kept = await made.ensure_tunnel("plexus_vxlan", "vxlan", 8472, 1450)
            with pytest.raises(LinkError, match=r"no geneve devices \(CONFIG_GENEVE\).*tunnelProtocol to vxlan"):
                await made.ensure_tunnel("plexus_geneve", "geneve", 8472, 1450, others=["plexus_vxlan"])
            assert (await device_of(made, "plexus_vxlan")).index == kept.index

    in_namespace(node, main)


def test_the_request_for_a_geneve_device_bears_what_the_kernel_reports_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this kernel cannot make is at least written and read alike."""
    asked: list[Any] = []

    class Recorder:
        def ask(self, says: str, kind: int, flags: int, request: Any, accept: tuple[int, ...] = ()) -> list[Any]:
            request.encode()
            seen = type(request)(bytes(request.data))
            seen.decode()
            asked.append(seen)
            return [seen]

    recorder: Any = Recorder()
    rtnl.add_tunnel(recorder, "plexus_geneve", "geneve", 6081, 1450)
    found = rtnl.find_link(recorder, "plexus_geneve")
    seen = rtnl._seen(asked[0])
    assert (seen.name, seen.kind, seen.tunnel_port, seen.mtu_bytes) == ("plexus_geneve", "geneve", 6081, 1450)
    assert found is not None and found.tunnel_port == 0, "a look-up bears no port"


def test_the_node_speaks_to_a_pod_from_the_address_that_it_is_known_by(namespaces: Callable[[str], str]) -> None:
    """Not from its pods' gateway, which the kernel would take; and from that, when it has no such address."""
    node, pod = namespaces("node"), namespaces("pod")
    known = {"10.9.0.2": ("192.0.2.1", GATEWAY), "fd00:9::2": ("2001:db8::1", GATEWAY6)}

    def source(address: str) -> str:
        return str(json.loads(inside(node, "ip", "-j", "route", "get", address).stdout)[0]["prefsrc"])

    async def main() -> None:
        with links() as made, opened(pod) as fd:
            await made.ensure_sysctls((), (4, 6))
            await made.ensure_router_address(GATEWAY)
            await made.ensure_router_address(GATEWAY6)
            made.speak_to_pods_from(own for own, _ in known.values())
            wish = (fd, "c1", "eth0", ips(*BOTH), 1400)
            first = await made.create_pod_link(*wish)
            assert {each: source(each) for each in BOTH} == {each: gateway for each, (_, gateway) in known.items()}
            for (own, _), options in zip(known.values(), ([], ["nodad"]), strict=True):
                assert inside(node, "ip", "address", "add", own, "dev", "lo", *options).returncode == 0
            await made.create_pod_link(*wish)
            assert {each: source(each) for each in BOTH} == {each: own for each, (own, _) in known.items()}
            assert inside(node, "ip", "address", "delete", "192.0.2.1", "dev", "lo").returncode == 0
            await made.mend_pod_routes(dict.fromkeys(BOTH, first.host_index))
            assert source("10.9.0.2") == GATEWAY

    in_namespace(node, main)
