"""What the container runtime asks (cni.Pods), done on a node.

ADD, in this order, each step safe to repeat: an address out of the node's blocks, the link with its programs, the
endpoint durable on disk, its entry in the kernel. Then the runtime is answered; the bus hears of it after that.
"""

from __future__ import annotations

import asyncio

from bus.telemetry import logger
from services.dataplane import cni
from services.dataplane.addresses import Attachment, PoolExhausted
from services.dataplane.cni import CniError, PodInterface
from services.dataplane.endpoints import Endpoint
from services.dataplane.links import LinkError, PodLink
from services.dataplane.node import Node, attachment_of, record_key

log = logger(__name__)


class NodePods:
    """See cni.Pods."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def add(self, request: cni.Add) -> PodInterface:
        node = self._node
        owner = Attachment(request.attachment.container_id, request.attachment.ifname)
        existing = node.endpoints.get(owner.container_id)
        if existing is not None and existing.ifname != owner.ifname:
            raise CniError(cni.FAILED, f"CNI_IFNAME: the sandbox has {existing.ifname}; one interface is all it gets")
        if not node.addresses.router and existing is None:
            raise CniError(cni.TRY_AGAIN, "the node has no block of pod addresses yet; ask again in a moment")
        try:
            address = existing.address if existing else node.addresses.lease(owner)
        except PoolExhausted as problem:
            raise CniError(cni.ADDRESSES_EXHAUSTED, str(problem)) from problem
        gateway = existing.gateway if existing else node.addresses.router
        try:
            link = await node.links.create_pod_link(
                request.netns_fd, *owner, address, gateway, node.mtu_bytes, node.pod_programs
            )
            endpoint = _endpoint(request, address, gateway, node.mtu_bytes, link, existing, node)
            if endpoint != existing:
                await node.journal.put(record_key(owner.container_id), endpoint.to_record())
        except LinkError as problem:
            if existing is None:
                node.addresses.release(owner)
            raise CniError(cni.FAILED, str(problem)) from problem
        except BaseException:
            if existing is None:
                node.addresses.release(owner)
            raise
        older = node.endpoints.add(endpoint)
        node.model.add_pod(endpoint.local_pod())
        await node.write()
        if older is not None:
            await self._discard(older)
        return PodInterface(
            host_name=link.host_name,
            host_mac=link.host_mac,
            pod_mac=link.pod_mac,
            address=address,
            gateway=gateway,
            mtu_bytes=node.mtu_bytes,
        )

    async def delete(self, request: cni.Delete) -> None:
        endpoint = self._node.endpoints.remove(request.attachment.container_id)
        if endpoint is not None:
            await self._discard(endpoint)

    async def check(self, request: cni.Check) -> tuple[str, ...]:
        endpoint = self._node.endpoints.get(request.attachment.container_id)
        if endpoint is None or endpoint.ifname != request.attachment.ifname:
            return (f"this node has no endpoint for sandbox {request.attachment.container_id}",)
        wrong = await self._node.links.check_pod_link(
            request.netns_fd, endpoint.container_id, endpoint.ifname, endpoint.address, endpoint.gateway
        )
        if request.addresses and endpoint.address not in request.addresses:
            wrong += (f"the runtime believes in {', '.join(request.addresses)}, the node gave {endpoint.address}",)
        return wrong

    async def collect(self, request: cni.Collect) -> None:
        valid = {each.container_id for each in request.valid}
        gone = [each for each in self._node.endpoints.all() if each.container_id not in valid]
        for endpoint in gone:
            self._node.endpoints.remove(endpoint.container_id)
        await asyncio.gather(*map(self._discard, gone))
        log.info("sandboxes collected", count=len(gone))

    async def status(self) -> str:
        return "" if self._node.addresses.router else "the node has no block of pod addresses yet"

    async def _discard(self, endpoint: Endpoint) -> None:
        """Everything of an endpoint that `endpoints` does not list any more. After a failure it is listed again, so
        that the runtime's next DEL finds what is left of it."""
        node = self._node
        try:
            node.model.remove_pod(endpoint.address)
            await node.write()
            await node.links.delete_pod_link(endpoint.interface)
            await node.journal.delete(record_key(endpoint.container_id))
        except BaseException:
            if node.endpoints.of_pod(endpoint.namespace, endpoint.pod) is None:
                node.endpoints.add(endpoint)
            raise
        node.addresses.release(attachment_of(endpoint))
        node.forget(endpoint)


def _endpoint(
    request: cni.Add, address: str, gateway: str, mtu_bytes: int, link: PodLink, existing: Endpoint | None, node: Node
) -> Endpoint:
    return Endpoint(
        container_id=request.attachment.container_id,
        ifname=request.attachment.ifname,
        namespace=request.namespace,
        pod=request.pod,
        uid=request.uid,
        address=address,
        gateway=gateway,
        mac=link.pod_mac,
        interface=link.host_name,
        interface_index=link.host_index,
        interface_mac=link.host_mac,
        mtu_bytes=mtu_bytes,
        created=existing.created if existing else node.endpoints.next_created(),
    )
