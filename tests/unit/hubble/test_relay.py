"""All nodes' flows in one order, whichever nodes come and go; over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import time_ns

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from services.hubble import gather
from services.hubble.api import flow_pb2 as pb
from services.hubble.api import observer_pb2 as api
from services.hubble.api import relay_pb2
from services.hubble.nodes import Nodes
from services.hubble.observed import Observed
from services.hubble.peers import Peer
from services.hubble.relay.server import RelayServer
from services.hubble.server import ObserverServer
from tests.unit.hubble.served import Clock, ask, flows, following, observed, see, served, times


class Cluster:
    """Nodes at sockets of their own; `client` asks the relay."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._up: dict[str, AsyncExitStack] = {}
        self.observers: dict[str, Observed] = {}
        self.nodes = Nodes(lambda peer: Channel(path=peer.address))
        self.client: Channel

    async def start(self, name: str, observer: Observed) -> None:
        self.observers[name] = observer
        self._up[name] = AsyncExitStack()
        path = self._directory / f"{name}.sock"
        await self._up[name].enter_async_context(served(path, ObserverServer(observer, now=Clock())))
        self.know(*self._up)

    def know(self, *names: str) -> None:
        """The relay hears that these are the nodes."""
        self.nodes.become({name: Peer(name, str(self._directory / f"{name}.sock")) for name in names})

    async def kill(self, name: str) -> None:
        await self._up.pop(name).aclose()

    async def end(self) -> None:
        self.nodes.close()
        for name in list(self._up):
            await self.kill(name)


@asynccontextmanager
async def cluster(directory: Path, *names: str) -> AsyncIterator[Cluster]:
    made = Cluster(directory)
    for token, name in enumerate(names, 1):
        await made.start(name, observed(name, token=token, capacity=1023))
    async with served(directory / "relay.sock", RelayServer(made.nodes, "1.2.3")):
        made.client = Channel(path=str(directory / "relay.sock"))
        try:
            yield made
        finally:
            made.client.close()
            await made.end()


def seen(answers: list[api.GetFlowsResponse]) -> list[tuple[str, int]]:
    return [(each.node_name, time) for each, time in zip(only(answers), times(answers), strict=True)]


def only(answers: list[api.GetFlowsResponse]) -> list[api.GetFlowsResponse]:
    return [each for each in answers if each.HasField("flow")]


