"""Records and flows for tests, as the kernel and the bus would have them."""

from __future__ import annotations

import socket
import struct

from services.hubble import records
from services.hubble.flow import Flow, Place
from services.hubble.names import Names, Party, PolicyName, ServiceName, pack
from services.hubble.records import Record

PLACE = Place("node1", labels=("kubernetes.io/arch=amd64", "zone=a"), version="1.0", token=0x1234)
CLIENT = Party(1000, "default", "xwing", ("k8s:class=xwing", "k8s:org=alliance"))
SERVER = Party(2000, "empire", "deathstar-1", ("k8s:class=deathstar", "k8s:org=empire"))


def record(
    *,
    at: int = 0,
    source: str = "10.0.1.1",
    destination: str = "10.0.2.2",
    source_port: int = 40000,
    destination_port: int = 80,
    protocol: int = 6,
    type_: int = records.POLICY_VERDICT,
    reason: int = 0,
    direction: int = 0,
    policy: int = 0,
    cookie: int = 0,
    identities: tuple[int, int] = (0, 0),
    line: int = 0,
    file: int = 0,
) -> Record:
    ends = pack(source), pack(destination), socket.htons(source_port), socket.htons(destination_port)
    return (at, *identities, *ends, protocol, type_, reason, direction, policy, cookie, 74, line, file)


def ring(*bodies: Record | bytes, discarded: frozenset[int] = frozenset(), busy: int = -1) -> bytes:
    """The bytes of a ring buffer that begins with these records; `bytes` are of another layout."""
    found = bytearray()
    for number, body in enumerate(bodies):
        raw = body if isinstance(body, bytes) else records.LAYOUT.pack(*body)
        flags = (1 << 30) * (number in discarded) | (1 << 31) * (number == busy)
        found += struct.pack("=II", len(raw) | flags, 0) + raw + bytes(-len(raw) % 8)
    return bytes(found)


def flow(
    number: int = 0,
    *,
    time_ns: int = 0,
    source: Party = CLIENT,
    destination: Party = SERVER,
    source_service: ServiceName | None = None,
    destination_service: ServiceName | None = None,
    policies: tuple[PolicyName, ...] = (),
    place: Place = PLACE,
    seen: Record | None = None,
) -> Flow:
    seen = record() if seen is None else seen
    return Flow(number, time_ns, seen, source, destination, source_service, destination_service, policies, place)


def names(node: str = "node1") -> Names:
    return Names(node)
