"""Links, their names and sysctls, when somebody else changed them: put back in real network namespaces."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.dataplane.kernel import netlink, rtnl
from services.dataplane.kernel.links import LinkError, TunnelGone, host_link_name
from services.dataplane.kernel.pod_links import LinkEvents, Wanted
from tests.bpf.spaces import device_of, in_namespace, inside, ips, links, opened, reaches

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")


@pytest.mark.parametrize(
    ("deed", "told"),
    [(["down"], "was down"), (["name", "other"], "was named other"), (["down", "name", "other"], "was named other")],
)
def test_a_pods_link_that_somebody_changed_is_put_back_and_the_pod_reached(
    namespaces: Callable[[str], str], deed: list[str], told: str
) -> None:
    node, pod = namespaces("node"), namespaces("pod")
    addresses = ips("10.9.0.2", "fd00:9::2")

    async def main() -> None:
        with links() as made, opened(pod) as fd:
            for each in addresses:
                await made.ensure_router_address(each.gateway)
            link = await made.create_pod_link(fd, "c1", "eth0", addresses, 1500)
            wanted = Wanted(link.host_name, link.host_index, link.pod_mac, ("fd00:9::2",))
            assert made.take_links_changed() and not made.take_links_changed()
            assert await made.mend_pod_links([wanted]) == ([], [], [])
            assert not made.take_links_changed()
            assert inside(node, "ip", "link", "set", link.host_name, *deed).returncode == 0
            assert made.take_links_changed()
            assert await made.mend_pod_links([wanted]) == ([f"{link.host_name} {told}"], [], [])
            assert await made.mend_pod_links([wanted]) == ([], [], [])
            await made.mend_pod_routes({each.address: link.host_index for each in addresses})
            for each in addresses:
                assert reaches(node, each.address)
            assert inside(node, "ip", "link", "delete", link.host_name).returncode == 0
            assert await made.mend_pod_links([wanted]) == ([], [link.host_name], [])

    in_namespace(node, main)


def refuse_names_as_old_kernels(monkeypatch: pytest.MonkeyPatch, *, late: bool) -> None:
    """Before 6.2 a device that is up gets no other name. `late`: one that is down is refused as well."""
    ask = netlink.Netlink.ask

    def refuse(
        self: netlink.Netlink, says: str, kind: int, flags: int, request: Any, accept: tuple[int, ...] = ()
    ) -> Any:
        if says.startswith("give link"):
            found = rtnl.find_link_at(self, request["index"])
            if found is not None and found.up:
                raise netlink.Refused(errno.EBUSY, "busy", says)
            if late:
                raise netlink.Refused(errno.EEXIST, "File exists", says)
        return ask(self, says, kind, flags, request, accept)

    monkeypatch.setattr(netlink.Netlink, "ask", refuse)


@pytest.mark.parametrize("late", [False, True])
def test_a_pods_link_whose_name_is_refused_stays_up_and_the_ones_after_it_are_mended(
    namespaces: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    node, pods = namespaces("node"), (namespaces("one"), namespaces("two"))
    refuse_names_as_old_kernels(monkeypatch, late=late)

    async def main() -> None:
        with links() as made, opened(pods[0]) as one, opened(pods[1]) as two:
            both = [
                await made.create_pod_link(one, "c1", "eth0", ips("10.9.0.2"), 1500),
                await made.create_pod_link(two, "c2", "eth0", ips("10.9.0.3"), 1500),
            ]
            wanted = [Wanted(each.host_name, each.host_index, each.pod_mac, ()) for each in both]
            assert inside(node, "ip", "link", "set", both[0].host_name, "down", "name", "other", "up").returncode == 0
            assert inside(node, "ip", "link", "set", both[1].host_name, "down").returncode == 0
            if not late:
                assert inside(node, "ip", "link", "add", both[0].host_name, "type", "veth").returncode == 0
            put_back, gone, refused = await made.mend_pod_links(wanted)
            assert (put_back, gone) == ([f"{both[1].host_name} was down"], [])
            [told] = refused
            assert told.startswith(
                f"{both[0].host_name} was named other: cannot give link {both[0].host_index} the name"
            )
            assert "File exists" in told
            for name in ("other", both[1].host_name):
                assert "UP" in inside(node, "ip", "link", "show", name).stdout
            assert inside(node, "ip", "link", "set", "other", "down").returncode == 0
            await made.mend_pod_links(wanted)
            assert "UP" in inside(node, "ip", "link", "show", "other").stdout, "whatever its name is"

    in_namespace(node, main)


@pytest.mark.parametrize("late", [False, True])
def test_a_link_whose_name_is_refused_is_not_set_down_by_asking(
    namespaces: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    node = namespaces("node")
    refuse_names_as_old_kernels(monkeypatch, late=late)

    async def main() -> None:
        with contextlib.closing(netlink.Netlink()) as asking:
            for deed in (["add", "one", "type", "veth", "peer", "two"], ["set", "one", "up"]):
                assert inside(node, "ip", "link", *deed).returncode == 0
            one = rtnl.find_link(asking, "one")
            assert one is not None
            with contextlib.closing(LinkEvents()) as events:
                with pytest.raises(netlink.Refused, match="File exists"):
                    rtnl.rename(asking, one.index, "free" if late else "two")
                assert events.take() == late, "it goes down only for a name that seems free"
            seen = rtnl.find_link_at(asking, one.index)
            assert seen is not None and seen.up

    in_namespace(node, main)


def test_a_link_that_goes_while_links_are_mended_is_gone_and_keeps_no_other(
    namespaces: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, pod = namespaces("node"), namespaces("pod")
    list_links = rtnl.list_links

    def list_and_lose(asking: netlink.Netlink) -> list[rtnl.SeenLink]:
        found = list_links(asking)
        inside(node, "ip", "link", "delete", host_link_name("c1", "eth0"))
        return found

    async def main() -> None:
        with links() as made, opened(pod) as fd:
            both = [
                await made.create_pod_link(fd, f"c{n}", f"eth{n - 1}", ips(f"10.9.0.{n + 1}"), 1500) for n in (1, 2)
            ]
            for each in both:
                assert inside(node, "ip", "link", "set", each.host_name, "down").returncode == 0
            monkeypatch.setattr(rtnl, "list_links", list_and_lose)
            wanted = [Wanted(each.host_name, each.host_index, each.pod_mac, ()) for each in both]
            put_back, gone, refused = await made.mend_pod_links(wanted)
            assert (put_back, gone, refused) == ([f"{both[1].host_name} was down"], [both[0].host_name], [])

    in_namespace(node, main)


@pytest.mark.parametrize("late", [False, True])
def test_a_tunnel_device_whose_name_is_refused_stays_up(
    namespaces: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    node = namespaces("node")
    refuse_names_as_old_kernels(monkeypatch, late=late)

    async def main() -> None:
        with links() as made:
            await made.ensure_tunnel("tun0", "vxlan", 8472, 1450)
            assert inside(node, "ip", "link", "set", "tun0", "down", "name", "other").returncode == 0
            if not late:
                assert inside(node, "ip", "link", "add", "tun0", "type", "veth").returncode == 0
            for _ in range(2):
                with pytest.raises(LinkError, match="the name tun0: File exists"):
                    await made.mend_tunnel()
                assert "UP" in inside(node, "ip", "link", "show", "other").stdout

    in_namespace(node, main)


def test_a_tunnel_device_that_had_to_go_down_for_its_name_is_not_told_to_have_been_down(
    namespaces: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = namespaces("node")

    async def main() -> None:
        with links() as made:
            await made.ensure_tunnel("tun0", "vxlan", 8472, 1450)
            assert inside(node, "ip", "link", "set", "tun0", "name", "other").returncode == 0
            refuse_names_as_old_kernels(monkeypatch, late=False)
            assert (await made.mend_tunnel()).startswith("tun0 was named other: put back; ")
            assert "UP" in inside(node, "ip", "link", "show", "tun0").stdout

    in_namespace(node, main)


@pytest.mark.parametrize(
    ("deed", "told"),
    [
        (["set", "tun0", "down"], "tun0 was down: put back; "),
        (["set", "tun0", "mtu", "600"], "tun0 had an MTU of 600 bytes, not 1450: put back; "),
        (["set", "tun0", "name", "other"], "tun0 was named other: put back; "),
        (["set", "tun0", "down", "name", "other", "mtu", "900"], "tun0 was named other and had an MTU of 900 bytes, "),
    ],
)
def test_a_tunnel_device_that_somebody_changed_is_put_back_as_the_same_device(
    namespaces: Callable[[str], str], deed: list[str], told: str
) -> None:
    node = namespaces("node")

    async def main() -> None:
        with links() as made:
            assert await made.mend_tunnel() == ""
            tunnel = await made.ensure_tunnel("tun0", "vxlan", 8472, 1450)
            assert await made.mend_tunnel() == ""
            assert inside(node, "ip", "link", *deed).returncode == 0
            assert (await made.mend_tunnel()).startswith(told)
            assert await made.mend_tunnel() == ""
            assert await device_of(made, "tun0") == tunnel
            assert "UP" in inside(node, "ip", "link", "show", "tun0").stdout

    in_namespace(node, main)


@pytest.mark.parametrize(
    "more", [[], ["type", "vxlan", "dstport", "4789", "external"], ["type", "vxlan", "dstport", "8472", "external"]]
)
def test_a_tunnel_device_that_is_another_now_is_to_be_made_anew(
    namespaces: Callable[[str], str], more: list[str]
) -> None:
    node = namespaces("node")

    async def main() -> None:
        with links() as made:
            tunnel = await made.ensure_tunnel("tun0", "vxlan", 8472, 1450)
            assert inside(node, "ip", "link", "delete", "tun0").returncode == 0
            if more:
                assert inside(node, "ip", "link", "add", "tun0", *more).returncode == 0
            with pytest.raises(TunnelGone, match="tun0 was removed"):
                await made.mend_tunnel()
            assert (await made.ensure_tunnel("tun0", "vxlan", 8472, 1450)).index != tunnel.index
            assert await made.mend_tunnel() == ""

    in_namespace(node, main)


def test_a_sysctl_that_somebody_set_is_put_back_and_named(namespaces: Callable[[str], str]) -> None:
    node, pod = namespaces("node"), namespaces("pod")

    async def main() -> None:
        with links() as made, opened(pod) as fd:
            await made.ensure_sysctls(["lo"], (4, 6))
            name = (await made.create_pod_link(fd, "c1", "eth0", ips("10.9.0.2"), 1500)).host_name
            assert await made.mend_sysctls([name, "lxcgone"]) == []
            deeds = {
                "ipv4.ip_forward": "0",
                "ipv4.conf.all.rp_filter": "1",
                "ipv4.conf.lo.rp_filter": "2",
                "ipv6.conf.all.forwarding": "0",
            }
            for path, value in deeds.items():
                assert inside(node, "sysctl", "-w", f"net.{path}={value}").returncode == 0
            assert await made.mend_sysctls() == [f"net.{path} was {value}" for path, value in deeds.items()]
            assert await made.mend_sysctls([name]) == []
            assert inside(node, "sysctl", "-w", f"net.ipv4.conf.{name}.rp_filter=1").returncode == 0
            assert await made.mend_sysctls([name]) == [f"net.ipv4.conf.{name}.rp_filter was 1"]
            assert await made.mend_sysctls([name]) == []

    in_namespace(node, main)


def test_a_pods_device_that_goes_while_its_sysctls_are_set_keeps_no_others_from_being_put_back(
    namespaces: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, pod = namespaces("node"), namespaces("pod")
    read = Path.read_text

    async def main() -> None:
        with links() as made, opened(pod) as fd:
            await made.ensure_sysctls()
            one, two = [
                (await made.create_pod_link(fd, f"c{n}", f"eth{n - 1}", ips(f"10.9.0.{n + 1}"), 1500)).host_name
                for n in (1, 2)
            ]

            def read_and_lose(path: Path, *more: Any, **words: Any) -> str:
                value = read(path, *more, **words)
                if path.parent.name == one:
                    inside(node, "ip", "link", "delete", one)
                return value

            assert inside(node, "sysctl", "-w", f"net.ipv4.conf.{two}.rp_filter=1").returncode == 0
            monkeypatch.setattr(Path, "read_text", read_and_lose)
            assert await made.mend_sysctls([one, two]) == [f"net.ipv4.conf.{two}.rp_filter was 1"]

    in_namespace(node, main)
