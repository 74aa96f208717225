"""The blocks of this node follow what the bus says: addresses come out of them, and they are on its disk, so that after
a restart without the bus addresses come out of them, too."""

from __future__ import annotations

from collections.abc import Iterable

from bus.service import Service
from bus.telemetry import logger
from services.dataplane.pods.addresses import Addresses
from services.dataplane.store.journal import Journal

log = logger(__name__)

KEY = "blocks"  # in the journal: their CIDRs


class Blocks:
    """Of one node. A node without one, of any family that it serves, is not ready."""

    def __init__(self, service: Service, addresses: Addresses, journal: Journal) -> None:
        self._service = service
        self._addresses = addresses
        self._journal = journal
        self.problem = ""
        """Why they are not followed; they are tried again with the next batch and the next look."""

    async def follow(self, wanted: Iterable[str]) -> None:
        """These are the node's now, as CIDRs."""
        blocks = sorted(wanted)
        problem = ""
        try:
            if blocks != sorted(self._addresses.blocks):
                self._addresses.set_blocks(blocks)
            if blocks != (self._journal.get(KEY) or []):
                await self._journal.put(KEY, blocks)
        except (ValueError, OSError) as failure:
            problem = str(failure)
            if problem != self.problem:
                log.error("this node's blocks are not followed: correct them, or make room on its disk", why=problem)
        self.problem = problem
        missing = self._addresses.missing
        self._service.check("addresses", not missing and not problem, problem or missing)
        self._service.ready(not missing)
