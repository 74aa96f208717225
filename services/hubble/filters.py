"""A client's filters as a predicate over flows. Pure.

Of one filter all that is set must hold; of a list of values any one. Of the allowed filters one must match (none given:
all do), of the denied ones none. A filter that cannot be read is refused, never passed over: who asks for the drops of
one pod must not get everything.

Regular expressions are RE2's, as clients expect, and take time in proportion to the text, whoever wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address, ip_network

import re2

from services.hubble.api import flow_pb2 as pb
from services.hubble.flow import Flow
from services.hubble.names import Party, ServiceName
from services.hubble.records import ICMP, ICMPV6, SCTP, TCP, UDP
from services.hubble.selectors import BadSelector, selector

Predicate = Callable[[Flow], bool]

FILTERS_MAX = 256  # of one request
VALUES_MAX = 4096  # of one filter, all fields together
LAYER7 = 129  # event type of what the proxy saw
REGEX_BYTES = 1 << 20  # of memory for one expression
LAYER4 = {
    "tcp": (TCP,),
    "udp": (UDP,),
    "sctp": (SCTP,),
    "icmp": (ICMP, ICMPV6),
    "icmpv4": (ICMP,),
    "icmpv6": (ICMPV6,),
    "vrrp": (112,),
    "igmp": (2,),
}
LAYER7_PROTOCOLS = ("dns", "http", "kafka")


class BadFilter(Exception):
    """A filter cannot be read; the text names the field and the value."""


def everything(flow: Flow) -> bool:
    return True


def compile_filters(allowed: Sequence[pb.FlowFilter], denied: Sequence[pb.FlowFilter] = ()) -> Predicate:
    """Raises: BadFilter."""
    if len(allowed) + len(denied) > FILTERS_MAX:
        raise BadFilter(f"at most {FILTERS_MAX} filters, not {len(allowed) + len(denied)}")
    wanted, unwanted = [compile_filter(each) for each in allowed], [compile_filter(each) for each in denied]
    if not wanted and not unwanted:
        return everything
    if len(wanted) == 1 and not unwanted:
        return wanted[0]

    def matches(flow: Flow) -> bool:
        return (not wanted or any(each(flow) for each in wanted)) and not any(each(flow) for each in unwanted)

    return matches


def compile_filter(asked: pb.FlowFilter) -> Predicate:
    """Raises: BadFilter."""
    parts: list[Predicate] = []
    values = 0
    for field, value in asked.ListFields():
        name = field.name
        if name not in FIELDS:
            raise BadFilter(f"{name}: Plexus cannot filter by this")
        values += len(value)
        if values > VALUES_MAX:
            raise BadFilter(f"{name}: at most {VALUES_MAX} values in one filter")
        if name.startswith("http_"):
            _check_layer7(name, asked.event_type)
        try:
            parts.append(FIELDS[name](value))
        except (ValueError, BadSelector) as problem:
            raise BadFilter(f"{name}: {problem}") from None
    if len(parts) == 1:
        return parts[0]
    return lambda flow: all(part(flow) for part in parts)


def _check_layer7(name: str, types: Sequence[pb.EventTypeFilter]) -> None:
    if types and not any(each.type in (0, LAYER7) for each in types):
        raise BadFilter(f"{name}: only flows of layer 7 have this, and event_type leaves them out")


# -- of one field each: its values -> predicate; raises ValueError


def _addresses(get: Callable[[Flow], str]) -> Callable[[Iterable[str]], Predicate]:
    def build(values: Iterable[str]) -> Predicate:
        plain, networks = set(), []
        for text in values:
            if "/" in text:
                networks.append(ip_network(text, strict=False))
            else:
                plain.add(ip_address(text).compressed)

        def matches(flow: Flow) -> bool:
            address = get(flow)
            if not networks or address in plain:
                return address in plain
            return bool(address) and any(ip_address(address) in network for network in networks)

        return matches

    return build


def _named(get: Callable[[Flow], tuple[str, str]]) -> Callable[[Iterable[str]], Predicate]:
    """ "namespace/name", of which the name may be how it begins and either may be empty; a name alone is of the
    namespace "default"."""

    def build(values: Iterable[str]) -> Predicate:
        wanted = []
        for text in values:
            if not text:
                raise ValueError("a name must not be empty")
            namespace, slash, name = text.partition("/")
            wanted.append((namespace, name) if slash else ("default", text))

        def matches(flow: Flow) -> bool:
            namespace, name = get(flow)
            if not namespace and not name:
                return False
            return any((not space or space == namespace) and name.startswith(head) for space, head in wanted)

        return matches

    return build


def _pod(get: Callable[[Flow], Party]) -> Callable[[Flow], tuple[str, str]]:
    return lambda flow: (get(flow).namespace, get(flow).pod)


def _service(get: Callable[[Flow], ServiceName | None]) -> Callable[[Flow], tuple[str, str]]:
    def named(flow: Flow) -> tuple[str, str]:
        found = get(flow)
        return (found.namespace, found.name) if found else ("", "")

    return named


def _labels(get: Callable[[Flow], Sequence[str]]) -> Callable[[Iterable[str]], Predicate]:
    """What a set of labels says is remembered: flows have few different ones."""

    def build(values: Iterable[str]) -> Predicate:
        selectors = [selector(text) for text in values]
        known: dict[Sequence[str], bool] = {}

        def matches(flow: Flow) -> bool:
            labels = get(flow)
            found = known.get(labels)
            if found is None:
                if len(known) > VALUES_MAX:
                    known.clear()
                found = known[labels] = any(each.selects(labels) for each in selectors)
            return found

        return matches

    return build


def _workloads(get: Callable[[Flow], Party]) -> Callable[[Iterable[pb.Workload]], Predicate]:
    def build(values: Iterable[pb.Workload]) -> Predicate:
        wanted = [(each.name, each.kind) for each in values]

        def matches(flow: Flow) -> bool:
            found = get(flow).workload
            return found is not None and any(
                name in ("", found.name) and kind in ("", found.kind) for name, kind in wanted
            )

        return matches

    return build


def _one_of(get: Callable[[Flow], object]) -> Callable[[Iterable[object]], Predicate]:
    def build(values: Iterable[object]) -> Predicate:
        wanted = frozenset(values)
        return lambda flow: get(flow) in wanted

    return build


def _clusters(get: Callable[[Flow], Party]) -> Callable[[Iterable[str]], Predicate]:
    def build(values: Iterable[str]) -> Predicate:
        wanted = frozenset(values)
        if "" in wanted:
            raise ValueError("a name must not be empty")
        return lambda flow: bool(get(flow).pod) and flow.place.cluster in wanted

    return build


def _ports(get: Callable[[Flow], int]) -> Callable[[Iterable[str]], Predicate]:
    def build(values: Iterable[str]) -> Predicate:
        wanted = set()
        for text in values:
            if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
                raise ValueError(f"{text!r} is not a port")
            wanted.add(int(text))
        return lambda flow: flow.has_ports and get(flow) in wanted

    return build


def _protocols(values: Iterable[str]) -> Predicate:
    wanted: set[int] = set()
    for text in values:
        name = text.lower()
        if name in LAYER4:
            wanted.update(LAYER4[name])
        elif name not in LAYER7_PROTOCOLS:
            raise ValueError(f"unknown protocol {text!r}")
    return lambda flow: flow.protocol in wanted


def _event_types(values: Iterable[pb.EventTypeFilter]) -> Predicate:
    wanted = [(each.type, each.sub_type if each.match_sub_type else None) for each in values]

    def matches(flow: Flow) -> bool:
        kind, sub = flow.event_type
        return any(type_ in (0, kind) and sub_type in (None, sub) for type_, sub_type in wanted)

    return matches


def _drop_reasons(values: Iterable[int]) -> Predicate:
    wanted = frozenset(values)
    return lambda flow: flow.is_drop and flow.reason in wanted


def _replies(values: Iterable[bool]) -> Predicate:
    """A drop, of which nobody knows, counts as no reply."""
    wanted = frozenset(values)
    return lambda flow: bool(flow.is_reply) in wanted


_NAME = r"[-0-9_a-z]+(?:\.[-0-9_a-z]+)*"


def _pattern(text: str) -> str:
    """A DNS name with "*" for any letters, as an expression."""
    name = text.strip().removesuffix(".").lower()
    if not name or name.endswith("."):
        raise ValueError(f"{text!r} is no name")
    if bad := re.search(r"[^-_.*0-9a-z]", name):
        raise ValueError(f"{text!r}: {bad.group()!r} cannot be in a name")
    return name.replace(".", r"\.").replace("*", "[-.0-9a-z]*")


def _node_names(values: Iterable[str]) -> Predicate:
    """ "node", "cluster/node", "cluster/", each with "*"; a flow's node without a cluster is of "default"."""
    wanted = []
    for text in values:
        cluster, slash, node = text.partition("/")
        if not slash:
            cluster, node = "", text
        if not text or "/" in node:
            raise ValueError(f"{text!r} is not NODE, CLUSTER/NODE or CLUSTER/")
        wanted.append(f"{_pattern(cluster) if cluster else _NAME}/{_pattern(node) if node else _NAME}")
    found = _expression("|".join(f"(?:{each})" for each in wanted), "the names together")

    def matches(flow: Flow) -> bool:
        name = flow.place.node
        return bool(name) and found.fullmatch(name if "/" in name else f"default/{name}") is not None

    return matches


