"""The shapes of map keys, values and events in Python: the other half of bpf/include/types.h.

Each type says how it looks as bytes; a key is, as text, what people know the entry by. loader.py compares every size
with the maps that the C made, and refuses to run when one differs; tests/bpf compares every offset. Addresses are text
outside and network byte order inside; ports are plain numbers outside.
What is reserved (docs/map-layouts.md) is 0 in all that is written, and is not read.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

from bus.addresses import with_port
from services.dataplane.shapes.protocols import name_of

FLAG_ENFORCE_INGRESS = 1
FLAG_ENFORCE_EGRESS = 2

CT_MAPS = ("ct_tcp", "ct_any")
CT_FLAGS = {
    0x01: "origin-low",
    0x02: "replied",
    0x04: "origin-fin",
    0x08: "reply-fin",
    0x10: "reset",
    0x20: "translated",
    0x40: "masqueraded",
    0x80: "by-stack",
    0x100: "both-here",
    0x200: "ahead",
    0x2000: "relayed",
}
WAYS = ("unknown", "local", "host", "pod", "out")
TICK_NS = 1 << 30  # the unit of `Connection.expires`
DIRECTIONS = ("ingress", "egress")


ADDRESS_BYTES = 16
NO_ADDRESS = ""
_MAPPED = bytes(10) + b"\xff\xff"  # what IPv4 begins with
_NONE = bytes(ADDRESS_BYTES)


def pack_address(address: str) -> bytes:
    """16 bytes, of either family: IPv4 as ::ffff:a.b.c.d; NO_ADDRESS as zeros. Raises: OSError: not an address."""
    if not address:
        return _NONE
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)
    return _MAPPED + socket.inet_pton(socket.AF_INET, address)


def unpack_address(address: bytes) -> str:
    """The inverse of `pack_address`."""
    if address.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return socket.inet_ntop(socket.AF_INET6, address) if address != _NONE else NO_ADDRESS


def _mapped_bits(address: str) -> int:
    """How many bits of a prefix in a map come before those that people write."""
    return 0 if ":" in address else 8 * len(_MAPPED)


def check_identity(number: int) -> None:
    """Raises: ValueError: it does not fit where maps keep an identity."""
    if not 0 <= number <= 0xFFFFFFFF:
        raise ValueError(f"{number} is not an identity")


@dataclass(frozen=True, slots=True)
class EndpointKey:
    address: str

    layout: ClassVar[struct.Struct] = struct.Struct("=16s")

    def __str__(self) -> str:
        return self.address

    def pack(self) -> bytes:
        return self.layout.pack(pack_address(self.address))

    @classmethod
    def unpack(cls, raw: bytes) -> EndpointKey:
        (address,) = cls.layout.unpack(raw)
        return cls(unpack_address(address))


@dataclass(frozen=True, slots=True)
class EndpointEntry:
    """Value of `endpoints`."""

    interface: int
    identity: int
    policy: int
    flags: int
    mac: bytes
    gateway_mac: bytes
    epoch: int = 0  # what was allowed before it is judged again

    layout: ClassVar[struct.Struct] = struct.Struct("=IIIII4x6s6s4x")
    epoch_at: ClassVar[slice] = slice(16, 20)

    def pack(self) -> bytes:
        return self.layout.pack(
            self.interface, self.identity, self.policy, self.flags, self.epoch, self.mac, self.gateway_mac
        )

    @classmethod
    def unpack(cls, raw: bytes) -> EndpointEntry:
        interface, identity, policy, flags, epoch, mac, gateway_mac = cls.layout.unpack(raw)
        return cls(interface, identity, policy, flags, mac, gateway_mac, epoch)


NO_POLICY = 0
"""The policy id that has no entries: with it an enforced direction is closed."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A network as the key of a map: `ipcache`, `masq_exclude`. `bits` as people write them, 24 in 10.0.0.0/24."""

    address: str
    bits: int = -1  # all of the family's

    layout: ClassVar[struct.Struct] = struct.Struct("=I16s")

    def __str__(self) -> str:
        bits = self.bits if self.bits >= 0 else 128 - _mapped_bits(self.address)
        return f"{self.address}/{bits}"

    def pack(self) -> bytes:
        bits = 128 if self.bits < 0 else self.bits + _mapped_bits(self.address)
        return self.layout.pack(bits, pack_address(self.address))

    @classmethod
    def unpack(cls, raw: bytes) -> Prefix:
        """A whole address has the bits of its family."""
        bits, address = cls.layout.unpack(raw)
        found = unpack_address(address) or "::"
        return cls(found, bits - _mapped_bits(found))

    @classmethod
    def of(cls, cidr: str) -> Prefix:
        """ "10.0.0.0/8" or "fd00::/8"."""
        address, _, bits = cidr.partition("/")
        return cls(address, int(bits))

    @property
    def is_host(self) -> bool:
        return self.bits in (-1, 128 - _mapped_bits(self.address))


