"""A Service's frontends have the backends that can take a connection now, in a stable order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.control import Action, Say, Unsay
from bus.messages import Message
from bus.messages.dataplane import Endpoint
from bus.messages.ipam import Block
from bus.messages.lb import Backend, LoadBalancedService
from bus.messages.resources import ContainerPort, EndpointPort, EndpointSlice, Pod, Service, ServicePort, SliceEndpoint
from bus.subjects import BLOCK, ENDPOINT, ENDPOINT_SLICE, FRONTEND, POD, SERVICE
from services.lb.model import NOT_A_PORT, OTHER_FAMILY, SCTP_KEEPS_PORT, LoadBalancing
from services.lb.places import NOT_AN_ADDRESS, OUTSIDE_BLOCK

WEB = {"app": "web"}


def service(name: str = "svc", **fields: Any) -> tuple[str, Service]:
    ports = [ServicePort(port=80, target_port=8080)]
    message = Service(
        **{"namespace": "default", "name": name, "cluster_addresses": ["10.96.0.1"], "ports": ports, "selector": WEB}
        | fields
    )
    return SERVICE.of("default", name), message


def pod(name: str = "p", **fields: Any) -> tuple[str, Pod]:
    values: dict[str, Any] = {
        "namespace": "default",
        "name": name,
        "uid": f"uid-{name}",
        "labels": WEB,
        "node": "node1",
        "phase": "Running",
        "ready": True,
    }
    message = Pod(**values | fields)
    return POD.of(message.namespace, name), message


def endpoint(name: str = "p", address: str = "10.0.0.5", on: str = "node1", **fields: Any) -> tuple[str, Endpoint]:
    values: dict[str, Any] = {
        "node": on,
        "namespace": "default",
        "pod": name,
        "uid": f"uid-{name}",
        "address": address,
        "mac": "",
        "interface": "",
        "interface_index": 1,
        "identity": 256,
        "state": "ready",
    }
    message = Endpoint(**values | fields)
    return ENDPOINT.of(on, "default", name), message


def slice_of(name: str = "s", **fields: Any) -> tuple[str, EndpointSlice]:
    message = EndpointSlice(**{"namespace": "default", "name": name, "service": "svc"} | fields)
    return ENDPOINT_SLICE.of("default", name), message


def block(cidr: str = "10.0.0.0/8", on: str = "node1") -> tuple[str, Block]:
    return BLOCK.of(cidr), Block(cidr=cidr, node=on)


BLOCKS = block(), block("9.0.0.0/8"), block("10.0.0.0/9", "node2")


def model(*things: tuple[str, Message]) -> LoadBalancing:
    """Of nodes that hold `BLOCKS`."""
    made = LoadBalancing()
    for subject, message in (*BLOCKS, *things):
        made.put(subject, message)
    return made


def said(actions: list[Action]) -> LoadBalancedService:
    (action,) = actions
    assert isinstance(action, Say) and isinstance(action.message, LoadBalancedService)
    return action.message


def backends(*things: tuple[str, Message]) -> list[Backend]:
    (frontend,) = said(list(model(*things).act())).frontends
    return frontend.backends


def test_a_ready_pod_with_an_endpoint_in_operation_is_a_backend() -> None:
    assert backends(service(), pod(), endpoint()) == [Backend(address="10.0.0.5", port=8080, node="node1")]


@pytest.mark.parametrize(
    "things",
    [
        pytest.param((pod(ready=False), endpoint()), id="a pod that is not ready"),
        pytest.param((pod(phase="Failed"), endpoint()), id="a pod that has ended"),
        pytest.param((pod(),), id="a pod without endpoint"),
        pytest.param((pod(), endpoint(state="waiting-for-policy")), id="an endpoint not in operation"),
        pytest.param((pod(), endpoint(uid="earlier")), id="the endpoint of an earlier pod of the name"),
        pytest.param((pod(), endpoint(on="node2")), id="an endpoint on another node than the pod's"),
        pytest.param((endpoint(),), id="an endpoint without pod"),
        pytest.param((pod(labels={"app": "other"}), endpoint()), id="a pod that is not selected"),
        pytest.param((pod(namespace="shop"), endpoint()), id="a pod of another namespace"),
        pytest.param((pod(host_network=True),), id="a pod on the host's network without address"),
        pytest.param((pod(host_network=True, address="fd00::1"),), id="a pod on the host's network by IPv6"),
        pytest.param((pod(), endpoint(address="8.8.8.8")), id="an address outside of the node's blocks"),
        pytest.param((pod(node="node2"), endpoint(address="10.200.0.1", on="node2")), id="one in another node's block"),
        pytest.param((pod(), endpoint(address="fd00::1")), id="an address of another family"),
        pytest.param((pod(), endpoint(address="zzz")), id="what is no address"),
    ],
)
def test_is_no_backend(things: tuple[tuple[str, Message], ...]) -> None:
    assert backends(service(), *things) == []


def test_what_is_left_out_is_counted_told_once_and_named_until_it_is_mended() -> None:
    told: list[tuple[str, dict[str, str]]] = []
    made = LoadBalancing(lambda reason, facts: told.append((reason, facts)))
    for thing in (*BLOCKS, service(), pod("a"), pod("b"), endpoint("a", "8.8.8.8"), endpoint("b", "10.0.0.6")):
        made.put(*thing)
    assert [each.address for each in said(list(made.act())).frontends[0].backends] == ["10.0.0.6"]
    made.put(*service(labels={"a": "b"}))
    list(made.act())
    assert made.left_out == {("default", "svc"): {"8.8.8.8:8080 of pod a": OUTSIDE_BLOCK}}
    assert told == [(OUTSIDE_BLOCK, {"service": "default/svc", "what": "8.8.8.8:8080 of pod a"})]
    assert made.refusals == {OUTSIDE_BLOCK: 1}
    made.put(*endpoint("a", "10.0.0.5"))
    assert len(said(list(made.act())).frontends[0].backends) == 2
    assert not made.left_out


def test_a_block_that_comes_later_or_goes_moves_its_nodes_backends() -> None:
    made = model(service(), pod(), endpoint(address="11.0.0.5"))
    assert said(list(made.act())).frontends[0].backends == []
    made.put(*block("11.0.0.0/24"))
    assert len(said(list(made.act())).frontends[0].backends) == 1
    made.put(*block("11.0.0.0/24", on="node2"))
    assert said(list(made.act())).frontends[0].backends == []
    made.put(*block("11.0.0.0/24"))
    list(made.act())
    made.delete(BLOCK.of("11.0.0.0/24"))
    assert said(list(made.act())).frontends[0].backends == []


def test_a_node_cannot_speak_for_another_in_a_message_of_its_own() -> None:
    made = model(service(), pod(), endpoint())
    list(made.act())
    _, forged = endpoint(address="10.0.0.66")
    with pytest.raises(ValueError, match="another thing"):
        made.put(ENDPOINT.of("node2", "default", "p"), forged)
    assert list(made.act()) == []


def test_a_service_that_fails_keeps_its_backends_and_does_not_hold_up_the_others() -> None:
    made = model(service("a"), service("b"), pod(), endpoint())
    list(made.act())
    senseless: Any = "80"  # no decoder lets it through; here it stands for whatever may go wrong with one service
    made.put(*service("a", ports=[ServicePort(port=senseless, target_port=1)]))
    made.put(*pod(ready=False))
    assert [action.subject for action in made.act()] == [FRONTEND.of("default", "b")]
    assert list(made.failed) == [("default", "a")]
    assert FRONTEND.of("default", "a") in set(made.said())
    made.put(*service("a"))
    assert [action.subject for action in made.act()] == [FRONTEND.of("default", "a")]
    assert not made.failed


def test_an_address_or_port_that_makes_no_sense_is_left_out_of_its_service() -> None:
    wrong = service(
        cluster_addresses=["zzz", "::ffff:10.96.0.2", "10.96.0.1"],
        ports=[ServicePort(name="a", port=0, target_port=1), ServicePort(name="b", port=80, target_port=70000)],
    )
    made = model(wrong, pod(), endpoint())
    (frontend,) = said(list(made.act())).frontends
    assert (frontend.address, frontend.port, frontend.backends) == ("10.96.0.1", 80, [])
    assert made.refusals == {NOT_AN_ADDRESS: 4, NOT_A_PORT: 2}


def test_a_pod_on_the_hosts_network_is_reached_at_its_reported_address() -> None:
    assert backends(service(), pod(host_network=True, address="192.0.2.1"))[0].address == "192.0.2.1"


# -- two families

DUAL = service(cluster_addresses=["fd00:96::1", "10.96.0.1"])
BLOCK6 = block("fd00:1::/64")


def by_family(*things: tuple[str, Message]) -> list[tuple[str, list[str]]]:
    """Each frontend's address, with those of its backends."""
    frontends = said(list(model(BLOCK6, *things).act())).frontends
    return [(each.address, [backend.address for backend in each.backends]) for each in frontends]


