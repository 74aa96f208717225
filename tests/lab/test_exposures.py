"""Services by their other addresses, within the cluster: node ports, external ones, and those that stay on a node."""

from __future__ import annotations

from tests.lab.space import Space, curl

EXTERNAL = {4: "203.0.113.7", 6: "2001:db8:113::7"}  # nobody's (RFC 5737, RFC 3849)


def service(space: Space, name: str, spec: str) -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {space.name}}}
spec:
  {space.policy}
  selector: {{app: web}}
  ports: [{{port: 80}}]
  {spec}
"""


def node_port(space: Space, name: str) -> int:
    found = space.lab.get("service", space.name)
    return int(next(each["spec"]["ports"][0]["nodePort"] for each in found if each["metadata"]["name"] == name))


def names(space: Space, pod: str, address: str, port: int = 80, times: int = 12) -> set[str]:
    """The first line of each answer: who gave it."""
    return {space.get(pod, address, port=port).partition("\n")[0] for _ in range(times)}


def test_pods_and_nodes_reach_a_service_at_every_nodes_port_and_at_its_external_address(space: Space) -> None:
    external = EXTERNAL[space.family]
    manifest = service(space, "web", f"type: NodePort\n  externalIPs: ['{external}']")
    space.apply(
        space.pod("client"), space.pod("b1", "node1", label="web"), space.pod("b2", "node2", label="web"), manifest
    )
    port, both = node_port(space, "web"), {"Hostname: b1", "Hostname: b2"}
    for node in ("node1", "node2", "node3"):
        assert names(space, "client", space.node_address(node), port) == both
        asked = curl(space.node_address("node2"), port=port)
        assert space.lab.exec_node(node, *asked).stdout.partition("\n")[0] in both
    assert names(space, "client", external) == both
    space.delete(manifest)
    assert names(space, "client", space.node_address("node3"), port, times=1) == {""}


def test_a_service_that_stays_on_the_node_is_answered_there_or_refused(space: Space) -> None:
    manifest = service(space, "web", "internalTrafficPolicy: Local")
    pods = [space.pod(f"b{node}", f"node{node}", label="web") for node in (1, 2)]
    clients = [space.pod(f"c{node}", f"node{node}") for node in (1, 2, 3)]
    space.apply(*pods, *clients, manifest)
    address = space.cluster_address("web")
    assert names(space, "c1", address) == {"Hostname: b1"}
    assert names(space, "c2", address) == {"Hostname: b2"}
    refused = space.exec("c3", *curl(address))
    assert refused.returncode == 7, "connection refused: node3 has no backend"
