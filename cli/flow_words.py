"""Flows as people and programs read them: the forms of the public client. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from bus.labels import RESERVED
from bus.texts import visible
from cli.flow_flags import POINTS, TYPES
from services.hubble.api import flow_pb2 as pb
from services.hubble.api import observer_pb2 as api
from services.hubble.api import relay_pb2
from services.hubble.reasons import reason_name

NAMES_WIDTH = 50  # of node names on one line; more are counted
FAULTS = (relay_pb2.NODE_UNAVAILABLE, relay_pb2.NODE_ERROR)
RULE = "------------"
MATCHES = ("none", "L3-Only", "L3-L4", "L4-Only", "all", "L3-Proto", "Proto-Only")  # by `policy_match_type`
RESERVED_WORDS = {number: word for word, number in RESERVED.items()}
POINT_NAMES = {number: name for name, number in POINTS.items()}
RED, GREEN, YELLOW, MAGENTA, CYAN = 31, 32, 33, 35, 36


def fraction(digits: int, *, trimmed: bool) -> Callable[[datetime, int], str]:
    def form(at: datetime, nanos: int) -> str:
        part = f"{nanos:09d}"[:digits]
        part = part.rstrip("0") if trimmed else part
        return f"{at:%Y-%m-%dT%H:%M:%S}{'.' * bool(part)}{part}Z"

    return form


TIMES: Mapping[str, Callable[[datetime, int], str]] = {
    "stampmilli": lambda at, nanos: f"{at:%b} {at.day:2d} {at:%H:%M:%S}.{nanos // 1_000_000:03d}",
    "yearmonthday": lambda at, _: f"{at:%Y-%m-%d}",
    "yearmonthdayhour": lambda at, _: f"{at:%Y-%m-%dT%H}Z",
    "yearmonthdayhourminute": lambda at, _: f"{at:%Y-%m-%dT%H:%M}Z",
    "rfc3339": fraction(0, trimmed=True),
    "rfc3339milli": fraction(3, trimmed=True),
    "rfc3339micro": fraction(6, trimmed=True),
    "rfc3339nano": fraction(9, trimmed=True),
    "rfc1123z": lambda at, _: f"{at:%a, %d %b %Y %H:%M:%S} +0000",
}
"""By the name of a form, in small letters; all are UTC, as the public client has it."""


@dataclass(frozen=True)
class Look:
    """How flows are to look."""

    output: str = "compact"
    names: bool = True
    node: bool = False
    policies: bool = False
    time: str = "stampmilli"
    color: bool = False

    def when(self, at: Timestamp) -> str:
        try:
            return TIMES[self.time](datetime.fromtimestamp(at.seconds, UTC), at.nanos)
        except (ValueError, OverflowError, OSError):  # a year that no calendar has
            return "N/A"

    def paint(self, number: int, text: str) -> str:
        return f"\x1b[{number}m{visible(text)}\x1b[0m" if self.color else visible(text)


class Printer:
    """`line`: what stdout is to have for an answer; `aside`: what stderr is. "": nothing.

    A table is one when all is there: `end`.
    """

    def __init__(self, look: Look) -> None:
        self._look = look
        self._rows: list[Sequence[str]] = []
        self._count = 0

    def line(self, answer: api.GetFlowsResponse) -> str:
        if not answer.HasField("flow"):
            return ""
        flow, look = answer.flow, self._look
        self._count += 1
        match look.output:
            case "compact":
                return compact(flow, look)
            case "dict":
                return ("" if self._count == 1 else RULE + "\n") + dictionary(flow, look)
            case "table":
                self._rows.append(row(flow, look))
                return ""
        return as_json(answer)

    def aside(self, answer: api.GetFlowsResponse) -> str:
        look, at = self._look, self._look.when(answer.time)
        is_fault = answer.HasField("lost_events") or answer.node_status.state_change in FAULTS
        if answer.HasField("flow") or not is_fault:
            return ""
        if look.output in ("json", "jsonpb"):
            return as_json(answer)
        if answer.HasField("lost_events"):
            lost = answer.lost_events
            source = pb.LostEventSource.Name(lost.source)
            return visible(f"{at} [{answer.node_name}]: EVENTS LOST: {source} {lost.num_events_lost}")
        status = answer.node_status
        names = some(status.node_names)
        what = "are unavailable" if status.state_change == relay_pb2.NODE_UNAVAILABLE else "have an error"
        why = f" ({status.message})" if status.message else ""
        return visible(f"{at}: {len(status.node_names)} nodes {what}: {names}{why}")

    def end(self) -> str:
        """The table, if it is to be one."""
        if not self._rows:
            return ""
        node = ["NODE"] if self._look.node else []
        rows = [["TIMESTAMP", *node, "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"], *self._rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("   ".join(map(str.ljust, each, widths)).rstrip() for each in rows)


def compact(flow: pb.Flow, look: Look) -> str:
    """One line: who, to whom, what of, what became of it."""
    ends = list(zip(hosts(flow, look), map(identity_of(look), (flow.source, flow.destination)), strict=True))
    arrow = "<>" if not flow.HasField("is_reply") else "<-" if flow.is_reply.value else "->"
    (first, who), (second, whom) = reversed(ends) if arrow == "<-" else ends
    node = visible(f" [{flow.node_name}]") if look.node else ""
    what = visible(kind(flow))
    return (
        f"{look.when(flow.time)}{node}: {first} {who} {arrow} {second} {whom} {what} {verdict(flow, look)} "
        f"({summary(flow)})"
    )


def identity_of(look: Look) -> Callable[[pb.Endpoint], str]:
    def identity(end: pb.Endpoint) -> str:
        return look.paint(MAGENTA, f"({RESERVED_WORDS.get(end.identity) or f'ID:{end.identity}'})")

    return identity


def dictionary(flow: pb.Flow, look: Look) -> str:
    titles = ("TIMESTAMP", *(("NODE",) if look.node else ()), "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY")
    return "\n".join(f"{title:>11}: {value}" for title, value in zip(titles, row(flow, look), strict=True))


def row(flow: pb.Flow, look: Look) -> list[str]:
    node = [visible(flow.node_name)] if look.node else []
    return [look.when(flow.time), *node, *hosts(flow, look), visible(kind(flow)), verdict(flow, look), summary(flow)]


def summary(flow: pb.Flow) -> str:
    return visible(flow.Summary)


def as_json(answer: api.GetFlowsResponse) -> str:
    """The whole answer, by proto3's mapping, on one line."""
    found = MessageToDict(answer, preserving_proto_field_name=True)
    return visible(json.dumps(found, ensure_ascii=False, separators=(",", ":")))


