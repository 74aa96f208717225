"""Service frontends and backends as map entries. Pure.

A frontend has a number of its own on this node; its backends fill slots 0 to n-1 under that number. A number that the
map holds after a restart is kept, so nothing is rewritten and nothing points at the wrong backends meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping

from bus.messages.lb import Backend, LoadBalancedService
from services.dataplane.layouts import BackendEntry, BackendKey, ServiceEntry, ServiceKey
from services.dataplane.tables import Table

PROTOCOLS = {"TCP": 6, "UDP": 17}


class ServiceTables:
    """The maps `services` and `backends`. Write new backends first, then services, then remove old backends."""

    def __init__(self) -> None:
        self.services = Table("services")
        self.backends = Table("backends")
        self._frontends: dict[tuple[str, str], dict[ServiceKey, int]] = {}  # backends by frontend, by service
        self._names: dict[ServiceKey, tuple[str, str]] = {}
        self._numbers: dict[ServiceKey, int] = {}
        self._next = 1

    def adopt(self, seen: Mapping[bytes, bytes]) -> None:
        """Keep the numbers of the map as it was found. Call before the first `put`."""
        for key, value in seen.items():
            self._numbers[ServiceKey.unpack(key)] = ServiceEntry.unpack(value).number
        self._next = max(self._numbers.values(), default=0) + 1

    def name_of(self, address: str, port: int, protocol: int) -> str:
        """ "default/web", "" when no service has this address."""
        return "/".join(self._names.get(ServiceKey(address, port, protocol), ()))

    def put(self, service: LoadBalancedService) -> None:
        name = (service.namespace, service.name)
        wanted = {
            ServiceKey(each.address, each.port, PROTOCOLS[each.protocol]): each.backends
            for each in service.frontends
            if each.protocol in PROTOCOLS
        }
        before = self._frontends.get(name, {})
        for key in before.keys() - wanted.keys():
            self._remove(key, before[key])
        for key, backends in wanted.items():
            self._names[key] = name
            self._fill(key, backends, before.get(key, 0))
        self._frontends[name] = {key: len(backends) for key, backends in wanted.items()}

    def delete(self, namespace: str, name: str) -> None:
        for key, count in self._frontends.pop((namespace, name), {}).items():
            self._remove(key, count)

    def _fill(self, key: ServiceKey, backends: list[Backend], before: int) -> None:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._next
            self._next += 1
        for slot, backend in enumerate(backends):
            self.backends.put(BackendKey(number, slot).pack(), BackendEntry(backend.address, backend.port).pack())
        for slot in range(len(backends), before):
            self.backends.delete(BackendKey(number, slot).pack())
        self.services.put(key.pack(), ServiceEntry(number, len(backends)).pack())

    def _remove(self, key: ServiceKey, count: int) -> None:
        number = self._numbers.pop(key)
        self._names.pop(key, None)
        self.services.delete(key.pack())
        for slot in range(count):
            self.backends.delete(BackendKey(number, slot).pack())