async def test_what_is_past_comes_in_order_of_time_from_all_nodes(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", "b", "c") as made:
        see(made.observers["a"], 1, 4, 7)
        see(made.observers["b"], 2, 3, 9)
        assert seen(await flows(made.client)) == [("a", 1), ("b", 2), ("b", 3), ("a", 4), ("a", 7), ("b", 9)]
        assert seen(await flows(made.client, number=3)) == [("a", 4), ("a", 7), ("b", 9)]
        assert seen(await flows(made.client, number=3, first=True)) == [("a", 1), ("b", 2), ("b", 3)]


async def test_more_flows_than_may_wait_come_whole_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is read far ahead of the others waits, and goes on."""
    monkeypatch.setattr(gather, "NODE_WAITING_MAX", 3)
    async with cluster(tmp_path, "a", "b") as made:
        see(made.observers["a"], *range(100))
        see(made.observers["b"], *range(50, 300, 2))
        answers = await flows(made.client)
    assert times(answers) == sorted([*range(100), *range(50, 300, 2)])


async def test_filters_and_masks_go_to_the_nodes_and_nothing_else_comes_back(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", "b") as made:
        see(made.observers["a"], 1, source_port=1)
        see(made.observers["b"], 2, source_port=2)
        answers = await flows(
            made.client, whitelist=[pb.FlowFilter(source_port=["2"])], field_mask=FieldMask(paths=["IP.source"])
        )
    assert [each.flow for each in only(answers)] == [pb.Flow(IP=pb.IP(source="10.0.1.1"))]


async def test_a_node_that_does_not_answer_is_named_and_the_others_flows_come(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", "b") as made:
        see(made.observers["a"], 1)
        await made.kill("b")
        answers = await flows(made.client)
        status = await ask(made.client, "ServerStatus", api.ServerStatusRequest(), api.ServerStatusResponse)
        nodes = await ask(made.client, "GetNodes", api.GetNodesRequest(), api.GetNodesResponse)
    states = {
        (name, each.node_status.state_change)
        for each in answers
        if each.HasField("node_status")
        for name in each.node_status.node_names
    }
    assert seen(answers) == [("a", 1)]
    assert states == {("a", relay_pb2.NODE_CONNECTED), ("b", relay_pb2.NODE_UNAVAILABLE)}
    assert (status.num_connected_nodes.value, status.num_unavailable_nodes.value) == (1, 1)
    assert list(status.unavailable_nodes) == ["b"] and (status.num_flows, status.max_flows) == (1, 1023)
    assert [(each.name, each.state) for each in nodes.nodes] == [
        ("a", relay_pb2.NODE_CONNECTED),
        ("b", relay_pb2.NODE_UNAVAILABLE),
    ]


async def test_who_follows_gets_the_last_ones_and_then_what_comes(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", "b") as made:
        see(made.observers["a"], 1, 3)
        see(made.observers["b"], 2, 4)
        async with following(made.client, number=2, since=None) as some:
            assert seen([await some.until("flow") for _ in range(2)]) == [("a", 3), ("b", 4)]
            later = time_ns()
            see(made.observers["b"], later + 2)
            see(made.observers["a"], later + 1)
            found = {(await some.until("flow")).node_name for _ in range(2)}
            assert found == {"a", "b"}


async def test_a_node_that_dies_and_returns_goes_on_without_a_gap_or_a_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "RETRY_SECONDS", 0.01)
    async with cluster(tmp_path, "a", "b") as made, following(made.client) as some:
        began = {(await some.until("node_status")).node_name for _ in range(2)}
        assert began == {"a", "b"}
        later = time_ns()
        see(made.observers["a"], later + 1, later + 2)
        assert times([await some.until("flow") for _ in range(2)]) == [later + 1, later + 2]
        await made.kill("a")
        gone = (await some.until("node_status")).node_status
        assert (list(gone.node_names), gone.state_change) == (["a"], relay_pb2.NODE_UNAVAILABLE)
        see(made.observers["b"], later + 3)
        assert times([await some.until("flow")]) == [later + 3]
        see(made.observers["a"], later + 4)  # while nobody can ask it
        await made.start("a", made.observers["a"])
        back = (await some.until("node_status")).node_status
        assert (list(back.node_names), back.state_change) == (["a"], relay_pb2.NODE_CONNECTED)
        see(made.observers["a"], later + 5)
        assert times([await some.until("flow") for _ in range(2)]) == [later + 4, later + 5]


async def test_nodes_that_join_and_leave_the_cluster_are_told_to_who_follows(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as made, following(made.client) as some:
        assert (await some.until("node_status")).node_name == "a"
        await made.start("b", observed("b", token=9))
        joined = (await some.until("node_status")).node_status
        assert (list(joined.node_names), joined.state_change) == (["b"], relay_pb2.NODE_CONNECTED)
        see(made.observers["b"], later := time_ns())
        assert times([await some.until("flow")]) == [later]
        made.know("b")
        left = (await some.until("node_status")).node_status
        assert (list(left.node_names), left.state_change) == (["a"], relay_pb2.NODE_GONE)


async def test_an_observer_that_begins_anew_is_believed_though_its_numbers_do(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as made, following(made.client) as some:
        await some.until("node_status")
        later = time_ns()
        see(made.observers["a"], later, later + 1)
        assert times([await some.until("flow") for _ in range(2)]) == [later, later + 1]
        await made.kill("a")
        await made.start("a", again := observed("a", token=77))
        see(again, later + 2)
        assert times([await some.until("flow")]) == [later + 2]


async def test_a_request_that_no_node_could_answer_is_refused_by_the_relay(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as made:
        with pytest.raises(GRPCError, match="source_ip: 'x'") as refused:
            await flows(made.client, whitelist=[pb.FlowFilter(source_ip=["x"])])
        assert refused.value.status is Status.INVALID_ARGUMENT


async def test_namespaces_are_those_of_all_nodes_each_once(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", "b") as made:
        made.observers["a"].namespaces.add({"x", "y"}, Clock().now)
        made.observers["b"].namespaces.add({"y", "z"}, Clock().now)
        found = await ask(made.client, "GetNamespaces", api.GetNamespacesRequest(), api.GetNamespacesResponse)
    assert [each.namespace for each in found.namespaces] == ["x", "y", "z"]


async def test_as_many_as_a_number_can_be_is_all(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", "b") as made:
        see(made.observers["a"], 1, 3)
        see(made.observers["b"], 2)
        assert times(await flows(made.client, number=(1 << 64) - 1)) == [1, 2, 3]
