"""What no Service takes is answered to its sender, by a reset or "port unreachable", and dropped and counted anyway.

Expected answers are built here by scapy from the RFCs, byte by byte; the programs do not see them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from services.dataplane.kernel import bpf
from services.dataplane.kernel.hooks import with_link
from services.dataplane.kernel.pins import open_program
from services.dataplane.shapes.programs import SOCKET_PROGRAMS
from tests.bpf.conftest import loaded
from tests.bpf.datapath import (
    DEVICE_INDEX,
    LOOPBACK_INDEX,
    TC_ACT_REDIRECT,
    TC_ACT_SHOT,
    TC_ACT_UNSPEC,
    Datapath,
    Family,
    Routed,
    echo,
    error,
    frame,
    ip,
    sctp,
    tcp,
    udp,
)
from tests.bpf.reading import with_right_checksums

NO_BACKEND = 158
MOST_BYTES = {4: 20 + 8 + 512, 6: 1280}  # of an ICMP error
WINDOW_NS = 1 << 27  # in which errors have a rate (limits.h, EVENT_WINDOW_SHIFT)


@pytest.fixture(params=["native", "tunnel"])
def node(request: pytest.FixtureRequest, at: Family) -> Routed:
    found: Routed = request.getfixturevalue("routed" if request.param == "native" else "tunnelled")
    found.endpoint(at.pod, 256)
    found.service(at.service, 80, 6, [], number=1)
    found.service(at.service, 80, 17, [], number=2)
    return found


def unused(at: Family) -> str:
    """An address of the range that no Service has."""
    return at.service.removesuffix("10") + "77"


def turned(asked: bytes, at: Family, payload: Any) -> bytes:
    """The answer's frame: addresses and MACs the other way round, 64 hops, and `payload` behind the IP header."""
    seen = Ether(asked)
    header = (
        IP(src=seen[IP].dst, dst=seen[IP].src, ttl=64, id=0, flags="DF")
        if at.version == 4
        else IPv6(src=seen[IPv6].dst, dst=seen[IPv6].src, hlim=64)
    )
    return bytes(Ether(src=seen.dst, dst=seen.src) / header / payload)


def reset_for(asked: bytes, at: Family) -> bytes:
    """RFC 9293, 3.10.7.1."""
    segment = Ether(asked)[TCP]
    length = len(segment.payload) + ("S" in segment.flags) + ("F" in segment.flags)
    fields: dict[str, Any] = {"sport": segment.dport, "dport": segment.sport, "window": 0}
    if "A" in segment.flags:
        return turned(asked, at, TCP(flags="R", seq=segment.ack, ack=0, **fields))
    return turned(asked, at, TCP(flags="RA", seq=0, ack=(segment.seq + length) % (1 << 32), **fields))


def unreachable_for(asked: bytes, at: Family) -> bytes:
    """RFC 792 with RFC 1812, 4.3.2.3; RFC 4443, 3.1."""
    quoted = asked[14:]
    if at.version == 4:
        return turned(asked, at, ICMP(type=3, code=3) / Raw(quoted[: MOST_BYTES[4] - 28]))
    return turned(asked, at, ICMPv6DestUnreach(code=4) / Raw(quoted[: MOST_BYTES[6] - 48]))


def answer(node: Datapath, asked: bytes, program: str = "from_pod") -> bytes:
    """What goes back; the packet was dropped with its reason, once."""
    before = node.drops()
    run = node.run(program, asked)
    counted = {reason: now - before.get(reason, 0) for reason, now in node.drops().items() if now != before.get(reason)}
    assert counted == {NO_BACKEND: 1}
    assert run.result == TC_ACT_REDIRECT
    return run.packet


def is_silent(node: Datapath, asked: bytes, program: str = "from_pod") -> bool:
    """It is dropped for the reason that it is, and nothing goes back."""
    before = node.drops()
    run = node.run(program, asked)
    return run.result == TC_ACT_SHOT and node.drops()[NO_BACKEND] == before.get(NO_BACKEND, 0) + 1


