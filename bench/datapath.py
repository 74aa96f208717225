"""A node's programs and maps, on no network: what is needed to run a packet through them. Effects; needs root.

Programs are loaded as the dataplane loads them and pinned in a directory of the bench's own. They run in a thread whose
network namespace has the routes and neighbours of a node, and nothing that a packet could disturb.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lab import host, state
from lab.plan import Family
from services.dataplane.kernel import bpf
from services.dataplane.kernel.bpf import ProgramRun
from services.dataplane.kernel.maps import Maps
from services.dataplane.kernel.pins import open_program
from services.dataplane.load import loader
from services.dataplane.parts.policy.entries import ALLOW
from services.dataplane.shapes import layouts
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS, pack_address
from services.dataplane.shapes.programs import TC_PROGRAMS
from services.dataplane.shapes.protocols import TCP, UDP

PREFIX = "plexus-bench-"  # of pin directories; the bench's pid and what they are for follow
LOOPBACK = 1  # the one interface that is in every namespace: packets come by it
DEVICE = 77  # the outward one
NETDEV_PROGRAMS = ("from_netdev", "to_netdev")
CONTEXT_BYTES, IFINDEX_AT = 192, 40  # struct __sk_buff
POD_MAC, GATEWAY_MAC = bytes.fromhex("020000000001"), bytes.fromhex("0200000000fe")
SERVICE_PORT, BACKEND_PORT = 80, 8080
PODS = {"pod": 256, "neighbour": 257, "remote": 300}  # identities
T = TypeVar("T")
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Addresses:
    """Who is who in a family."""

    pod: str  # of this node
    neighbour: str  # of this node too
    remote: str  # of the other node
    node: str
    other_node: str
    gateway: str  # to the outside
    outside: str
    service: str  # its one backend is `neighbour`


ADDRESSES: dict[Family, Addresses] = {
    4: Addresses(
        pod="10.0.0.1",
        neighbour="10.0.0.2",
        remote="10.0.1.5",
        node="192.0.2.1",
        other_node="192.0.2.2",
        gateway="192.0.2.254",
        outside="198.51.100.7",
        service="10.96.0.1",
    ),
    6: Addresses(
        pod="fd00:10::1",
        neighbour="fd00:10::2",
        remote="fd00:10:1::5",
        node="2001:db8::1",
        other_node="2001:db8::2",
        gateway="2001:db8::254",
        outside="2001:db8:f::7",
        service="fd00:96::1",
    ),
}


class Datapath:
    """Programs by name, and maps with two pods here, one on another node, and a Service; every pod has a policy."""

    def __init__(self, pin_dir: Path, families: tuple[Family, ...]) -> None:
        self.pin_dir = pin_dir
        self.maps = Maps(pin_dir)
        self.programs = {name: open_program(pin_dir, name) for name in TC_PROGRAMS}
        self._ports = itertools.cycle(range(20000, 60000))
        self._inside = ThreadPoolExecutor(1, "in a namespace")
        self._inside.submit(enter_namespace, families).result()
        for family in families:
            self._fill(ADDRESSES[family])
        self._allow()
        self.maps["devices"].set(layouts.DeviceKey(DEVICE).pack(), layouts.DeviceEntry(has_pods=True).pack())
        self.maps.raise_epoch()

    def close(self) -> None:
        self._inside.shutdown()
        self.maps.close()
        for fd in self.programs.values():
            os.close(fd)

    def free_port(self) -> int:
        """A source port that no connection has yet."""
        return next(self._ports)

    def run(self, program: str, packet: bytes, repeat: int = 1) -> ProgramRun:
        """Run a packet, which each repeat finds as the one before left it."""
        return self.runs(program, packet, repeat, 1)[0]

    def runs(self, program: str, packet: bytes, repeat: int, times: int) -> list[ProgramRun]:
        """The same packet anew, `times` times, one right after the other."""
        at = bytearray(CONTEXT_BYTES)
        struct.pack_into("=I", at, IFINDEX_AT, DEVICE if program in NETDEV_PROGRAMS else LOOPBACK)
        context, fd = bytes(at), self.programs[program]
        return self.inside(lambda: [bpf.run_program(fd, packet, repeat=repeat, context=context) for _ in range(times)])

    def execute(self, command: list[str]) -> None:
        """Run a command in the namespace. Raises CalledProcessError."""
        self.inside(lambda: subprocess.run(command, check=True, capture_output=True, text=True))

    def inside(self, work: Callable[[], T]) -> T:
        """Do `work` where packets run: in the namespace, on the processor that all datapaths of a bench use."""
        return self._inside.submit(work).result()

    def _fill(self, who: Addresses) -> None:
        for name in ("pod", "neighbour"):
            entry = layouts.EndpointEntry(
                LOOPBACK, PODS[name], PODS[name], FLAG_ENFORCE_INGRESS | FLAG_ENFORCE_EGRESS, POD_MAC, GATEWAY_MAC
            )
            self.maps["endpoints"].set(pack_address(getattr(who, name)), entry.pack())
        for address, identity, node in ((who.remote, PODS["remote"], who.other_node), (who.node, 1, "")):
            entry_of = layouts.IpcacheEntry(identity, node) if node else layouts.IpcacheEntry(identity)
            self.maps["ipcache"].set(layouts.IpcacheKey(address).pack(), entry_of.pack())
        number = 4 if "." in who.service else 6
        backend = layouts.BackendEntry(who.neighbour, BACKEND_PORT)
        self.maps["backends"].set(layouts.BackendKey(number, 0).pack(), backend.pack())
        for protocol in (TCP, UDP):
            service = layouts.ServiceKey(who.service, SERVICE_PORT, protocol)
            self.maps["services"].set(service.pack(), layouts.ServiceEntry(number, 1).pack())

    def _allow(self) -> None:
        """Each pod of this node and every other one, and each and the world."""
        for policy in (PODS["pod"], PODS["neighbour"]):
            for identity in (*PODS.values(), 2, 9, 10):
                for direction in (0, 1):
                    key = layouts.PolicyMapKey(policy, identity, direction, 0, 0, 0)
                    self.maps["policy"].set(key.pack(), layouts.PolicyMapEntry(ALLOW, 1, 0, 0, 0).pack())


def enter_namespace(families: tuple[Family, ...]) -> None:
    """Give the calling thread a network namespace with a node's routes, which ends with the thread, and one processor.

    Two processors of a shared machine differ in speed from moment to moment.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    commands = ["link set lo up", f"link add out index {DEVICE} type veth peer name far", "link set far up"]
    for family in families:
        who, bits = ADDRESSES[family], 24 if family == 4 else 64
        commands.append(f"address add {who.node}/{bits} dev out{' nodad' if family == 6 else ''}")
    commands.append("link set out up")
    for family in families:
        who = ADDRESSES[family]
        known = "lladdr 02:00:00:00:00:77 dev out nud permanent"
        commands.extend(f"neighbour replace {each} {known}" for each in (who.other_node, who.gateway))
        commands.append(f"-{family} route add default via {who.gateway}")
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)
    for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", key).write_text("1")


