"""Each filter finds what it names and nothing else, and what cannot be read is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.hubble import records
from services.hubble.api import flow_pb2 as pb
from services.hubble.filters import FIELDS, BadFilter, compile_filter, compile_filters
from services.hubble.flow import Flow, Place
from services.hubble.names import Party, ServiceName, Workload
from services.hubble.selectors import BadSelector, selector
from tests.unit.hubble.made import CLIENT, SERVER, flow, record

DROP = record(type_=records.DROP, reason=133, direction=1, source="10.0.1.9", destination_port=443)
SIX = record(source="fd00::1", destination="fd00::2", protocol=17, destination_port=53)
PING = record(protocol=1, source_port=7, destination_port=8)
PEER = Party(2000, "empire", "d-1", ("k8s:org=empire",), Workload("d", "Deployment"))
SERVED = flow(destination_service=ServiceName("empire", "deathstar"))

CASES: list[tuple[dict[str, Any], Flow, Flow]] = [  # filter, a flow that it finds, one that it does not
    ({"source_ip": ["10.0.1.1"]}, flow(), flow(seen=DROP)),
    ({"source_ip": ["192.0.2.1", "10.0.1.0/29"]}, flow(), flow(seen=DROP)),
    ({"source_ip": ["fd00:0::/64"]}, flow(seen=SIX), flow()),
    ({"source_ip": ["FD00:0::1"]}, flow(seen=SIX), flow()),
    ({"destination_ip": ["10.0.2.2"]}, flow(), flow(seen=SIX)),
    ({"source_pod": ["default/xw"]}, flow(), flow(source=SERVER)),
    ({"source_pod": ["xwing"]}, flow(), flow(source=PEER)),
    ({"source_pod": ["/xw"]}, flow(), flow(source=PEER)),
    ({"destination_pod": ["empire/"]}, flow(), flow(destination=CLIENT)),
    ({"destination_pod": ["default/deathstar", "empire/deathstar-1"]}, flow(), flow(destination=PEER)),
    ({"source_label": ["org=alliance"]}, flow(), flow(source=SERVER)),
    ({"source_label": ["k8s:org in (alliance, rebels),!old"]}, flow(), flow(source=SERVER)),
    ({"destination_label": ["org!=alliance"]}, flow(), flow(destination=CLIENT)),
    ({"destination_label": ["reserved:world"]}, flow(destination=Party(2, labels=("reserved:world",))), flow()),
    ({"destination_service": ["empire/death"]}, SERVED, flow()),
    ({"source_service": ["/death"]}, flow(source_service=ServiceName("empire", "deathstar")), SERVED),
    ({"destination_workload": [pb.Workload(name="d")]}, flow(destination=PEER), flow()),
    ({"destination_workload": [pb.Workload(kind="Deployment")]}, flow(destination=PEER), flow()),
    ({"source_workload": [pb.Workload(name="d", kind="Deployment")]}, flow(source=PEER), flow(destination=PEER)),
    ({"source_cluster_name": ["default"]}, flow(), flow(source=Party(2))),
    ({"destination_cluster_name": ["default"]}, flow(), flow(destination=Party(2))),
    ({"traffic_direction": [pb.EGRESS]}, flow(seen=DROP), flow()),
    ({"verdict": [pb.DROPPED, pb.ERROR]}, flow(seen=DROP), flow()),
    ({"drop_reason_desc": [pb.POLICY_DENIED]}, flow(seen=DROP), flow(seen=record(type_=records.DROP, reason=132))),
    ({"event_type": [pb.EventTypeFilter(type=1)]}, flow(seen=DROP), flow()),
    (
        {"event_type": [pb.EventTypeFilter(type=1, match_sub_type=True, sub_type=133)]},
        flow(seen=DROP),
        flow(seen=record(type_=records.DROP, reason=132)),
    ),
    ({"protocol": ["UDP"]}, flow(seen=SIX), flow()),
    ({"protocol": ["icmp"]}, flow(seen=PING), flow()),
    ({"protocol": ["http", "tcp"]}, flow(), flow(seen=PING)),
    ({"source_port": ["40000"]}, flow(), flow(seen=record(source_port=1))),
    ({"destination_port": ["443"]}, flow(seen=DROP), flow()),
    ({"destination_port": ["80", "8"]}, flow(), flow(seen=PING)),
    ({"reply": [False]}, flow(), None),  # type: ignore[list-item]  # nothing so far is a reply
    ({"source_identity": [1000]}, flow(), flow(source=SERVER)),
    ({"destination_identity": [1, 2000]}, flow(), flow(destination=CLIENT)),
    ({"ip_version": [pb.IPv6]}, flow(seen=SIX), flow()),
    ({"uuid": [flow(7).uuid]}, flow(7), flow(8)),
    ({"node_name": ["node1"]}, flow(), flow(place=Place("node11"))),
    ({"node_name": ["nod*"]}, flow(), flow(place=Place("anode"))),
    ({"node_name": ["other/", "default/node*"]}, flow(), flow(place=Place("third/node1"))),
    ({"node_name": ["west/node1."]}, flow(place=Place("west/node1")), flow()),
    ({"node_labels": ["zone in (a),kubernetes.io/arch"]}, flow(), flow(place=Place("n", labels=("zone=b",)))),
    ({"encrypted": [False]}, flow(), None),  # type: ignore[list-item]
    ({"source_port": ["40000"], "protocol": ["tcp"]}, flow(), flow(seen=record(protocol=17))),
]


@pytest.mark.parametrize(("asked", "found", "passed_over"), CASES, ids=[str(each[0]) for each in CASES])
def test_a_filter_finds_what_it_names(asked: dict[str, Any], found: Flow, passed_over: Flow | None) -> None:
    matches = compile_filter(pb.FlowFilter(**asked))
    assert matches(found) and (passed_over is None or not matches(passed_over))


NOT_SEEN: list[dict[str, Any]] = [
    {"reply": [True]},
    {"encrypted": [True]},
    {"tcp_flags": [pb.TCPFlags(SYN=True)]},
    {"http_status_code": ["404", "5+", "40+"]},
    {"http_method": ["GET"]},
    {"http_path": ["/v1/.*"]},
    {"http_url": ["."]},
    {"http_header": [pb.HTTPHeader(key="a", value="b")]},
    {"dns_query": ["kube.*local"]},
    {"source_fqdn": ["*.example.com"]},
    {"destination_fqdn": ["example.com."]},
    {"source_ip_xlated": ["10.0.0.0/8"]},
    {"interface": [pb.NetworkInterface(name="eth0")]},
    {"trace_id": ["a" * 32]},
    {"ip_trace_id": [1]},
    {"protocol": ["dns"]},
]


@pytest.mark.parametrize("asked", NOT_SEEN, ids=str)
def test_by_what_no_record_tells_nothing_is_found_rather_than_everything(asked: dict[str, Any]) -> None:
    matches = compile_filter(pb.FlowFilter(**asked))
    assert not any(matches(each) for each in (flow(), flow(seen=SIX), flow(seen=PING)))


def test_every_filter_has_a_case() -> None:
    assert {name for asked, _, _ in CASES for name in asked} | {name for asked in NOT_SEEN for name in asked} == set(
        FIELDS
    )


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"source_ip": ["10.0.0"]}, "source_ip: '10.0.0'"),
    ({"destination_ip": ["10.0.0.0/33"]}, "destination_ip: '10.0.0.0/33'"),
    ({"source_pod": [""]}, "source_pod: a name must not be empty"),
    ({"source_label": ["a=b,"]}, "source_label: 'a=b,': nothing stands after the last comma"),
    ({"source_label": ["a b"]}, "a comma is expected"),
    ({"source_cluster_name": [""]}, "must not be empty"),
    ({"source_port": ["http"]}, "source_port: 'http' is not a port"),
    ({"destination_port": ["65536"]}, "'65536' is not a port"),
    ({"protocol": ["quic"]}, "protocol: unknown protocol 'quic'"),
    ({"http_status_code": ["600"]}, "http_status_code: '600' is no status"),
    ({"http_status_code": ["404"], "event_type": [pb.EventTypeFilter(type=1)]}, "only flows of layer 7"),
    ({"http_path": ["("]}, "http_path: '\\('"),
    ({"dns_query": ["(?=a)"]}, "dns_query"),
    ({"source_fqdn": ["a..", "b"]}, "source_fqdn: 'a..' is no name"),
    ({"node_name": ["a/b/c"]}, "node_name: 'a/b/c' is not NODE"),
    ({"node_name": ["nöde"]}, "'ö' cannot be in a name"),
    ({"source_pod": ["a"] * 5000}, "at most 4096 values"),
]


@pytest.mark.parametrize(("asked", "why"), REFUSED, ids=[each[1] for each in REFUSED])
def test_what_cannot_be_read_is_refused_by_field_and_value(asked: dict[str, Any], why: str) -> None:
    with pytest.raises(BadFilter, match=why):
        compile_filter(pb.FlowFilter(**asked))


def test_an_expression_of_another_language_is_refused_not_passed_over() -> None:
    asked = pb.FlowFilter(experimental=pb.FlowFilter.Experimental(cel_expression=["true"]))
    with pytest.raises(BadFilter, match="experimental"):
        compile_filter(asked)


def test_one_of_the_allowed_and_none_of_the_denied() -> None:
    allowed = [pb.FlowFilter(source_pod=["default/"]), pb.FlowFilter(source_pod=["empire/"])]
    matches = compile_filters(allowed, [pb.FlowFilter(verdict=[pb.DROPPED])])
    assert matches(flow()) and matches(flow(source=PEER))
    assert not matches(flow(seen=DROP)) and not matches(flow(source=Party(2)))
    assert compile_filters([])(flow()) and not compile_filters([], [pb.FlowFilter()])(flow())


def test_more_filters_than_anybody_needs_are_refused() -> None:
    with pytest.raises(BadFilter, match="at most 256"):
        compile_filters([pb.FlowFilter()] * 257)


@given(st.binary(max_size=200))
def test_any_bytes_as_a_filter_are_a_predicate_or_refused(raw: bytes) -> None:
    from google.protobuf.message import DecodeError

    try:
        matches = compile_filter(pb.FlowFilter.FromString(raw))
    except (DecodeError, BadFilter):
        return
    assert matches(flow()) in (True, False)


@given(st.text(max_size=30))
def test_any_text_as_a_selector_is_one_or_is_refused(text: str) -> None:
    try:
        found = selector(text)
    except BadSelector:
        return
    assert found.selects(("k8s:a=b",)) in (True, False)


NAMES, VALUES = st.sampled_from(["a", "b/c", "d.e-f"]), st.sampled_from(["", "1", "x.y"])


@given(
    st.dictionaries(NAMES, VALUES),
    NAMES,
    st.sets(VALUES, min_size=1),
    st.sampled_from(["k8s:", "any:", "", "reserved:"]),
)
def test_a_selector_says_what_kubernetes_says(labels: dict[str, str], key: str, values: set[str], source: str) -> None:
    written = tuple(f"k8s:{name}={value}" for name, value in labels.items())
    there = key in labels and source != "reserved:"
    is_in = there and labels[key] in values
    listed = ",".join(sorted(values))
    assert selector(f"{source}{key} in ({listed})").selects(written) == is_in
    assert selector(f"{source}{key} notin ({listed})").selects(written) == (not is_in)
    assert selector(f"{source}{key}").selects(written) == there
    assert selector(f"!{source}{key}").selects(written) == (not there)
    one = min(values)
    assert selector(f"{source}{key}={one}").selects(written) == (there and labels[key] == one)
    assert selector(f"{source}{key} != {one}").selects(written) == (not (there and labels[key] == one))
