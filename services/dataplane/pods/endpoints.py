"""The endpoints of this node: which sandbox has which link and address. Pure.

An endpoint lives from CNI ADD to CNI DEL. A pod may have several for a time, as when its sandbox is made anew before
the old one is gone; the newest speaks for it on the bus. Its identity and its policy are not kept here: they follow
from what the bus says (model.py), so a restart cannot remember them wrongly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from services.dataplane.kernel.links import TcProgram
from services.dataplane.kernel.pod_links import Wanted
from services.dataplane.part import LocalPod
from services.dataplane.pods.addresses import Attachment
from services.dataplane.shapes.attach import Hook
from services.dataplane.shapes.ip import PodIp


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A pod's place on this node; all that is needed to go on after a restart. One for each sandbox."""

    container_id: str
    ifname: str  # in the pod: "eth0"
    network: str = ""  # the name of the network configuration that made it; "" when its record is older than this field
    namespace: str
    pod: str
    uid: str = ""  # "" when the runtime did not say
    address: str  # "10.0.1.2", the first
    gateway: str  # "10.0.1.1"
    more: tuple[PodIp, ...] = ()  # of the other family
    mac: str  # the pod's side
    interface: str  # the host side: "lxc..."
    interface_index: int
    interface_mac: str
    mtu_bytes: int
    created: int  # rises with each endpoint of this node: which of two sandboxes is newer

    def to_record(self) -> dict[str, Any]:
        """For the journal."""
        record: dict[str, Any] = msgspec.to_builtins(self)
        return record

    @staticmethod
    def from_record(record: object) -> Endpoint:
        """Raises: ValueError: not an endpoint; the text names the field."""
        try:
            return msgspec.convert(record, Endpoint)
        except msgspec.ValidationError as failure:
            raise ValueError(f"endpoint: {failure}") from failure

    @property
    def attachment(self) -> Attachment:
        return Attachment(self.container_id, self.ifname)

    @property
    def ips(self) -> tuple[PodIp, ...]:
        return (PodIp(self.address, self.gateway), *self.more)

    @property
    def addresses(self) -> tuple[str, ...]:
        """One of each family that it has."""
        return tuple(each.address for each in self.ips)

    def local_pod(self) -> LocalPod:
        """What the model needs to know of it."""
        return LocalPod(
            namespace=self.namespace,
            name=self.pod,
            uid=self.uid,
            addresses=self.addresses,
            interface=self.interface,
            interface_index=self.interface_index,
            mac=self.mac,
            gateway_mac=self.interface_mac,
        )


def record_key(container_id: str) -> str:
    """Where the journal keeps an endpoint."""
    return f"endpoint/{container_id}"


class Endpoints:
    """All endpoints of this node, by sandbox and by pod."""

    def __init__(self) -> None:
        self._by_container: dict[str, Endpoint] = {}
        self._by_pod: dict[tuple[str, str], set[str]] = {}  # namespace, pod -> container ids
        self._created = 0

    def __len__(self) -> int:
        return len(self._by_container)

    def get(self, container_id: str) -> Endpoint | None:
        return self._by_container.get(container_id)

    def of_pod(self, namespace: str, pod: str) -> Endpoint | None:
        """The newest."""
        return next(iter(self.all_of_pod(namespace, pod)), None)

    def all_of_pod(self, namespace: str, pod: str) -> list[Endpoint]:
        """The newest first."""
        found = (self._by_container[each] for each in self._by_pod.get((namespace, pod), ()))
        return sorted(found, key=lambda each: each.created, reverse=True)

    def all(self) -> list[Endpoint]:
        """In order of creation."""
        return sorted(self._by_container.values(), key=lambda endpoint: endpoint.created)

    def links(self) -> list[tuple[str, Wanted]]:
        """The host side of each link, beside its pod's `namespace/name`."""
        found = []
        for each in self.all():
            neighbours = tuple(ip.address for ip in each.ips if ":" in ip.address and each.mac)
            link = Wanted(each.interface, each.interface_index, each.mac, neighbours)
            found.append((f"{each.namespace}/{each.pod}", link))
        return found

    def links_by_address(self) -> dict[str, int]:
        """The index of the host side of the link that leads to each address."""
        return {ip.address: each.interface_index for each in self.all() for ip in each.ips}

    def hooks(self, programs: Iterable[TcProgram]) -> list[Hook]:
        """Where these programs belong."""
        return [
            Hook(each.interface, each.interface_index, program.direction, program.name)
            for each in self.all()
            for program in programs
        ]

    def next_created(self) -> int:
        self._created += 1
        return self._created

    def restore(self, endpoints: Iterable[Endpoint]) -> None:
        """What was durable before a restart."""
        for each in endpoints:
            self.add(each)
        self._created = max((each.created for each in self._by_container.values()), default=0)

    def add(self, endpoint: Endpoint) -> None:
        """Take it in, in the place of what was known of the sandbox."""
        self.remove(endpoint.container_id)  # it may have been another pod's
        self._by_container[endpoint.container_id] = endpoint
        self._by_pod.setdefault((endpoint.namespace, endpoint.pod), set()).add(endpoint.container_id)

    def remove(self, container_id: str) -> Endpoint | None:
        """Forget it. Returns it; None when it is not known."""
        endpoint = self._by_container.pop(container_id, None)
        if endpoint is not None:
            of_pod = self._by_pod[endpoint.namespace, endpoint.pod]
            of_pod.remove(container_id)
            if not of_pod:
                del self._by_pod[endpoint.namespace, endpoint.pod]
        return endpoint
