"""One node at work: what is heard becomes what the kernel holds, and what was done is said.

One path for everything: change the model, then `write`. Writes coalesce: whoever waits for the lock finds all that
came in meanwhile already settled. What is heard is taken under that lock, in turns of the event loop, so that none of
it is written before the rest. Before the first sync only endpoints of new pods are written, and they are closed: what
the kernel holds from before a restart stays as it is until all has been heard once, or, while the bus is away, is known
from the disk (keep/recall.py).

What makes no sense, or cannot be done now, is passed over, logged once and shown as a check; what was good before it
stays in force, and everything else goes on.
"""

from __future__ import annotations

import asyncio
from ipaddress import ip_network

from bus import subjects
from bus.digest import Held
from bus.interface import Batch, BusError, Change
from bus.messages import Message
from bus.messages import dataplane as messages
from bus.service import Service
from bus.telemetry import logger
from services.dataplane.keep.announce import Announce
from services.dataplane.keep.asked import Asked
from services.dataplane.keep.audit import Audit
from services.dataplane.keep.changes import Changes
from services.dataplane.keep.devices import Devices
from services.dataplane.keep.heal import Heal
from services.dataplane.keep.looks import Looks
from services.dataplane.keep.own_addresses import OwnAddresses
from services.dataplane.keep.recall import TURN_CHANGES, Recall, hear_all
from services.dataplane.keep.routes import Routes
from services.dataplane.keep.sockets import Sockets
from services.dataplane.keep.uplinks import Uplinks
from services.dataplane.keep.writing import Writing
from services.dataplane.kernel.hooks import Hooks
from services.dataplane.kernel.links import DeviceInfo, Links, TcProgram
from services.dataplane.kernel.maps import Maps
from services.dataplane.load.datapath import Ground
from services.dataplane.model import NodeModel
from services.dataplane.parts.routing import Routing
from services.dataplane.pods.addresses import Addresses
from services.dataplane.pods.blocks import Blocks
from services.dataplane.pods.endpoints import Endpoints
from services.dataplane.pods.leftovers import Leftovers
from services.dataplane.pods.publish import Publish
from services.dataplane.pods.restart import Restart
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.attach import Hook
from services.dataplane.store.journal import Journal

log = logger(__name__)


