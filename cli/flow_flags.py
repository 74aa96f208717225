"""The flags of `plexus observe`, those of the public client, and the request that they become. Pure.

Flags of one name are alternatives, flags of several must all hold. `--pod` and its like are of either end: then there
are two filters, one for each end, of which one must match. `--not` turns the flag that follows it round.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from google.protobuf.json_format import Parse, ParseError

from bus.labels import RESERVED
from services.hubble.api import flow_pb2 as pb
from services.hubble.api import observer_pb2 as api
from services.hubble.flow import timestamp

LAST_DEFAULT = 20
EVERYTHING = (1 << 64) - 1  # `number`, as the public client says it
TYPES = {"drop": 1, "debug": 2, "capture": 3, "trace": 4, "policy-verdict": 5, "trace-sock": 7, "l7": 129, "agent": 130}
POINTS = {
    "to-endpoint": 0,
    "to-proxy": 1,
    "to-host": 2,
    "to-stack": 3,
    "to-overlay": 4,
    "from-endpoint": 5,
    "from-proxy": 6,
    "from-host": 7,
    "from-stack": 8,
    "from-overlay": 9,
    "from-network": 10,
    "to-network": 11,
    "from-crypto": 12,
    "to-crypto": 13,
}
"""Sub-types of "trace"."""


class Wrong(Exception):
    """These flags cannot be; the text says which, and what would be right."""


# -- what a flag's value becomes


def _text(value: str) -> str:
    return value


def _named(enum: Any, what: str) -> Callable[[str], int]:
    def read(value: str) -> int:
        try:
            return int(enum.Value(value.upper()))
        except ValueError:
            raise Wrong(f"there is no {what} {value!r}; there is {', '.join(enum.keys()[1:9])}...") from None

    return read


def _identity(value: str) -> int:
    number = RESERVED.get(value)
    if number is None:
        if not (value.isascii() and value.isdecimal() and int(value) < 1 << 32):
            raise Wrong(f"{value!r} is no identity: a number, or one of {', '.join(sorted(RESERVED))}")
        number = int(value)
    return number


def _workload(value: str) -> pb.Workload:
    kind, slash, name = value.partition("/")
    return pb.Workload(kind=kind, name=name) if slash else pb.Workload(name=value)


def _type(value: str) -> pb.EventTypeFilter:
    name, colon, sub = value.partition(":")
    number = TYPES.get(name, int(name) if name.isdecimal() else -1)
    if number < 0:
        raise Wrong(f"there is no type {name!r}; there is {', '.join(TYPES)}")
    if not colon:
        return pb.EventTypeFilter(type=number)
    point = POINTS.get(sub) if number == TYPES["trace"] else None
    if point is None:
        if not sub.isdecimal():
            raise Wrong(f"type {name} has no sub-type {sub!r}; of trace there is {', '.join(POINTS)}")
        point = int(sub)
    return pb.EventTypeFilter(type=number, match_sub_type=True, sub_type=point)


def _header(value: str) -> pb.HTTPHeader:
    key, colon, rest = value.partition(":")
    if not colon:
        raise Wrong(f"--http-header is NAME:VALUE, not {value!r}")
    return pb.HTTPHeader(key=key, value=rest)


def _tcp_flags(value: str) -> pb.TCPFlags:
    found = pb.TCPFlags()
    for name in value.upper().split(","):
        if name not in found.DESCRIPTOR.fields_by_name:
            raise Wrong(f"there is no TCP flag {name!r}; there is {', '.join(found.DESCRIPTOR.fields_by_name)}")
        setattr(found, name, True)
    return found


def _direction(value: str) -> int:
    if value.lower() not in ("ingress", "egress"):
        raise Wrong(f"--traffic-direction is ingress or egress, not {value!r}")
    return int(pb.TrafficDirection.Value(value.upper()))


def _ip_version(value: str) -> int:
    found = {"4": pb.IPv4, "6": pb.IPv6, "none": pb.IP_NOT_USED}.get(value.lower().removeprefix("ip").removeprefix("v"))
    if found is None:
        raise Wrong(f"--ip-version is v4, v6 or none, not {value!r}")
    return int(found)


def _trace_id(value: str) -> int:
    if not (value.isdecimal() and 0 < int(value) < 1 << 64):
        raise Wrong(f"--ip-trace-id is a number above 0, not {value!r}")
    return int(value)


Reading = Callable[[str], Any]

ENDS: Mapping[str, tuple[str, Reading, str]] = {
    "pod": ("pod", _text, "[NAMESPACE/]NAME, or how the name begins"),
    "ip": ("ip", _text, "an address, or a network"),
    "label": ("label", _text, "a selector: key=value, key in (a, b), reserved:world"),
    "service": ("service", _text, "[NAMESPACE/]NAME, or how the name begins"),
    "port": ("port", _text, "a port"),
    "workload": ("workload", _workload, "[KIND/]NAME"),
    "identity": ("identity", _identity, "a number, or a reserved identity's name"),
    "fqdn": ("fqdn", _text, "a DNS name, with * for any letters"),
    "cluster": ("cluster_name", _text, "a cluster"),
}
"""Of an end: the flag is for either, --from-FLAG for the source, --to-FLAG for the destination. With the field of a
filter, without "source_" and "destination_"."""

WHOLE: Mapping[str, tuple[str, Reading, str]] = {
    "verdict": ("verdict", _named(pb.Verdict, "verdict"), "FORWARDED, DROPPED..."),
    "drop-reason-desc": ("drop_reason_desc", _named(pb.DropReason, "drop reason"), "POLICY_DENIED..."),
    "type": ("event_type", _type, f"TYPE[:SUBTYPE]; a type is {', '.join(TYPES)}"),
    "protocol": ("protocol", _text, "tcp, udp, sctp, icmp, dns, http..."),
    "traffic-direction": ("traffic_direction", _direction, "ingress or egress"),
    "tcp-flags": ("tcp_flags", _tcp_flags, "SYN,ACK..."),
    "ip-version": ("ip_version", _ip_version, "v4, v6 or none"),
    "node-name": ("node_name", _text, "[CLUSTER/]NODE, with * for any letters"),
    "node-label": ("node_labels", _text, "a selector of labels of the node"),
    "snat-ip": ("source_ip_xlated", _text, "what the source became on its way out"),
    "interface": ("interface", lambda value: pb.NetworkInterface(name=value), "where it was seen"),
    "http-status": ("http_status_code", _text, "404, 5+"),
    "http-method": ("http_method", _text, "get, post..."),
    "http-path": ("http_path", _text, "an expression"),
    "http-url": ("http_url", _text, "an expression"),
    "http-header": ("http_header", _header, "NAME:VALUE"),
    "trace-id": ("trace_id", _text, "of the request"),
    "ip-trace-id": ("ip_trace_id", _trace_id, "of the packet"),
    "uuid": ("uuid", _text, "one flow"),
}
"""Of a flow: by flag, with the field of a filter."""

SWITCHES: Mapping[str, tuple[str, Any, str]] = {
    "ipv4": ("ip_version", pb.IPv4, "IPv4 only"),
    "ipv6": ("ip_version", pb.IPv6, "IPv6 only"),
    "encrypted": ("encrypted", True, "encrypted ones only"),
    "unencrypted": ("encrypted", False, "the others only"),
}
NAMESPACES = ("namespace", "all-namespaces")
SIDES = ("", "from-", "to-")
SHORT = {"type": "-t", "label": "-l", "namespace": "-n", "all-namespaces": "-A", "ipv4": "-4", "ipv6": "-6"}


def _conflicts() -> Iterator[frozenset[str]]:
    """Flags that say the same thing in ways that cannot both be meant."""
    for side in SIDES[1:]:
        address = {f"{side}fqdn", f"{side}ip", "ip", "fqdn"}
        yield frozenset(address | {f"{side}pod", "pod"})
        yield frozenset(address | {name for each in NAMESPACES for name in (each, side + each)})
        for end in ("pod", "service"):
            yield frozenset({side + end, *NAMESPACES})
        for end in ("label", "service", "port", "identity", "workload", "cluster"):
            yield frozenset({end, side + end})
    yield frozenset({"encrypted", "unencrypted"})


CONFLICTS = tuple(_conflicts())


@dataclass
class Filters:
    """Those flags that were given without --not, or those with."""

    left: pb.FlowFilter = field(default_factory=pb.FlowFilter)
    right: pb.FlowFilter = field(default_factory=pb.FlowFilter)
    namespaces: dict[str, list[str]] = field(default_factory=lambda: {side: [] for side in SIDES})
    given: list[str] = field(default_factory=list)

    def add(self, flag: str, value: str) -> None:
        """Raises: Wrong."""
        for group in CONFLICTS:
            if flag in group and (other := next((each for each in self.given if each in group and each != flag), "")):
                raise Wrong(f"--{other} and --{flag} do not go together")
        self.given.append(flag)
        side = next((each for each in SIDES[1:] if flag.startswith(each)), "")
        bare = flag.removeprefix(side)
        if bare in NAMESPACES:
            self.namespaces[side].append(value if bare == "namespace" else "")
        elif bare in ENDS:
            name, read, _ = ENDS[bare]
            meant = read(value)
            self._put(self.left, "destination" if side == "to-" else "source", name, meant)
            self._put(self.right, "source" if side == "from-" else "destination", name, meant)
        else:
            name, meant = (SWITCHES[flag][0], SWITCHES[flag][1]) if flag in SWITCHES else (WHOLE[flag][0], None)
            meant = WHOLE[flag][1](value) if meant is None else meant
            for each in (self.left, self.right):
                getattr(each, name).append(meant)

    @staticmethod
    def _put(into: pb.FlowFilter, end: str, name: str, meant: Any) -> None:
        getattr(into, f"{end}_{name}").append(meant)

    def made(self) -> list[pb.FlowFilter]:
        """Raises: Wrong."""
        if not self.given:
            return []
        for side, end in (("to-", "destination"), ("from-", "source")):
            for each in (self.left, self.right):
                _within(each, end, self.namespaces[side])
        _within(self.left, "source", self.namespaces[""])
        _within(self.right, "destination", self.namespaces[""])
        return [self.left] if self.left == self.right else [self.left, self.right]


def _within(each: pb.FlowFilter, end: str, namespaces: Sequence[str]) -> None:
    """Pods and Services without a namespace are of these; where there are none, all pods of these. Raises: Wrong."""
    if not namespaces:
        return
    pods, services = getattr(each, f"{end}_pod"), getattr(each, f"{end}_service")
    for name in (*pods, *services):
        other, slash, _ = name.partition("/")
        if slash and other not in namespaces:
            raise Wrong(f"{name} is not of the namespace {', '.join(namespaces)}")
    if not pods and not services:
        pods.append("")
    for names in (pods, services):
        found = [one if "/" in one else f"{space}/{one}" for one in names for space in namespaces]
        del names[:]
        names.extend(dict.fromkeys(found))


class Both:
    """What all flags together mean, in the order in which they were given."""

    def __init__(self) -> None:
        self.allowed, self.denied = Filters(), Filters()
        self._not = False

    def turn(self) -> None:
        """--not. Raises: Wrong."""
        if self._not:
            raise Wrong("--not --not: it turns round the flag that follows, once")
        self._not = True

    def add(self, flag: str, value: str) -> None:
        """Raises: Wrong."""
        into = self.denied if self._not else self.allowed
        self._not = False
        into.add(flag, value)

    def check(self) -> None:
        """Raises: Wrong."""
        if self._not:
            raise Wrong("--not is followed by no flag that it could turn round")


class _Into(argparse.Action):
    """A flag of a filter: told to `Both` as it is met."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        both: Both = namespace.both
        try:
            if self.dest == "not":
                both.turn()
            else:
                both.add(self.dest.replace("_", "-"), str(values) if self.nargs is None else "")
        except Wrong as problem:
            parser.error(str(problem))


