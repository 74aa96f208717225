"""Service frontends and backends as map entries. Pure.

A frontend has a number of its own on this node; its backends fill slots 0 to n-1 under that number. A number that the
map holds after a restart is kept, so nothing is rewritten and nothing points at the wrong backends meanwhile.

An external address of a Service has the number of its frontend, and no slots of its own; so has a node port, which
stands once, at the family's address of nobody, for all addresses of nodes. Where only backends of this
node may serve, theirs are the first slots, and the entry of who must stay here counts those alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from bus import subjects
from bus.addresses import family, parse, parse_network, with_port
from bus.messages.lb import Backend, Frontend, LoadBalancedService
from services.dataplane.part import Hears, Held, Maps, Part, Row, Shows
from services.dataplane.shapes.ip import plain
from services.dataplane.shapes.layouts import (
    RANGE_ALLOWED,
    RANGE_DENIED,
    SERVES_ITSELF,
    SERVES_OUTSIDE,
    TICK_NS,
    AffinityEntry,
    AffinityKey,
    BackendEntry,
    BackendKey,
    LivingKey,
    Prefix,
    RangeKey,
    ServiceEntry,
    ServiceKey,
)
from services.dataplane.shapes.protocols import NUMBERS, WITH_PORTS, name_of
from services.dataplane.shapes.table import Table

AT_NODES = {"IPv4": "0.0.0.0", "IPv6": "::"}
"""Where `services` has node ports (bpf/include/frontend.h)."""

KINDS = {  # of entries, by their flag
    ServiceEntry.NODE_PORT: "NodePort",
    ServiceEntry.HOST_PORT: "HostPort",
    ServiceEntry.EXTERNAL: "external",
}

LIVES = b"\x01"
NUMBERS_FOUND_MAX = 1 << 31  # the other half is for those that are given from here on

ServiceName = tuple[str, str]  # namespace, name


@dataclass(frozen=True, slots=True)
class _Frontend:
    number: int
    backends: tuple[Backend, ...]  # by slot
    draining: tuple[Backend, ...]
    owner: ServiceName
    affinity: int = 0  # ticks
    ranges: frozenset[bytes] = frozenset()  # keys of `source_ranges`
    is_lent: bool = False  # a port of a node, as long as no Service is called there


@dataclass(frozen=True, slots=True)
class _Exposed:
    """An external address, which leads to a frontend's backends."""

    frontend: ServiceKey
    owner: ServiceName


