"""Nanoseconds per packet for each program and path, by BPF_PROG_TEST_RUN.

A packet that its program leaves as it was, but for the hop that routing costs, is run 250 times in a row: what is told
is the mean, with everything in the CPU's caches. What a program translates cannot go through it twice, so such packets
are run one by one ("alone" in the name): the first run's caches and the kernel's clock are in those figures, and they
are to be compared with each other only. Of the others each value has the yardstick's beside it (bench/recorded.py).

What comes out of a tunnel is not here: the kernel's test run cannot give a packet a tunnel key.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench.bars import Figure
from bench.datapath import (
    ADDRESSES,
    BACKEND_PORT,
    PREFIX,
    SERVICE_PORT,
    Addresses,
    Datapath,
    datapath,
)
from bench.harness import interleave
from bench.yardstick import yardstick
from lab import host, namespaces
from lab.plan import FAMILIES, Family
from services.dataplane.kernel import bpf
from services.dataplane.kernel.pins import open_program
from services.dataplane.shapes.programs import SOCKET_PROGRAMS

TC_ACT_SHOT, TC_ACT_REDIRECT = 2, 7
HOPS = 255  # of a packet when it starts
REPEAT = HOPS - 5  # every run costs it a hop
RUNS = 20  # of a packet for one value, its median
GROUP = "packet"
BESIDE = ", the yardstick"  # behind a figure's name: what was timed right after it
STACKS: tuple[tuple[Family, ...], ...] = ((4,), (6,), (4, 6))  # of a node: the programs differ


class PacketLost(Exception):
    """A packet did not take the way that was to be measured; the text says which."""


@dataclass(frozen=True, slots=True)
class Case:
    """One packet of one program."""

    name: str  # within its mode and family
    program: str
    packet: bytes
    repeat: int = REPEAT
    action: int = TC_ACT_REDIRECT


def tcp(source: str, destination: str, ports: tuple[int, int], flags: str = "A") -> bytes:
    """A frame with one segment."""
    from scapy.layers.inet import IP, TCP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    is_6 = ":" in source
    ip = IPv6(src=source, dst=destination, hlim=HOPS) if is_6 else IP(src=source, dst=destination, ttl=HOPS)
    segment = TCP(sport=ports[0], dport=ports[1], flags=flags)
    return bytes(Ether(src="02:00:00:00:00:aa", dst="02:00:00:00:00:bb") / ip / segment / b"hello")


def cases(path: Datapath, mode: str, who: Addresses) -> Iterator[Case]:
    """Every packet that is measured; its connection is there when it is yielded."""

    def passes(program: str, packet: bytes) -> bytes:
        """A packet that must get through, as it is afterwards."""
        run = path.run(program, packet)
        if run.result == TC_ACT_SHOT:
            raise PacketLost(f"{program} dropped a packet that opens a connection")
        return run.packet

    port = path.free_port()
    there, back = (port, 80), (80, port)
    passes("from_pod", tcp(who.pod, who.neighbour, there, "S"))
    passes("from_pod", tcp(who.neighbour, who.pod, back, "SA"))
    yield Case("pod to a pod of its node", "from_pod", tcp(who.pod, who.neighbour, there))
    yield Case("its reply", "from_pod", tcp(who.neighbour, who.pod, back))

    way_in = "from_netdev" if mode == "native" else ""
    passes("from_pod", tcp(who.pod, who.remote, there, "S"))
    if way_in:
        passes(way_in, tcp(who.remote, who.pod, back, "SA"))
    yield Case("pod to a pod of another node", "from_pod", tcp(who.pod, who.remote, there))
    if way_in:
        yield Case("from the wire to a pod", way_in, tcp(who.remote, who.pod, back))

    translated = passes("from_pod", tcp(who.pod, who.outside, there, "S"))
    port_at = 14 + (40 if ":" in who.pod else 20)
    nat_port = int.from_bytes(translated[port_at : port_at + 2], "big")
    passes("from_netdev", tcp(who.outside, who.node, (80, nat_port), "SA"))
    yield Case("masqueraded, out, alone", "from_pod", tcp(who.pod, who.outside, there), 1)
    yield Case("masqueraded, in, alone", "from_netdev", tcp(who.outside, who.node, (80, nat_port)), 1)

    to_service, from_backend = (port, SERVICE_PORT), (BACKEND_PORT, port)
    passes("from_pod", tcp(who.pod, who.service, to_service, "S"))
    passes("from_pod", tcp(who.neighbour, who.pod, from_backend, "SA"))
    yield Case("to a Service, alone", "from_pod", tcp(who.pod, who.service, to_service), 1)
    yield Case("a Service's reply, alone", "from_pod", tcp(who.neighbour, who.pod, from_backend), 1)


def measure_packets(modes: Sequence[str], rounds: int, tell: Callable[[str], None]) -> Iterator[Figure]:
    """All paths of each mode in turns, for each family alone and for both, then the socket hooks.

    Args:
        modes: of "native" and "tunnel".
        rounds: values of each figure.
    Raises: PacketLost, LoadError.
    """
    for mode in modes:
        tell(f"packets, {mode}")
        with ExitStack() as stack:
            paths = {families: stack.enter_context(datapath(mode, families)) for families in STACKS}
            beside = partial(paths[STACKS[0]].inside, stack.enter_context(yardstick()))
            sides: dict[str, Callable[[], float]] = {}
            for families, path in paths.items():
                for family in families:
                    for case in cases(path, mode, ADDRESSES[family]):
                        name = f"{GROUP}, {mode}{' dual' * (len(families) > 1)} v{family}: {case.name}"
                        if case.repeat > 1:
                            sides |= {name: timing(path, case), name + BESIDE: beside}
                        elif len(families) == 1:
                            sides[name] = timing(path, case)
            found = interleave(sides, rounds)
            for name, values in found.items():
                if not name.endswith(BESIDE):
                    yield Figure(name, "ns", tuple(values), beside=tuple(found.get(name + BESIDE, ())))
            if mode == "native":
                for family in FAMILIES:
                    tell(f"socket hooks, v{family}")
                    yield from measure_connect(paths[(family,)], family, min(rounds, CONNECT_ROUNDS))


def timing(path: Datapath, case: Case) -> Callable[[], float]:
    """How long one value of a case takes, in ns."""

    def measure() -> float:
        runs = path.runs(case.program, case.packet, case.repeat, RUNS)
        if wrong := {run.result for run in runs} - {case.action}:
            raise PacketLost(f"{case.program}, {case.name}: the verdict is {wrong}, not {case.action}")
        return median(run.duration_ns for run in runs)

    return measure


# A UDP socket sends nothing when it connects: what is left is the hook.
CONNECTS = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as client:
    for _ in range(int(sys.argv[3])):
        client.connect((sys.argv[1], int(sys.argv[2])))
"""
CONNECTS_A_VALUE = 5000
CONNECT_ROUNDS = 7  # each value starts a process


