"""Addresses of Services that the node announces: who asks for one on the node's network is answered, until the entry
runs out, and no other question is touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Ether

from services.dataplane.kernel.bpf import Map
from services.dataplane.kernel.steps import Steps
from services.dataplane.parts.announcements import SECOND_NS, boot_ns
from services.dataplane.shapes import limits
from services.dataplane.shapes.layouts import L2AnswerEntry, L2AnswerKey
from tests.bpf.conftest import loaded
from tests.bpf.datapath import (
    LOOPBACK_INDEX,
    NODE,
    POD,
    TC_ACT_REDIRECT,
    TC_ACT_UNSPEC,
    V4,
    Datapath,
    Routed,
)
from tests.bpf.reading import with_right_checksums

BALANCER, BALANCER6 = "192.0.2.200", "2001:db8::200"
NEIGHBOUR, NEIGHBOUR6, NEIGHBOUR_MAC = "192.0.2.77", "2001:db8::77", "02:00:00:00:00:77"
MAC = "02:00:00:00:00:aa"
ELSEWHERE = 99
ADDRESSES = [BALANCER, BALANCER6]


@pytest.fixture(scope="module")
def announcing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Programs of a node with a tunnel that announces."""
    state = tmp_path_factory.mktemp("state")
    with loaded("announcing", state, tunnel_index=1, switches={"ANNOUNCES": 1}) as pin_dir:
        yield pin_dir


@pytest.fixture
def node(announcing: Path) -> Iterator[Datapath]:
    with closing(Datapath(announcing)) as found:
        found.clear()
        yield found


def announce(node: Datapath, address: str, seconds: float = 60.0, device: int = LOOPBACK_INDEX) -> None:
    entry = L2AnswerEntry(boot_ns() + int(seconds * SECOND_NS), bytes.fromhex(MAC.replace(":", "")))
    node.maps["l2_answers"].set(L2AnswerKey(device, address).pack(), entry.pack())


