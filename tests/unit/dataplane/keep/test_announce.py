"""One turn of the node's lease: the map is read, the bus asked, the map written, and what is new is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

from bus.messages.dataplane import Check
from bus.messages.l2announce import Announcement, Granted, HeldAddress, Renewal
from bus.subjects import ANNOUNCEMENT, L2_RENEW
from bus.testing import Hub
from services.dataplane.keep.announce import CHECK, SAID_AGAIN, Announce
from services.dataplane.kernel.announcer import Announcer
from services.dataplane.model import NodeModel
from services.dataplane.parts.announcements import SECOND_NS, boot_ns
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.devices import DeviceInfo
from services.dataplane.shapes.layouts import L2AnswerEntry, L2AnswerKey

ETH0 = DeviceInfo("eth0", 2, "02:00:00:00:00:02", "", 1500)
X = "192.0.2.9"
KEY = L2AnswerKey(2, X)
SETTINGS = NodeSettings(
    node="n1",
    l2_announcements=True,
    l2_lease_duration=0.3,
    l2_lease_renew_deadline=0.1,
    l2_lease_retry_period=0.02,
)


class Said(Announcer):
    """Notes what would be said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.listens: set[str] = set()
        self.fails = False

    def say(self, entries: Iterable[tuple[L2AnswerKey, L2AnswerEntry]]) -> None:
        if self.fails:
            raise OSError("no such device")
        self.said += [str(key) for key, _ in entries]

    def listen(self, keys: Iterable[L2AnswerKey]) -> None:
        self.listens = set(map(str, keys))


class Node:
    """What Announce needs of one; its map is a dictionary."""

    def __init__(self, hub: Hub) -> None:
        self.settings = SETTINGS
        self.bus = hub.bus("n1")
        self.model = NodeModel("n1", announces=True)
        self.model.devices.are((ETH0,))
        self.kernel: dict[bytes, bytes] = {}
        self.checks: dict[str, Check] = {}
        self.service: Any = self
        self.maps: Any = self
        self.announce = Announce(cast("Any", self))
        self.announcer = Said()
        self.announce._announcer = self.announcer

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        self.checks[name] = Check(name=name, ok=ok, detail=detail)

    async def read(self, name: str) -> dict[bytes, bytes]:
        assert name == "l2_answers"
        return dict(self.kernel)

    async def write(self) -> None:
        self.model.settle()
        puts, gone = self.model.announcements.table.take()
        self.kernel |= puts
        for key in gone:
            self.kernel.pop(key, None)


@asynccontextmanager
async def granting(hub: Hub, *addresses: HeldAddress, term: str = "t") -> AsyncIterator[list[Renewal]]:
    """Somebody answers every question so. Gives the questions."""
    asked: list[Renewal] = []

    async def renew(question: Renewal) -> Granted:
        asked.append(question)
        return Granted(term=term, seconds=0.3, addresses=list(addresses))

    task = asyncio.create_task(hub.bus("l2announce").answer(L2_RENEW, handler=renew))
    await asyncio.sleep(0)
    try:
        yield asked
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


GRANT = HeldAddress(address=X, granted=True)


async def test_what_is_granted_is_written_and_said_and_listened_to() -> None:
    hub = Hub()
    node = Node(hub)
    async with granting(hub, GRANT) as asked:
        began = boot_ns()
        assert await node.announce.turn() == 0, "the term is new: it asks again"
        until = L2AnswerEntry.unpack(node.kernel[KEY.pack()]).until
        assert began + 0.3 * SECOND_NS <= until <= boot_ns() + 0.3 * SECOND_NS
        assert await node.announce.turn() == SETTINGS.l2_lease_renew_deadline
        assert [each.holds for each in asked] == [[], [X]]
        assert node.announcer.listens == {str(KEY)}
        for _ in range(5):
            await node.announce.turn()
        assert node.announcer.said == [str(KEY)] * (1 + SAID_AGAIN)


async def test_what_is_to_be_quiet_is_said_when_that_ends() -> None:
    hub = Hub()
    node = Node(hub)
    async with granting(hub, HeldAddress(address=X, granted=True, tell=False)):
        await node.announce.turn()
        await node.announce.turn()
        assert node.kernel and not node.announcer.said and node.announcer.listens
    async with granting(hub, GRANT):
        await node.announce.turn()
        assert node.announcer.said == [str(KEY)]


async def test_what_could_not_be_said_is_said_the_next_time() -> None:
    hub = Hub()
    node = Node(hub)
    node.announcer.fails = True
    async with granting(hub, GRANT):
        await node.announce.turn()
        node.announcer.fails = False
        await node.announce.turn()
        assert node.announcer.said == [str(KEY)]


async def test_what_it_waits_for_it_asks_for_soon() -> None:
    hub = Hub()
    node = Node(hub)
    async with granting(hub, HeldAddress(address=X, granted=False)):
        await node.announce.turn()
        assert await node.announce.turn() == SETTINGS.l2_lease_retry_period
        assert not node.kernel and not node.announcer.said


async def test_without_an_answer_entries_run_out_and_the_check_says_since_when() -> None:
    hub = Hub()
    node = Node(hub)
    async with granting(hub, GRANT):
        await node.announce.turn()
    assert await node.announce.turn() == SETTINGS.l2_lease_retry_period
    assert node.kernel, "it has not run out"
    assert node.checks[CHECK].ok
    async with asyncio.timeout(10):
        while node.kernel:
            await node.announce.turn()
            await asyncio.sleep(0.01)
        while node.checks[CHECK].ok:
            await node.announce.turn()
            await asyncio.sleep(0.01)
    assert "nobody answers" in node.checks[CHECK].detail
    async with granting(hub, GRANT):
        await node.announce.turn()
        assert node.kernel and node.checks[CHECK].ok


async def test_what_it_hears_has_it_ask_at_once() -> None:
    hub = Hub()
    node = Node(hub)
    async with granting(hub) as asked:
        running = asyncio.create_task(node.announce.run())
        async with asyncio.timeout(10):
            while len(asked) < 2:
                await asyncio.sleep(0)
            said = Announcement(address=X, node="n1", services=[], policies=[])
            node.model.put(ANNOUNCEMENT.of(X), said)
            node.announce.heard()
            await asyncio.sleep(0.01)
            assert len(asked) == 3
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
