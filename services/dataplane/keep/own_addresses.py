"""Which addresses this node answers to, beside those by which other nodes know it: a second network, a resolver that
listens on an address of its own. To its pods it is the host by each of them, unless the bus gives it to another."""

from __future__ import annotations

from collections.abc import Mapping

from bus.service import Service
from bus.telemetry import logger
from services.dataplane.kernel.links import LinkError, Links
from services.dataplane.parts.ipcache import Ipcache
from services.dataplane.shapes.layouts import IpcacheEntry, IpcacheKey

log = logger(__name__)

CHECK = "own addresses"


class OwnAddresses:
    """Those that the kernel has, for `network` to settle."""

    def __init__(self, service: Service, links: Links, network: Ipcache) -> None:
        self._service = service
        self._links = links
        self._network = network
        self._problem = ""
        self.are_stale = True
        """They may be others now, or could not be asked for: they are asked for with the next look."""

    async def follow(self) -> None:
        """Ask the kernel."""
        try:
            self._network.answers_to(await self._links.own_addresses())
        except LinkError as problem:
            if str(problem) != self._problem:
                log.warning("addresses of the node are not known, trying again", why=str(problem))
            self.are_stale, self._problem = True, str(problem)
        else:
            self.are_stale, self._problem = False, ""

    def take_up(self, ipcache: Mapping[bytes, bytes]) -> None:
        """Until they are known they are those of before, as the map has them: on which device is not in it."""
        if self.are_stale:
            entries = ((IpcacheKey.unpack(key), IpcacheEntry.unpack(value)) for key, value in ipcache.items())
            self._network.answers_to(
                {key.address: "the node" for key, entry in entries if entry.unadvertised and key.is_host}
            )

    def tell(self) -> None:
        """The check "own addresses", as of the last time that the network was settled."""
        problem = self._problem or "; ".join(self._network.contested.values())
        self._service.check(CHECK, not problem, problem)