def test_behind_an_address_of_one_family_are_backends_of_that_family() -> None:
    both = endpoint("a", "10.0.0.5", addresses=["10.0.0.5", "fd00:1::5"])
    only = endpoint("b", "FD00:1:0::6")
    found = by_family(DUAL, pod("a"), pod("b"), both, only)
    assert found == [("10.96.0.1", ["10.0.0.5"]), ("fd00:96::1", ["fd00:1::5", "fd00:1::6"])]


def test_an_address_outside_the_nodes_blocks_of_its_family_is_left_out_alone() -> None:
    made = model(BLOCK6, DUAL, pod(), endpoint(addresses=["10.0.0.5", "fd00:2::5"]))
    found = [(each.address, len(each.backends)) for each in said(list(made.act())).frontends]
    assert found == [("10.96.0.1", 1), ("fd00:96::1", 0)]
    assert made.left_out == {("default", "svc"): {"[fd00:2::5]:8080 of pod p": OUTSIDE_BLOCK}}


def test_a_pod_with_many_addresses_of_a_family_is_one_backend() -> None:
    assert by_family(DUAL, pod(), endpoint(addresses=["10.0.0.5", "fd00:1::5", "fd00:1::6"]))[1] == (
        "fd00:96::1",
        ["fd00:1::5"],
    )


