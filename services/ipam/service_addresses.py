"""Pools and Services of type LoadBalancer -> which Services have which address. Pure.

An address is one key of the log, and its value names everyone who has it: it is changed by compare-and-set against what
was known, so of two replicas that give it away at once one loses, hears who has it, and looks again. What follows from
that, how each Service and each pool does, is said beside it and decides nothing.

A Service keeps what it has as long as a pool holds the address and selects the Service: a pool that is disabled, that
conflicts with another or that shrinks takes nothing from a Service that still fits. An address that is given is the
lowest that is free, of the oldest pool that has one.

Source: Cilium's documentation, "LoadBalancer IP Address Management" (what may be shared, reasons of conditions).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from msgspec.structs import replace

from bus.addresses import FAMILIES, Address, family, order, parse, plain
from bus.control import Action, Amend, Say, Unsay
from bus.messages import Message
from bus.messages.ipam import AddressHolder, AddressRequest, PoolUse, ServiceAddress
from bus.messages.resources import Family, LoadBalancerPool, LoadBalancerRequest, Node, Service
from bus.subjects import (
    ADDRESS_REQUEST,
    LOAD_BALANCER_POOL,
    NODE,
    POOL_USE,
    SERVICE,
    SERVICE_ADDRESS,
    State,
    check_subject,
)
from services.ipam.ranges import FirstFree, Pool, Range, mark_conflicts

CLASSES = ("", "io.cilium/bgp-control-plane", "io.cilium/l2-announcer")
"""Values of loadBalancerClass for which addresses come from here; a Service of another class is somebody else's."""

MOST_GONE = 4096  # ended Services that are remembered, for what is heard of them late