def measure_connect(path: Datapath, family: Family, rounds: int) -> Iterator[Figure]:
    """The connect hook in a cgroup of its own, timed by the kernel as it runs: to an address that is no Service's, and
    to one that is."""
    who, name = ADDRESSES[family], f"connect{family}"
    cgroup = host.cgroup_root() / f"{PREFIX}{os.getpid()}"
    cgroup.mkdir()
    program = open_program(path.pin_dir, name)
    try:
        bpf.attach_cgroup(program, cgroup, SOCKET_PROGRAMS[name], path.pin_dir / f"bench_{name}")
        sides = {
            f"{GROUP}, {name}: no Service": connecting(path, program, cgroup, who.outside),
            f"{GROUP}, {name}: a Service": connecting(path, program, cgroup, who.service),
        }
        with bpf.run_statistics():
            for figure, values in interleave(sides, rounds).items():
                yield Figure(figure, "ns", tuple(values))
    finally:
        os.close(program)
        (path.pin_dir / f"bench_{name}").unlink(missing_ok=True)
        host.remove_cgroup(cgroup)


def connecting(path: Datapath, program: int, cgroup: Path, address: str) -> Callable[[], float]:
    """How long one run of the hook takes while sockets are connected, in ns."""
    python = [sys.executable, "-I", "-S", "-c", CONNECTS, address, str(SERVICE_PORT), str(CONNECTS_A_VALUE)]
    command = namespaces.command("", cgroup, python)

    def measure() -> float:
        time_before, runs_before = bpf.run_time(program)
        path.execute(command)
        time, runs = bpf.run_time(program)
        if runs - runs_before < CONNECTS_A_VALUE:
            raise PacketLost(f"the hook ran {runs - runs_before} times for {CONNECTS_A_VALUE} connections")
        return (time - time_before) / (runs - runs_before)

    return measure
