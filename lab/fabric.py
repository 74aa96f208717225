"""The network that knows where pods are, as a cloud's does: the router gets a route for each node's block. Effects.

Only in a lab that was asked for it (`plexus lab up --fabric-routes`). Native routing needs it wherever nodes do not
route to each other themselves: `autoDirectNodeRoutes=false`, and nodes of two subnets.
"""

from __future__ import annotations

import asyncio

from bus.interface import Bus
from bus.messages.ipam import Block
from bus.subjects import BLOCK
from bus.telemetry import logger
from lab import topology
from lab.state import Record

log = logger("lab.fabric")


async def run(lab: Record, bus: Bus) -> None:
    """Keep the router's routes as the blocks are, until cancelled. Raises NetlinkError, OSError."""
    async for batch in bus.watch_state(BLOCK):
        for change in batch.changes:
            (block,) = BLOCK.parse(change.subject)
            node = change.message.node if isinstance(change.message, Block) else None
            await asyncio.to_thread(topology.route_block, lab, block, node)
            log.info("route", block=block, node=node)
