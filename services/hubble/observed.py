"""What one node's observer knows, and a way to wait for more of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.hubble.api import flow_pb2 as pb
from services.hubble.flow import Flow, Place, namespaces
from services.hubble.joiner import Joiner
from services.hubble.kept import CAPACITY_DEFAULT, Kept, Losses, Namespaces, Rate
from services.hubble.names import Names
from services.hubble.records import Record

EVENTS_KEPT = 1023


@dataclass(frozen=True, slots=True)
class AgentEvent:
    time_ns: int
    event: pb.AgentEvent


class Pulse:
    """Many wait for one thing to happen again. Whoever looks, finds nothing and then waits misses nothing, as long as
    it does not give way in between."""

    def __init__(self) -> None:
        self._next: asyncio.Event = asyncio.Event()

    def beat(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, timeout: float | None = None) -> bool:
        """False: nothing happened for `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._next.wait()
        except TimeoutError:
            return False
        return True


class Observed:
    """`started`, `now`: seconds since the epoch."""

    def __init__(self, names: Names, place: Place, *, capacity: int = CAPACITY_DEFAULT, started: float) -> None:
        self.names = names
        self.joiner = Joiner(names, place)
        self.flows: Kept[Flow] = Kept(capacity)
        self.events: Kept[AgentEvent] = Kept(EVENTS_KEPT)
        self.losses = Losses()
        self.rate = Rate(started)
        self.namespaces = Namespaces()
        self.started = started
        self.pulse = Pulse()  # flows, events or losses came
        self.network = Pulse()  # nodes came, went or changed

    def is_of_node(self, labels: tuple[str, ...]) -> None:
        """The node has these labels now; so have flows from here on."""
        if labels != self.joiner.place.labels:
            self.joiner.place = replace(self.joiner.place, labels=labels)

    @property
    def place(self) -> Place:
        return self.joiner.place

    def take(self, batch: Sequence[Record], offset_ns: int, now: float) -> list[Flow]:
        """Join, keep and tell those who wait."""
        flows = self.joiner.join(batch, offset_ns)
        self.keep(flows, now)
        return flows

    def keep(self, flows: list[Flow], now: float) -> None:
        """Flows that are joined."""
        if flows:
            self.flows.add(flows)
            self.rate.add(len(flows), now)
            self.namespaces.add(namespaces(flows), now)
            self.pulse.beat()

    def lose(self, source: pb.LostEventSource, count: int, now: float) -> None:
        if count > 0:
            self.losses.add(source, count, int(now * 1e9))
            self.pulse.beat()

    def happened(self, event: pb.AgentEvent, now: float) -> None:
        self.events.add([AgentEvent(int(now * 1e9), event)])
        self.pulse.beat()