def asks(address: str, **fields: Any) -> bytes:
    """Who has this address? As a neighbour on the LAN asks."""
    if ":" not in address:
        question: dict[str, Any] = {"op": 1, "psrc": NEIGHBOUR, "pdst": address, "hwsrc": NEIGHBOUR_MAC} | fields
        return bytes(Ether(src=NEIGHBOUR_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(**question))
    return solicits(ICMPv6ND_NS(tgt=address) / ICMPv6NDOptSrcLLAddr(lladdr=NEIGHBOUR_MAC))


def solicits(message: Any, source: str = NEIGHBOUR6, hops: int = 255) -> bytes:
    """To the group of `BALANCER6`."""
    head = Ether(src=NEIGHBOUR_MAC, dst="33:33:ff:00:02:00") / IPv6(src=source, dst="ff02::1:ff00:200", hlim=hops)
    return bytes(head / message)


def answered(node: Datapath, packet: bytes) -> bool:
    run = node.run("from_netdev", packet)
    assert run.result in (TC_ACT_REDIRECT, TC_ACT_UNSPEC)
    assert (run.packet == packet) == (run.result == TC_ACT_UNSPEC)
    return run.result == TC_ACT_REDIRECT


def test_arp_is_answered_with_the_devices_address(node: Datapath) -> None:
    announce(node, BALANCER)
    run = node.run("from_netdev", asks(BALANCER))
    assert run.result == TC_ACT_REDIRECT
    answer = Ether(run.packet)
    assert (answer.src, answer.dst) == (MAC, NEIGHBOUR_MAC)
    said = answer[ARP]
    assert (said.op, said.psrc, said.hwsrc, said.pdst, said.hwdst) == (2, BALANCER, MAC, NEIGHBOUR, NEIGHBOUR_MAC)


def test_a_solicitation_is_answered_with_an_advertisement(node: Datapath) -> None:
    announce(node, BALANCER6)
    run = node.run("from_netdev", asks(BALANCER6))
    assert run.result == TC_ACT_REDIRECT
    assert with_right_checksums(run.packet) == run.packet
    answer = Ether(run.packet)
    assert (answer.src, answer.dst) == (MAC, NEIGHBOUR_MAC)
    assert (answer[IPv6].src, answer[IPv6].dst, answer[IPv6].hlim) == (BALANCER6, NEIGHBOUR6, 255)
    said = answer[ICMPv6ND_NA]
    assert (said.tgt, said.R, said.S, said.O) == (BALANCER6, 0, 1, 1)
    assert said[ICMPv6NDOptDstLLAddr].lladdr == MAC


def test_whether_the_address_is_still_there_is_asked_of_the_node_alone_and_answered(node: Datapath) -> None:
    announce(node, BALANCER6)
    unicast = Ether(src=NEIGHBOUR_MAC, dst=MAC) / IPv6(src=NEIGHBOUR6, dst=BALANCER6, hlim=255)
    assert answered(node, bytes(unicast / ICMPv6ND_NS(tgt=BALANCER6)))


def test_who_looks_whether_the_address_is_free_learns_that_it_is_not(node: Datapath) -> None:
    announce(node, BALANCER)
    announce(node, BALANCER6)
    assert Ether(node.run("from_netdev", asks(BALANCER, psrc="0.0.0.0")).packet)[ARP].op == 2
    run = node.run("from_netdev", solicits(ICMPv6ND_NS(tgt=BALANCER6), source="::"))
    assert with_right_checksums(run.packet) == run.packet
    answer = Ether(run.packet)
    assert (answer.dst, answer[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    assert (answer[ICMPv6ND_NA].S, answer[ICMPv6ND_NA].O) == (0, 1)


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_entry_that_has_run_out_answers_nothing(node: Datapath, address: str) -> None:
    announce(node, address, seconds=-0.001)
    assert not answered(node, asks(address))
    announce(node, address, seconds=5)
    assert answered(node, asks(address))


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_entry_is_for_one_address_on_one_device(node: Datapath, address: str) -> None:
    announce(node, address, device=ELSEWHERE)
    assert not answered(node, asks(address))
    announce(node, address)
    assert answered(node, asks(address))
    assert not answered(node, asks(NODE if address == BALANCER else "2001:db8::201"))


@pytest.mark.parametrize(
    "packet",
    [
        asks(BALANCER, op=2),
        asks(BALANCER, psrc=BALANCER),
        asks(BALANCER, hwtype=6),
        asks(BALANCER, hwlen=8),
        asks(BALANCER)[:30],
        solicits(ICMPv6ND_NS(tgt=BALANCER6), hops=254),
        solicits(ICMPv6ND_NS(tgt=BALANCER6, code=1)),
        solicits(ICMPv6ND_NA(tgt=BALANCER6)),
        solicits(ICMPv6ND_NS(tgt=BALANCER6))[:70],
        solicits(IPv6ExtHdrDestOpt() / ICMPv6ND_NS(tgt=BALANCER6)),
        solicits(IPv6ExtHdrFragment(m=1) / ICMPv6ND_NS(tgt=BALANCER6)),
        solicits(ICMPv6EchoRequest()),
        bytes(Ether(src=NEIGHBOUR_MAC, dst=MAC) / IPv6(src=NEIGHBOUR6, dst=BALANCER6) / ICMPv6EchoRequest()),
        bytes(Ether(src=NEIGHBOUR_MAC, dst=MAC) / IP(src=NEIGHBOUR, dst=BALANCER) / ICMP()),
        bytes(Ether(src=NEIGHBOUR_MAC, dst=MAC, type=0x88CC) / bytes(40)),
    ],
    ids=str,
)
def test_what_asks_for_nothing_is_left_to_the_node(node: Datapath, packet: bytes) -> None:
    announce(node, BALANCER)
    announce(node, BALANCER6)
    assert not answered(node, packet)


@pytest.mark.parametrize("address", ADDRESSES)
def test_without_its_step_the_question_is_left_to_the_node(node: Datapath, announcing: Path, address: str) -> None:
    announce(node, address)
    (path,) = (announcing / "maps").glob("steps_*")
    with (
        closing(Map.open(path)) as array,
        closing(Steps(announcing, path.name.removeprefix("steps_"))) as steps,
    ):
        try:
            array.remove(limits.steps()["answer_link"].to_bytes(4, "little"))
            assert not answered(node, asks(address))
        finally:
            steps.look()
        assert answered(node, asks(address))


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_node_that_does_not_announce_answers_nothing(datapath: Datapath, address: str) -> None:
    announce(datapath, address)
    assert not answered(datapath, asks(address))


def test_packets_of_pods_go_on_as_they_do_elsewhere(announcing: Path) -> None:
    with closing(Routed(announcing)) as node:
        node.clear()
        node.endpoint(POD, 256)
        node.who(NODE, 1)
        packet = bytes(Ether(src=NEIGHBOUR_MAC, dst=MAC) / IP(src=V4.outside, dst=POD) / UDP(sport=1, dport=2))
        assert node.dropped_for("from_netdev", packet) == 0
