"""Ports of nodes that lead to a pod: where they are entries, and who has one that several want."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages.lb import Backend, Exposure, Frontend, HostPort, HostPorts, LoadBalancedService
from bus.messages.resources import Node
from bus.subjects import FRONTEND, HOST_PORTS, NODE
from services.dataplane.model import NodeModel
from services.dataplane.shapes.layouts import (
    SERVES_OUTSIDE,
    BackendEntry,
    BackendKey,
    LivingKey,
    ServiceEntry,
    ServiceKey,
)
from tests.unit.dataplane.parts.test_services import Kernel

HERE, THERE = "192.0.2.1", "192.0.2.2"
HERE6 = "2001:db8::1"
NODES = {"here": [HERE, HERE6], "there": [THERE]}
Led = dict[str, tuple[str, int]]


def port(backend: str, number: int = 8080, address: str = "") -> HostPort:
    return HostPort(
        address=address,
        family="IPv6" if ":" in backend else "IPv4",
        port=number,
        protocol="TCP",
        backend=Backend(address=backend, port=80),
    )


def put_pod(model: NodeModel, name: str, *ports: HostPort, node: str = "here") -> None:
    made = HostPorts(node=node, namespace="default", pod=name, ports=list(ports))
    model.put(HOST_PORTS.of(node, "default", name), made)


def put_service(model: NodeModel, address: str, external: str = "") -> None:
    front = Frontend(address=address, port=8080, protocol="TCP", backends=[Backend(address="10.9.9.9", port=80)])
    exposures = [Exposure(kind="ExternalIP", address=external, family="IPv4", port=8080, protocol="TCP")]
    made = LoadBalancedService(
        namespace="default", name="svc", frontends=[front], exposures=exposures if external else []
    )
    model.put(FRONTEND.of("default", "svc"), made)


@pytest.fixture
def model() -> NodeModel:
    return fresh()


def fresh() -> NodeModel:
    made = NodeModel("here", frozenset({HERE}))
    for name, addresses in NODES.items():
        made.put(NODE.of(name), Node(name=name, addresses=addresses))
    return made


def led(model: NodeModel) -> Led:
    """Where each address leads, of port 8080; each has one backend that lives."""
    assert not model.settle() and not model.problems
    found = {}
    for raw_key, raw in model.services.services.wanted.items():
        key, entry = ServiceKey.unpack(raw_key), ServiceEntry.unpack(raw)
        backend = BackendEntry.unpack(model.services.backends.wanted[BackendKey(entry.number, 0).pack()])
        assert entry.backends == 1 and key.port == 8080
        assert LivingKey(entry.number, backend.address, backend.port).pack() in model.services.living.wanted
        found[key.address] = (backend.address, backend.port)
    numbers = {ServiceEntry.unpack(each).number for each in model.services.services.wanted.values()}
    assert len(model.services.backends.wanted) == len(model.services.living.wanted) == len(numbers)
    return found


def test_a_host_port_is_at_each_address_of_its_node_of_the_pods_family(model: NodeModel) -> None:
    put_pod(model, "web", port("10.0.0.1"), port("fd00::1"))
    put_pod(model, "far", port("10.0.1.1"), node="there")
    assert led(model) == {HERE: ("10.0.0.1", 80), HERE6: ("fd00::1", 80), THERE: ("10.0.1.1", 80)}
    flags = {ServiceEntry.unpack(each).flags for each in model.services.services.wanted.values()}
    assert flags == {ServiceEntry.HOST_PORT}
    assert {ServiceEntry.unpack(each).outside for each in model.services.services.wanted.values()} == {1}
    assert model.services.looked_for == SERVES_OUTSIDE
    assert model.services.name_of(HERE, 8080, 6) == "default/web/host-port"


def test_an_address_that_comes_has_the_ports_and_one_that_goes_takes_them(model: NodeModel) -> None:
    put_pod(model, "web", port("10.0.0.1"))
    put_pod(model, "far", port("10.0.1.1"), node="there")
    model.network.answers_to({HERE: "eth0", "198.51.100.1": "eth1", "127.0.0.1": "lo"})
    model.put(NODE.of("there"), Node(name="there", addresses=["192.0.2.3"]))
    assert led(model) == {
        HERE: ("10.0.0.1", 80),
        "198.51.100.1": ("10.0.0.1", 80),
        "192.0.2.3": ("10.0.1.1", 80),
    }
    model.network.answers_to({HERE: "eth0"})
    model.delete(NODE.of("there"))
    assert led(model) == {HERE: ("10.0.0.1", 80)}


@pytest.mark.parametrize("elsewhere", ["198.51.100.9", THERE, "127.0.0.1", "10.96.0.10"])
def test_a_pod_gets_the_one_address_that_it_asks_for_and_none_that_its_node_has_not(
    model: NodeModel, elsewhere: str
) -> None:
    model.network.answers_to({HERE: "eth0", "198.51.100.1": "eth1"})
    put_pod(model, "web", port("10.0.0.1", address="198.51.100.1"))
    put_pod(model, "thief", port("10.0.0.2", address=elsewhere))
    assert led(model) == {"198.51.100.1": ("10.0.0.1", 80)}


def test_of_two_pods_the_first_has_it_until_it_goes_whatever_is_said_again(model: NodeModel) -> None:
    """As when one is replaced: the new one is heard of before the old one is gone."""
    put_pod(model, "old", port("10.0.0.1"))
    assert led(model)[HERE] == ("10.0.0.1", 80)
    put_pod(model, "new", port("10.0.0.2"))
    put_pod(model, "old", port("10.0.0.1"))
    assert led(model)[HERE] == ("10.0.0.1", 80)
    model.delete(HOST_PORTS.of("here", "default", "old"))
    assert led(model)[HERE] == ("10.0.0.2", 80)
    model.delete(HOST_PORTS.of("here", "default", "new"))
    assert led(model) == {}


@pytest.mark.parametrize("is_own", [True, False])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_service_goes_before_a_host_port_and_leaves_it_when_it_goes(
    model: NodeModel, is_own: bool, is_first: bool
) -> None:
    def claim() -> None:
        put_service(model, HERE if is_own else "10.96.0.1", "" if is_own else HERE)
        model.settle()

    if is_first:
        claim()
    put_pod(model, "web", port("10.0.0.1"))
    model.settle()
    if not is_first:
        claim()
    assert led(model)[HERE] == ("10.9.9.9", 80)
    model.delete(HOST_PORTS.of("here", "default", "web"))
    assert led(model)[HERE] == ("10.9.9.9", 80)
    put_pod(model, "web", port("10.0.0.1"))
    model.delete(FRONTEND.of("default", "svc"))
    assert led(model) == {HERE: ("10.0.0.1", 80)}


def test_numbers_stay_over_a_restart(model: NodeModel) -> None:
    put_pod(model, "gone", port("10.0.0.9", 8081))
    put_pod(model, "web", port("10.0.0.1"))
    model.delete(HOST_PORTS.of("here", "default", "gone"))
    led(model)
    kernel = Kernel()
    kernel.write(model.services)
    again = fresh()
    again.services.adopt(kernel.maps.__getitem__)
    put_pod(again, "web", port("10.0.0.1"))
    led(again)
    assert again.services.services.wanted == model.services.services.wanted


def test_a_host_port_that_makes_no_sense_is_refused(model: NodeModel) -> None:
    for wrong in (port("zzz"), port("10.0.0.1", 0), port("10.0.0.1", address="zzz")):
        with pytest.raises(ValueError):
            put_pod(model, "web", wrong)
    assert led(model) == {}


PODS = st.sampled_from([(f"p{number}", node) for number in range(3) for node in NODES])
STEPS = st.lists(st.tuples(PODS, st.sampled_from(["put", "delete", "settle", "service", "no service"])), max_size=30)


@given(STEPS)
def test_in_whatever_order_things_come_who_claims_a_port_has_it_in_the_end(
    steps: list[tuple[tuple[str, str], str]],
) -> None:
    model, claims, is_served = fresh(), set[tuple[str, str]](), False
    for (name, node), what in steps:
        if what == "put":
            put_pod(model, name, port(f"10.0.{len(node)}.{name[1:]}"), node=node)
            claims.add((name, node))
        elif what == "delete":
            model.delete(HOST_PORTS.of(node, "default", name))
            claims.discard((name, node))
        elif what == "settle":
            model.settle()
        else:
            is_served = what == "service"
            if is_served:
                put_service(model, THERE)
            else:
                model.delete(FRONTEND.of("default", "svc"))
    found = led(model)
    wanted = {node: {f"10.0.{len(node)}.{name[1:]}" for name, on in claims if on == node} for node in NODES}
    if is_served:
        assert found.pop(THERE) == ("10.9.9.9", 80)
        wanted.pop("there")
    assert set(found) == {NODES[node][0] for node, backends in wanted.items() if backends}
    for node, backends in wanted.items():
        assert not backends or found[NODES[node][0]][0] in backends