Name = tuple[str, str]  # (namespace, name) of a Service


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a Service has not all that it asks for."""

    reason: str  # one word, as a condition has it
    detail: str


class ServiceAddresses:
    """`bus.control.Model`, of the part of "ipam" that is about Services."""

    owner: ClassVar[str] = "ipam"
    hears: ClassVar[tuple[State[Message], ...]] = (SERVICE, LOAD_BALANCER_POOL, NODE, SERVICE_ADDRESS)
    says: ClassVar[tuple[State[Message], ...]] = (SERVICE_ADDRESS, ADDRESS_REQUEST, POOL_USE)

    def __init__(self) -> None:
        self._services: dict[Name, Service] = {}  # those that are ours to serve
        self._others: set[Name] = set()  # Services that are not
        self._gone: dict[Name, None] = {}  # those whose end was heard of last, the oldest first
        self._pools: dict[str, Pool] = {}
        self._by_age: list[Pool] = []
        self._node_addresses: dict[str, set[str]] = {}  # by the Node's subject
        self._barred: Counter[str] = Counter()  # addresses of nodes
        self._held: dict[str, ServiceAddress] = {}  # by address, as the log has it
        self._unreadable: set[str] = set()  # addresses that somebody has, though not known who
        self._addresses_of: dict[Name, set[str]] = defaultdict(set)
        self._shared: dict[str, set[str]] = defaultdict(set)  # addresses by sharing key
        self._free = FirstFree()
        self._dirty: set[Name] = set()
        self._missing: dict[Name, Missing] = {}  # Services that wait
        self._used: dict[str, int] = {}  # by pool
        self._dirty_pools: set[str] = set()
        self._requests: dict[Name, AddressRequest] = {}  # as they were said
        self._uses: dict[str, PoolUse] = {}
        self._has_acted = False

    @property
    def waiting(self) -> dict[Name, Missing]:
        """Services that have not all that they ask for, and why. For health and the log."""
        return dict(self._missing)

    def put(self, subject: str, message: Message) -> None:
        """`subject` has this value now.

        Raises: ValueError: it makes no sense. An address then counts as taken, by nobody known; else nothing changes.
        """
        try:
            check_subject(subject, message)
            if isinstance(message, ServiceAddress) and parse(message.address) is None:
                raise ValueError(f"{message.address} is not an address")
        except ValueError:
            if SERVICE_ADDRESS.has(subject):
                self.taken(subject)
            raise
        match message:
            case Service():
                self._set_service((message.namespace, message.name), message)
            case LoadBalancerPool():
                self._set_pool(message.name, Pool(message))
            case Node():
                self._set_node(subject, set(map(plain, message.addresses)))
            case ServiceAddress():
                self._set_held(message.address, message)

    def delete(self, subject: str) -> None:
        if SERVICE.has(subject):
            namespace, name = SERVICE.parse(subject)
            self._set_service((namespace, name), None)
        elif LOAD_BALANCER_POOL.has(subject):
            self._set_pool(LOAD_BALANCER_POOL.parse(subject)[0], None)
        elif NODE.has(subject):
            self._set_node(subject, set())
        elif SERVICE_ADDRESS.has(subject):
            self._set_held(SERVICE_ADDRESS.parse(subject)[0], None)

    def taken(self, subject: str) -> None:
        """The address has a value that cannot be read here: it is somebody's, until its subject is put or deleted."""
        (address,) = SERVICE_ADDRESS.parse(subject)
        if address not in self._unreadable:
            self._set_held(address, None)
            self._unreadable.add(address)
            self._count(address, 1)

    def act(self) -> Iterable[Action]:
        """Take back what does not fit any more and give what is asked for, an address once in all of it; then say how
        each Service and pool does that nothing was done for.

        A Service that nobody knows loses what it has the first time, when everything was heard, and later when its end
        is heard of: another replica may have given it to one that is still to be heard of.
        """
        if not self._has_acted:
            self._has_acted = True
            for name in self._addresses_of.keys() - self._services.keys() - self._others:
                self._bury(name)
        plan = _Plan(self)
        dirty = sorted(name for name in self._dirty if self._is_known(name))
        for name in dirty:
            plan.take_back(name)
        if plan.frees:
            dirty = sorted({*dirty, *self._missing})
        missing = dict(self._missing)
        for asks_by_name in (True, False):
            for name in dirty:
                service = self._services.get(name)
                if service is not None and bool(_request(service).addresses) == asks_by_name:
                    found = plan.give(service)
                    missing.pop(name, None)
                    if found is not None:
                        missing[name] = found
        amendments = list(plan.amendments())
        touched = _touched(amendments)  # how these do is not known before that is answered
        actions: list[Action] = [*amendments]
        requests: dict[Name, AddressRequest | None] = {
            name: self._told(name, missing.get(name)) for name in dirty if name not in touched
        }
        uses = {name: self._use(name) for name in self._dirty_pools}
        # Nothing can fail from here on.
        self._missing = {name: found for name, found in missing.items() if name in self._services}
        self._dirty, self._dirty_pools = touched, set()
        for name, request in requests.items():
            if request != self._requests.get(name):
                subject = ADDRESS_REQUEST.of(*name)
                actions.append(Unsay(subject) if request is None else Say(subject, request))
                _keep(self._requests, name, request)
        for pool, use in uses.items():
            if use != self._uses.get(pool):
                actions.append(Unsay(POOL_USE.of(pool)) if use is None else Say(POOL_USE.of(pool), use))
                _keep(self._uses, pool, use)
        return actions

    def said(self) -> Iterable[str]:
        """No address is taken away but by `act`."""
        return [
            *map(SERVICE_ADDRESS.of, (*self._held, *self._unreadable)),
            *(ADDRESS_REQUEST.of(*name) for name in self._requests),
            *map(POOL_USE.of, self._uses),
        ]

    # -- what is known

    def _set_service(self, name: Name, service: Service | None) -> None:
        self._services.pop(name, None)
        self._others.discard(name)
        self._gone.pop(name, None)
        if service is None:
            self._bury(name)
        elif service.load_balancer is not None and service.load_balancer.load_balancer_class in CLASSES:
            self._services[name] = service
        else:
            self._others.add(name)
        self._dirty.add(name)

    def _bury(self, name: Name) -> None:
        self._gone[name] = None
        self._dirty.add(name)
        if len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]

    def _is_known(self, name: Name) -> bool:
        """What it asks for, or that it asks for nothing."""
        return name in self._services or name in self._others or name in self._gone

    def _set_pool(self, name: str, pool: Pool | None) -> None:
        """A pool is rare, so all Services are looked at again, and all addresses counted."""
        _keep(self._pools, name, pool)
        mark_conflicts(self._pools.values())
        self._by_age = sorted(self._pools.values(), key=lambda each: each.age)
        self._free.keep(each for known in self._by_age for each in known.ranges)
        self._used = dict.fromkeys(self._pools, 0)
        for address in self._held.keys() | self._unreadable:
            self._count(address, 1)
        self._dirty |= self._services.keys()
        self._dirty_pools |= {name, *self._pools}

    def _set_node(self, subject: str, addresses: set[str]) -> None:
        before = self._node_addresses.pop(subject, set())
        if addresses:
            self._node_addresses[subject] = addresses
        self._barred.update(addresses)
        self._barred.subtract(before)
        self._barred = +self._barred
        for address in addresses ^ before:
            self._dirty |= self._holders(address)
        if before - addresses:
            self._dirty |= self._missing.keys()

    def _set_held(self, address: str, held: ServiceAddress | None) -> None:
        was_held = address in self._held or address in self._unreadable
        before = self._held.get(address)
        if before is not None:
            for each in before.services:
                _discard(self._addresses_of, (each.namespace, each.name), address)
                _discard(self._shared, each.sharing_key, address)
        self._dirty |= self._holders(address)
        self._unreadable.discard(address)
        _keep(self._held, address, held)
        if held is not None:
            for each in held.services:
                self._addresses_of[each.namespace, each.name].add(address)
                self._shared[each.sharing_key].add(address)
        self._dirty |= self._holders(address)
        parsed = parse(address)
        if held is None and parsed is not None:
            self._free.free(parsed)
        if before is not None or (held is not None and any(each.sharing_key for each in held.services)):
            self._dirty |= self._missing.keys()  # it is free, or may be shared
        if was_held != (held is not None):
            self._count(address, 1 if held is not None else -1)

    def _holders(self, address: str) -> set[Name]:
        held = self._held.get(address)
        return {(each.namespace, each.name) for each in held.services} if held is not None else set()

    def _count(self, address: str, by: int) -> None:
        parsed = parse(address)
        for pool in self.pools_with(parsed) if parsed is not None else ():
            self._used[pool.name] += by
            self._dirty_pools.add(pool.name)

    # -- what `_Plan` asks

    def service(self, name: Name) -> Service | None:
        """None: it asks for nothing here."""
        return self._services.get(name)

    def held(self, address: str) -> ServiceAddress | None:
        return self._held.get(address)

    def addresses_of(self, name: Name) -> list[str]:
        """In order, IPv4 first."""
        return sorted(self._addresses_of.get(name, ()), key=order)

    def shared_by(self, key: str) -> set[str]:
        """Addresses that Services of a sharing key have."""
        return self._shared.get(key, set())

    def is_barred(self, address: str) -> bool:
        """It is a node's, or somebody's of whom nothing can be read."""
        return address in self._unreadable or address in self._barred

    def first_free(self, among: Range, is_taken: Callable[[str], bool]) -> str | None:
        return self._free.find(among, is_taken, self._held)

    def begin(self) -> None:
        self._free.begin()

    def pools_with(self, address: Address) -> list[Pool]:
        return [pool for pool in self._by_age if pool.has(address)]

    def fits(self, service: Service, address: str) -> bool:
        """The Service may go on having it."""
        parsed = parse(address)
        if parsed is None or address in self._barred:
            return False
        return any(pool.selects(service) for pool in self.pools_with(parsed))

    def pools_for(self, service: Service) -> list[Pool]:
        """That would give it an address, the oldest first."""
        return [pool for pool in self._by_age if pool.gives and pool.selects(service)]

    # -- what follows from it

    def _told(self, name: Name, missing: Missing | None) -> AddressRequest | None:
        """None: the Service asks for nothing, or not from us."""
        if name not in self._services:
            return None
        namespace, own = name
        found = AddressRequest(
            namespace=namespace, name=own, addresses=self.addresses_of(name), satisfied=True, reason="satisfied"
        )
        if missing is None:
            return found
        return replace(found, satisfied=False, reason=missing.reason, detail=missing.detail)

    def _use(self, name: str) -> PoolUse | None:
        pool = self._pools.get(name)
        if pool is None:
            return None
        total, used = pool.total, self._used[name]
        return PoolUse(name=name, total=str(total), used=str(used), available=str(total - used), conflict=pool.conflict)


