"""plexus get: resources as applied, their status, and what the services made of them.

JSON and YAML have the form that Kubernetes tools expect (one object for a name, else a `List`); what is ours stands
under the key `plexus` of each object.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bus.addresses import all_of, by_family, with_port
from bus.messages.resources import DaemonSet, EndpointSlice, Namespace, Node, Pod, Policy, Service
from bus.subjects import (
    BLOCK,
    DAEMON_SET,
    DEPLOYMENT,
    ENDPOINT,
    ENDPOINT_SLICE,
    FRONTEND,
    NAMESPACE,
    NODE,
    POD,
    POLICY,
    RULES,
    SELECTOR,
    SERVICE,
    STATEFUL_SET,
    State,
)
from cli.errors import Failed
from cli.output import Column, Format, Output, Row, show, show_value
from cli.session import Name, Session, run
from cli.state import Picture, differences, healths, picture
from lab import workloads
from lab.workloads import Workload

if TYPE_CHECKING:
    from bus.messages.dataplane import Health

Describe = Callable[[Any, "Known"], dict[str, Any]]


@dataclass
class Known:
    """Everything that descriptions draw on."""

    seen: Picture
    nodes: dict[str, Health] = field(default_factory=dict)  # the nodes that answered


@dataclass(frozen=True)
class Kind:
    """A kind of resource: its names on the command line, where it is, and how it is shown."""

    kind: str
    names: tuple[str, ...]  # the plural first
    api: str
    family: State[Any]
    columns: tuple[Column, ...]
    describe: Describe  # (message, known) -> the object's `status` and `plexus`, and `spec` or `metadata` to fill in
    draws_on: tuple[State[Any], ...] = ()
    asks_nodes: bool = False

    @property
    def is_namespaced(self) -> bool:
        return "namespace" in self.family.keys


def get(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="pods, svc, ns, nodes, deploy, sts, ds, netpol, cnp, endpointslices."),
    ],
    resource: Annotated[str, typer.Argument(metavar="NAME", help="One of them.", show_default=False)] = "",
    namespace: Annotated[str, typer.Option("-n", "--namespace", help="Where it is.")] = "default",
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="In every namespace.")] = False,
    name: Name = "",
    output: Output = Format.TABLE,
) -> None:
    """Show resources as applied, with their status, and what the services made of them.

    JSON and YAML: one object when NAME is given, else a List with `items`; what Plexus adds is under `plexus`.
    """
    word, _, after = kind.partition("/")
    chosen = kind_named(word)
    objects = run(lambda session: read(session, chosen), name)
    if chosen.is_namespaced and not everywhere:
        objects = [each for each in objects if each["metadata"]["namespace"] == namespace]
    wanted = resource or after
    if wanted:
        objects = [each for each in objects if each["metadata"]["name"] == wanted]
        if not objects:
            place = f" in namespace {namespace}" if chosen.is_namespaced and not everywhere else ""
            raise Failed(f"there is no {chosen.kind} {wanted}{place}; plexus get {chosen.names[0]} -A lists them")
    if output is not Format.TABLE:
        one = len(objects) == 1 and bool(wanted)
        show_value(objects[0] if one else {"apiVersion": "v1", "kind": "List", "items": objects}, output)
        return
    columns = chosen.columns
    if chosen.is_namespaced and everywhere:
        columns = (Column("NAMESPACE", at("metadata.namespace")), *columns)
    place = f" in namespace {namespace}" if chosen.is_namespaced and not everywhere else ""
    show(objects, columns, output, empty=f"no {chosen.names[0]}{place}")


def kind_named(word: str) -> Kind:
    """The kind that goes by this name, in any case, short or long, one or many. Raises typer.BadParameter."""
    for kind in KINDS:
        if word.lower() in kind.names:
            return kind
    known = ", ".join(kind.names[-1] for kind in KINDS)
    raise typer.BadParameter(f"{word!r} is no kind of resource here; there are {known}")


async def read(session: Session, kind: Kind) -> list[dict[str, Any]]:
    """Every object of a kind, by namespace and name."""
    families = dict.fromkeys((kind.family, *kind.draws_on, *((NODE,) if kind.asks_nodes else ())))
    seen = await picture(session.bus, *families)
    known = Known(seen)
    if kind.asks_nodes:
        answers = await healths(session.bus, [("dataplane", node) for (node,) in seen.of(NODE)])
        known.nodes = {instance: health for (_, instance), health in answers.items() if not isinstance(health, str)}
    messages = seen.of(kind.family).values()
    return [assemble(kind, message, known) for message in messages if getattr(message, "kind", kind.kind) == kind.kind]


def assemble(kind: Kind, message: Any, known: Known) -> dict[str, Any]:
    """The manifest as applied, and over it what is known now."""
    whole: dict[str, Any] = {
        "apiVersion": kind.api,
        "kind": kind.kind,
        "metadata": {},
        **copy.deepcopy(message.manifest),
    }
    metadata = {**(whole.get("metadata") or {}), "name": message.name}
    if kind.is_namespaced:
        metadata["namespace"] = message.namespace
    whole["metadata"] = metadata
    for section, values in kind.describe(message, known).items():
        whole[section] = {**(whole.get(section) or {}), **values}
    if message.warnings:
        whole["plexus"] = {**whole.get("plexus", {}), "warnings": message.warnings}
        condition = {"type": "Warned", "status": "True", "message": "; ".join(message.warnings)}
        status = whole.get("status") or {}
        whole["status"] = {**status, "conditions": [*(status.get("conditions") or []), condition]}
    return whole


def at(path: str) -> Callable[[Row], Any]:
    """A column's function: the value at "plexus.address" of an object, None when it is not there."""

    def find(row: Row) -> Any:
        value: Any = row
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    return find


