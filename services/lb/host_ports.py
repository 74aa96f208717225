"""Ports of a node that lead to a pod on it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from bus.addresses import Address, family, order, parse, with_port
from bus.messages.lb import Backend, HostPort, HostPorts
from bus.messages.resources import Pod
from services.lb.places import NOT_AN_ADDRESS, Places

OTHER_FAMILY_OF_HOST = "the pod has no address of its family"


def host_ports(pod: Pod, places: Places, left_out: dict[str, str]) -> HostPorts | None:
    """Those of the pod, ready or not; None: it has none, or is nowhere. Adds to `left_out` what cannot be."""
    wanted = [port for port in pod.ports if 0 < port.host_port < 65536 and not pod.host_network]
    if not wanted or not pod.node:
        return None
    found = {
        (each.family, each.port, each.protocol, each.address): each for each in _ports(pod, places, left_out)
    }  # two containers that declare one port are one
    if not found:
        return None
    ports = sorted(found.values(), key=lambda each: (each.family, each.port, each.protocol, order(each.address)))
    return HostPorts(node=pod.node, namespace=pod.namespace, pod=pod.name, ports=ports)


def _ports(pod: Pod, places: Places, left_out: dict[str, str]) -> Iterator[HostPort]:
    usable: list[tuple[str, Address]] = []
    for text in places.of(pod, also_not_ready=True):
        place, reason = parse(text), places.objection(pod, text)
        if place is not None and reason is None:
            usable.append((text, place))
        else:
            left_out[f"{text} of pod {pod.name}"] = reason or NOT_AN_ADDRESS
    for port in pod.ports:
        if not 0 < port.host_port < 65536 or not 0 < port.port < 65536:
            continue
        host = parse(port.host_address)
        behind = [(text, place) for text, place in usable if host is None or place.version == host.version]
        if usable and not behind:
            left_out[with_port(port.host_address, port.host_port)] = OTHER_FAMILY_OF_HOST
        for text, place in behind:
            yield HostPort(
                address="" if host is None else host.compressed,
                family=family(place),
                port=port.host_port,
                protocol=port.protocol,
                backend=Backend(address=text, port=port.port, node=pod.node),
            )
