"""The host's own way to pods: gateways' addresses, and routes to the blocks of other nodes; made, compared, put back.

What cannot be done is told by the check "routes", and tried with the next batch that is heard and the next look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_network

from bus.labels import RESERVED
from bus.service import Service
from bus.telemetry import count, logger
from services.dataplane.keep.uplinks import Uplinks
from services.dataplane.kernel.links import LinkError, Links
from services.dataplane.kernel.rtnl import NodeRoute
from services.dataplane.parts.routes import Routes as Wanted
from services.dataplane.settings import NodeSettings

log = logger(__name__)


class Routes:
    """Those of one node.

    Args:
        part: which there should be.
        routers: the gateways of its pods, one a family that has one.
        pods: link indexes by the address of each pod here.
    """

    def __init__(
        self,
        settings: NodeSettings,
        service: Service,
        links: Links,
        uplinks: Uplinks,
        mtu_bytes: int,
        part: Wanted,
        routers: Callable[[], tuple[str, ...]],
        pods: Callable[[], Mapping[str, int]],
    ) -> None:
        self._settings = settings
        self._service = service
        self._links = links
        self._uplinks = uplinks
        self._mtu_bytes = mtu_bytes
        self._part = part
        self._wanted_routers = routers
        self._pods = pods
        self._working = asyncio.Lock()
        self._made_of: object = None  # what they were made of, when they were all made
        self.routers: set[str] = set()
        """Gateways that the node answers to."""
        self.made: dict[str, NodeRoute] = {}
        """By the CIDR of another node's block."""
        self.problems: dict[str, str] = {}
        """By CIDR, or the gateway's address."""

    async def take_up(self) -> None:
        """What a process before this one made: kept where it is right, removed where it is not wanted any more."""
        self._made_of = None
        try:
            self.made = {route.cidr: route for route in await self._links.list_node_routes()}
        except LinkError as problem:
            log.warning("routes from before are not known", why=str(problem))
            self.made = {}

    async def follow(self) -> None:
        """Bring the kernel to what is wanted now. Nothing is done when what routes follow from is what it was when all
        were made."""
        async with self._working:
            part = self._part
            made_of = (part.wanted, part.unreachable, self._wanted_routers(), part.routing)
            if made_of == self._made_of and self.made.keys() == part.wanted.keys():
                return
            self._made_of = None
            problems: dict[str, str] = {}
            wanted = {cidr: self._route(cidr, address) for cidr, address in part.wanted.items()}
            await self._follow_routers(problems)
            for cidr in self.made.keys() - wanted.keys():
                if await _done(self._links.delete_node_route(cidr), cidr, problems):
                    del self.made[cidr]
            for cidr, route in wanted.items():
                if self.made.get(cidr) != route and await _done(self._links.ensure_node_route(route), cidr, problems):
                    self.made[cidr] = route
            if not problems:
                self._made_of = made_of
            if not self._settings.direct_routing_skip_unreachable:
                problems |= {name: self._too_far(address) for name, address in part.unreachable.items()}
            for what in problems.keys() - self.problems.keys():
                log.warning("no way to other nodes' pods, trying again", address=what, why=problems[what])
            self.problems = problems
        self._service.check("routes", not problems, "; ".join(f"{what}: {why}" for what, why in problems.items()))

    async def heal(self) -> None:
        """Put back what somebody else took away. Raises: LinkError, OSError."""
        async with self._working:
            self._made_of = None
            seen = {route.cidr for route in await self._links.list_node_routes()}
            gone = self.routers - set(await self._links.list_router_addresses())
            count("drift", len(gone), kind="address")
            self.routers -= gone
            for cidr in self.made.keys() - seen:
                count("drift", kind="route")
                del self.made[cidr]
        await self.follow()
        mended = await self._links.mend_pod_routes(self._pods())
        if mended:
            count("drift", len(mended), kind="route")
            log.warning("routes to pods put back", addresses=mended)

    async def _follow_routers(self, problems: dict[str, str]) -> None:
        wanted = set(self._wanted_routers())
        for router in wanted - self.routers:
            if not await _done(self._links.ensure_router_address(router), router, problems):
                wanted.discard(router)
        self.routers = wanted

    def _route(self, cidr: str, node_address: str) -> NodeRoute:
        if not self._settings.is_tunnel:
            return NodeRoute(cidr=cidr, node_address=node_address, device=self._uplinks.toward(node_address))
        return NodeRoute(
            cidr=cidr,
            node_address=node_address,
            device=self._settings.tunnel_device,
            tunnel_id=RESERVED["host"],
            mtu_bytes=self._mtu_bytes,
            source=self._router(ip_network(cidr).version),
        )

    def _router(self, version: int) -> str:
        """The gateway of one family; "" until there is a block of it."""
        return next((each for each in self._wanted_routers() if (":" in each) == (version == 6)), "")

    def _too_far(self, address: str) -> str:
        return (
            f"{address} is on no network of {self._uplinks.networks}, so it can be no next hop: if routers know the "
            "way to its pods, set directRoutingSkipUnreachable=true, else use a tunnel"
        )


async def _done(work: Awaitable[None], what: str, problems: dict[str, str]) -> bool:
    """Whether a change of routes succeeded; if not, `problems` says why."""
    try:
        await work
    except LinkError as problem:
        count("route_errors")
        problems[what] = str(problem)
        return False
    return True
