"""One service, several models that know nothing of each other: `bus.control.Model` for all of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from bus.control import Action
from bus.messages import Message
from bus.subjects import State
from services.ipam.model import BlockAllocation
from services.ipam.service_addresses import ServiceAddresses

Part = BlockAllocation | ServiceAddresses


class Together:
    """Each hears its families, and what became of its own actions."""

    owner: ClassVar[str] = "ipam"
    hears: ClassVar[tuple[State[Message], ...]] = tuple(
        dict.fromkeys((*BlockAllocation.hears, *ServiceAddresses.hears))
    )
    says: ClassVar[tuple[State[Message], ...]] = (*BlockAllocation.says, *ServiceAddresses.says)

    def __init__(self, blocks: BlockAllocation, addresses: ServiceAddresses) -> None:
        self._parts: tuple[Part, ...] = (blocks, addresses)

    def put(self, subject: str, message: Message) -> None:
        """Raises: ValueError: a model cannot take it, after all were told."""
        problems: list[ValueError] = []
        for part in self._hearing(subject):
            try:
                part.put(subject, message)
            except ValueError as problem:
                problems.append(problem)
        if problems:
            raise problems[0]

    def delete(self, subject: str) -> None:
        for part in self._hearing(subject):
            part.delete(subject)

    def taken(self, subject: str) -> None:
        for part in self._hearing(subject):
            part.taken(subject)

    def act(self) -> Iterable[Action]:
        return [action for part in self._parts for action in part.act()]

    def said(self) -> Iterable[str]:
        return [subject for part in self._parts for subject in part.said()]

    def _hearing(self, subject: str) -> list[Part]:
        return [part for part in self._parts if any(family.has(subject) for family in part.hears)]
