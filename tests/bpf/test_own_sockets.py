"""Sockets of the node's own namespace alone are led to backends, where it is set so."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

from bus.messages.lb import Backend, Frontend, LoadBalancedService
from services.dataplane.kernel import namespace
from services.dataplane.parts.services import Services
from services.dataplane.shapes.layouts import pack_address
from tests.bpf.conftest import loaded
from tests.bpf.spaces import in_namespace, ip, making_namespaces
from tests.bpf.test_sockets import caller, cgroup, hooks_on
from tests.connections import PORT

__all__ = ["cgroup"]  # a fixture


@pytest.mark.parametrize("family", [4, 6])
def test_a_pods_socket_calls_the_services_address_itself_and_the_nodes_own_a_backend(
    tmp_path: Path, cgroup: Path, family: int
) -> None:
    address, backend = ("10.96.7.7", "127.0.0.1") if family == 4 else ("fd00:96::77", "::1")
    front = Frontend(address=address, port=PORT, protocol="UDP", backends=[Backend(address=backend, port=PORT)])
    tables = Services()
    tables.put(LoadBalancedService(namespace="n", name="s", frontends=[front]))
    with making_namespaces() as make:
        node, pod = make("node"), make("pod")
        for each in (node, pod):
            ip("-n", each, "link", "set", "lo", "up")
            ip("-n", each, "address", "add", "192.0.2.1/32", "dev", "lo")

        async def own() -> int:
            return namespace.cookie()

        cookies = [in_namespace(each, own) for each in (node, pod)]
        assert all(0 < each < 1 << 32 for each in cookies), "a constant has 32 bits"
        assert len({*cookies, namespace.cookie()}) == 3
        with (
            loaded("own", tmp_path, hooked_namespace=cookies[0]) as programs,
            hooks_on(programs, cgroup) as maps,
            closing(caller(node, cgroup, family, "SOCK_DGRAM")) as of_node,
            closing(caller(pod, cgroup, family, "SOCK_DGRAM")) as of_pod,
        ):
            asyncio.run(maps.write(tables.tables))
            assert of_node.connect("one", address) == "connected"
            assert of_node.state("one") == [address, 0]
            assert [value[:16] for value in maps.dump("sock_reverse").values()] == [pack_address(address)]
            for ask in (of_pod.connect, of_pod.send_to):
                assert ask("one", address) == "ENETUNREACH"
            assert len(maps.dump("sock_reverse")) == 1 and not maps.dump("sock_choices")
