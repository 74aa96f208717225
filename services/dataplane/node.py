"""One node at work: what is heard becomes what the kernel holds, and what was done is said.

One path for everything: change the model, then `write`. Writes coalesce: whoever waits for the lock finds all that
came in meanwhile already settled. Before the first sync only endpoints of new pods are written, and they are closed:
what the kernel holds from before a restart stays as it is until all has been heard once.
"""

from __future__ import annotations

import asyncio

from bus import subjects
from bus.interface import Batch, BusError
from bus.messages import Message
from bus.messages import dataplane as messages
from bus.service import Service
from bus.telemetry import count, logger
from services.dataplane.addresses import Addresses, Attachment
from services.dataplane.effects import Maps
from services.dataplane.endpoints import Endpoint, Endpoints
from services.dataplane.flows import flows, monotonic_offset
from services.dataplane.journal import Journal
from services.dataplane.layouts import IpcacheEntry, IpcacheKey
from services.dataplane.links import DeviceInfo, LinkError, Links, TcProgram
from services.dataplane.model import NodeModel
from services.dataplane.ring import Ring
from services.dataplane.rtnl import NodeRoute
from services.dataplane.settings import TUNNEL_DEVICE, NodeSettings

log = logger(__name__)

HEAL_SECONDS = 30.0  # how often what the kernel holds is compared with what it should hold
IDENTITY_HOST = 1
BLOCKS_KEY = "blocks"  # in the journal: CIDRs of this node's blocks


