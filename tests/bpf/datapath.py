"""The real programs in the real kernel, given packets one by one (BPF_PROG_TEST_RUN), with maps that a test fills."""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    ICMPv6Unknown,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkData

from services.dataplane.kernel import bpf
from services.dataplane.kernel.bpf import ProgramRun
from services.dataplane.kernel.maps import Maps
from services.dataplane.kernel.pins import open_program
from services.dataplane.parts.policy.entries import ALLOW, PolicyEntry, PolicyKey
from services.dataplane.shapes import layouts, limits
from services.dataplane.shapes.layouts import EndpointEntry, IpcacheEntry, IpcacheKey, pack_address
from services.dataplane.shapes.programs import TC_PROGRAMS
from services.dataplane.shapes.reasons import reasons
from tests.bpf.reading import with_right_checksums

TC_ACT_UNSPEC, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_REDIRECT = 0xFFFFFFFF, 0, 2, 7
NO_BACKEND = 158  # the reason whose packets are answered
DEVICE_INDEX = 77  # of the outward device, where there is one
LOOPBACK_INDEX = 1  # the one interface that is always there
CONTEXT_BYTES = 192  # struct __sk_buff
CAME_FROM_AT, IFINDEX_AT = 36, 40  # ingress_ifindex, ifindex
NODE, OTHER_NODE = "192.0.2.1", "192.0.2.2"
POD_MAC, GATEWAY_MAC = b"\x02\x00\x00\x00\x00\x01", b"\x02\x00\x00\x00\x00\xfe"
POD, NEIGHBOUR = "10.0.0.1", "10.0.0.2"  # pods of this node
REMOTE = "10.0.1.5"  # a pod of the other node
OUTSIDE = "198.51.100.7"
NODE6, OTHER_NODE6 = "2001:db8::1", "2001:db8::2"
POD6, NEIGHBOUR6, REMOTE6 = "fd00:10::1", "fd00:10::2", "fd00:11::5"
OUTSIDE6 = "2001:db8:52::7"
SERVICE, SECOND = "10.96.0.10", "10.0.1.6"
SERVICES, SERVICES6 = "10.96.0.0/16", "fd00:96::/112"
SERVICE6, SECOND6 = "fd00:96::10", "fd00:11::6"


@dataclass(frozen=True)
class Family:
    """One address of each kind, and what else differs between IPv4 and IPv6."""

    version: int
    ip: Any  # scapy's class of the header
    hops: str  # and its field that is lost one by one
    pod: str
    neighbour: str
    nobody: str  # of this node's block, and no pod has it
    block: str
    block_bits: int
    remote: str
    second: str  # beside `remote`
    node: str
    other_node: str
    outside: str
    outside2: str
    native: str  # of conftest.NATIVE_CIDRS: what pods speak to with their own address
    stranger: str  # in no range that anybody is known to have
    prohibited: str  # there is a route, and it says no
    service: str
    icmp: int  # protocol
    protocol: str  # scapy's field of it in the header
    echo: int  # type
    reply: int  # type
    question: int  # type of a message that asks and is no echo
    unreachable: int  # type
    world: int  # identity in dual stack

    def __str__(self) -> str:
        return f"v{self.version}"

    def hop(self, count: int) -> dict[str, Any]:
        """The header's field for how many hops are left."""
        return {self.hops: count}


V4 = Family(
    version=4,
    ip=IP,
    hops="ttl",
    pod=POD,
    neighbour=NEIGHBOUR,
    nobody="10.0.0.77",
    block="10.0.0.0",
    block_bits=24,
    remote=REMOTE,
    second=SECOND,
    node=NODE,
    other_node=OTHER_NODE,
    outside=OUTSIDE,
    outside2="198.51.100.200",
    native="198.51.100.7",
    stranger="10.9.9.9",
    prohibited="203.0.113.9",
    service=SERVICE,
    icmp=1,
    protocol="proto",
    echo=8,
    reply=0,
    question=13,  # timestamp
    unreachable=3,
    world=9,
)
V6 = Family(
    version=6,
    ip=IPv6,
    hops="hlim",
    pod=POD6,
    neighbour=NEIGHBOUR6,
    nobody="fd00:10::77",
    block="fd00:10::",
    block_bits=120,
    remote=REMOTE6,
    second=SECOND6,
    node=NODE6,
    other_node=OTHER_NODE6,
    outside=OUTSIDE6,
    outside2="2001:db8:52::8",
    native="2001:db8:51::7",
    stranger="fd00:99::9",
    prohibited="2001:db8:113::9",
    service=SERVICE6,
    icmp=58,
    protocol="nh",
    echo=128,
    reply=129,
    question=139,  # node information (RFC 4620)
    unreachable=1,
    world=10,
)
SIZES = {"CT_TCP_MAX": 16384, "CT_ANY_MAX": 16384, "NAT_MAX": 16384, "SOCK_REVERSE_MAX": 4096}  # of maps
FROM_DEVICES = ("from_netdev", "from_overlay", "to_pod")
HASHES = [limits.MAP_TYPES[kind] for kind in ("hash", "lru_hash", "lpm_trie")]  # what can be emptied
SUMMED_BY_DEVICE = 1 << 2  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE
CLONE_NEWNET = 0x40000000


