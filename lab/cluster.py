"""The part of Kubernetes that a lab needs: hears pods, nodes and what makes pods; schedules, replicates, runs.

Everything goes over the bus, as it would from a real cluster's controllers. While the bus is away nothing happens here,
and pods go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from bus.interface import Batch, Bus, BusError, Change
from bus.messages.resources import Applied, Apply, Bind, Document, Node, Pod, PodStatus
from bus.subjects import APPLY, BIND, DAEMON_SET, DEPLOYMENT, NODE, POD, POD_STATUS, STATEFUL_SET, State
from bus.telemetry import logger
from lab import fabric, scheduler, workloads
from lab.kubelet import Kubelet
from lab.state import Record

log = logger("lab.cluster")

RETRY_SECONDS = 0.1
AT_ONCE = 100  # pods to make or remove in one call
WORKLOADS: tuple[State[Any], ...] = (DEPLOYMENT, STATEFUL_SET, DAEMON_SET)


class Cluster:
    """What was heard, by name."""

    def __init__(self) -> None:
        self.pods: dict[tuple[str, ...], Pod] = {}
        self.nodes: dict[tuple[str, ...], Node] = {}
        self.workloads: dict[tuple[str, ...], workloads.Workload] = {}  # by noun, namespace and name
        self.assumed: dict[str, str] = {}  # uid -> node of pods whose binding was asked for and not heard of yet

    def take(self, batch: Batch) -> None:
        for change in batch.changes:
            self._take(change)
        known = {pod.uid: pod for pod in self.pods.values()}
        self.assumed = {uid: node for uid, node in self.assumed.items() if uid in known and not known[uid].node}

    def _take(self, change: Change) -> None:
        families: tuple[tuple[State[Any], dict[tuple[str, ...], Any], tuple[str, ...]], ...] = (
            (POD, self.pods, ()),
            (NODE, self.nodes, ()),
            *((family, self.workloads, (family.noun,)) for family in WORKLOADS),
        )
        for family, known, head in families:
            if not family.has(change.subject):
                continue
            key = head + family.parse(change.subject)
            if change.message is None:
                known.pop(key, None)
            else:
                known[key] = change.message


async def run(lab: Record, bus: Bus) -> None:
    """Play Kubernetes until cancelled."""
    cluster = Cluster()
    async with asyncio.TaskGroup() as tasks:
        kubelet = Kubelet(lab, bus, tasks)
        schedule, replicate, register = asyncio.Event(), asyncio.Event(), asyncio.Event()
        tasks.create_task(loop("nodes", register, lambda: report_nodes(lab, cluster, bus)), name="nodes")
        if lab.fabric_routes:
            tasks.create_task(fabric.run(lab, bus), name="fabric")
        tasks.create_task(loop("scheduler", schedule, lambda: bind_pods(cluster, bus)), name="scheduler")
        tasks.create_task(loop("workloads", replicate, lambda: keep_replicas(cluster, bus)), name="workloads")
        async for batch in bus.watch_state(POD, NODE, *WORKLOADS):
            cluster.take(batch)
            if batch.synced:
                kubelet.hear(cluster.pods.values())
                register.set()
                schedule.set()
                replicate.set()


async def loop(name: str, changed: asyncio.Event, step: Callable[[], Awaitable[None]]) -> None:
    """One visit for any number of changes; again a little later when nobody answered."""
    while True:
        await changed.wait()
        changed.clear()
        try:
            await step()
        except BusError as error:
            log.warning("will try again", controller=name, why=str(error))
            await asyncio.sleep(RETRY_SECONDS)
            changed.set()


async def report_nodes(lab: Record, cluster: Cluster, bus: Bus) -> None:
    """Apply the manifests of nodes that are not there, or not as they are: each kubelet registers its own, and again
    when that was lost."""
    wanted = {node: node_manifest(lab, node) for node in lab.nodes}
    missing = [node for node in lab.nodes if not is_registered(cluster.nodes.get((node,)), wanted[node])]
    documents = [Document(source=f"lab {lab.name}, {node}", manifest=wanted[node]) for node in missing]
    if documents:
        report(await bus.ask(APPLY, message=Apply(documents=documents)))


def is_registered(node: Node | None, manifest: dict[str, Any]) -> bool:
    """The node is there, with its kubelet's addresses; what else it is may be others' doing."""
    own = {each["address"] for each in manifest["status"]["addresses"] if each["type"] == "InternalIP"}
    return node is not None and own <= set(node.addresses)


def node_manifest(lab: Record, node: str) -> dict[str, Any]:
    """A Node as a kubelet writes it."""
    addresses = [{"type": "InternalIP", "address": address} for address in lab.node_addresses(node)]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node, "labels": {"kubernetes.io/hostname": node, "kubernetes.io/os": "linux"}},
        **({"spec": {"podCIDRs": pod_cidrs(lab, node)}} if lab.settings.get("ipam.mode") == "kubernetes" else {}),
        "status": {"addresses": [*addresses, {"type": "Hostname", "address": node}]},
    }


def pod_cidrs(lab: Record, node: str) -> list[str]:
    """As the controller manager gives them out: a part of the pods' network each, in order."""
    place = lab.nodes.index(node)
    parts = ((lab.plan.pods(family), 24 if family == 4 else 120) for family in lab.families)
    return [f"{network[place << (network.max_prefixlen - length)]}/{length}" for network, length in parts]