def wait_for_a_window() -> None:
    """Until errors may be sent anew, on whatever CPU."""
    window = time.clock_gettime_ns(6) // WINDOW_NS
    while time.clock_gettime_ns(6) // WINDOW_NS == window:
        pass


@pytest.mark.parametrize("payload", [0, 1, 5, 1400])
@pytest.mark.parametrize("flags", ["S", "SA", "A", "PA", "FA", "F", "", "SF", "SEC"])
def test_a_segment_is_reset(node: Routed, at: Family, flags: str, payload: int) -> None:
    for to, port in ((at.service, 80), (at.service, 81), (unused(at), 80)):
        segment = TCP(sport=node.free_port(), dport=port, flags=flags, seq=0xFFFFFFFE, ack=77, options=[("MSS", 1460)])
        asked = frame(ip(at.pod, to) / segment / Raw(b"x" * payload))
        assert answer(node, asked) == reset_for(asked, at)


@pytest.mark.parametrize("payload", [0, 1, 2, 3, 4, 7, 483, 484, 485, 511, 1000, 1183, 1184, 1185, 1399])
def test_the_sender_of_a_datagram_hears_that_the_port_is_unreachable(node: Routed, at: Family, payload: int) -> None:
    wait_for_a_window()
    for to, port in ((at.service, 80), (at.service, 81), (unused(at), 80)):
        asked = frame(ip(at.pod, to) / UDP(sport=node.free_port(), dport=port) / Raw((bytes(range(256)) * 6)[:payload]))
        found = answer(node, asked)
        assert found == unreachable_for(asked, at)
        assert len(found) - 14 <= MOST_BYTES[at.version]
        assert with_right_checksums(found) == found


def test_so_does_the_sender_of_sctp_and_of_a_ping(node: Routed, at: Family) -> None:
    wait_for_a_window()
    for asked in (sctp(at.pod, unused(at), node.free_port(), 80), echo(at.pod, at.service, node.free_port())):
        assert answer(node, asked) == unreachable_for(asked, at)


def test_a_packet_with_padding_of_its_frame_behind_it_is_quoted_without(node: Routed, at: Family) -> None:
    wait_for_a_window()
    asked = udp(at.pod, unused(at), node.free_port(), 80)
    assert answer(node, asked + b"padding") == unreachable_for(asked, at)
    segment = tcp(at.pod, unused(at), node.free_port(), 80)
    assert answer(node, segment + b"padding") == reset_for(segment, at)


def test_what_must_not_be_answered_is_dropped_in_silence(node: Routed, at: Family) -> None:
    """RFC 1122, 3.2.2; RFC 4443, 2.4 (e); RFC 9293, 3.10.7.1: or two hosts answer each other for ever."""
    wait_for_a_window()
    port = node.free_port()
    assert is_silent(node, tcp(at.pod, unused(at), port, 80, "R"))
    assert is_silent(node, tcp(at.pod, unused(at), port, 80, "RA"))
    assert is_silent(node, echo(at.pod, unused(at), port, reply=True))
    broadcast = udp(at.pod, unused(at), port, 80)
    assert is_silent(node, b"\xff" * 6 + broadcast[6:])
    assert is_silent(node, b"\x01\x00\x5e\x00\x00\x01" + broadcast[6:])


def test_an_icmp_error_is_never_answered(node: Routed, at: Family) -> None:
    before = node.drops()
    about = ip(unused(at), at.pod) / UDP(sport=80, dport=4000)
    assert node.run("from_pod", error(at.pod, unused(at), about)).result == TC_ACT_SHOT
    assert sum(node.drops().values()) == sum(before.values()) + 1