def of_pod(pod: Pod, known: Known) -> dict[str, Any]:
    endpoint = known.seen.of(ENDPOINT).get((pod.node, pod.namespace, pod.name))
    addresses = all_of(pod) or (all_of(endpoint) if endpoint else [])
    node = known.seen.of(NODE).get((pod.node,))
    hosts = list(by_family(node.addresses).values()) if node else []
    condition = {"type": "Ready", "status": "True" if pod.ready else "False"}
    status = {
        "phase": pod.phase,
        "conditions": [{**condition, "message": pod.reason} if pod.reason else condition],
        **({"podIP": addresses[0], "podIPs": [{"ip": each} for each in addresses]} if addresses else {}),
        **({"hostIP": hosts[0], "hostIPs": [{"ip": each} for each in hosts]} if hosts else {}),
    }
    plexus = {
        "address": next(iter(addresses), ""),
        "addresses": addresses,
        "identity": endpoint.identity if endpoint else 0,
        "node": pod.node,
        "endpoint": endpoint.state if endpoint else "",
        "interface": endpoint.interface if endpoint else "",
        "ready": pod.ready,
        "reason": pod.reason,
        "owner": pod.owner,
    }
    filled = {"uid": pod.uid, **({"labels": pod.labels} if pod.labels else {})}
    return {
        "metadata": filled,
        **({"spec": {"nodeName": pod.node}} if pod.node else {}),
        "status": status,
        "plexus": plexus,
    }


def of_service(service: Service, known: Known) -> dict[str, Any]:
    made = known.seen.of(FRONTEND).get((service.namespace, service.name))
    frontends = [
        {
            "address": each.address,
            "port": each.port,
            "protocol": each.protocol,
            "backends": [{"address": one.address, "port": one.port, "node": one.node} for one in each.backends],
        }
        for each in (made.frontends if made else [])
    ]
    if service.type == "ExternalName":
        named = {"type": service.type, "externalName": service.external_name}
        return {"spec": named, "status": {"loadBalancer": {}}, "plexus": {"frontends": frontends}}
    spec: dict[str, Any] = {"type": service.type, "clusterIP": next(iter(service.cluster_addresses), "None")}
    spec["clusterIPs"] = service.cluster_addresses or ["None"]
    spec["ipFamilies"] = service.ip_families or ["IPv4"]
    spec["ipFamilyPolicy"] = service.ip_family_policy
    return {"spec": spec, "status": {"loadBalancer": {}}, "plexus": {"frontends": frontends}}


