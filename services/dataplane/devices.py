"""What packets meet on a node besides programs and maps, looked at every two seconds: the tunnel device, and the
kernel's switches. What somebody else changed is put back at once, counted, and told by a check of its own until the
next look finds it right.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

from bus.telemetry import count, logger
from services.dataplane.links import LinkError, TunnelGone

if TYPE_CHECKING:
    from services.dataplane.node import Node

log = logger(__name__)

PROBLEMS_SHOWN = 5  # links that the check "rates" names
SYSCTLS_ADVICE = "put back; look in sysctl.d, and for another agent, for who sets it"


class Devices:
    """Those of `node`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._told: dict[str, str] = {}  # by check: what is not well
        self.are_routes_stale = False
        """Something was wrong with a device that routes go by: the kernel may have removed them, and tells nothing."""

    async def look(self) -> None:
        """Raises: TunnelGone."""
        if self._node.settings.is_tunnel:
            try:
                self.are_routes_stale |= await self._mend("tunnel", self._node.links.mend_tunnel())
            except TunnelGone as problem:
                count("drift", kind="tunnel")
                self._tell("tunnel", str(problem))
                raise
        await self._mend("sysctls", self._sysctls([]))

    async def look_at_pods(self) -> None:
        """What is looked at more seldom, as there is much of it."""
        await self._look_for_rates()
        await self._mend("sysctls", self._sysctls([each.interface for each in self._node.endpoints.all()]))

    async def _look_for_rates(self) -> None:
        """What others limit on the host side of a pod's link is passed over: packets to a pod go past its queue."""
        found = [
            f"{link.name} ({link.queue})" for link in await self._node.links.list_pod_links() if link.queue != "noqueue"
        ]
        passed_over = "" if self._node.settings.host_legacy_routing else ", ".join(found[:PROBLEMS_SHOWN])
        self._node.service.check(
            "rates", not passed_over, f"passed over; take them away: {passed_over}" if passed_over else ""
        )

    async def _sysctls(self, pods: list[str]) -> str:
        found = await self._node.links.mend_sysctls(pods)
        return f"{', '.join(found)}: {SYSCTLS_ADVICE}" if found else ""

    async def _mend(self, check: str, work: Awaitable[str]) -> bool:
        """Whether there was something to mend, and it was."""
        try:
            problem = await work
        except LinkError as failure:
            self._tell(check, str(failure))
            return False
        if problem:
            count("drift", kind=check)
        self._tell(check, problem)
        return bool(problem)

    def _tell(self, check: str, problem: str) -> None:
        if problem and problem != self._told.get(check):
            log.warning("somebody else changed what packets meet on this node", what=check, why=problem)
        self._told[check] = problem
        self._node.service.check(check, not problem, problem)
