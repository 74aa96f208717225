"""What a pod's life asks of the node that it is lived on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from bus.service import Service
from services.dataplane.kernel.hooks import Hooks
from services.dataplane.kernel.links import DeviceInfo, Links, TcProgram
from services.dataplane.kernel.maps import Maps
from services.dataplane.model import NodeModel
from services.dataplane.pods.addresses import Addresses
from services.dataplane.pods.endpoints import Endpoints
from services.dataplane.pods.leftovers import Leftovers
from services.dataplane.pods.publish import Publish
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.attach import Hook
from services.dataplane.store.journal import Journal

if TYPE_CHECKING:
    from services.dataplane.pods.restart import Restart


class Host(Protocol):
    """Node, as this room knows it."""

    settings: NodeSettings
    service: Service
    device: DeviceInfo
    links: Links
    hooks: Hooks
    maps: Maps
    journal: Journal
    model: NodeModel
    endpoints: Endpoints
    addresses: Addresses
    leftovers: Leftovers
    restart: Restart
    publish: Publish
    pod_programs: tuple[TcProgram, ...]
    mtu_bytes: int

    async def write(self) -> None:
        """Bring the kernel to what the model says now; returns when it is there."""

    def pod_hooks(self) -> list[Hook]:
        """Where programs of this node's pods belong."""
