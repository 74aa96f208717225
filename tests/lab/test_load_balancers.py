"""Services of type LoadBalancer are reached at addresses of a pool, by pods on every node."""

from __future__ import annotations

from typing import Any

from lab.plan import Family
from tests.lab.space import Space
from tests.labs import eventually

BLOCKS: dict[Family, str] = {4: "10.10.200.0/29", 6: "fd00:200::/125"}
ADDRESSES: dict[Family, list[str]] = {
    4: [f"10.10.200.{at}" for at in range(1, 7)],
    6: [f"fd00:200::{at}" for at in range(1, 7)],
}


def pool(space: Space) -> str:
    """Of six addresses, for the Services of the test's own namespace."""
    return f"""
apiVersion: cilium.io/v2
kind: CiliumLoadBalancerIPPool
metadata: {{name: {space.name}}}
spec:
  blocks: [{{cidr: "{BLOCKS[space.family]}"}}]
  allowFirstLastIPs: "No"
  serviceSelector: {{matchLabels: {{io.kubernetes.service.namespace: {space.name}}}}}
"""


def balancer(space: Space, name: str, port: int, annotations: str = "", labels: str = "") -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {space.name}, annotations: {{{annotations}}}, labels: {{{labels}}}}}
spec:
  type: LoadBalancer
  ipFamilies: [IPv{space.family}]
  selector: {{app: web}}
  ports: [{{port: {port}, targetPort: 80}}]
"""


def outside(space: Space) -> dict[str, list[str]]:
    """By Service, the addresses that it has as its status says."""
    found: list[dict[str, Any]] = space.lab.get("service", space.name)
    return {
        each["metadata"]["name"]: [one["ip"] for one in each["status"]["loadBalancer"].get("ingress", [])]
        for each in found
    }


def test_services_are_reached_at_addresses_of_a_pool_that_stay_when_ipam_is_killed(space: Space) -> None:
    first, second, *_, last = ADDRESSES[space.family]
    shared = f'lbipam.cilium.io/ips: "{last}", lbipam.cilium.io/sharing-key: k'
    services = (
        balancer(space, "a", 80),
        balancer(space, "b", 80),
        balancer(space, "c", 81, shared),
        balancer(space, "d", 82, shared),
        balancer(space, "e", 82, shared),
    )
    given = {"a": [first], "b": [second], "c": [last], "d": [last], "e": []}
    clients = {"near": "node1", "far": "node2"}
    pods = [space.pod("web", "node1"), *(space.pod(name, node, "sleeper") for name, node in clients.items())]
    space.apply(pool(space), *pods, *services)
    assert outside(space) == given

    def all_answer() -> bool:
        return all(
            "Hostname: web" in space.get(client, address, port=port)
            for client in clients
            for address, port in ((first, 80), (second, 80), (last, 81), (last, 82))
        )

    assert eventually(all_answer)
    space.lab.kill(control="ipam")
    try:
        assert all_answer(), "nodes go on without it"
    finally:
        space.lab.revive(control="ipam")
    space.apply(balancer(space, "f", 80))
    assert outside(space) == {**given, "f": [ADDRESSES[space.family][2]]}, "a replica that begins anew moves nothing"
    assert all_answer()
    space.delete(pool(space))
    assert not any(outside(space).values())
    assert space.get("near", first) == ""
