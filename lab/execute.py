"""`plexus lab exec`, `kill`, `start`: where to run something, and stopping and starting processes. Effects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab import dialogue, names, namespaces, processes, state
from lab.errors import LabError
from lab.programs import check_node
from lab.state import ProcessId, Record

START_SECONDS = 40.0

# No name server answers in a lab, and the machine's own cannot be reached from there: a look-up gives up soon (see
# resolv.conf(5)).
RESOLVER = {"RES_OPTIONS": "timeout:1 attempts:1"}


@dataclass(frozen=True)
class Place:
    """Where a program runs: a pod, a node, or one of the lab's own hosts."""

    netns: str
    cgroup: Path


def pod(lab: Record, name: str) -> Place:
    """A pod by "name" (in namespace default) or "namespace/name". Raises LabError naming those that there are."""
    namespace, _, short = name.rpartition("/")
    boxes = lab.directory.sandboxes()
    for box in boxes:
        if (box.namespace, box.name) == (namespace or "default", short):
            if not (box.addresses or box.host_network):
                raise LabError(f"pod {box.namespace}/{box.name} has no address yet; plexus wait waits for it")
            return Place(box.netns, Path(box.cgroup))
    there = ", ".join(f"{box.namespace}/{box.name}" for box in boxes) or "none"
    raise LabError(f"no pod {namespace or 'default'}/{short} runs in lab {lab.name}; there is: {there}")


def node(lab: Record, name: str) -> Place:
    """Raises LabError."""
    return own_host(lab, check_node(lab, name))


def own_host(lab: Record, host: str) -> Place:
    """One of the lab's hosts; its cgroup is made when nothing ran there yet."""
    cgroup = lab.host_cgroup(host)
    cgroup.mkdir(parents=True, exist_ok=True)
    return Place(names.namespace(lab.name, host), cgroup)


def choose(lab: Record, *, of_pod: str, of_node: str, outside: bool, lan: bool) -> Place:
    """The place that the options of `lab exec` mean. Raises LabError."""
    if sum(map(bool, (of_pod, of_node, outside, lan))) != 1:
        raise LabError("say where: [NAMESPACE/]POD, --node NODE, --outside or --lan; then -- and the command")
    if of_pod:
        return pod(lab, of_pod)
    if of_node:
        return node(lab, of_node)
    return own_host(lab, names.OUTSIDE if outside else names.LAN)


def command(place: Place, arguments: list[str]) -> list[str]:
    """What to execute to run `arguments` there."""
    return namespaces.command(place.netns, place.cgroup, arguments)


def kill(lab: Record, process: str) -> None:
    """kill -9; it stays dead until `start`. Raises LabError when it was stopped before, or does not end."""
    known = state.read(lab.directory.process(process), ProcessId)
    stopped = lab.directory.stopped(process)
    if stopped.exists() and (known is None or not processes.is_alive(known)):
        raise LabError(f"{process} is stopped already")
    stopped.touch()
    if known is not None and processes.kill_and_wait([known]):
        raise LabError(f"{process} (process {known.pid}) does not end")


def start(lab: Record, process: str) -> None:
    """Start it again and wait until it is ready. Raises LabError."""
    dialogue.ask(lab.directory.socket, {"do": "start", "process": process}, START_SECONDS)
