"""What outsiders see of a Service and of a pod, and what a Service's manifest says of how."""

from __future__ import annotations

from typing import Any

import pytest

from bus.addresses import FAMILIES
from bus.control import Say, Unsay
from bus.messages import Message
from bus.messages.ipam import AddressHolder, ServiceAddress
from bus.messages.lb import Backend, HostPort, HostPorts, LoadBalancedService
from bus.messages.resources import (
    ContainerPort,
    EndpointPort,
    LoadBalancerRequest,
    Node,
    Service,
    ServicePort,
    SliceEndpoint,
)
from bus.subjects import HOST_PORTS, NODE, POD, SERVICE_ADDRESS
from services.lb.exposures import NOT_OF_ITS_FAMILIES
from services.lb.host_ports import OTHER_FAMILY_OF_HOST
from services.lb.model import OF_PODS, LoadBalancing
from services.lb.places import NOT_AN_ADDRESS, OUTSIDE_BLOCK
from tests.unit.lb.test_model import BLOCK6, block, endpoint, model, pod, said, service, slice_of

BOTH = ["fd00:96::1", "10.96.0.1"]


def of(*things: tuple[str, Message]) -> LoadBalancedService:
    return said(list(model(*things).act()))


def shown(found: LoadBalancedService) -> list[tuple[str, str, int]]:
    return [(each.kind, each.address or each.family, each.port) for each in found.exposures]


def test_a_node_port_is_at_every_node_once_for_each_family_and_port() -> None:
    ports = [
        ServicePort(name="a", port=80, target_port=8080, node_port=30_080),
        ServicePort(name="b", port=81, target_port=8081, node_port=30_081, protocol="UDP"),
    ]
    found = of(service(type="NodePort", cluster_addresses=BOTH, ports=ports))
    assert [
        (each.kind, each.address, each.family, each.port, each.protocol, each.port_name) for each in found.exposures
    ] == [
        ("NodePort", "", "IPv4", 30_080, "TCP", "a"),
        ("NodePort", "", "IPv4", 30_081, "UDP", "b"),
        ("NodePort", "", "IPv6", 30_080, "TCP", "a"),
        ("NodePort", "", "IPv6", 30_081, "UDP", "b"),
    ]


def test_external_addresses_are_exposed_at_the_services_ports_in_its_families() -> None:
    wanted = ["192.0.2.10", "2001:db8::9", "192.0.2.9", "zzz"]
    made = model(service(external_addresses=wanted), pod(), endpoint())
    assert shown(said(list(made.act()))) == [("ExternalIP", "192.0.2.9", 80), ("ExternalIP", "192.0.2.10", 80)]
    assert made.left_out["default", "svc"] == {
        "[2001:db8::9]:80": NOT_OF_ITS_FAMILIES,
        "zzz:80": NOT_AN_ADDRESS,
    }


def balanced(**fields: Any) -> tuple[str, Service]:
    return service(type="LoadBalancer", load_balancer=LoadBalancerRequest(), **fields)


def given_to(address: str, *names: str) -> tuple[str, ServiceAddress]:
    holders = [AddressHolder(namespace="default", name=name, ports=["80/TCP"]) for name in names]
    return SERVICE_ADDRESS.of(address), ServiceAddress(address=address, services=holders)


def test_a_load_balancer_is_exposed_at_each_address_that_it_was_given() -> None:
    made = model(balanced(), pod(), endpoint(), given_to("192.0.2.9", "svc"), given_to("192.0.2.10", "other"))
    assert shown(said(list(made.act()))) == [("LoadBalancer", "192.0.2.9", 80)]
    made.put(*given_to("192.0.2.9", "other"))
    assert shown(said(list(made.act()))) == []
    made.put(*given_to("192.0.2.10", "other", "svc"))
    assert shown(said(list(made.act()))) == [("LoadBalancer", "192.0.2.10", 80)]
    made.delete(SERVICE_ADDRESS.of("192.0.2.10"))
    assert shown(said(list(made.act()))) == []


