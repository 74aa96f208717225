"""Traffic that must not notice a restart: TCP streams and numbered UDP packets by build/survive (bench/survive.c).

One process of the tool at each end of a path, several paths at once. What happens meanwhile is told as phases: a quiet
one beside the one with the restart shows how much of a stall is the machine's own, that it did not run a program in
time.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.bars import Figure
from bench.cluster import Cluster
from bench.load import LoadFailed, Place
from lab import execute, names, namespaces, state
from lab.plan import Family

TOOL = Path(__file__).resolve().parent.parent / "build" / "survive"
PORT = 7100
SERVICE_PORT = PORT + 2  # of the third way of `ways_of`
PHASE_SECONDS = 2.0
END_SECONDS = 10.0  # from the last packet to the figures, on a busy machine


@dataclass(frozen=True, slots=True)
class Way:
    """From where to where. `target`: the address that the client asks, when it is not the server's own."""

    client: Place
    server: Place
    target: str = ""


@dataclass(frozen=True, slots=True)
class Rate:
    """How much traffic on one way."""

    streams: int = 50
    every_ms: float = 10.0  # a message of each stream
    packets_per_second: int = 5000


@dataclass(frozen=True, slots=True)
class Phase:
    """What became of the traffic that was sent in one phase. Seconds are the longest that were seen."""

    exchanges: int
    sent: int
    lost: int
    twice: int
    exchange_seconds: float
    silence_seconds: float

    @property
    def stall_seconds(self) -> float:
        return max(self.exchange_seconds, self.silence_seconds)


@dataclass(frozen=True, slots=True)
class Survived:
    """The figures of one way."""

    streams: int
    broken: int
    phases: Mapping[str, Phase]

    @property
    def lost(self) -> int:
        return sum(phase.lost for phase in self.phases.values())

    @property
    def twice(self) -> int:
        return sum(phase.twice for phase in self.phases.values())


def parse(text: str) -> Survived:
    """Read the client's line of JSON. Raises LoadFailed when it is not one."""
    try:
        found = json.loads(text)
        phases = {
            name: Phase(
                each["exchanges"],
                each["sent"],
                each["lost"],
                each["twice"],
                each["longest_exchange_seconds"],
                each["longest_silence_seconds"],
            )
            for name, each in found["phases"].items()
        }
        return Survived(found["streams"], found["broken"], phases)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadFailed(f"survive: not a result: {text!r}") from error


class Traffic:
    """Traffic on several ways, by name, under way."""

    def __init__(self, clients: Mapping[str, subprocess.Popen[str]]) -> None:
        self._clients = clients

    def phase(self, name: str) -> None:
        """What is sent from now on belongs to this phase. `name`: one word."""
        for client in self._clients.values():
            assert client.stdin is not None
            client.stdin.write(f"{name}\n")
            client.stdin.flush()

    def end(self) -> dict[str, Survived]:
        """Stop sending, wait for what is under way, and tell. Raises LoadFailed."""
        for client in self._clients.values():
            assert client.stdin is not None
            client.stdin.close()
        found: dict[str, Survived] = {}
        for name, client in self._clients.items():
            assert client.stdout is not None
            text = client.stdout.read()
            if client.wait(END_SECONDS):
                raise LoadFailed(f"survive, {name}: exit status {client.returncode}")
            found[name] = parse(text)
        return found


@contextmanager
def traffic(ways: Mapping[str, Way], rate: Rate = Rate()) -> Iterator[Traffic]:
    """Traffic on every way until the block ends. Raises LoadFailed: a server or a client did not start."""
    with ExitStack() as started:

        def start(enter: tuple[str, ...], *arguments: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [*enter, str(TOOL), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return process

        clients: dict[str, subprocess.Popen[str]] = {}
        for port, (name, way) in enumerate(ways.items(), PORT):
            _ready(start(way.server.enter, "server", way.server.address, str(port)), name)
            flow = (str(rate.streams), str(rate.every_ms), str(rate.packets_per_second))
            client = start(way.client.enter, "client", way.target or way.server.address, str(port), *flow)
            _ready(client, name)
            clients[name] = client
        yield Traffic(clients)


def _ready(process: subprocess.Popen[str], name: str) -> None:
    out: IO[str] | None = process.stdout
    assert out is not None and process.stderr is not None
    if out.readline() != "ready\n":
        process.kill()
        raise LoadFailed(f"survive, {name}: {process.stderr.read().strip()}")


LOST, BROKEN = "survival: lost packets", "survival: broken streams"
WAYS = ("one node", "across nodes", "ClusterIP at tc", "masqueraded")


def stall(what: str, way: str) -> str:
    """A figure's name. `what`: "killed" or "quiet"."""
    return f"survival: longest stall, {what}, {way}"


BARRED = {LOST, BROKEN, *(stall("killed", way) for way in WAYS)}

SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "far"},
    "spec": {
        "selector": {"app": "far"},
        "ports": [
            {"name": name, "port": SERVICE_PORT, "protocol": name.upper(), "targetPort": SERVICE_PORT}
            for name in ("tcp", "udp")
        ],
    },
}


