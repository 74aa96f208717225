"""What was here before a restart is taken up again: by the records on disk, and where they are lost by what the kernel
and the bus still know.

A running pod whose record is lost has its link, the routes to it, and its entry in the map `endpoints`. That makes an
endpoint of it again, though without a name: its addresses stay its own, its entry stays, and until its name is known
its policy is that of the identity in its entry. The bus knows the name: this node said it there, and `identity` says it
of the address. Of the sandbox it is known when the runtime asks for it, as the link's name is made of that; until then
the link stands for it. With its name it is on disk again.

Which of what is found without a record was a pod? An entry in the kernel is made after the record and removed before
it, so a link that has one had a record. One that has none is what an ADD left that was killed; it is removed, but not
where records are known to be lost. Addresses that anything of the node uses are not given out, whatever it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

import msgspec

from bus.labels import RESERVED
from bus.messages.dataplane import Endpoint as Said
from bus.telemetry import count, logger
from services.dataplane.kernel.links import LinkError, link_mac
from services.dataplane.kernel.rtnl import SeenLink
from services.dataplane.pods import blocks
from services.dataplane.pods.addresses import AddressTaken, Attachment
from services.dataplane.pods.endpoints import Endpoint, record_key
from services.dataplane.pods.host import Host
from services.dataplane.shapes.ip import PodIp
from services.dataplane.shapes.layouts import EndpointEntry, IpcacheEntry, IpcacheKey, unpack_address

log = logger(__name__)

WORD_KEY = "word"  # in the journal: the number of the word by which the node vouched last (bus/messages/log.py)
LINK = "@"  # a container id that begins so is none (cni.py refuses it): a link stands for its sandbox
SHOWN = 5  # pods that the check "records" names
CHECK = "records"


class Restart:
    """What a node takes up, and what is still missing of it."""

    def __init__(self, node: Host) -> None:
        self._node = node
        self._identities: dict[str, int] = {}  # of pods without a name, by link, as the kernel has them
        self._unknown: set[str] = set()  # links of which nothing else is known
        self._unrecorded: set[str] = set()  # container ids whose record is not on disk
        self._told = ""
        self._word = 0

    async def next_word(self) -> int:
        """A number for the node to vouch with: higher than any before, though its clock may have gone back."""
        journal = self._node.journal
        known = journal.get(WORD_KEY)
        self._word = max(time.time_ns(), self._word + 1, known + 1 if isinstance(known, int) else 0)
        try:
            await journal.put(WORD_KEY, self._word)
        except OSError as problem:  # as long as this process lives it is remembered
            log.warning("the node's word is not on disk: make room there", why=str(problem))
        return self._word

    async def take_up(self) -> None:
        """Service numbers, blocks, and endpoints except those whose link is gone or another by now. What cannot be
        taken up is logged, counted and forgotten; the rest goes on.

        Comes before anything is heard.
        """
        node = self._node
        node.model.adopt(node.maps.dump)
        gone = self._blocks()
        seen = {link.name: link for link in await node.links.list_pod_links()}
        alive, dead = self._records(seen)
        node.endpoints.restore(alive)
        dead += [record_key(each.container_id) for each in node.endpoints.all() if not self._restore(each)]
        known = {each.interface for each in node.endpoints.all()}
        spent = {each.interface for each in alive}
        unknown = {name: link for name, link in seen.items() if name not in known}
        found = await self._found({name: link for name, link in unknown.items() if name not in spent})
        await self._forget_records([*dead, *gone])
        await self._leave_or_remove(unknown.keys() - found)
        for hook, why in (await node.hooks.adopt(node.pod_hooks())).items():
            _not_restored(hook.device, why)  # a program from before goes on; heal attaches what is missing
        node.service.check("programs", *node.hooks.state)
        self._know_myself()
        await self.settle()
        log.info("endpoints restored", alive=len(node.endpoints), gone=len(dead), without_record=len(found))

    async def settle(self) -> None:
        """What is known by now is on disk, or is tried again; what is missing is told."""
        node = self._node
        try:
            owed = [each for each in node.endpoints.all() if each.mac and each.container_id in self._unrecorded]
            await node.journal.update({record_key(each.container_id): each.to_record() for each in owed})
            self._unrecorded.difference_update(each.container_id for each in owed)
            if node.journal.is_damaged and not self._nameless and not self._unknown:
                await node.journal.mended()
        except OSError as problem:
            log.warning("records not on disk, trying again", why=str(problem))
        self.tell()

    async def heal(self) -> None:
        """What was lost may be there again, or its pod gone without a word; and the disk may be well again."""
        node = self._node
        await node.journal.check()
        lost = [each for each in node.endpoints.all() if each.container_id.startswith(LINK)]
        if lost or self._unknown:
            there = {(link.name, link.index) for link in await node.links.list_pod_links()}
            self._unknown &= {name for name, _ in there}
            for each in lost:
                if (each.interface, each.interface_index) not in there:
                    await self._forget(each)
        await self._avoid_used()
        await self.settle()

    async def _forget(self, endpoint: Endpoint) -> None:
        node = self._node
        node.endpoints.remove(endpoint.container_id)
        node.model.remove_pod(endpoint.address)
        node.publish.forget(endpoint)
        await node.write()
        node.addresses.release(endpoint.attachment)
        self._identities.pop(endpoint.interface, None)
        self._unrecorded.discard(endpoint.container_id)
        await self._forget_records([record_key(endpoint.container_id)])

    # By the disk

    def _blocks(self) -> list[str]:
        """Take them up. Returns the key if it is not to be believed: the newest record of it may be what was lost, and
        a block of an older one may be another node's by now. The bus, or what was last heard of it, tells them."""
        node = self._node
        if node.journal.is_damaged:
            return [blocks.KEY]
        try:
            node.addresses.set_blocks(node.journal.get(blocks.KEY) or [])
        except (ValueError, TypeError) as problem:
            _not_restored(blocks.KEY, problem)
        return []

    def _records(self, seen: Mapping[str, SeenLink]) -> tuple[list[Endpoint], list[str]]:
        """Endpoints whose link is the one that they had, and the keys of the other records."""
        alive: dict[str, Endpoint] = {}  # by link
        dead: list[str] = []
        for key, record in self._node.journal.items("endpoint/").items():
            try:
                endpoint = Endpoint.from_record(record)
            except ValueError as problem:
                _not_restored(key, problem)
                dead.append(key)
                continue
            link = seen.get(endpoint.interface)
            is_another = link is None or link.index != endpoint.interface_index
            if is_another or (endpoint.interface in alive and endpoint.container_id.startswith(LINK)):
                dead.append(key)
            else:
                alive[endpoint.interface] = endpoint
        return list(alive.values()), dead

    def _restore(self, endpoint: Endpoint) -> bool:
        node = self._node
        try:
            for address, gateway in endpoint.ips:
                node.addresses.restore(endpoint.attachment, address)
                if gateway:
                    node.addresses.restore_router(gateway)
        except (AddressTaken, ValueError) as problem:
            _not_restored(record_key(endpoint.container_id), problem)
            node.endpoints.remove(endpoint.container_id)
            node.addresses.release(endpoint.attachment)
            return False
        self._tell_model(endpoint)
        return True

    def _tell_model(self, endpoint: Endpoint) -> None:
        if endpoint.mac:
            pod = endpoint.local_pod()
            self._node.model.restore_pod(replace(pod, identity=self._identities.get(endpoint.interface, 0)))

    async def _forget_records(self, dead: list[str]) -> None:
        try:
            await self._node.journal.update(deleted=dead)
        except OSError as problem:  # they are as dead at the next start
            log.error("records of pods that are gone stay on the disk: make room there", records=dead, why=str(problem))

    # By the kernel

    async def _found(self, links: Mapping[str, SeenLink]) -> set[str]:
        """Make endpoints of links without a record. Returns the names of those that are."""
        if not links:
            await self._avoid_used()
            return set()
        node = self._node
        entries: dict[int, dict[str, EndpointEntry]] = {}
        for key, value in node.maps.dump("endpoints").items():
            entry = EndpointEntry.unpack(value)
            entries.setdefault(entry.interface, {})[unpack_address(key)] = entry
        routes: dict[int, set[str]] = {}
        for address, index in (await node.links.list_pod_routes()).items():
            routes.setdefault(index, set()).add(address)
        gateways = {":" in each: each for each in await node.links.list_router_addresses()}
        found = set()
        for link in links.values():
            known = entries.get(link.index, {})
            addresses = sorted({*known, *routes.get(link.index, ())}, key=lambda each: (":" in each, each))
            if not addresses or not (known or node.journal.is_damaged):
                continue
            first, *more = (PodIp(each, gateways.get(":" in each, "")) for each in addresses)
            endpoint = Endpoint(
                container_id=LINK + link.name,
                ifname="",
                namespace="",
                pod=link.name,
                address=first.address,
                gateway=first.gateway,
                more=tuple(more),
                mac=next((each.mac.hex(":") for each in known.values()), ""),
                interface=link.name,
                interface_index=link.index,
                interface_mac=link.mac,
                mtu_bytes=link.mtu_bytes,
                created=0,
            )
            self._identities[link.name] = next((each.identity for each in known.values()), 0)
            node.endpoints.add(endpoint)
            if self._restore(endpoint):
                found.add(link.name)
                count("records_lost")
                log.error(
                    "a pod's record is lost: it goes on as the kernel has it", link=link.name, addresses=addresses
                )
            else:
                del self._identities[link.name]
        await self._avoid_used()
        return found

    async def _avoid_used(self) -> None:
        """Addresses that nobody here holds, and something on this node uses all the same."""
        try:
            self._node.addresses.avoid(await self._node.links.list_used_addresses())
        except LinkError as problem:
            log.warning("addresses in use are not known, trying again", why=str(problem))

    async def _leave_or_remove(self, names: Set[str]) -> None:
        """Links of which nothing is known."""
        if names and self._node.journal.is_damaged:
            self._unknown = set(names)
            return
        for name in names:
            try:
                await self._node.links.delete_pod_link(name)
            except LinkError as problem:
                _not_restored(name, problem)

    def _know_myself(self) -> None:
        """The node's own addresses are known before anything is heard, as far as there is room."""
        node = self._node
        for own in filter(None, (node.device.address, node.device.address6)):
            try:
                node.maps["ipcache"].set(IpcacheKey(own).pack(), IpcacheEntry(RESERVED["host"]).pack())
            except OSError as problem:
                log.error(
                    "this node's own address is not known until all is heard: raise the map's limit or use less",
                    map="ipcache",
                    address=own,
                    why=str(problem),
                )

    # By the bus, and by the runtime

    @property
    def _nameless(self) -> list[Endpoint]:
        return [each for each in self._node.endpoints.all() if not (each.namespace and each.mac)]

    def learn(self, said: Iterable[Said]) -> bool:
        """Names of pods that have none. Returns whether any was found: then `settle` is due.

        Args:
            said: what the bus holds of this node's endpoints.
        """
        nameless = self._nameless
        by_link = {(each.interface, each.interface_index): each for each in said} if nameless else {}
        found = False
        for endpoint in nameless:
            known = by_link.get((endpoint.interface, endpoint.interface_index))
            name = (known.namespace, known.pod) if known else self._name_by_address(endpoint)
            if name is None or self._node.endpoints.of_pod(*name):
                continue
            uid, mac = (known.uid, known.mac) if known else ("", "")
            self._is_now(endpoint, namespace=name[0], pod=name[1], uid=uid, mac=endpoint.mac or mac)
            found = True
        return found

    def _name_by_address(self, endpoint: Endpoint) -> tuple[str, str] | None:
        """Of a pod that has the identity which the kernel knows: the address may have been another's."""
        for address in endpoint.addresses:
            known = self._node.model.network.addresses.get(address)
            identity = self._identities.get(endpoint.interface)
            if known and known.pod and (known.node, known.identity) == (self._node.settings.node, identity):
                namespace, _, pod = known.pod.partition("/")
                return namespace, pod
        return None

    async def claim(self, owner: Attachment, namespace: str = "", pod: str = "", uid: str = "") -> None:
        """The runtime speaks of `owner`. If it is the sandbox of a pod that only its link stood for, it has a name."""
        node = self._node
        link = node.links.host_name(*owner)
        found = node.endpoints.get(LINK + link)
        if found is None:
            if link in self._unknown:
                self._unknown.discard(link)
                node.leftovers.add(owner, link)
            return
        changes: dict[str, object] = {"container_id": owner.container_id, "ifname": owner.ifname}
        if not found.namespace and namespace and not node.endpoints.of_pod(namespace, pod):
            changes |= {"namespace": namespace, "pod": pod, "uid": uid}
        node.addresses.rename(found.attachment, owner)
        self._is_now(found, **changes, mac=found.mac or link_mac(*owner, "pod"))
        await self._forget_records([record_key(found.container_id)])
        await self.settle()

    def _is_now(self, endpoint: Endpoint, **changes: object) -> None:
        node = self._node
        router = node.addresses.router
        ips = [PodIp(each.address, each.gateway or router(6 if ":" in each.address else 4)) for each in endpoint.ips]
        known = msgspec.structs.replace(endpoint, gateway=ips[0].gateway, more=tuple(ips[1:]), **changes)
        node.endpoints.remove(endpoint.container_id)
        node.endpoints.add(known)
        self._tell_model(known)
        self._unrecorded.discard(endpoint.container_id)
        if known.namespace:
            self._identities.pop(known.interface, None)
            self._unrecorded.add(known.container_id)
        node.publish.forget(known)

    # What is told

    def tell(self) -> None:
        """Health says what is missing now."""
        nameless = [f"{each.interface} ({', '.join(each.addresses)})" for each in self._nameless]
        missing = sorted(nameless) + sorted(self._unknown)
        problem = ""
        if missing:
            more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            problem = (
                f"{len(missing)} pods have lost their records, and go on as the kernel has them: "
                f"{', '.join(missing[:SHOWN])}{more}; if the bus is there and does not know their names, delete them"
            )
        elif self._unrecorded:
            problem = f"{len(self._unrecorded)} pods have lost their records, and are not on disk yet"
        if problem and problem != self._told:
            log.error("records of pods are lost: delete the pods if they stay so", why=problem)
        self._told = problem
        self._node.service.check(CHECK, not problem, problem)
        disk = self._node.journal.problem
        self._node.service.check("journal", not disk, disk)


def _not_restored(what: str, problem: object) -> None:
    count("not_restored")
    log.error("not as before the restart: a pod that has no network now must start anew", what=what, why=str(problem))