def test_of_a_datagram_in_fragments_the_first_is_answered_and_no_other(node: Routed, at: Family) -> None:
    wait_for_a_window()
    datagram = UDP(sport=4000, dport=80, len=8 + 32, chksum=1) / Raw(b"x" * 16)
    number = node.free_port()

    def part(offset: int, more: int, payload: Any) -> bytes:
        if at.version == 4:
            return frame(IP(src=at.pod, dst=unused(at), id=number, frag=offset, flags=more, proto=17) / payload)
        header = IPv6ExtHdrFragment(id=number, offset=offset, m=more, nh=17)
        return frame(IPv6(src=at.pod, dst=unused(at)) / header / payload)

    first = part(0, 1, datagram)
    assert answer(node, first) == unreachable_for(first, at)
    assert is_silent(node, part(3, 0, Raw(b"x" * 16)))


def test_errors_have_a_rate_and_what_is_over_it_is_dropped_and_counted(node: Routed, at: Family) -> None:
    def flood(inside: Datapath) -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread alone; each CPU has a rate of its own
        wait_for_a_window()
        before, asked = inside.drops()[NO_BACKEND], udp(at.pod, unused(at), inside.free_port(), 80)
        window = time.clock_gettime_ns(6) // WINDOW_NS
        results = [inside.run("from_pod", asked).result for _ in range(400)]
        windows = time.clock_gettime_ns(6) // WINDOW_NS - window + 1
        assert inside.drops()[NO_BACKEND] == before + 400
        answered = results.count(TC_ACT_REDIRECT)
        assert 64 <= answered <= 64 * windows
        assert windows < 400 / 64, "too slow a machine to tell anything"

    may = os.sched_getaffinity(0)
    try:
        node.inside(flood)
    finally:
        node.inside(lambda _: os.sched_setaffinity(0, may))


# The node's own device: what no hook of a socket has caught


@pytest.fixture
def leaving(node: Routed) -> Iterator[Routed]:
    node.runs_on(DEVICE_INDEX)
    yield node
    node.runs_on(LOOPBACK_INDEX)


def test_nothing_leaves_the_node_for_the_services_range(leaving: Routed, at: Family) -> None:
    """Datagrams to unused ports, pings, what runs outside of the cgroup."""
    wait_for_a_window()
    for to in (at.service, unused(at)):
        for asked in (udp(at.node, to, 4000, 81), echo(at.node, to, 5)):
            assert answer(leaving, asked, "to_netdev") == unreachable_for(asked, at)
        segment = tcp(at.node, to, 4000, 80)
        assert answer(leaving, segment, "to_netdev") == reset_for(segment, at)
        assert is_silent(leaving, tcp(at.node, to, 4000, 80, "R"), "to_netdev")
        about = ip(to, at.node) / UDP(sport=80, dport=4000)
        assert is_silent(leaving, error(at.node, to, about), "to_netdev")


def test_what_the_node_only_forwards_is_answered_to_nobody(leaving: Routed, at: Family) -> None:
    """Its source is what somebody out there has written."""
    leaving.came_from(99)
    for to in (at.service, unused(at)):
        for asked in (udp(at.outside, to, 4000, 81), echo(at.outside, to, 5), tcp(at.outside, to, 4000, 80)):
            assert is_silent(leaving, asked, "to_netdev")


def test_all_else_that_leaves_the_node_is_none_of_its_business(leaving: Routed, at: Family) -> None:
    before = leaving.drops()
    for to in (at.outside, at.other_node, at.remote):
        asked = udp(at.node, to, 4000, 80)
        run = leaving.run("to_netdev", asked)
        assert (run.result, run.packet) == (TC_ACT_UNSPEC, asked)
    assert leaving.drops() == before


# Configured otherwise


@pytest.fixture(scope="module")
def silent_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with loaded("drop", tmp_path_factory.mktemp("state"), switches={"REJECT": 0}) as pin_dir:
        yield pin_dir


@pytest.fixture(scope="module")
def silent_node(silent_programs: Path) -> Iterator[Routed]:
    with closing(Routed(silent_programs)) as found:
        yield found