def _expression(text: str, what: str = "") -> re2._Regexp:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = REGEX_BYTES
    try:
        return re2.compile(text, options)
    except re2.error as problem:
        raise ValueError(f"{what or repr(text)}: {_words(problem)}") from None


def _words(problem: re2.error) -> str:
    said = problem.args[0] if problem.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)


def _expressions(values: Iterable[str]) -> Predicate:
    """Of layer 7, which no flow is of so far; what cannot be read is refused all the same."""
    for text in values:
        _expression(text)
    return _nothing


def _names_of_dns(values: Iterable[str]) -> Predicate:
    """As `_expressions`, for the names that addresses were asked for by."""
    for text in values:
        _pattern(text)
    return _nothing


def _status_codes(values: Iterable[str]) -> Predicate:
    for text in values:
        if not re.fullmatch(r"[1-5][0-9]{2}|[1-5][0-9]?\+", text, re.ASCII):
            raise ValueError(f"{text!r} is no status: 404, 40+ or 4+")
    return _nothing


def _nothing_yet(values: Iterable[object]) -> Predicate:
    """Nothing that the kernel tells so far has this."""
    return _nothing


def _nothing(flow: Flow) -> bool:
    return False


def _source(flow: Flow) -> Party:
    return flow.source


def _destination(flow: Flow) -> Party:
    return flow.destination


