"""The maps in words, for `plexus bpf ... list`. Rows have stable keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

from bus.addresses import with_port
from bus.messages.dataplane import Dump, DumpRows
from services.dataplane.kernel.maps import Maps
from services.dataplane.model import NodeModel
from services.dataplane.shapes import layouts, reasons
from services.dataplane.shapes.protocols import WITH_TYPES, name_of

Row = dict[str, Any]


def dump(node: str, question: Dump, maps: Maps, model: NodeModel) -> DumpRows:
    """What a map holds in the kernel now. Blocks for about 4 microseconds a row: call it on a thread."""
    rows = TABLES[question.table](maps, model)
    most = max(0, question.limit)
    found = list(islice(rows, most + 1))
    return DumpRows(node=node, rows=found[:most], truncated=len(found) > most)


def _policy(maps: Maps, model: NodeModel) -> Iterator[Row]:
    for key, value in maps["policy"].items():
        k, v = layouts.PolicyMapKey.unpack(key), layouts.PolicyMapEntry.unpack(value)
        policy = model.policy_of(k.policy)
        port_bits = max(0, k.l4_bits - 8)
        yield {
            "policy": k.policy,
            "direction": layouts.DIRECTIONS[k.direction],
            "identity": k.identity,
            "protocol": name_of(k.protocol) if k.l4_bits >= 8 else "any",
            "port": _ports(k.port - (port_bits == 16 and k.protocol in WITH_TYPES), port_bits),
            "verdict": "deny" if v.flags & layouts.POLICY_DENIES else "allow",
            "port_names": sorted(policy.port_names.get(v.cookie, ())) if policy else [],
            "proxy_port": v.proxy_port,
            "precedence": v.precedence,
            "policies": list(policy.cookies.get(v.cookie, ())) if policy else [],
        }


def _ports(first: int, bits: int) -> str:
    if bits == 0:
        return "any"
    last = first | (1 << 16 - bits) - 1
    return str(first) if first == last else f"{first}-{last}"


def _ipcache(maps: Maps, model: NodeModel) -> Iterator[Row]:
    for key, value in maps["ipcache"].items():
        k, v = layouts.IpcacheKey.unpack(key), layouts.IpcacheEntry.unpack(value)
        known = model.network.addresses.get(k.address) if k.is_host else None
        yield {
            "prefix": f"{k.address}/{k.bits}",
            "identity": v.identity,
            "node_address": v.node,
            "pod": known.pod if known else "",
        }


def _connections(maps: Maps, model: NodeModel) -> Iterator[Row]:
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // layouts.TICK_NS
    for key, value in chain.from_iterable(maps[name].items() for name in layouts.CT_MAPS):
        k, v = layouts.ConnectionKey.unpack(key), layouts.Connection.unpack(value)
        if v.expires < now:  # as good as absent: the next packet or the next insertion takes its place
            continue
        low, high = (k.low, k.low_port), (k.high, k.high_port)
        origin, other = (low, high) if v.flags & 0x01 else (high, low)
        if k.protocol in WITH_TYPES:
            other = (other[0], 0)  # it has no port, nor an identifier of its own
        yield {
            "protocol": name_of(k.protocol),
            "source": with_port(*origin),
            "destination": with_port(*other),
            "service": with_port(v.service, v.service_port) if v.flags & 0x20 else "",
            "substitute_for": layouts.own_port(origin[1], v.substitute) if v.substitute else 0,
            "masquerade_port": v.nat_port,
            "expires_seconds": round((v.expires - now) * layouts.TICK_NS / 1e9),
            "flags": [name for bit, name in layouts.CT_FLAGS.items() if v.flags & bit],
            "way": layouts.WAYS[v.origin_way],
            "reply_way": layouts.WAYS[v.reply_way],
        }


def _nat(maps: Maps, model: NodeModel) -> Iterator[Row]:
    for key, value in maps["nat"].items():
        k, v = layouts.NatKey.unpack(key), layouts.NatEntry.unpack(value)
        yield {
            "protocol": name_of(k.protocol),
            "pod": with_port(v.pod, v.pod_port),
            "node_address": with_port(k.node, k.node_port),
            "remote": with_port(k.remote, k.remote_port),
        }


def _services(maps: Maps, model: NodeModel) -> Iterator[Row]:
    services = model.services
    for key, value in maps["services"].items():
        k, v = layouts.ServiceKey.unpack(key), layouts.ServiceEntry.unpack(value)
        slots = (maps["backends"].get(layouts.BackendKey(v.number, slot).pack()) for slot in range(v.backends))
        backends = [layouts.BackendEntry.unpack(raw) for raw in slots if raw is not None]
        yield {
            "frontend": with_port(k.address, k.port),
            "protocol": name_of(k.protocol),
            "service": services.name_of(k.address, k.port, k.protocol),
            "number": v.number,
            "backends": [with_port(each.address, each.port) for each in backends],
        }


def _endpoints(maps: Maps, model: NodeModel) -> Iterator[Row]:
    for key, value in maps["endpoints"].items():
        address, v = layouts.unpack_address(key), layouts.EndpointEntry.unpack(value)
        pod = model.pods.get(address)
        yield {
            "address": address,
            "pod": f"{pod.namespace}/{pod.name}" if pod else "",
            "interface": pod.interface if pod else "",
            "interface_index": v.interface,
            "identity": v.identity,
            "policy": v.policy,
            "ingress": "enforced" if v.flags & layouts.FLAG_ENFORCE_INGRESS else "open",
            "egress": "enforced" if v.flags & layouts.FLAG_ENFORCE_EGRESS else "open",
            "mac": v.mac.hex(":"),
        }


def _counters(maps: Maps, model: NodeModel) -> Iterator[Row]:
    for (reason, direction), (packets, octets) in sorted(maps.counters().items()):
        yield {
            "reason": reasons.reason_name(reason),
            "reason_code": reason,
            "direction": layouts.DIRECTIONS[direction],
            "packets": packets,
            "bytes": octets,
        }


TABLES: dict[str, Callable[[Maps, NodeModel], Iterator[Row]]] = {
    "policy": _policy,
    "ipcache": _ipcache,
    "ct": _connections,
    "nat": _nat,
    "lb": _services,
    "endpoints": _endpoints,
    "counters": _counters,
}
