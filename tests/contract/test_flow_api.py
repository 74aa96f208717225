"""The Hubble API's numbers are those that clients know (that its Python is current: test_protos.py)."""

from __future__ import annotations

from services.hubble.api import flow_pb2
from services.hubble.filters import FIELDS


def test_a_flow_reads_from_the_bytes_that_others_write() -> None:
    """Numbers as the public flow API has them; 21002 and 150000 are far from the rest and easily misspelt."""
    numbers = {field.name: field.number for field in flow_pb2.Flow.DESCRIPTOR.fields}
    for name, number in {
        "time": 1,
        "verdict": 2,
        "IP": 5,
        "l4": 6,
        "source": 8,
        "destination": 9,
        "Type": 10,
        "node_name": 11,
        "l7": 15,
        "event_type": 19,
        "destination_service": 21,
        "traffic_direction": 22,
        "drop_reason_desc": 25,
        "is_reply": 26,
        "uuid": 34,
        "Summary": 100000,
        "extensions": 150000,
        "egress_allowed_by": 21001,
        "ingress_allowed_by": 21002,
        "egress_denied_by": 21004,
        "ingress_denied_by": 21005,
        "policy_log": 21006,
        "aggregate": 21007,
    }.items():
        assert numbers[name] == number
    raw = bytes.fromhex("0a0308e80710022a080a02313012023131")
    found = flow_pb2.Flow.FromString(raw)
    assert found.time.seconds == 1000 and found.verdict == flow_pb2.DROPPED
    assert (found.IP.source, found.IP.destination) == ("10", "11")


def test_every_field_of_a_filter_is_filtered_by() -> None:
    assert set(FIELDS) == {field.name for field in flow_pb2.FlowFilter.DESCRIPTOR.fields} - {"experimental"}