def test_an_address_that_is_still_its_own_after_it_is_no_load_balancer_any_more_is_not_exposed() -> None:
    made = model(balanced(), given_to("192.0.2.9", "svc"))
    assert len(said(list(made.act())).exposures) == 1
    made.put(*service())
    assert said(list(made.act())).exposures == []


def test_a_headless_service_is_not_exposed() -> None:
    wanted = service(cluster_addresses=[], external_addresses=["192.0.2.9"])
    assert list(model(wanted, pod(), endpoint()).act()) == []


def test_what_a_manifest_says_of_how_it_is_served_reaches_the_nodes() -> None:
    fields: dict[str, Any] = {
        "affinity_seconds": 60,
        "internal_traffic_policy": "Local",
        "external_traffic_policy": "Local",
        "health_check_port": 31_000,
        "source_ranges": ["192.0.2.0/24"],
        "denies_sources": True,
        "distribution": "PreferSameNode",
    }
    said_in = {"Service.Cilium.io/lb-algorithm": "maglev", "service.cilium.io/forwarding-mode": "dsr"}
    found = of(service(annotations=said_in, **fields))
    assert {name: getattr(found, name) for name in fields} == fields
    assert (found.algorithm, found.forwarding) == ("maglev", "dsr")


# -- who is behind it


def test_pods_that_are_not_ready_serve_where_a_service_publishes_them() -> None:
    things = pod("a", ready=False), endpoint("a"), pod("b", ready=False, phase="Failed"), endpoint("b", "10.0.0.6")
    assert of(service(), *things).frontends[0].backends == []
    found = of(service(publishes_not_ready=True), *things).frontends[0].backends
    assert [each.address for each in found] == ["10.0.0.5"]


def test_a_service_with_a_selector_has_slices_of_others_too_and_its_pods_once() -> None:
    port = EndpointPort(port=8080)
    of_kubernetes = slice_of("k", ports=[port], endpoints=[SliceEndpoint(addresses=["10.0.0.9"])], managed_by=OF_PODS)
    of_others = slice_of("o", ports=[port], endpoints=[SliceEndpoint(addresses=["10.0.0.5", "192.0.2.7"])])
    found = of(service(), pod(), endpoint(), of_kubernetes, of_others).frontends[0].backends
    assert [each.address for each in found] == ["10.0.0.5", "192.0.2.7"]


def test_a_slice_about_to_end_serves_nobody_new_while_a_pod_is_ready() -> None:
    ending = SliceEndpoint(addresses=["192.0.2.7"], ready=False, draining=True)
    things = service(), slice_of(ports=[EndpointPort(port=8080)], endpoints=[ending])
    (alone,) = of(*things).frontends
    assert [each.address for each in alone.backends] == ["192.0.2.7"] and not alone.draining
    (beside,) = of(*things, pod(), endpoint()).frontends
    assert [each.address for each in beside.backends] == ["10.0.0.5"]
    assert [each.address for each in beside.draining] == ["192.0.2.7"]


def test_endpoints_have_the_weight_of_their_slice_and_with_0_they_drain() -> None:
    port = EndpointPort(port=8080)
    slices = [
        slice_of(f"s{weight}", ports=[port], endpoints=[SliceEndpoint(addresses=[f"10.0.0.{weight}"])], weight=weight)
        for weight in (0, 1, 7)
    ]
    (found,) = of(service(selector={}), *slices).frontends
    assert [(each.address, each.weight) for each in found.backends] == [("10.0.0.1", 1), ("10.0.0.7", 7)]
    assert [each.address for each in found.draining] == ["10.0.0.0"]


def node(zone: str) -> tuple[str, Node]:
    labels = {"topology.kubernetes.io/zone": zone}
    return NODE.of("node1"), Node(name="node1", addresses=["192.0.2.1"], labels=labels)


def test_zones_are_told_where_a_service_asks_for_backends_near_by_and_follow_the_node() -> None:
    things = node("z1"), pod(), endpoint()
    assert of(service(), *things).frontends[0].backends[0].zone == ""
    made = model(service(distribution="PreferSameZone"), *things)
    assert said(list(made.act())).frontends[0].backends[0].zone == "z1"
    made.put(*node("z2"))
    assert said(list(made.act())).frontends[0].backends[0].zone == "z2"
    made.delete(NODE.of("node1"))
    assert said(list(made.act())).frontends[0].backends[0].zone == ""