IpcacheKey = Prefix

IPCACHE_ROUTED, IPCACHE_UNADVERTISED = 1, 2


@dataclass(frozen=True, slots=True)
class IpcacheEntry:
    identity: int
    node: str = NO_ADDRESS  # NO_ADDRESS: this node, or not behind a node
    routed: bool = False  # native routing: `node` is no neighbour, the node's routes lead there
    unadvertised: bool = False  # this node has the address and no other knows

    layout: ClassVar[struct.Struct] = struct.Struct("=II16s")

    def pack(self) -> bytes:
        flags = IPCACHE_ROUTED * self.routed | IPCACHE_UNADVERTISED * self.unadvertised
        return self.layout.pack(self.identity, flags, pack_address(self.node))

    @classmethod
    def unpack(cls, raw: bytes) -> IpcacheEntry:
        identity, flags, node = cls.layout.unpack(raw)
        return cls(identity, unpack_address(node), bool(flags & IPCACHE_ROUTED), bool(flags & IPCACHE_UNADVERTISED))


DEVICE_HAS_PODS = 1


@dataclass(frozen=True, slots=True)
class DeviceKey:
    index: int

    layout: ClassVar[struct.Struct] = struct.Struct("=I")

    def __str__(self) -> str:
        return f"device {self.index}"

    def pack(self) -> bytes:
        return self.layout.pack(self.index)

    @classmethod
    def unpack(cls, raw: bytes) -> DeviceKey:
        return cls(*cls.layout.unpack(raw))


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """NO_ADDRESS: what leaves by it bears the node's own of that family."""

    address: str = NO_ADDRESS
    address6: str = NO_ADDRESS
    has_pods: bool = False  # native routing: pods of other nodes come by it

    layout: ClassVar[struct.Struct] = struct.Struct("=16s16sI4x")

    def pack(self) -> bytes:
        return self.layout.pack(
            pack_address(self.address), pack_address(self.address6), DEVICE_HAS_PODS * self.has_pods
        )

    @classmethod
    def unpack(cls, raw: bytes) -> DeviceEntry:
        address, address6, flags = cls.layout.unpack(raw)
        return cls(unpack_address(address), unpack_address(address6), bool(flags & DEVICE_HAS_PODS))


@dataclass(frozen=True, slots=True)
class L2AnswerKey:
    device: int
    address: str

    layout: ClassVar[struct.Struct] = struct.Struct("=I16s")

    def __str__(self) -> str:
        return f"{self.address} on device {self.device}"

    def pack(self) -> bytes:
        return self.layout.pack(self.device, pack_address(self.address))

    @classmethod
    def unpack(cls, raw: bytes) -> L2AnswerKey:
        device, address = cls.layout.unpack(raw)
        return cls(device, unpack_address(address))


@dataclass(frozen=True, slots=True)
class L2AnswerEntry:
    until: int  # CLOCK_BOOTTIME, ns: from then on the program answers no more
    mac: bytes

    layout: ClassVar[struct.Struct] = struct.Struct("=Q6s2x")

    def pack(self) -> bytes:
        return self.layout.pack(self.until, self.mac)

    @classmethod
    def unpack(cls, raw: bytes) -> L2AnswerEntry:
        return cls(*cls.layout.unpack(raw))


POLICY_DENIES, POLICY_NAMED = 1, 2
POLICY_STATIC_BITS = 72  # policy, identity, direction; then protocol and port


