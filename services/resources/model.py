"""What a request does: (what is there, what is asked) -> what to write, or why not. No I/O, no clock.

All or nothing: a plan with refusals has no steps. The order of the steps is what makes a death between any two of them
harmless: an address is claimed before the Service that shows it, an owner goes before what it owns, a namespace goes
last; what a death leaves over, `plan_tidy` takes away, and asking again does the rest. Steps that may be taken at the
same time are one stage (`stages`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from msgspec.structs import replace

from bus.addresses import Network, all_of, by_family
from bus.codec import LIMIT_BYTES, TooLarge, encode
from bus.control import Action, Claim, Say, Unsay
from bus.messages import Message
from bus.messages.resources import (
    Bind,
    ClusterAddress,
    Family,
    LoadBalancerPool,
    Namespace,
    Node,
    NodePort,
    Notice,
    Outcome,
    Pod,
    PodStatus,
    Refusal,
    Service,
)
from bus.subjects import (
    CLUSTER_ADDRESS,
    NAMESPACE,
    NODE_PORT,
    POD,
    SERVICE,
    state_of,
)
from services.resources import addresses, order
from services.resources.manifests import words
from services.resources.manifests.core import HEADLESS, NAMESPACE_NAME_LABEL
from services.resources.manifests.meta import Key, Resource, notice, refusal
from services.resources.node_ports import NodePorts, ports_of
from services.resources.registry import BY_NAME, KINDS, MAKERS
from services.resources.store import Store
from settings.ports import Ports

ALWAYS_THERE = ("default", "kube-system")

SAID = {kind: place for place, kind in enumerate(order.said(KINDS))}
TAKEN = {noun: place for place, noun in enumerate(order.taken(KINDS))}

# Fields of a pod's spec that may change while it lives, beside images (Kubernetes, "Pod update and replacement").
CHANGEABLE = frozenset(
    {"activeDeadlineSeconds", "nodeName", "schedulingGates", "terminationGracePeriodSeconds", "tolerations"}
)

TOLD_LATER_BYTES = 4096  # kept free in a pod's message for its node, its address, and the reason why it is not ready

Refuse = Callable[[str, str], None]  # (path, problem)


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in the order to take them. Claims come first: when one is lost, nothing else has been done yet."""

    steps: tuple[Action, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    warnings: tuple[Notice, ...] = ()


def stages(steps: Iterable[Action]) -> list[list[Action]]:
    """The steps in runs that follow each other: all of one do the same to one family, and none waits for another."""
    return [list(run) for _, run in groupby(steps, key=lambda step: (type(step), state_of(step.subject)))]


@dataclass
class _Draft:
    store: Store
    networks: addresses.Networks
    new_uid: Callable[[], str]
    namespaces: set[str]  # made by this call
    nodes: set[str]
    workloads: set[str]  # as Pod.owner names them
    asked: set[str]  # addresses that Services of this call ask for by name
    node_ports: NodePorts
    claims: dict[str, ClusterAddress] = field(default_factory=dict)  # address -> its holder after this call
    released: list[str] = field(default_factory=list)  # addresses that Services give back
    last_place: int = 0  # of a pool; 0: not looked for yet
    refusals: list[Refusal] = field(default_factory=list)
    warnings: list[Notice] = field(default_factory=list)

    def holder_of(self, address: str) -> ClusterAddress | None:
        return self.claims.get(address) or self.store.holder_of(address)


def plan_apply(
    store: Store,
    resources: Sequence[Resource],
    networks: addresses.Networks,
    new_uid: Callable[[], str],
    ports: Ports,
) -> Plan:
    """Make these resources so.

    Args:
        networks: where Services' addresses come from.
        new_uid: called once for each pod that is new.
        ports: where node ports come from.
    """
    draft = _Draft(
        store,
        networks,
        new_uid,
        namespaces={each.key.name for each in resources if each.key.kind == "Namespace"},
        nodes={each.key.name for each in resources if each.key.kind == "Node"},
        workloads={
            f"{each.key.kind.lower()}/{each.key.namespace}/{each.key.name}"
            for each in resources
            if each.key.kind.lower() in MAKERS
        },
        asked={address for each in resources for address in each.asked_addresses},
        node_ports=NodePorts(
            ports,
            store.holder_of_port,
            asked={port for each in resources for _, message in each.messages for port in ports_of(message)},
        ),
    )
    draft.refusals += _duplicates(resources)
    wanted = [_wanted(draft, each) for each in resources]
    draft.refusals += _claimed_addresses(store, resources, wanted)
    if draft.refusals:
        return Plan(refusals=tuple(draft.refusals))
    outcomes = []
    steps: list[tuple[int, Action]] = [
        (-1, Claim(CLUSTER_ADDRESS.of(address), holder)) for address, holder in draft.claims.items()
    ]
    steps += [(-1, Claim(NODE_PORT.of(str(port)), holder)) for port, holder in draft.node_ports.claims.items()]
    for at, each in enumerate(resources):
        change, actions = difference(store, each.key, wanted[at])
        outcomes.append(Outcome(kind=each.key.kind, namespace=each.key.namespace, name=each.key.name, change=change))
        steps += [(SAID[each.key.kind], action) for action in actions]
    steps += [(len(SAID), Unsay(CLUSTER_ADDRESS.of(address))) for address in draft.released]
    steps += [(len(SAID), Unsay(NODE_PORT.of(str(port)))) for port in draft.node_ports.released]
    steps.sort(key=lambda step: step[0])  # stable: within a kind as the user wrote them
    return Plan(tuple(action for _, action in steps), tuple(outcomes), warnings=tuple(draft.warnings))


def plan_delete(store: Store, resources: Iterable[Resource]) -> Plan:
    """Take these away, with what is theirs: a namespace's contents, a Deployment's pods, a Service's address."""
    refusals, outcomes = [], []
    steps: dict[str, int] = {}  # subject -> place in the order
    for key, source in {each.key: each.source for each in resources}.items():
        if key.kind == "Namespace" and key.name in ALWAYS_THERE:
            problem = "is always there; delete what is in it instead"
            refusals.append(refusal(source, key.kind, key.name, "metadata.name", problem))
            continue
        subjects = subjects_of(store, key)
        change: Literal["deleted", "absent"] = "deleted" if subjects else "absent"
        outcomes.append(Outcome(kind=key.kind, namespace=key.namespace, name=key.name, change=change))
        for subject in subjects:
            steps.update(_with_owned(store, subject))
    if refusals:
        return Plan(refusals=tuple(refusals))
    ordered = sorted(steps, key=lambda subject: (steps[subject], subject))
    return Plan(tuple(Unsay(subject) for subject in ordered), tuple(outcomes))


def plan_bind(store: Store, bind: Bind) -> Plan:
    """The scheduler chose a node. Repeating it changes nothing; a bound pod does not move."""
    pod, no_such_pod = _living(store, "bind", bind.namespace, bind.name, bind.uid)
    if pod is None:
        return no_such_pod
    if not store.has_node(bind.node):
        return _refused("bind", pod, "node", _no_node(bind.node, store))
    if pod.node and pod.node != bind.node:
        return _refused("bind", pod, "node", f"the pod is bound to {pod.node}; delete it to run it elsewhere")
    return _pod_plan(pod, replace(pod, node=bind.node))


def plan_status(store: Store, status: PodStatus) -> Plan:
    """The kubelet reports how the pod is."""
    pod, no_such_pod = _living(store, "podstatus", status.namespace, status.name, status.uid)
    if pod is None:
        return no_such_pod
    if pod.node != status.node:
        bound = f"bound to {pod.node}" if pod.node else "not bound to a node"
        return _refused("podstatus", pod, "node", f"the pod is {bound}, whose kubelet alone reports it")
    reported = all_of(status)
    strange = [] if not pod.host_network else [each for each in reported if each not in store.node_addresses(pod.node)]
    if strange:
        return _refused(
            "podstatus", pod, "address", f"{strange[0]} is no address of {pod.node}, on whose network it is"
        )
    for at, text in enumerate(reported):
        wrong = words.address(text)
        if wrong is None and len(by_family(reported[:at])) == len(by_family(reported[: at + 1])):
            wrong = f"{text} is a second address of its family; report one of each"
        if wrong is not None:
            return _refused("podstatus", pod, f"addresses[{at}]" if at else "address", wrong)
    told = replace(
        pod,
        phase=status.phase,
        ready=status.ready and status.phase == "Running",
        address=next(iter(reported), ""),
        addresses=reported if len(reported) > 1 else [],
        reason=status.reason,
    )
    wrong = too_large(told)
    return _pod_plan(pod, told) if wrong is None else _refused("podstatus", pod, "reason", wrong)


def plan_tidy(store: Store) -> Plan:
    """What the active replica does first: make what is always there, and take away what an interrupted request left."""
    steps: list[Action] = []
    for name in ALWAYS_THERE:
        if not store.has_namespace(name):
            manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            namespace = Namespace(name=name, labels={NAMESPACE_NAME_LABEL: name}, manifest=manifest)
            steps.append(Say(NAMESPACE.of(name), namespace))
    for subject, message in store.items():
        if isinstance(message, ClusterAddress):
            service = store.get(SERVICE.of(message.namespace, message.service))
            held = isinstance(service, Service) and message.address in service.cluster_addresses
            if not held:
                steps.append(Unsay(subject))
        elif isinstance(message, NodePort):
            if message.port not in ports_of(store.get(SERVICE.of(message.namespace, message.service))):
                steps.append(Unsay(subject))
        elif isinstance(message, Pod) and message.owner and not store.has_workload(message.owner):
            steps.append(Unsay(subject))
    return Plan(tuple(steps))


def plan_release(store: Store, claimed: Iterable[str]) -> Plan:
    """Give back addresses that a refused request had claimed for Services that do not exist."""
    return Plan(
        tuple(step for step in plan_tidy(store).steps if isinstance(step, Unsay) and step.subject in set(claimed))
    )


def _duplicates(resources: Iterable[Resource]) -> list[Refusal]:
    first: dict[Key, str] = {}
    refusals = []
    for each in resources:
        if each.key in first:
            problem = f'"{each.key.name}" is also in {first[each.key]}; apply one of them'
            refusals.append(_refusal(each, "metadata.name", problem))
        first.setdefault(each.key, each.source)
    return refusals


def _claimed_addresses(
    store: Store, resources: Sequence[Resource], wanted: Sequence[list[tuple[str, Message]]]
) -> list[Refusal]:
    """A node's address is that node's: whoever else had it would be taken for the node, and be sent what is for it."""
    asked = [(each, message) for each, told in zip(resources, wanted, strict=True) for _, message in told]
    new = {message.name for _, message in asked if isinstance(message, Node)}
    if not new:
        return []
    holder = {address: node.name for node in store.nodes() if node.name not in new for address in node.addresses}
    refusals = []
    for resource, message in asked:
        for address in message.addresses if isinstance(message, Node) else []:
            other = holder.setdefault(address, resource.key.name)
            if other != resource.key.name:
                problem = f"{address} is an address of node {other}; delete that first if it is the same machine"
                refusals.append(_refusal(resource, "status.addresses", problem))
    return refusals


def _wanted(draft: _Draft, resource: Resource) -> list[tuple[str, Message]]:
    """The messages as they are to be, with what the store knows filled in; refusals go to the draft."""
    key = resource.key

    def refuse(path: str, problem: str) -> None:
        draft.refusals.append(_refusal(resource, path, problem))

    draft.warnings += [
        notice(resource.source, key.kind, key.name, problem.path, problem.text) for problem in resource.warnings
    ]

    if key.namespace and key.namespace not in draft.namespaces and not draft.store.has_namespace(key.namespace):
        refuse("metadata.namespace", f'there is no namespace "{key.namespace}"; apply a Namespace of this name first')
    wanted = [(subject, _filled(draft, resource, subject, message, refuse)) for subject, message in resource.messages]
    for _, message in wanted:
        wrong = too_large(message, TOLD_LATER_BYTES if isinstance(message, Pod) else 0)
        if wrong is not None:
            refuse("", wrong)
            break  # the other rules of a policy bear the same manifest
    return wanted


def too_large(message: Message, reserved: int = 0) -> str | None:
    """Why the bus would not carry the message with `reserved` bytes more; found before the first step is taken."""
    limit = LIMIT_BYTES - reserved
    try:
        encode(message, limit=limit)
    except TooLarge as problem:
        return f"is {problem.size} bytes as Plexus keeps it; the limit is {limit // 1024} KiB: split it"
    return None


def _filled(draft: _Draft, resource: Resource, subject: str, message: Message, refuse: Refuse) -> Message:
    old = draft.store.get(subject)
    for field_, path in BY_NAME[resource.key.kind].fixed.items():
        if old is not None and getattr(old, field_) != getattr(message, field_):
            refuse(path, f"cannot be changed; delete the {resource.key.kind} first, then apply")
    match message:
        case Pod():
            return _pod(draft, resource, message, old if isinstance(old, Pod) else None, refuse)
        case Service():
            was = old if isinstance(old, Service) else None
            if was is not None and not _may_follow(was, message):
                refuse("spec.loadBalancerClass", "cannot be changed; delete the Service first, then apply")
            found = _addressed(draft, resource, message, was, refuse)
            held = draft.store.node_ports_of(found.namespace, found.name)
            return draft.node_ports.assigned(found, was, held, refuse)
        case LoadBalancerPool():
            return replace(message, place=_place_of(draft, old))
        case Node() if isinstance(old, Node) and old.pod_cidrs:
            if message.pod_cidrs and message.pod_cidrs != old.pod_cidrs:
                refuse("spec.podCIDRs", f"cannot be changed from {', '.join(old.pod_cidrs)}; delete the Node first")
            return replace(message, pod_cidrs=old.pod_cidrs)
    return message


def _may_follow(old: Service, new: Service) -> bool:
    """A LoadBalancer stays with whoever serves its class."""
    if old.load_balancer is None or new.load_balancer is None:
        return True
    return old.load_balancer.load_balancer_class == new.load_balancer.load_balancer_class


def _place_of(draft: _Draft, old: Message | None) -> int:
    """A pool's place among pools: the one that it has, or behind all others."""
    if isinstance(old, LoadBalancerPool):
        return old.place
    if not draft.last_place:
        draft.last_place = max((each.place for each in draft.store.pools()), default=0)
    draft.last_place += 1
    return draft.last_place


def _pod(draft: _Draft, resource: Resource, pod: Pod, old: Pod | None, refuse: Refuse) -> Pod:
    """A living pod keeps its uid, its node and what the kubelet reported; of its spec little can change."""
    if pod.owner:
        noun, namespace, name = pod.owner.split("/")
        if pod.owner not in draft.workloads and not draft.store.has_workload(pod.owner):
            refuse("metadata.ownerReferences[0]", f'there is no {MAKERS[noun].name} "{name}" in {namespace}')
    if old is None:
        if pod.node and pod.node not in draft.nodes and not draft.store.has_node(pod.node):
            text = f"{_no_node(pod.node, draft.store)}; the pod waits for it"
            draft.warnings.append(notice(resource.source, "Pod", resource.key.name, "spec.nodeName", text))
        return replace(pod, uid=draft.new_uid())
    if resource.uid and resource.uid != old.uid:
        refuse("metadata.uid", f"the pod of this name has the uid {old.uid}; remove the field, or delete the pod first")
    if pod.node and old.node and pod.node != old.node:
        refuse("spec.nodeName", f"the pod runs on {old.node}; delete the pod first, then apply")
    difference = _first_difference(_fixed(old.manifest.get("spec")), _fixed(pod.manifest.get("spec")), "spec")
    if difference:
        refuse(difference, "cannot be changed while the pod lives; delete the pod first, then apply")
    return replace(
        pod,
        uid=old.uid,
        node=old.node or pod.node,
        phase=old.phase,
        ready=old.ready,
        address=old.address,
        addresses=old.addresses,
        reason=old.reason,
        owner=pod.owner or old.owner,
    )


def _addressed(draft: _Draft, resource: Resource, service: Service, old: Service | None, refuse: Refuse) -> Service:
    """The Service with its families and, unless it is headless, an address of each: the one that it has, the one that
    it asks for, or the first free one by hash. Its first address never changes; a second one may come and go."""
    if service.type == "ExternalName":
        draft.released += draft.store.addresses_of(service.namespace, service.name)
        return service
    if old is not None and old.type == "ExternalName":
        old = None  # it had no address, so it is free to choose
    asked = resource.asked_addresses
    families = _families(draft.networks, service, asked, old, refuse)
    if families is None:
        return service
    service = replace(service, ip_families=families)
    if old is not None and asked and (asked == HEADLESS) == bool(old.cluster_addresses):
        current = old.cluster_addresses[0] if old.cluster_addresses else "None"
        refuse("spec.clusterIP", f"cannot be changed from {current}; delete the Service first, then apply")
        return service
    if asked == HEADLESS or (old is not None and not old.cluster_addresses):
        return service
    has = {} if old is None else by_family(old.cluster_addresses)
    held = draft.store.addresses_of(service.namespace, service.name)
    left_over = by_family(held)  # of a request that did not finish
    got: list[str] = []
    for at, family in enumerate(families):
        path = f"spec.clusterIPs[{at}]" if at else "spec.clusterIP"
        wanted = by_family(asked).get(family)
        address = has.get(family)
        if address is not None and wanted not in (None, address):
            wrong: str | None = f"cannot be changed from {address}; delete the Service first, then apply"
        elif address is not None:
            wrong = None
        elif wanted is not None:
            address, wrong = wanted, _not_to_be_had(draft, service, draft.networks[family], wanted)
        else:
            address, wrong = left_over.get(family) or _any_address(draft, service, draft.networks[family]), None
        if address is None:
            wrong = f"no address is free in the Service range {draft.networks[family]}; delete a Service, or widen it"
        if wrong is not None:
            refuse(path, wrong)
        elif address is not None:
            got.append(address)
    draft.released += [address for address in held if address not in got]
    return replace(service, cluster_addresses=_claimed(draft, service, got))


def _families(
    networks: addresses.Networks, service: Service, asked: tuple[str, ...], old: Service | None, refuse: Refuse
) -> list[Family] | None:
    """Those that the Service gets, its first one first. None: it cannot have what it asks for, which was refused."""
    own = old.ip_families or list(by_family(old.cluster_addresses)) if old is not None else []
    families = list(service.ip_families) or own[:1] or list(networks)[:1]
    for at, family in enumerate(service.ip_families):
        if family not in networks:
            path = f"spec.ipFamilies[{at}]"
            if family in by_family(asked):
                path = f"spec.clusterIPs[{at}]" if at else "spec.clusterIP"
            refuse(path, f"Services have no {family} addresses in this cluster; use {' or '.join(networks)}")
            return None
    if own and families[0] != own[0]:
        refuse("spec.ipFamilies[0]", f"cannot be changed from {own[0]}; delete the Service first, then apply")
        return None
    if service.ip_family_policy != "SingleStack":
        families += [family for family in networks if family not in families]
    if service.ip_family_policy == "RequireDualStack" and len(families) < 2:
        only = " or ".join(networks)
        refuse("spec.ipFamilyPolicy", f"Services have {only} addresses only in this cluster; use PreferDualStack")
        return None
    return families


def _not_to_be_had(draft: _Draft, service: Service, network: Network, asked: str) -> str | None:
    """Why the Service cannot have the address that it asks for."""
    holder = draft.holder_of(asked)
    if holder is not None and not _holds(holder, service):
        held_by = f"{holder.namespace}/{holder.service}"
        return addresses.outside(network, asked) or (
            f"{asked} is held by the Service {held_by}; choose another, or leave it out"
        )
    return addresses.outside(network, asked)


def _any_address(draft: _Draft, service: Service, network: Network) -> str | None:
    """One that nobody has and nobody asks for by name."""

    def is_taken(address: str) -> bool:
        return address in draft.asked or draft.holder_of(address) is not None

    return addresses.choose(network, service.namespace, service.name, is_taken)


def _claimed(draft: _Draft, service: Service, wanted: list[str]) -> list[str]:
    """`wanted`, after a claim is drafted for each address that the Service does not hold yet."""
    for address in wanted:
        if draft.store.holder_of(address) is None:
            draft.claims[address] = ClusterAddress(address=address, namespace=service.namespace, service=service.name)
    return wanted


def _holds(holder: ClusterAddress, service: Service) -> bool:
    return (holder.namespace, holder.service) == (service.namespace, service.name)


def difference(
    store: Store, key: Key, wanted: list[tuple[str, Message]]
) -> tuple[Literal["created", "changed", "unchanged"], list[Action]]:
    there = subjects_of(store, key)
    actions: list[Action] = [Say(subject, message) for subject, message in wanted if store.get(subject) != message]
    actions += [Unsay(subject) for subject in there if subject not in dict(wanted)]
    if not there:
        return "created", actions
    return ("changed" if actions else "unchanged"), actions


def subjects_of(store: Store, key: Key) -> list[str]:
    """Where the resource is, as far as it is there."""
    kind = BY_NAME[key.kind]
    if kind.is_shared:
        return store.parts_of(key.kind, key.namespace, key.name)
    tokens = (key.namespace, key.name) if key.namespace else (key.name,)
    subject = kind.state.of(*tokens)
    return [subject] if store.get(subject) is not None else []


def _with_owned(store: Store, subject: str) -> dict[str, int]:
    """The subject and what goes with it -> its place: owners before the owned, a namespace after its contents."""
    message = store.get(subject)
    places = {subject: place(subject)}
    match message:
        case Namespace():
            for inner in store.in_namespace(message.name):
                places |= _with_owned(store, inner)
        case Service():
            for address in store.addresses_of(message.namespace, message.name):
                places[CLUSTER_ADDRESS.of(address)] = place(CLUSTER_ADDRESS.of(address))
            for port in store.node_ports_of(message.namespace, message.name):
                places[NODE_PORT.of(str(port))] = place(NODE_PORT.of(str(port)))
        case _ if (family := state_of(subject)) is not None and family.noun in MAKERS:
            for pod in store.pods_of("/".join((family.noun, *family.parse(subject)))):
                places[pod] = place(pod)
    return places


def place(subject: str) -> int:
    """Of a subject among those that go, the first first."""
    family = state_of(subject)
    return TAKEN[family.noun if family is not None else ""]


def _living(store: Store, source: str, namespace: str, name: str, uid: str) -> tuple[Pod | None, Plan]:
    pod = store.get(POD.of(namespace, name))
    if isinstance(pod, Pod) and pod.uid == uid:
        return pod, Plan()
    problem = "there is no such pod; it was deleted"
    if isinstance(pod, Pod):
        problem = f"the pod of this name has the uid {pod.uid}, not {uid}; it was deleted and made again"
    return None, Plan(refusals=(refusal(source, "Pod", f"{namespace}/{name}", "", problem),))


def _pod_plan(old: Pod, new: Pod) -> Plan:
    change: Literal["changed", "unchanged"] = "unchanged" if new == old else "changed"
    outcome = Outcome(kind="Pod", namespace=new.namespace, name=new.name, change=change)
    return Plan((Say(POD.of(new.namespace, new.name), new),) if new != old else (), (outcome,))


def _refused(source: str, pod: Pod, path: str, problem: str) -> Plan:
    name = f"{pod.namespace}/{pod.name}"
    return Plan(refusals=(refusal(source, "Pod", name, path, problem),))


def _refusal(resource: Resource, path: str, problem: str) -> Refusal:
    key = resource.key
    return refusal(resource.source, key.kind, key.name, path, problem)


def _no_node(name: str, store: Store) -> str:
    return f'there is no node "{name}"; there are: {", ".join(store.node_names()) or "none"}'


def _fixed(spec: Any) -> Any:
    """The part of a pod's spec that cannot change, nulls left out."""
    if not isinstance(spec, dict):
        return spec
    fixed = {field: value for field, value in spec.items() if value is not None and field not in CHANGEABLE}
    for field_ in ("containers", "initContainers"):
        if isinstance(fixed.get(field_), list):
            fixed[field_] = [
                {name: value for name, value in container.items() if name != "image" and value is not None}
                for container in fixed[field_]
            ]
    return fixed


def _first_difference(old: Any, new: Any, path: str) -> str:
    """Where two values first differ, "" when they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        places = ((old.get(each), new.get(each), f"{path}.{each}") for each in sorted(old.keys() | new.keys()))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        places = ((one, other, f"{path}[{at}]") for at, (one, other) in enumerate(zip(old, new, strict=True)))
    else:
        return "" if old == new else path
    return next((found for one, other, at in places if (found := _first_difference(one, other, at))), "")