class Datapath:
    """Programs by name, and the maps that they share."""

    def __init__(self, pin_dir: Path) -> None:
        self.pin_dir = pin_dir
        self.maps = Maps(pin_dir)
        self._programs = {name: open_program(pin_dir, name) for name in TC_PROGRAMS}
        self._context = bytearray(CONTEXT_BYTES)
        struct.pack_into("=I", self._context, IFINDEX_AT, LOOPBACK_INDEX)
        self._ports = itertools.cycle(range(20000, 60000))

    def close(self) -> None:
        self.maps.close()
        for fd in self._programs.values():
            os.close(fd)

    def run(self, program: str, packet: bytes, repeat: int = 1) -> ProgramRun:
        """On the loopback interface. Packets shorter than an Ethernet header are refused by the kernel.

        What may come from a device comes as if that had summed it up: the kernel sums it again after the program, and
        refuses (EBADMSG) when that is not what the program has made of the device's sum.
        """
        flags = SUMMED_BY_DEVICE if program in FROM_DEVICES and repeat == 1 and not has_no_checksum(packet) else 0
        return bpf.run_program(
            self._programs[program], packet, repeat=repeat, context=bytes(self._context), flags=flags
        )

    def came_from(self, index: int) -> None:
        """The device by which the next packets came to the node's stack; 0: they are its own."""
        struct.pack_into("=I", self._context, CAME_FROM_AT, index)

    def runs_on(self, index: int) -> None:
        """The device that the next packets come in or go out by; it must be there."""
        struct.pack_into("=I", self._context, IFINDEX_AT, index)

    def clear(self) -> None:
        """Empty every map but counters; connections are judged anew, and packets are the node's own."""
        self.came_from(0)
        self.maps.serve(0)
        for name, declared in limits.declared_maps().items():
            if declared.type in HASHES:
                self.maps[name].remove_many([key for key, _ in self.maps[name].items()])
        for index in (LOOPBACK_INDEX, DEVICE_INDEX):  # packets run on the one, and leave by the other
            self.device(index)

    def device(self, index: int, address: str = "", address6: str = "", *, has_pods: bool = True) -> None:
        """One of the node's that lead out; without an address what leaves by it bears the node's own."""
        entry = layouts.DeviceEntry(address, address6, has_pods)
        self.maps["devices"].set(layouts.DeviceKey(index).pack(), entry.pack())

    def free_port(self) -> int:
        """A source port that no connection of this test has."""
        return next(self._ports)

    def endpoint(
        self, address: str, identity: int = 256, policy: int = 0, flags: int = 0, interface: int = LOOPBACK_INDEX
    ) -> None:
        entry = EndpointEntry(interface, identity, policy, flags, POD_MAC, GATEWAY_MAC)
        self.maps["endpoints"].set(pack_address(address), entry.pack())

    def who(self, address: str, identity: int, node: str = "", bits: int = -1) -> None:
        self.maps["ipcache"].set(IpcacheKey(address, bits).pack(), IpcacheEntry(identity, node).pack())

    def policy(self, policy: int, entries: Iterable[tuple[PolicyKey, PolicyEntry]]) -> None:
        for key, entry in entries:
            raw = layouts.PolicyMapKey(policy, key.identity, key.direction, key.protocol, key.port, key.l4_bits).pack()
            value = layouts.PolicyMapEntry(entry.precedence, entry.cookie, entry.proxy_port, entry.flags, key.l4_bits)
            self.maps["policy"].set(raw, value.pack())

    def called(self, policy: int, cookie: int, address: str, protocol: int, port: int) -> None:
        """A named entry of the policy holds at this address and port."""
        key = layouts.NamedPortKey(policy, cookie, address, port, protocol)
        self.maps["named_ports"].set(key.pack(), b"\x01")

    def allow(
        self, policy: int, identity: int, direction: int, protocol: int = 0, port: int = 0, bits: int = 0
    ) -> None:
        """One entry of a policy; its cookie is 77."""
        self.policy(policy, [(PolicyKey(identity, direction, protocol, port, bits), PolicyEntry(ALLOW, 77))])

    def service(
        self,
        address: str,
        port: int,
        protocol: int,
        backends: list[tuple[str, int]],
        number: int = 1,
        *,
        flags: int = 0,
        affinity: int = 0,
        outside: int = 0,
    ) -> None:
        """`affinity`: ticks for which a client comes back. `outside`: how many serve who calls from there."""
        for slot, (backend, backend_port) in enumerate(backends):
            entry = layouts.BackendEntry(backend, backend_port)
            self.maps["backends"].set(layouts.BackendKey(number, slot).pack(), entry.pack())
        living = {layouts.LivingKey(number, *backend).pack() for backend in backends}
        old = [key for key, _ in self.maps["living"].items() if key[:4] == number.to_bytes(4, "little")]
        self.maps["living"].remove_many([key for key in old if key not in living])
        self.maps["living"].set_many((key, b"\x01") for key in living)
        value = layouts.ServiceEntry(number, len(backends), flags, affinity, outside).pack()
        self.maps["services"].set(layouts.ServiceKey(address, port, protocol).pack(), value)

    def affinity(self, key: layouts.AffinityKey, entry: layouts.AffinityEntry) -> None:
        self.maps["affinity"].set(key.pack(), entry.pack())

    def affinities(self) -> dict[layouts.AffinityKey, layouts.AffinityEntry]:
        unpack = layouts.AffinityKey.unpack, layouts.AffinityEntry.unpack
        return {unpack[0](key): unpack[1](value) for key, value in self.maps["affinity"].items()}

    def connections(self) -> dict[layouts.ConnectionKey, layouts.Connection]:
        """All of them. What is reserved in each is 0, and every flag has a name."""
        found = {}
        for key, value in (entry for name in layouts.CT_MAPS for entry in self.maps[name].items()):
            connection = layouts.Connection.unpack(value)
            assert connection.pack() == value
            assert not connection.flags & ~sum(layouts.CT_FLAGS)
            found[layouts.ConnectionKey.unpack(key)] = connection
        return found

    def drops(self) -> dict[int, int]:
        """Packets dropped so far, by reason."""
        found = {}
        for reason in reasons():
            raw = b"".join(
                self.maps["counters"].get((reason * 2 + direction).to_bytes(4, "little")) or b"" for direction in (0, 1)
            )
            found[reason] = sum(packets for packets, _ in layouts.Counter.layout.iter_unpack(raw))
        return found

    def dropped_for(self, program: str, packet: bytes) -> int:
        """The reason for which `program` drops `packet`; 0 when it does not. What no Service takes may be answered."""
        before = self.drops()
        result = self.run(program, packet).result
        new = {reason: count - before.get(reason, 0) for reason, count in self.drops().items()}
        reasons = [reason for reason, count in new.items() if count]
        dropped = result == TC_ACT_SHOT or (result == TC_ACT_REDIRECT and reasons == [NO_BACKEND])
        assert dropped == bool(reasons), f"result {result}, counted {reasons}: a drop without a reason"
        return reasons[0] if reasons else 0

    def passes(self, program: str, packet: bytes) -> Any:
        """The packet as it is after `program`, which must not drop it, as scapy sees it; its checksums are right."""
        run = self.run(program, packet)
        assert run.result != TC_ACT_SHOT
        assert with_right_checksums(run.packet) == run.packet
        return Ether(run.packet)


