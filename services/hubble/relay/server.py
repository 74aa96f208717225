"""The Hubble API of all nodes: asks each node's observer, and puts the answers together.

A node that does not answer is named to the client, and its flows are missing; the others' come.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from services.hubble import asked
from services.hubble.api import observer_pb2 as api
from services.hubble.api import relay_pb2
from services.hubble.gather import Gathering, unavailable
from services.hubble.nodes import Node, Nodes
from services.hubble.server import received, routes

A = TypeVar("A")

UNAVAILABLE_NAMED = 10  # in a status; how many there are is said beside


class RelayServer:
    """observer.Observer over `nodes`."""

    def __init__(self, nodes: Nodes, version: str = "") -> None:
        self._nodes = nodes
        self._version = version

    def __mapping__(self) -> dict[str, Handler]:
        one, many = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        return routes(
            "observer.Observer",
            GetFlows=(self.get_flows, many, api.GetFlowsRequest, api.GetFlowsResponse),
            GetAgentEvents=(self.of_a_node, many, api.GetAgentEventsRequest, api.GetAgentEventsResponse),
            GetDebugEvents=(self.of_a_node, many, api.GetDebugEventsRequest, api.GetDebugEventsResponse),
            GetNodes=(self.get_nodes, one, api.GetNodesRequest, api.GetNodesResponse),
            GetNamespaces=(self.get_namespaces, one, api.GetNamespacesRequest, api.GetNamespacesResponse),
            ServerStatus=(self.server_status, one, api.ServerStatusRequest, api.ServerStatusResponse),
        )

    async def get_flows(self, stream: Stream[api.GetFlowsRequest, api.GetFlowsResponse]) -> None:
        request = await received(stream)
        try:
            asked.span(request)
            asked.matching(request)
            masked = asked.masked(request)
        except asked.BadRequest as problem:
            raise GRPCError(Status.INVALID_ARGUMENT, str(problem)) from None
        await stream.send_initial_metadata()
        await Gathering(self._nodes, request, masked, stream.send_message).run()

    async def of_a_node(self, stream: Stream[Any, Any]) -> None:
        await received(stream)
        raise GRPCError(Status.UNIMPLEMENTED, "a relay has flows only; ask the node's own socket for its events")

    async def get_nodes(self, stream: Stream[api.GetNodesRequest, api.GetNodesResponse]) -> None:
        await received(stream)
        asked_nodes, answers = await self._ask_all("ServerStatus", api.ServerStatusRequest(), api.ServerStatusResponse)
        found = []
        for node, status in zip(asked_nodes, answers, strict=True):
            state = relay_pb2.NODE_CONNECTED if status else relay_pb2.NODE_UNAVAILABLE
            each = api.Node(name=node.name, address=node.peer.address, state=state)
            if node.peer.server_name:
                each.tls.enabled, each.tls.server_name = True, node.peer.server_name
            if status is not None:
                each.version, each.uptime_ns = status.version, status.uptime_ns
                each.num_flows, each.max_flows, each.seen_flows = status.num_flows, status.max_flows, status.seen_flows
            found.append(each)
        await stream.send_message(api.GetNodesResponse(nodes=found))

    async def get_namespaces(self, stream: Stream[api.GetNamespacesRequest, api.GetNamespacesResponse]) -> None:
        await received(stream)
        _, answers = await self._ask_all("GetNamespaces", api.GetNamespacesRequest(), api.GetNamespacesResponse)
        seen = {(each.cluster, each.namespace) for answer in answers if answer for each in answer.namespaces}
        found = [api.Namespace(cluster=cluster, namespace=namespace) for cluster, namespace in sorted(seen)]
        await stream.send_message(api.GetNamespacesResponse(namespaces=found))

    async def server_status(self, stream: Stream[api.ServerStatusRequest, api.ServerStatusResponse]) -> None:
        await received(stream)
        asked_nodes, answers = await self._ask_all("ServerStatus", api.ServerStatusRequest(), api.ServerStatusResponse)
        known = [each for each in answers if each is not None]
        lacking = unavailable(asked_nodes, answers)
        found = api.ServerStatusResponse(
            num_flows=sum(each.num_flows for each in known),
            max_flows=sum(each.max_flows for each in known),
            seen_flows=sum(each.seen_flows for each in known),
            uptime_ns=max((each.uptime_ns for each in known), default=0),
            flows_rate=sum(each.flows_rate for each in known),
            unavailable_nodes=lacking[:UNAVAILABLE_NAMED],
            version=self._version,
        )
        found.num_connected_nodes.value = len(known)
        found.num_unavailable_nodes.value = len(lacking)
        await stream.send_message(found)

    async def _ask_all(self, method: str, request: Any, reply: type[A]) -> tuple[list[Node], list[A | None]]:
        nodes = self._nodes.all()
        return nodes, list(await asyncio.gather(*(node.ask(method, request, reply) for node in nodes)))
