"""Who is let through by policies, on real packets, in every mode and family."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from lab.programs import ROOT
from tests.lab.space import Space, curl
from tests.labs import eventually

LANDING = ("-X", "POST")
STREAM_SERVER = """
import socket
listener = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
connection, _ = listener.accept()
while data := connection.recv(65536):
    connection.sendall(data)
"""
STREAM_CLIENT = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 9000), 5)
connection.settimeout(1)
while True:
    try:
        connection.sendall(b"x")
        connection.recv(1)
        print("alive", flush=True)
    except TimeoutError:
        print("silent", flush=True)
    time.sleep(0.05)
"""


def star_wars_pods(space: Space) -> str:
    def ship(name: str, node: str, labels: str) -> str:
        return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {space.name}, labels: {{{labels}}}}}
spec:
  nodeName: {node}
  containers:
  - {{name: main, image: "quay.io/cilium/starwars:v2"}}
"""

    return "---".join(
        [
            ship("deathstar", "node1", "org: empire, class: deathstar"),
            ship("tiefighter", "node2", "org: empire, class: tiefighter"),
            ship("xwing", "node3", "org: alliance, class: xwing"),
            f"""
apiVersion: v1
kind: Service
metadata: {{name: deathstar, namespace: {space.name}}}
spec:
  {space.policy}
  selector: {{org: empire, class: deathstar}}
  ports:
  - port: 80
""",
        ]
    )


def rule1(space: Space) -> str:
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: rule1, namespace: {space.name}}}
spec:
  endpointSelector: {{matchLabels: {{org: empire, class: deathstar}}}}
  ingress:
  - fromEndpoints:
    - matchLabels: {{org: empire}}
    toPorts:
    - ports:
      - {{port: "80", protocol: TCP}}
"""


def lands(space: Space, ship: str, target: str) -> bool:
    return space.get(ship, target, *LANDING, path="/v1/request-landing", seconds=1.5) == "Ship landed\n"


def why(space: Space, ship: str) -> Any:
    """What `plexus why` says of a ship that calls the deathstar's Service."""
    asked = ("why", f"{space.name}/{ship}", space.cluster_address("deathstar"), "80", "-o", "json")
    return json.loads(space.lab.plexus(*asked).stdout)


def test_the_star_wars_scenario(space: Space) -> None:
    space.apply(star_wars_pods(space))
    target = space.cluster_address("deathstar")
    assert lands(space, "tiefighter", target)
    assert lands(space, "xwing", target)

    before = space.lab.drops()["Policy denied"]
    space.apply(rule1(space))
    assert lands(space, "tiefighter", target)
    assert not lands(space, "xwing", target)
    assert space.lab.drops()["Policy denied"] > before
    denied, allowed = (why(space, ship) for ship in ("xwing", "tiefighter"))
    by = f"CiliumNetworkPolicy/{space.name}/rule1"
    assert (allowed["allowed"], allowed["service"]) == (True, f"{space.name}/deathstar")
    (came,) = (each for each in denied["ways"][0]["judged"] if each["direction"] == "ingress")
    assert (came["node"], came["reason"], came["policies"]) == ("node1", "Policy denied", [by])
    assert came["nearest"].startswith(f"{by} lets through identity ")

    space.delete(rule1(space))
    assert lands(space, "xwing", target)


def test_the_monitor_names_the_reason_and_the_pods(space: Space) -> None:
    space.apply(star_wars_pods(space), rule1(space))
    command = [sys.executable, "-m", "cli", "monitor", "--name", space.lab.name, "-o", "json"]
    landing = curl(space.address("deathstar"), *LANDING, path="/v1/request-landing", seconds=0.5)
    # Again and again: nobody knows when the monitor hears.
    trying = space.lab.start_in(f"{space.name}/xwing", "/bin/sh", "-c", 'while :; do "$@"; done', "sh", *landing)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as monitor:
        try:
            assert monitor.stdout is not None
            flows = map(json.loads, monitor.stdout)
            flow = next(flow for flow in flows if flow.get("type") == "drop" and "xwing" in json.dumps(flow))
        finally:
            monitor.kill()
            trying.kill()
            trying.communicate()
    assert flow["reason"] == "Policy denied"
    assert flow["source_pod"] == f"{space.name}/xwing"
    assert flow["destination_pod"] == f"{space.name}/deathstar"
    assert flow["policies"] == [f"CiliumNetworkPolicy/{space.name}/rule1"]


DENY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: deny, namespace: {namespace}}}
spec:
  podSelector: {{matchLabels: {{app: {app}}}}}
  policyTypes: [{direction}]
"""


@pytest.mark.parametrize(("direction", "app"), [("Ingress", "server"), ("Egress", "client")])
def test_default_deny_closes_one_direction_and_lets_replies_of_the_other_pass(
    space: Space, direction: str, app: str
) -> None:
    space.apply(space.pod("client"), space.pod("server", "node2"))
    assert space.get("client", space.address("server"))
    space.apply(DENY.format(namespace=space.name, app=app, direction=direction))
    assert not space.get("client", space.address("server"), seconds=1)
    assert space.get("server", space.address("client"))  # the other way, and its replies, stay open


def test_without_the_policy_service_a_new_pod_in_a_closed_namespace_is_closed(space: Space) -> None:
    """Its labels are new, so its identity is in no selector that the dead service knew of."""
    everybody = f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: deny, namespace: {space.name}}}
spec: {{podSelector: {{}}, policyTypes: [Ingress]}}
"""
    friends = f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: friends, namespace: {space.name}}}
spec:
  podSelector: {{}}
  ingress:
  - from: [{{podSelector: {{matchLabels: {{app: friend}}}}}}]
