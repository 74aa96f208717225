"""Services, pods, slices and endpoints -> frontends with backends. Pure; recomputes only what a change touches.

What cannot be an address or a port, or is not its node's to give, is left out of its Service, which goes on with the
rest; `left_out` says what and why. A Service that cannot be worked out at all keeps what was said of it, in `failed`.

Source: Kubernetes, "Service" (target ports, Services without selectors) and "EndpointSlices" (conditions, port names).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, TypeVar

from bus.addresses import family, of_family, order, parse, plain, with_port
from bus.control import Action, Say, Unsay
from bus.labels import SERVED_BY_OTHERS
from bus.messages import Message
from bus.messages.dataplane import Endpoint
from bus.messages.ipam import Block, ServiceAddress
from bus.messages.lb import Backend, Frontend, HostPorts, LoadBalancedService
from bus.messages.resources import EndpointPort, EndpointSlice, Family, Node, Pod, Service, ServicePort, SliceEndpoint
from bus.subjects import (
    BLOCK,
    ENDPOINT,
    ENDPOINT_SLICE,
    FRONTEND,
    HOST_PORTS,
    NODE,
    POD,
    SERVICE,
    SERVICE_ADDRESS,
    State,
    check_subject,
)
from services.lb.exposures import behaviour, exposures
from services.lb.host_ports import host_ports
from services.lb.places import NOT_AN_ADDRESS, Name, Places

NOT_A_PORT = "not a port"
OTHER_FAMILY = "not of its slice's address type"
SCTP_KEEPS_PORT = "SCTP keeps its port: the backend's has to be the Service's"

ZONE_LABEL = "topology.kubernetes.io/zone"
OF_PODS = "endpointslice-controller.k8s.io"
WEIGHT_MAX = 256

Label = tuple[str, str, str]  # (namespace, key, value)
Offer = tuple[EndpointSlice, EndpointPort, SliceEndpoint]

K = TypeVar("K")
V = TypeVar("V")

Report = Callable[[str, dict[str, str]], None]
"""Told once about each thing left out as it arises: why, and the facts."""


def _quiet(reason: str, facts: dict[str, str]) -> None:
    pass


class LoadBalancing:
    """`bus.control.Model`.

    `left_out` holds, by Service, what it goes without now ("10.0.0.5:8080 of pod web") and why; `refusals` how often
    each reason arose; `failed` why a Service could not be worked out.
    """

    owner: ClassVar[str] = "lb"
    hears: ClassVar[tuple[State[Message], ...]] = (
        NODE,
        SERVICE,
        POD,
        ENDPOINT_SLICE,
        ENDPOINT,
        BLOCK,
        SERVICE_ADDRESS,
    )
    says: ClassVar[tuple[State[Message], ...]] = (FRONTEND, HOST_PORTS)

    def __init__(self, report: Report = _quiet) -> None:
        self._report = report
        self._services: dict[Name, Service] = {}
        self._pods: dict[Name, Pod] = {}
        self._slices: dict[Name, EndpointSlice] = {}
        self._places = Places()
        self._holders: dict[str, set[Name]] = {}  # of an address of a pool: the Services that have it
        self._given: dict[Name, set[str]] = defaultdict(set)  # the same by Service
        self._pods_by_label: dict[Label, set[Name]] = defaultdict(set)
        self._services_by_label: dict[Label, set[Name]] = defaultdict(set)  # by the first label of the selector
        self._slices_by_service: dict[Name, set[Name]] = defaultdict(set)
        self._dirty: set[Name] = set()
        self._dirty_pods: set[Name] = set()
        self._said: dict[Name, LoadBalancedService] = {}
        self._said_of_pods: dict[Name, HostPorts] = {}
        self._zones: dict[str, str] = {}  # node -> its zone
        self.left_out: dict[tuple[str, ...], dict[str, str]] = {}  # of a pod's host ports: by "pod" and its name
        self.refusals: Counter[str] = Counter()
        self.failed: dict[Name, str] = {}

    def put(self, subject: str, message: Message) -> None:
        """`subject` has this value now. Raises: ValueError: it makes no sense; nothing is changed."""
        check_subject(subject, message)
        match message:
            case Node():
                self._set_zone(message.name, message.labels.get(ZONE_LABEL, ""))
            case Service():
                self._set_service((message.namespace, message.name), message)
            case Pod():
                self._set_pod((message.namespace, message.name), message)
            case EndpointSlice():
                self._set_slice((message.namespace, message.name), message)
            case Endpoint():
                self._places.put_endpoint(message)
                self._touch_services_of((message.namespace, message.pod))
            case Block():
                for pod in self._places.put_block(message):
                    self._touch_services_of(pod)
            case ServiceAddress():
                self._set_holders(message.address, {(each.namespace, each.name) for each in message.services})

    def delete(self, subject: str) -> None:
        if NODE.has(subject):
            self._set_zone(NODE.parse(subject)[0], "")
        elif SERVICE.has(subject):
            self._set_service(_name(SERVICE.parse(subject)), None)
        elif POD.has(subject):
            self._set_pod(_name(POD.parse(subject)), None)
        elif ENDPOINT_SLICE.has(subject):
            self._set_slice(_name(ENDPOINT_SLICE.parse(subject)), None)
        elif ENDPOINT.has(subject):
            node, *rest = ENDPOINT.parse(subject)
            self._places.delete_endpoint(node, _name(rest))
            self._touch_services_of(_name(rest))
        elif BLOCK.has(subject):
            for pod in self._places.delete_block(*BLOCK.parse(subject)):
                self._touch_services_of(pod)
        elif SERVICE_ADDRESS.has(subject):
            self._set_holders(SERVICE_ADDRESS.parse(subject)[0], set())

    def act(self) -> Iterable[Action]:
        """Say each Service that was touched and came out different. One that fails does not hold up the others."""
        dirty, self._dirty = sorted(self._dirty), set()
        actions: list[Action] = []
        for name in dirty:
            left_out: dict[str, str] = {}
            try:
                service = self._services.get(name)
                balanced = self._balanced(service, left_out) if service is not None else None
            except Exception as problem:  # noqa: BLE001  # whatever is wrong with one Service is its own trouble
                self.failed[name] = repr(problem)
                continue
            self.failed.pop(name, None)
            self._note(name, left_out)
            if balanced is None and self._said.pop(name, None) is not None:
                actions.append(Unsay(FRONTEND.of(*name)))
            elif balanced is not None and self._said.get(name) != balanced:
                self._said[name] = balanced
                actions.append(Say(FRONTEND.of(*name), balanced))
        return actions + self._act_on_pods()

    def _act_on_pods(self) -> list[Action]:
        dirty, self._dirty_pods = sorted(self._dirty_pods), set()
        actions: list[Action] = []
        for name in dirty:
            left_out: dict[str, str] = {}
            pod = self._pods.get(name)
            made = host_ports(pod, self._places, left_out) if pod is not None else None
            self._note(("pod", *name), left_out)
            before = self._said_of_pods.pop(name, None)
            if before is not None and (made is None or made.node != before.node):
                actions.append(Unsay(HOST_PORTS.of(before.node, *name)))
            if made is not None:
                self._said_of_pods[name] = made
                if made != before:
                    actions.append(Say(HOST_PORTS.of(made.node, *name), made))
        return actions

    def said(self) -> Iterable[str]:
        yield from (FRONTEND.of(*name) for name in self._said)
        yield from (HOST_PORTS.of(made.node, *name) for name, made in self._said_of_pods.items())

    # -- what is known

    def _set_service(self, name: Name, service: Service | None) -> None:
        old = self._services.pop(name, None)
        if old is not None and old.selector:
            _discard(self._services_by_label, _label_of(old), name)
        if service is not None:
            self._services[name] = service
            if service.selector:
                self._services_by_label[_label_of(service)].add(name)
        self._dirty.add(name)

    def _set_zone(self, node: str, zone: str) -> None:
        if self._zones.get(node, "") != zone:
            self._dirty |= {name for name, service in self._services.items() if service.distribution}
        self._zones[node] = zone
        if not zone:
            del self._zones[node]

    def _set_pod(self, name: Name, pod: Pod | None) -> None:
        self._touch_services_of(name)
        old = self._pods.pop(name, None)
        for label in _labels_of(old):
            _discard(self._pods_by_label, label, name)
        if pod is not None:
            self._pods[name] = pod
            for label in _labels_of(pod):
                self._pods_by_label[label].add(name)
            self._touch_services_of(name)

    def _set_slice(self, name: Name, new: EndpointSlice | None) -> None:
        old = self._slices.pop(name, None)
        if old is not None:
            _discard(self._slices_by_service, (old.namespace, old.service), name)
            self._dirty.add((old.namespace, old.service))
        if new is not None:
            self._slices[name] = new
            self._slices_by_service[new.namespace, new.service].add(name)
            self._dirty.add((new.namespace, new.service))

    def _set_holders(self, address: str, holders: set[Name]) -> None:
        before = self._holders.pop(address, set())
        for name in before - holders:
            _discard(self._given, name, address)
        for name in holders - before:
            self._given[name].add(address)
        if holders:
            self._holders[address] = holders
        self._dirty |= before ^ holders

    def _touch_services_of(self, pod: Name) -> None:
        """The Services that select the pod, as it is known now, and its host ports."""
        known = self._pods.get(pod)
        if pod in self._said_of_pods or (known is not None and any(port.host_port for port in known.ports)):
            self._dirty_pods.add(pod)
        for label in _labels_of(known):
            for name in self._services_by_label.get(label, ()):
                if known is not None and _is_selected_by(known, self._services[name].selector):
                    self._dirty.add(name)

    # -- what follows from it

    def _balanced(self, service: Service, left_out: dict[str, str]) -> LoadBalancedService | None:
        """None for a headless Service and one that is another proxy's. Adds to `left_out` what it goes without."""
        frontends: list[Frontend] = []
        if any(label in service.labels for label in SERVED_BY_OTHERS):
            return None
        for address in map(plain, service.cluster_addresses):
            place = parse(address)
            for port in service.ports:
                reason = _objection(address, port.port)
                if reason is not None or place is None:
                    left_out[with_port(address, port.port)] = reason or NOT_AN_ADDRESS
                    continue
                backends, draining = self._behind(service, port, family(place), left_out)
                frontends.append(
                    Frontend(
                        address=address,
                        port=port.port,
                        protocol=port.protocol,
                        port_name=port.name,
                        backends=backends,
                        draining=draining,
                    )
                )
        frontends.sort(key=lambda each: (order(each.address), each.port, each.protocol))
        if not frontends:
            return None
        return LoadBalancedService(
            namespace=service.namespace,
            name=service.name,
            frontends=frontends,
            exposures=exposures(service, self._given.get((service.namespace, service.name), ()), left_out),
            **behaviour(service),
        )

    def _behind(
        self, service: Service, port: ServicePort, wanted: Family, left_out: dict[str, str]
    ) -> tuple[list[Backend], list[Backend]]:
        """Who serves at an address of the family, and who is about to end and serves whom it has: the pods that it
        selects, and what its slices offer. Where nobody is ready, those serve that are about to end."""
        pods = list(self._pod_backends(service, port, wanted, left_out)) if service.selector else []
        ready, draining = self._offers(service, port, wanted)
        if not (pods or ready):
            return _in_order(self._offered(service, draining, port, wanted, left_out)), []
        serving = [*pods, *self._offered(service, ready, port, wanted, left_out)]
        return _in_order(serving), _in_order(self._offered(service, draining, port, wanted, {}))

    def _pod_backends(
        self, service: Service, port: ServicePort, wanted: Family, left_out: dict[str, str]
    ) -> Iterator[Backend]:
        for pod in self._pods_selected_by(service):
            target = _target_port(pod, port)
            if target is None:
                continue
            places = self._places.of(pod, also_not_ready=service.publishes_not_ready)
            own = of_family(places, wanted)  # one: a node gives its pods no more weight by saying more addresses
            for place in (each for each in places if each == own or parse(each) is None):
                reason = (
                    self._places.objection(pod, place) or _objection(place, target) or _not_translated(port, target)
                )
                if reason is None:
                    yield Backend(address=place, port=target, node=pod.node, zone=self._zone_of(service, pod.node))
                else:
                    left_out[f"{with_port(place, target)} of pod {pod.name}"] = reason

    def _zone_of(self, service: Service, node: str) -> str:
        """Where it matters: 5000 backends are many texts."""
        return self._zones.get(node, "") if service.distribution else ""

    def _offers(self, service: Service, port: ServicePort, wanted: Family) -> tuple[list[Offer], list[Offer]]:
        """What the Service's slices have for its port: what is ready, and what is draining.

        A slice's port belongs to the Service's port of the same name and protocol; its number is the backends'. Where
        the Service selects pods, slices that Kubernetes' own controller makes of the same pods say nothing new.
        """
        offers = [
            (known, offered, endpoint)
            for name in self._slices_by_service.get((service.namespace, service.name), ())
            for known in [self._slices[name]]
            if not (service.selector and known.managed_by == OF_PODS)
            for offered in known.ports
            if known.address_type == wanted and (offered.name, offered.protocol) == (port.name, port.protocol)
            for endpoint in known.endpoints
        ]
        ready = [each for each in offers if each[2].ready and each[0].weight]
        return ready, [each for each in offers if each[2].draining or (each[2].ready and not each[0].weight)]

    def _offered(
        self, service: Service, offers: Iterable[Offer], port: ServicePort, wanted: Family, left_out: dict[str, str]
    ) -> Iterator[Backend]:
        for known, offered, endpoint in offers:
            for address in map(plain, endpoint.addresses):
                reason = _objection(address, offered.port) or _not_translated(port, offered.port)
                if reason is None and of_family([address], wanted) is None:
                    reason = OTHER_FAMILY
                if reason is None:
                    yield Backend(
                        address=address,
                        port=offered.port,
                        node=endpoint.node,
                        weight=min(max(known.weight, 1), WEIGHT_MAX),
                        zone=(endpoint.zone or self._zone_of(service, endpoint.node)) if service.distribution else "",
                        for_zones=endpoint.for_zones,
                        for_nodes=endpoint.for_nodes,
                    )
                else:
                    left_out[f"{with_port(address, offered.port)} of slice {known.name}"] = reason

    def _note(self, name: tuple[str, ...], left_out: dict[str, str]) -> None:
        before = self.left_out.pop(name, {})
        if left_out:
            self.left_out[name] = left_out
        for thing, reason in sorted(left_out.items()):
            if before.get(thing) != reason:
                self.refusals[reason] += 1
                self._report(reason, {"service": "/".join(name), "what": thing})

    def _pods_selected_by(self, service: Service) -> Iterator[Pod]:
        """Through the selector's label that the fewest pods have."""
        labels = [(service.namespace, key, value) for key, value in service.selector.items()]
        nobody: set[Name] = set()
        candidates = min((self._pods_by_label.get(label, nobody) for label in labels), key=len)
        for name in candidates:
            if _is_selected_by(self._pods[name], service.selector):
                yield self._pods[name]