FIELDS: dict[str, Callable[..., Predicate]] = {
    "uuid": _one_of(lambda flow: flow.uuid),
    "source_ip": _addresses(lambda flow: flow.source_address),
    "source_ip_xlated": _addresses(lambda flow: ""),
    "source_pod": _named(_pod(_source)),
    "source_fqdn": _names_of_dns,
    "source_label": _labels(lambda flow: flow.source.labels),
    "source_service": _named(_service(lambda flow: flow.source_service)),
    "source_workload": _workloads(_source),
    "source_cluster_name": _clusters(_source),
    "destination_ip": _addresses(lambda flow: flow.destination_address),
    "destination_pod": _named(_pod(_destination)),
    "destination_fqdn": _names_of_dns,
    "destination_label": _labels(lambda flow: flow.destination.labels),
    "destination_service": _named(_service(lambda flow: flow.destination_service)),
    "destination_workload": _workloads(_destination),
    "destination_cluster_name": _clusters(_destination),
    "traffic_direction": _one_of(lambda flow: flow.direction),
    "verdict": _one_of(lambda flow: flow.verdict),
    "drop_reason_desc": _drop_reasons,
    "interface": _nothing_yet,
    "event_type": _event_types,
    "http_status_code": _status_codes,
    "protocol": _protocols,
    "source_port": _ports(lambda flow: flow.source_port),
    "destination_port": _ports(lambda flow: flow.destination_port),
    "reply": _replies,
    "dns_query": _expressions,
    "source_identity": _one_of(lambda flow: flow.source.identity),
    "destination_identity": _one_of(lambda flow: flow.destination.identity),
    "http_method": _nothing_yet,
    "http_path": _expressions,
    "http_url": _expressions,
    "http_header": _nothing_yet,
    "tcp_flags": _nothing_yet,
    "node_name": _node_names,
    "node_labels": _labels(lambda flow: flow.place.labels),
    "ip_version": _one_of(lambda flow: flow.ip_version),
    "trace_id": _nothing_yet,
    "ip_trace_id": _nothing_yet,
    "encrypted": _one_of(lambda flow: False),
}
"""Every field of FlowFilter but `experimental`."""