@dataclass(frozen=True, slots=True)
class PolicyMapKey:
    policy: int
    identity: int
    direction: int
    protocol: int
    port: int
    l4_bits: int  # 0, 8, or 9 to 24

    layout: ClassVar[struct.Struct] = struct.Struct("=IIIBB2s")

    def __str__(self) -> str:
        port = f"port {self.port}" if self.l4_bits > 8 else "any port"
        direction, protocol = DIRECTIONS[self.direction], name_of(self.protocol)
        return f"[identity {self.policy}, {direction}, peer {self.identity}, {protocol}, {port}]"

    def pack(self) -> bytes:
        return self.layout.pack(
            POLICY_STATIC_BITS + self.l4_bits,
            self.policy,
            self.identity,
            self.direction,
            self.protocol,
            self.port.to_bytes(2, "big"),
        )

    @classmethod
    def unpack(cls, raw: bytes) -> PolicyMapKey:
        bits, policy, identity, direction, protocol, port = cls.layout.unpack(raw)
        return cls(policy, identity, direction, protocol, int.from_bytes(port, "big"), bits - POLICY_STATIC_BITS)


@dataclass(frozen=True, slots=True)
class PolicyMapEntry:
    precedence: int
    cookie: int
    proxy_port: int
    flags: int  # POLICY_*
    l4_bits: int

    layout: ClassVar[struct.Struct] = struct.Struct("=II2sBB")

    def pack(self) -> bytes:
        return self.layout.pack(
            self.precedence, self.cookie, self.proxy_port.to_bytes(2, "big"), self.flags, self.l4_bits
        )

    @classmethod
    def unpack(cls, raw: bytes) -> PolicyMapEntry:
        precedence, cookie, proxy_port, flags, bits = cls.layout.unpack(raw)
        return cls(precedence, cookie, int.from_bytes(proxy_port, "big"), flags, bits)


@dataclass(frozen=True, slots=True)
class NamedPortKey:
    """Key of `named_ports`: an entry of `policy` for a named port holds at this address and port."""

    policy: int
    cookie: int
    address: str
    port: int
    protocol: int

    layout: ClassVar[struct.Struct] = struct.Struct("=II16s2sBx")

    def __str__(self) -> str:
        return f"[identity {self.policy}, {with_port(self.address, self.port)}/{name_of(self.protocol)}]"

    def pack(self) -> bytes:
        return self.layout.pack(
            self.policy, self.cookie, pack_address(self.address), self.port.to_bytes(2, "big"), self.protocol
        )

    @classmethod
    def unpack(cls, raw: bytes) -> NamedPortKey:
        policy, cookie, address, port, protocol = cls.layout.unpack(raw)
        return cls(policy, cookie, unpack_address(address), int.from_bytes(port, "big"), protocol)


@dataclass(frozen=True, slots=True)
class ConnectionKey:
    low: str
    high: str
    low_port: int
    high_port: int
    protocol: int

    layout: ClassVar[struct.Struct] = struct.Struct("=16s16sHHB3x")

    def pack(self) -> bytes:
        return self.layout.pack(
            pack_address(self.low),
            pack_address(self.high),
            socket.htons(self.low_port),
            socket.htons(self.high_port),
            self.protocol,
        )

    @classmethod
    def unpack(cls, raw: bytes) -> ConnectionKey:
        low, high, low_port, high_port, protocol = cls.layout.unpack(raw)
        return cls(unpack_address(low), unpack_address(high), socket.ntohs(low_port), socket.ntohs(high_port), protocol)


@dataclass(frozen=True, slots=True)
class Connection:
    expires: int  # tick
    epoch: int
    flags: int
    reply_way: int
    origin_way: int
    hop: str  # of the direction whose way is "pod" or "out"; an address of ::/96 is a device (bpf/include/address.h)
    service: str
    service_port: int
    nat_port: int
    substitute: int = 0  # number of the port that stands for the origin's own; see substitutes.py
    back: int = 0  # of one that is relayed: the device that leads to who began

    layout: ClassVar[struct.Struct] = struct.Struct("=IIIBBBxHH4x16s16sI36x")

    def pack(self) -> bytes:
        return self.layout.pack(
            self.expires,
            self.epoch,
            self.flags,
            self.reply_way,
            self.origin_way,
            self.substitute,
            socket.htons(self.nat_port),
            socket.htons(self.service_port),
            pack_address(self.hop),
            pack_address(self.service),
            self.back,
        )

    @classmethod
    def unpack(cls, raw: bytes) -> Connection:
        expires, epoch, flags, reply_way, origin_way, substitute, nat, port, hop, service, back = cls.layout.unpack(raw)
        return cls(
            expires,
            epoch,
            flags,
            reply_way,
            origin_way,
            unpack_address(hop),
            unpack_address(service),
            socket.ntohs(port),
            socket.ntohs(nat),
            substitute,
            back,
        )


