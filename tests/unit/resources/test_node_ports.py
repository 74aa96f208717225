"""A node port is one Service's, whatever is called, and is given back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.control import Claim, Say
from bus.messages.resources import NodePort, Service
from bus.subjects import NODE_PORT
from services.resources.model import plan_apply, plan_delete, plan_tidy
from services.resources.node_ports import ports_of
from settings.ports import Ports, node_ports_of
from tests.unit.resources.cluster import Cluster
from tests.unit.resources.manifests import service


def node_port(rest: str = "ports: [{port: 80}]", name: str = "svc", kind: str = "NodePort") -> str:
    return service(f"type: {kind}, {rest}", name)


def ports(cluster: Cluster, name: str = "svc") -> list[int]:
    return [each.node_port for each in cluster.service(name).ports]


def held(cluster: Cluster) -> dict[int, str]:
    return {each.port: each.service for _, each in cluster.store.items() if isinstance(each, NodePort)}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_a_node_port_comes_from_the_range_and_is_the_same_after_everything_is_lost(cluster: Cluster) -> None:
    cluster.apply(node_port())
    (port,) = ports(cluster)
    assert 30_000 <= port <= 32_767 and held(cluster) == {port: "svc"}
    again = Cluster()
    again.apply(node_port())
    assert ports(again) == [port]


@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_each_port_has_a_node_port_and_one_number_of_two_protocols_shares_it(cluster: Cluster, kind: str) -> None:
    cluster.apply(
        node_port(
            "ports: [{port: 53, name: a}, {port: 53, name: b, protocol: UDP}, {port: 80, name: c}]",
            kind=kind,
        )
    )
    tcp, udp, other = ports(cluster)
    assert tcp == udp != other


def test_a_load_balancer_may_do_without(cluster: Cluster) -> None:
    cluster.apply(node_port("allocateLoadBalancerNodePorts: false, ports: [{port: 80}]", kind="LoadBalancer"))
    assert ports(cluster) == [0] and held(cluster) == {}


def test_a_load_balancer_whose_outside_traffic_is_local_has_a_port_for_health_checks(cluster: Cluster) -> None:
    cluster.apply(node_port("externalTrafficPolicy: Local, ports: [{port: 80}]", kind="LoadBalancer"))
    checked = cluster.service().health_check_port
    assert held(cluster) == {checked: "svc", ports(cluster)[0]: "svc"} and checked not in ports(cluster)
    cluster.apply(node_port(kind="LoadBalancer"))
    assert cluster.service().health_check_port == 0 and list(held(cluster)) == ports(cluster)


def test_a_port_that_is_asked_for_is_had_or_refused_by_name(cluster: Cluster) -> None:
    cluster.apply(node_port("ports: [{port: 80, nodePort: 30080}]"))
    assert ports(cluster) == [30_080]
    other = cluster.refused(node_port("ports: [{port: 80, nodePort: 30080}]", "b"))
    assert "held by the Service default/svc" in other["spec.ports[0].nodePort"]
    far = cluster.refused(node_port("ports: [{port: 80, nodePort: 29999}]", "b"))
    assert "outside the node ports' range 30000-32767" in far["spec.ports[0].nodePort"]


def test_who_asks_for_a_port_comes_before_who_takes_any(cluster: Cluster) -> None:
    cluster.apply(node_port())
    (favourite,) = ports(cluster)
    fresh = Cluster()
    fresh.apply(node_port(), node_port(f"ports: [{{port: 80, nodePort: {favourite}}}]", "b"))
    assert ports(fresh, "b") == [favourite] != ports(fresh)


def test_a_port_stays_while_its_service_changes_and_moves_when_it_is_told_to(cluster: Cluster) -> None:
    cluster.apply(node_port())
    (before,) = ports(cluster)
    cluster.apply(
        node_port("ports: [{port: 80, targetPort: 8080}, {port: 81, name: b}]".replace("0,", "0, name: a,", 1))
    )
    assert ports(cluster)[0] == before
    cluster.apply(node_port("ports: [{port: 80, nodePort: 30080}]"))
    assert held(cluster) == {30_080: "svc"}


@pytest.mark.parametrize("rest", ["type: ClusterIP, ports: [{port: 80}]", "type: ExternalName, externalName: a.b"])
def test_a_service_of_another_type_gives_its_port_back(cluster: Cluster, rest: str) -> None:
    cluster.apply(node_port())
    cluster.apply(service(rest))
    assert held(cluster) == {} and all(port == 0 for port in ports(cluster))


def test_a_deleted_services_port_is_free_again(cluster: Cluster) -> None:
    cluster.apply(node_port("ports: [{port: 80, nodePort: 30080}]"))
    cluster.delete(node_port())
    cluster.apply(node_port("ports: [{port: 80, nodePort: 30080}]", "b"))


def test_a_full_range_is_refused_and_says_so() -> None:
    cluster = Cluster(ports=Ports(30_000, 30_001))
    cluster.apply(node_port(name="a"), node_port(name="b"))
    assert "no node port is free in 30000-30001" in cluster.refused(node_port())["spec.ports[0].nodePort"]
    assert cluster.apply(node_port(name="a"))["a"] == "unchanged"


def test_a_port_left_by_a_death_is_given_back_or_used_by_its_service(cluster: Cluster) -> None:
    claims = [step for step in cluster.plan(node_port()).steps if isinstance(step, Claim)]
    for claim in claims:
        cluster.store.put(claim.subject, claim.message)  # and then it died
    assert [type(step) for step in cluster.plan(node_port()).steps] == [Say]
    cluster.do(plan_tidy(cluster.store))
    assert held(cluster) == {}


NAMES = st.sampled_from([f"s{at}" for at in range(5)])
RESTS = st.sampled_from(
    [
        "type: NodePort, ports: [{port: 80}]",
        "type: NodePort, ports: [{port: 80, name: a, nodePort: 30001}, {port: 81, name: b}]",
        "type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80}]",
        "type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 80}]",
        "type: ClusterIP, ports: [{port: 80}]",
        "type: ExternalName, externalName: a.b",
    ]
)
CALLS = st.lists(st.tuples(st.booleans(), st.lists(st.tuples(NAMES, RESTS), min_size=1, max_size=3)), max_size=12)


@settings(deadline=None)
@given(CALLS)
def test_no_port_is_ever_held_twice(calls: list[tuple[bool, list[tuple[str, str]]]]) -> None:
    """Any sequence of calls in a range of six: what a Service has it has claimed, and what is claimed it has."""
    cluster = Cluster(ports=Ports(30_000, 30_005))
    for is_delete, asked in calls:
        resources = cluster.resources("\n---\n".join(service(rest, name) for name, rest in asked), is_delete)
        if is_delete:
            cluster.do(plan_delete(cluster.store, resources))
        else:
            cluster.do(plan_apply(cluster.store, resources, cluster.networks, lambda: "uid", cluster.ports))
        services = [each for _, each in cluster.store.items() if isinstance(each, Service)]
        had = {port: each.name for each in services for port in ports_of(each)}
        assert len(had) == sum(len(ports_of(each)) for each in services)
        assert held(cluster) == had
        assert all(NODE_PORT.has(NODE_PORT.of(str(port))) for port in had)


def test_a_range_is_written_as_the_chart_has_it_or_with_a_dash() -> None:
    assert node_ports_of("30000,32767") == node_ports_of("30000-32767") == Ports(30_000, 32_767)
    for wrong in ("30000", "32767-30000", "0-32767", "30000-40000", "a-b"):
        with pytest.raises(ValueError):
            node_ports_of(wrong)
