"""Records get names; a flow on the wire says what the record said."""

from __future__ import annotations

from dataclasses import replace

from bus.messages.identity import AddressIdentity, Identity
from services.hubble import records
from services.hubble.api import flow_pb2 as pb
from services.hubble.flow import namespaces
from services.hubble.joiner import Joiner
from services.hubble.names import Party, PolicyName, ServiceName, Workload
from tests.unit.hubble.made import PLACE, SERVER, flow, names, record


def test_flows_are_numbered_on_over_batches_and_bear_the_time_since_the_epoch() -> None:
    joiner = Joiner(names(), PLACE)
    flows = joiner.join([record(at=1), record(at=2)], 1000) + joiner.join([record(at=3)], 2000)
    assert [(each.number, each.time_ns) for each in flows] == [(0, 1001), (1, 1002), (2, 2003)]


def test_a_policy_that_nobody_has_named_is_asked_for_once_and_named_from_then_on() -> None:
    joiner = Joiner(heard := names(), PLACE)
    seen = record(policy=7, cookie=9, direction=1)
    (before,) = joiner.join([seen], 0)
    assert before.policies == () and joiner.unnamed == {(7, 9, 1)}
    heard.decide((7, 9, 1), (PolicyName.of("CiliumNetworkPolicy/default/rule1"),))
    joiner.unnamed.clear()
    (after,) = joiner.join([seen], 0)
    assert after.policies == (PolicyName("CiliumNetworkPolicy", "default", "rule1"),) and not joiner.unnamed


def test_a_flow_keeps_who_was_there_when_it_was_seen() -> None:
    joiner = Joiner(heard := names(), PLACE)
    heard.put("", Identity(number=300, labels={"k8s:app": "web"}))
    heard.put("", AddressIdentity(address="10.0.1.1", identity=300, node="n", node_address="192.0.2.1", pod="a/old"))
    (before,) = joiner.join([record()], 0)
    heard.put("", AddressIdentity(address="10.0.1.1", identity=300, node="n", node_address="192.0.2.1", pod="a/new"))
    (after,) = joiner.join([record()], 0)
    assert (before.source.pod, after.source.pod) == ("old", "new")
    assert namespaces([before, after]) == {"a"}


def test_an_allowed_connection_on_the_wire() -> None:
    found = flow(
        5,
        time_ns=1_700_000_000_000_000_123,
        destination=Party(2000, "empire", "d-1", ("k8s:a=b",), Workload("d", "Deployment"), 17, "node1"),
        destination_service=ServiceName("empire", "d"),
        policies=(PolicyName("CiliumNetworkPolicy", "empire", "rule1"),),
        seen=record(direction=0),
    ).message()
    assert (found.time.seconds, found.time.nanos) == (1_700_000_000, 123)
    assert found.verdict == pb.FORWARDED and found.Type == pb.L3_L4 and found.traffic_direction == pb.INGRESS
    assert (found.event_type.type, found.event_type.sub_type) == (5, 0)
    assert found.HasField("is_reply") and not found.is_reply.value
    assert (found.IP.source, found.IP.destination, found.IP.ipVersion) == ("10.0.1.1", "10.0.2.2", pb.IPv4)
    assert (found.l4.TCP.source_port, found.l4.TCP.destination_port) == (40000, 80)
    assert found.destination == pb.Endpoint(
        ID=17,
        identity=2000,
        cluster_name="default",
        namespace="empire",
        labels=["k8s:a=b"],
        pod_name="d-1",
        workloads=[pb.Workload(name="d", kind="Deployment")],
    )
    assert (found.destination_service.namespace, found.destination_service.name) == ("empire", "d")
    assert [each.name for each in found.ingress_allowed_by] == ["rule1"] and not found.ingress_denied_by
    assert found.node_name == "node1" and list(found.node_labels) == ["kubernetes.io/arch=amd64", "zone=a"]


def test_a_drop_on_the_wire_says_why_where_and_by_which_policy() -> None:
    policies = (PolicyName("CiliumNetworkPolicy", "empire", "rule1"),)
    found = flow(policies=policies, seen=record(type_=records.DROP, reason=133, direction=1, line=42, file=6)).message()
    assert found.verdict == pb.DROPPED and found.drop_reason_desc == pb.POLICY_DENIED and found.drop_reason == 133
    assert (found.event_type.type, found.event_type.sub_type) == (1, 133) and not found.HasField("is_reply")
    assert (found.file.name, found.file.line) == ("policy.h", 42)
    assert [each.name for each in found.egress_denied_by] == ["rule1"] and not found.egress_allowed_by


def test_a_drop_that_no_policy_decided_names_none() -> None:
    policies = (PolicyName("CiliumNetworkPolicy", "empire", "rule1"),)
    found = flow(policies=policies, seen=record(type_=records.DROP, reason=132)).message()
    assert not found.ingress_denied_by and found.drop_reason_desc == pb.INVALID_SOURCE_IP


def test_a_reason_that_the_public_enum_does_not_have_travels_as_its_number() -> None:
    found = pb.Flow.FromString(flow(seen=record(type_=records.DROP, reason=250)).message().SerializeToString())
    assert found.drop_reason_desc == 250


def test_every_protocol_has_its_place() -> None:
    assert flow(seen=record(protocol=17)).message().l4.UDP.destination_port == 80
    assert flow(seen=record(protocol=132)).message().l4.SCTP.source_port == 40000
    ping = flow(seen=record(protocol=1, destination_port=8)).message()
    assert ping.l4.ICMPv4.type == 8 and ping.Summary == "ICMPv4 EchoRequest"
    six = flow(seen=record(source="fd00::1", destination="fd00::2", protocol=58, destination_port=128)).message()
    assert six.l4.ICMPv6.type == 128 and six.IP.ipVersion == pb.IPv6 and six.IP.source == "fd00::1"
    assert flow(seen=record(protocol=47)).message().l4.WhichOneof("protocol") is None


def test_each_flow_of_each_start_has_a_uuid_of_its_own() -> None:
    found = [flow(each).uuid for each in range(100)]
    assert len(set(found)) == 100 and all(each[14] == "8" and each[19] in "89ab" for each in found)
    assert flow(3).uuid == flow(3).message().uuid


def test_an_end_that_is_no_pod_has_no_cluster() -> None:
    found = flow(source=Party(2, labels=("reserved:world",)), destination=SERVER).message()
    assert found.source.cluster_name == "" and list(found.source.labels) == ["reserved:world"]


def test_a_connection_that_no_policy_was_asked_about_is_a_trace_that_says_where_to() -> None:
    def seen(to: Party, *, tunnel: bool = False) -> pb.Flow:
        place = replace(PLACE, is_tunnel=tunnel)
        return flow(destination=to, place=place, seen=record(type_=records.TRACE, direction=1)).message()

    here, there, host, world = Party(1, pod="a", node="node1"), Party(9, pod="b", node="node2"), Party(1), Party(2)
    told = [
        (each.event_type.sub_type, each.trace_observation_point)
        for each in (seen(here), seen(there), seen(there, tunnel=True), seen(host), seen(world, tunnel=True))
    ]
    points = [(0, pb.TO_ENDPOINT), (11, pb.TO_NETWORK), (4, pb.TO_OVERLAY), (2, pb.TO_HOST), (11, pb.TO_NETWORK)]
    assert told == points
    one = seen(there)
    assert (one.event_type.type, one.verdict, one.trace_reason) == (4, pb.FORWARDED, pb.NEW)
    assert one.HasField("is_reply") and not one.is_reply.value and one.traffic_direction == pb.EGRESS
    assert not flow().message().trace_observation_point
