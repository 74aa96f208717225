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
from bus.telemetry import count, logger
from services.dataplane.keep.asked import Asked
from services.dataplane.keep.audit import Audit
from services.dataplane.keep.devices import Devices
from services.dataplane.keep.heal import Heal
from services.dataplane.keep.looks import Looks
from services.dataplane.keep.own_addresses import OwnAddresses
from services.dataplane.keep.recall import PATIENCE_SECONDS, TURN_CHANGES, Recall
from services.dataplane.keep.routes import Routes
from services.dataplane.keep.sockets import Sockets
from services.dataplane.kernel.hooks import Hooks
from services.dataplane.kernel.links import DeviceInfo, Links, TcProgram
from services.dataplane.kernel.maps import Maps
from services.dataplane.kernel.pod_links import Wanted
from services.dataplane.model import NodeModel
from services.dataplane.parts.ipcache import Routing
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

PROBLEMS_SHOWN = 5  # subjects that the check "changes" names


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
        underlay: int = 0,
        recall: Recall | None = None,
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
        self.model = NodeModel(settings.node, own, routing, settings.not_masqueraded)
        self.model.policy.store.entries_max = settings.policy_map_max
        self.endpoints = Endpoints()
        self.addresses = Addresses(settings.families)
        self.leftovers = Leftovers(links, journal, self.addresses)
        self.restart = Restart(self)
        self.blocks = Blocks(service, self.addresses, journal)
        self.publish = Publish(self.bus, settings.node, self.endpoints, self.model, self.restart.next_word)
        self.sockets = Sockets(service, settings, self.model.services)
        self.devices = Devices(self)
        self.own_addresses = OwnAddresses(service, links, self.model.network)
        self.routes = Routes(
            settings,
            service,
            links,
            device,
            mtu_bytes,
            self.model.network,
            routers=lambda: self.addresses.routers,
            pods=self._pod_indexes,
        )
        self._recall = recall
        self.is_whole = False  # the model is: from the bus, or from the disk while that is away
        self._synced = asyncio.Event()
        self._refused: dict[str, str] = {}  # by subject: why what it says was passed over
        self._unsettled: dict[str, str] = {}  # what the model could not bring up to date, as it was logged
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
                return  # pods perhaps, and not yet the policies for them: half of it must open nothing
            changes, self._early = self._early, []
        else:
            changes = batch.changes
        async with self._writing:  # nobody settles the model in between: half of what is said must open nothing
            for number, change in enumerate(changes, 1):
                self._take_change(change)
                if number % TURN_CHANGES == 0:
                    await asyncio.sleep(0)
            if batch.synced and not self.is_synced and self._recall is not None:
                for subject in self._recall.synced():
                    self.model.delete(subject)
            is_news = self.restart.learn(self.publish.held.values())
        self._check_changes()
        if is_news:
            await self.restart.settle()
        if not batch.synced:
            return
        self.held.compare(batch)
        self.service.check("digests", not self.held.problem, self.held.problem)
        if not self.is_synced:
            await self._first_sync()
        await self.write()
        await self.blocks.follow(self.model.network.own_blocks)
        await self.routes.follow()
        self._heard = batch.revision
        await self.realised()

    def _take_change(self, change: Change) -> None:
        makes_sense = self._take(change.subject, change.message)
        (self.held.take if makes_sense else self.held.refuse)(change)
        if self._recall is not None and makes_sense:
            self._recall.heard(change.subject, change.message)
        elif self._recall is not None:
            self._recall.refused(change.subject)

    def _take(self, subject: str, message: Message | None) -> bool:
        """Whether it made sense."""
        try:
            self._hear(subject, message)
        except Exception as problem:  # noqa: BLE001  # one senseless message must not stop the node
            self._refused[subject] = repr(problem)
            count("changes_refused", owner=subject.split(".")[1])
            log.error(
                "a change makes no sense and is passed over: correct what it says at its source",
                subject=subject,
                why=repr(problem),
            )
            return False
        self._refused.pop(subject, None)
        return True

    def _check_changes(self) -> None:
        """What is passed over shows until it is said anew or taken back."""
        settling = self.model.problems
        for what in settling.keys() - self._unsettled.keys():
            log.error("not up to date: correct what is said of it at its source", what=what, why=settling[what])
        self._unsettled = dict(settling)
        problems = self._refused | settling
        shown = ", ".join(sorted(problems)[:PROBLEMS_SHOWN])
        self.service.check("changes", not problems, f"{len(problems)} passed over: {shown}" if problems else "")

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
        await self.routes.take_up()
        self.is_whole = True
        await self.write()
        async with self._writing:  # a process before this one may have written and died before it said so
            self.maps.raise_epoch()

    async def recall(self) -> None:
        """Give the bus a moment; if it is away, go by what was heard last, as the disk has it."""
        if self._recall is None:
            return
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._synced.wait()
        except TimeoutError:
            found = await self._recall.load(is_kernel_new=self.maps.were_new)
            async with self._writing:  # as `hear_batch`, which finds all of it or nothing
                known = await self._recall.recall(found or {}, self._take)
                is_news = self.restart.learn(())
            if is_news:
                await self.restart.settle()
            if known:
                log.warning("the bus is away: going by what was heard last", subjects=known)
                await self._take_over()
                await self.blocks.follow(self.model.network.own_blocks)
                await self.routes.follow()

    async def keep(self) -> None:
        """What is heard goes to the disk."""
        if self._recall is not None:
            await self._recall.run(self.service, self._hear_all)

    async def _hear_all(self) -> dict[str, Message]:
        """What the bus says now, apart from what follows it."""
        found: dict[str, Message] = {}
        async for batch in self.bus.watch_state(*self.model.hears):
            for change in batch.changes:
                if change.message is None:
                    found.pop(change.subject, None)
                else:
                    found[change.subject] = change.message
            if batch.synced:
                break
        return found

    async def write(self) -> None:
        """Bring the kernel to what the model says now; returns when it is there."""
        async with self._writing:
            changed = self.model.settle()
            self._check_changes()
            await self.maps.write(self.model.tables if self.is_whole else (self.model.endpoints.table,))
            if self.is_synced:
                self.sockets.written()
            missing = (f"{name}: {why}" for name, why in sorted(self.maps.no_room.items()))
            self.service.check("room", not self.maps.no_room, "; ".join(missing))
            self.own_addresses.tell()
        await self.realised()
        self.publish.changed(changed)

    # What is said

    async def realised(self) -> None:
        """All that was heard is in the kernel, unless something found no room or differs: then it will be told when it
        is there."""
        if not self.is_synced or self.maps.no_room or self.held.differing or self.audit.differing:
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
        self.restart.tell()
        if self._recall is not None:
            self._recall.keep_mark()
        if self.is_whole and self.blocks.problem:
            await self.blocks.follow(self.model.network.own_blocks)  # there may be room by now
        await self.heal.attached()

    async def _look_at_pods(self) -> None:
        await self.leftovers.remove_all()
        await self.restart.heal()

    def _pod_indexes(self) -> dict[str, int]:
        return {ip.address: each.interface_index for each in self.endpoints.all() for ip in each.ips}

    def pod_links(self) -> list[tuple[str, Wanted]]:
        """The host side of each pod's link, beside its pod's `namespace/name`."""
        wanted = []
        for each in self.endpoints.all():
            neighbours = tuple(ip.address for ip in each.ips if ":" in ip.address and each.mac)
            link = Wanted(each.interface, each.interface_index, each.mac, neighbours)
            wanted.append((f"{each.namespace}/{each.pod}", link))
        return wanted

    def pod_hooks(self) -> list[Hook]:
        return [
            Hook(each.interface, each.interface_index, program.direction, program.name)
            for each in self.endpoints.all()
            for program in self.pod_programs
        ]

    @property
    def routers(self) -> tuple[str, ...]:
        """The gateways of its pods."""
        return self.addresses.routers

    @property
    def is_judged(self) -> bool:
        """Every pod here has its programs."""
        return self.hooks.has(self.pod_hooks())