class Node:
    """What one dataplane process holds. `pods/verbs.py` does what the container runtime asks, on the same object."""

    def __init__(
        self,
        settings: NodeSettings,
        service: Service,
        device: DeviceInfo,
        links: Links,
        hooks: Hooks,
        maps: Maps,
        journal: Journal,
        programs: tuple[TcProgram, ...],
        mtu_bytes: int,
        recall: Recall,
        underlay: int = 0,
        ground: Ground | None = None,
    ) -> None:
        self.settings = settings
        self.service = service
        self.bus = service.bus
        self.device = device
        self.links = links
        self.hooks = hooks
        self.maps = maps
        self.journal = journal
        self.pod_programs = programs
        self.mtu_bytes = mtu_bytes
        own = frozenset(filter(None, (device.address, device.address6)))
        networks = tuple(map(ip_network, device.networks))
        routing = Routing(settings.families, underlay, settings.auto_direct_node_routes, networks)
        self.model = NodeModel(
            settings.node, own, routing, settings.not_masqueraded, announces=settings.l2_announcements
        )
        self.model.policy.store.entries_max = settings.policy_map_max
        self.model.policy.store.mode = settings.policy_mode
        if settings.policy_mode.audit or settings.policy_mode.enforcement == "never":
            log.warning("policies are not enforced on this node", mode=str(settings.policy_mode))
        self.endpoints = Endpoints()
        self.addresses = Addresses(settings.families)
        self.leftovers = Leftovers(links, journal, self.addresses)
        self.restart = Restart(self)
        self.blocks = Blocks(service, self.addresses, journal)
        self.publish = Publish(self.bus, settings.node, self.endpoints, self.model, self.restart.next_word)
        self.sockets = Sockets(service, settings, self.model.services)
        self.devices = Devices(settings, service, links, self.endpoints.links)
        self.own_addresses = OwnAddresses(service, links, self.model.network)
        self.uplinks = Uplinks(self, underlay, ground)
        self.routes = Routes(
            settings,
            service,
            links,
            self.uplinks,
            mtu_bytes,
            self.model.routes,
            routers=lambda: self.addresses.routers,
            pods=self.endpoints.links_by_address,
        )
        self._recall = recall
        self.is_whole = False  # the model is: from the bus, or from the disk while that is away
        self._synced = asyncio.Event()
        self.changes = Changes(service, self._hear)
        self.writing = Writing(service, maps, self.model)
        self._writing = asyncio.Lock()
        self.held = Held(*self.model.hears, self.publish.family)
        self.audit = Audit(maps, self.model.tables, self._writing, self)
        service.digests = lambda: self.held.digests
        service.compare = self._compare
        self.heal = Heal(
            node=self,
            links=links,
            hooks=hooks,
            audit=self.audit,
            sockets=self.sockets,
            devices=self.devices,
            routes=self.routes,
            own_addresses=self.own_addresses,
            pods=self._look_at_pods,
            pod_hooks=self.pod_hooks,
        )
        self.announce = Announce(self)
        self.looks = Looks(hooks, self._look_at_attached, self.realised)
        self.asked = Asked(service)
        self._early: list[Change] = []  # heard before all was heard once
        self._heard: dict[str, int] = {}  # the revision of what was heard last

    async def restore(self) -> None:
        """Take up what was here before a restart (pods/restart.py)."""
        await self.restart.take_up()

    @property
    def is_synced(self) -> bool:
        """All that the bus holds for this node has been heard once."""
        return self._synced.is_set()

    async def synced(self) -> None:
        """Returns when `is_synced`."""
        await self._synced.wait()

    # What is heard

    async def hear(self) -> None:
        """Follow the bus for ever."""
        async for batch in self.bus.watch_state(*self.model.hears, self.publish.family, anew=self.held.anew):
            await self.hear_batch(batch)

    async def hear_batch(self, batch: Batch) -> None:
        if subjects.ENDPOINT.owner in batch.lost:
            await self.publish.say_again()
        if not self.is_synced:
            self._early.extend(batch.changes)
            if not batch.synced:
                return  # there may be pods in it whose policies are not: no pod is opened before all is known
            changes, self._early = self._early, []
        else:
            changes = batch.changes
        async with self._writing:  # nobody settles the model in between: no pod is opened by a part of it
            for number, change in enumerate(changes, 1):
                self._take(change)
                if number % TURN_CHANGES == 0:
                    await asyncio.sleep(0)
            if batch.synced and not self.is_synced:
                for subject in self._recall.synced():
                    self.model.delete(subject)
            is_news = self.restart.learn(self.publish.held.values())
        self.changes.tell(self.model.problems)
        if is_news:
            await self.restart.settle()
        if not batch.synced:
            return
        self.held.compare(batch)
        self.service.check("digests", not self.held.problem, self.held.problem)
        if not self.is_synced:
            await self._first_sync()
        await self.write()
        await self._follow_network()
        self.announce.heard()
        self._heard = batch.revision
        await self.realised()

    def _take(self, change: Change) -> None:
        if self.changes.take(change.subject, change.message):
            self.held.take(change)
            self._recall.heard(change.subject, change.message)
        else:
            self.held.refuse(change)
            self._recall.refused(change.subject)

    def _hear(self, subject: str, message: Message | None) -> None:
        if subjects.ENDPOINT.has(subject):
            self.publish.hear(subject, message)
        elif message is None:
            self.model.delete(subject)
        else:
            self.model.put(subject, message)

    async def _first_sync(self) -> None:
        """Everything was heard once: from here on the maps hold what the bus says, and nothing else."""
        await self._take_over()
        self._synced.set()
        self.publish.begin()

    async def _follow_network(self) -> None:
        """What the host itself needs to know of blocks and nodes."""
        await self.blocks.follow(self.model.network.own_blocks)
        await self.routes.follow()

    async def _take_over(self) -> None:
        """The model is whole: from here on the maps hold what it says, and nothing else."""
        await self.own_addresses.follow()
        async with self._writing:  # what is read must not be on its way to something else
            self.model.synced()
            held = {table: await self.maps.read(table.name) for table in self.model.tables}
            self.own_addresses.take_up(held[self.model.network.table])
            self.model.settle()
            for table, entries in held.items():
                table.adopt(entries)
            self.model.judged.learn()
        await self.routes.take_up()
        self.is_whole = True
        await self.write()
        async with self._writing:  # a process before this one may have written and died before it said so
            self.maps.raise_epoch()

    async def recall(self) -> None:
        """Give the bus a moment; if it is away, go by what was heard last, as the disk has it."""
        found = await self._recall.unless(self._synced, is_kernel_new=self.maps.were_new)
        if found is None:
            return
        async with self._writing:  # as `hear_batch`, which finds all of it or nothing
            known = await self._recall.recall(found, self.changes.take)
            is_news = self.restart.learn(())
        if is_news:
            await self.restart.settle()
        if known:
            log.warning("the bus is away: going by what was heard last", subjects=known)
            await self._take_over()
            await self._follow_network()

    async def keep(self) -> None:
        """What is heard goes to the disk."""
        await self._recall.run(self.service, lambda: hear_all(self.bus, self.model.hears))

    async def write(self) -> None:
        """Bring the kernel to what the model says now; returns when it is there."""
        async with self._writing:
            changed = await self.writing.write(is_whole=self.is_whole)
            self.changes.tell(self.model.problems)
            if self.is_synced:
                self.sockets.written()
            self.own_addresses.tell()
        await self.realised()
        self.publish.changed(changed)

    async def judge_again(self) -> None:
        """Every connection is judged again, and its way looked for. Raises: OSError."""
        async with self._writing:
            self.maps.raise_epoch()

    # What is said

    async def realised(self) -> None:
        """Say that all that was heard is in the kernel; if something found no room or differs, later, when it is."""
        if not self.is_synced or self.writing.is_held_back or self.held.differing or self.audit.differing:
            return
        if self.looks.holds_back():
            return
        before = self.service.revision
        self.service.realised(self._heard)
        if self.service.revision == before:
            return
        applied = messages.AppliedRevision(
            node=self.settings.node,
            revision=self.service.revision,
            at=self.service.revision_at,
            digests=self.held.digests,
        )
        try:
            await self.bus.publish_event(subjects.APPLIED.of(self.settings.node), applied)
        except BusError as problem:  # who waits for it asks again
            log.warning("revision not told", why=str(problem))

    # What is looked at

    async def _compare(self) -> None:
        """For somebody who asks for health."""
        if self.is_whole:
            await asyncio.gather(
                self.asked.wait(self.audit.run_or_tell, "maps", "drift"),
                self.asked.wait(self.looks.run, "programs", "programs"),
            )

    async def _look_at_attached(self) -> None:
        """Every two seconds (keep/looks.py)."""
        self.restart.tell()
        self._recall.keep_mark()
        if self.is_whole and self.blocks.problem:
            await self.blocks.follow(self.model.network.own_blocks)  # there may be room by now
        await self.uplinks.look()
        await self.heal.attached()

    async def _look_at_pods(self) -> None:
        """Every half minute (keep/heal.py)."""
        self.model.policy.try_again()
        await self.leftovers.remove_all()
        await self.restart.heal()

    def routes_are_stale(self) -> None:
        """What was routed by a device may not be any more: looked at with the next look at programs."""
        self.devices.are_routes_stale = True

    @property
    def device_names(self) -> tuple[str, ...]:
        """Those that lead out."""
        return tuple(each.name for each in self.uplinks.chosen)

    @property
    def routers(self) -> tuple[str, ...]:
        """The gateways of its pods."""
        return self.addresses.routers

    def pod_hooks(self) -> list[Hook]:
        """Where programs of this node's pods belong."""
        return self.endpoints.hooks(self.pod_programs)

    @property
    def is_judged(self) -> bool:
        """Every pod here has its programs."""
        return self.hooks.has(self.pod_hooks())
