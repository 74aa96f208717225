"""Services that rules name as peers: pods by the Service's selector, addresses by its EndpointSlices. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from bus import labels
from bus.addresses import parse
from bus.messages.resources import EndpointSlice, LabelSelector, Peer, Requirement, Service, ServicePeer

Key = tuple[str, str]  # namespace, name


class Services:
    """All Services, and for those without a selector what stands behind them."""

    def __init__(self) -> None:
        self._services: dict[Key, Service] = {}
        self._slices: dict[Key, EndpointSlice] = {}
        self._slices_of: dict[Key, set[Key]] = {}

    def put_service(self, service: Service) -> None:
        self._services[service.namespace, service.name] = service

    def delete_service(self, key: Key) -> None:
        self._services.pop(key, None)

    def put_slice(self, found: EndpointSlice) -> None:
        key = (found.namespace, found.name)
        self.delete_slice(key)
        self._slices[key] = found
        self._slices_of.setdefault((found.namespace, found.service), set()).add(key)

    def delete_slice(self, key: Key) -> None:
        gone = self._slices.pop(key, None)
        if gone is not None:
            of = (gone.namespace, gone.service)
            self._slices_of[of].discard(key)
            if not self._slices_of[of]:
                del self._slices_of[of]

    def behind(self, wanted: ServicePeer) -> Iterator[Peer]:
        """Who is meant by them now: a Service that is not there is nobody."""
        for key, service in sorted(self._services.items()):
            if wanted.namespace in ("", key[0]) and _is_meant(service, wanted):
                yield from self._backends(key, service)

    def _backends(self, key: Key, service: Service) -> Iterator[Peer]:
        if service.selector:
            requirements = [
                Requirement(key=f"k8s:{name}", operator="In", values=[value])
                for name, value in sorted(service.selector.items())
            ]
            own = Requirement(key=labels.NAMESPACE, operator="In", values=[key[0]])
            yield Peer(selector=LabelSelector(requirements=[own, *requirements]))
            return
        for found in sorted(self._slices_of.get(key, ())):
            for endpoint in self._slices[found].endpoints:
                for text in endpoint.addresses:
                    address = parse(text)
                    if address is not None:
                        yield Peer(cidr=f"{address}/{address.max_prefixlen}")


def _is_meant(service: Service, wanted: ServicePeer) -> bool:
    if wanted.selector is not None:
        return labels.selects(wanted.selector, service.labels)
    return service.name == wanted.name
