"""Networks, Services and what is denied, as policies say it, on real packets; where a cluster has both families."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen

import pytest

from tests.lab.space import Space
from tests.lab.test_policy import STREAM_CLIENT, STREAM_SERVER

pytestmark = pytest.mark.both_families

ANSWERS = 200  # of a stream, until one is as it should be


def policy(space: Space, name: str, subject: str, rules: str) -> str:
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: {name}, namespace: {space.name}}}
spec:
  endpointSelector: {{matchLabels: {{app: {subject}}}}}
  {rules}
"""


def clusterwide(space: Space, rules: str) -> str:
    """For the servers of this test's namespace, and of no other."""
    return f"""
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {{name: {space.name}}}
spec:
  endpointSelector: {{matchLabels: {{app: server, "k8s:io.kubernetes.pod.namespace": {space.name}}}}}
  {rules}
"""


def reaches(space: Space, pod: str, address: str) -> bool:
    return space.exec(pod, "ping", "-c", "1", "-W", "1", address).returncode == 0


def test_the_outside_is_reached_as_networks_and_exceptions_say(space: Space) -> None:
    space.apply(space.pod("client"), space.pod("server", "node2"))
    outside, server = space.outside, space.address("server")
    everything = "0.0.0.0/0" if space.family == 4 else "::/0"
    assert reaches(space, "client", outside) and reaches(space, "client", server)
    space.apply(policy(space, "out", "client", f"egress: [{{toCIDR: ['{outside}']}}]"))
    assert reaches(space, "client", outside) and not reaches(space, "client", server)
    space.apply(
        policy(
            space, "out", "client", f"egress: [{{toCIDRSet: [{{cidr: '{everything}', except: ['{host(outside)}']}}]}}]"
        )
    )
    assert not reaches(space, "client", outside), "it is the exception"
    assert not reaches(space, "client", server), "a pod is a pod, whatever networks are allowed"
    space.apply(policy(space, "out", "client", "egress: [{toEntities: [all]}]"))
    assert reaches(space, "client", outside)
    space.apply(policy(space, "not", "client", f"egressDeny: [{{toCIDR: ['{host(outside)}']}}]"))
    assert not reaches(space, "client", outside) and reaches(space, "client", server)
    space.delete(policy(space, "not", "client", f"egressDeny: [{{toCIDR: ['{host(outside)}']}}]"))
    assert reaches(space, "client", outside)


def host(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


@contextmanager
def stream(space: Space) -> Iterator[Popen[str]]:
    """A connection of the client to the server that tells whether it lives."""
    server = space.lab.start_in(f"{space.name}/server", "/usr/bin/python3", "-c", STREAM_SERVER)
    client = None
    try:
        assert server.stdout is not None and server.stdout.readline() == "listening\n"
        client = space.lab.start_in(
            f"{space.name}/client", "/usr/bin/python3", "-c", STREAM_CLIENT, space.address("server")
        )
        yield client
    finally:
        for process in filter(None, (client, server)):
            process.kill()
            process.communicate()


def becomes(client: Popen[str], state: str) -> bool:
    assert client.stdout is not None
    lines = iter(client.stdout.readline, "")
    return any(line == f"{state}\n" for line in (next(lines) for _ in range(ANSWERS)))


def test_what_a_clusterwide_policy_denies_ends_on_a_living_connection_whatever_another_allows(space: Space) -> None:
    space.apply(
        space.pod("client"),
        space.pod("server", "node2"),
        policy(space, "in", "server", "ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]"),
    )
    denial = clusterwide(space, f"ingressDeny: [{{fromEndpoints: [{{matchLabels: {{app: client, {own(space)}}}}}]}}]")
    try:
        with stream(space) as client:
            assert becomes(client, "alive")
            before = space.lab.drops()["Policy denied by denylist"]
            space.apply(denial)
            assert becomes(client, "silent")
            assert space.lab.drops()["Policy denied by denylist"] > before
            space.delete(denial)
            assert becomes(client, "alive"), "the same connection goes on"
    finally:
        space.lab.delete(denial)


def own(space: Space) -> str:
    return f'"k8s:io.kubernetes.pod.namespace": {space.name}'


def test_a_service_as_a_peer_is_whoever_is_behind_it(space: Space) -> None:
    space.apply(
        space.pod("client"),
        space.pod("web", "node2"),
        space.pod("other", "node3"),
        space.service("web", "web"),
        space.service("other", "other"),
        policy(
            space,
            "out",
            "client",
            f"egress: [{{toServices: [{{k8sService: {{serviceName: web, namespace: {space.name}}}}}]}}]",
        ),
    )
    assert "Hostname: web" in space.get("client", space.cluster_address("web"))
    assert "Hostname: web" in space.get("client", space.address("web"))
    assert not space.get("client", space.cluster_address("other"), seconds=1)
    space.apply(space.service("web", "other"))
    assert not space.get("client", space.address("web"), seconds=1)
    assert "Hostname: other" in space.get("client", space.cluster_address("web"))