class _Help(argparse.HelpFormatter):
    """As other commands' help looks."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)

    def add_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, "Usage: ")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="plexus observe",
        usage="plexus observe [FLAG]...",
        allow_abbrev=False,
        formatter_class=_Help,
        description="Flows of all nodes: the last 20, or as the flags say. Flags of one name are alternatives, flags "
        "of several must all hold; --not turns the one that follows round.",
    )
    which = found.add_argument_group("which")
    which.add_argument("--last", type=int, default=0, metavar="N", help=f"the newest N (default: {LAST_DEFAULT})")
    which.add_argument("--first", type=int, default=0, metavar="N", help="the oldest N that are kept")
    which.add_argument("--all", action="store_true", help="all that are kept")
    which.add_argument("-f", "--follow", action="store_true", help="and those that come, until Ctrl-C")
    moment = "a time ago (30s, 5m, 2h30m, 1d), or a moment (2026-11-30T18:04:05Z, 2026-11-30)"
    which.add_argument("--since", default="", metavar="TIME", help=f"not before: {moment}")
    which.add_argument("--until", default="", metavar="TIME", help="not after")
    where = found.add_argument_group("where")
    where.add_argument("--name", default="", metavar="N", help="the lab; default: $PLEXUS_LAB, else the only one")
    where.add_argument(
        "--server",
        default="",
        metavar="ADDRESS",
        help="ask this server alone: unix:/path, or host:port (default: $HUBBLE_SERVER, else every node of the lab)",
    )
    look = found.add_argument_group("how it looks")
    forms = ("compact", "dict", "json", "jsonpb", "table")
    look.add_argument("-o", "--output", choices=forms, default="compact", help="json is jsonpb: a line for each answer")
    look.add_argument("--numeric", action="store_true", help="addresses and not names; as --ip-translation=false")
    look.add_argument("--ip-translation", choices=("true", "false"), default="true", help=argparse.SUPPRESS)
    look.add_argument("--print-node-name", action="store_true", help="which node saw it")
    look.add_argument("--print-policy-names", action="store_true", help="which policies decided")
    look.add_argument("--time-format", default="StampMilli", metavar="FORMAT", help="StampMilli, RFC3339...")
    look.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="compact and dict only")
    look.add_argument("--field-mask", default="", metavar="FIELDS", help="leave these of each flow; json only")
    look.add_argument("-s", "--silent-errors", action="store_true", help="nothing of nodes that do not answer")
    look.add_argument("--print-raw-filters", action="store_true", help="print the filters that the flags mean, and end")
    raw = found.add_argument_group("filters as JSON")
    raw.add_argument("--allowlist", action="append", default=[], metavar="JSON", help="a FlowFilter, one must match")
    raw.add_argument("--denylist", action="append", default=[], metavar="JSON", help="a FlowFilter, none may match")
    _filter_flags(found.add_argument_group("filters"))
    return found


def _filter_flags(group: Any) -> None:
    group.add_argument("--not", dest="not", action=_Into, nargs=0, help="turns round the flag that follows")

    def flag(name: str, text: str, *, switch: bool = False) -> None:
        short = [SHORT[name]] if name in SHORT else []
        kind = {"nargs": 0} if switch else {"metavar": name.rpartition("-")[2].upper()}
        group.add_argument(*short, f"--{name}", dest=name.replace("-", "_"), action=_Into, help=text, **kind)

    for name, (_, _, text) in ENDS.items():
        flag(name, f"at either end: {text}")
        flag(f"from-{name}", "at the source")
        flag(f"to-{name}", "at the destination")
    for side, end in zip(SIDES, ("either end", "the source", "the destination"), strict=True):
        flag(f"{side}namespace", f"at {end}: a pod of this namespace")
        flag(f"{side}all-namespaces", f"at {end}: a pod of any namespace", switch=True)
    for name, (_, _, text) in WHOLE.items():
        flag(name, text)
    for name, (_, _, text) in SWITCHES.items():
        flag(name, text, switch=True)


def request(given: argparse.Namespace, now: float | None = None) -> api.GetFlowsRequest:
    """What to ask for. Raises: Wrong."""
    both: Both = given.both
    both.check()
    for one, other in (("first", "last"), ("first", "all"), ("first", "follow"), ("last", "all")):
        if getattr(given, one) and getattr(given, other):
            raise Wrong(f"--{one} and --{other} do not go together")
    if given.first < 0 or given.last < 0:
        raise Wrong("--first and --last are numbers above 0")
    found = api.GetFlowsRequest(number=given.first or given.last, first=bool(given.first), follow=given.follow)
    now = time.time() if now is None else now
    if given.since:
        found.since.CopyFrom(timestamp(moment(given.since, now)))
    if given.until:
        found.until.CopyFrom(timestamp(moment(given.until, now)))
    if given.all:
        found.number = EVERYTHING
    elif not (found.number or given.since or given.until or given.follow):
        found.number = LAST_DEFAULT
    found.whitelist.extend([*both.allowed.made(), *map(raw_filter, given.allowlist)])
    found.blacklist.extend([*both.denied.made(), *map(raw_filter, given.denylist)])
    if given.field_mask:
        if given.output not in ("json", "jsonpb"):
            raise Wrong(f"--field-mask is for -o json, not {given.output}")
        found.field_mask.paths.extend(given.field_mask.split(","))
    return found


def raw_filter(text: str) -> pb.FlowFilter:
    """Raises: Wrong."""
    try:
        return Parse(text, pb.FlowFilter())
    except ParseError as problem:
        raise Wrong(f"{text!r} is not a FlowFilter: {problem}") from None


SECOND = 10**9
UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": SECOND, "m": 60 * SECOND}
UNITS |= {"h": 3600 * SECOND, "d": 86400 * SECOND}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h|d)")


def moment(text: str, now: float) -> int:
    """Nanoseconds since the epoch: a time before `now`, or a moment; without a zone it is UTC. Raises: Wrong."""
    if (parts := _PART.findall(text)) and "".join(number + unit for number, unit in parts) == text:
        return max(0, int(now * 1e9) - sum(int(float(number) * UNITS[unit]) for number, unit in parts))
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            found = read(text)
        except ValueError:
            continue
        since = (found if found.tzinfo else found.replace(tzinfo=UTC)) - EPOCH
        return max(0, since // timedelta(microseconds=1) * 1000)
    raise Wrong(f"{text!r} is neither a time ago (5m, 2h30m, 1d) nor a moment (2026-11-30T18:04:05Z)")