def hosts(flow: pb.Flow, look: Look) -> Iterator[str]:
    """Both ends: pod, else Service, else DNS names, else address; with the port."""
    layer4 = getattr(flow.l4, flow.l4.WhichOneof("protocol") or "TCP")
    for end, service, names, address, port in (
        (flow.source, flow.source_service, flow.source_names, flow.IP.source, "source_port"),
        (flow.destination, flow.destination_service, flow.destination_names, flow.IP.destination, "destination_port"),
    ):
        host = address
        if look.names:
            if end.pod_name:
                host = "/".join(filter(None, (end.namespace, end.pod_name)))
            elif service.name:
                host = "/".join(filter(None, (service.namespace, service.name)))
            elif names:
                host = ",".join(names)
        number = getattr(layer4, port, 0)
        if number:
            bare = f"[{host}]" if ":" in host else host
            yield look.paint(CYAN, f"{bare}:{number}")
        else:
            yield look.paint(CYAN, host)


def kind(flow: pb.Flow) -> str:
    """What was seen: a reason, a point of a packet's way, how a policy's entry matched, a message of layer 7."""
    if flow.HasField("l7"):
        record = flow.l7.WhichOneof("record") or "l7"
        word = pb.L7FlowType.Name(flow.l7.type).lower()
        return f"{record}-{word}" + (f" {flow.l7.dns.observation_source}" if record == "dns" else "")
    number, sub = flow.event_type.type, flow.event_type.sub_type
    if number == TYPES["drop"]:
        return reason_name(sub)
    if number == TYPES["trace"]:
        return POINT_NAMES.get(sub, str(sub))
    if number == TYPES["policy-verdict"]:
        match = MATCHES[flow.policy_match_type] if flow.policy_match_type < len(MATCHES) else "unknown"
        return f"policy-verdict:{match} {pb.TrafficDirection.Name(flow.traffic_direction)}"
    return "UNKNOWN"


def verdict(flow: pb.Flow, look: Look) -> str:
    is_policys = flow.event_type.type == TYPES["policy-verdict"]
    way = "ingress" if flow.traffic_direction == pb.INGRESS else "egress"
    match flow.verdict:
        case pb.FORWARDED | pb.REDIRECTED:
            word = "ALLOWED" if is_policys else pb.Verdict.Name(flow.verdict)
            return look.paint(GREEN, word + by(getattr(flow, f"{way}_allowed_by"), look))
        case pb.DROPPED | pb.ERROR:
            word = "DENIED" if is_policys else pb.Verdict.Name(flow.verdict)
            return look.paint(RED, word + by(getattr(flow, f"{way}_denied_by"), look))
        case pb.AUDIT:
            word = "AUDITED" if is_policys else "AUDIT"
            return look.paint(YELLOW, word + by(getattr(flow, f"{way}_denied_by"), look))
    return look.paint(YELLOW, _verdict_name(flow.verdict))


def _verdict_name(number: Any) -> str:
    try:
        return pb.Verdict.Name(number)
    except ValueError:
        return str(number)


def by(policies: Sequence[pb.Policy], look: Look) -> str:
    named = [f"{each.name} ({each.kind})" for each in policies if each.name and each.kind]
    return f" BY {', '.join(named)}" if look.policies and named else ""


def some(names: Sequence[str]) -> str:
    """As many as a line has room for, and how many more."""
    shown: list[str] = []
    for name in names:
        if shown and len(", ".join((*shown, name))) > NAMES_WIDTH:
            return f"{', '.join(shown)} (and {len(names) - len(shown)} more)"
        shown.append(name)
    return ", ".join(shown)