def of_namespace(namespace: Namespace, known: Known) -> dict[str, Any]:
    pods = sum(key[0] == namespace.name for key in known.seen.of(POD))
    filled = {"labels": namespace.labels} if namespace.labels else {}
    return {"metadata": filled, "status": {"phase": "Active"}, "plexus": {"pods": pods}}


def of_node(node: Node, known: Known) -> dict[str, Any]:
    health = known.nodes.get(node.name)
    blocks = [block.cidr for block in known.seen.of(BLOCK).values() if block.node == node.name]
    problems = [f"{check.name}: {check.detail}" for check in health.checks if not check.ok] if health else ["no answer"]
    ready = health is not None and health.ready
    status = {
        "addresses": [{"type": "InternalIP", "address": address} for address in node.addresses],
        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
    }
    plexus = {
        "ready": ready,
        "addresses": node.addresses,
        "blocks": blocks,
        "pods": sum(pod.node == node.name for pod in known.seen.of(POD).values()),
        "problems": problems,
    }
    return {"status": status, "plexus": plexus}


def of_workload(workload: Workload, known: Known) -> dict[str, Any]:
    owner = workloads.owner(workload)
    pods = [pod for pod in known.seen.of(POD).values() if pod.owner == owner]
    ready = sum(pod.ready for pod in pods)
    wanted = len(workloads.pod_names(workload, known.seen.of(NODE).values()))
    counts = ("replicas", "readyReplicas", "availableReplicas")
    if isinstance(workload, DaemonSet):
        counts = ("currentNumberScheduled", "numberReady", "numberAvailable")
    status = dict(zip(counts, (len(pods), ready, ready), strict=True))
    return {"status": status, "plexus": {"ready": f"{ready}/{wanted}", "pods": [pod.name for pod in pods]}}


def of_policy(policy: Policy, known: Known) -> dict[str, Any]:
    key = (policy.kind, policy.namespace, policy.name)
    compiled = known.seen.of(RULES).get(key)
    subject = known.seen.of(SELECTOR).get((compiled.subject,)) if compiled else None
    identities = subject.members if subject else []
    pods = [
        f"{e.namespace}/{e.pod}" for e in known.seen.of(ENDPOINT).values() if e.identity and e.identity in identities
    ]
    sequence = known.seen.sequences[POLICY.of(*key)]
    there = [
        node
        for node, health in known.nodes.items()
        if compiled and health.revision.get("resources", -1) >= sequence and not differences(health)
    ]
    plexus = {
        "rules": len(compiled.rules if compiled else policy.rules),
        "denies": [
            *(["ingress"] if policy.deny_ingress_by_default else []),
            *(["egress"] if policy.deny_egress_by_default else []),
        ],
        "identities": identities,
        "pods": pods,
        "revision": sequence,
        "realised": sorted(there),
        "nodes": len(known.seen.of(NODE)),
    }
    return {"plexus": plexus}


def of_slice(found: EndpointSlice, known: Known) -> dict[str, Any]:
    addresses = [address for endpoint in found.endpoints for address in endpoint.addresses]
    ports = [f"{port.port}/{port.protocol}" for port in found.ports]
    return {"plexus": {"service": found.service, "ports": ports, "addresses": addresses}}


def ports_of(row: Row) -> list[str]:
    """ "80/TCP" of each frontend of a Service."""
    ports = (at("spec.ports")(row) or []) if isinstance(at("spec.ports")(row), Sequence) else []
    return [f"{port.get('port')}/{port.get('protocol', 'TCP')}" for port in ports]


def backends_of(row: Row) -> list[str]:
    """Every "address:port" behind a Service, once."""
    frontends = at("plexus.frontends")(row) or []
    return list(dict.fromkeys(with_port(one["address"], one["port"]) for each in frontends for one in each["backends"]))


