"""What the services say at this moment, indexed for the commands that show it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from bus.messages import Message
from bus.messages.dataplane import Health, HealthQuestion
from bus.services import CONTROL, HEALTH, NODE_SERVICES
from bus.subjects import State, state_of
from cli.errors import Failed

if TYPE_CHECKING:
    from bus.interface import Bus

M = TypeVar("M", bound=Message)

COMPARED_SECONDS = 3.0  # for a node to look at its maps and answer; it gives itself two
DIFFERENCES = ("digests", "drift")
"""Checks by which a node or a service does not hold what was said: what owners say, or, in maps, what was written."""
SECONDS = 10.0  # for a first complete picture; a healthy lab needs milliseconds


@dataclass
class Picture:
    """The last value of every key of some families, and how far the root logs had come."""

    values: dict[str, Message] = field(default_factory=dict)  # by subject
    sequences: dict[str, int] = field(default_factory=dict)  # by subject: its own sequence in the owner's log
    caused_at: dict[str, float] = field(default_factory=dict)  # by subject: seconds since the epoch
    revision: dict[str, int] = field(default_factory=dict)

    def take(self, batch: Any) -> None:
        """Include one batch of `watch_state`."""
        for change in batch.changes:
            if change.message is None:
                self.values.pop(change.subject, None)
            else:
                self.values[change.subject] = change.message
            self.sequences[change.subject] = change.sequence
            self.caused_at[change.subject] = change.caused_at
        self.revision = dict(batch.revision)

    def of(self, family: State[M]) -> dict[tuple[str, ...], M]:
        """The family's values by their key tokens, sorted."""
        found = {family.parse(subject): value for subject, value in self.values.items() if state_of(subject) is family}
        return cast("dict[tuple[str, ...], M]", dict(sorted(found.items())))


async def picture(bus: Bus, *families: State[Any], seconds: float = SECONDS) -> Picture:
    """A complete picture of these families, read from the logs themselves, so it needs no service to be up.

    Raises: Failed: it was not complete within `seconds`.
    """
    seen = Picture()
    try:
        async with asyncio.timeout(seconds):
            async for batch in bus.watch_state(*families, direct=True):
                seen.take(batch)
                if batch.synced:
                    return seen
    except TimeoutError:
        pass
    names = ", ".join(dict.fromkeys(family.owner for family in families))
    raise Failed(f"the bus did not hand over what {names} said within {seconds:.0f} s; look at plexus status")


def differences(health: Health) -> list[str]:
    """What one does not hold as it was said, in words; who has any has realised nothing."""
    return [f"{check.name}: {check.detail}" for check in health.checks if check.name in DIFFERENCES and not check.ok]


async def settled(bus: Bus) -> None:
    """Returns when the server knows every subscription that our tasks began: a question went there and back."""
    await asyncio.sleep(0)
    await healths(bus, [("resources", CONTROL)])


async def healths(
    bus: Bus, instances: Iterable[tuple[str, str]], seconds: float = 1.0
) -> dict[tuple[str, str], Health | str]:
    """How these (owner, instance) are, all asked at once; for one that does not answer, why.

    Nodes look at their maps first.
    """
    from bus.interface import Unanswered

    async def one(owner: str, instance: str) -> Health | str:
        is_node = owner in NODE_SERVICES
        patience = max(seconds, COMPARED_SECONDS) if is_node else seconds
        try:
            return await bus.ask(HEALTH[owner], instance, message=HealthQuestion(compare=is_node), timeout=patience)
        except Unanswered as error:
            return f"no answer: {error.why}"

    asked = list(instances)
    return dict(zip(asked, await asyncio.gather(*(one(*each) for each in asked)), strict=True))
