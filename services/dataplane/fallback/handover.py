"""From BPF programs to rules and back.

To rules: they are put in force first, for pods that no program judges; when all has been heard once, and the rules say
it all, programs that a process before this one left attached are taken away. Until then they go on as they were: their
maps cannot be written without BPF, and what they last held is the last good rules.

Back: programs are loaded and their maps filled with what the model says now. Then the dataplane starts anew in the same
process, as after any restart: programs on every hook, and only then are the rules removed (`leave`).

What ends with a handover: connections whose addresses the other side has translated, so masqueraded ones and those that
a Service's rule gave a backend. All others go on.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from typing import Protocol

from bus.labels import RESERVED
from bus.service import Service
from bus.telemetry import count, logger
from services.dataplane.batch import to_the_end
from services.dataplane.fallback import maps as fallback_maps
from services.dataplane.fallback import rules
from services.dataplane.fallback.hooks import NoHooks
from services.dataplane.fallback.maps import RuleMaps, Senseless
from services.dataplane.fallback.rules import Place
from services.dataplane.kernel import nft, notrack
from services.dataplane.kernel.links import HOST_PREFIX, LinkError, Links
from services.dataplane.kernel.maps import Maps
from services.dataplane.kernel.nft import NftAbsent
from services.dataplane.kernel.rtnl import SeenLink
from services.dataplane.load import datapath, loader
from services.dataplane.load.datapath import Datapath, Ground
from services.dataplane.load.loader import LoadError
from services.dataplane.load.migrate import DoesNotFit
from services.dataplane.model import NodeModel
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.attach import Hook

log = logger(__name__)

SWITCH = "force-fallback"  # a file in the state directory; as PLEXUS_FORCE_FALLBACK, and may go while we run
CHECK = "datapath"  # the name of the check in health
RETRY_SECONDS = 30.0  # between two attempts to load BPF: the verifier takes a second of a core
LOOK_SECONDS = 1.0  # how often the switch is looked at
AGAIN_SECONDS = (2.0, 5.0)  # between attempts at a start, before programs that pods have are given up
KEEP_SECONDS = 5.0  # how often it is seen that the rules are in force

UNLOADABLE = (LoadError, LinkError, OSError)
"""What makes a node fall back. loader.LayoutError does not: a pinned map may hold what a drain would save."""


class Recovered(Exception):
    """BPF loads, and its maps hold what the model says: start anew."""


class HeldBack(LoadError):
    """BPF was not even tried."""


def held_back(settings: NodeSettings, *, filled: bool) -> str:
    """Why BPF is not even tried at a start; "" when it is.

    Args:
        filled: its maps were filled in this process just now. Else, with rules in force, they are older than the
            rules: the model must hear everything before they take over.
    """
    if settings.force_fallback:
        return "PLEXUS_FORCE_FALLBACK is set"
    if (settings.state_dir / SWITCH).exists():
        return f"{settings.state_dir / SWITCH} exists"
    if fallback_maps.is_in_force(settings.state_dir) and not filled:
        return "rules from before are in force until all is heard"
    return ""


class Host(Protocol):
    """The node, as far as it goes from one to the other."""

    settings: NodeSettings
    service: Service

    @property
    def routers(self) -> tuple[str, ...]:
        """The gateways of its pods."""

    @property
    def device_names(self) -> tuple[str, ...]:
        """Those that lead out."""

    @property
    def is_judged(self) -> bool:
        """Every pod here has its programs."""


class Fallback:
    """A node's time without BPF. Its Node writes to `maps`, and has `hooks`.

    Args:
        ground: the node's devices, and the programs to go back to.
        reason: why they are not there.
    """

    def __init__(
        self, service: Service, settings: NodeSettings, links: Links, ground: Ground, reason: Exception
    ) -> None:
        self._service = service
        self._settings = settings
        self._links = links
        self._ground = ground
        self._place = place_of(settings, ground)
        self.node: Host | None = None  # set when it is made
        self._reason = ""
        self._parts = NodeModel(settings.node)  # asked which there are; the node has its own
        self.maps = RuleMaps(self.place, settings.state_dir, self._parts.by_rules, self._show)
        self.hooks = NoHooks(settings.pin_dir)
        self._was_tried = not isinstance(reason, HeldBack)
        self.says(str(reason))
        log.warning("fallback: pods go on by nftables rules, without BPF", why=str(reason))

    def place(self) -> Place:
        """As of now."""
        if self.node is None:
            return self._place
        return replace(self._place, routers=self.node.routers, devices=self.node.device_names)

    def says(self, reason: str) -> None:
        """How the node is, in health and `plexus status`."""
        self._reason = reason.partition("\n")[0]
        self._show()

    def _show(self) -> None:
        undone = ", ".join(self._parts.not_by_rules)
        also = (self.maps.problem, f"not done by rules: {undone}" if undone else "")
        why = "; ".join(filter(None, (self._reason, *also)))
        self._service.check(CHECK, False, f"degraded: nftables rules instead of BPF: {why}")

    async def begin(self) -> None:
        """From here on a pod that no program judges is closed until its rules are written.

        Raises: LinkError, OSError.
        """
        await notrack.remove()  # rules judge by what the host tracks
        self._place = replace(self._place, guarded=await self._judged())
        try:
            await self.maps.apply()
        except Senseless as problem:
            log.warning("rules from before make no sense: pods are closed until all is heard", why=str(problem))
            self.maps.forget()
            await self.maps.apply()

    async def run(self) -> None:
        """Keep the rules in force, take the programs of before away, and try to go back to BPF.

        Raises: Recovered.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep(), name="keep rules in force")
            tasks.create_task(self._go_back(), name="try BPF again")

    async def _judged(self) -> frozenset[int]:
        """Pods' links that have both their programs, by index: a new link of an old name is another.

        Raises: LinkError.
        """
        links = await self._links.list_pod_links()
        judged = await self.hooks.judged([hook for link in links for hook in _pod_hooks(link)])
        return frozenset(link.index for link in links if judged >= set(_pod_hooks(link)))

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            try:
                await self._judge_what_lost_its_programs()
            except LinkError as problem:
                log.warning("it is not known which pods have programs of before, trying again", why=str(problem))
            try:
                if await self.maps.heal():
                    count("drift", kind="rules")
                    log.warning("rules had been removed, and are in force again")
            except OSError as problem:
                log.error("rules are not in force: correct what nft says", why=str(problem))

    async def _judge_what_lost_its_programs(self) -> None:
        """Whom rules judge is never given back to programs. Raises: LinkError."""
        if self._place.guarded:
            judged = await self._judged()
            self._place = replace(self._place, guarded=self._place.guarded & judged)

    async def _go_back(self) -> None:
        await self.maps.is_whole.wait()
        await self._take_over()
        if self._was_tried:
            await asyncio.sleep(RETRY_SECONDS)
        while True:
            held = held_back(self._settings, filled=True)
            if held:
                self.says(held)
                await asyncio.sleep(LOOK_SECONDS)
                continue
            try:
                await self._fill()
            except UNLOADABLE as problem:  # LayoutError too: here pods go on without what the maps hold
                self.maps.resume_writes()
                self.says(str(problem))
                await asyncio.sleep(RETRY_SECONDS)
            else:
                raise Recovered

    async def _take_over(self) -> None:
        """Programs that were left attached would judge by maps that nobody writes any more."""
        while True:
            try:
                pods = [hook for link in await self._links.list_pod_links() for hook in _pod_hooks(link)]
                self._place = replace(self._place, guarded=frozenset())
                await self.maps.apply()  # first, or nobody would judge until it is done
                await self.hooks.take_away([*self._ground.hooks(self._settings), *pods])
            except (LinkError, OSError) as problem:
                log.warning("programs of before are still attached, trying again", why=str(problem))
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _fill(self) -> None:
        """Load programs, and let their maps hold what the rules say. Raises: LoadError, OSError."""
        loaded = await loader.load(self._ground.config, self._settings.pin_dir, self._settings.state_dir)
        try:
            await to_the_end(asyncio.to_thread(loaded.migration.finish))  # no program is attached
        except DoesNotFit as problem:
            raise loader.LayoutError(str(problem)) from problem
        with closing(Maps(self._settings.pin_dir)) as pinned:
            self.maps.stop_writes()  # until `Recovered` ends who waits to write
            tables = NodeModel(self._settings.node).tables  # empty ones, in their order
            for table in tables:
                for key, value in self.maps.dump(table.name).items():
                    table.put(key, value)
                table.adopt(await pinned.read(table.name))
            await pinned.write(tables)


