"""What it costs to keep addresses of Services announced: a real bus, the real service, and nodes that are simulated.

A simulated node asks as a node does, with the dataplane's own part (`Announcements`) and a dictionary for its kernel.
Counted are questions and answers, and the processor's time of the service and of the bus's server. Then a tenth of the
nodes die.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bench.bars import Figure
from bus.client import connect
from bus.interface import Bus, BusError
from bus.messages.ipam import AddressHolder, ServiceAddress
from bus.messages.l2announce import Announcement
from bus.messages.resources import L2AnnouncementPolicy, LoadBalancerRequest, Node, Service, ServicePort
from bus.server import Server, ServerSettings, free_port, running
from bus.subjects import ANNOUNCEMENT, L2_POLICY, L2_RENEW, NODE, SERVICE, SERVICE_ADDRESS
from services.dataplane.part import Facts
from services.dataplane.parts.announcements import Announcements, boot_ns
from services.dataplane.shapes.devices import DeviceInfo
from services.dataplane.shapes.layouts import L2AnswerEntry

NODES, ADDRESSES = 100, 1000
DURATION, RENEW, RETRY = 3.0, 1.0, 0.2
NAME = f"announcements: {ADDRESSES} addresses, {NODES} nodes"
MESSAGES, PROCESSOR = f"{NAME}, messages", f"{NAME}, l2announce"
DEVICE = DeviceInfo("eth0", 2, "02:00:00:00:00:01", "", 1500)
ENVIRONMENT = {
    "PLEXUS_L2_LEASE_DURATION": f"{DURATION}s",
    "PLEXUS_L2_LEASE_RENEW_DEADLINE": f"{RENEW}s",
    "PLEXUS_L2_LEASE_RETRY_PERIOD": f"{RETRY}s",
    "PLEXUS_LOG_LEVEL": "error",
}
PATIENCE_SECONDS = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Simulated:
    """A node that announces; what its kernel would hold is `kernel`."""

    def __init__(self, name: str, bus: Bus) -> None:
        self.name = name
        self._bus = bus
        facts = Facts()
        facts.uplinks.keep().put(DEVICE.index, DEVICE)
        self._part = Announcements(facts, name, is_on=True)
        self._news = asyncio.Event()
        self.kernel: dict[bytes, bytes] = {}
        self.messages = 0  # questions and answers

    def hear(self, announced: Announcement | None, address: str) -> None:
        """As the node's part hears it; it asks at once when that concerns it."""
        for each in self._part.hears:
            if announced is None:
                each.delete(address)
            else:
                each.put(announced)
        if self._part.has_news:
            self._news.set()

    @property
    def answers(self) -> int:
        """For how many addresses it answers now."""
        now = boot_ns()
        return sum(now < L2AnswerEntry.unpack(value).until for value in self.kernel.values())

    async def run(self) -> None:
        """As services/dataplane/keep/announce.py."""
        while True:
            self._news.clear()
            wait = await self._turn()
            if wait:
                try:
                    async with asyncio.timeout(wait):
                        await self._news.wait()
                except TimeoutError:
                    pass

    async def _turn(self) -> float:
        sent = boot_ns()
        question = self._part.question("p", self.kernel, sent)
        self.messages += 1
        try:
            answer = await self._bus.ask(L2_RENEW, self.name, message=question, timeout=RENEW / 2)
        except BusError:
            return RETRY
        self.messages += 1
        outcome = self._part.answered(question, answer, sent, boot_ns())
        self._part.settle()
        puts, gone = self._part.table.take()
        self.kernel |= puts
        for key in gone:
            self.kernel.pop(key, None)
        return 0.0 if outcome.again else RETRY if outcome.waits else RENEW


def measure_announcements(seconds: float) -> Iterator[Figure]:
    """`seconds`: for which messages and time are counted."""
    yield from asyncio.run(_measure(seconds))