def configuration(mode: str, families: tuple[Family, ...]) -> loader.DatapathConfig:
    """What a node of the families is loaded with."""
    return loader.DatapathConfig(
        node_address=ADDRESSES[4].node if 4 in families else "",
        node_address6=ADDRESSES[6].node if 6 in families else "",
        ipv4=4 in families,
        ipv6=6 in families,
        device_index=DEVICE,
        services="10.96.0.0/16",
        services6="fd00:96::/112",
        tunnel_index=LOOPBACK if mode == "tunnel" else 0,
        sizes={"CT_TCP_MAX": 65536, "CT_ANY_MAX": 65536, "NAT_MAX": 65536, "SOCK_REVERSE_MAX": 4096},
    )


@contextmanager
def datapath(mode: str, families: tuple[Family, ...]) -> Iterator[Datapath]:
    """Programs loaded for a mode, "native" or "tunnel"; nothing of them stays.

    Raises: LoadError: the verifier refused.
    """
    pin_dir = host.bpf_file_system() / f"{PREFIX}{os.getpid()}-{mode}{''.join(map(str, families))}"
    config = configuration(mode, families)
    try:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as scratch:
            asyncio.run(loader.load(config, pin_dir, Path(scratch)))
        loaded = Datapath(pin_dir, families)
        try:
            yield loaded
        finally:
            loaded.close()
    finally:
        shutil.rmtree(pin_dir, ignore_errors=True)


def remove_leftovers() -> None:
    """Unpin what benches left that no longer run."""
    for path in state.BPF.glob(f"{PREFIX}*"):
        if not Path("/proc", path.name.removeprefix(PREFIX).partition("-")[0]).exists():
            shutil.rmtree(path, ignore_errors=True)
