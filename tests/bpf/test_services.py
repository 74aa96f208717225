"""Services packet by packet: what the socket hooks did not see."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP

from services.dataplane.layouts import FLAG_ENFORCE_EGRESS, ServiceKey
from services.dataplane.policy import EGRESS
from tests.bpf.datapath import (
    NEIGHBOUR,
    NODE,
    OTHER_NODE,
    POD,
    REMOTE,
    TC_ACT_OK,
    Datapath,
    Routed,
    tcp,
    udp,
    with_right_checksums,
)

POLICY_DENIED, UNKNOWN_TARGET, UNROUTABLE, NO_BACKEND = 133, 150, 151, 158
SERVICE = "10.96.0.10"
SECOND = "10.0.1.6"


@pytest.fixture
def node(datapath: Datapath) -> Datapath:
    datapath.endpoint(POD, 256)
    datapath.endpoint(NEIGHBOUR, 257)
    datapath.who(REMOTE, 300, OTHER_NODE)
    datapath.who(SECOND, 301, OTHER_NODE)
    datapath.who(NODE, 1)
    datapath.maps.raise_epoch()
    return datapath


@pytest.mark.parametrize("ports", [(80, 8080), (80, 80)])
@pytest.mark.parametrize("backend", [REMOTE, NEIGHBOUR])
def test_a_packet_to_a_service_goes_to_its_backend_and_comes_back_as_the_service(
    node: Datapath, backend: str, ports: tuple[int, int]
) -> None:
    port, backend_port = ports
    node.service(SERVICE, port, 6, [(backend, backend_port)])
    client = node.free_port()
    there = node.passes("from_pod", tcp(POD, SERVICE, client, port))
    assert (there[IP].src, there[IP].dst, there[TCP].sport, there[TCP].dport) == (POD, backend, client, backend_port)
    assert with_right_checksums(bytes(there)) == bytes(there)
    way_back = "from_netdev" if backend == REMOTE else "from_pod"
    back = node.passes(way_back, tcp(backend, POD, backend_port, client, "SA"))
    assert (back[IP].src, back[IP].dst, back[TCP].sport, back[TCP].dport) == (SERVICE, POD, port, client)
    assert with_right_checksums(bytes(back)) == bytes(back)


def test_udp_checksums_stay_right(node: Datapath) -> None:
    node.service(SERVICE, 53, 17, [(REMOTE, 5353)])
    client = node.free_port()
    there = node.passes("from_pod", udp(POD, SERVICE, client, 53))
    assert (there[IP].dst, there[UDP].dport) == (REMOTE, 5353)
    assert with_right_checksums(bytes(there)) == bytes(there)
    back = node.passes("from_netdev", udp(REMOTE, POD, 5353, client))
    assert (back[IP].src, back[UDP].sport) == (SERVICE, 53)
    assert with_right_checksums(bytes(back)) == bytes(back)


def test_udp_without_a_checksum_stays_without(node: Datapath) -> None:
    node.service(SERVICE, 53, 17, [(REMOTE, 5353)])
    client = node.free_port()
    there = node.passes("from_pod", udp(POD, SERVICE, client, 53, chksum=0))
    back = node.passes("from_netdev", udp(REMOTE, POD, 5353, client, chksum=0))
    for packet in (there, back):
        assert packet[UDP].chksum == 0
        assert with_right_checksums(bytes(packet)) == bytes(packet)
    assert (there[IP].dst, back[IP].src) == (REMOTE, SERVICE)


def test_a_udp_checksum_never_becomes_none(node: Datapath) -> None:
    """One that comes out as 0 is sent as 0xffff (RFC 768)."""
    node.service(SERVICE, 53, 17, [(REMOTE, 5353)])
    for client in range(1024, 1024 + 3000):
        packet = node.run("from_pod", udp(POD, SERVICE, client, 53)).packet
        assert packet[40:42] != b"\0\0"


def test_a_connection_stays_with_its_backend_and_connections_are_spread(node: Datapath) -> None:
    node.service(SERVICE, 80, 6, [(REMOTE, 8080), (SECOND, 8080)])
    chosen = set()
    for _ in range(30):
        client = node.free_port()
        backends = {
            node.passes("from_pod", tcp(POD, SERVICE, client, 80, what))[IP].dst for what in ("S", "A", "PA", "A")
        }
        assert len(backends) == 1
        chosen |= backends
    assert chosen == {REMOTE, SECOND}


def test_a_connection_stays_with_its_backend_when_another_takes_the_slot(node: Datapath) -> None:
    node.service(SERVICE, 80, 6, [(REMOTE, 8080)])
    client = node.free_port()
    node.passes("from_pod", tcp(POD, SERVICE, client, 80))
    node.service(SERVICE, 80, 6, [(SECOND, 8080)])
    node.maps.raise_epoch()
    assert node.passes("from_pod", tcp(POD, SERVICE, client, 80, "A"))[IP].dst == REMOTE
    assert node.passes("from_pod", tcp(POD, SERVICE, node.free_port(), 80))[IP].dst == SECOND


def test_a_connection_stays_at_its_backend_when_that_leaves_the_service(node: Datapath) -> None:
    node.service(SERVICE, 80, 6, [(REMOTE, 8080)])
    client = node.free_port()
    node.passes("from_pod", tcp(POD, SERVICE, client, 80))
    node.passes("from_netdev", tcp(REMOTE, POD, 8080, client, "SA"))
    node.service(SERVICE, 80, 6, [(SECOND, 8080)])
    node.maps.raise_epoch()
    assert node.passes("from_pod", tcp(POD, SERVICE, client, 80, "A"))[IP].dst == REMOTE
    assert node.passes("from_pod", tcp(POD, SERVICE, client, 80, "S"))[IP].dst == SECOND  # the ports are used again


def test_a_datagram_goes_to_no_backend_that_has_left(node: Datapath) -> None:
    node.service(SERVICE, 53, 17, [(REMOTE, 5353)])
    client = node.free_port()
    assert node.passes("from_pod", udp(POD, SERVICE, client, 53))[IP].dst == REMOTE
    node.service(SERVICE, 53, 17, [(SECOND, 5353)])
    node.maps.raise_epoch()
    assert node.passes("from_pod", udp(POD, SERVICE, client, 53))[IP].dst == SECOND


@pytest.mark.parametrize("make", [tcp, udp])
def test_who_called_before_the_service_was_known_reaches_it_by_calling_again(node: Datapath, make: Any) -> None:
    node.who(SERVICE, 2, OTHER_NODE)  # somewhere to go meanwhile
    client = node.free_port()
    number = 6 if make is tcp else 17
    assert node.passes("from_pod", make(POD, SERVICE, client, 80))[IP].dst == SERVICE
    node.service(SERVICE, 80, number, [(REMOTE, 8080)])
    node.maps.raise_epoch()
    assert node.passes("from_pod", make(POD, SERVICE, client, 80))[IP].dst == REMOTE


def test_replies_bear_the_address_that_was_called_last(node: Datapath) -> None:
    node.service(SERVICE, 80, 6, [(REMOTE, 8080)])
    client = node.free_port()
    node.passes("from_pod", tcp(POD, REMOTE, client, 8080))
    assert node.passes("from_netdev", tcp(REMOTE, POD, 8080, client, "SA"))[IP].src == REMOTE
    node.passes("from_pod", tcp(POD, SERVICE, client, 80))
    assert node.passes("from_netdev", tcp(REMOTE, POD, 8080, client, "SA"))[IP].src == SERVICE


def test_a_service_without_backends_is_dropped(node: Datapath) -> None:
    node.service(SERVICE, 80, 6, [])
    assert node.dropped_for("from_pod", tcp(POD, SERVICE, node.free_port(), 80)) == NO_BACKEND


def test_policy_is_about_the_backend(node: Datapath) -> None:
    node.service(SERVICE, 80, 6, [(REMOTE, 8080)])
    node.endpoint(POD, 256, policy=9, flags=FLAG_ENFORCE_EGRESS)
    node.maps.raise_epoch()
    assert node.dropped_for("from_pod", tcp(POD, SERVICE, node.free_port(), 80)) == POLICY_DENIED
    node.allow(9, 300, EGRESS, 6, 80, 24)
    assert node.dropped_for("from_pod", tcp(POD, SERVICE, node.free_port(), 80)) == POLICY_DENIED
    node.allow(9, 300, EGRESS, 6, 8080, 24)
    assert node.dropped_for("from_pod", tcp(POD, SERVICE, node.free_port(), 80)) == 0


def test_protocols_and_ports_are_services_of_their_own(node: Datapath) -> None:
    node.service(SERVICE, 53, 17, [(REMOTE, 5353)])
    node.who(SERVICE, 300, OTHER_NODE)
    assert node.passes("from_pod", tcp(POD, SERVICE, node.free_port(), 53))[IP].dst == SERVICE
    assert node.passes("from_pod", udp(POD, SERVICE, node.free_port(), 54))[IP].dst == SERVICE


def test_a_backend_that_is_the_node_itself_answers_as_the_service(node: Datapath) -> None:
    node.service(SERVICE, 443, 6, [(NODE, 6443)])
    client = node.free_port()
    there = node.run("from_pod", tcp(POD, SERVICE, client, 443))
    assert there.result == TC_ACT_OK
    back = node.passes("to_pod", tcp(NODE, POD, 6443, client, "SA"))
    assert (back[IP].src, back[TCP].sport) == (SERVICE, 443)
    assert with_right_checksums(bytes(back)) == bytes(back)


def test_a_pod_does_not_get_its_own_packet_back_as_a_martian(node: Datapath) -> None:
    """The socket hooks see to it that a pod reaches itself; per packet it would seem to come from itself."""
    node.service(SERVICE, 80, 6, [(POD, 8080)])
    assert node.dropped_for("from_pod", tcp(POD, SERVICE, node.free_port(), 80)) == UNKNOWN_TARGET


def test_when_the_service_is_gone_its_address_is_one_like_any_other(routed: Routed) -> None:
    routed.endpoint(POD, 256)
    routed.who(REMOTE, 300, OTHER_NODE)
    routed.service(SERVICE, 80, 6, [(REMOTE, 8080)])
    client = routed.free_port()
    routed.passes("from_pod", tcp(POD, SERVICE, client, 80))
    routed.maps["services"].remove(ServiceKey(SERVICE, 80, 6).pack())
    routed.maps.raise_epoch()
    assert routed.passes("from_pod", tcp(POD, SERVICE, client, 80, "A"))[IP].dst == SERVICE


def test_a_backend_that_has_left_this_node_is_not_found(node: Datapath) -> None:
    node.who("10.0.0.0", 3, NODE, bits=24)
    node.service(SERVICE, 80, 6, [("10.0.0.99", 8080)])
    assert node.dropped_for("from_pod", tcp(POD, SERVICE, node.free_port(), 80)) == UNROUTABLE
