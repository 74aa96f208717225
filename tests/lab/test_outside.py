"""Services that hosts outside of the cluster call: in the nodes' LAN, and beyond the router."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import pytest

from tests.lab.space import Space, curl, host
from tests.lab.test_exposures import EXTERNAL, node_port, service
from tests.lab.test_load_balancers import ADDRESSES, balancer, pool
from tests.labs import eventually

Asks = Callable[..., Any]  # a command, as the host runs it
NODES = ("node1", "node2", "node3")


def answers(asks: Asks, address: str, port: int, times: int = 1) -> list[tuple[str, str]]:
    """Who answered, and whom it saw; each by a connection of its own. Without an answer there is none."""
    url = f"http://{host(address, port)}/"
    done = asks(*curl(address, "-H", "Connection: close", port=port), *[url] * (times - 1))
    names = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("Hostname: ")]
    seen = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("RemoteAddr: ")]
    return list(zip(names, (str(ip_address(each.rpartition(":")[0].strip("[]"))) for each in seen), strict=True))


def lan_host(space: Space) -> str:
    """Its address."""
    found = space.lab.exec_lan("ip", "-o", f"-{space.family}", "address", "show", "eth0", "scope", "global").stdout
    return found.split()[3].partition("/")[0]


@contextmanager
def led_to(space: Space, address: str, node: str) -> Iterator[None]:
    """Hosts of the LAN send to an address outside by way of this node."""
    route = ("ip", f"-{space.family}", "route")
    assert space.lab.exec_lan(*route, "replace", address, "via", space.node_address(node)).returncode == 0
    try:
        yield
    finally:
        assert space.lab.exec_lan(*route, "delete", address).returncode == 0


def backends(space: Space) -> list[str]:
    """On two of three nodes; the pods' names are those of their nodes."""
    return [space.pod(f"on-{node}", node, label="web") for node in NODES[:2]]


def test_every_node_leads_who_calls_from_outside_to_every_backend_and_those_answer(space: Space) -> None:
    external = EXTERNAL[space.family]
    space.apply(*backends(space), service(space, "web", f"type: NodePort\n  externalIPs: ['{external}']"))
    port = node_port(space, "web")
    for asks, client in ((space.lab.exec_outside, space.outside), (space.lab.exec_lan, lan_host(space))):
        for node in NODES:
            found = answers(asks, space.node_address(node), port, 24)
            assert len(found) == 24, "none is lost"
            assert {name for name, _ in found} == {"on-node1", "on-node2"}
            for name, seen in found:
                assert (seen == client) == (name == f"on-{node}"), "one elsewhere sees the node"
    for node in ("node1", "node3"):
        with led_to(space, external, node):
            assert {name for name, _ in answers(space.lab.exec_lan, external, 80, 24)} == {"on-node1", "on-node2"}


def test_a_large_request_by_a_node_without_a_backend_arrives_whole(space: Space) -> None:
    space.apply(space.pod("far", "node1", label="web"), service(space, "web", "type: NodePort"))
    asked = curl(space.node_address("node3"), "--data-binary", "@/proc/self/environ", port=node_port(space, "web"))
    made = "head -c 200000 /dev/zero | "
    shell = made + " ".join(f"'{each}'" for each in asked).replace("@/proc/self/environ", "@-")
    assert "Content-Length: 200000" in space.lab.exec_outside("/bin/sh", "-c", shell).stdout


def test_a_service_that_keeps_to_its_node_shows_its_backends_the_client_and_is_silent_elsewhere(space: Space) -> None:
    space.apply(*backends(space), service(space, "web", "type: NodePort\n  externalTrafficPolicy: Local"))
    port = node_port(space, "web")
    for node in NODES[:2]:
        assert set(answers(space.lab.exec_outside, space.node_address(node), port, 12)) == {
            (f"on-{node}", space.outside)
        }
    before = space.lab.drops()["Service backend not found"]
    silent = space.lab.exec_outside(*curl(space.node_address("node3"), port=port, seconds=1))
    assert silent.returncode == 28, "a time-out, and no refusal: whoever balances asks elsewhere"
    assert space.lab.drops()["Service backend not found"] > before
    within = space.lab.exec_node("node3", *curl(space.node_address("node3"), port=port))
    assert "Hostname: on-node" in within.stdout, "who calls from within may go to every backend"


def test_a_service_without_backends_refuses_who_calls_from_outside(space: Space) -> None:
    space.apply(service(space, "web", "type: NodePort"))
    refused = space.lab.exec_outside(*curl(space.node_address("node1"), port=node_port(space, "web")))
    assert refused.returncode == 7, "connection refused"


def test_a_policy_judges_who_calls_from_outside(space: Space) -> None:
    policy = f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: web, namespace: {space.name}}}
spec:
  podSelector: {{matchLabels: {{app: web}}}}
  ingress: [{{from: [{{ipBlock: {{cidr: "{space.outside}/{32 if space.family == 4 else 128}"}}}}]}}]
"""
    manifest = service(space, "web", "type: NodePort\n  externalTrafficPolicy: Local")
    space.apply(*backends(space), manifest, policy)
    port = node_port(space, "web")
    assert answers(space.lab.exec_outside, space.node_address("node1"), port) == [("on-node1", space.outside)]
    assert answers(space.lab.exec_lan, space.node_address("node1"), port) == []


@pytest.mark.both_families
def test_addresses_of_a_pool_are_reached_from_outside_by_whichever_node_gets_the_call(space: Space) -> None:
    address = ADDRESSES[space.family][0]
    space.apply(pool(space), *backends(space), balancer(space, "web", 80))
    for node in NODES:
        with led_to(space, address, node):
            assert eventually(lambda: bool(answers(space.lab.exec_lan, address, 80)))
            assert {name for name, _ in answers(space.lab.exec_lan, address, 80, 24)} == {"on-node1", "on-node2"}
    space.delete(pool(space))


def test_a_backend_on_its_hosts_own_network_answers_in_the_name_of_what_was_called(space: Space) -> None:
    """By its own node, and by another one."""
    pod = space.pod("web", "node1", port=18_080).replace("spec:\n", "spec:\n  hostNetwork: true\n", 1)
    manifest = service(space, "web", "type: NodePort").replace("port: 80", "port: 80, targetPort: 18080")
    space.apply(pod, manifest)
    port = node_port(space, "web")
    for node in NODES:
        found = answers(space.lab.exec_outside, space.node_address(node), port, 6)
        assert len(found) == 6
        assert {seen for _, seen in found} == {space.outside if node == "node1" else space.node_address(node)}


def test_a_pod_that_calls_itself_by_its_services_other_addresses_is_answered(space: Space) -> None:
    external = EXTERNAL[space.family]
    space.apply(space.pod("web"), service(space, "web", f"type: NodePort\n  externalIPs: ['{external}']"))
    port = node_port(space, "web")
    for address, called in ((space.node_address("node1"), port), (space.node_address("node3"), port), (external, 80)):
        assert "Hostname: web" in space.get("web", address, port=called)