NAME = Column("NAME", at("metadata.name"))
_WORKLOAD_COLUMNS = (NAME, Column("READY", at("plexus.ready")), Column("PODS", at("plexus.pods")))
_POLICY_COLUMNS = (
    NAME,
    Column("RULES", at("plexus.rules")),
    Column("DENIES BY DEFAULT", at("plexus.denies")),
    Column("PODS", at("plexus.pods")),
    Column("REALISED ON", lambda row: f"{len(at('plexus.realised')(row))} of {at('plexus.nodes')(row)} nodes"),
)
_POLICY_DRAWS_ON = (RULES, SELECTOR, ENDPOINT, NODE)

KINDS = (
    Kind(
        "Pod",
        ("pods", "po", "pod"),
        "v1",
        POD,
        (
            NAME,
            Column("READY", at("plexus.ready")),
            Column("STATUS", at("status.phase")),
            Column("ADDRESS", at("plexus.addresses")),
            Column("IDENTITY", at("plexus.identity")),
            Column("NODE", at("plexus.node")),
            Column("ENDPOINT", at("plexus.endpoint")),
            Column("REASON", at("plexus.reason")),
        ),
        of_pod,
        (ENDPOINT, NODE),
    ),
    Kind(
        "Service",
        ("services", "svc", "service"),
        "v1",
        SERVICE,
        (
            NAME,
            Column("TYPE", at("spec.type")),
            Column("ADDRESS", lambda row: at("spec.clusterIPs")(row) or at("spec.externalName")(row)),
            Column("PORTS", ports_of),
            Column("BACKENDS", backends_of),
        ),
        of_service,
        (FRONTEND,),
    ),
    Kind(
        "Namespace",
        ("namespaces", "ns", "namespace"),
        "v1",
        NAMESPACE,
        (NAME, Column("PODS", at("plexus.pods")), Column("LABELS", at("metadata.labels"))),
        of_namespace,
        (POD,),
    ),
    Kind(
        "Node",
        ("nodes", "no", "node"),
        "v1",
        NODE,
        (
            NAME,
            Column("READY", at("plexus.ready")),
            Column("ADDRESSES", at("plexus.addresses")),
            Column("BLOCKS", at("plexus.blocks")),
            Column("PODS", at("plexus.pods")),
            Column("PROBLEMS", at("plexus.problems")),
        ),
        of_node,
        (BLOCK, POD),
        asks_nodes=True,
    ),
    Kind(
        "Deployment",
        ("deployments", "deploy", "deployment"),
        "apps/v1",
        DEPLOYMENT,
        _WORKLOAD_COLUMNS,
        of_workload,
        (POD, NODE),
    ),
    Kind(
        "StatefulSet",
        ("statefulsets", "sts", "statefulset"),
        "apps/v1",
        STATEFUL_SET,
        _WORKLOAD_COLUMNS,
        of_workload,
        (POD, NODE),
    ),
    Kind(
        "DaemonSet",
        ("daemonsets", "ds", "daemonset"),
        "apps/v1",
        DAEMON_SET,
        _WORKLOAD_COLUMNS,
        of_workload,
        (POD, NODE),
    ),
    Kind(
        "NetworkPolicy",
        ("networkpolicies", "netpol", "networkpolicy"),
        "networking.k8s.io/v1",
        POLICY,
        _POLICY_COLUMNS,
        of_policy,
        _POLICY_DRAWS_ON,
        asks_nodes=True,
    ),
    Kind(
        "CiliumNetworkPolicy",
        ("ciliumnetworkpolicies", "cnp", "ciliumnetworkpolicy"),
        "cilium.io/v2",
        POLICY,
        _POLICY_COLUMNS,
        of_policy,
        _POLICY_DRAWS_ON,
        asks_nodes=True,
    ),
    Kind(
        "EndpointSlice",
        ("endpointslices", "endpointslice"),
        "discovery.k8s.io/v1",
        ENDPOINT_SLICE,
        (
            NAME,
            Column("SERVICE", at("plexus.service")),
            Column("PORTS", at("plexus.ports")),
            Column("ADDRESSES", at("plexus.addresses")),
        ),
        of_slice,
    ),
)
