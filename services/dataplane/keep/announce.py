"""Keeps this node's lease of L2 announcements: asks for it anew, writes what it is granted, and says what is new.

A turn looks at what the kernel holds, not at what this process believes: so an entry that could not be removed is still
said to be held, and nobody else gets its address before it has run out. A turn that gets no answer changes nothing:
entries run out by themselves, in the kernel.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Protocol

from bus.interface import Bus, BusError
from bus.service import Service
from bus.subjects import L2_RENEW
from bus.telemetry import count, logger
from services.dataplane.kernel.announcer import Announcer
from services.dataplane.kernel.maps import Maps
from services.dataplane.model import NodeModel
from services.dataplane.parts.announcements import SECOND_NS, boot_ns
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.layouts import L2AnswerEntry, L2AnswerKey

log = logger(__name__)

CHECK = "l2announcements"
SAID_AGAIN = 2  # so often, with the turns that follow: a frame may be lost, and nobody acknowledges one


class Host(Protocol):
    """The node that announces."""

    settings: NodeSettings
    service: Service
    bus: Bus
    maps: Maps
    model: NodeModel

    async def write(self) -> None:
        """Bring the kernel to what the model says now; returns when it is there."""


class Announce:
    """Of `node`."""

    def __init__(self, node: Host) -> None:
        self._node = node
        self._part = node.model.announcements
        self._process = secrets.token_hex(8)
        self._news = asyncio.Event()
        self._announcer = Announcer()
        self._known: set[bytes] | None = (
            None  # keys of the map for which it has answered before; None: not yet looked at
        )
        self._to_say: dict[bytes, int] = {}  # such keys, each with how often it is yet to be said
        self._renewed = boot_ns()
        self._why = ""
        self._is_over = False

    def heard(self) -> None:
        """Something may have been heard because of which to ask."""
        if self._part.has_news:
            self._news.set()

    async def run(self) -> None:
        """For ever. Raises: OSError."""
        try:
            while True:
                wait = await self.turn()
                if wait:
                    await self._news_or(wait)
        finally:
            self._announcer.close()

    async def _news_or(self, wait: float) -> None:
        try:
            async with asyncio.timeout(wait):
                await self._news.wait()
        except TimeoutError:
            pass

    async def turn(self) -> float:
        """Ask once. Returns after how many seconds to ask again. Raises: OSError."""
        node, settings = self._node, self._node.settings
        self._news.clear()
        sent = boot_ns()
        before = await node.maps.read("l2_answers")
        question = self._part.question(self._process, before, sent)
        patience = max(settings.l2_lease_retry_period, settings.l2_lease_renew_deadline / 2)
        try:
            answer = await node.bus.ask(L2_RENEW, settings.node, message=question, timeout=patience)
        except BusError as problem:
            return await self._unanswered(str(problem))
        if not answer.term:
            return await self._unanswered("nobody leads")
        outcome = self._part.answered(question, answer, sent, boot_ns())
        await node.write()
        self._renewed = sent
        self._why = ""
        self._tell()
        self._follow(before)
        if outcome.again:
            return 0.0
        return settings.l2_lease_retry_period if outcome.waits else settings.l2_lease_renew_deadline

    async def _unanswered(self, why: str) -> float:
        self._part.expire(boot_ns())
        await self._node.write()
        count("l2_renewals_failed")
        self._why = why
        self._tell()
        return self._node.settings.l2_lease_retry_period

    def _tell(self) -> None:
        """The check: well until the lease has run out."""
        age = (boot_ns() - self._renewed) / SECOND_NS
        is_over = bool(self._why) and age > self._node.settings.l2_lease_duration
        if is_over and not self._is_over:
            log.warning("the lease has run out: this node answers for no address of a Service", why=self._why)
        self._is_over = is_over
        self._node.service.check(
            CHECK, not is_over, f"no lease for {age:.0f} s, so nothing is announced: {self._why}" if is_over else ""
        )

    def _follow(self, before: dict[bytes, bytes]) -> None:
        """Listen where there are entries, and say those that are new. `before`: what the map held, and answered for."""
        wanted = self._part.table.wanted
        known = before.keys() if self._known is None else self._known
        self._known = {key for key in wanted if key in known or L2AnswerKey.unpack(key).address not in self._part.quiet}
        for key in self._known - known:
            self._to_say[key] = 1 + SAID_AGAIN
            log.info("this node announces an address", address=str(L2AnswerKey.unpack(key)))
        self._to_say = {key: left for key, left in self._to_say.items() if key in wanted and left}
        entries = [(L2AnswerKey.unpack(key), L2AnswerEntry.unpack(wanted[key])) for key in self._to_say]
        try:
            self._announcer.listen(map(L2AnswerKey.unpack, wanted))
            if entries:
                self._announcer.say(each for each in entries if each[1].until > boot_ns())
        except OSError as problem:
            log.warning("not all of what is announced could be said, trying again", why=str(problem))
            return
        self._to_say = {key: left - 1 for key, left in self._to_say.items()}