def test_a_pod_on_the_hosts_network_is_reached_at_each_reported_address() -> None:
    found = by_family(DUAL, pod(host_network=True, address="192.0.2.1", addresses=["192.0.2.1", "2001:db8::1"]))
    assert found == [("10.96.0.1", ["192.0.2.1"]), ("fd00:96::1", ["2001:db8::1"])]


def test_slices_serve_the_addresses_of_their_type() -> None:
    own = service(cluster_addresses=["fd00:96::1", "10.96.0.1"], selector={})
    ports = [EndpointPort(port=8080)]
    four = slice_of("a", ports=ports, endpoints=[SliceEndpoint(addresses=["10.0.0.1"])])
    six = slice_of("b", ports=ports, endpoints=[SliceEndpoint(addresses=["FD00::9"])], address_type="IPv6")
    assert by_family(own, four, six) == [("10.96.0.1", ["10.0.0.1"]), ("fd00:96::1", ["fd00::9"])]


@pytest.mark.parametrize(
    ("address", "reason"),
    [("10.0.0.1", OTHER_FAMILY), ("::ffff:10.0.0.1", NOT_AN_ADDRESS), ("fe80::1%eth0", NOT_AN_ADDRESS)],
)
def test_what_is_no_address_of_its_slices_type_is_left_out(address: str, reason: str) -> None:
    own = service(cluster_addresses=["fd00:96::1"], selector={})
    wrong = [SliceEndpoint(addresses=[address]), SliceEndpoint(addresses=["fd00::9"])]
    made = model(own, slice_of(ports=[EndpointPort(port=8080)], endpoints=wrong, address_type="IPv6"))
    (frontend,) = said(list(made.act())).frontends
    assert [each.address for each in frontend.backends] == ["fd00::9"]
    assert made.refusals == {reason: 1}


def test_a_service_for_sctp_has_frontends_of_sctp() -> None:
    ports = [ServicePort(port=80, target_port=80, protocol="SCTP")]
    (frontend,) = said(list(model(service(ports=ports), pod(), endpoint()).act())).frontends
    assert (frontend.protocol, len(frontend.backends)) == ("SCTP", 1)


def test_a_backend_at_another_port_is_left_out_of_a_service_for_sctp_by_name() -> None:
    """Nobody translates its port: every packet would be dropped, and the Service would look well."""
    made = model(
        service(ports=[ServicePort(port=80, target_port="s", protocol="SCTP")]),
        pod(ports=[ContainerPort(name="s", port=8080, protocol="SCTP")]),
        *(endpoint(), block()),
    )
    assert not said(list(made.act())).frontends[0].backends
    assert made.left_out["default", "svc"] == {"10.0.0.5:8080 of pod p": SCTP_KEEPS_PORT}


