"""One flow: a packet's fate with names, and what it is on the wire. Pure.

A flow keeps the kernel's record and who was who at that moment; words are made when somebody asks. A client sees few of
them, the observer all.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from bus.labels import RESERVED
from services.hubble import records
from services.hubble.api import flow_pb2 as pb
from services.hubble.names import Party, PolicyName, ServiceName
from services.hubble.records import ICMP, ICMPV6, SCTP, TCP, UDP, Record

POINT_TYPES = {pb.TO_ENDPOINT: 0, pb.TO_HOST: 2, pb.TO_OVERLAY: 4, pb.TO_NETWORK: 11}  # sub-types of a trace
POLICY_REASONS = (133, 181)  # "Policy denied", "Policy denied by denylist": some policy decided
ICMP_TYPES = {
    (ICMP, 0): "EchoReply",
    (ICMP, 3): "DestinationUnreachable",
    (ICMP, 5): "Redirect",
    (ICMP, 8): "EchoRequest",
    (ICMP, 11): "TimeExceeded",
    (ICMPV6, 1): "DestinationUnreachable",
    (ICMPV6, 2): "PacketTooBig",
    (ICMPV6, 3): "TimeExceeded",
    (ICMPV6, 128): "EchoRequest",
    (ICMPV6, 129): "EchoReply",
    (ICMPV6, 135): "NeighborSolicitation",
    (ICMPV6, 136): "NeighborAdvertisement",
}
# By `enum source_file` of services/dataplane/bpf/include/reasons.h; tests/contract/test_flow_records.py compares.
FILES = (
    "",
    "pod.bpf.c",
    "netdev.bpf.c",
    "overlay.bpf.c",
    "parse.h",
    "flow.h",
    "policy.h",
    "service.h",
    "nat.h",
    "forward.h",
    "fragment.h",
    "error.h",
    "neighbour.h",
    "deliver.h",
    "rewrite.h",
    "steps.h",
    "substitute.h",
    "masquerade_port.bpf.c",
    "icmp_error.bpf.c",
    "sender.h",
    "serve.bpf.c",
    "answer.bpf.c",
    "come_back.bpf.c",
)

_MAPPED = bytes(10) + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Place:
    """What all flows of one observer have in common."""

    node: str  # as clients see it: "node1", "cluster/node1" unless the cluster is "default"
    cluster: str = "default"
    labels: tuple[str, ...] = ()  # of the node, "key=value", sorted
    version: str = ""
    is_tunnel: bool = False  # to pods of other nodes
    token: int = 0  # of this start of the observer, 64 bits: the first half of every uuid


class Flow:
    """`number` counts the observer's flows from 0. `time_ns`: since the epoch."""

    __slots__ = (
        "number",
        "time_ns",
        "record",
        "source",
        "destination",
        "source_service",
        "destination_service",
        "policies",
        "place",
        "audited",
    )

    def __init__(
        self,
        number: int,
        time_ns: int,
        record: Record,
        source: Party,
        destination: Party,
        source_service: ServiceName | None,
        destination_service: ServiceName | None,
        policies: tuple[PolicyName, ...],
        place: Place,
        audited: str = "",
    ) -> None:
        self.number = number
        self.time_ns = time_ns
        self.record = record
        self.source = source
        self.destination = destination
        self.source_service = source_service
        self.destination_service = destination_service
        self.policies = policies
        self.place = place
        self.audited = audited  # why it would have been dropped, did the node not only look; "": it passes

    # -- what filters ask

    @property
    def source_address(self) -> str:
        return address_text(self.record[records.SOURCE])

    @property
    def destination_address(self) -> str:
        return address_text(self.record[records.DESTINATION])

    @property
    def protocol(self) -> int:
        return self.record[records.PROTOCOL]

    @property
    def has_ports(self) -> bool:
        return self.record[records.PROTOCOL] in (TCP, UDP, SCTP)

    @property
    def source_port(self) -> int:
        """0 of what has none."""
        return records.port(self.record[records.SOURCE_PORT]) if self.has_ports else 0

    @property
    def destination_port(self) -> int:
        return records.port(self.record[records.DESTINATION_PORT]) if self.has_ports else 0

    @property
    def icmp_type(self) -> int:
        return records.port(self.record[records.DESTINATION_PORT])

    @property
    def is_drop(self) -> bool:
        return self.record[records.TYPE] == records.DROP

    @property
    def verdict(self) -> pb.Verdict:
        return pb.DROPPED if self.is_drop else pb.AUDIT if self.audited else pb.FORWARDED

    @property
    def reason(self) -> int:
        """Of a drop; else 0."""
        return self.record[records.REASON] if self.is_drop else 0

    @property
    def direction(self) -> pb.TrafficDirection:
        return pb.EGRESS if self.record[records.DIRECTION] & 1 else pb.INGRESS

    @property
    def event_type(self) -> tuple[int, int]:
        """And its sub-type: of a drop the reason, of a trace where to."""
        kind = self.record[records.TYPE]
        return kind, POINT_TYPES[self.point] if kind == records.TRACE else self.reason

    @property
    def point(self) -> pb.TraceObservationPoint:
        """Where the packet goes from here, of a trace."""
        if self.record[records.TYPE] != records.TRACE:
            return pb.UNKNOWN_POINT
        if self.destination.node == self.place.node:
            return pb.TO_ENDPOINT
        if self.destination.identity == RESERVED["host"]:
            return pb.TO_HOST
        return pb.TO_OVERLAY if self.place.is_tunnel and self.destination.pod else pb.TO_NETWORK

    @property
    def is_reply(self) -> bool | None:
        """A verdict and a trace are of a connection's first packet; of a drop nobody knows."""
        return None if self.is_drop else False

    @property
    def ip_version(self) -> pb.IPVersion:
        return pb.IPv4 if self.record[records.SOURCE].startswith(_MAPPED) else pb.IPv6

    @property
    def uuid(self) -> str:
        """RFC 9562, version 8: of our own making."""
        low = self.number & (1 << 62) - 1 | 1 << 63
        high = self.place.token & ~(0xF << 12) | 8 << 12
        return str(uuid.UUID(int=high << 64 | low))

    # -- what clients get

    def message(self) -> pb.Flow:
        """The flow on the wire."""
        record, place = self.record, self.place
        number, reason = self.event_type
        file = record[records.FILE]
        found = pb.Flow(
            time=timestamp(self.time_ns),
            uuid=self.uuid,
            emitter=pb.Emitter(name="Plexus", version=place.version),
            verdict=self.verdict,
            IP=pb.IP(source=self.source_address, destination=self.destination_address, ipVersion=self.ip_version),
            source=self._endpoint(self.source),
            destination=self._endpoint(self.destination),
            Type=pb.L3_L4,
            node_name=place.node,
            node_labels=place.labels,
            event_type=pb.CiliumEventType(type=number, sub_type=reason),
            traffic_direction=self.direction,
            Summary=self.summary,
        )
        self._fill_layer4(found)
        if self.is_drop:
            found.drop_reason = reason
            found.drop_reason_desc = reason  # type: ignore[assignment]  # the kernel's numbers are the public ones
            if 0 < file < len(FILES):
                found.file.name, found.file.line = FILES[file], record[records.LINE]
        else:
            found.is_reply.value = False
        if point := self.point:
            found.trace_observation_point, found.trace_reason = point, pb.NEW
        if self.source_service is not None:
            found.source_service.name, found.source_service.namespace = (
                self.source_service.name,
                self.source_service.namespace,
            )
        if self.destination_service is not None:
            found.destination_service.name, found.destination_service.namespace = (
                self.destination_service.name,
                self.destination_service.namespace,
            )
        if self.policies and (not self.is_drop or reason in POLICY_REASONS):
            named = [pb.Policy(name=each.name, namespace=each.namespace, kind=each.kind) for each in self.policies]
            way = "ingress" if self.direction == pb.INGRESS else "egress"
            getattr(found, f"{way}_{'denied' if self.is_drop or self.audited else 'allowed'}_by").extend(named)
        return found

    @property
    def summary(self) -> str:
        if self.protocol == TCP:
            return "TCP"
        if self.protocol == UDP:
            return "UDP"
        if self.protocol == SCTP:
            return "SCTP"
        if self.protocol in (ICMP, ICMPV6):
            family = "ICMPv4" if self.protocol == ICMP else "ICMPv6"
            return f"{family} {ICMP_TYPES.get((self.protocol, self.icmp_type), self.icmp_type)}"
        return f"protocol {self.protocol}"

    def _endpoint(self, party: Party) -> pb.Endpoint:
        found = pb.Endpoint(
            ID=party.number,
            identity=party.identity,
            namespace=party.namespace,
            labels=party.labels,
            pod_name=party.pod,
        )
        if party.pod:
            found.cluster_name = self.place.cluster
        if party.workload is not None:
            found.workloads.add(name=party.workload.name, kind=party.workload.kind)
        return found

    def _fill_layer4(self, found: pb.Flow) -> None:
        layer4, source, destination = found.l4, self.source_port, self.destination_port
        match self.protocol:
            case records.TCP:
                layer4.TCP.source_port, layer4.TCP.destination_port = source, destination
            case records.UDP:
                layer4.UDP.source_port, layer4.UDP.destination_port = source, destination
            case records.SCTP:
                layer4.SCTP.source_port, layer4.SCTP.destination_port = source, destination
            case records.ICMP:
                layer4.ICMPv4.SetInParent()
                layer4.ICMPv4.type = self.icmp_type
            case records.ICMPV6:
                layer4.ICMPv6.SetInParent()
                layer4.ICMPv6.type = self.icmp_type


@lru_cache(maxsize=1 << 14)
def address_text(address: bytes) -> str:
    if address.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return socket.inet_ntop(socket.AF_INET6, address)


def timestamp(time_ns: int) -> Timestamp:
    return Timestamp(seconds=time_ns // 1_000_000_000, nanos=time_ns % 1_000_000_000)


def nanoseconds(time: Timestamp) -> int:
    return time.seconds * 1_000_000_000 + time.nanos


def namespaces(flows: Sequence[Flow]) -> set[str]:
    """Those that flows are between."""
    found: set[Any] = {flow.source.namespace for flow in flows}
    found.update(flow.destination.namespace for flow in flows)
    found.discard("")
    return found