def test_with_drop_nothing_is_answered_and_all_is_counted(silent_node: Routed, at: Family) -> None:
    silent_node.clear()
    silent_node.endpoint(at.pod, 256)
    silent_node.service(at.service, 80, 17, [])
    for to, port in ((at.service, 80), (at.service, 81), (unused(at), 80)):
        assert is_silent(silent_node, udp(at.pod, to, silent_node.free_port(), port))
        assert is_silent(silent_node, tcp(at.pod, to, silent_node.free_port(), port))
        assert is_silent(silent_node, udp(at.node, to, 4000, port), "to_netdev")


# Calls

CALLS = """
import errno, os, socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
address = sys.argv[2]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
for how in (socket.SOCK_STREAM, socket.SOCK_DGRAM, "sendto"):
    with socket.socket(family, socket.SOCK_DGRAM if how == "sendto" else how) as one:
        one.setblocking(False)
        try:
            one.sendto(b"hello", (address, 80)) if how == "sendto" else one.connect((address, 80))
            print("-")
        except OSError as problem:
            print(errno.errorcode[problem.errno])
"""


@pytest.fixture
def group() -> Iterator[Path]:
    root = next(path for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if path.is_dir())
    made = root / f"plexus-test-reject-{os.getpid()}"
    made.mkdir()
    yield made
    made.rmdir()


def calls(pin_dir: Path, group: Path, at: Family) -> list[str]:
    """How connect() of TCP, of UDP, and sendto() end that call a Service without backends."""
    names = [f"{call}{at.version}" for call in ("connect", "sendmsg")]
    links = [pin_dir / "links" / name for name in names]
    for name, link in zip(names, links, strict=True):
        program = open_program(pin_dir, name)
        bpf.attach_cgroup(program, group, SOCKET_PROGRAMS[name], link)
        os.close(program)
    try:
        command = [sys.executable, "-c", CALLS, str(group), at.service]
        # Away from every route: where a call goes on, its packets go nowhere.
        return subprocess.run(["unshare", "-n", *command], capture_output=True, text=True, check=True).stdout.split()
    finally:
        for link in links:
            with_link(link, bpf.detach_link)
            link.unlink()


def empty_services(node: Datapath, at: Family) -> None:
    node.clear()
    for number, protocol in enumerate((6, 17), 1):
        node.service(at.service, 80, protocol, [], number=number)


def test_a_call_to_a_service_without_backends_fails_with_connection_refused(
    routed: Routed, programs: Path, group: Path, at: Family
) -> None:
    empty_services(routed, at)
    before = routed.drops()[NO_BACKEND]
    assert calls(programs, group, at) == ["ECONNREFUSED"] * 3
    assert routed.drops()[NO_BACKEND] == before + 3


@pytest.fixture(scope="module")
def older_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as kernel:
        kernel.setattr(bpf, "has_set_retval", lambda: False)
        with loaded("older", tmp_path_factory.mktemp("state")) as pin_dir:
            yield pin_dir


def test_a_kernel_that_lets_programs_name_no_error_says_that_it_is_not_permitted(
    older_programs: Path, group: Path, at: Family
) -> None:
    with closing(Datapath(older_programs)) as node:
        empty_services(node, at)
        assert calls(older_programs, group, at) == ["EPERM"] * 3


def test_with_drop_the_call_goes_on_to_where_its_packets_are_dropped(
    silent_node: Routed, silent_programs: Path, group: Path, at: Family
) -> None:
    empty_services(silent_node, at)
    before = silent_node.drops()[NO_BACKEND]
    no_way = "ENETUNREACH" if at.version == 4 else "EADDRNOTAVAIL"  # the kernel looks for one, in vain
    assert calls(silent_programs, group, at) == [no_way] * 3
    assert silent_node.drops()[NO_BACKEND] == before