class Node:
    """What one dataplane process holds. `pods.py` does what the container runtime asks, on the same object."""

    def __init__(
        self,
        settings: NodeSettings,
        service: Service,
        device: DeviceInfo,
        links: Links,
        maps: Maps,
        journal: Journal,
        programs: tuple[TcProgram, TcProgram],
        mtu_bytes: int,
    ) -> None:
        self.settings = settings
        self.service = service
        self.bus = service.bus
        self.device = device
        self.links = links
        self.maps = maps
        self.journal = journal
        self.pod_programs = programs
        self.mtu_bytes = mtu_bytes
        self.model = NodeModel(settings.node, frozenset({device.address}))
        self.endpoints = Endpoints()
        self.addresses = Addresses()
        self._synced = asyncio.Event()
        self._router = ""  # the address that the node answers to
        self._routes: dict[str, NodeRoute] = {}
        self._writing = asyncio.Lock()
        self._published: dict[str, messages.Endpoint] = {}  # by subject: what the bus holds of this node
        self._to_publish: set[str] = set()
        self._publish = asyncio.Event()

    @property
    def is_synced(self) -> bool:
        """All that the bus holds for this node has been heard once."""
        return self._synced.is_set()

    # What is heard

    async def hear(self) -> None:
        """Follow the bus for ever."""
        mine = (subjects.ENDPOINT, (self.settings.node,))
        async for batch in self.bus.watch_state(*NodeModel.HEARS, mine):
            await self.hear_batch(batch)

    async def hear_batch(self, batch: Batch) -> None:
        for change in batch.changes:
            try:
                self._hear(change.subject, change.message)
            except Exception as problem:  # noqa: BLE001  # one senseless message must not stop the node
                count("plexus_changes_refused_total", owner=change.subject.split(".")[1])
                log.error(
                    "a change makes no sense and is passed over: correct what it says at its source",
                    subject=change.subject,
                    why=repr(problem),
                )
        if not batch.synced:
            return
        if not self.is_synced:
            await self._first_sync()
        await self.write()
        await self._follow_blocks()
        await self._follow_routes()
        await self._realised(batch.revision)

    def _hear(self, subject: str, message: Message | None) -> None:
        if subjects.ENDPOINT.has(subject):
            self._heard_of_myself(subject, message)
        elif message is None:
            self.model.delete(subject)
        else:
            self.model.put(subject, message)

    def _heard_of_myself(self, subject: str, message: object) -> None:
        """What the bus holds of this node's endpoints: other than what is so, it is said again."""
        if isinstance(message, messages.Endpoint):
            self._published[subject] = message
        else:
            self._published.pop(subject, None)
        if self._wanted_message(subject) != self._published.get(subject):
            self._mark(subject)

    async def _first_sync(self) -> None:
        """Everything was heard once: from here on the maps hold what the model says, and nothing else."""
        self.model.synced()
        self.model.settle()
        for table in self.model.tables:
            table.adopt(await asyncio.to_thread(self.maps.dump, table.name))
        self._synced.set()
        for subject in self._published.keys() | {self._subject(each) for each in self.endpoints.all()}:
            self._mark(subject)

    async def write(self) -> None:
        """Bring the kernel to what the model says now; returns when it is there."""
        async with self._writing:
            changed = self.model.settle()
            await self.maps.write(self.model.tables if self.is_synced else (self.model.endpoints,))
        for pod in changed:
            subject = subjects.ENDPOINT.of(self.settings.node, pod.namespace, pod.name)
            if self._wanted_message(subject) != self._published.get(subject):
                self._mark(subject)

    async def _follow_blocks(self) -> None:
        """Addresses come out of these blocks; after a restart without the bus too."""
        blocks = sorted(self.model.own_blocks)
        if blocks != sorted(self.addresses.blocks):
            self.addresses.set_blocks(blocks)
            await self.journal.put(BLOCKS_KEY, blocks)
        self.service.check("addresses", bool(self.addresses.blocks), "" if self.addresses.blocks else "no block yet")
        self.service.ready(bool(self.addresses.blocks))

    async def _follow_routes(self) -> None:
        """The host's own way to other nodes' pods."""
        if self.addresses.router and self.addresses.router != self._router:
            await self.links.ensure_router_address(self.addresses.router)
            self._router = self.addresses.router
        wanted = {cidr: self._route(cidr, address) for cidr, address in self.model.wanted_routes.items()}
        for cidr in self._routes.keys() - wanted.keys():
            await self.links.delete_node_route(cidr)
            del self._routes[cidr]
        for cidr, route in wanted.items():
            if self._routes.get(cidr) != route:
                await self._add_route(cidr, route)

    async def _add_route(self, cidr: str, route: NodeRoute) -> None:
        try:
            await self.links.ensure_node_route(route)
        except LinkError as problem:
            count("plexus_route_errors_total")
            self.service.check("routes", False, f"{cidr}: {problem}")
            log.warning("no route to another node's pods", cidr=cidr, node_address=route.node_address, why=str(problem))
        else:
            self._routes[cidr] = route
            self.service.check("routes", True)

    def _route(self, cidr: str, node_address: str) -> NodeRoute:
        if not self.settings.is_tunnel:
            return NodeRoute(cidr=cidr, node_address=node_address, device=self.device.name)
        return NodeRoute(
            cidr=cidr,
            node_address=node_address,
            device=TUNNEL_DEVICE,
            tunnel_id=IDENTITY_HOST,
            mtu_bytes=self.mtu_bytes,
            source=self.addresses.router,
        )

    # What is said

    async def _realised(self, revision: dict[str, int]) -> None:
        before = self.service.revision
        self.service.realised(revision)
        if self.service.revision == before:
            return
        applied = messages.AppliedRevision(
            node=self.settings.node, revision=self.service.revision, at=self.service.revision_at
        )
        try:
            await self.bus.publish_event(subjects.APPLIED.of(self.settings.node), applied)
        except BusError as problem:  # who waits for it asks again
            log.warning("revision not told", why=str(problem))

    def _subject(self, endpoint: Endpoint) -> str:
        return subjects.ENDPOINT.of(self.settings.node, endpoint.namespace, endpoint.pod)

    def _wanted_message(self, subject: str) -> messages.Endpoint | None:
        _, namespace, pod = subjects.ENDPOINT.parse(subject)
        endpoint = self.endpoints.of_pod(namespace, pod)
        if endpoint is None:
            return None
        return messages.Endpoint(
            node=self.settings.node,
            namespace=endpoint.namespace,
            pod=endpoint.pod,
            uid=endpoint.uid,
            address=endpoint.address,
            mac=endpoint.mac,
            interface=endpoint.interface,
            interface_index=endpoint.interface_index,
            identity=self.model.identity_of(endpoint.address),
            state=self.model.state_of(endpoint.address),
        )

    def _mark(self, subject: str) -> None:
        self._to_publish.add(subject)
        self._publish.set()

    def forget(self, endpoint: Endpoint) -> None:
        """Its pod has no endpoint any more, or another: say so."""
        self._mark(self._subject(endpoint))

    async def publish(self) -> None:
        """Keep the bus up to date on this node's endpoints; a burst on one pod is one message."""
        await self._synced.wait()  # until then it is not known what the bus holds
        while True:
            await self._publish.wait()
            self._publish.clear()
            subjects_now, self._to_publish = self._to_publish, set()
            await asyncio.gather(*map(self._publish_one, subjects_now))

    async def _publish_one(self, subject: str) -> None:
        wanted = self._wanted_message(subject)
        if wanted == self._published.get(subject):
            return
        try:
            if wanted is None:
                await self.bus.delete_state(subject)
                self._published.pop(subject, None)
            else:
                await self.bus.publish_state(subject, wanted)
                self._published[subject] = wanted
        except BusError as problem:
            log.warning("endpoint not told, trying again", subject=subject, why=str(problem))
            asyncio.get_running_loop().call_later(1.0, self._mark, subject)

    async def tell_flows(self) -> None:
        """The kernel's events, with names, as flow events."""
        ring = Ring(self.maps["events"])
        lost_before = self.maps.events_lost()
        subject = subjects.FLOWS.of(self.settings.node)
        try:
            async for batch in ring.batches():
                lost = self.maps.events_lost()
                named = flows(batch, self.model, monotonic_offset())
                for flow in named:
                    if flow.type == "drop":
                        count("plexus_drop_events_total", reason=flow.reason)
                message = messages.FlowBatch(node=self.settings.node, flows=named, lost=lost - lost_before)
                lost_before = lost
                try:
                    await self.bus.publish_event(subject, message)
                except BusError:
                    count("plexus_flows_lost_total", len(named))
        finally:
            ring.close()

    # Drift

    async def heal(self) -> None:
        """Every `HEAL_SECONDS`, put back what someone else removed or changed."""
        while True:
            await asyncio.sleep(HEAL_SECONDS)
            if self.is_synced:
                await self.heal_once()

    async def heal_once(self) -> None:
        async with self._writing:
            drifted = 0
            for table in self.model.tables:
                drifted += table.drift(await asyncio.to_thread(self.maps.dump, table.name))
        if drifted:
            count("plexus_drift_total", drifted, kind="map")
            log.warning("maps had drifted", entries=drifted)
        await self.write()  # also what found no room the last time
        for endpoint in self.endpoints.all():
            await self._heal_programs(endpoint.interface_index, self.pod_programs)
        seen = {route.cidr: route for route in await self.links.list_node_routes()}
        for cidr, route in self._routes.items():
            if cidr not in seen:
                count("plexus_drift_total", kind="route")
                await self._add_route(cidr, route)

    async def _heal_programs(self, interface_index: int, programs: tuple[TcProgram, ...]) -> None:
        attached = {each.name for each in await self.links.list_tc(interface_index)}
        for program in programs:
            if program.name not in attached:
                count("plexus_drift_total", kind="program")
                try:
                    await self.links.attach_tc(interface_index, program.fd, program.direction, program.name)
                except LinkError as problem:
                    log.warning("program not attached", interface=interface_index, why=str(problem))

    # A restart

    async def restore(self) -> None:
        """Take up what was here before a restart: service numbers, and endpoints except those whose link is gone.

        Comes before anything is heard.
        """
        self.model.services.adopt(self.maps.dump("services"))
        self.addresses.set_blocks(self.journal.get(BLOCKS_KEY) or [])
        seen = {link.name: link for link in await self.links.list_pod_links()}
        records = {key: Endpoint.from_record(value) for key, value in self.journal.items("endpoint/").items()}
        alive = [each for each in records.values() if each.interface in seen]
        dead = [each for each in records.values() if each.interface not in seen]
        dead += self.endpoints.restore(alive)
        await self.journal.update(deleted=[record_key(each.container_id) for each in dead])
        known = {each.interface for each in self.endpoints.all()}
        for name in seen.keys() - known:  # made by an ADD that was killed before it was durable: the runtime asks again
            await self.links.delete_pod_link(name)
        for endpoint in self.endpoints.all():
            self.addresses.restore(attachment_of(endpoint), endpoint.address)
            self.addresses.restore_router(endpoint.gateway)
            self.model.restore_pod(endpoint.local_pod())
            for program in self.pod_programs:
                await self.links.attach_tc(endpoint.interface_index, program.fd, program.direction, program.name)
        self.maps["ipcache"].set(IpcacheKey(self.device.address).pack(), IpcacheEntry(IDENTITY_HOST).pack())
        log.info("endpoints restored", alive=len(self.endpoints), gone=len(dead))


def record_key(container_id: str) -> str:
    """Where the journal keeps an endpoint."""
    return f"endpoint/{container_id}"


def attachment_of(endpoint: Endpoint) -> Attachment:
    return Attachment(endpoint.container_id, endpoint.ifname)
