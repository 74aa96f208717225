"""What somebody else removed or changed is put back.

What is attached, and the devices that it is attached to, are looked at every two seconds and when somebody asks
(looks.py), and so are maps (audit.py). All else, of which there is much or which seldom goes, every `HEAL_SECONDS`; but
routes and addresses at once, when the kernel told of a change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bus.telemetry import logger
from services.dataplane.keep.audit import Audit, Keeper
from services.dataplane.keep.devices import Devices
from services.dataplane.keep.own_addresses import OwnAddresses
from services.dataplane.keep.routes import Routes
from services.dataplane.keep.sockets import Sockets
from services.dataplane.kernel.hooks import Hooks
from services.dataplane.kernel.links import LinkError, Links
from services.dataplane.shapes.attach import Hook

log = logger(__name__)

HEAL_SECONDS = 30.0  # how often what the kernel holds is compared with what it should hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Heal:
    """All that is looked at on one node."""

    node: Keeper
    links: Links
    hooks: Hooks
    audit: Audit
    sockets: Sockets
    devices: Devices
    routes: Routes
    own_addresses: OwnAddresses
    pods: Callable[[], Awaitable[None]]
    """Removes what is left of pods that are gone, and looks for what others have lost."""
    pod_hooks: Callable[[], list[Hook]]
    """Where programs of pods belong."""

    async def run_for_ever(self) -> None:
        """As long as it is known what there should be."""
        while True:
            await asyncio.sleep(HEAL_SECONDS)
            if self.node.is_whole:
                try:
                    await self.everything()
                except (LinkError, OSError) as problem:
                    self.audit.not_healed = str(problem)
                    log.warning("drift not looked at to the end, trying again", why=str(problem))
                else:
                    self.audit.not_healed = ""
                self.audit.tell()

    async def everything(self) -> None:
        """But what is attached. Raises: LinkError, OSError."""
        await self.audit.run()
        await self.node.write()  # also what found no room the last time
        await self.pods()
        self.sockets.look_again()
        await self.devices.look_at_pods()
        await self._heal_routes()

    async def attached(self) -> None:
        """Devices and programs; and routes and addresses, when the kernel told of a change. Raises: TunnelGone."""
        await self.devices.look()
        check = self.node.service.check
        try:
            await self.hooks.heal(self.pod_hooks, lambda: self.links.is_quiet)
            check("programs", *self.hooks.state)
            check("pins", *self.hooks.pins.state)
            are_others = self.hooks.take_addresses_changed()
            self.own_addresses.are_stale |= are_others
            self.devices.are_routes_stale |= self.hooks.take_routes_gone() or are_others
            if self.node.is_whole:
                await self._heal_what_is_stale()
        except (LinkError, OSError) as problem:
            check("programs", False, str(problem))
            log.warning("programs and routes not looked at to the end, trying again", why=str(problem))

    async def _heal_what_is_stale(self) -> None:
        if self.devices.are_routes_stale:
            await self._heal_routes()
        elif self.routes.problems:
            await self.routes.follow()
        if self.own_addresses.are_stale:
            await self.own_addresses.follow()
            await self.node.write()

    async def _heal_routes(self) -> None:
        with self.devices.healing_routes():
            await self.routes.heal()
