"""What comes out of the tunnel device: believed from the node that its sender lives on, under the identity in the key.

A test run gives a program no tunnel key, so packets come in by a device here, where a small program lays the key on
them before ours sees them, as the tunnel device does.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from services.dataplane.kernel import bpf
from services.dataplane.kernel.bpf import TCX_INGRESS
from services.dataplane.parts.policy.entries import INGRESS
from services.dataplane.shapes.again import Again
from services.dataplane.shapes.layouts import (
    FLAG_ENFORCE_EGRESS,
    FLAG_ENFORCE_INGRESS,
    SERVES_OUTSIDE,
    IpcacheEntry,
    IpcacheKey,
    ServiceEntry,
)
from tests.bpf.conftest import loaded
from tests.bpf.datapath import DEVICE_INDEX, OTHER_NODE, OTHER_NODE6, V4, V6, Family, Routed, error, ip, tcp, udp
from tests.bpf.fragmented import cut, datagram

INVALID_SOURCE, POLICY_DENIED, INVALID, UNSUPPORTED_L3, UNROUTABLE, VLAN, TTL = 132, 133, 134, 139, 151, 182, 196
FRAGMENT_NOT_FOUND = 175
SET_TUNNEL_KEY = 21  # enum bpf_func_id
THIRD, THIRD6 = "192.0.2.3", "2001:db8::3"
LOCAL_CIDR = (1 << 24) + 1
WAY_POD = 3  # bpf/include/types.h


class Overlay(Routed):
    """`from_overlay` on a device, and tunnel packets that come by it."""

    def __init__(self, pin_dir: Path, underlay: int) -> None:
        super().__init__(pin_dir)
        self.nodes = (OTHER_NODE, THIRD) if underlay == 4 else (OTHER_NODE6, THIRD6)
        self._pins = [pin_dir / "overlay", pin_dir / "key"]
        self._inside.submit(self._attach, self._programs["from_overlay"], self._pins[0]).result()

    def _attach(self, program: int, pinned: Path) -> None:
        subprocess.run(["sysctl", "-qw", "net.ipv6.conf.far.disable_ipv6=1"], check=True)  # nothing of its own
        bpf.attach_tcx(program, socket.if_nametoindex("out"), TCX_INGRESS, pinned)

    def close(self) -> None:
        for pinned in self._pins:
            pinned.unlink(missing_ok=True)
        super().close()

    def arrives(self, packet: bytes, identity: int, node: str) -> int:
        """The reason for which a packet from the tunnel is dropped; 0 when it is not."""
        before = self.counted()
        self._inside.submit(self._send, packet, key_program(identity, node)).result()
        deadline = time.monotonic() + 5
        while (after := self.counted()) == before and time.monotonic() < deadline:
            time.sleep(0.001)
        [reason] = [each for each in after if after[each] != before[each]]
        assert after[reason] - before[reason] == 1
        return reason

    def counted(self) -> dict[int, int]:
        """Packets by reason; 0: those that passed."""
        raw = b"".join(self.maps["counters"].get(index.to_bytes(4, "little")) or b"" for index in (0, 1))
        return self.drops() | {0: sum(packets for packets, _ in struct.iter_unpack("=QQ", raw))}

    def _send(self, packet: bytes, key: int) -> None:
        self._attach(key, self._pins[1])  # before all that are there
        os.close(key)
        while len(bpf.tcx_programs(socket.if_nametoindex("out"), TCX_INGRESS)) > 2:
            time.sleep(0.001)  # until the kernel has taken the last key's program away
        with closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as raw:
            raw.bind(("far", 0))
            raw.send(packet)


def key_program(identity: int, node: str) -> int:
    """A loaded program that lays a tunnel key on the packet, from `node`, and leaves it to the next program.

    Source: struct bpf_tunnel_key; what is local to who sends is remote to who gets it.
    """
    address = ip_address(node)
    words = [identity, 0, 0, 0, 0, 64 << 8, 0]
    if address.version == 4:
        words += [int(address), 0, 0, 0]
    else:
        words += struct.unpack("=4I", address.packed)
    at = -4 * len(words)
    instructions = [(0x62, 0x0A, at + 4 * place, to_signed(word)) for place, word in enumerate(words)]
    instructions += [
        (0xBF, 0xA2, 0, 0),
        (0x07, 0x02, 0, at),
        (0xB7, 0x03, 0, 4 * len(words)),
        (0xB7, 0x04, 0, int(address.version == 6)),  # BPF_F_TUNINFO_IPV6
        (0x85, 0x00, 0, SET_TUNNEL_KEY),
        (0xB7, 0x00, 0, -1),  # TCX_NEXT
        (0x95, 0x00, 0, 0),
    ]
    raw = b"".join(struct.pack("=BBhi", *each) for each in instructions)
    code, licence = ctypes.create_string_buffer(raw), ctypes.create_string_buffer(b"GPL")
    load = struct.pack("=IIQQ", 3, len(instructions), ctypes.addressof(code), ctypes.addressof(licence))
    return bpf.call(5, load)


def to_signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


@pytest.fixture(scope="module", params=[4, 6], ids=["over v4", "over v6"])
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Overlay]:
    if not bpf.has_tcx():
        pytest.skip("two programs in a row on a device need tcx (kernel 6.6)")
    underlay: int = request.param
    wanted = {"tunnel_index": 1, "underlay_ipv6": underlay == 6}
    with (
        loaded(f"overlay{underlay}", tmp_path_factory.mktemp("state"), **wanted) as pin_dir,
        closing(Overlay(pin_dir, underlay)) as found,
    ):
        yield found


@pytest.fixture
def tunnel(device: Overlay) -> Overlay:
    """A pod that only identity 300 may call, a pod with that identity at another node, and one at a third."""
    device.clear()
    other, third = device.nodes
    for at in (V4, V6):
        device.endpoint(at.pod, 256, policy=9, flags=FLAG_ENFORCE_INGRESS)
        device.who(at.remote, 300, other)
        device.who(at.second, 300, third)
        device.who(at.block, 3, at.node, bits=at.block_bits)
        device.who(at.node, 1)
    device.allow(9, 300, INGRESS)
    device.maps.raise_epoch()
    return device


def test_a_pod_is_believed_from_its_node(tunnel: Overlay, at: Family) -> None:
    assert tunnel.arrives(tcp(at.remote, at.pod, 1000, 80), 300, tunnel.nodes[0]) == 0
    [connection] = tunnel.connections().values()
    assert (connection.hop, connection.reply_way) == (tunnel.nodes[0], WAY_POD)


def test_nobody_speaks_for_a_pod_of_another_node(tunnel: Overlay, at: Family) -> None:
    assert tunnel.arrives(tcp(at.remote, at.pod, 1000, 80), 300, tunnel.nodes[1]) == INVALID_SOURCE
    assert tunnel.arrives(tcp(at.second, at.pod, 1000, 80), 300, tunnel.nodes[0]) == INVALID_SOURCE


def test_an_address_that_lives_nowhere_is_not_believed(tunnel: Overlay, at: Family) -> None:
    for source in (at.stranger, at.outside, at.neighbour, at.node):
        assert tunnel.arrives(tcp(source, at.pod, 1000, 80), 300, tunnel.nodes[0]) == INVALID_SOURCE


def test_the_identity_in_the_key_counts(tunnel: Overlay, at: Family) -> None:
    """It may be newer than what this node has heard."""
    tunnel.who(at.remote, 301, tunnel.nodes[0])
    tunnel.maps.raise_epoch()
    assert tunnel.arrives(tcp(at.remote, at.pod, 1000, 80), 300, tunnel.nodes[0]) == 0
    assert tunnel.arrives(tcp(at.remote, at.pod, 1001, 80), 302, tunnel.nodes[0]) == POLICY_DENIED


def test_who_was_told_by_the_key_alone_is_judged_again_when_the_map_knows_it(tunnel: Overlay, at: Family) -> None:
    """What the map comes to say may be later than the key of the first packet: it never said what that did."""
    tunnel.who(at.remote, 301, tunnel.nodes[0])
    packet = tcp(at.remote, at.pod, 1000, 80)
    assert tunnel.arrives(packet, 300, tunnel.nodes[0]) == 0
    tunnel.who(at.remote, 302, tunnel.nodes[0])
    assert tunnel.arrives(packet, 302, tunnel.nodes[0]) == 0
    tunnel.maps._judge_again(Again(ahead=True), None)
    assert tunnel.arrives(packet, 302, tunnel.nodes[0]) == POLICY_DENIED
    tunnel.who(at.second, 300, tunnel.nodes[1])
    packet = tcp(at.second, at.pod, 1000, 80)
    assert tunnel.arrives(packet, 300, tunnel.nodes[1]) == 0
    before = max(each.epoch for each in tunnel.connections().values())
    tunnel.maps._judge_again(Again(ahead=True), None)
    assert tunnel.arrives(packet, 300, tunnel.nodes[1]) == 0
    assert max(each.epoch for each in tunnel.connections().values()) == before  # the map has said so


@pytest.mark.parametrize("identity", [0, 1, 2, 7, 9, 255, LOCAL_CIDR])
def test_an_identity_that_no_pod_has_does_not(tunnel: Overlay, at: Family, identity: int) -> None:
    """Not the host's, which every pod lets in."""
    assert tunnel.arrives(tcp(at.remote, at.pod, 1000, 80), identity, tunnel.nodes[0]) == 0  # the map says 300
    tunnel.who(at.remote, 301, tunnel.nodes[0])
    tunnel.maps.raise_epoch()
    assert tunnel.arrives(tcp(at.remote, at.pod, 1001, 80), identity, tunnel.nodes[0]) == POLICY_DENIED


