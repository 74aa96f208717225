"""`plexus lab up`: namespaces and links, then the supervisor, then wait until every node is ready. Effects."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from bus import accounts
from bus.server import configuration
from bus.service import CANNOT_START
from lab import certificates, cleanup, dialogue, host, names, processes, state, supervisor, topology
from lab.errors import LabError
from lab.plan import MOST_NODES, MOST_SUBNETS
from lab.programs import BUS, bus_settings
from lab.settings import Settings, check_node, check_plan, check_sizes, settings
from lab.state import Record
from services.dataplane.load import build, objects
from services.dataplane.settings import memory_bytes

READY_SECONDS = 60.0
HELPLESS_SECONDS = 10.0  # who says for so long that it cannot start will not
POLL_SECONDS = 0.03

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What a lab is to be."""

    nodes: list[str]
    settings: Settings
    subnets: int
    fabric_routes: bool


def up(
    name: str,
    nodes: int,
    values: Mapping[str, Any],
    progress: Progress = lambda _: None,
    *,
    subnets: int = 1,
    fabric_routes: bool = False,
) -> tuple[Record, bool]:
    """Bring a lab up and wait until it is ready. When that fails or is interrupted, nothing of it is left.

    Args:
        values: Helm values by full key ("bpf.masquerade").
        subnets: LANs that the nodes are in, by turns; a router joins them.
        fabric_routes: the router knows which node has which pods.
        progress: is told in a few words what is waited for.
    Returns: the lab, and whether it was made now; False: it was up already, with the same settings.
    Raises: LabError.
    """
    names.check(name)
    if not 1 <= nodes <= MOST_NODES:
        raise LabError(f"a lab has 1 to {MOST_NODES} nodes, not {nodes}")
    if not 1 <= subnets <= MOST_SUBNETS:
        raise LabError(f"a lab has 1 or {MOST_SUBNETS} subnets, not {subnets}")
    if os.geteuid():
        raise LabError("a lab needs namespaces and BPF: run as root")
    wanted = Wanted(names.nodes(nodes), settings(values), subnets, fabric_routes)
    check_sizes(wanted.settings, memory_bytes())
    known = state.record(name)
    if known is not None:
        return already(known, wanted, progress), False
    with interruptible():
        try:
            return make(name, wanted, progress), True
        except BaseException:
            progress("cleaning up")
            cleanup.clean(name)
            raise


def make(name: str, wanted: Wanted, progress: Progress) -> Record:
    """Make a lab of which nothing is there."""
    build_programs(progress)
    host.bpf_file_system()
    root = host.cgroup_root()
    if rests := cleanup.left(name):
        progress(f"removing what an earlier lab left: {', '.join(rests)}")
        cleanup.clean(name)
    lab = state.claim(
        name, wanted.nodes, wanted.settings, root, subnets=wanted.subnets, fabric_routes=wanted.fabric_routes
    )
    me = processes.identify(os.getpid())
    if me is not None:
        state.write(lab.directory.up, me)
    check_plan(wanted.settings, lab.plan)
    check_node(wanted.settings, lab.plan)
    progress("links and namespaces")
    topology.build(lab)
    lab.directory.topology.touch()
    passwords = accounts.new_passwords(lab.nodes)
    state.write(lab.directory.passwords, passwords)
    if lab.settings.get("bus.tls.enabled"):
        where = [lab.plan.management_control.ip, *(lab.plan.control(family).ip for family in lab.families)]
        certificates.make(lab.directory.certificates, where, passwords)
    if lab.has_hubble_tls:
        certificates.make_for_hubble(lab.directory.hubble_certificates, lab.nodes)
    (lab.directory.bus / "nats-server.conf").write_text(configuration(bus_settings(lab)))
    supervisor.spawn(lab)
    wait_ready(lab, progress)
    lab.directory.up.unlink(missing_ok=True)
    return lab


def build_programs(progress: Progress) -> None:
    """So that its nodes compile nothing, each by itself. Raises: LabError."""
    if not all(map(build.is_built, objects.SETS)):
        progress("compiling the programs for the kernel")
        try:
            asyncio.run(build.build())
        except (build.CompileError, OSError) as problem:
            raise LabError(f"the programs for the kernel do not compile: {problem}") from problem


def already(lab: Record, wanted: Wanted, progress: Progress) -> Record:
    """The lab is there: fine when it is the one that is wanted and healthy. Raises LabError saying what to do."""
    again = f"plexus lab down --name {lab.name}"
    there = Wanted(lab.nodes, lab.settings, lab.subnets, lab.fabric_routes)
    if there != wanted:
        raise LabError(f"lab {lab.name} is up with other settings; {again} first, or take another --name")
    working = state.read(lab.directory.up, state.ProcessId)
    if working is not None and processes.is_alive(working):
        raise LabError(f"lab {lab.name} is being brought up by process {working.pid}; wait for it, or {again}")
    if not lab.directory.topology.exists():
        raise LabError(f"lab {lab.name} was left half made; {again} first")
    if not supervisor.is_alive(lab):
        progress("the supervisor is gone; starting another")
        supervisor.spawn(lab)
    try:
        wait_ready(lab, progress)
    except LabError as error:
        raise LabError(f"lab {lab.name} is there but {error}; or {again} and start anew") from None
    return lab


def wait_ready(lab: Record, progress: Progress) -> None:
    """Wait until the supervisor says that all is ready. Raises LabError with what is not, as soon as it is hopeless."""
    deadline = time.monotonic() + READY_SECONDS
    waiting: list[str] = []
    helpless_since = deadline
    while time.monotonic() < deadline:
        try:
            answer = dialogue.ask(lab.directory.socket, {"do": "status"})
        except dialogue.SupervisorGone:
            if not supervisor.is_alive(lab):
                raise LabError(f"its supervisor ended: {last_words(lab, 'supervisor')}") from None
            waiting = ["supervisor: starts"]
        else:
            if answer["ready"]:
                return
            waiting = answer["waiting"]
            if all(f": {supervisor.STOPPED}" in line for line in waiting):
                raise LabError("; ".join(waiting))
            helpless = [line for line in waiting if CANNOT_START in line]
            helpless_since = min(helpless_since, time.monotonic()) if helpless else deadline
            if time.monotonic() - helpless_since > HELPLESS_SECONDS:
                raise LabError("; ".join(helpless))
            if not any(line.startswith(f"{BUS}:") for line in waiting):
                progress(f"waiting for {', '.join(line.partition(':')[0] for line in waiting)}")
        time.sleep(POLL_SECONDS)
    raise LabError(f"not ready after {READY_SECONDS:.0f} s: {'; '.join(told(lab, waiting))}")


def told(lab: Record, waiting: list[str]) -> list[str]:
    """What is not ready, each with the last words of its process: its log goes with the lab."""
    found = [(line, last_words(lab, line.partition(":")[0])) for line in waiting]
    return [
        line if words == supervisor.SILENCE or words in line else f"{line} (its last words: {words})"
        for line, words in found
    ]


def last_words(lab: Record, process: str) -> str:
    return supervisor.last_line(lab.directory.log(process))


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end us as Ctrl-C does, so that everything made is removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
