"""The Hubble API of one node, over a real socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from grpclib.client import Channel, UnaryStreamMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from bus.messages.resources import Node
from services.hubble import records, server
from services.hubble.api import flow_pb2 as pb
from services.hubble.api import observer_pb2 as api
from services.hubble.api import peer_pb2, relay_pb2
from services.hubble.flow import timestamp
from services.hubble.peers import Peer, peers
from services.hubble.server import PeerServer
from tests.unit.hubble.served import STARTED, Clock, ask, flows, following, observed, observing, see, served, times


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hubble.sock"


async def test_the_last_the_first_all_and_a_span_of_time(path: Path) -> None:
    observer = observed()
    see(observer, *range(100, 110))
    async with observing(path, observer) as client:
        assert times(await flows(client, number=2)) == [108, 109]
        assert times(await flows(client, number=2, first=True)) == [103, 104]
        assert times(await flows(client)) == list(range(103, 110))
        assert times(await flows(client, since=timestamp(105), until=timestamp(107))) == [105, 106, 107]
        assert times(await flows(client, number=1, since=timestamp(105), until=timestamp(107))) == [107]


async def test_only_what_filters_let_through(path: Path) -> None:
    observer = observed()
    see(observer, 1, 2)
    see(observer, 3, type_=records.DROP, reason=133)
    async with observing(path, observer) as client:
        assert times(await flows(client, whitelist=[pb.FlowFilter(verdict=[pb.DROPPED])])) == [3]
        assert times(await flows(client, number=1, blacklist=[pb.FlowFilter(verdict=[pb.DROPPED])])) == [2]


async def test_a_field_mask_leaves_what_it_names(path: Path) -> None:
    observer = observed()
    see(observer, 5)
    async with observing(path, observer) as client:
        (answer,) = await flows(client, field_mask=FieldMask(paths=["verdict", "IP.source"]))
    assert answer.flow == pb.Flow(verdict=pb.FORWARDED, IP=pb.IP(source="10.0.1.1"))
    assert answer.node_name == "node1" and answer.time.nanos == 5


BAD: list[tuple[dict[str, Any], str]] = [
    ({"field_mask": FieldMask(paths=["verdict", "nothing"])}, "a flow has no field 'nothing'"),
    ({"field_mask": FieldMask(paths=["source.labels.key"])}, "no field 'source.labels.key'"),
    ({"field_mask": FieldMask(paths=["verdict.of"])}, "no field 'verdict.of'"),
    ({"whitelist": [pb.FlowFilter(source_ip=["x"])]}, "source_ip: 'x'"),
    ({"first": True, "follow": True}, "exclude each other"),
    ({"since": timestamp(2), "until": timestamp(1)}, "until is before since"),
]


@pytest.mark.parametrize(("request_", "why"), BAD, ids=[why for _, why in BAD])
async def test_what_cannot_be_answered_is_refused_with_the_reason(
    path: Path, request_: dict[str, Any], why: str
) -> None:
    async with observing(path, observed()) as client:
        with pytest.raises(GRPCError, match=why) as refused:
            await flows(client, **request_)
    assert refused.value.status is Status.INVALID_ARGUMENT


async def test_who_follows_gets_what_comes_and_nothing_twice(path: Path) -> None:
    observer = observed()
    see(observer, 1, 2)
    async with (
        observing(path, observer) as client,
        following(client) as new,
        following(client, number=1) as some,
        following(client, since=timestamp(1)) as all_,
    ):
        see(observer, 3)
        see(observer, 4)
        assert times([await new.next() for _ in range(2)]) == [3, 4]
        assert times([await some.next() for _ in range(3)]) == [2, 3, 4]
        assert times([await all_.next() for _ in range(4)]) == [1, 2, 3, 4]


async def test_following_ends_with_the_first_flow_after_the_end(path: Path) -> None:
    observer = observed()
    async with (
        observing(path, observer) as client,
        following(client, until=timestamp(int(STARTED * 1e9) + 10**12)) as some,
    ):
        see(observer, 3, int(STARTED * 1e9) + 2 * 10**12)
        assert times([await some.next()]) == [3] and await some.ended()


async def test_following_ends_when_its_time_is_over(path: Path) -> None:
    async with observing(path, observed()) as client, following(client, until=timestamp(1)) as some:
        assert await some.ended()


async def test_an_end_that_no_timer_takes_is_waited_for(path: Path) -> None:
    """The year 9999, as far as a timestamp goes."""
    observer = observed()
    async with observing(path, observer) as client, following(client, until=Timestamp(seconds=253402300799)) as some:
        see(observer, 3)
        assert times([await some.next()]) == [3]
        see(observer, 4)
        assert times([await some.next()]) == [4]


async def test_who_reads_too_slowly_is_told_how_many_were_missed(path: Path) -> None:
    """The ring holds 7: of 20 that came at once the reader gets the last 7 and is told of 13."""
    observer = observed()
    async with observing(path, observer) as client, following(client) as slow:
        see(observer, *range(20))
        lost = (await slow.next()).lost_events
        assert (lost.source, lost.num_events_lost) == (pb.HUBBLE_RING_BUFFER, 13)
        assert times([await slow.next() for _ in range(7)]) == list(range(13, 20))


async def test_who_follows_is_told_once_a_second_what_the_kernel_lost_since(path: Path) -> None:
    observer, clock = observed(), Clock()
    observer.lose(pb.PERF_EVENT_RING_BUFFER, 100, clock.now)
    async with observing(path, observer, clock) as client, following(client) as some:
        observer.lose(pb.PERF_EVENT_RING_BUFFER, 5, clock.now)
        see(observer, 1)
        assert times([await some.next()]) == [1]
        clock.now += server.LOSSES_SECONDS
        observer.lose(pb.PERF_EVENT_RING_BUFFER, 2, clock.now)
        lost = (await some.next()).lost_events
        assert (lost.source, lost.num_events_lost) == (pb.PERF_EVENT_RING_BUFFER, 7)


async def test_status_nodes_and_namespaces(path: Path) -> None:
    observer, clock = observed(), Clock()
    see(observer, *range(10), now=clock.now)
    observer.namespaces.add({"default"}, clock.now)
    clock.now += 20
    async with observing(path, observer, clock) as client:
        status = await ask(client, "ServerStatus", api.ServerStatusRequest(), api.ServerStatusResponse)
        nodes = await ask(client, "GetNodes", api.GetNodesRequest(), api.GetNodesResponse)
        spaces = await ask(client, "GetNamespaces", api.GetNamespacesRequest(), api.GetNamespacesResponse)
    assert (status.num_flows, status.max_flows, status.seen_flows) == (7, 7, 10)
    assert (status.uptime_ns, status.version, status.flows_rate) == (20 * 10**9, "1.2.3", 0.5)
    assert not status.HasField("num_connected_nodes"), "a node has no nodes behind it"
    assert [(each.name, each.state, each.seen_flows) for each in nodes.nodes] == [
        ("node1", relay_pb2.NODE_CONNECTED, 10)
    ]
    assert [(each.cluster, each.namespace) for each in spaces.namespaces] == [("default", "default")]


async def test_agent_events_are_kept_and_followed_and_there_are_no_debug_events(path: Path) -> None:
    observer = observed()
    observer.happened(pb.AgentEvent(type=pb.AGENT_STARTED), STARTED)
    observer.happened(pb.AgentEvent(type=pb.POLICY_UPDATED), STARTED + 1)
    async with observing(path, observer) as client:
        events = UnaryStreamMethod(
            client, "/observer.Observer/GetAgentEvents", api.GetAgentEventsRequest, api.GetAgentEventsResponse
        )
        assert [each.agent_event.type for each in await events(api.GetAgentEventsRequest(number=1))] == [
            pb.POLICY_UPDATED
        ]
        async with events.open() as stream:
            await stream.send_message(api.GetAgentEventsRequest(follow=True, number=1), end=True)
            assert (await stream.recv_message()) is not None
            observer.happened(pb.AgentEvent(type=pb.POLICY_DELETED), STARTED + 2)
            following_one = await stream.recv_message()
            assert following_one is not None and following_one.agent_event.type == pb.POLICY_DELETED
            await stream.cancel()
        debug = UnaryStreamMethod(
            client, "/observer.Observer/GetDebugEvents", api.GetDebugEventsRequest, api.GetDebugEventsResponse
        )
        assert list(await debug(api.GetDebugEventsRequest())) == []


async def test_more_clients_than_there_is_room_for_are_told_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STREAMS_MAX", 1)
    async with observing(path, observed()) as client, following(client):
        with pytest.raises(GRPCError) as refused:
            await flows(client)
        assert refused.value.status is Status.RESOURCE_EXHAUSTED
    async with observing(path, observer := observed()) as client:
        see(observer, 1)
        async with following(client):
            pass
        await flows_when_there_is_room(client, [1])


async def flows_when_there_is_room(client: Channel, wanted: list[int]) -> None:
    """The place is free when the server has noticed that its client is gone."""
    while True:
        try:
            found = times(await flows(client))
        except GRPCError:
            continue
        assert found == wanted
        return


async def test_relays_are_told_of_nodes_that_come_change_and_go(path: Path) -> None:
    observer = observed()

    def here() -> dict[str, Peer]:
        return peers(observer.names.nodes, cluster="west", tls=True)

    def node(name: str, address: str) -> None:
        observer.names.put("", Node(name=name, addresses=[address]))

    node("node1", "192.0.2.1")
    async with served(path, PeerServer(observer, here)):
        channel = Channel(path=str(path))
        notify = UnaryStreamMethod(channel, "/peer.Peer/Notify", peer_pb2.NotifyRequest, peer_pb2.ChangeNotification)
        async with notify.open() as stream:
            await stream.send_message(peer_pb2.NotifyRequest(), end=True)
            first = await stream.recv_message()
            assert first is not None and first.type == peer_pb2.PEER_ADDED
            assert (first.name, first.address) == ("west/node1", "192.0.2.1:4244")
            assert first.tls.server_name == "node1.west.hubble-grpc.cilium.io"
            node("node1", "fd00::1")
            node("node2", "192.0.2.2")
            observer.network.beat()
            told = [await stream.recv_message() for _ in range(2)]
            assert [(each.name, each.address, each.type) for each in told if each] == [
                ("west/node1", "[fd00::1]:4244", peer_pb2.PEER_UPDATED),
                ("west/node2", "192.0.2.2:4244", peer_pb2.PEER_ADDED),
            ]
            observer.names.delete("state.resources.node.node2")
            observer.network.beat()
            gone = await stream.recv_message()
            assert gone is not None and (gone.name, gone.type) == ("west/node2", peer_pb2.PEER_DELETED)
            await stream.cancel()
        channel.close()
