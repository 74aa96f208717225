"""Ports of nodes that lead to one pod (`hostPort`), this node's and others'. Pure.

Each is an entry of `services` at each address of its node, or at the one that the pod asks for: so whoever calls it, on
whatever node, is led to the pod at once. A pod gets no address but its node's, whatever it asks for: or it could have
what others send elsewhere. Nor has it loopback, which is every pod's own. A Service goes before a host port, and of two
pods that claim one the first has it until it goes.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from bus import subjects
from bus.addresses import family, parse
from bus.messages.lb import Backend, HostPort, HostPorts
from bus.messages.resources import Node
from services.dataplane.part import Facts, Hears, Part
from services.dataplane.parts.services import ServiceName, Services, check_place
from services.dataplane.shapes.ip import plain
from services.dataplane.shapes.layouts import ServiceKey
from services.dataplane.shapes.protocols import NUMBERS, WITH_PORTS

PodName = tuple[str, str, str]  # node, namespace, name


class NodesPorts(Part):
    """It has no table: `services` has what it lends it.

    Args:
        facts: of which it follows `own`: an address that comes later has the ports, too.
        node: this one.
    """

    by_rules = True

    def __init__(self, facts: Facts, node: str, services: Services) -> None:
        super().__init__()
        self.hears = (
            Hears(subjects.HOST_PORTS, self._put, self._delete, _check),
            Hears(subjects.NODE, self._put_node, self._delete_node),
        )
        self._services = services
        self._node = node
        self._own = facts.own
        self._own_changed: Final = facts.own.follow()
        self._addresses: dict[str, frozenset[str]] = {}  # by node
        self._pods: dict[PodName, HostPorts] = {}
        self._pods_of: defaultdict[str, set[PodName]] = defaultdict(set)
        self._stale: set[PodName] = set()
        self._keys: dict[PodName, set[ServiceKey]] = {}
        self._claims: defaultdict[ServiceKey, dict[PodName, Backend]] = defaultdict(dict)  # the first has it

    def _put(self, ports: HostPorts) -> None:
        name = (ports.node, ports.namespace, ports.pod)
        self._pods[name] = ports
        self._pods_of[ports.node].add(name)
        self._stale.add(name)

    def _delete(self, node: str, namespace: str, pod: str) -> None:
        name = (node, namespace, pod)
        if self._pods.pop(name, None) is not None:
            self._pods_of[node].discard(name)
            self._stale.add(name)

    def _put_node(self, node: Node) -> None:
        self._move(node.name, frozenset(map(plain, node.addresses)))

    def _delete_node(self, name: str) -> None:
        self._move(name, frozenset())

    def _move(self, node: str, addresses: frozenset[str]) -> None:
        if self._addresses.get(node, frozenset()) != addresses:
            self._addresses[node] = addresses
            self._stale |= self._pods_of.get(node, set())

    def settle(self) -> None:
        if self._own_changed:  # none of which is looked at by itself
            self._own_changed.clear()
            self._stale |= self._pods_of.get(self._node, set())
        changed = {key for key in self._services.freed if key in self._claims}
        self._services.freed.clear()
        while self._stale:
            changed |= self._claim(self._stale.pop())
        for key in sorted(changed, key=ServiceKey.pack):
            self._settle_key(key)

    def _claim(self, name: PodName) -> set[ServiceKey]:
        """Returns keys whose claims have changed."""
        ports = self._pods.get(name)
        wanted = {key: each.backend for each in (ports.ports if ports else ()) for key in self._places(name[0], each)}
        had = self._keys.pop(name, set())
        if wanted:
            self._keys[name] = set(wanted)
        for key in had - wanted.keys():
            del self._claims[key][name]
        for key, backend in wanted.items():
            self._claims[key][name] = backend
        return had | wanted.keys()

    def _places(self, node: str, port: HostPort) -> list[ServiceKey]:
        number = NUMBERS.get(port.protocol)
        if number not in WITH_PORTS:
            return []
        here = {*self._addresses.get(node, ()), *(self._own if node == self._node else ())}
        found = {each for each in here if (place := parse(each)) is not None and family(place) == port.family}
        if port.address:
            found &= {plain(port.address)}
        return [ServiceKey(each, port.port, number) for each in found if not _is_loopback(each)]

    def _settle_key(self, key: ServiceKey) -> None:
        claims = self._claims[key]
        if not claims:
            del self._claims[key]
            self._services.take_back(key)
            return
        name, backend = next(iter(claims.items()))
        self._services.lend(key, backend, _owner(name))


def _is_loopback(address: str) -> bool:
    place = parse(address)
    return place is None or place.is_loopback


def _owner(name: PodName) -> ServiceName:
    """No Service is called so: a slash is in no name."""
    _, namespace, pod = name
    return namespace, f"{pod}/host-port"


def _check(ports: HostPorts) -> None:
    for each in ports.ports:
        check_place(each.backend.address, each.backend.port)
        check_place(each.address or each.backend.address, each.port)
        place = parse(each.backend.address)
        if place is None or family(place) != each.family:
            raise ValueError(f"{each.backend.address} is not {each.family}: nobody translates that")