async def bind_pods(cluster: Cluster, bus: Bus) -> None:
    """Bind what is unbound, in the order it was heard."""
    nodes = list(cluster.nodes.values())
    load = scheduler.load(cluster.pods.values(), cluster.assumed.values())
    asked: list[Awaitable[None]] = []
    for pod in cluster.pods.values():
        if pod.node or pod.uid in cluster.assumed:
            continue
        node = scheduler.choose(pod, nodes, load)
        if node is not None:
            load[node] += 1
            cluster.assumed[pod.uid] = node
            asked.append(bind(cluster, bus, pod, node))
    asked += [say_why(bus, pod, why) for pod, why in stuck(cluster)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def stuck(cluster: Cluster) -> list[tuple[Pod, str]]:
    """Pods that no node has, and why, where the pod's own status does not say so yet."""
    nodes = list(cluster.nodes.values())
    found = [(pod, scheduler.unfit(pod, nodes)) for pod in cluster.pods.values() if pod.uid not in cluster.assumed]
    return [(pod, why) for pod, why in found if why and why != pod.reason]


async def say_why(bus: Bus, pod: Pod, why: str) -> None:
    """Report why a pod waits."""
    status = PodStatus(namespace=pod.namespace, name=pod.name, uid=pod.uid, phase="Pending", ready=False, reason=why)
    report(await bus.ask(POD_STATUS, status.node, message=status))


async def bind(cluster: Cluster, bus: Bus, pod: Pod, node: str) -> None:
    """Ask for one binding; forget the choice when it was not heard or not taken."""
    bound = False
    try:
        message = Bind(namespace=pod.namespace, name=pod.name, uid=pod.uid, node=node)
        bound = report(await bus.ask(BIND, message=message))
    finally:
        if not bound:
            cluster.assumed.pop(pod.uid, None)


async def keep_replicas(cluster: Cluster, bus: Bus) -> None:
    """Make and remove pods of Deployments, StatefulSets and DaemonSets."""
    found = cluster.workloads.values(), cluster.pods.values(), cluster.nodes.values()
    apply, delete = workloads.reconcile(*found)
    for manifests, is_delete in ((apply, False), (delete, True)):
        for first in range(0, len(manifests), AT_ONCE):
            some = manifests[first : first + AT_ONCE]
            documents = [Document(source="the lab's controllers", manifest=each) for each in some]
            answer = await bus.ask(APPLY, message=Apply(documents=documents, delete=is_delete))
            if answer.refusals and len(documents) > 1:  # one that is refused must not hold up the others
                for document in documents:
                    report(await bus.ask(APPLY, message=Apply(documents=[document], delete=is_delete)))
            else:
                report(answer)


def report(answer: Applied) -> bool:
    """Log what was refused. True: nothing was."""
    for refusal in answer.refusals:
        log.warning("refused", kind=refusal.kind, resource=refusal.name, path=refusal.path, why=refusal.problem)
    return not answer.refusals