def test_another_node_has_no_pods_identity(tunnel: Overlay, at: Family) -> None:
    tunnel.who(at.remote, 6, tunnel.nodes[0])
    tunnel.maps.raise_epoch()
    assert tunnel.arrives(tcp(at.remote, at.pod, 1000, 80), 300, tunnel.nodes[0]) == POLICY_DENIED


def test_a_reply_is_believed_only_from_where_the_call_went(tunnel: Overlay, at: Family) -> None:
    port = tunnel.free_port()
    assert tunnel.dropped_for("from_pod", udp(at.pod, at.remote, port, 53)) == 0
    assert tunnel.arrives(udp(at.remote, at.pod, 53, port), 300, tunnel.nodes[1]) == INVALID_SOURCE
    assert tunnel.arrives(udp(at.remote, at.pod, 53, port), 300, tunnel.nodes[0]) == 0


def test_the_node_itself_is_reached_from_pods_that_are_believed(tunnel: Overlay, at: Family) -> None:
    assert tunnel.arrives(tcp(at.remote, at.node, 1000, 80), 300, tunnel.nodes[0]) == 0
    assert tunnel.arrives(tcp(at.remote, at.node, 1000, 80), 300, tunnel.nodes[1]) == INVALID_SOURCE


def test_fragments_to_the_node_itself_arrive_all(tunnel: Overlay, at: Family) -> None:
    """Nothing there is decided by ports: its own stack puts them together, in whatever order they come."""
    for order in (lambda frames: frames, reversed):
        for each in order(cut(datagram(at.remote, at.node, 1000, 53), at)):
            assert tunnel.arrives(each, 300, tunnel.nodes[0]) == 0
            assert tunnel.arrives(each, 300, tunnel.nodes[1]) == INVALID_SOURCE
    assert not list(tunnel.maps["fragments"].items())