@dataclass(frozen=True, slots=True)
class NatKey:
    remote: str
    node: str
    remote_port: int
    node_port: int
    protocol: int

    layout: ClassVar[struct.Struct] = struct.Struct("=16s16sHHB3x")

    def pack(self) -> bytes:
        return self.layout.pack(
            pack_address(self.remote),
            pack_address(self.node),
            socket.htons(self.remote_port),
            socket.htons(self.node_port),
            self.protocol,
        )

    @classmethod
    def unpack(cls, raw: bytes) -> NatKey:
        remote, node, remote_port, node_port, protocol = cls.layout.unpack(raw)
        return cls(
            unpack_address(remote), unpack_address(node), socket.ntohs(remote_port), socket.ntohs(node_port), protocol
        )


@dataclass(frozen=True, slots=True)
class NatEntry:
    pod: str
    pod_port: int
    flags: int = 0

    RELAYED: ClassVar[int] = 1  # NAT_RELAYED: a client outside, and no pod
    layout: ClassVar[struct.Struct] = struct.Struct("=16sHH")

    def pack(self) -> bytes:
        return self.layout.pack(pack_address(self.pod), socket.htons(self.pod_port), self.flags)

    @classmethod
    def unpack(cls, raw: bytes) -> NatEntry:
        pod, port, flags = cls.layout.unpack(raw)
        return cls(unpack_address(pod), socket.ntohs(port), flags)


@dataclass(frozen=True, slots=True)
class ServiceKey:
    address: str
    port: int
    protocol: int

    layout: ClassVar[struct.Struct] = struct.Struct("=16s2sBx")

    def __str__(self) -> str:
        return f"{self.address} port {self.port}/{name_of(self.protocol)}"

    def pack(self) -> bytes:
        return self.layout.pack(pack_address(self.address), self.port.to_bytes(2, "big"), self.protocol)

    @classmethod
    def unpack(cls, raw: bytes) -> ServiceKey:
        """Of an IPv6 node port the address is nobody's, "::", and not none."""
        address, port, protocol = cls.layout.unpack(raw)
        return cls(unpack_address(address) or "::", int.from_bytes(port, "big"), protocol)


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    number: int
    backends: int
    flags: int = 0
    affinity: int = 0  # ticks for which a client comes to the same backend
    outside: int = 0  # how many of `backends`, the first ones, serve who calls from outside

    RANGES: ClassVar[int] = 0x02  # SERVICE_RANGES
    RANGES_DENY: ClassVar[int] = 0x04  # SERVICE_RANGES_DENY
    LOCAL: ClassVar[int] = 0x08  # SERVICE_LOCAL
    NODE_PORT: ClassVar[int] = 0x40  # SERVICE_NODE_PORT
    HOST_PORT: ClassVar[int] = 0x80  # SERVICE_HOST_PORT
    EXTERNAL: ClassVar[int] = 0x100  # SERVICE_EXTERNAL
    layout: ClassVar[struct.Struct] = struct.Struct("=IIIII12x")

    @property
    def is_exposure(self) -> bool:
        """Its number is another entry's: that of its Service's own frontend."""
        return bool(self.flags & (self.NODE_PORT | self.EXTERNAL))

    @property
    def is_from_outside(self) -> bool:
        """Who calls it may be outside of the cluster."""
        return self.is_exposure or bool(self.flags & self.HOST_PORT)

    def pack(self) -> bytes:
        return self.layout.pack(self.number, self.backends, self.flags, self.affinity, self.outside)

    @classmethod
    def unpack(cls, raw: bytes) -> ServiceEntry:
        return cls(*cls.layout.unpack(raw))