class _Plan:
    """What is to become of addresses in one act: those who are to have each, over those who have it in the log."""

    def __init__(self, known: ServiceAddresses) -> None:
        self._known = known
        self._after: dict[str, list[AddressHolder]] = {}
        self._shared: dict[str, set[str]] = defaultdict(set)  # given here, by sharing key
        known.begin()

    @property
    def frees(self) -> bool:
        """Somebody who waits may have something now."""
        return bool(self._after)

    def amendments(self) -> Iterator[Amend]:
        for address, holders in self._after.items():
            before = self._known.held(address)
            after = ServiceAddress(address=address, services=holders) if holders else None
            if before != after:
                yield Amend(SERVICE_ADDRESS.of(address), before, after)

    def take_back(self, name: Name) -> None:
        """What the Service does not fit any more, and what it has too much. Where it goes on, it is known as it is now:
        unless that keeps others from having the address with it, for then it goes who has changed."""
        service = self._known.service(name)
        families: set[Family] = set()
        for address in self._known.addresses_of(name):
            if service is None or not self._may_keep(service, address, families):
                self._set(address, [each for each in self._holders(address) if (each.namespace, each.name) != name])
                continue
            families.add(_family(address))
            entry = _entry(service)
            self._set(
                address, [entry if (each.namespace, each.name) == name else each for each in self._holders(address)]
            )

    def _may_keep(self, service: Service, address: str, families: set[Family]) -> bool:
        if not self._known.fits(service, address) or _family(address) not in _families(service):
            return False
        asked = _request(service).addresses
        if address not in asked if asked else _family(address) in families:
            return False
        return self._obstacle(service, address) is None

    def give(self, service: Service) -> Missing | None:
        """All that the Service asks for and has not. None: it has all."""
        asked = _request(service).addresses
        if asked:
            found = [self._give_named(service, address) for address in asked]
        else:
            found = [self._give_any(service, each) for each in _families(service)]
        return next((each for each in found if each is not None), None)

    def _give_named(self, service: Service, address: str) -> Missing | None:
        parsed = parse(address)
        if parsed is None:
            return Missing("not_an_address", f"{address} is not an address")
        if self._has(service, address):
            return None
        if family(parsed) not in _families(service):
            return Missing("ip_family", f"{address} is {family(parsed)}, and the Service has {_listed(service)} only")
        holding = self._known.pools_with(parsed)
        if not holding:
            return Missing("no_pool", f"no pool holds {address}")
        selecting = [pool for pool in holding if pool.selects(service)]
        if not selecting:
            names = ", ".join(pool.name for pool in holding)
            return Missing("pool_selector_mismatch", f"{address} is of {names}, which does not select the Service")
        if not any(pool.gives for pool in selecting):
            return Missing("no_pool", f"{address} is of {selecting[0].name}, which is disabled or in conflict")
        obstacle = self._obstacle(service, address)
        if obstacle is None:
            self._set(address, [*self._holders(address), _entry(service)])
        return obstacle

    def _give_any(self, service: Service, wanted: Family) -> Missing | None:
        if any(
            _family(each) == wanted and self._has(service, each) for each in self._known.addresses_of(_name(service))
        ):
            return None
        pools = self._known.pools_for(service)
        if not pools:
            return Missing("no_pool", "there is no enabled pool that selects the Service")
        address = self._shareable(service, wanted, pools) or self._free(wanted, pools)
        if address is not None:
            self._set(address, [*self._holders(address), _entry(service)])
            return None
        names = ", ".join(pool.name for pool in pools)
        if not any(each.family == wanted for pool in pools for each in pool.ranges):
            return Missing("no_pool", f"no {wanted} addresses are in {names}")
        return Missing("out_of_ips", f"no {wanted} address is free in {names}")

    def _shareable(self, service: Service, wanted: Family, pools: list[Pool]) -> str | None:
        """An address that others have whom it may share it with."""
        key = _request(service).sharing_key
        if not key:
            return None
        for address in sorted(self._known.shared_by(key) | self._shared.get(key, set()), key=order):
            parsed = parse(address)
            if parsed is None or family(parsed) != wanted or not any(pool.has(parsed) for pool in pools):
                continue
            if self._holders(address) and self._obstacle(service, address) is None:
                return address
        return None

    def _free(self, wanted: Family, pools: list[Pool]) -> str | None:
        for pool in pools:
            for each in pool.ranges:
                if each.family == wanted and (found := self._known.first_free(each, self._is_taken)) is not None:
                    return found
        return None

    def _is_taken(self, address: str) -> bool:
        return self._known.is_barred(address) or bool(self._holders(address))

    def _holders(self, address: str) -> list[AddressHolder]:
        held = self._known.held(address)
        return self._after.get(address, held.services if held is not None else [])

    def _set(self, address: str, holders: list[AddressHolder]) -> None:
        if holders != self._holders(address):
            self._after[address] = holders
            for each in holders:
                self._shared[each.sharing_key].add(address)

    def _has(self, service: Service, address: str) -> bool:
        return any((each.namespace, each.name) == _name(service) for each in self._holders(address))

    def _obstacle(self, service: Service, address: str) -> Missing | None:
        """Why the Service may not have the address beside those who have it."""
        if self._known.is_barred(address):
            return Missing("already_allocated", f"{address} is an address of a node, or cannot be read whose it is")
        entry = _entry(service)
        for other in self._holders(address):
            if (other.namespace, other.name) == _name(service):
                continue
            why = _clash(entry, other)
            if why is not None:
                reason = "already_allocated_incompatible_service" if entry.sharing_key else "already_allocated"
                return Missing(reason, f"{other.namespace}/{other.name} has {address}, {why}")
        return None