class Services(Part):
    """The maps `services`, `backends` and `living`. A Service's entry says how many backends it has: they come first.

    An address that two services claim belongs to the one that said so last; the other's end does not touch it.
    """

    by_rules = True

    def __init__(self, node: str = "", own_addresses: frozenset[str] = frozenset()) -> None:
        """`own_addresses`: of this node, which pods on its own network have."""
        super().__init__()
        self._node = node
        self._own_addresses = own_addresses
        self.hears = (Hears(subjects.FRONTEND, self.put, self.delete, self.check),)
        self.shows = (
            Shows("lb", "Service frontends and backends.", self._rows),
            Shows("lb/frontends", "The addresses and ports that lead to Services.", self._frontend_rows),
            Shows("lb/backends", "Each Service's backends, in the order of their slots.", self._backend_rows),
            Shows("lb/source-ranges", "Networks that may call a Service from outside, or may not.", self._range_rows),
            Shows("lb/affinity", "Clients that a Service wants to come back, and where to.", self._affinity_rows),
        )
        self.services = Table("services", after=("backends", "living", "source_ranges"))
        self.backends = Table("backends")
        self.living = Table("living")
        self.ranges = Table("source_ranges")
        self.tables = (self.services, self.backends, self.living, self.ranges)
        self._frontends: dict[ServiceKey, _Frontend] = {}
        self._exposed: dict[ServiceKey, _Exposed] = {}
        self._lent: set[ServiceKey] = set()  # host ports
        self._shut: set[int] = set()  # numbers of those who may not call whom `source_ranges` has no room for
        self._on_host: set[ServiceKey] = set()  # frontends of which this host is a backend
        self._leads_to: dict[ServiceKey, set[ServiceKey]] = {}  # frontend -> external addresses
        self._of_service: dict[ServiceName, set[ServiceKey]] = {}
        self._kept: dict[ServiceKey, int] = {}  # numbers from before a restart, by who has not been heard of yet
        self._next = 1
        self.freed: set[ServiceKey] = set()
        """Where no Service is called any more, for who lends ports."""
        self.losses = 0
        """Rises with each backend that a frontend has no more, draining or not."""
        self._draining: set[bytes] = set()  # keys as those of `living`

    def adopt(self, held: Held) -> None:
        """Keep the numbers of the map as it was found.

        A number that two frontends have is kept by neither, for each would have the other's backends; nor is one that
        this process would not have come to.
        """
        seen = held(self.services.name)
        entries = {ServiceKey.unpack(key): ServiceEntry.unpack(value) for key, value in seen.items()}
        found = {key: entry.number for key, entry in entries.items() if not entry.is_exposure}
        times = Counter(found.values())
        self._kept = {
            key: number for key, number in found.items() if times[number] == 1 and 0 < number < NUMBERS_FOUND_MAX
        }
        used = (entry.number for entry in entries.values())
        self._next = max((number for number in used if number < NUMBERS_FOUND_MAX), default=0) + 1

    def _rows(self, maps: Maps, now: int) -> Iterator[Row]:
        for key, value in maps["services"].items():
            k, v = ServiceKey.unpack(key), ServiceEntry.unpack(value)
            slots = (maps["backends"].get(BackendKey(v.number, slot).pack()) for slot in range(v.backends))
            backends = [BackendEntry.unpack(raw) for raw in slots if raw is not None]
            yield {
                "frontend": with_port(k.address, k.port),
                "protocol": name_of(k.protocol),
                "service": self.name_of(k.address, k.port, k.protocol),
                "number": v.number,
                "backends": [with_port(each.address, each.port) for each in backends],
            }

    def _frontend_rows(self, maps: Maps, now: int) -> Iterator[Row]:
        for key, value in maps["services"].items():
            k, v = ServiceKey.unpack(key), ServiceEntry.unpack(value)
            yield {
                "frontend": with_port(k.address, k.port),
                "protocol": name_of(k.protocol),
                "service": self.name_of(k.address, k.port, k.protocol),
                "number": v.number,
                "kind": KINDS.get(v.flags & sum(KINDS), "ClusterIP"),
                "backends": v.backends,
                "local": bool(v.flags & ServiceEntry.LOCAL),
                "affinity_seconds": v.affinity * TICK_NS // 10**9,
            }

    def _backend_rows(self, maps: Maps, now: int) -> Iterator[Row]:
        owners = self._owners()
        slots = ((BackendKey.unpack(key), BackendEntry.unpack(value)) for key, value in maps["backends"].items())
        for k, v in sorted(slots, key=lambda each: (each[0].service, each[0].slot)):
            yield {
                "service": owners.get(k.service, ""),
                "number": k.service,
                "slot": k.slot,
                "backend": with_port(v.address, v.port),
            }

    def _range_rows(self, maps: Maps, now: int) -> Iterator[Row]:
        owners = self._owners()
        for key, value in maps["source_ranges"].items():
            k = RangeKey.unpack(key)
            yield {
                "service": owners.get(k.service, ""),
                "number": k.service,
                "prefix": str(k.network),
                "verdict": "denied" if value == RANGE_DENIED else "allowed",
            }

    def _affinity_rows(self, maps: Maps, now: int) -> Iterator[Row]:
        """Also those whose time is up: they go when room is needed."""
        owners = self._owners()
        for key, value in maps["affinity"].items():
            k, v = AffinityKey.unpack(key), AffinityEntry.unpack(value)
            yield {
                "service": owners.get(k.service, ""),
                "number": k.service,
                "client": k.client if isinstance(k.client, str) else f"namespace {k.client}",
                "backend": with_port(v.address, v.port),
                "local": k.is_local,
                "seconds_ago": max(0, now - v.used) * TICK_NS // 10**9,
            }

    def _owners(self) -> dict[int, str]:
        """Services' names by the numbers of their frontends."""
        return {each.number: "/".join(each.owner) for each in list(self._frontends.values())}

    def name_of(self, address: str, port: int, protocol: int) -> str:
        """ "default/web", "" when no service has this address."""
        key = ServiceKey(address, port, protocol)
        known = self._frontends.get(key) or self._exposed.get(key)
        return "/".join(known.owner) if known else ""

    @property
    def looked_for(self) -> int:
        """What programs are to look for, `SERVES_*`."""
        if not self._exposed and not self._lent:
            return 0
        return SERVES_OUTSIDE | (0 if self._on_host.isdisjoint(self._leads_to) else SERVES_ITSELF)

    def serves(self, key: bytes) -> bool:
        """Whether who is connected to this backend may stay so, from any thread. `key`: as of `living`."""
        return key in self.living.wanted or key in self._draining

    def check(self, service: LoadBalancedService) -> None:
        for exposure in service.exposures:
            if exposure.address:
                check_place(exposure.address, exposure.port)
        for cidr in service.source_ranges:
            if parse_network(cidr) is None:
                raise ValueError(f"{cidr} is not a network")
        for each in service.frontends:
            check_place(each.address, each.port)
            for backend in (*each.backends, *each.draining):
                check_place(backend.address, backend.port)
                if (":" in backend.address) != (":" in each.address):
                    raise ValueError(
                        f"{backend.address} and {each.address} are of two families: nobody translates that"
                    )

    def put(self, service: LoadBalancedService) -> None:
        """These are the service's frontends now."""
        name = (service.namespace, service.name)
        wanted = {
            ServiceKey(plain(each.address), each.port, NUMBERS[each.protocol]): each
            for each in service.frontends
            if NUMBERS.get(each.protocol) in WITH_PORTS
        }
        exposed = {key: front for key, front in _exposed(service, wanted).items() if key not in wanted}
        for key in self._of_service.get(name, set()) - wanted.keys() - exposed.keys():
            self._remove(key, name)
            self._hide(key, name)
        stays = "Local" in (service.internal_traffic_policy, service.external_traffic_policy)
        for key, frontend in wanted.items():
            self._hide(key, None)  # whoever said so: a Service's own address is no other's external one
            backends = frontend.backends if not stays else sorted(frontend.backends, key=self._is_elsewhere)
            self._fill(key, frontend, backends, self._entry(service, backends), name)
            self._limit(key, service)
        for key, front in exposed.items():
            self._expose(key, front, service)
        self._of_service[name] = {*wanted, *exposed}

    def _is_elsewhere(self, backend: Backend) -> bool:
        return not backend.node or backend.node != self._node

    def _served(self, policy: str, backends: Sequence[Backend]) -> int:
        """How many of them serve under a policy: those of this node come first."""
        return len(backends) if policy != "Local" else sum(not self._is_elsewhere(each) for each in backends)

    def _entry(self, service: LoadBalancedService, backends: list[Backend]) -> ServiceEntry:
        """For who calls from within. Its number is yet to come."""
        affinity = -(-service.affinity_seconds * 10**9 // TICK_NS)  # for as long at least
        if service.internal_traffic_policy != "Local":
            return ServiceEntry(0, len(backends), affinity=affinity)
        return ServiceEntry(0, self._served("Local", backends), ServiceEntry.LOCAL, affinity)

    def lend(self, key: ServiceKey, backend: Backend, owner: ServiceName) -> None:
        """A port of a node leads to one backend, unless a Service is called there: then `freed` tells when no more."""
        known = self._frontends.get(key)
        if key in self._exposed or (known is not None and not known.is_lent):
            return
        frontend = Frontend(address=key.address, port=key.port, protocol="TCP", backends=[backend])
        self._fill(key, frontend, [backend], ServiceEntry(0, 1, ServiceEntry.HOST_PORT, outside=1), owner)
        self._lent.add(key)

    def take_back(self, key: ServiceKey) -> None:
        known = self._frontends.get(key)
        if known is not None and known.is_lent:
            self._remove(key, known.owner)

    def delete(self, namespace: str, name: str) -> None:
        for key in self._of_service.pop((namespace, name), set()):
            self._remove(key, (namespace, name))
            self._hide(key, (namespace, name))

    def _limit(self, key: ServiceKey, service: LoadBalancedService) -> None:
        """To whom of those outside it is open at its balancers' addresses. A family of which the Service names nobody
        is closed, or open where those are named who may not."""
        known = self._frontends[key]
        value = RANGE_DENIED if service.denies_sources else RANGE_ALLOWED
        ranges = {
            RangeKey(known.number, Prefix.of(cidr)).pack()
            for cidr in (service.source_ranges if _balancers(service) else ())
            if (":" in cidr) == (":" in key.address)
        }
        for each in ranges:
            self.ranges.put(each, value)
        for each in known.ranges - ranges:
            self.ranges.delete(each)
        self._frontends[key] = replace(known, ranges=frozenset(ranges))

    def shut(self, missing: Iterable[bytes]) -> bool:
        """Of these keys of `source_ranges` there is no room. Where one was to keep somebody out, nobody may call from
        outside, for as long as that is so. Returns: whether entries have changed."""
        numbers = {RangeKey.unpack(key).service for key in missing if self.ranges.wanted.get(key) == RANGE_DENIED}
        changed, self._shut = self._shut ^ numbers, numbers
        for key, exposed in self._exposed.items():
            front = self._frontends[exposed.frontend]
            entry = ServiceEntry.unpack(self.services.wanted[key.pack()])
            if front.number in changed and entry.flags & ServiceEntry.RANGES:
                denies = front.number not in numbers and any(
                    self.ranges.wanted[each] == RANGE_DENIED for each in front.ranges
                )
                flags = entry.flags & ~ServiceEntry.RANGES_DENY | ServiceEntry.RANGES_DENY * denies
                self.services.put(key.pack(), replace(entry, flags=flags).pack())
        return bool(changed)

    def _expose(self, key: ServiceKey, front: ServiceKey, service: LoadBalancedService) -> None:
        """Who calls an external address from within may go to every backend, whatever the policies."""
        known = self._frontends[front]
        there = self._frontends.get(key)
        if there is not None and not there.is_lent:
            return
        self.take_back(key)
        flags = ServiceEntry.NODE_PORT if key.address in AT_NODES.values() else ServiceEntry.EXTERNAL
        if service.source_ranges and key.address in _balancers(service):
            flags |= ServiceEntry.RANGES
            flags |= ServiceEntry.RANGES_DENY * (service.denies_sources and known.number not in self._shut)
        outside = self._served(service.external_traffic_policy, known.backends)
        entry = ServiceEntry(known.number, len(known.backends), flags, known.affinity, outside)
        self.services.put(key.pack(), entry.pack())
        self._forget(key)
        self._exposed[key] = _Exposed(front, (service.namespace, service.name))
        self._leads_to.setdefault(front, set()).add(key)

    def _hide(self, key: ServiceKey, owner: ServiceName | None) -> None:
        """`owner`: only if it is this one's."""
        known = self._exposed.get(key)
        if known is not None and owner in (None, known.owner):
            self._forget(key)
            self.services.delete(key.pack())
            self.freed.add(key)

    def _forget(self, key: ServiceKey) -> None:
        known = self._exposed.pop(key, None)
        if known is not None:
            self._leads_to[known.frontend].discard(key)
            if not self._leads_to[known.frontend]:
                del self._leads_to[known.frontend]

    def _hide_those_of(self, front: ServiceKey) -> None:
        """It leads to another Service's backends, or nowhere: those that lead there must not follow."""
        for key in sorted(self._leads_to.get(front, ()), key=ServiceKey.pack):
            self._hide(key, None)

    def _fill(
        self, key: ServiceKey, frontend: Frontend, backends: list[Backend], entry: ServiceEntry, owner: ServiceName
    ) -> None:
        before = self._frontends.get(key)
        number = before.number if before else self._number(key)
        if before and before.owner != owner:
            self._hide_those_of(key)
        for slot, backend in enumerate(backends):
            self.backends.put(BackendKey(number, slot).pack(), BackendEntry(backend.address, backend.port).pack())
        for slot in range(len(backends), len(before.backends) if before else 0):
            self.backends.delete(BackendKey(number, slot).pack())
        living, draining = _living(number, backends), _living(number, frontend.draining)
        had = _living(number, before.backends) if before else set[bytes]()
        drained = _living(number, before.draining) if before else set[bytes]()
        self._draining |= draining  # first: another thread asks `serves`, which stays true of who only changes state
        for each in living:
            self.living.put(each, LIVES)
        for gone in had - living:
            self.living.delete(gone)
        self._draining -= drained - draining
        self.losses += len((had | drained) - living - draining)
        self.services.put(key.pack(), replace(entry, number=number).pack())
        self._on_host.discard(key)
        self._lent.discard(key)
        if not self._own_addresses.isdisjoint(each.address for each in backends):
            self._on_host.add(key)
        ranges = before.ranges if before else frozenset()
        self._frontends[key] = _Frontend(
            number,
            tuple(backends),
            tuple(frontend.draining),
            owner,
            entry.affinity,
            ranges,
            is_lent=bool(entry.flags & ServiceEntry.HOST_PORT),
        )

    def _number(self, key: ServiceKey) -> int:
        kept = self._kept.pop(key, None)
        if kept is not None:
            return kept
        self._next += 1
        return self._next - 1

    def _remove(self, key: ServiceKey, owner: ServiceName) -> None:
        known = self._frontends.get(key)
        if known is None or known.owner != owner:
            return
        self._hide_those_of(key)
        self._on_host.discard(key)
        self._lent.discard(key)
        del self._frontends[key]
        self.services.delete(key.pack())
        if not known.is_lent:
            self.freed.add(key)
        for slot in range(len(known.backends)):
            self.backends.delete(BackendKey(known.number, slot).pack())
        for each in known.ranges:
            self.ranges.delete(each)
        had, drained = _living(known.number, known.backends), _living(known.number, known.draining)
        for each in had:
            self.living.delete(each)
        self._draining -= drained
        self.losses += len(had | drained)


def _exposed(service: LoadBalancedService, frontends: dict[ServiceKey, Frontend]) -> dict[ServiceKey, ServiceKey]:
    """External addresses and node ports, each with the frontend that it leads to."""
    behind = {
        (family(place), each.protocol, each.port_name): key
        for key, each in frontends.items()
        if (place := parse(each.address)) is not None
    }
    found = {}
    for each in service.exposures:
        front = behind.get((each.family, each.protocol, each.port_name))
        if front is not None and (each.address or each.kind == "NodePort"):
            address = plain(each.address) if each.address else AT_NODES[each.family]
            found[ServiceKey(address, each.port, NUMBERS[each.protocol])] = front
    return found


def _balancers(service: LoadBalancedService) -> set[str]:
    return {plain(each.address) for each in service.exposures if each.kind == "LoadBalancer" and each.address}


def _living(number: int, backends: Iterable[Backend]) -> set[bytes]:
    return {LivingKey(number, each.address, each.port).pack() for each in backends}


def check_place(address: str, port: int) -> None:
    """Raises: ValueError: it is no address, or no port."""
    plain(address)
    if not 0 < port < 65536:
        raise ValueError(f"{port} is not a port")