def outside(lab: state.Record, family: Family) -> Place:
    """The host beyond the lab's router."""
    host = execute.own_host(lab, names.OUTSIDE)
    return Place("outside", str(lab.plan.outside_host(family).ip), tuple(execute.command(host, [])))


def ways_of(lab: state.Record, client: str, near: str, far: str, service: str) -> dict[str, Way]:
    """Every way that a pod's packets take: to a pod of its node, of another node, by a Service that only the programs
    at tc see, and masqueraded to the outside.

    Args:
        client, near, far: pods as "namespace/name", `far` on another node.
        service: the ClusterIP of a Service with `far` behind it, TCP and UDP on `SERVICE_PORT`. Its family is that of
            all ways.
    """
    family: Family = 6 if ":" in service else 4

    def place(pod: str, cgroup: Path | None = None) -> Place:
        found = execute.pod(lab, pod)
        own = next(box for box in lab.directory.sandboxes() if pod in (f"{box.namespace}/{box.name}", box.name))
        return Place(pod, own.address(family), tuple(namespaces.command(found.netns, cgroup or found.cgroup, [])))

    unhooked = place(client, Path(lab.cgroup_root))  # no socket hook sees what runs in the machine's own cgroup
    ways = (
        Way(place(client), place(near)),
        Way(place(client), place(far)),
        Way(unhooked, place(far), service),
        Way(place(client), outside(lab, family)),
    )
    return dict(zip(WAYS, ways, strict=True))


def measure_survival(
    cluster: Cluster, nodes: Sequence[str], rounds: int, tell: Callable[[str], None]
) -> Iterator[Figure]:
    """kill -9 and start of these nodes' dataplanes under traffic, beside the same traffic left alone.

    The pods of bench/run.py are there. Raises: LoadFailed, ClusterFailed.
    """
    cluster.apply(json.dumps(SERVICE))
    cluster.wait()
    lab = state.find(cluster.name)
    listed = json.loads(cluster.plexus("get", "service", "-o", "json"))["items"]
    service = next(str(each["spec"]["clusterIP"]) for each in listed if each["metadata"]["name"] == "far")
    ways = ways_of(lab, "default/client", "default/near", "default/far", service)
    found: list[dict[str, Survived]] = []
    for number in range(rounds):
        tell(f"survival: kill -9 of {len(nodes)} dataplanes under traffic, {number + 1} of {rounds}")
        found.append(survive(lab, ways, nodes))
    yield Figure(LOST, "", tuple(sum(each.lost for each in one.values()) for one in found))
    yield Figure(BROKEN, "", tuple(sum(each.broken for each in one.values()) for one in found))
    for way in ways:
        killed = tuple(1000 * max(one[way].phases[name].stall_seconds for name in ("dead", "back")) for one in found)
        quiet = tuple(1000 * one[way].phases["quiet"].stall_seconds for one in found)
        yield Figure(stall("killed", way), "ms", killed)
        yield Figure(stall("quiet", way), "ms", quiet)


def survive(lab: state.Record, ways: Mapping[str, Way], nodes: Sequence[str]) -> dict[str, Survived]:
    with traffic(ways, Rate(every_ms=20.0, packets_per_second=1250)) as under_way:
        under_way.phase("quiet")
        time.sleep(2 * PHASE_SECONDS)
        under_way.phase("dead")
        for node in nodes:
            execute.kill(lab, f"{node}.dataplane")
        time.sleep(PHASE_SECONDS)
        under_way.phase("back")
        for node in nodes:
            execute.start(lab, f"{node}.dataplane")
        time.sleep(PHASE_SECONDS)
        return under_way.end()
