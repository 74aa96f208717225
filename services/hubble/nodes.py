"""The observers of all nodes, as a relay asks them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, TypeVar

from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.exceptions import GRPCError, StreamTerminatedError

from services.hubble.api import observer_pb2 as api
from services.hubble.observed import Pulse
from services.hubble.peers import Peer

ANSWER_SECONDS = 5.0  # until a node must have taken a call, and between two answers about what is past
STATUS_SECONDS = 2.0  # for one answer

FAILURES = (GRPCError, StreamTerminatedError, OSError, TimeoutError)
"""A node does not answer, or answers that it cannot."""

A = TypeVar("A")


class Node:
    def __init__(self, peer: Peer, channel: Channel) -> None:
        self.peer = peer
        self._channel = channel

    @property
    def name(self) -> str:
        return self.peer.name

    async def ask(self, method: str, request: Any, reply: type[A]) -> A | None:
        """One answer. None: there is none."""
        call = UnaryUnaryMethod[Any, A](self._channel, f"/observer.Observer/{method}", type(request), reply)
        try:
            return await call(request, timeout=STATUS_SECONDS)
        except FAILURES:
            return None

    async def flows(
        self, request: api.GetFlowsRequest, taken: Callable[[], None]
    ) -> AsyncGenerator[api.GetFlowsResponse, None]:
        """Its answers; `taken` is called when it has taken the call. Raises: one of FAILURES."""
        path = "/observer.Observer/GetFlows"
        call = UnaryStreamMethod(self._channel, path, api.GetFlowsRequest, api.GetFlowsResponse)
        async with call.open() as stream:
            async with asyncio.timeout(ANSWER_SECONDS):
                await stream.send_message(request, end=True)
                await stream.recv_initial_metadata()
            taken()
            while True:
                async with asyncio.timeout(None if request.follow else ANSWER_SECONDS):
                    answer = await stream.recv_message()
                if answer is None:
                    return
                yield answer

    def close(self) -> None:
        self._channel.close()


class Nodes:
    """Those there are now. `connect` makes a channel: it connects when it is used, and again when it was cut."""

    def __init__(self, connect: Callable[[Peer], Channel]) -> None:
        self._connect = connect
        self._nodes: dict[str, Node] = {}
        self.changed = Pulse()

    def become(self, peers: Mapping[str, Peer]) -> None:
        """These are all."""
        for name in [name for name, node in self._nodes.items() if peers.get(name) != node.peer]:
            self._nodes.pop(name).close()
        for name in peers.keys() - self._nodes.keys():
            self._nodes[name] = Node(peers[name], self._connect(peers[name]))
        self.changed.beat()

    def all(self) -> list[Node]:
        """By name."""
        return [self._nodes[name] for name in sorted(self._nodes)]

    def has(self, node: Node) -> bool:
        return self._nodes.get(node.name) is node

    def close(self) -> None:
        self.become({})
