"""Which node ports a Service gets: counted from a hash of its name, so that losing the log gives the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from bus.messages import Message
from bus.messages.resources import NodePort, Service
from settings.ports import Ports


@dataclass
class NodePorts:
    """The node ports of one call: where they come from, who has which, and what the call does with them."""

    range: Ports
    holder_of: Callable[[int], NodePort | None]
    """As it is before the call; None: nobody has it."""
    asked: set[int]
    """That Services of this call name."""
    claims: dict[int, NodePort] = field(default_factory=dict)
    released: list[int] = field(default_factory=list)

    def assigned(
        self, service: Service, old: Service | None, held: list[int], refuse: Callable[[str, str], None]
    ) -> Service:
        """The Service with a node port for each of its ports, if it is of a type that has some: the one that it asks
        for, the one that it has, or the first free one by hash. Ports of one number share theirs (TCP and UDP).

        Args:
            old: as it was; None: it is new.
            held: what it holds, of an earlier call that did not finish too.
            refuse: takes a path and why it cannot be so.
        """
        had = {(port.port, port.protocol): port.node_port for port in old.ports} if old is not None else {}
        by_number = {port.port: port.node_port for port in service.ports if port.node_port}
        given: set[int] = set()
        ports = []
        for at, port in enumerate(service.ports if has_some(service) else ()):
            asked = port.node_port or by_number.get(port.port, 0)
            has = had.get((port.port, port.protocol), 0)
            number, why = self._one(service, asked, has, str(port.port), given)
            if why:
                refuse(f"spec.ports[{at}].nodePort", why)
            by_number[port.port] = number
            ports.append(replace(port, node_port=number))
        checked = 0
        if has_health_check(service):
            has = old.health_check_port if old is not None else 0
            checked, why = self._one(service, service.health_check_port, has, "health", given)
            if why:
                refuse("spec.healthCheckNodePort", why)
        none = [replace(port, node_port=0) for port in service.ports]
        service = replace(service, ports=ports or none, health_check_port=checked)
        self.released += [port for port in held if port not in ports_of(service)]
        return service

    def _one(self, service: Service, asked: int, has: int, what: str, given: set[int]) -> tuple[int, str]:
        """A port that is the Service's after this call, or 0 and why there is none. `given` are those before."""
        found: int | None = asked or has
        if asked and asked != has:
            why = outside(self.range, asked) or self._why_not(asked, service)
            if why:
                return 0, why
        if not found:
            key = f"{service.namespace}/{service.name}/{what}"
            others = self.asked | given
            found = choose(self.range, key, lambda port: port in others or self._why_not(port, service) != "")
        if found is None:
            return 0, f"no node port is free in {self.range}; delete a Service, or widen nodePort.range"
        given.add(found)
        if self._holder(found) is None:
            self.claims[found] = NodePort(port=found, namespace=service.namespace, service=service.name)
        return found, ""

    def _holder(self, port: int) -> NodePort | None:
        return self.claims.get(port) or self.holder_of(port)

    def _why_not(self, port: int, service: Service) -> str:
        holder = self._holder(port)
        if holder is None or (holder.namespace, holder.service) == (service.namespace, service.name):
            return ""
        return f"{port} is held by the Service {holder.namespace}/{holder.service}; choose another, or leave it out"


def has_some(service: Service) -> bool:
    """It has a port at every node for each of its own."""
    if service.type == "LoadBalancer":
        return service.allocates_node_ports or any(port.node_port for port in service.ports)
    return service.type == "NodePort"


def has_health_check(service: Service) -> bool:
    """Whoever balances outside must know which nodes have backends."""
    return service.type == "LoadBalancer" and service.external_traffic_policy == "Local"


def ports_of(message: Message | None) -> set[int]:
    """The node ports that a Service names; of one that is kept, those that it has."""
    if not isinstance(message, Service):
        return set()
    return {each for each in (*(port.node_port for port in message.ports), message.health_check_port) if each}


def choose(ports: Ports, key: str, is_taken: Callable[[int], bool]) -> int | None:
    """The first free port from where the hash of `key` points, around the end; None: none is free."""
    count = ports.last - ports.first + 1
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % count
    tried = (ports.first + (start + step) % count for step in range(count))
    return next((port for port in tried if not is_taken(port)), None)


def outside(ports: Ports, port: int) -> str | None:
    """Why a Service cannot have this port of its own choice; None: it can, if free."""
    if ports.first <= port <= ports.last:
        return None
    return f"{port} is outside the node ports' range {ports}; choose one inside, or leave it out"