def test_fragments_to_a_pod_arrive_after_their_first(tunnel: Overlay, at: Family) -> None:
    first, second, third = cut(datagram(at.remote, at.pod, 1000, 53), at)
    assert tunnel.arrives(second, 300, tunnel.nodes[0]) == FRAGMENT_NOT_FOUND
    assert [tunnel.arrives(each, 300, tunnel.nodes[0]) for each in (first, third, second)] == [0, 0, 0]


def test_an_address_of_the_node_that_no_other_was_told_of_is_not_reached_by_a_tunnel(
    tunnel: Overlay, at: Family
) -> None:
    packet = tcp(at.remote, at.second, 1000, 80)
    for unadvertised, reason in ((False, 0), (True, UNROUTABLE)):
        entry = IpcacheEntry(1, unadvertised=unadvertised)
        tunnel.maps["ipcache"].set(IpcacheKey(at.second).pack(), entry.pack())
        assert tunnel.arrives(packet, 300, tunnel.nodes[0]) == reason


def test_a_tunnel_leads_to_nobody_else(tunnel: Overlay, at: Family) -> None:
    for destination in (at.nobody, at.outside, at.second, at.stranger):
        assert tunnel.arrives(tcp(at.remote, destination, 1000, 80), 300, tunnel.nodes[0]) == UNROUTABLE


