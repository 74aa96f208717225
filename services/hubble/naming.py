"""Asks the node's dataplane what its numbers mean, before the flows that bear them are told.

Flows wait for the answer, which takes a millisecond or two and is asked for once a number. A dataplane that does not
answer is not asked for a while, and flows go without these names meanwhile: the kernel's buffer holds some seconds of
what it tells.
"""

from __future__ import annotations

import asyncio
import time

from bus import subjects
from bus.interface import Bus, Unanswered
from bus.messages.dataplane import Decision, WhoDecided
from bus.telemetry import count
from services.hubble.flow import Flow
from services.hubble.joiner import Joiner
from services.hubble.names import DecisionKey, Names, PolicyName

ANSWER_SECONDS = 0.5
PAUSE_SECONDS = 2.0  # after a question without an answer
HOLD_SECONDS = 30.0  # that an answer is believed: a dataplane that starts anew may mean something else by a number


class Naming:
    def __init__(self, bus: Bus, node: str, names: Names, joiner: Joiner) -> None:
        self._bus = bus
        self._node = node
        self._names = names
        self._joiner = joiner
        self._started_at = 0.0  # of the dataplane, by its last answer
        self._forget_at = 0.0
        self._ask_at = 0.0  # not before

    async def name(self, flows: list[Flow]) -> None:
        """These were joined last."""
        decisions, networks = self._joiner.question
        if time.monotonic() < self._ask_at:
            return
        question = WhoDecided(
            decisions=[
                Decision(policy=policy, cookie=cookie, direction="egress" if direction & 1 else "ingress")
                for policy, cookie, direction in decisions
            ],
            networks=networks,
        )
        try:
            async with asyncio.timeout(ANSWER_SECONDS):  # the bus itself may not be there yet
                answer = await self._bus.ask(subjects.DECIDERS, self._node, message=question, timeout=ANSWER_SECONDS)
        except (Unanswered, TimeoutError):
            count("deciders_unanswered")
            self._ask_at = time.monotonic() + PAUSE_SECONDS
            return
        if answer.started_at != self._started_at or time.monotonic() > self._forget_at:
            self._names.forget_numbers()
            self._started_at, self._forget_at = answer.started_at, time.monotonic() + HOLD_SECONDS
        decided: dict[DecisionKey, tuple[PolicyName, ...]] = {}
        audited = dict(zip(decisions, answer.audited, strict=False))
        for key, policies in zip(decisions, answer.policies, strict=False):
            decided[key] = tuple(map(PolicyName.of, policies))
            self._names.decide(key, decided[key], audited.get(key, ""))
        for number, cidr in zip(networks, answer.networks, strict=False):
            self._names.name_network(number, cidr)
        self._joiner.name(flows, decided, audited)
