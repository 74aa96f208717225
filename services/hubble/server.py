"""The Hubble API of one node: Observer and Peer.

A client that reads too slowly misses flows, and is told how many; it holds nobody else up. What the kernel or the
observer lost while a client follows is told too, once a second at most.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from services.hubble import asked
from services.hubble.api import flow_pb2 as pb
from services.hubble.api import observer_pb2 as api
from services.hubble.api import peer_pb2, relay_pb2
from services.hubble.flow import Flow, timestamp
from services.hubble.kept import Kept, Timed
from services.hubble.observed import AgentEvent, Observed
from services.hubble.peers import Peer, changes

BATCH = 256  # flows between two looks at losses
LOSSES_SECONDS = 1.0  # between two words on losses to one client
WAIT_SECONDS_MAX = 3600.0  # timers do not take any number that a client sends
STREAMS_MAX = 128  # clients that follow or read at a time

T = TypeVar("T", bound=Timed)
R = TypeVar("R")
Handle = Callable[["Stream[Any, Any]"], Awaitable[None]]


def routes(service: str, **methods: tuple[Handle, Cardinality, type[Any], type[Any]]) -> dict[str, Handler]:
    """What grpclib serves: each method by its path."""
    return {f"/{service}/{name}": Handler(*each) for name, each in methods.items()}


async def received(stream: Stream[R, Any]) -> R:
    """The one message that the client sends."""
    request = await stream.recv_message()
    if request is None:
        raise GRPCError(Status.INVALID_ARGUMENT, "the call ends before its request")
    return request


class ObserverServer:
    """observer.Observer over what one node has observed. `now`: seconds since the epoch."""

    def __init__(self, observed: Observed, *, address: str = "", now: Callable[[], float] = time.time) -> None:
        self._observed = observed
        self._address = address
        self._now = now
        self._streams = 0

    def __mapping__(self) -> dict[str, Handler]:
        one, many = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        return routes(
            "observer.Observer",
            GetFlows=(self.get_flows, many, api.GetFlowsRequest, api.GetFlowsResponse),
            GetAgentEvents=(self.get_agent_events, many, api.GetAgentEventsRequest, api.GetAgentEventsResponse),
            GetDebugEvents=(self.get_debug_events, many, api.GetDebugEventsRequest, api.GetDebugEventsResponse),
            GetNodes=(self.get_nodes, one, api.GetNodesRequest, api.GetNodesResponse),
            GetNamespaces=(self.get_namespaces, one, api.GetNamespacesRequest, api.GetNamespacesResponse),
            ServerStatus=(self.server_status, one, api.ServerStatusRequest, api.ServerStatusResponse),
        )

    async def get_flows(self, stream: Stream[api.GetFlowsRequest, api.GetFlowsResponse]) -> None:
        request = await received(stream)
        try:
            span, matches, masked = asked.span(request), asked.matching(request), asked.masked(request)
        except asked.BadRequest as problem:
            raise GRPCError(Status.INVALID_ARGUMENT, str(problem)) from None
        node = self._observed.place.node

        def response(flow: Flow) -> api.GetFlowsResponse:
            return api.GetFlowsResponse(flow=masked(flow.message()), node_name=node, time=timestamp(flow.time_ns))

        async with self._place_for_one():
            await stream.send_initial_metadata()  # a client, or a relay, knows now that it is heard
            async for answer in self._answers(self._observed.flows, span, matches, response, self._lost):
                await stream.send_message(answer)

    async def get_agent_events(self, stream: Stream[api.GetAgentEventsRequest, api.GetAgentEventsResponse]) -> None:
        request = await received(stream)
        span = self._span(request)
        node = self._observed.place.node

        def response(event: AgentEvent) -> api.GetAgentEventsResponse:
            return api.GetAgentEventsResponse(agent_event=event.event, node_name=node, time=timestamp(event.time_ns))

        async with self._place_for_one():
            async for answer in self._answers(self._observed.events, span, _any, response, None):
                await stream.send_message(answer)

    async def get_debug_events(self, stream: Stream[api.GetDebugEventsRequest, api.GetDebugEventsResponse]) -> None:
        """There are none; who follows waits, as for events that may come."""
        request = await received(stream)
        span = self._span(request)
        async with self._place_for_one():
            while span.follow and self._now() * 1e9 < span.until_ns:
                await self._observed.pulse.wait(self._left(span))

    async def get_nodes(self, stream: Stream[api.GetNodesRequest, api.GetNodesResponse]) -> None:
        await received(stream)
        status, place = self._status(), self._observed.place
        node = api.Node(
            name=place.node,
            version=place.version,
            address=self._address,
            state=relay_pb2.NODE_CONNECTED,
            uptime_ns=status.uptime_ns,
            num_flows=status.num_flows,
            max_flows=status.max_flows,
            seen_flows=status.seen_flows,
        )
        await stream.send_message(api.GetNodesResponse(nodes=[node]))

    async def get_namespaces(self, stream: Stream[api.GetNamespacesRequest, api.GetNamespacesResponse]) -> None:
        await received(stream)
        cluster = self._observed.place.cluster
        seen = self._observed.namespaces.seen(self._now())
        found = [api.Namespace(cluster=cluster, namespace=name) for name in seen]
        await stream.send_message(api.GetNamespacesResponse(namespaces=found))

    async def server_status(self, stream: Stream[api.ServerStatusRequest, api.ServerStatusResponse]) -> None:
        await received(stream)
        await stream.send_message(self._status())

    def _status(self) -> api.ServerStatusResponse:
        observed, now = self._observed, self._now()
        return api.ServerStatusResponse(
            num_flows=len(observed.flows),
            max_flows=observed.flows.capacity,
            seen_flows=observed.flows.seen,
            uptime_ns=max(0, int((now - observed.started) * 1e9)),
            version=observed.place.version,
            flows_rate=observed.rate.per_second(now),
        )

    def _span(self, request: asked.EventsRequest) -> asked.Span[Timed]:
        try:
            return asked.span(request)
        except asked.BadRequest as problem:
            raise GRPCError(Status.INVALID_ARGUMENT, str(problem)) from None

    async def _answers(
        self,
        kept: Kept[T],
        span: asked.Span[Any],
        matches: Callable[[T], bool],
        response: Callable[[T], Any],
        lost: Callable[[pb.LostEventSource, int, int], Any] | None,
    ) -> AsyncIterator[Any]:
        """What is kept and asked for; then, for who follows, what comes. `lost` makes a word on losses, if any is."""
        position, told = kept.seen, dict(self._observed.losses.counts)
        for item in span.of(kept, matches):
            yield response(item)
        told_at = self._now()
        while span.follow:
            read = kept.read(position, BATCH)
            position = read.position
            if lost is not None and read.lost:
                yield lost(pb.HUBBLE_RING_BUFFER, read.lost, int(self._now() * 1e9))
            if lost is not None and self._now() - told_at >= LOSSES_SECONDS:
                told_at = self._now()
                for loss in self._observed.losses.since(told):
                    yield lost(loss.source, loss.count, loss.last_ns)
            for item in read.items:
                if item.time_ns > span.until_ns:
                    return
                if item.time_ns >= span.since_ns and matches(item):
                    yield response(item)
            if position == kept.seen:
                await self._observed.pulse.wait(self._left(span))
                if position == kept.seen and self._now() * 1e9 >= span.until_ns:
                    return

    def _left(self, span: asked.Span[Any]) -> float | None:
        """Seconds until nothing more is asked for, or until it is looked again; None: never."""
        left = span.until_ns / 1e9 - self._now()
        return None if span.until_ns == asked.EVER_NS else min(max(0.0, left), WAIT_SECONDS_MAX)

    def _lost(self, source: pb.LostEventSource, count: int, at_ns: int) -> api.GetFlowsResponse:
        event = pb.LostEvent(source=source, num_events_lost=count, last=timestamp(at_ns))
        return api.GetFlowsResponse(lost_events=event, node_name=self._observed.place.node, time=timestamp(at_ns))

    @asynccontextmanager
    async def _place_for_one(self) -> AsyncIterator[None]:
        if self._streams >= STREAMS_MAX:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, f"{STREAMS_MAX} clients read already; try again later")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


class PeerServer:
    """peer.Peer: the nodes that `peers` gives, told anew when `Observed.network` beats."""

    def __init__(self, observed: Observed, peers: Callable[[], dict[str, Peer]]) -> None:
        self._observed = observed
        self._peers = peers

    def __mapping__(self) -> dict[str, Handler]:
        types = peer_pb2.NotifyRequest, peer_pb2.ChangeNotification
        return routes("peer.Peer", Notify=(self.notify, Cardinality.UNARY_STREAM, *types))

    async def notify(self, stream: Stream[peer_pb2.NotifyRequest, peer_pb2.ChangeNotification]) -> None:
        await received(stream)
        told: dict[str, Peer] = {}
        while True:
            now = dict(self._peers())
            await _send_all(stream, changes(told, now))
            told = now
            if told == self._peers():
                await self._observed.network.wait()


async def _send_all(stream: Stream[Any, Any], messages: Iterable[Any]) -> None:
    for message in messages:
        await stream.send_message(message)


def _any(item: object) -> bool:
    return True
