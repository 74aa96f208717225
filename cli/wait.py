"""plexus wait: until everything applied is realised on every node, and how long the last change took to get there.

Two steps. First every pod is ready and has a ready endpoint. Then the last sequences of both root logs are noted
(bus/revision.py), and every node must have applied them and hold, as it is asked and has looked at its maps, what
owners say; so must control services what they hear. Both are driven by events; a slow question to each node is only for
what an event might have missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bus.messages.dataplane import CONTAINERS, AppliedRevision, Endpoint, Health, HealthQuestion
from bus.messages.resources import Node, Pod
from bus.revision import Revision, includes
from bus.services import CONTROL, HEALTH, ROOTS, instances
from bus.subjects import APPLIED, DAEMON_SET, DEPLOYMENT, ENDPOINT, NODE, POD, STATEFUL_SET, STATES
from bus.texts import visible
from cli.errors import Failed
from cli.output import Format, Output, duration, parse_duration, show_value
from cli.session import Name, Session, run
from cli.state import COMPARED_SECONDS, Picture, differences, healths
from lab import workloads
from lab.workloads import Workload

if TYPE_CHECKING:
    from bus.interface import Bus

LAST_WORDS_SECONDS = 0.5  # after the time is up, for the services to say how they are
ASK_AGAIN_SECONDS = 1.0  # the backstop: a node that said nothing is asked this often
NO_NODES = "there are no nodes; whoever runs them has to report them"  # on none of them nothing is realised
ROOT_FAMILIES = tuple(family for family in STATES if family.owner in ROOTS)


def wait(
    timeout: Annotated[str, typer.Option(help="30s, 500ms, 2m.")] = "30s",
    name: Name = "",
    output: Output = Format.TABLE,
) -> None:
    """Wait until everything applied so far is realised on every node.

    With -o json: the revision, and the seconds from its commit until each node's maps held it.
    """
    seconds = parse_duration(timeout)

    async def main(session: Session) -> Realised:
        return await realised(session.bus, seconds)

    result = run(main, name)
    if output is Format.TABLE:
        print(visible(in_words(result)))
    else:
        show_value({"revision": result.revision, "nodes": result.nodes, "seconds": result.seconds}, output)


@dataclass(frozen=True)
class Realised:
    """The last revision of the resources log, and the seconds from its commit to each node's maps.

    None: the time of the commit is not known any more, which happens when it deleted something long ago.
    """

    revision: int
    nodes: dict[str, float | None]

    @property
    def seconds(self) -> float | None:
        """Until the last node."""
        if None in self.nodes.values():
            return None
        return max((took for took in self.nodes.values() if took is not None), default=0.0)


def in_words(result: Realised) -> str:
    """For people: what is realised, and how long each node took."""
    told = f"revision {result.revision} is realised on every node"
    if result.seconds is None:
        return f"{told} ({', '.join(result.nodes)})"
    nodes = ", ".join(f"{node} {duration(took)}" for node, took in result.nodes.items() if took is not None)
    return f"{told} after {duration(result.seconds)} ({nodes})"


@dataclass
class Progress:
    """How far the nodes are; what to say when time is up."""

    wanted: dict[str, int] | None = None  # None: pods are not ready yet
    pods: list[str] = field(default_factory=list)  # what each pod waits for
    reached_at: dict[str, float] = field(default_factory=dict)  # by node: when it had the resources part of `wanted`
    behind: dict[str, str] = field(default_factory=dict)  # by node: why it is not there

    def heard(self, node: str, revisions: Iterable[tuple[Revision, float]]) -> bool:
        """A node had these revisions at these times, oldest first. True when that includes what is wanted: then it has
        to be `compared`.

        The time that counts is that of the resources: the last change of the other root may be a later one.
        """
        if self.wanted is None or node not in self.behind:
            return False
        for revision, at in revisions:
            if revision.get("resources", -1) >= self.wanted.get("resources", 0):
                self.reached_at.setdefault(node, at)
            if includes(revision, self.wanted):
                self.behind[node] = "applied, and not compared yet"
                return True
            self.behind[node] = lag(revision, self.wanted)
        return False

    def compared(self, node: str, differing: list[str]) -> None:
        """The node, which has applied what is wanted, has compared what it holds."""
        if differing:
            self.behind[node] = ", ".join(differing)
        else:
            self.behind.pop(node, None)

    def problem(self) -> str:
        """Who is behind and why, on one line."""
        if self.wanted is None:
            return "; ".join(some(self.pods)) or "the bus did not hand over what was applied"
        return "; ".join(some([f"{node}: {why}" for node, why in sorted(self.behind.items())]))


def some(lines: list[str], most: int = 3) -> list[str]:
    """The first few, and how many more."""
    return lines if len(lines) <= most else [*lines[:most], f"and {len(lines) - most} more"]


def lag(have: Revision, wanted: Revision) -> str:
    """Why `have` does not include `wanted`: "applied resources 41 of 44"."""
    short = [root for root, sequence in wanted.items() if have.get(root, -1) < sequence]
    return ", ".join(f"applied {root} {have.get(root, 'nothing')} of {wanted[root]}" for root in short)


def unready(
    pods: Mapping[tuple[str, ...], Pod],
    endpoints: Mapping[tuple[str, ...], Endpoint],
    makers: Iterable[Workload],
    nodes: Mapping[str, Node],
) -> list[str]:
    """What is missing until every pod is ready and has its place in the network, a line for each pod or maker of pods.

    So is what is there too much: an endpoint whose pod is gone. A node that is gone took its endpoints with it.

    Args:
        pods: by (namespace, name).  endpoints: by (node, namespace, pod).  nodes: by name.
    """
    missing: list[str] = []
    for maker in makers:
        owner = workloads.owner(maker)
        have = {pod.name: pod for pod in pods.values() if pod.owner == owner}
        wanted = len(workloads.pod_names(maker, nodes.values()))
        if len(have) != wanted:
            missing.append(f"{owner.replace('/', ' ', 1)}: {len(have)} of {wanted} pods exist")
        elif any(workloads.one(maker, have, nodes.values())):
            missing.append(f"{owner.replace('/', ' ', 1)}: pods of an older template are still to be replaced")
    for (namespace, name), pod in pods.items():
        if pod.phase == "Succeeded":
            continue
        endpoint = endpoints.get((pod.node, namespace, name))
        why = ""
        if not pod.node:
            why = "not bound to a node"
        elif not pod.ready:
            why = pod.reason or f"{pod.phase}, not ready on {pod.node}"
        elif pod.host_network:
            pass
        elif endpoint is None or (endpoint.uid and pod.uid and endpoint.uid != pod.uid):
            why = f"no endpoint on {pod.node}"
        elif endpoint.state != "ready":
            why = f"its endpoint on {pod.node} is {endpoint.state}"
        if why:
            missing.append(f"pod {namespace}/{name}: {why}")
    for node, namespace, name in endpoints:
        owner_of = pods.get((namespace, name))
        if namespace == CONTAINERS and owner_of is None:
            continue  # nobody applied it, so nobody waits for it
        if node in nodes and (owner_of is None or owner_of.node != node):
            missing.append(f"pod {namespace}/{name}: it is gone, and its endpoint on {node} is still there")
    return missing


async def realised(bus: Bus, seconds: float) -> Realised:
    """Wait. Raises Failed when `seconds` are over, naming the nodes or pods that are behind and why. Without nodes
    nothing is realised."""
    progress = Progress()
    try:
        async with asyncio.timeout(seconds):
            seen = await pods_ready(bus, progress)
            nodes = [name for (name,) in seen.of(NODE)]
            progress.wanted = {root: seen.revision[root] for root in ROOTS if seen.revision.get(root, 0) > 0}
            progress.behind = dict.fromkeys(nodes, "does not answer")
            await nodes_there(bus, progress)
            await services_hold(bus, progress)
    except TimeoutError:
        causes = await services_behind(bus, progress.wanted or {})
        raise Failed(f"not realised within {duration(seconds)}: {'; '.join([progress.problem(), *causes])}") from None
    revision = seen.revision.get("resources", 0)
    first = min(progress.reached_at.values(), default=0.0)
    sequence, caused_at = committed_at(seen, revision)
    if sequence < revision:
        caused_at = await told_by_resources(bus, revision, first)
    return Realised(revision, took(progress.reached_at, caused_at))


def took(reached_at: Mapping[str, float], caused_at: float) -> dict[str, float | None]:
    """Seconds from the commit, by node; None when `caused_at` is 0.0, not known."""
    return {node: max(0.0, at - caused_at) if caused_at else None for node, at in sorted(reached_at.items())}


def committed_at(seen: Picture, revision: int) -> tuple[int, float]:
    """The last change up to that revision of the resources log that is known, and when it was committed, or (0, 0.0).

    A key that was deleted before the picture was read leaves no trace in it.
    """
    known = [
        (sequence, seen.caused_at[subject])
        for subject, sequence in seen.sequences.items()
        if subject.startswith("state.resources.") and sequence <= revision and seen.caused_at[subject]
    ]
    return max(known, default=(0, 0.0))


async def told_by_resources(bus: Bus, revision: int, first: float) -> float:
    """When the resources service first had that revision of its own log; 0.0 when it cannot tell.

    Args:
        first: when the first node had it. A service that noted it only later does not know either.
    """
    answer = (await healths(bus, [("resources", CONTROL)]))["resources", CONTROL]
    if isinstance(answer, str):
        return 0.0
    at = next((each.at for each in answer.reached if each.revision.get("resources", -1) >= revision), 0.0)
    return at if at <= first else 0.0


async def pods_ready(bus: Bus, progress: Progress) -> Picture:
    """Everything in both root logs, once every pod in it is ready."""
    seen = Picture()
    async for batch in bus.watch_state(*ROOT_FAMILIES, direct=True):
        seen.take(batch)
        if not batch.synced:
            continue
        nodes = {name: node for (name,), node in seen.of(NODE).items()}
        makers: list[Workload] = [
            *seen.of(DEPLOYMENT).values(),
            *seen.of(STATEFUL_SET).values(),
            *seen.of(DAEMON_SET).values(),
        ]
        progress.pods = unready(seen.of(POD), seen.of(ENDPOINT), makers, nodes)
        progress.pods[:0] = [] if nodes else [NO_NODES]
        if not progress.pods:
            return seen
    raise Failed("the bus ended while waiting; look at plexus status")


async def nodes_there(bus: Bus, progress: Progress) -> None:
    """Return when no node is behind."""
    done = asyncio.Event()
    if not progress.behind:
        return

    def check() -> None:
        if not progress.behind:
            done.set()

    applied_by = {node: asyncio.Event() for node in progress.behind}  # set: it is worth asking at once

    async def listen() -> None:
        async for _, applied in bus.watch_events(APPLIED.all(), AppliedRevision):
            if progress.heard(applied.node, [(applied.revision, applied.at)]):
                applied_by[applied.node].set()

    async def ask(node: str) -> None:
        while node in progress.behind:
            applied_by[node].clear()
            await one_question(bus, node, progress)
            check()
            with suppress(TimeoutError):
                async with asyncio.timeout(ASK_AGAIN_SECONDS):
                    await applied_by[node].wait()

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(listen(), name="listen")]
        running += [tasks.create_task(ask(node), name=f"ask {node}") for node in list(progress.behind)]
        await done.wait()
        for task in running:
            task.cancel()


async def services_hold(bus: Bus, progress: Progress) -> None:
    """Return when every control service that answers holds what the owners of its inputs say."""
    while True:
        answers = await healths(bus, instances())
        differing = {
            owner: ", ".join(differences(answer))
            for (owner, _), answer in answers.items()
            if not isinstance(answer, str) and differences(answer)
        }
        if not differing:
            return
        progress.behind = differing
        await asyncio.sleep(ASK_AGAIN_SECONDS)


async def one_question(bus: Bus, node: str, progress: Progress) -> None:
    """Ask a node what it has applied, its history tells when, and whether it holds that."""
    from bus.interface import Unanswered

    try:
        question = HealthQuestion(compare=True)
        health: Any = await bus.ask(HEALTH["dataplane"], node, message=question, timeout=COMPARED_SECONDS)
    except Unanswered as error:
        if node in progress.behind:
            progress.behind[node] = f"does not answer: {error.why}"
        return
    if progress.heard(node, history(health)):
        progress.compared(node, differences(health))
    elif node in progress.behind:
        bad = [f"{check.name}: {check.detail or 'not ok'}" for check in health.checks if not check.ok]
        progress.behind[node] = ", ".join([progress.behind[node], *bad])


async def services_behind(bus: Bus, wanted: Revision) -> list[str]:
    """The services between the user and the nodes that do not answer, are not well, or have not handed on what is
    wanted."""
    answers = await healths(bus, instances(), seconds=LAST_WORDS_SECONDS)
    found = {
        owner: answer if isinstance(answer, str) else unwell(answer, wanted) for (owner, _), answer in answers.items()
    }
    return [f"{owner}: {why}" for owner, why in found.items() if why]


def unwell(health: Health, wanted: Revision) -> str:
    """Why a service may be what others wait for; "" when it is not. What it does not hear says nothing of it."""
    bad = [f"{check.name}: {check.detail or 'not ok'}" for check in health.checks if not check.ok]
    if not health.ready or not health.active:
        bad.append("not ready" if not health.ready else "stands by")
    heard = {root: wanted[root] for root in wanted if root in health.revision}
    return ", ".join(filter(None, [lag(health.revision, heard), *bad]))


def history(health: Health) -> list[tuple[Revision, float]]:
    """What a node realised and when, oldest first, ending with what it has now."""
    return [*((each.revision, each.at) for each in health.reached), (health.revision, health.revision_at)]