def _touched(amendments: Iterable[Amend]) -> set[Name]:
    """Services that had the addresses, or are to have them."""
    return {
        (each.namespace, each.name)
        for amendment in amendments
        for side in (amendment.before, amendment.after)
        if isinstance(side, ServiceAddress)
        for each in side.services
    }


def _clash(one: AddressHolder, other: AddressHolder) -> str | None:
    """Why two Services may not have one address; the same whoever is asked first."""
    if not one.sharing_key or not other.sharing_key:
        return "and does not share it"
    if one.sharing_key != other.sharing_key:
        return "with another sharing key"
    if one.namespace != other.namespace and not (_lets_in(one, other) and _lets_in(other, one)):
        return "and one of both does not name the other's namespace"
    if ports := sorted(set(one.ports) & set(other.ports)):
        return f"with the same port {ports[0]}"
    if one.is_local != other.is_local:
        return "with another externalTrafficPolicy"
    if one.is_local and (not one.selector or one.selector != other.selector):
        return "with other backends, and traffic stays on their nodes"
    return None


def _lets_in(one: AddressHolder, other: AddressHolder) -> bool:
    return "*" in one.sharing_namespaces or other.namespace in one.sharing_namespaces


def _entry(service: Service) -> AddressHolder:
    """The Service as those who share an address with it see it."""
    asked = _request(service)
    is_local = service.external_traffic_policy == "Local"
    return AddressHolder(
        namespace=service.namespace,
        name=service.name,
        ports=sorted({f"{each.port}/{each.protocol}" for each in service.ports}),
        sharing_key=asked.sharing_key,
        sharing_namespaces=asked.sharing_namespaces,
        is_local=is_local,
        selector=service.selector if is_local else {},
    )


def _request(service: Service) -> LoadBalancerRequest:
    return service.load_balancer or LoadBalancerRequest()


def _families(service: Service) -> list[Family]:
    """Older writers fill none: then it is that of its cluster addresses."""
    return service.ip_families or [each for each in FAMILIES if each in map(_family, service.cluster_addresses)]


def _listed(service: Service) -> str:
    return " and ".join(_families(service)) or "no family"


def _family(address: str) -> Family:
    """Of a text that is an address."""
    return "IPv6" if ":" in address else "IPv4"


def _name(service: Service) -> Name:
    return service.namespace, service.name


def _keep(known: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        known.pop(key, None)
    else:
        known[key] = value


def _discard(index: dict[K, set[str]], key: K, address: str) -> None:
    """Take it out, and the set with it when it was the last."""
    if key in index:
        index[key].discard(address)
        if not index[key]:
            del index[key]
