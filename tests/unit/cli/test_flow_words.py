"""How flows look: what the public client prints for them, and nothing that a terminal would obey."""

from __future__ import annotations

import json

import pytest

from cli.flow_words import TIMES, Look, Printer, as_json, some
from services.hubble import records
from services.hubble.api import flow_pb2 as pb
from services.hubble.api import observer_pb2 as api
from services.hubble.api import relay_pb2
from services.hubble.flow import timestamp
from services.hubble.names import Party, PolicyName, ServiceName
from tests.unit.hubble.made import flow, record

AT = 1_796_063_770_920_847_900
RULE = (PolicyName("CiliumNetworkPolicy", "default", "rule1"),)
DROP = flow(time_ns=AT, policies=RULE, seen=record(type_=records.DROP, reason=133)).message()
VERDICT = flow(time_ns=AT, policies=RULE).message()


def answer(what: pb.Flow) -> api.GetFlowsResponse:
    return api.GetFlowsResponse(flow=what, node_name=what.node_name, time=what.time)


def line(what: pb.Flow, **look: object) -> str:
    return Printer(Look(**look)).line(answer(what))  # type: ignore[arg-type]


def test_a_drop_and_a_verdict_on_a_line() -> None:
    ends = "default/xwing:40000 (ID:1000) {} empire/deathstar-1:80 (ID:2000)"
    assert line(DROP) == f"Nov 30 18:36:10.920: {ends.format('<>')} Policy denied DROPPED (TCP)"
    assert line(VERDICT) == f"Nov 30 18:36:10.920: {ends.format('->')} policy-verdict:none INGRESS ALLOWED (TCP)"
    named = line(VERDICT, policies=True, node=True)
    assert " [node1]: " in named and "ALLOWED BY rule1 (CiliumNetworkPolicy) (TCP)" in named
    assert "DROPPED BY rule1 (CiliumNetworkPolicy) (TCP)" in line(DROP, policies=True)


def test_a_reply_is_shown_from_who_asked() -> None:
    reply = pb.Flow()
    reply.CopyFrom(VERDICT)
    reply.is_reply.value = True
    assert "empire/deathstar-1:80 (ID:2000) <- default/xwing:40000 (ID:1000)" in line(reply)


def test_an_end_is_a_pod_else_a_service_else_its_names_else_its_address() -> None:
    outside = Party(2, labels=("reserved:world",))
    made = flow(source=outside, destination=outside, destination_service=ServiceName("kube", "dns")).message()
    assert "10.0.1.1:40000 (world) -> kube/dns:80 (world)" in line(made)
    made.source_names.extend(["a.example", "b.example"])
    assert "a.example,b.example:40000 (world)" in line(made)
    assert "10.0.1.1:40000 (world) -> 10.0.2.2:80" in line(made, names=False)
    six = flow(source=outside, seen=record(source="fd00::1", destination="fd00::2", protocol=58)).message()
    assert " fd00::1 (world) " in line(six)
    assert " [fd00::1]:40000 " in line(flow(source=outside, seen=record(source="fd00::1")).message())


def test_a_dictionary_and_a_table() -> None:
    printer = Printer(Look(output="dict", node=True))
    first, second = printer.line(answer(DROP)), printer.line(answer(VERDICT))
    assert first.splitlines()[:3] == [
        "  TIMESTAMP: Nov 30 18:36:10.920",
        "       NODE: node1",
        "     SOURCE: default/xwing:40000",
    ]
    assert second.splitlines()[0] == "------------" and second.splitlines()[-2] == "    VERDICT: ALLOWED"
    printer = Printer(Look(output="table"))
    assert printer.end() == "" and printer.line(answer(DROP)) == printer.line(answer(VERDICT)) == ""
    heading, *rows = printer.end().splitlines()
    assert heading.split() == ["TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"]
    assert [row.index("empire/") for row in rows] == [heading.index("DESTINATION")] * 2


def test_json_is_the_answer_with_the_names_of_its_fields() -> None:
    found = json.loads(line(DROP, output="json"))
    assert found["node_name"] == "node1" and found["flow"]["drop_reason_desc"] == "POLICY_DENIED"
    assert found["flow"]["time"] == "2026-11-30T18:36:10.920847900Z"
    assert as_json(answer(DROP)) == line(DROP, output="jsonpb")


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        ("stampmilli", "Nov 30 18:36:10.920"),
        ("yearmonthday", "2026-11-30"),
        ("yearmonthdayhour", "2026-11-30T18Z"),
        ("yearmonthdayhourminute", "2026-11-30T18:36Z"),
        ("rfc3339", "2026-11-30T18:36:10Z"),
        ("rfc3339milli", "2026-11-30T18:36:10.92Z"),
        ("rfc3339micro", "2026-11-30T18:36:10.920847Z"),
        ("rfc3339nano", "2026-11-30T18:36:10.9208479Z"),
        ("rfc1123z", "Mon, 30 Nov 2026 18:36:10 +0000"),
    ],
)
def test_times(form: str, shown: str) -> None:
    assert form in TIMES and Look(time=form).when(timestamp(AT)) == shown


def test_what_a_node_or_a_pod_calls_itself_moves_no_cursor() -> None:
    bad = pb.Flow()
    bad.CopyFrom(DROP)
    bad.source.pod_name, bad.node_name, bad.Summary = "\x1b[2J", "\x1b[31m", "a\r\nb"
    for output in ("compact", "dict", "json"):
        shown = line(bad, output=output, node=True)
        assert "\x1b" not in shown and "\r" not in shown
    assert "\x1b[2J" not in line(bad, color=True)
    assert "\x1b[31mDROPPED\x1b[0m" in line(DROP, color=True)


def test_a_loss_and_a_node_that_does_not_answer_go_aside() -> None:
    lost = pb.LostEvent(source=pb.PERF_EVENT_RING_BUFFER, num_events_lost=7)
    told = api.GetFlowsResponse(lost_events=lost, node_name="node1", time=timestamp(AT))
    printer = Printer(Look())
    assert printer.line(told) == ""
    assert printer.aside(told) == "Nov 30 18:36:10.920 [node1]: EVENTS LOST: PERF_EVENT_RING_BUFFER 7"
    for state, shown in (
        (relay_pb2.NODE_CONNECTED, ""),
        (relay_pb2.NODE_UNAVAILABLE, "Nov 30 18:36:10.920: 1 nodes are unavailable: node2 (no route)"),
    ):
        event = relay_pb2.NodeStatusEvent(state_change=state, node_names=["node2"], message="no route")
        assert printer.aside(api.GetFlowsResponse(node_status=event, time=timestamp(AT))) == shown
    assert printer.aside(answer(DROP)) == ""


def test_many_names_are_counted() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some([f"node-of-the-cluster-{number}" for number in range(9)]).endswith("(and 7 more)")


def test_a_number_that_has_no_name_is_shown_as_it_is() -> None:
    odd = pb.Flow(verdict=99, event_type=pb.CiliumEventType(type=4, sub_type=77))  # type: ignore[arg-type]
    assert " 77 99 " in line(odd)
