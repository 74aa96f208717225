"""What starting and ending a pod's network costs: the real CNI executable, called as a runtime calls it.

A value is one call as the runtime waits for it: from starting the executable to its end. The pod's namespace is made
beforehand, as the runtime does, and is not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.bars import Figure
from bench.cluster import Cluster
from bench.plain import namespace
from lab import namespaces

EXECUTABLE = Path(__file__).resolve().parent.parent / "build" / "plexus-cni"
CONFIGURATION = json.dumps({"cniVersion": "1.1.0", "name": "plexus", "type": "plexus-cni"})
CALL_SECONDS = 65.0  # the executable gives up after 60
AT_ONCE = 20


class CallFailed(Exception):
    """A CNI call was refused; the text is the executable's answer."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod as the runtime sees it: a container id and a network namespace."""

    container: str
    netns: str

    def call(self, verb: str, socket: Path) -> float:
        """Run the executable once. Returns the milliseconds that it took. Raises CallFailed."""
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PLEXUS_CNI_SOCKET": str(socket),
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": self.container,
            "CNI_NETNS": str(namespaces.path(self.netns)),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(EXECUTABLE.parent),
            "CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={self.container};K8S_POD_UID={self.container}",
        }
        began = time.perf_counter()
        done = subprocess.run(
            [str(EXECUTABLE)],
            input=CONFIGURATION,
            env=environment,
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS,
            check=False,
        )
        took = (time.perf_counter() - began) * 1000
        if done.returncode:
            raise CallFailed(f"CNI {verb}: {(done.stdout + done.stderr).strip()}")
        return took


def measure_pods(
    cluster: Cluster, node: str, singly: int, rounds: int, tell: Callable[[str], None]
) -> Iterator[Figure]:
    """ADD and DEL, `singly` times one after the other, then `rounds` times 20 at once. Everything is deleted again."""
    socket = cluster.directory.cni_socket(node)
    call_all(socket, 2, 1)  # the first calls bring code and caches in
    tell("CNI ADD: one after the other")
    added, deleted = call_all(socket, singly, 1)
    yield Figure("CNI ADD: one after the other", "ms", tuple(added))
    yield Figure("CNI DEL: one after the other", "ms", tuple(deleted))
    tell(f"CNI ADD: {AT_ONCE} at once")
    added, deleted = [], []
    for _ in range(rounds):
        each_added, each_deleted = call_all(socket, AT_ONCE, AT_ONCE)
        added += each_added
        deleted += each_deleted
    yield Figure(f"CNI ADD: {AT_ONCE} at once", "ms", tuple(added))
    yield Figure(f"CNI DEL: {AT_ONCE} at once", "ms", tuple(deleted))


def call_all(socket: Path, count: int, at_once: int) -> tuple[list[float], list[float]]:
    """The milliseconds of `count` ADDs and then of as many DELs, at most `at_once` at the same time."""
    sandboxes = [Sandbox(f"bench-{uuid.uuid4().hex[:12]}", namespace(f"cni{n}", os.getpid())) for n in range(count)]
    try:
        for sandbox in sandboxes:
            namespaces.create(sandbox.netns)
        try:
            return called("ADD", sandboxes, socket, at_once), called("DEL", sandboxes, socket, at_once)
        except CallFailed:
            delete_quietly(sandboxes, socket)
            raise
    finally:
        for sandbox in sandboxes:
            namespaces.remove(sandbox.netns)


def called(verb: str, sandboxes: Sequence[Sandbox], socket: Path, at_once: int) -> list[float]:
    with ThreadPoolExecutor(at_once) as threads:
        return list(threads.map(lambda sandbox: sandbox.call(verb, socket), sandboxes))


def delete_quietly(sandboxes: Sequence[Sandbox], socket: Path) -> None:
    """DEL is safe to repeat; what fails once more is the lab's to clean."""
    for sandbox in sandboxes:
        try:
            sandbox.call("DEL", socket)
        except CallFailed:
            continue
