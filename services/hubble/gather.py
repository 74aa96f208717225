"""One client's flows of all nodes, in one order of time.

First what is past: every node's part, merged; of "the last 20" each node's last 20, of which the last 20 are told.
Then, for who follows, what comes. A node that is back goes on after the last flow that it told (`Place`): without a
gap, and without telling any twice.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from services.hubble.api import flow_pb2 as pb
from services.hubble.api import observer_pb2 as api
from services.hubble.api import relay_pb2
from services.hubble.flow import nanoseconds, timestamp
from services.hubble.merge import HOLD_SECONDS, Merge
from services.hubble.nodes import FAILURES, Node, Nodes

RETRY_SECONDS = 1.0  # until a node that failed is asked again
NODE_WAITING_MAX = 1024  # answers of one node that wait for others'; then it is not read
OVERLAP_NS = 1_000_000_000  # flows of a node are in order of time but for this much
NEVER_SECONDS = 1e9

Send = Callable[[api.GetFlowsResponse], Awaitable[None]]


@dataclass(slots=True)
class Place:
    """How far a node has told: the time and the number of its last flow, and which start of it that was of."""

    time_ns: int
    start: int = -1
    number: int = -1

    def is_new(self, flow: pb.Flow) -> bool:
        """It was not told yet; it is now. A uuid is of the start and the number, which only grows."""
        self.time_ns = max(self.time_ns, nanoseconds(flow.time))
        try:
            whole = uuid.UUID(flow.uuid).int
        except ValueError:
            return True
        start, number = whole >> 64, whole & (1 << 62) - 1
        if start == self.start and number <= self.number:
            return False
        self.start, self.number = start, number
        return True


@dataclass(slots=True)
class Waiting:
    """An answer in the merge; its node may be read on when it has left."""

    answer: api.GetFlowsResponse
    room: asyncio.Semaphore


class Gathering:
    """Args:
    masked: leaves of a flow what the client asked for; nodes are asked for what is needed here, too.
    """

    def __init__(
        self, nodes: Nodes, request: api.GetFlowsRequest, masked: Callable[[pb.Flow], pb.Flow], send: Send
    ) -> None:
        self._nodes = nodes
        self._request = api.GetFlowsRequest()
        self._request.CopyFrom(request)
        if request.field_mask.paths:
            self._request.field_mask.paths.extend({"uuid", "time"} - set(request.field_mask.paths))
        self._masked = masked if request.field_mask.paths else None
        self._send = send
        self._places: dict[str, Place] = {}
        self._words: deque[api.GetFlowsResponse] = deque()  # what goes to the client as soon as it can
        self._lacking: set[str] = set()
        self._more = asyncio.Event()
        self._began_ns = time.time_ns()

    async def run(self) -> None:
        """Until all is told; of who follows without an end, until it is cancelled."""
        if not self._request.follow or self._request.number or self._request.HasField("since"):
            await self._past()
        if self._request.follow:
            await self._present()

    # -- what is past

    async def _past(self) -> None:
        request = api.GetFlowsRequest()
        request.CopyFrom(self._request)
        request.follow = False
        merge: Merge[Waiting] = Merge(NEVER_SECONDS, waiting_max=1 << 62)
        last: deque[api.GetFlowsResponse] = deque(maxlen=min(request.number, sys.maxsize) or None)
        told = 0
        nodes = self._nodes.all()
        for node in nodes:
            merge.join(node.name)
        async with asyncio.TaskGroup() as tasks:
            readers = [
                tasks.create_task(self._read_past(node, request, merge), name=f"read {node.name}") for node in nodes
            ]
            try:
                async for answer in self._merged(merge, lambda: all(reader.done() for reader in readers)):
                    if request.number and not request.first:
                        last.append(answer)
                        continue
                    await self._tell(answer)
                    told += 1
                    if told == request.number:
                        return
            finally:
                for reader in readers:
                    reader.cancel()
        for answer in last:
            await self._tell(answer)

    async def _read_past(self, node: Node, request: api.GetFlowsRequest, merge: Merge[Waiting]) -> None:
        try:
            await self._read(node, request, merge)
        except FAILURES as problem:
            self._say(relay_pb2.NODE_UNAVAILABLE, node, problem)
        finally:
            merge.leave(node.name)
            self._more.set()

    # -- what comes

    async def _present(self) -> None:
        merge: Merge[Waiting] = Merge(HOLD_SECONDS)
        readers: dict[str, tuple[Node, asyncio.Task[None]]] = {}

        async def follow_nodes() -> None:
            while True:
                now = {node.name: node for node in self._nodes.all()}
                for name, (node, reader) in list(readers.items()):
                    if now.get(name) is not node:
                        reader.cancel()
                        del readers[name]
                        if name not in now:
                            self._say(relay_pb2.NODE_GONE, node)
                for name, node in now.items():
                    if name not in readers:
                        task = tasks.create_task(self._read_on(node, merge), name=f"follow {name}")
                        readers[name] = node, task
                await self._nodes.changed.wait()

        def is_over() -> bool:
            """Only what has an end can be: then every node says so."""
            return self._request.HasField("until") and all(reader.done() for _, reader in readers.values())

        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(follow_nodes(), name="follow nodes")
            await asyncio.sleep(0)  # let it begin
            try:
                async for answer in self._merged(merge, is_over):
                    await self._tell(answer)
            finally:
                following.cancel()
                for _, reader in readers.values():
                    reader.cancel()

    async def _read_on(self, node: Node, merge: Merge[Waiting]) -> None:
        """A node's flows from where it was, again and again."""
        place = self._places.setdefault(node.name, Place(self._began_ns + OVERLAP_NS))
        while True:
            request = api.GetFlowsRequest()
            request.CopyFrom(self._request)
            request.number = 0
            request.since.CopyFrom(timestamp(max(0, place.time_ns - OVERLAP_NS)))
            try:
                merge.join(node.name)
                await self._read(node, request, merge)
                if request.HasField("until"):
                    return
                problem: BaseException = StopAsyncIteration("it ended the call")
            except FAILURES as failure:
                problem = failure
            finally:
                merge.leave(node.name)
                self._more.set()
            if not self._nodes.has(node):  # it has left the cluster: that is told where nodes are followed
                return
            if node.name not in self._lacking:  # it is told once, until the node is back
                self._lacking.add(node.name)
                self._say(relay_pb2.NODE_UNAVAILABLE, node, problem)
            await asyncio.sleep(RETRY_SECONDS)

    # -- both

    async def _read(self, node: Node, request: api.GetFlowsRequest, merge: Merge[Waiting]) -> None:
        """Raises: one of FAILURES."""
        place = self._places.setdefault(node.name, Place(self._began_ns))
        room = asyncio.Semaphore(NODE_WAITING_MAX)
        async with aclosing(node.flows(request, partial(self._connected, node))) as answers:
            async for answer in answers:
                if not answer.HasField("flow"):
                    self._words.append(answer)
                elif place.is_new(answer.flow):
                    await room.acquire()
                    merge.put(node.name, nanoseconds(answer.flow.time), Waiting(answer, room), time.monotonic())
                self._more.set()

    async def _merged(self, merge: Merge[Waiting], is_over: Callable[[], bool]) -> AsyncIterator[api.GetFlowsResponse]:
        """Answers in their order, after the words that are due."""
        while True:
            self._more.clear()
            over = is_over()
            while self._words:
                await self._send(self._words.popleft())
            for waiting in merge.take(time.monotonic()):
                waiting.room.release()
                yield waiting.answer
            if over and not self._words and not len(merge):
                return
            await self._wait(merge.wait(time.monotonic()))

    async def _wait(self, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._more.wait()
        except TimeoutError:
            pass

    async def _tell(self, answer: api.GetFlowsResponse) -> None:
        if self._masked is not None:
            answer.flow.CopyFrom(self._masked(answer.flow))
        await self._send(answer)

    def _connected(self, node: Node) -> None:
        self._lacking.discard(node.name)
        self._say(relay_pb2.NODE_CONNECTED, node)

    def _say(self, state: relay_pb2.NodeState, node: Node, problem: BaseException | None = None) -> None:
        event = relay_pb2.NodeStatusEvent(state_change=state, node_names=[node.name], message=words(problem))
        self._words.append(api.GetFlowsResponse(node_status=event, node_name=node.name, time=timestamp(time.time_ns())))
        self._more.set()


def words(problem: BaseException | None) -> str:
    """Why, for people."""
    if problem is None:
        return ""
    if isinstance(problem, TimeoutError):
        return "it does not answer in time"
    return str(problem) or type(problem).__name__


def unavailable(asked: Iterable[Node], answers: Iterable[object | None]) -> list[str]:
    """The names of those that gave no answer."""
    return [node.name for node, answer in zip(asked, answers, strict=True) if answer is None]
