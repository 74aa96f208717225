"""While this process leads: answers nodes that ask for their leases anew, and notices those that do not."""

from __future__ import annotations

import asyncio
import secrets
import time

from bus.control import Leading
from bus.interface import Bus
from bus.messages.l2announce import Granted, Renewal
from bus.subjects import L2_RENEW
from bus.telemetry import logger
from services.l2announce.grants import Grants
from services.l2announce.model import Announcing

log = logger(__name__)

NOBODY = Granted(term="", seconds=0.0)  # what a question is answered that comes when nobody leads


class Leases:
    """Of nodes, for one term.

    Args:
        seconds: the length of a lease.
    """

    def __init__(self, model: Announcing, leading: Leading, seconds: float) -> None:
        self._model = model
        self._leading = leading
        self._seconds = seconds
        self._grants = Grants(seconds, secrets.token_hex(8), time.monotonic(), longest=model.lease_seconds)
        self._looked = asyncio.Event()  # set: the clock is to be looked at again
        self._follow(time.monotonic())

    async def run(self, bus: Bus) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(bus.answer(L2_RENEW, handler=self.renew), name="answer renew")
                tasks.create_task(self._watch(), name="watch leases")
                tasks.create_task(self._rebalance(), name="rebalance")
        finally:
            self._model.lives(None)

    async def renew(self, question: Renewal) -> Granted:
        now = time.monotonic()
        is_known = self._model.lease_seconds >= self._seconds  # else who leads next might not wait for so long
        answer = self._grants.renew(question, self._model.assigned(question.node), now, may_grant=is_known)
        if question.node not in (self._model.live or ()):
            self._follow(now)
            self._looked.set()
        # The last thing that is looked at: what is granted while the lease is held is known to who leads next
        # only by the time that it waits.
        return answer if answer is not None and self._leading.holds else NOBODY

    def _follow(self, now: float) -> None:
        """Who lives, as far as it is known. Before a term is settled, who announces something by the log counts too."""
        live = self._grants.live(now)
        if not self._grants.is_settled(now):
            live |= self._model.holders
        before = self._model.live
        if self._grants.is_settled(now):
            self._model.settled()
        if live != before:
            for node in sorted((before or frozenset()) - live):
                log.warning("a node has not renewed its lease: others announce its addresses", node=node)
            self._model.lives(live)
            self._leading.act()

    async def _watch(self) -> None:
        """Until the next lease runs out, again and again."""
        while True:
            self._looked.clear()
            now = time.monotonic()
            self._follow(now)
            wait = min(self._grants.changes_at(now) - now, self._seconds)
            try:
                async with asyncio.timeout(wait + 0.001):
                    await self._looked.wait()
            except TimeoutError:
                pass

    async def _rebalance(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            if self._grants.is_settled(time.monotonic()):
                self._model.rebalance()
                self._leading.act()