@pytest.mark.parametrize(
    ("states", "serve", "drain"),
    [
        ({"2": "ready", "3": "draining", "4": "gone"}, {"2"}, {"3"}),
        ({"2": "gone", "3": "draining", "4": "draining"}, {"3", "4"}, set()),
        ({"2": "gone"}, set(), set()),
    ],
)
def test_endpoints_about_to_end_serve_where_none_is_ready_and_else_drain(
    states: dict[str, str], serve: set[str], drain: set[str]
) -> None:
    port = EndpointPort(name="http", port=8080)
    slices = [
        slice_of(
            f"s{last}",
            ports=[port],
            endpoints=[
                SliceEndpoint(addresses=[f"10.1.0.{last}"], ready=state == "ready", draining=state == "draining")
            ],
        )
        for last, state in states.items()
    ]
    ports = [ServicePort(name="http", port=80, target_port="http")]
    (found,) = said(list(model(service(selector={}, ports=ports), *slices).act())).frontends
    assert {each.address.rpartition(".")[2] for each in found.backends} == serve
    assert {each.address.rpartition(".")[2] for each in found.draining} == drain


def test_a_service_without_backends_has_a_frontend_without_backends() -> None:
    (frontend,) = said(list(model(service()).act())).frontends
    assert (frontend.address, frontend.port, frontend.protocol, frontend.backends) == ("10.96.0.1", 80, "TCP", [])


def test_a_named_target_port_is_each_pods_own_number_of_the_protocol() -> None:
    named = service(ports=[ServicePort(port=80, target_port="http")])
    one = pod("a", ports=[ContainerPort(name="http", port=8080)])
    other = pod("b", ports=[ContainerPort(name="http", port=53, protocol="UDP"), ContainerPort(name="http", port=9090)])
    without = pod("c")
    places = (endpoint("a", "10.0.0.1"), endpoint("b", "10.0.0.2"), endpoint("c", "10.0.0.3"))
    found = backends(named, one, other, without, *places)
    assert [(each.address, each.port) for each in found] == [("10.0.0.1", 8080), ("10.0.0.2", 9090)]


def test_frontends_and_backends_stand_in_the_order_of_their_addresses_as_numbers() -> None:
    ports = [ServicePort(name="b", port=81, target_port=2), ServicePort(name="a", port=80, target_port=1)]
    made = model(service(ports=ports), *(pod(name) for name in "abc"))
    for name, address in (("a", "10.0.0.10"), ("b", "10.0.0.9"), ("c", "9.0.0.1")):
        made.put(*endpoint(name, address))
    frontends = said(list(made.act())).frontends
    assert [each.port for each in frontends] == [80, 81]
    assert [each.address for each in frontends[0].backends] == ["9.0.0.1", "10.0.0.9", "10.0.0.10"]


def test_a_service_without_selector_has_what_its_slices_say() -> None:
    named = service(selector={}, ports=[ServicePort(name="http", port=80, target_port=80)])
    ready, gone = (
        SliceEndpoint(addresses=["10.1.0.2", "10.1.0.1"], node="n"),
        SliceEndpoint(addresses=["10.1.0.3"], ready=False),
    )
    right = slice_of("a", ports=[EndpointPort(name="http", port=8080)], endpoints=[ready, gone])
    same_again = slice_of("b", ports=[EndpointPort(name="http", port=8080)], endpoints=[ready])
    other_port = slice_of("c", ports=[EndpointPort(name="metrics", port=9090)], endpoints=[ready])
    found = backends(named, right, same_again, other_port, pod(), endpoint())
    assert [(each.address, each.port) for each in found] == [("10.1.0.1", 8080), ("10.1.0.2", 8080)]


def test_of_a_headless_service_nothing_is_said() -> None:
    assert list(model(service(cluster_addresses=[])).act()) == []


def test_a_deleted_service_is_unsaid_once() -> None:
    made = model(service())
    list(made.act())
    made.delete(SERVICE.of("default", "svc"))
    made.delete(SERVICE.of("default", "svc"))
    assert list(made.act()) == [Unsay(FRONTEND.of("default", "svc"))]
    assert list(made.act()) == [] and list(made.said()) == []