class Routed(Datapath):
    """Packets meet the routes of a network namespace of its own: 192.0.2.0/24 is next door, all else by .254."""

    ROUTES = (
        "ip link set lo up",
        f"ip link add out index {DEVICE_INDEX} type veth peer name far",
        "ip link set far up",
        f"ip address add {NODE}/24 dev out",
        "ip link set out up",
        "ip route add default via 192.0.2.254",
        "ip route add prohibit 203.0.113.0/25",
        f"ip address add {NODE6}/64 dev out nodad",
        "ip -6 route add default via 2001:db8::fe",
        "ip -6 route add prohibit 2001:db8:113::/48",
        "sysctl -qw net.ipv6.conf.all.forwarding=1",
        "sysctl -qw net.ipv4.ip_forward=1",
    )

    def __init__(self, pin_dir: Path) -> None:
        super().__init__(pin_dir)
        self._inside = ThreadPoolExecutor(1, "in a namespace")
        self._inside.submit(self._enter).result()

    def _enter(self) -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        for command in self.ROUTES:
            subprocess.run(command.split(), check=True)

    def close(self) -> None:
        self._inside.shutdown()
        super().close()

    def run(self, program: str, packet: bytes, repeat: int = 1) -> ProgramRun:
        return self._inside.submit(super().run, program, packet, repeat).result()

    def execute(self, command: str) -> None:
        """Run a command in the namespace. Raises CalledProcessError."""
        self._inside.submit(subprocess.run, command.split(), check=True).result()

    def inside(self, work: Callable[[Datapath], None]) -> None:
        """Do `work` there as a whole, with the same datapath: `run` changes threads for each packet."""
        plain = Datapath.__new__(Datapath)
        plain.__dict__ = self.__dict__
        self._inside.submit(work, plain).result()


