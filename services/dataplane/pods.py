"""What the container runtime asks (cni.Pods), done on a node.

ADD, in this order, each step safe to repeat: an address out of the node's blocks, the link with its programs, the
endpoint durable on disk, its entry in the kernel. Then the runtime is answered; the bus hears of it after that. DEL
takes the entry away first and gives the address back last (leftovers.py).
"""

from __future__ import annotations

import asyncio

from bus.telemetry import logger
from services.dataplane import cni
from services.dataplane.addresses import Attachment, PodIp, PoolExhausted
from services.dataplane.batch import to_the_end
from services.dataplane.cni import CniError, PodInterface
from services.dataplane.endpoints import Endpoint, record_key
from services.dataplane.leftovers import told
from services.dataplane.links import LinkError, PodLink
from services.dataplane.node import Node

log = logger(__name__)


class NodePods:
    """See cni.Pods."""

    def __init__(self, node: Node) -> None:
        self._node = node

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
        older = node.endpoints.add(endpoint)
        node.model.add_pod(endpoint.local_pod())
        if older is not None:
            self._retire(older)
        await node.write()
        if older is not None:
            await self._remove_or_leave(older.attachment)
        return PodInterface(
            host_name=link.host_name,
            host_mac=link.host_mac,
            pod_mac=link.pod_mac,
            ips=ips,
            mtu_bytes=node.mtu_bytes,
        )

    async def delete(self, request: cni.Delete) -> None:
        await self._node.restart.claim(request.attachment)
        endpoint = self._node.endpoints.get(request.attachment.container_id)
        if endpoint is not None and endpoint.attachment == request.attachment:
            self._node.endpoints.remove(endpoint.container_id)
            self._retire(endpoint)
        if request.attachment in self._node.leftovers:
            await self._node.write()
            await self._node.leftovers.remove(request.attachment)
        self._node.restart.tell()

    async def check(self, request: cni.Check) -> tuple[str, ...]:
        await self._node.restart.claim(request.attachment)
        endpoint = self._node.endpoints.get(request.attachment.container_id)
        if endpoint is None or endpoint.ifname != request.attachment.ifname:
            return (f"this node has no endpoint for sandbox {request.attachment.container_id}",)
        wrong = await self._node.links.check_pod_link(
            request.netns_fd, endpoint.container_id, endpoint.ifname, endpoint.ips
        )
        if request.addresses and not set(endpoint.addresses) <= set(request.addresses):
            believed, given = ", ".join(request.addresses), ", ".join(endpoint.addresses)
            wrong += (f"the runtime believes in {believed}, the node gave {given}",)
        return wrong

    async def collect(self, request: cni.Collect) -> None:
        for owner in request.valid:
            await self._node.restart.claim(owner)
        gone = [each for each in self._node.endpoints.all() if each.attachment not in request.valid]
        for endpoint in gone:
            self._node.endpoints.remove(endpoint.container_id)
            self._retire(endpoint)
        await self._node.write()
        await asyncio.gather(*(self._node.leftovers.remove(each.attachment) for each in gone))
        log.info("sandboxes collected", count=len(gone))

    async def status(self) -> str:
        return self._node.addresses.missing

    def _retire(self, endpoint: Endpoint) -> None:
        """`endpoints` does not list it any more: its entry goes with the next write, the rest is left to remove."""
        self._node.model.remove_pod(endpoint.address)
        self._node.leftovers.add(endpoint.attachment, endpoint.interface)
        self._node.forget(endpoint)

    async def _undo(self, owner: Attachment, making: asyncio.Future[PodLink]) -> None:
        """Nothing stays of an ADD that failed or was cut off. A record that is still on its way to the disk comes
        before the one that says it is gone: the journal keeps the order."""
        made = not making.cancelled() and making.exception() is None
        self._node.leftovers.add(owner, making.result().host_name if made else "")
        await to_the_end(self._remove_or_leave(owner))

    async def _remove_or_leave(self, owner: Attachment) -> None:
        """What cannot be removed now is removed by `Node.heal`."""
        try:
            await self._node.leftovers.remove(owner)
        except (LinkError, OSError) as problem:
            told(owner, problem)


def _check_same(existing: Endpoint, request: cni.Add) -> None:
    """Raises: CniError: the sandbox is known as something else."""
    if existing.ifname != request.attachment.ifname:
        raise CniError(cni.FAILED, f"CNI_IFNAME: the sandbox has {existing.ifname}; one interface is all it gets")
    if (existing.namespace, existing.pod) != (request.namespace, request.pod):
        raise CniError(
            cni.FAILED, f"CNI_ARGS: the sandbox is that of {existing.namespace}/{existing.pod}; DEL it first"
        )


def _endpoint(
    request: cni.Add, ips: tuple[PodIp, ...], mtu_bytes: int, link: PodLink, existing: Endpoint | None, node: Node
) -> Endpoint:
    first, *more = ips
    return Endpoint(
        container_id=request.attachment.container_id,
        ifname=request.attachment.ifname,
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
