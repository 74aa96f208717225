"""What packets meet on a node besides programs and maps, looked at every two seconds: the tunnel device, the kernel's
switches, and pods' links when the kernel told of any. What somebody else changed is put back at once, counted, and told
by a check of its own until the next look finds it right.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from bus.service import Service
from bus.telemetry import count, logger
from services.dataplane.kernel.links import LinkError, Links, TunnelGone
from services.dataplane.kernel.pod_links import Wanted
from services.dataplane.kernel.tunnel import LEAVE_ALONE
from services.dataplane.settings import NodeSettings

log = logger(__name__)

PROBLEMS_SHOWN = 5  # links that the check "rates" names
SYSCTLS_ADVICE = "put back; look in sysctl.d, and for another agent, for who sets it"


class Devices:
    """Those of one node.

    Args:
        pod_links: the host side of each pod's link, beside its pod's `namespace/name`.
    """

    def __init__(
        self,
        settings: NodeSettings,
        service: Service,
        links: Links,
        pod_links: Callable[[], list[tuple[str, Wanted]]],
    ) -> None:
        self._settings = settings
        self._service = service
        self._links = links
        self._pod_links = pod_links
        self._told: dict[str, str] = {}  # by check: what is not well
        self._gone: set[str] = set()  # pods' links, as the last look found
        self._is_waiting = True  # for another look at pods' links; the first is owed
        self.are_routes_stale = False
        """Something was wrong with a device that routes go by: the kernel may have removed them, and tells nothing."""

    @contextmanager
    def healing_routes(self) -> Iterator[None]:
        """They are stale no more, but for what is found meanwhile; and they are still when this fails."""
        self.are_routes_stale = False
        try:
            yield
        except BaseException:
            self.are_routes_stale = True
            raise

    async def look(self) -> None:
        """Raises: TunnelGone."""
        if self._settings.is_tunnel:
            try:
                if await self._mend("tunnel", self._links.mend_tunnel()):
                    self.are_routes_stale = True
            except TunnelGone as problem:
                count("drift", kind="tunnel")
                self._tell("tunnel", str(problem))
                raise
        await self._mend("sysctls", self._sysctls([]))
        if self._links.take_links_changed() or self._told.get("links") or self._is_waiting:
            await self._look_at_links()

    async def look_at_pods(self) -> None:
        """What is looked at more seldom, as there is much of it."""
        await self._look_for_rates()
        await self._mend("sysctls", self._sysctls([link.name for _, link in self._pod_links()]))

    async def _look_for_rates(self) -> None:
        """What others limit on the host side of a pod's link is passed over: packets to a pod go past its queue."""
        found = [
            f"{link.name} ({link.queue})" for link in await self._links.list_pod_links() if link.queue != "noqueue"
        ]
        passed_over = "" if self._settings.host_legacy_routing else ", ".join(found[:PROBLEMS_SHOWN])
        self._service.check(
            "rates", not passed_over, f"passed over; take them away: {passed_over}" if passed_over else ""
        )

    async def _look_at_links(self) -> None:
        """A link that is gone is told when the next look misses it, too: its pod may just be on its way out."""
        wanted = self._pod_links()
        try:
            mended, gone, refused = await self._links.mend_pod_links([link for _, link in wanted])
        except LinkError as failure:
            self.are_routes_stale = True  # some may have been mended before it
            self._tell("links", str(failure))
            return
        told = sorted(set(gone) & self._gone)
        self._is_waiting, self._gone = set(gone) != set(told), set(gone)
        self.are_routes_stale |= bool(mended or refused)
        problems = []
        if refused:
            problems.append(f"{', '.join(refused[:PROBLEMS_SHOWN])}; {LEAVE_ALONE}")
        if mended:
            count("drift", len(mended), kind="links")
            problems.append(f"{', '.join(mended[:PROBLEMS_SHOWN])}: put back; {LEAVE_ALONE}")
        if told:
            pods = {link.name: pod for pod, link in wanted}
            names = ", ".join(f"{pods[name]} ({name})" for name in told[:PROBLEMS_SHOWN])
            problems.append(f"gone from this node, so cut off; delete the pods: {names}")
        self._tell("links", "; ".join(problems))

    async def _sysctls(self, pods: list[str]) -> str:
        found = await self._links.mend_sysctls(pods)
        return f"{', '.join(found)}: {SYSCTLS_ADVICE}" if found else ""

    async def _mend(self, check: str, work: Awaitable[str]) -> bool:
        """Whether something was mended, or some of it may have been before the kernel refused."""
        try:
            problem = await work
        except LinkError as failure:
            self._tell(check, str(failure))
            return True
        if problem:
            count("drift", kind=check)
        self._tell(check, problem)
        return bool(problem)

    def _tell(self, check: str, problem: str) -> None:
        if problem and problem != self._told.get(check):
            log.warning("somebody else changed what packets meet on this node", what=check, why=problem)
        self._told[check] = problem
        self._service.check(check, not problem, problem)