def has_no_checksum(packet: bytes) -> bool:
    """UDP that goes without, over IPv6 too, where no receiver takes it: nobody looks at a device's sum of it."""
    if packet[12:14] == b"\x86\xdd":
        protocol, at = packet[20:21], 14 + 40 + 6
        if protocol == b"\x2c":  # a fragment header
            protocol, at = packet[54:55], at + 8
    else:
        protocol, at = packet[23:24], 14 + (packet[14] & 15) * 4 + 6 if len(packet) > 34 else len(packet)
    return protocol == b"\x11" and packet[at : at + 2] == b"\0\0"


def key_between(one: tuple[str, int], other: tuple[str, int], protocol: int) -> layouts.ConnectionKey:
    """The key that the kernel gives to a connection of two ends (flow.h, key_of)."""
    low, high = sorted(
        (one, other), key=lambda end: (int.from_bytes(pack_address(end[0]), "little"), socket.htons(end[1]))
    )
    return layouts.ConnectionKey(low[0], high[0], low[1], high[1], protocol)


def ip(source: str, destination: str, **fields: Any) -> Any:
    """An IP header of the addresses' family."""
    return IPv6(src=source, dst=destination, **fields) if ":" in source else IP(src=source, dst=destination, **fields)


def frame(ip: Any) -> bytes:
    """As it comes from a pod or from the wire."""
    return bytes(Ether(src="02:00:00:00:00:aa", dst="02:00:00:00:00:bb") / ip)


def tcp(source: str, destination: str, sport: int, dport: int, flags: str = "S", **fields: Any) -> bytes:
    return frame(ip(source, destination, **fields) / TCP(sport=sport, dport=dport, flags=flags) / b"hello")


def udp(source: str, destination: str, sport: int, dport: int, **fields: Any) -> bytes:
    return frame(ip(source, destination) / UDP(sport=sport, dport=dport, **fields) / b"hello!!")


def sctp(source: str, destination: str, sport: int, dport: int) -> bytes:
    return frame(ip(source, destination) / SCTP(sport=sport, dport=dport, tag=1) / SCTPChunkData(data=b"hello"))


def echo(source: str, destination: str, number: int, *, reply: bool = False) -> bytes:
    return frame(ip(source, destination) / echo_message(source, number, reply=reply))


def echo_message(source: str, number: int, *, reply: bool = False) -> Any:
    """Of the family that `source` is of."""
    data = b"12345678"
    if ":" not in source:
        return ICMP(type=0 if reply else 8, id=number, seq=1) / data
    return (ICMPv6EchoReply if reply else ICMPv6EchoRequest)(id=number, seq=1, data=data)


def icmp(source: str, destination: str, kind: int) -> bytes:
    """A message that is neither an error nor an echo; `kind` is its type."""
    message = ICMPv6Unknown(type=kind, code=0, msgbody=b"12345678") if ":" in source else ICMP(type=kind, id=7)
    return frame(ip(source, destination) / message)


ERRORS6 = {1: ICMPv6DestUnreach, 2: ICMPv6PacketTooBig, 3: ICMPv6TimeExceeded, 4: ICMPv6ParamProblem}


def error(source: str, destination: str, about: Any, kind: int = 0, *, whole: bool = False) -> bytes:
    """An ICMP error that quotes `about`: bytes, or a packet from its IP header on.

    `kind`: the message's type, by default "unreachable". Quoted are the header and 8 bytes, or the `whole` packet.
    """
    quoted = bytes(about)
    if not whole:
        header = 40 if ":" in source else 20
        quoted = quoted[: header + 8]
    message = ERRORS6[kind or 1](code=0) if ":" in source else ICMP(type=kind or 3, code=1)
    return frame(ip(source, destination) / message / quoted)
