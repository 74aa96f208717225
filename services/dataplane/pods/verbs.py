"""What the container runtime asks (cni.Pods), done on a node.

ADD, in this order, each step safe to repeat: an address out of the node's blocks, the link with its programs, the
endpoint durable on disk, its entry in the kernel. Then the runtime is answered; the bus hears of it after that. DEL
takes the entry away first and gives the address back last (leftovers.py).
"""

from __future__ import annotations

import asyncio

from bus.telemetry import logger
from services.dataplane.batch import to_the_end
from services.dataplane.kernel.links import LinkError, PodLink
from services.dataplane.pods import cni
from services.dataplane.pods.addresses import Attachment, PoolExhausted
from services.dataplane.pods.cni import CniError, PodInterface
from services.dataplane.pods.endpoints import Endpoint, record_key
from services.dataplane.pods.host import Host
from services.dataplane.pods.leftovers import told
from services.dataplane.shapes.ip import PodIp

log = logger(__name__)


class NodePods:
    """See cni.Pods."""

    def __init__(self, node: Host) -> None:
        self._node = node
        self._disowned: set[Attachment] = set()  # endpoints whose DEL came under the name of another network

    async def add(self, request: cni.Add) -> PodInterface:
        node = self._node
        owner = request.attachment
        await node.restart.claim(owner, request.namespace, request.pod, request.uid)
        existing = node.endpoints.get(owner.container_id)
        if existing is not None:
            _check_same(existing, request)
        elif node.addresses.missing:
            raise CniError(cni.TRY_AGAIN, f"{node.addresses.missing}; ask again in a moment")
        try:
            await self._end_dead(request)
            await node.leftovers.take_back(owner)
            ips = existing.ips if existing else node.addresses.lease(owner)
        except PoolExhausted as problem:
            raise CniError(cni.ADDRESSES_EXHAUSTED, str(problem)) from problem
        except LinkError as problem:
            raise CniError(cni.FAILED, str(problem)) from problem
        making = asyncio.ensure_future(
            node.links.create_pod_link(request.netns_fd, *owner, ips, node.mtu_bytes, node.pod_programs)
        )
        try:
            link = await to_the_end(making)
            endpoint = _endpoint(request, ips, node.mtu_bytes, link, existing, node)
            if endpoint != existing:
                await node.journal.put(record_key(owner.container_id), endpoint.to_record())
        except BaseException as problem:
            if existing is None:
                await self._undo(owner, making)
            if isinstance(problem, LinkError):
                raise CniError(cni.FAILED, str(problem)) from problem
            raise
        node.endpoints.add(endpoint)
        node.model.add_pod(endpoint.local_pod())
        await node.write()
        return _interface(endpoint)

    async def delete(self, request: cni.Delete) -> None:
        node, owner = self._node, request.attachment
        await node.restart.claim(owner)
        endpoint = node.endpoints.get(owner.container_id)
        if endpoint is not None and endpoint.attachment == owner:
            if endpoint.network not in ("", request.network):
                # What follows an ADD that was refused here. Were it a new name of its own network, its link goes soon.
                log.warning("not deleted: another network made it", network=endpoint.network, container=owner[0])
                self._disowned.add(owner)
                return
            self._retire(endpoint)
        if owner in node.leftovers:
            await node.write()
            await node.leftovers.remove(owner)
        node.restart.tell()

    async def check(self, request: cni.Check) -> tuple[str, ...]:
        await self._node.restart.claim(request.attachment)
        endpoint = self._node.endpoints.get(request.attachment.container_id)
        if endpoint is None or endpoint.ifname != request.attachment.ifname:
            return (f"this node has no endpoint for sandbox {request.attachment.container_id}",)
        if endpoint.network not in ("", request.network):
            return (f"the sandbox is attached to the network {endpoint.network}, not to {request.network}",)
        wrong = await self._node.links.check_pod_link(
            request.netns_fd, endpoint.container_id, endpoint.ifname, endpoint.ips
        )
        return wrong + cni.unlike(request, _interface(endpoint))

    async def collect(self, request: cni.Collect) -> None:
        """What no record says the network of is left to its DEL."""
        node = self._node
        for owner in request.valid:
            await node.restart.claim(owner)
        of_network = [each for each in node.endpoints.all() if each.network == request.network]
        gone = [each for each in of_network if each.attachment not in request.valid]
        for endpoint in gone:
            self._retire(endpoint)
        await node.write()
        removing = (node.leftovers.remove(each.attachment) for each in gone)
        left = [each for each in await asyncio.gather(*removing, return_exceptions=True) if each is not None]
        log.info("sandboxes collected", network=request.network, count=len(gone), left=len(left))
        if left:
            raise CniError(cni.FAILED, f"{len(left)} of {len(gone)} are not removed yet, trying again", str(left[0]))

    async def status(self) -> None:
        why = self._node.addresses.missing or self._node.addresses.exhausted
        if why:
            limits = self._node.service.failing("programs", "room", "routes")
            raise CniError(cni.LIMITED if limits else cni.NOT_AVAILABLE, why, limits)

    def _retire(self, endpoint: Endpoint) -> None:
        """`endpoints` does not list it any more: its entry goes with the next write, the rest is left to remove."""
        self._node.endpoints.remove(endpoint.container_id)
        self._disowned.discard(endpoint.attachment)
        self._node.model.remove_pod(endpoint.address)
        self._node.leftovers.add(endpoint.attachment, endpoint.interface)
        self._node.publish.forget(endpoint)

    async def _end_dead(self, request: cni.Add) -> None:
        """Endpoints whose DEL may never come end here, if their link is gone, and so their namespace: other sandboxes
        of the same pod, and those that were disowned."""
        node = self._node
        doubtful = [*node.endpoints.all_of_pod(request.namespace, request.pod)]
        doubtful += [each for each in node.endpoints.all() if each.attachment in self._disowned]
        doubtful = [each for each in doubtful if each.container_id != request.attachment.container_id]
        if not doubtful:
            return
        there = {(link.name, link.index) for link in await node.links.list_pod_links()}
        gone = [each for each in doubtful if (each.interface, each.interface_index) not in there]
        gone = [each for each in dict.fromkeys(gone) if node.endpoints.get(each.container_id) is each]  # still
        for endpoint in gone:
            self._retire(endpoint)
        await node.write()
        for endpoint in gone:
            await self._remove_or_leave(endpoint.attachment)

    async def _undo(self, owner: Attachment, making: asyncio.Future[PodLink]) -> None:
        """Nothing stays of an ADD that failed or was cut off. A record that is still on its way to the disk comes
        before the one that says it is gone: the journal keeps the order."""
        made = not making.cancelled() and making.exception() is None
        self._node.leftovers.add(owner, making.result().host_name if made else "")
        await to_the_end(self._remove_or_leave(owner))

    async def _remove_or_leave(self, owner: Attachment) -> None:
        """What cannot be removed now is removed by keep/heal.py."""
        try:
            await self._node.leftovers.remove(owner)
        except (LinkError, OSError) as problem:
            told(owner, problem)