def test_what_changes_nothing_says_nothing() -> None:
    made = model(service(), pod(), endpoint())
    list(made.act())
    for thing in (service(), pod(annotations={"a": "b"}), endpoint(identity=300)):
        made.put(*thing)
    assert list(made.act()) == []


def test_a_pod_touches_only_the_services_that_select_it() -> None:
    made = model(*(service(f"s{at}", selector={"app": f"a{at}"}) for at in range(1000)))
    list(made.act())
    made.put(*pod(labels={"app": "a7"}))
    made.put(*endpoint())
    assert made._dirty == {("default", "s7")}
    assert len(list(made.act())) == 1


def test_a_pod_that_changes_its_labels_changes_sides() -> None:
    made = model(
        service("one", selector={"app": "a"}),
        service("two", selector={"app": "b"}),
        pod(labels={"app": "a"}),
        endpoint(),
    )
    list(made.act())
    made.put(*pod(labels={"app": "b"}))
    changed = {each.subject: each.message for each in made.act() if isinstance(each, Say)}
    counts = {
        subject: len(each.frontends[0].backends)
        for subject, each in changed.items()
        if isinstance(each, LoadBalancedService)
    }
    assert counts == {FRONTEND.of("default", "one"): 0, FRONTEND.of("default", "two"): 1}


THINGS: list[tuple[str, Message]] = [
    service(),
    service(selector={"app": "web", "tier": "front"}),
    service(selector={}),
    service("b", selector={"tier": "front"}),
    service("b", cluster_addresses=[]),
    pod("a"),
    pod("a", labels={"tier": "front"}),
    pod("a", labels={"app": "web", "tier": "front"}),
    pod("b", ready=False),
    pod("b", node="node2"),
    endpoint("a", "10.0.0.1"),
    endpoint("a", "10.0.0.3", on="node2"),
    endpoint("b", "10.0.0.2"),
    endpoint("b", "10.0.0.4", on="node2"),
    endpoint("b", "8.8.8.8"),
    block(),
    block("10.0.0.0/9", "node2"),
    block("10.0.0.0/31"),
    slice_of(ports=[EndpointPort(port=1)], endpoints=[SliceEndpoint(addresses=["10.2.0.1"])]),
    slice_of(service="b", ports=[EndpointPort(port=1)], endpoints=[SliceEndpoint(addresses=["10.2.0.2"])]),
]


@given(st.lists(st.tuples(st.sampled_from(["put", "delete", "act"]), st.sampled_from(THINGS)), max_size=40))
def test_however_it_came_to_be_the_same_state_says_the_same(events: list[tuple[str, tuple[str, Message]]]) -> None:
    """The incremental model against one that hears only the outcome."""
    made, values = model(), dict[str, Message](BLOCKS)
    outputs: dict[str, Message] = {}

    def act(actor: LoadBalancing, into: dict[str, Message]) -> None:
        for action in actor.act():
            if isinstance(action, Say):
                into[action.subject] = action.message
            else:
                into.pop(action.subject)

    for what, (subject, message) in events:
        if what == "put":
            values[subject] = message
            made.put(subject, message)
        elif what == "delete":
            values.pop(subject, None)
            made.delete(subject)
        else:
            act(made, outputs)
    act(made, outputs)
    plain: dict[str, Message] = {}
    other = LoadBalancing()
    for thing in values.items():
        other.put(*thing)
    act(other, plain)
    assert outputs == plain
    assert sorted(made.said()) == sorted(outputs)


@pytest.mark.parametrize("label", ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"])
def test_a_service_that_is_another_proxys_has_no_frontends(label: str) -> None:
    model = LoadBalancing()
    model.put(*service())
    list(model.act())
    assert list(model.said()) == [FRONTEND.of("default", "svc")]
    model.put(*service(labels={label: "other"}))
    assert list(model.act()) == [Unsay(FRONTEND.of("default", "svc"))]
    model.put(*service())
    assert [type(each) for each in model.act()] == [Say]


def test_a_name_for_a_name_has_no_frontends() -> None:
    model = LoadBalancing()
    model.put(*service(type="ExternalName", external_name="a.b", cluster_addresses=[]))
    assert list(model.act()) == []
