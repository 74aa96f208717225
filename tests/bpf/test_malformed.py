"""What is no good packet is dropped with a reason, or left to the node: cut, contradictory, tagged, random."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP, IPOption_Router_Alert
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

from services.dataplane.kernel import bpf
from services.dataplane.kernel.bpf import TCX_INGRESS
from services.dataplane.kernel.pins import open_program
from services.dataplane.parts.policy.entries import EGRESS
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS
from tests.bpf.datapath import (
    TC_ACT_OK,
    TC_ACT_REDIRECT,
    TC_ACT_SHOT,
    TC_ACT_UNSPEC,
    V4,
    V6,
    Datapath,
    Family,
    Routed,
    echo,
    error,
    frame,
    icmp,
    ip,
    sctp,
    tcp,
    udp,
)
from tests.bpf.reading import Malformed, read
from tests.bpf.spaces import in_namespace, inside

INVALID, POLICY_DENIED, UNKNOWN_L4, UNSUPPORTED_L3, VLAN = 134, 133, 137, 139, 182
MALFORMED_REASONS = {134, 137, 156}
BOTH = FLAG_ENFORCE_INGRESS | FLAG_ENFORCE_EGRESS
WAY_IN = {
    "from_pod": ("pod", "remote"),
    "to_pod": ("remote", "pod"),
    "from_netdev": ("remote", "pod"),
}
PROGRAMS = [*WAY_IN, "from_overlay"]
KINDS = ["tcp", "udp", "sctp", "icmp", "error", "options", "fragment"]


@pytest.fixture
def node(datapath: Datapath) -> Datapath:
    """Two pods here, one at the other node, and the node itself, without any policy."""
    for at in (V4, V6):
        datapath.endpoint(at.pod, 256)
        datapath.endpoint(at.neighbour, 257)
        datapath.who(at.remote, 300, at.other_node)
        datapath.who(at.node, 1)
    datapath.maps.raise_epoch()
    return datapath


def ends(at: Family, program: str) -> tuple[str, str]:
    source, destination = WAY_IN.get(program, ("remote", "pod"))
    return getattr(at, source), getattr(at, destination)


def packet_of(kind: str, at: Family, source: str, destination: str) -> bytes:
    """One packet of each kind; "error" is about a UDP packet from port 1000 to 53."""
    segment = TCP(sport=1000, dport=80, flags="S") / b"hello"
    if kind == "options" and at is V4:
        return frame(ip(source, destination, options=[IPOption_NOP()] * 40) / segment)
    if kind == "options":
        return frame(ip(source, destination) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / segment)
    if kind == "fragment":
        if at is V4:
            return frame(ip(source, destination, flags="MF", id=7) / segment)
        return frame(ip(source, destination) / IPv6ExtHdrFragment(m=1, id=7) / segment)
    made: dict[str, Callable[[], bytes]] = {
        "tcp": lambda: tcp(source, destination, 1000, 80),
        "udp": lambda: udp(source, destination, 1000, 53),
        "sctp": lambda: sctp(source, destination, 1000, 80),
        "icmp": lambda: echo(source, destination, 5),
        "error": lambda: error(source, destination, ip(destination, source) / UDP(sport=1000, dport=53)),
    }
    return made[kind]()


def is_malformed(packet: bytes) -> bool:
    try:
        read(packet)
    except Malformed:
        return True
    return False


def result_of(node: Datapath, program: str, packet: bytes) -> tuple[int, bytes] | None:
    """None: the kernel gives a test's program no packet that is shorter than its family's header."""
    try:
        run = node.run(program, packet)
    except OSError as refused:
        if refused.errno != errno.EINVAL:
            raise
        return None
    return run.result, run.packet


def must_not_pass(node: Datapath, program: str, packet: bytes) -> None:
    """What does not read in Python is dropped by every program, or left to the node untouched."""
    found = result_of(node, program, packet)
    if found is None:
        return
    result, after = found
    assert result in (TC_ACT_OK, TC_ACT_SHOT, TC_ACT_REDIRECT, TC_ACT_UNSPEC)
    if result == TC_ACT_UNSPEC:
        assert program == "from_netdev" and after == packet
    elif result != TC_ACT_SHOT:
        assert not is_malformed(packet), (program, packet.hex())


# Cut


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packet_cut_anywhere_is_dropped_with_a_reason_or_left_to_the_node(
    node: Datapath, at: Family, program: str, kind: str
) -> None:
    packet = packet_of(kind, at, *ends(at, program))
    shortest = 14 + len(bytes(at.ip()))
    for length in range(14, len(packet)):
        part = packet[:length]
        must_not_pass(node, program, part)
        if length >= shortest and is_malformed(part) and program != "from_overlay":
            assert node.dropped_for(program, part) in MALFORMED_REASONS, length
    assert not is_malformed(packet)


# Contradictory


@pytest.mark.parametrize("program", WAY_IN)
@pytest.mark.parametrize("fields", [{"version": 6}, {"version": 0}, {"ihl": 4}, {"ihl": 0}, {"len": 19}, {"len": 0}])
def test_a_header_that_contradicts_itself_is_dropped(node: Datapath, program: str, fields: dict[str, Any]) -> None:
    assert node.dropped_for(program, tcp(*ends(V4, program), 1000, 80, **fields)) == INVALID


@pytest.mark.parametrize("program", WAY_IN)
@pytest.mark.parametrize("version", [0, 4, 5, 7, 15])
def test_ipv6_of_another_version_is_dropped(node: Datapath, program: str, version: int) -> None:
    assert node.dropped_for(program, tcp(*ends(V6, program), 1000, 80, version=version)) == INVALID


@pytest.mark.parametrize("program", WAY_IN)
@pytest.mark.parametrize("protocol", [0, 2, 4, 41, 47, 50, 51, 89, 136, 255])
def test_only_tcp_udp_sctp_and_icmp_pass(node: Datapath, at: Family, program: str, protocol: int) -> None:
    if at is V6 and protocol == 0:
        return  # hop-by-hop options
    fields: dict[str, Any] = {at.protocol: protocol}
    packet = ip(*ends(at, program), **fields) / bytes(40)
    assert node.dropped_for(program, frame(packet)) == UNKNOWN_L4


@pytest.mark.parametrize("program", WAY_IN)
def test_the_other_familys_icmp_means_nothing(node: Datapath, at: Family, program: str) -> None:
    fields: dict[str, Any] = {at.protocol: 58 if at is V4 else 1}
    assert node.dropped_for(program, frame(ip(*ends(at, program), **fields) / bytes(40))) == UNKNOWN_L4


def test_a_header_with_options_is_read_to_its_end(node: Datapath) -> None:
    """The ports lie behind them: policy must not look for them where they are not."""
    at = V4
    node.endpoint(at.pod, 256, policy=9, flags=BOTH)
    node.allow(9, 300, EGRESS, 6, 443, 24)
    node.maps.raise_epoch()
    options = [IPOption_Router_Alert(), *[IPOption_NOP()] * 12]
    node.passes("from_pod", tcp(at.pod, at.remote, node.free_port(), 443, options=options))
    denied = tcp(at.pod, at.remote, node.free_port(), 80, options=options)
    assert node.dropped_for("from_pod", denied) == POLICY_DENIED


def test_translation_writes_behind_the_options(routed: Routed) -> None:
    at = V4
    routed.endpoint(at.pod, 256)
    routed.who(at.node, 1)
    for count in range(0, 41, 4):
        port, options = routed.free_port(), [IPOption_NOP()] * count
        out = routed.passes("from_pod", tcp(at.pod, at.outside, port, 443, options=options))
        assert (out[IP].src, out[TCP].dport) == (at.node, 443)
        reply = tcp(at.outside, at.node, 443, out[TCP].sport, "SA", options=options)
        assert routed.passes("from_netdev", reply)[TCP].dport == port


# Tagged


@pytest.mark.parametrize("tag", [Dot1Q(vlan=5), Dot1AD(vlan=5), Dot1Q(vlan=5) / Dot1Q(vlan=6)])
def test_a_tag_in_the_frame_is_no_ip(node: Datapath, at: Family, tag: Any) -> None:
    packet = bytes(Ether(src="02:00:00:00:00:aa") / tag / Ether(tcp(at.pod, at.remote, 1, 80)).payload)
    for program in ("from_pod", "to_pod", "from_overlay"):
        assert node.dropped_for(program, packet) == UNSUPPORTED_L3
    run = node.run("from_netdev", packet)
    assert (run.result, run.packet) == (TC_ACT_UNSPEC, packet)


@pytest.mark.parametrize("program", ["from_pod", "from_overlay", "from_netdev"])
def test_a_tag_that_the_kernel_has_taken_off_is_seen_too(
    node: Datapath, programs: Path, namespaces: Callable[[str], str], tmp_path: Path, at: Family, program: str
) -> None:
    """The context of a test run bears none, so this takes a device: a frame that comes in loses its tag to the skb."""
    if not bpf.has_tcx():
        pytest.skip("attaching by hand needs tcx (kernel 6.6)")
    name = namespaces("vlan")
    for command in ("link add here type veth peer name there", "link set here up", "link set there up"):
        assert inside(name, "ip", *command.split()).returncode == 0
    tagged = bytes(
        Ether(src="02:00:00:00:00:aa", dst="02:00:00:00:00:bb")
        / Dot1Q(vlan=5)
        / Ether(tcp(at.pod, at.neighbour, 1, 80)).payload
    )
    pinned = programs / "tagged"

    async def send() -> None:
        fd = open_program(programs, program)
        bpf.attach_tcx(fd, socket.if_nametoindex("here"), TCX_INGRESS, pinned)
        with closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as raw:
            raw.bind(("there", 0))
            for _ in range(10):
                raw.send(tagged)
        os.close(fd)

    before = node.drops()[VLAN]
    try:
        in_namespace(name, send)
    finally:
        pinned.unlink(missing_ok=True)
    assert node.drops()[VLAN] - before == (0 if program == "from_netdev" else 10)


# Random


def fuzzed(
    check: Callable[[Datapath, bytes], None], node: Datapath, packets: st.SearchStrategy[bytes], examples: int
) -> None:
    # Without the phase that explains a failure: it traces every line that runs.
    phases = [Phase.generate, Phase.shrink]

    @settings(
        max_examples=examples, phases=phases, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(packet=packets)
    def run(packet: bytes) -> None:
        check(node, packet)

    run()


def by_every_program(node: Datapath, packet: bytes) -> None:
    for program in PROGRAMS:
        must_not_pass(node, program, packet)


HEAD = bytes.fromhex("0200000000bb0200000000aa")


def test_random_bytes_pass_nowhere(node: Datapath) -> None:
    kinds = st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00"])
    noise = st.builds(lambda kind, data: HEAD + kind + data, kinds, st.binary(min_size=1, max_size=200))

    def check(node: Datapath, packet: bytes) -> None:
        if packet[12:14] != b"\x08\x06":
            by_every_program(node, packet)
        else:
            for program in PROGRAMS:
                result_of(node, program, packet)

    fuzzed(check, node, noise, 400)


def originals(at: Family) -> list[bytes]:
    made = [packet_of(kind, at, *ends(at, program)) for kind in KINDS for program in WAY_IN]
    made += [icmp(*ends(at, program), at.question) for program in WAY_IN]
    if at is V6:
        made += [
            frame(IPv6(src=at.pod, dst=at.remote) / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(m=1, id=3) / UDP() / b"x")
        ]
    return made


@st.composite
def mutated(draw: st.DrawFn, packets: list[bytes]) -> bytes:
    """A good packet with up to four other bytes behind its Ethernet header, and maybe another length."""
    packet = bytearray(draw(st.sampled_from(packets)))
    for _ in range(draw(st.integers(1, 4))):
        # Headers more often than payload, and of IPv6's less the addresses.
        where = draw(st.one_of(st.integers(14, len(packet) - 1), st.integers(14, 24), st.integers(54, 80)))
        if where < len(packet):
            packet[where] = draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 6, 17, 43, 44, 58, 60, 132])))
    if draw(st.booleans()):
        packet = packet[: draw(st.integers(15, len(packet)))]
    return bytes(packet)


def test_good_packets_with_wrong_bytes_pass_only_when_they_still_read(node: Datapath, at: Family) -> None:
    passed = dropped = 0

    def check(node: Datapath, packet: bytes) -> None:
        nonlocal passed, dropped
        by_every_program(node, packet)
        found = result_of(node, "from_pod", packet)
        if found is not None:
            passed += found[0] != TC_ACT_SHOT
            dropped += found[0] == TC_ACT_SHOT

    fuzzed(check, node, mutated(originals(at)), 600)
    assert passed > 50 and dropped > 50, (passed, dropped)  # or it has shown nothing