@dataclass(frozen=True, slots=True)
class ChoiceKey:
    client: str
    service: str
    client_port: int
    service_port: int
    protocol: int

    layout: ClassVar[struct.Struct] = struct.Struct("=16s16s2s2sB3x")

    def pack(self) -> bytes:
        return self.layout.pack(
            pack_address(self.client),
            pack_address(self.service),
            self.client_port.to_bytes(2, "big"),
            self.service_port.to_bytes(2, "big"),
            self.protocol,
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """Which backend a client's packets to a service go to."""

    address: str
    port: int
    epoch: int
    substitute: int = 0  # number of the port that stands for the client's own there; see substitutes.py

    layout: ClassVar[struct.Struct] = struct.Struct("=16s2sB5xI")

    @classmethod
    def unpack(cls, raw: bytes) -> Choice:
        address, port, substitute, epoch = cls.layout.unpack(raw)
        return cls(unpack_address(address), int.from_bytes(port, "big"), epoch, substitute)


@dataclass(frozen=True, slots=True)
class LivingKey:
    """Key of `living`: a backend that a service has, in whatever slot."""

    service: int
    address: str
    port: int

    layout: ClassVar[struct.Struct] = struct.Struct("=I2s2x16s")

    def __str__(self) -> str:
        return f"backend {with_port(self.address, self.port)} of service {self.service}"

    def pack(self) -> bytes:
        return self.layout.pack(self.service, self.port.to_bytes(2, "big"), pack_address(self.address))

    @classmethod
    def unpack(cls, raw: bytes) -> LivingKey:
        service, port, address = cls.layout.unpack(raw)
        return cls(service, unpack_address(address), int.from_bytes(port, "big"))


@dataclass(frozen=True, slots=True)
class AffinityKey:
    """A client of a Service that wants it to come back: an address, or the cookie of a network namespace."""

    service: int
    client: str | int
    is_local: bool = False

    layout: ClassVar[struct.Struct] = struct.Struct("=IBB2x16s")

    def pack(self) -> bytes:
        if isinstance(self.client, str):
            return self.layout.pack(self.service, False, self.is_local, pack_address(self.client))
        high, low = divmod(self.client, 1 << 32)
        return self.layout.pack(self.service, True, self.is_local, struct.pack("=8xII", high, low))

    @classmethod
    def unpack(cls, raw: bytes) -> AffinityKey:
        service, is_namespace, is_local, client = cls.layout.unpack(raw)
        if not is_namespace:
            return cls(service, unpack_address(client), bool(is_local))
        high, low = struct.unpack("=8xII", client)
        return cls(service, (high << 32) + low, bool(is_local))


@dataclass(frozen=True, slots=True)
class AffinityEntry:
    address: str
    port: int
    used: int  # tick

    layout: ClassVar[struct.Struct] = struct.Struct("=16s2s2xI")

    def pack(self) -> bytes:
        return self.layout.pack(pack_address(self.address), self.port.to_bytes(2, "big"), self.used)

    @classmethod
    def unpack(cls, raw: bytes) -> AffinityEntry:
        address, port, used = cls.layout.unpack(raw)
        return cls(unpack_address(address), int.from_bytes(port, "big"), used)


RANGE_ALLOWED, RANGE_DENIED = b"\x01", b"\x02"


@dataclass(frozen=True, slots=True)
class RangeKey:
    """Key of `source_ranges`: a network that may call a service from outside, or may not."""

    service: int
    network: Prefix

    layout: ClassVar[struct.Struct] = struct.Struct("=II16s")
    static_bits: ClassVar[int] = 32  # the service

    def __str__(self) -> str:
        return f"{self.network} of service {self.service}"

    def pack(self) -> bytes:
        bits, address = Prefix.layout.unpack(self.network.pack())
        return self.layout.pack(self.static_bits + bits, self.service, address)

    @classmethod
    def unpack(cls, raw: bytes) -> RangeKey:
        bits, service, address = cls.layout.unpack(raw)
        return cls(service, Prefix.unpack(Prefix.layout.pack(bits - cls.static_bits, address)))


class SockReverseKey:
    """Key of `sock_reverse`: a socket's cookie, and the backend that it speaks to. Read by thousands, as they are."""

    layout: ClassVar[struct.Struct] = struct.Struct("=Q16s2s6x")


class SockReverse:
    """The Service's address and port that the socket believes to speak to; its protocol (0: not known); 1 if nothing is
    connected by it."""

    layout: ClassVar[struct.Struct] = struct.Struct("=16s2sBB")


@dataclass(frozen=True, slots=True)
class BackendKey:
    service: int
    slot: int

    layout: ClassVar[struct.Struct] = struct.Struct("=II")

    def __str__(self) -> str:
        return f"slot {self.slot} of service {self.service}"

    def pack(self) -> bytes:
        return self.layout.pack(self.service, self.slot)

    @classmethod
    def unpack(cls, raw: bytes) -> BackendKey:
        return cls(*cls.layout.unpack(raw))


@dataclass(frozen=True, slots=True)
class BackendEntry:
    address: str
    port: int

    layout: ClassVar[struct.Struct] = struct.Struct("=16s2s6x")

    def pack(self) -> bytes:
        return self.layout.pack(pack_address(self.address), self.port.to_bytes(2, "big"))

    @classmethod
    def unpack(cls, raw: bytes) -> BackendEntry:
        address, port = cls.layout.unpack(raw)
        return cls(unpack_address(address), int.from_bytes(port, "big"))


class NodeState(NamedTuple):
    """The one entry of `node_state`. `all`, `services`, `ahead`: as of which epoch what is judged again."""

    epoch: int = 0
    seed: int = 0
    all: int = 0
    services: int = 0
    ahead: int = 0
    serves: int = 0  # SERVES_*

    @classmethod
    def unpack(cls, raw: bytes) -> NodeState:
        return cls(*NODE_STATE.unpack(raw))

    def pack(self) -> bytes:
        return NODE_STATE.pack(*self)


NODE_STATE = struct.Struct("=IIIIII8x")
SERVES_OUTSIDE = 1  # Services may be called from outside
SERVES_ITSELF = 2  # and this host itself is a backend of one of those


@dataclass(frozen=True, slots=True)
class Counter:
    packets: int
    bytes: int

    layout: ClassVar[struct.Struct] = struct.Struct("=QQ")


@dataclass(frozen=True, slots=True)
class EventRate:
    window: int
    woken: int
    lost: int
    sent: int

    layout: ClassVar[struct.Struct] = struct.Struct("=QQQI4x")


class Key(Protocol):
    """Of a map that Python writes: as text, what people know the entry by."""

    @classmethod
    def unpack(cls, raw: bytes) -> Key:
        """Raises: struct.error: it is not of this length."""


@dataclass(frozen=True, slots=True)
class MapShape:
    """What a pinned map must look like. Names are those of bpf/include/maps.h."""

    key_bytes: int
    value_bytes: int
    key: type[Key] | None = field(default=None, compare=False)  # of those that Python writes


def in_words(name: str, key: bytes) -> str:
    """What people know an entry of a map by; its bytes where they make no sense."""
    shape = MAPS[name]
    try:
        return str(shape.key.unpack(key)) if shape.key else key.hex()
    except Exception:  # noqa: BLE001  # somebody else's entry may be any bytes
        return key.hex()


MAPS: dict[str, MapShape] = {
    "endpoints": MapShape(EndpointKey.layout.size, EndpointEntry.layout.size, EndpointKey),
    "ipcache": MapShape(IpcacheKey.layout.size, IpcacheEntry.layout.size, IpcacheKey),
    "policy": MapShape(PolicyMapKey.layout.size, PolicyMapEntry.layout.size, PolicyMapKey),
    "named_ports": MapShape(NamedPortKey.layout.size, 1, NamedPortKey),
    "ct_tcp": MapShape(ConnectionKey.layout.size, Connection.layout.size),
    "ct_any": MapShape(ConnectionKey.layout.size, Connection.layout.size),
    "nat": MapShape(NatKey.layout.size, NatEntry.layout.size),
    "masq_exclude": MapShape(Prefix.layout.size, 1, Prefix),
    "devices": MapShape(DeviceKey.layout.size, DeviceEntry.layout.size, DeviceKey),
    "l2_answers": MapShape(L2AnswerKey.layout.size, L2AnswerEntry.layout.size, L2AnswerKey),
    "fragments": MapShape(40, 8),
    "choices": MapShape(ChoiceKey.layout.size, Choice.layout.size),
    "services": MapShape(ServiceKey.layout.size, ServiceEntry.layout.size, ServiceKey),
    "backends": MapShape(BackendKey.layout.size, BackendEntry.layout.size, BackendKey),
    "living": MapShape(LivingKey.layout.size, 1, LivingKey),
    "source_ranges": MapShape(RangeKey.layout.size, 1, RangeKey),
    "affinity": MapShape(AffinityKey.layout.size, AffinityEntry.layout.size),
    "sock_choices": MapShape(SockReverseKey.layout.size, Choice.layout.size),
    "sock_reverse": MapShape(SockReverseKey.layout.size, SockReverse.layout.size),
    "node_state": MapShape(4, NODE_STATE.size),
    "counters": MapShape(4, Counter.layout.size),
    "event_rate": MapShape(4, EventRate.layout.size),
    "events": MapShape(0, 0),
}