def _check_same(existing: Endpoint, request: cni.Add) -> None:
    """Raises: CniError: the sandbox is known as something else."""
    if existing.ifname != request.attachment.ifname:
        raise CniError(cni.FAILED, f"CNI_IFNAME: the sandbox has {existing.ifname}; one interface is all it gets")
    if existing.network not in ("", request.network):
        raise CniError(
            cni.FAILED, f"name: the network {existing.network} has made {existing.ifname}; DEL it there first"
        )
    if (existing.namespace, existing.pod) != (request.namespace, request.pod):
        raise CniError(
            cni.FAILED, f"CNI_ARGS: the sandbox is that of {existing.namespace}/{existing.pod}; DEL it first"
        )


def _endpoint(
    request: cni.Add, ips: tuple[PodIp, ...], mtu_bytes: int, link: PodLink, existing: Endpoint | None, node: Host
) -> Endpoint:
    first, *more = ips
    return Endpoint(
        container_id=request.attachment.container_id,
        ifname=request.attachment.ifname,
        network=request.network,
        namespace=request.namespace,
        pod=request.pod,
        uid=request.uid,
        address=first.address,
        gateway=first.gateway,
        more=tuple(more),
        mac=link.pod_mac,
        interface=link.host_name,
        interface_index=link.host_index,
        interface_mac=link.host_mac,
        mtu_bytes=mtu_bytes,
        created=existing.created if existing else node.endpoints.next_created(),
    )


def _interface(endpoint: Endpoint) -> PodInterface:
    return PodInterface(
        host_name=endpoint.interface,
        host_mac=endpoint.interface_mac,
        pod_mac=endpoint.mac,
        ips=endpoint.ips,
        mtu_bytes=endpoint.mtu_bytes,
    )