"""
    space.apply(space.pod("client"), space.pod("friend", "node3"), everybody, friends)
    try:
        space.lab.kill(control="policy")
        space.lab.apply(space.pod("server", "node2", label="never-seen-before"))
        assert eventually(lambda: has_address(space, "server"), 10)
        for _ in range(3):  # from its first moment on
            assert not space.get("client", space.address("server"), seconds=0.5)
    finally:
        space.lab.revive(control="policy")
    space.lab.wait()
    assert not space.get("client", space.address("server"), seconds=1)
    assert "Hostname: server" in space.get("friend", space.address("server"))


def has_address(space: Space, pod: str) -> bool:
    boxes = space.lab.record.directory.sandboxes()
    return any(box.address for box in boxes if (box.namespace, box.name) == (space.name, pod))


def test_a_namespace_selector_lets_one_namespace_in(space: Space) -> None:
    friends = f"{space.name}-friends"
    manifests = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: {friends}, labels: {{team: friends}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: {friends}}}
spec: {{nodeName: node3, containers: [{{name: main, image: sleeper}}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: friends, namespace: {space.name}}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - from:
    - namespaceSelector: {{matchLabels: {{team: friends}}}}
"""
    try:
        space.apply(space.pod("client"), space.pod("server", "node2"), manifests)
        server = space.address("server")
        from_friend = space.lab.exec(f"{friends}/client", *curl(server))
        assert "Hostname: server" in from_friend.stdout
        assert not space.get("client", server, seconds=1)
    finally:
        space.lab.delete(f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {friends}}}\n")


def test_ports_and_protocols_are_told_apart(space: Space) -> None:
    """Ping is let in and TCP is not; then TCP to port 80 is and ping is not."""
    policy = f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: some, namespace: {space.name}}}
spec:
  endpointSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: client}}}}]
"""
    echo = {4: "{type: 8, family: IPv4}", 6: "{type: 128, family: IPv6}"}[space.family]
    icmp = policy + f"    icmps: [{{fields: [{echo}]}}]\n"
    web = policy + '    toPorts: [{ports: [{port: "80", protocol: TCP}]}]\n'
    space.apply(space.pod("client"), space.pod("server", "node2"), icmp)
    server = space.address("server")
    ping = ("ping", "-c", "1", "-W", "1", server)
    assert space.exec("client", *ping).returncode == 0
    assert not space.get("client", server, seconds=1)
    space.apply(web)
    assert space.get("client", server)
    assert space.exec("client", *ping).returncode != 0


CNP_OF_WEB = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: web-of-{subject}, namespace: {namespace}}}
spec:
  endpointSelector: {{matchLabels: {{app: {subject}}}}}
  {direction}:
  - {peers}: [{{matchLabels: {{app: {peer}}}}}]
    toPorts: [{{ports: [{{port: web, protocol: TCP}}]}}]
"""


def web_only(space: Space, direction: str) -> str:
    """The client may call `web` of the servers: as their policy says, or as its own."""
    if direction == "ingress":
        subject, peer, peers = "server", "client", "fromEndpoints"
    else:
        subject, peer, peers = "client", "server", "toEndpoints"
    return CNP_OF_WEB.format(subject=subject, namespace=space.name, direction=direction, peers=peers, peer=peer)


def opened(space: Space, client: str, *pods: str) -> set[tuple[str, int]]:
    """Which of the ports 8001 and 8002 of these pods answer the client."""
    return {
        (pod, port)
        for pod in pods
        for port in (8001, 8002)
        if space.get(client, space.address(pod), port=port, seconds=1)
    }


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_a_named_port_is_the_port_of_each_pod_though_two_of_one_identity_differ(space: Space, direction: str) -> None:
    """As in every rolling update that changes the number."""
    ours = (
        space.two_numbers("r1", "node1", "server", 8001, 8002),
        space.two_numbers("r2", "node2", "server", 8002, 8001),
    )
    space.apply(space.pod("client"), *ours)
    assert opened(space, "client", "r1", "r2") == {("r1", 8001), ("r1", 8002), ("r2", 8001), ("r2", 8002)}
    space.apply(web_only(space, direction))
    assert opened(space, "client", "r1", "r2") == {("r1", 8001), ("r2", 8002)}


def test_a_udp_rule_does_not_open_tcp(space: Space) -> None:
    policy = f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: dns, namespace: {space.name}}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - ports: [{{port: 80, protocol: UDP}}]
"""
    space.apply(space.pod("client"), space.pod("server", "node2"), policy)
    assert not space.get("client", space.address("server"), seconds=1)


def test_a_new_policy_ends_what_an_existing_connection_may_do(space: Space) -> None:
    space.apply(space.pod("client"), space.pod("server", "node2"))
    server = space.lab.start_in(f"{space.name}/server", "/usr/bin/python3", "-c", STREAM_SERVER)
    client = None
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        client = space.lab.start_in(
            f"{space.name}/client", "/usr/bin/python3", "-c", STREAM_CLIENT, space.address("server")
        )
        assert client.stdout is not None
        assert client.stdout.readline() == "alive\n"
        space.apply(DENY.format(namespace=space.name, app="server", direction="Ingress"))
        lines = iter(client.stdout.readline, "")
        assert any(line == "silent\n" for line in (next(lines) for _ in range(200)))
    finally:
        for process in filter(None, (client, server)):
            process.kill()
            process.communicate()


def test_the_node_reaches_its_own_pods_whatever_policies_say(space: Space) -> None:
    """As the kubelet's probes must."""
    space.apply(space.pod("server"), DENY.format(namespace=space.name, app="server", direction="Ingress"))
    done = space.lab.exec_node("node1", *curl(space.address("server")))
    assert "Hostname: server" in done.stdout