def test_hints_of_a_slice_reach_the_nodes() -> None:
    hinted = SliceEndpoint(addresses=["10.0.0.1"], for_zones=["z1"], for_nodes=["node1"])
    (found,) = of(service(selector={}), slice_of(ports=[EndpointPort(port=80)], endpoints=[hinted])).frontends
    assert (found.backends[0].for_zones, found.backends[0].for_nodes) == (["z1"], ["node1"])


# -- host ports


def hosted(*ports: ContainerPort, **fields: Any) -> tuple[str, Message]:
    return pod(ports=list(ports), **fields)


WEB = ContainerPort(port=80, host_port=8080)
AT_NODE = HOST_PORTS.of("node1", "default", "p")


def host_ports(made: LoadBalancing) -> HostPorts | None:
    found = [each for each in made.act() if each.subject == AT_NODE]
    message = found[0].message if found and isinstance(found[0], Say) else None
    assert message is None or isinstance(message, HostPorts)
    return message


def test_a_pods_host_port_leads_to_each_of_its_addresses_ready_or_not() -> None:
    made = model(BLOCK6, hosted(WEB, ready=False), endpoint(addresses=["10.0.0.5", "fd00:1::5"]))
    assert host_ports(made) == HostPorts(
        node="node1",
        namespace="default",
        pod="p",
        ports=[
            HostPort(family=each, port=8080, protocol="TCP", backend=Backend(address=address, port=80, node="node1"))
            for each, address in zip(FAMILIES, ("10.0.0.5", "fd00:1::5"), strict=True)
        ],
    )
    assert set(made.said()) == {AT_NODE}


def test_a_host_port_at_one_address_of_the_node_leads_to_the_pods_of_that_family() -> None:
    at = [ContainerPort(port=80, host_port=8080, host_address=each) for each in ("192.0.2.1", "2001:db8::1")]
    made = model(hosted(*at), endpoint())
    found = host_ports(made)
    assert found is not None and [(each.address, each.family) for each in found.ports] == [("192.0.2.1", "IPv4")]
    assert made.left_out["pod", "default", "p"] == {"[2001:db8::1]:8080": OTHER_FAMILY_OF_HOST}


@pytest.mark.parametrize(
    "things",
    [
        pytest.param((hosted(WEB),), id="no endpoint"),
        pytest.param((hosted(WEB, node=""),), id="no node"),
        pytest.param((hosted(WEB, phase="Failed"), endpoint()), id="it has ended"),
        pytest.param((hosted(WEB, host_network=True, address="192.0.2.1"),), id="on the host's network"),
        pytest.param((hosted(ContainerPort(port=80)), endpoint()), id="no host port"),
        pytest.param((hosted(ContainerPort(port=80, host_port=70_000)), endpoint()), id="no port"),
        pytest.param((hosted(WEB), endpoint(address="8.8.8.8")), id="not of the node's blocks"),
    ],
)
def test_has_no_host_port(things: tuple[tuple[str, Message], ...]) -> None:
    assert host_ports(model(*things)) is None


def test_what_a_host_port_goes_without_is_told() -> None:
    made = model(hosted(WEB), endpoint(address="8.8.8.8"))
    list(made.act())
    assert made.left_out["pod", "default", "p"] == {"8.8.8.8 of pod p": OUTSIDE_BLOCK}


def test_a_host_port_goes_with_its_pod_and_comes_with_its_nodes_block() -> None:
    made = model(hosted(WEB), endpoint(address="11.0.0.5"))
    assert host_ports(made) is None
    made.put(*block("11.0.0.0/24"))
    assert host_ports(made) is not None
    assert list(made.act()) == []
    made.delete(POD.of("default", "p"))
    assert list(made.act()) == [Unsay(AT_NODE)] and not set(made.said())
