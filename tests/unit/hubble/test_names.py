"""Who is at an address, which Service, which policies: as the bus says it, at the time of asking."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import subjects
from bus.messages import Message
from bus.messages.dataplane import Endpoint
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.lb import Backend, Frontend, LoadBalancedService
from bus.messages.resources import Node, Pod
from services.hubble.names import HEARS, Names, Party, ServiceName, Workload, pack

LABELS = {"k8s:org": "empire", "k8s:class": "deathstar"}
IDENTITY = Identity(number=2000, labels=LABELS)
ADDRESS = AddressIdentity(address="10.0.2.2", identity=2000, node="node2", node_address="192.0.2.2", pod="empire/d-1")
POD = Pod(namespace="empire", name="d-1", uid="u", owner="deployment/empire/d")
ENDPOINT = Endpoint(
    node="node1",
    namespace="empire",
    pod="d-1",
    address="10.0.2.2",
    addresses=["10.0.2.2", "fd00::2"],
    mac="",
    interface="lxc1",
    interface_index=17,
    identity=2000,
    state="ready",
)
BACKENDS = [Backend(address="10.0.2.2", port=8080)]
FIRST = Frontend(address="10.96.0.1", port=80, protocol="TCP", backends=BACKENDS)
SECOND = Frontend(address="10.96.0.2", port=80, protocol="TCP", backends=BACKENDS)
SERVICE = LoadBalancedService(namespace="empire", name="d", frontends=[FIRST])
ALL: list[Message] = [IDENTITY, ADDRESS, POD, ENDPOINT, SERVICE]


def heard(*messages: Message) -> Names:
    names = Names("node1")
    for message in messages:
        names.put(subject_of(message), message)
    return names


def subject_of(message: Message) -> str:
    (family,) = (each for each in HEARS if isinstance(message, each.message))
    return family.subject_of(message)


def asked(names: Names, address: str, port: int, protocol: int = 6) -> ServiceName | None:
    return names.service(pack(address), socket.htons(port), protocol)


def test_a_pod_elsewhere_has_name_labels_workload_and_node() -> None:
    names = heard(IDENTITY, ADDRESS, POD)
    labels = ("k8s:class=deathstar", "k8s:org=empire")
    wanted = Party(2000, "empire", "d-1", labels, Workload("d", "Deployment"), 0, "node2")
    assert names.party(pack("10.0.2.2"), 0) == wanted


def test_a_pod_of_this_node_has_the_number_of_its_interface_by_each_of_its_addresses() -> None:
    names = heard(IDENTITY, ENDPOINT, POD)
    assert [names.party(pack(each), 0).number for each in ("10.0.2.2", "fd00::2")] == [17, 17]
    assert names.party(pack("fd00::2"), 0).node == "node1"


def test_the_kernels_identity_counts_where_it_looked() -> None:
    assert heard(IDENTITY, ADDRESS).party(pack("10.0.2.2"), 2).labels == ("reserved:world",)


def test_nobody_knows_an_address_of_the_outside() -> None:
    assert heard(*ALL).party(pack("192.0.2.99"), 2) == Party(2, labels=("reserved:world",))


def test_a_pod_that_nothing_made_is_its_own_workload() -> None:
    names = heard(ADDRESS, Pod(namespace="empire", name="d-1", uid="u"))
    assert names.party(pack("10.0.2.2"), 0).workload == Workload("d-1", "Pod")


def test_a_service_is_known_by_its_own_address_and_by_a_backend_that_no_other_has() -> None:
    names = heard(SERVICE)
    assert asked(names, "10.96.0.1", 80) == asked(names, "10.0.2.2", 8080) == ServiceName("empire", "d")
    assert asked(names, "10.0.2.2", 80) is None and asked(names, "10.0.2.2", 8080, 17) is None


def test_a_backend_of_two_services_names_neither_until_one_is_gone() -> None:
    other = LoadBalancedService(namespace="empire", name="e", frontends=[SECOND])
    names = heard(SERVICE, other)
    assert asked(names, "10.0.2.2", 8080) is None and asked(names, "10.96.0.2", 80) == ServiceName("empire", "e")
    names.delete(subjects.FRONTEND.of("empire", "e"))
    assert asked(names, "10.0.2.2", 8080) == ServiceName("empire", "d") and asked(names, "10.96.0.2", 80) is None


def test_what_was_found_before_a_change_is_not_told_after_it() -> None:
    names = heard(IDENTITY, ADDRESS)
    before = names.party(pack("10.0.2.2"), 0)
    names.delete(subjects.ADDRESS.of("10.0.2.2"))
    assert before.pod == "d-1" and names.party(pack("10.0.2.2"), 0).pod == ""


def test_an_address_that_a_new_pod_has_is_not_taken_from_it_by_the_old_ones_end() -> None:
    names = heard(ENDPOINT)
    later = Endpoint(**{**{name: getattr(ENDPOINT, name) for name in ENDPOINT.__struct_fields__}, "pod": "d-2"})
    names.put(subject_of(later), later)
    names.delete(subject_of(ENDPOINT))
    assert names.party(pack("10.0.2.2"), 0).pod == "d-2"


def test_a_message_that_makes_no_sense_is_refused_and_what_was_known_stays() -> None:
    names = heard(SERVICE)
    bad = LoadBalancedService(namespace="empire", name="d", frontends=[Frontend(address="x", port=1, protocol="TCP")])
    with pytest.raises(ValueError, match="'x' is not an address"):
        names.put(subject_of(bad), bad)
    assert asked(names, "10.96.0.1", 80) == ServiceName("empire", "d")


def test_a_nodes_own_labels_are_its_own() -> None:
    names = heard(Node(name="node1", addresses=[], labels={"zone": "a"}), Node(name="node2", addresses=[]))
    assert names.node_labels == ("zone=a",) and set(names.nodes) == {"node1", "node2"}


@given(st.permutations(ALL), st.lists(st.sampled_from(ALL), max_size=8))
def test_in_whatever_order_and_how_often_it_was_heard_the_names_are_the_same(
    order: list[Message], gone_and_back: list[Message]
) -> None:
    names = heard(*order)
    for message in gone_and_back:
        names.delete(subject_of(message))
        names.put(subject_of(message), message)
    wanted = heard(*ALL)
    for address in ("10.0.2.2", "fd00::2", "10.96.0.1"):
        assert names.party(pack(address), 0) == wanted.party(pack(address), 0)
    assert asked(names, "10.0.2.2", 8080) == asked(wanted, "10.0.2.2", 8080) == ServiceName("empire", "d")


@given(st.permutations(ALL))
def test_when_all_is_gone_nothing_is_left(order: list[Message]) -> None:
    names = heard(*ALL)
    for message in order:
        names.delete(subject_of(message))
    assert names.party(pack("10.0.2.2"), 0) == Party(0) and not names.has_services
    assert asked(names, "10.96.0.1", 80) is None and asked(names, "10.0.2.2", 8080) is None
