"""Every reason to drop a packet: provoked, counted, and told with the line of C that decided."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import TCP
from scapy.layers.inet6 import ICMPv6ND_RS, IPv6, IPv6ExtHdrRouting
from scapy.layers.l2 import Ether

from services.dataplane.parts.policy.entries import EGRESS, INGRESS, PolicyEntry, PolicyKey, precedence
from services.dataplane.shapes import layouts, reasons
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS
from services.hubble.records import DROP, POLICY_VERDICT
from tests.bpf.datapath import (
    V4,
    V6,
    Datapath,
    Family,
    Routed,
    error,
    frame,
    icmp,
    ip,
    sctp,
    tcp,
    udp,
)
from tests.bpf.events import Event, Ring, fresh_rate
from tests.bpf.fragmented import cut, datagram

BPF = Path(layouts.__file__).parents[1] / "bpf"
NUMBERS = {
    int(number): name
    for name, number in re.findall(r"^\s*(DROP_\w+) = (\d+)", reasons.HEADER.read_text(), re.MULTILINE)
}
FREE_POD = 256
BOTH = FLAG_ENFORCE_EGRESS | FLAG_ENFORCE_INGRESS

NOT_PROVOKED = {
    140: "a step that somebody has taken out: test_reject.py does so",
    141: "a helper of the kernel fails at what was just read: only for want of memory",
    182: "a test run's packets have no tag beside them: test_malformed.py and test_overlay.py have a device for it",
    155: "the maps of connections and choices make room by themselves: only for want of memory",
}


@dataclass(frozen=True)
class Provocation:
    """What makes a program drop a packet for one reason, and where the C says so."""

    reason: int
    program: str
    file: str
    packet: Callable[[Datapath, Family], bytes]
    direction: int
    mode: str = "native"
    only: Family | None = None  # of one family


def closed(on: Datapath, at: Family) -> bytes:
    on.endpoint(at.pod, FREE_POD, policy=9, flags=BOTH)
    on.maps.raise_epoch()
    return tcp(at.pod, at.remote, on.free_port(), 80)


def denied(on: Datapath, at: Family) -> bytes:
    on.policy(9, [(PolicyKey(300, EGRESS, 0, 0, 0), PolicyEntry(precedence("deny"), 5, deny=True))])
    return closed(on, at)


def not_let_in(on: Datapath, at: Family) -> bytes:
    closed(on, at)
    return tcp(at.remote, at.pod, on.free_port(), 80)


def without_backend(on: Datapath, at: Family) -> bytes:
    on.service(at.service, 80, 6, [])
    return tcp(at.pod, at.service, on.free_port(), 80)


def not_in_its_ranges(on: Datapath, at: Family) -> bytes:
    on.maps.serve(layouts.SERVES_OUTSIDE)
    flags = layouts.ServiceEntry.EXTERNAL | layouts.ServiceEntry.RANGES
    on.service(at.outside2, 80, 6, [(at.remote, 81)], flags=flags, outside=1)
    return tcp(at.outside, at.outside2, on.free_port(), 80)


def sctp_with_another_port(on: Datapath, at: Family) -> bytes:
    on.service(at.service, 80, 132, [(at.remote, 81)])
    return sctp(at.pod, at.service, on.free_port(), 80)


def call_to_a_masqueraded_port(on: Datapath, at: Family) -> bytes:
    mapped = on.passes("from_pod", tcp(at.pod, at.outside, on.free_port(), 80))[TCP].sport
    return tcp(at.outside, at.node, 80, mapped, "S")


def taken_port(on: Datapath, at: Family) -> bytes:
    on.endpoint(at.neighbour, 257)
    on.passes("from_pod", sctp(at.neighbour, at.outside, 1234, 80))
    return sctp(at.pod, at.outside, 1234, 80)


def question_to_outside(on: Datapath, at: Family) -> bytes:
    return icmp(at.pod, at.outside, at.question)


def about_nothing(on: Datapath, at: Family) -> bytes:
    return error(at.remote, at.pod, ip(at.pod, at.remote) / TCP(sport=1, dport=2))


def no_ip(on: Datapath, at: Family) -> bytes:
    return bytes(Ether(src="02:00:00:00:00:aa", dst="02:00:00:00:00:bb", type=0x8847)) + bytes(60)


def routing_header(on: Datapath, at: Family) -> bytes:
    return frame(IPv6(src=at.pod, dst=at.remote) / IPv6ExtHdrRouting(addresses=["fd00::1"]) / TCP())


def cut_to(length: int) -> Callable[[Datapath, Family], bytes]:
    return lambda on, at: tcp(at.pod, at.remote, 1000, 80)[: 14 + len(bytes(at.ip())) + length]


PROVOCATIONS = [
    Provocation(177, "from_netdev", "serve.bpf.c", not_in_its_ranges, INGRESS),
    Provocation(132, "from_pod", "pod.bpf.c", lambda on, at: tcp(at.stranger, at.remote, 1, 80), EGRESS),
    Provocation(132, "from_netdev", "sender.h", lambda on, at: tcp(at.pod, at.pod, 1, 80), INGRESS),
    Provocation(133, "from_pod", "policy.h", closed, EGRESS),
    Provocation(133, "from_netdev", "policy.h", not_let_in, INGRESS),
    Provocation(134, "from_pod", "parse.h", cut_to(19), EGRESS),
    Provocation(134, "from_pod", "parse.h", lambda on, at: tcp(at.pod, at.remote, 1, 80, version=5), EGRESS),
    Provocation(
        134,
        "from_netdev",
        "error.h",
        lambda on, at: error(at.remote, at.pod, ip(at.remote, at.pod) / TCP()),
        INGRESS,
    ),
    Provocation(
        137, "from_pod", "parse.h", lambda on, at: frame(ip(at.pod, at.remote) / TCP())[:14] + unknown(at), EGRESS
    ),
    Provocation(139, "from_pod", "pod.bpf.c", no_ip, EGRESS),
    Provocation(139, "to_pod", "pod.bpf.c", no_ip, INGRESS),
    Provocation(139, "from_overlay", "overlay.bpf.c", no_ip, INGRESS, mode="tunnel"),
    Provocation(
        147, "from_overlay", "overlay.bpf.c", lambda on, at: tcp(at.remote, at.pod, 1, 80), INGRESS, mode="tunnel"
    ),
    Provocation(150, "from_pod", "pod.bpf.c", lambda on, at: udp(at.pod, loopback(at), 1, 80), EGRESS),
    Provocation(151, "from_pod", "forward.h", lambda on, at: tcp(at.pod, at.nobody, on.free_port(), 80), EGRESS),
    Provocation(151, "to_pod", "pod.bpf.c", lambda on, at: tcp(at.node, at.nobody, 1, 80), INGRESS),
    Provocation(156, "from_pod", "parse.h", routing_header, EGRESS, only=V6),
    Provocation(158, "from_pod", "service.h", without_backend, EGRESS),
    Provocation(163, "from_netdev", "error.h", about_nothing, INGRESS),
    Provocation(167, "from_netdev", "nat.h", call_to_a_masqueraded_port, INGRESS),
    Provocation(167, "from_pod", "masquerade_port.bpf.c", taken_port, EGRESS),
    Provocation(168, "from_pod", "rewrite.h", sctp_with_another_port, EGRESS),
    Provocation(168, "from_pod", "masquerade_port.bpf.c", question_to_outside, EGRESS),
    Provocation(169, "from_pod", "forward.h", lambda on, at: udp(at.pod, at.prohibited, on.free_port(), 80), EGRESS),
    Provocation(
        170, "from_netdev", "netdev.bpf.c", lambda on, at: tcp(at.outside, at.remote, 1, 80), INGRESS, mode="tunnel"
    ),
    Provocation(175, "from_pod", "fragment.h", lambda on, at: cut(datagram(at.pod, at.remote, 1, 53), at)[1], EGRESS),
    Provocation(
        176, "from_pod", "neighbour.h", lambda on, at: frame(IPv6(src=at.pod) / ICMPv6ND_RS()), EGRESS, only=V6
    ),
    Provocation(
        176,
        "from_netdev",
        "deliver.h",
        lambda on, at: frame(IPv6(src=at.remote, dst=at.pod) / ICMPv6ND_RS()),
        INGRESS,
        only=V6,
    ),
    Provocation(181, "from_pod", "policy.h", denied, EGRESS),
    Provocation(
        196, "from_pod", "forward.h", lambda on, at: tcp(at.pod, at.remote, on.free_port(), 80, **at.hop(1)), EGRESS
    ),
]


def unknown(at: Family) -> bytes:
    fields: dict[str, Any] = {at.protocol: 47}
    return bytes(ip(at.pod, at.remote, **fields) / bytes(40))


def loopback(at: Family) -> str:
    return "127.0.0.1" if at is V4 else "::1"


@pytest.fixture
def on(routed: Routed, tunnelled: Routed) -> Iterator[dict[str, tuple[Datapath, Ring]]]:
    """Nodes of both modes, their rings empty and this window without events."""
    found: dict[str, tuple[Datapath, Ring]] = {}
    with closing(Ring(routed.maps["events"])) as native, closing(Ring(tunnelled.maps["events"])) as tunnel:
        for mode, datapath, ring in (("native", routed, native), ("tunnel", tunnelled, tunnel)):
            for at in (V4, V6):
                datapath.endpoint(at.pod, FREE_POD)
                datapath.who(at.remote, 300, at.other_node)
                datapath.who(at.node, 1)
                datapath.who(at.block, 3, at.node, bits=at.block_bits)
            datapath.maps.raise_epoch()
            found[mode] = (datapath, ring)
        yield found


def listen(datapath: Datapath, ring: Ring) -> None:
    """Forget what was told, and let the next drop be told whatever came before it."""
    while ring.take():
        pass
    fresh_rate(datapath)


def source_line(event: Event) -> str:
    name = reasons.file_name(event.file)
    folder = BPF / "programs" if name.endswith(".bpf.c") else BPF / "include"
    return (folder / name).read_text().splitlines()[event.line - 1]


@pytest.mark.parametrize(
    ("cause", "at"),
    [(cause, at) for cause in PROVOCATIONS for at in (V4, V6) if cause.only in (None, at)],
    ids=lambda each: f"{each.reason}-{each.program}-{each.file}" if isinstance(each, Provocation) else str(each),
)
def test_a_drop_is_counted_and_told_with_the_line_that_decided(
    on: dict[str, tuple[Datapath, Ring]], at: Family, cause: Provocation
) -> None:
    datapath, ring = on[cause.mode]
    packet = cause.packet(datapath, at)
    listen(datapath, ring)
    index = (cause.reason * 2 + cause.direction).to_bytes(4, "little")
    before = datapath.maps["counters"].get(index)
    assert datapath.dropped_for(cause.program, packet) == cause.reason
    assert total(datapath.maps["counters"].get(index)) - total(before) == 1
    [event] = ring.take()
    assert (event.type, event.reason, event.direction) == (DROP, cause.reason, cause.direction)
    assert event.length == len(packet)
    assert reasons.file_name(event.file) == cause.file
    line = source_line(event)
    assert re.search(rf"\b(REFUSE|DROP)\(p, {NUMBERS[cause.reason]}\)", line), line


def total(raw: bytes | None) -> int:
    """Packets, over all CPUs."""
    return sum(packets for packets, _ in layouts.Counter.layout.iter_unpack(raw or b""))


def test_every_reason_is_provoked_but_those_that_cannot_be() -> None:
    provoked = {cause.reason for cause in PROVOCATIONS}
    assert provoked | set(NOT_PROVOKED) == set(reasons.reasons())
    assert not provoked & set(NOT_PROVOKED)


def test_every_reason_that_the_c_gives_has_a_number_and_a_name() -> None:
    given = {
        name
        for path in [*BPF.glob("programs/*.c"), *BPF.glob("include/*.h")]
        if path != reasons.HEADER
        for name in re.findall(r"\bDROP_\w+", path.read_text())
    }
    assert given == set(NUMBERS.values())


@pytest.mark.parametrize(
    "path", sorted([*BPF.glob("programs/*.bpf.c"), *BPF.glob("include/*.h")]), ids=lambda path: path.name
)
def test_a_file_that_drops_says_its_own_name(path: Path) -> None:
    """Or the line of an event is looked for in another file."""
    text = path.read_text()
    names = dict(re.findall(r"^\s*(FILE_\w+) = \d+,\s*/\* (\S+) \*/$", reasons.HEADER.read_text(), re.MULTILINE))
    drops = re.search(r"\b(REFUSE|DROP)\(p, DROP_", text)
    said = re.findall(r"^#define THIS_FILE (\w+)$", text, re.MULTILINE)
    assert [names[each] for each in said] == ([path.name] if said or drops else [])


def test_a_masqueraded_port_that_is_taken_is_counted(on: dict[str, tuple[Datapath, Ring]], at: Family) -> None:
    """No drop: another port is tried. SCTP has no other, and is refused besides."""
    datapath, _ = on["native"]
    index = (100 * 2 + EGRESS).to_bytes(4, "little")
    packet = taken_port(datapath, at)
    before = total(datapath.maps["counters"].get(index))
    datapath.run("from_pod", packet)
    assert total(datapath.maps["counters"].get(index)) - before == 1


def test_an_allowed_packet_is_counted_as_forwarded(on: dict[str, tuple[Datapath, Ring]], at: Family) -> None:
    datapath, ring = on["native"]
    datapath.allow(9, 300, EGRESS)
    packet = closed(datapath, at)
    listen(datapath, ring)
    before = total(datapath.maps["counters"].get(EGRESS.to_bytes(4, "little")))
    datapath.passes("from_pod", packet)
    assert total(datapath.maps["counters"].get(EGRESS.to_bytes(4, "little"))) - before == 1
    [event] = ring.take()
    assert (event.type, event.reason, event.source) == (POLICY_VERDICT, 0, at.pod)
