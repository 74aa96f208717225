"""What is left of a sandbox that is no endpoint any more, until it is gone: its link, its record, its address.

Removing may fail or be cut off at any step; what is left is tried again by the runtime's next DEL, by keep/heal.py, and
after a restart. The address is given back last, so nobody else has it while a link or a record still says so.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from bus.telemetry import count, logger
from services.dataplane.kernel.links import LinkError, Links
from services.dataplane.pods.addresses import Addresses, Attachment
from services.dataplane.pods.endpoints import record_key
from services.dataplane.store.journal import Journal

log = logger(__name__)


@dataclass(eq=False, slots=True)
class _Leftover:
    owner: Attachment
    interface: str  # the host side; "" when no link was made
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Leftovers:
    """By container, of which each has one interface at most."""

    def __init__(self, links: Links, journal: Journal, addresses: Addresses) -> None:
        self._links = links
        self._journal = journal
        self._addresses = addresses
        self._left: dict[str, _Leftover] = {}

    def __len__(self) -> int:
        return len(self._left)

    def __contains__(self, owner: object) -> bool:
        return any(each.owner == owner for each in self._left.values())

    def add(self, owner: Attachment, interface: str) -> None:
        """Whoever knew of it as an endpoint does not any more."""
        self._left[owner.container_id] = _Leftover(owner, interface)

    async def remove(self, owner: Attachment) -> None:
        """Returns when nothing is left. Raises: LinkError, OSError: something is, and may be asked for again."""
        left = self._left.get(owner.container_id)
        if left is None or left.owner != owner:
            return
        async with left.turn:
            if self._left.get(owner.container_id) is not left:
                return
            if left.interface:
                await self._links.delete_pod_link(left.interface)
            await self._journal.delete(record_key(owner.container_id))
            self._addresses.release(owner)
            del self._left[owner.container_id]

    async def take_back(self, owner: Attachment) -> None:
        """The runtime wants `owner` after all: it keeps what is left of it. Of another interface nothing stays.

        Raises: LinkError, OSError: the other interface is still there.
        """
        left = self._left.get(owner.container_id)
        if left is not None and left.owner != owner:
            await self.remove(left.owner)
        elif left is not None:
            async with left.turn:  # a removal under way comes to its end first
                self._left.pop(owner.container_id, None)

    async def remove_all(self) -> None:
        """Try each once; what fails is logged and stays."""
        for left in list(self._left.values()):
            try:
                await self.remove(left.owner)
            except (LinkError, OSError) as problem:
                told(left.owner, problem)


def told(owner: Attachment, problem: Exception) -> None:
    count("leftovers")
    log.warning("a sandbox is not removed whole, trying again", container=owner.container_id, why=str(problem))