def _objection(address: str, port: int) -> str | None:
    """Why nothing can be reached there."""
    if parse(address) is None:
        return NOT_AN_ADDRESS
    return None if 0 < port < 65536 else NOT_A_PORT


def _not_translated(port: ServicePort, target: int) -> str | None:
    """Why no packet would reach this port of a backend."""
    return SCTP_KEEPS_PORT if port.protocol == "SCTP" and target != port.port else None


def _target_port(pod: Pod, port: ServicePort) -> int | None:
    """The number behind the target port; None when it is a name that the pod has not, for this protocol."""
    if isinstance(port.target_port, int):
        return port.target_port
    named = (each.port for each in pod.ports if each.name == port.target_port and each.protocol == port.protocol)
    return next(named, None)


def _is_selected_by(pod: Pod, selector: dict[str, str]) -> bool:
    return all(pod.labels.get(key) == value for key, value in selector.items())


def _label_of(service: Service) -> Label:
    """The label under which a Service with a selector is found; a pod that it selects has it."""
    key = min(service.selector)
    return service.namespace, key, service.selector[key]


def _labels_of(pod: Pod | None) -> list[Label]:
    return [(pod.namespace, key, value) for key, value in pod.labels.items()] if pod is not None else []


def _discard(index: dict[K, set[V]], key: K, value: V) -> None:
    """Take `value` out, and the set with it when it was the last: an index does not grow with what has gone."""
    index[key].discard(value)
    if not index[key]:
        del index[key]


def _in_order(backends: Iterable[Backend]) -> list[Backend]:
    """Each once: of two slices that offer one, the first says how it is."""
    found: dict[tuple[str, int], Backend] = {}
    for each in sorted(backends, key=_backend_order):
        found.setdefault((each.address, each.port), each)
    return list(found.values())


def _backend_order(backend: Backend) -> tuple[tuple[int, int], int, str]:
    """As people expect addresses: by number."""
    return order(backend.address), backend.port, backend.node


def _name(tokens: Iterable[str]) -> Name:
    namespace, name = tokens
    return namespace, name