async def _measure(seconds: float) -> list[Figure]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plexus-bench-")))
        server = await stack.enter_async_context(running(ServerSettings(folder / "bus", port=free_port())))
        bus = await stack.enter_async_context(connect(server.url, name="bench"))
        await bus.ensure_streams()
        await _say_world(bus)
        service = await stack.enter_async_context(_service(server))
        nodes = {name: Simulated(name, bus) for name in map(node_name, range(NODES))}
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        others = [tasks.create_task(_follow(bus, nodes), name="follow")]
        asking = {name: tasks.create_task(node.run(), name=name) for name, node in nodes.items()}
        try:
            began = time.monotonic()
            await _until(nodes.values(), ADDRESSES)
            at_first = time.monotonic() - began
            spent, said = _spent(server, service), sum(node.messages for node in nodes.values())
            await asyncio.sleep(seconds)
            said = sum(node.messages for node in nodes.values()) - said
            of_server, of_service = (
                after - before for after, before in zip(_spent(server, service), spent, strict=True)
            )
            dead = [node_name(at) for at in range(NODES // 10)]
            began = time.monotonic()
            for name in dead:
                asking[name].cancel()
            living = [node for name, node in nodes.items() if name not in dead]
            await _until(living, ADDRESSES)
            taken_over = time.monotonic() - began
        finally:
            for task in (*others, *asking.values()):
                task.cancel()
    return [
        Figure(MESSAGES, "1/s", (said / seconds,)),
        Figure(PROCESSOR, "% of a CPU", (100 * of_service / seconds,)),
        Figure(f"{NAME}, nats-server", "% of a CPU", (100 * of_server / seconds,)),
        Figure(f"{NAME}, all announced after", "s", (at_first,)),
        Figure(f"{NAME}, {NODES // 10} nodes die: all announced again after", "s", (taken_over,)),
    ]


def node_name(at: int) -> str:
    return f"node{at}"


async def _say_world(bus: Bus) -> None:
    """Nodes, Services with an address each, and a policy for all of them."""
    resources, ipam = await bus.own("resources"), await bus.own("ipam")
    await resources.say(L2_POLICY.of("p"), L2AnnouncementPolicy(name="p", load_balancer_addresses=True))
    for at in range(NODES):
        await resources.say(NODE.of(node_name(at)), Node(name=node_name(at), addresses=[]))
    for at in range(ADDRESSES):
        name, address = f"s{at}", f"10.9.{at // 250}.{1 + at % 250}"
        service = Service(
            namespace="d",
            name=name,
            type="LoadBalancer",
            cluster_addresses=[f"10.96.{at // 250}.{1 + at % 250}"],
            ports=[ServicePort(port=80, target_port=80)],
            load_balancer=LoadBalancerRequest(),
        )
        holder = AddressHolder(namespace="d", name=name, ports=["80/TCP"])
        await resources.say(SERVICE.of("d", name), service)
        await ipam.say(SERVICE_ADDRESS.of(address), ServiceAddress(address=address, services=[holder]))


@asynccontextmanager
async def _service(server: Server) -> AsyncIterator[int]:
    """A process of l2announce; gives its id."""
    environment = {**os.environ, **ENVIRONMENT, "PLEXUS_BUS_URL": server.url}
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.l2announce", env=environment)
    try:
        yield child.pid
    finally:
        child.kill()
        await child.wait()


async def _follow(bus: Bus, nodes: dict[str, Simulated]) -> None:
    """What each node hears on the bus of what is announced; heard once here, and told to all."""
    async for batch in bus.watch_state(ANNOUNCEMENT):
        for change in batch.changes:
            (address,) = ANNOUNCEMENT.parse(change.subject)
            announced = change.message if isinstance(change.message, Announcement) else None
            for node in nodes.values():
                node.hear(announced, address)


async def _until(nodes: Iterable[Simulated], addresses: int) -> None:
    """Until so many addresses are answered for. Raises: OSError: they never are."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while sum(node.answers for node in nodes) < addresses:
        if time.monotonic() > deadline:
            raise OSError(f"not all of {addresses} addresses are announced after {PATIENCE_SECONDS:.0f} s")
        await asyncio.sleep(0.05)


def _spent(server: Server, service: int) -> tuple[float, float]:
    """Seconds of a processor, so far, of the server and of the service."""
    return _seconds(server.pid), _seconds(service)


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