def test_errors_come_only_from_who_is_believed(tunnel: Overlay, at: Family) -> None:
    port = tunnel.free_port()
    assert tunnel.dropped_for("from_pod", udp(at.pod, at.remote, port, 53)) == 0
    packet = error(at.remote, at.pod, ip(at.pod, at.remote) / UDP(sport=port, dport=53))
    assert tunnel.arrives(packet, 300, tunnel.nodes[1]) == INVALID_SOURCE
    assert tunnel.arrives(packet, 300, tunnel.nodes[0]) == 0


def test_the_last_hop_is_not_routed(tunnel: Overlay, at: Family) -> None:
    assert tunnel.arrives(tcp(at.remote, at.pod, 1, 80, **at.hop(1)), 300, tunnel.nodes[0]) == TTL


def test_what_is_cut_or_tagged_or_no_ip_is_dropped(tunnel: Overlay, at: Family) -> None:
    packet = tcp(at.remote, at.pod, 1000, 80)
    header = 14 + len(bytes(at.ip()))
    for length in (header, header + 1, header + 8, header + 19):
        assert tunnel.arrives(packet[:length], 300, tunnel.nodes[0]) == INVALID
    tagged = bytes(Ether(src="02:00:00:00:00:aa", dst="02:00:00:00:00:bb") / Dot1Q(vlan=5) / Ether(packet).payload)
    assert tunnel.arrives(tagged, 300, tunnel.nodes[0]) == VLAN
    assert tunnel.arrives(packet[:12] + b"\x88\x47" + packet[14:], 300, tunnel.nodes[0]) == UNSUPPORTED_L3


def test_without_a_policy_of_its_own_a_pod_is_open_to_all_that_are_believed(tunnel: Overlay, at: Family) -> None:
    tunnel.endpoint(at.pod, 256, flags=FLAG_ENFORCE_EGRESS)
    tunnel.maps.raise_epoch()
    assert tunnel.arrives(tcp(at.remote, at.pod, 1000, 80), 999, tunnel.nodes[0]) == 0


ROUTER, OTHER_ROUTER = {V4: "10.0.0.254", V6: "fd00:10::fe"}, {V4: "10.0.1.254", V6: "fd00:11::fe"}


def test_what_another_node_sends_as_itself_may_be_the_worlds_and_no_pods(tunnel: Overlay, at: Family) -> None:
    """By a Service, from outside."""
    tunnel.who(OTHER_ROUTER[at], 6, tunnel.nodes[0])
    tunnel.allow(9, at.world, INGRESS)
    tunnel.maps.raise_epoch()
    other = next(each for each in (V4, V6) if each is not at)
    worlds = (at.world, other.world, 2)  # of a node with other families
    for identity, reason in (*((each, 0) for each in worlds), (300, POLICY_DENIED), (1, POLICY_DENIED)):
        packet = tcp(OTHER_ROUTER[at], at.pod, 1000 + identity, 80)
        assert tunnel.arrives(packet, identity, tunnel.nodes[0]) == reason
    assert tunnel.arrives(tcp(at.remote, at.pod, 1000, 80), at.world, tunnel.nodes[0]) == 0  # the map says 300


def test_the_answer_of_a_backend_elsewhere_goes_back_to_who_called_from_outside(tunnel: Overlay, at: Family) -> None:
    tunnel.device(0, ROUTER[V4], ROUTER[V6], has_pods=False)
    tunnel.who(ROUTER[at], 1)
    tunnel.who(at.other_node, 6)
    tunnel.maps.serve(SERVES_OUTSIDE)
    tunnel.service(at.outside2, 80, 6, [(at.remote, 8080)], flags=ServiceEntry.EXTERNAL, outside=1)
    client = tunnel.free_port()
    there = tunnel.passes("from_netdev", tcp(at.outside, at.outside2, client, 80))
    assert (there[at.ip].src, there[at.ip].dst) == (ROUTER[at], at.remote)
    answer = tcp(at.remote, ROUTER[at], 8080, there[TCP].sport, "SA")
    assert tunnel.arrives(answer, 300, tunnel.nodes[1]) == INVALID_SOURCE
    assert not any(each.back for each in tunnel.connections().values())
    assert tunnel.arrives(answer, 300, tunnel.nodes[0]) == 0
    [connection] = tunnel.connections().values()
    assert connection.back == DEVICE_INDEX
