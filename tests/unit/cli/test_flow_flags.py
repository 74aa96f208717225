"""What the flags of `plexus observe` ask for: the same as those of the public client."""

from __future__ import annotations

from argparse import Namespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import flow_flags
from cli.flow_flags import ENDS, EVERYTHING, SWITCHES, WHOLE, Both, Wrong, moment
from services.hubble.api import flow_pb2 as pb
from services.hubble.api import observer_pb2 as api
from services.hubble.filters import compile_filters

NOW = 1_800_000_000.0
VALUES = {
    "port": "80",
    "verdict": "DROPPED",
    "drop-reason-desc": "POLICY_DENIED",
    "type": "drop",
    "traffic-direction": "egress",
    "tcp-flags": "SYN,ACK",
    "ip-version": "v6",
    "http-header": "a:b",
    "http-status": "404",
    "ip-trace-id": "5",
    "protocol": "tcp",
    "identity": "world",
}


def asked(*flags: str) -> api.GetFlowsRequest:
    given = flow_flags.parser().parse_args(flags, Namespace(both=Both()))
    return flow_flags.request(given, NOW)


def refused(*flags: str) -> str:
    try:
        asked(*flags)
    except Wrong as problem:
        return str(problem)
    raise AssertionError(flags)


def test_without_flags_the_last_twenty() -> None:
    assert asked() == api.GetFlowsRequest(number=20)
    assert asked("-f") == api.GetFlowsRequest(follow=True)
    assert asked("--last", "5", "--follow") == api.GetFlowsRequest(number=5, follow=True)
    assert asked("--first", "5") == api.GetFlowsRequest(number=5, first=True)
    assert asked("--all") == api.GetFlowsRequest(number=EVERYTHING)
    since = asked("--since", "1m")
    assert (since.since.seconds, since.number) == (int(NOW) - 60, 0)


def test_of_one_flag_any_and_of_several_all() -> None:
    request = asked("--from-pod", "a/x", "--from-pod", "b/y", "--to-port", "80", "--verdict", "dropped")
    (only,) = request.whitelist
    assert only == pb.FlowFilter(source_pod=["a/x", "b/y"], destination_port=["80"], verdict=[pb.DROPPED])


def test_a_flag_of_either_end_is_two_filters() -> None:
    left, right = asked("--pod", "x", "--label", "a=b", "--protocol", "tcp").whitelist
    assert left == pb.FlowFilter(source_pod=["x"], source_label=["a=b"], protocol=["tcp"])
    assert right == pb.FlowFilter(destination_pod=["x"], destination_label=["a=b"], protocol=["tcp"])


def test_not_turns_the_next_flag_round_and_no_other() -> None:
    request = asked("--from-ip", "10.0.0.1", "--not", "--verdict", "DROPPED", "--to-port", "80", "--not", "-t", "l7")
    assert list(request.whitelist) == [pb.FlowFilter(source_ip=["10.0.0.1"], destination_port=["80"])]
    assert list(request.blacklist) == [pb.FlowFilter(verdict=[pb.DROPPED], event_type=[pb.EventTypeFilter(type=129)])]
    assert "followed by no flag" in refused("--verdict", "DROPPED", "--not")
    with pytest.raises(SystemExit):
        asked("--not", "--not", "--verdict", "DROPPED")


def test_a_namespace_is_of_the_pods_and_services_that_name_none() -> None:
    left, right = asked("-n", "empire").whitelist
    assert (left, right) == (pb.FlowFilter(source_pod=["empire/"]), pb.FlowFilter(destination_pod=["empire/"]))
    (only,) = asked("--from-namespace", "a", "--from-namespace", "b", "--from-pod", "x", "--to-service", "s").whitelist
    assert only == pb.FlowFilter(source_pod=["a/x", "b/x"], destination_service=["s"])
    left, right = asked("-A").whitelist
    assert (left, right) == (pb.FlowFilter(source_pod=["/"]), pb.FlowFilter(destination_pod=["/"]))
    assert "b/x is not of the namespace a" in refused("--from-namespace", "a", "--from-pod", "b/x")


@pytest.mark.parametrize(
    "flags",
    [
        ("--pod", "a", "--from-pod", "b"),
        ("--ip", "10.0.0.1", "--namespace", "b"),
        ("--to-fqdn", "a", "--to-ip", "10.0.0.1"),
        ("--port", "1", "--to-port", "2"),
        ("--encrypted", "--unencrypted"),
        ("--verdict", "PERHAPS"),
        ("--identity", "x"),
        ("--type", "nothing"),
        ("--type", "trace:nowhere"),
        ("--tcp-flags", "SYN,BAD"),
        ("--traffic-direction", "up"),
        ("--pods", "a"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_met(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        asked(*flags)
    assert ended.value.code == 2 and flags[0] in capsys.readouterr().err + "--verdict --identity --type --tcp-flags"


def test_what_does_not_go_together_is_refused() -> None:
    assert "--first and --last" in refused("--first", "1", "--last", "1")
    assert "--first and --follow" in refused("--first", "1", "-f")
    assert "-o json" in refused("--field-mask", "uuid")
    assert "is neither a time ago" in refused("--since", "yesterday")
    assert "is not a FlowFilter" in refused("--allowlist", '{"nothing": 1}')


def test_filters_as_json_come_beside_the_flags() -> None:
    request = asked("--verdict", "DROPPED", "--allowlist", '{"source_port": ["1"]}', "--denylist", '{"reply": [true]}')
    assert [each.source_port for each in request.whitelist] == [[], ["1"]] and request.blacklist[0].reply == [True]


def test_types_have_sub_types() -> None:
    found = asked("-t", "trace:to-stack", "-t", "drop", "-t", "1:133").whitelist[0].event_type
    assert [(each.type, each.match_sub_type, each.sub_type) for each in found] == [
        (4, True, 3), (1, False, 0), (1, True, 133),
    ]  # fmt: skip


def test_every_flag_is_a_filter_that_the_observer_takes() -> None:
    """But for those by which nothing can be found: they are refused by name, never passed over."""
    flags = [(f"--{side}{name}", VALUES.get(name, "a")) for name in ENDS for side in ("", "from-", "to-")]
    flags += [(f"--{name}", VALUES.get(name, "a")) for name in WHOLE]
    for flag, value in flags:
        value = "10.0.0.1" if flag.endswith("ip") else value
        compile_filters(asked(flag, value).whitelist)
    for flag in SWITCHES:
        compile_filters(asked(f"--{flag}").whitelist)


@pytest.mark.parametrize(
    ("text", "seconds_ago"),
    [("30s", 30), ("1h43m", 6180), ("2d", 172800), ("500ms", 0.5), ("1.5m", 90)],
)
def test_a_time_ago(text: str, seconds_ago: float) -> None:
    assert moment(text, NOW) == int((NOW - seconds_ago) * 1e9)


@pytest.mark.parametrize(
    "text",
    ["2027-01-15T08:00:00Z", "2027-01-15T09:00:00+01:00", "2027-01-15T08:00:00.000000Z", "2027-01-15T08:00Z",
     "Fri, 15 Jan 2027 08:00:00 +0000"],
)  # fmt: skip
def test_a_moment(text: str) -> None:
    assert moment(text, 0.0) == int(NOW) * 10**9
    assert moment("2027-01-15", 0.0) == (int(NOW) - 8 * 3600) * 10**9


@given(st.text(max_size=20))
def test_any_text_is_a_moment_or_is_refused(text: str) -> None:
    try:
        found = moment(text, NOW)
    except Wrong:
        return
    assert 0 <= found < 1 << 70