async def load(settings: NodeSettings, links: Links, ground: Ground, stack: AsyncExitStack) -> Datapath:
    """As datapath.load. What the kernel refuses is tried again while pods have the programs of before: to fall back
    ends connections, and what is short now may be there in a moment."""
    for seconds in AGAIN_SECONDS:
        try:
            return await datapath.load(settings, ground, stack)
        except (LinkError, OSError) as problem:
            if not await _has_programs(settings, links):
                raise
            log.warning("BPF does not load, trying again", why=str(problem))
        await asyncio.sleep(seconds)
    return await datapath.load(settings, ground, stack)


async def _has_programs(settings: NodeSettings, links: Links) -> bool:
    """A pod here has a program of before. Raises: LinkError."""
    with closing(NoHooks(settings.pin_dir)) as hooks:
        return bool(await hooks.judged([hook for link in await links.list_pod_links() for hook in _pod_hooks(link)]))


def place_of(settings: NodeSettings, ground: Ground) -> Place:
    """What rules need to know of a node, before it has routers."""
    device, families = ground.device, settings.families
    masquerades = {4: settings.masquerade, 6: settings.masquerade6}
    world = dict.fromkeys((4, 6), RESERVED["world"])
    if len(families) > 1:
        world = {version: RESERVED[f"world-ipv{version}"] for version in families}
    return Place(
        devices=tuple(each.name for each in ground.devices),
        own_addresses=frozenset(filter(None, (device.address, device.address6))),
        pod_links=HOST_PREFIX,
        tunnel=settings.tunnel_device,
        tunnel_port=settings.udp_port if settings.is_tunnel else 0,
        masquerade=frozenset(version for version in families if masquerades[version]),
        never_masqueraded=tuple(settings.not_masqueraded),
        services=tuple(filter(None, (settings.service_cidr, settings.service_cidr6))),
        reject=settings.service_no_backend_response == "reject",
        world=world,
    )


def _pod_hooks(link: SeenLink) -> tuple[Hook, Hook]:
    return (
        Hook(link.name, link.index, "ingress", "from_pod"),
        Hook(link.name, link.index, "egress", "to_pod"),
    )


async def leave(node: Host) -> None:
    """Rules have nothing to do any more, once programs are on every hook: they go, and health says so."""
    state_dir = node.settings.state_dir
    problem = ""
    while True:
        try:
            if not fallback_maps.is_in_force(state_dir) and not await nft.has_table(rules.TABLE):
                break
            if node.is_judged:
                await RuleMaps(lambda: Place(devices=(), own_addresses=frozenset()), state_dir, ()).remove()
                log.info("programs have taken over from the rules")
                break
        except OSError as failure:
            if isinstance(failure, NftAbsent) and not fallback_maps.is_in_force(state_dir):
                break  # nobody here has made rules
            if str(failure) != problem:
                log.warning("rules are still in force beside the programs, trying again", why=str(failure))
            problem = str(failure)
        await asyncio.sleep(LOOK_SECONDS)
    node.service.check(CHECK, True)
