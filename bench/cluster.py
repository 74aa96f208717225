"""A lab for the bench, driven by the `plexus` command as a person would, and found again by what it wrote down.

A lab is named "bench<pid of the bench>". It is taken down when the block ends; `remove_leftovers` takes down those of
benches that were killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load import Place
from lab import namespaces, state
from lab.plan import Family

PREFIX = "bench"
COMMAND = Path(sys.executable).with_name("plexus")
COMMAND_SECONDS = 120.0  # the longest any one command may take


class ClusterFailed(Exception):
    """The plexus command failed; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A lab that is up."""

    name: str

    def plexus(self, *arguments: str, stdin: str = "") -> str:
        """Run a command on this lab; its output. Raises ClusterFailed."""
        return plexus(*arguments, "--name", self.name, stdin=stdin)

    def apply(self, manifest: str) -> None:
        self.plexus("apply", "-f", "-", stdin=manifest)

    def wait(self) -> float:
        """Wait until all is realised. Returns seconds from the last change's commit to the last node's maps."""
        return float(json.loads(self.plexus("wait", "-o", "json"))["seconds"])

    @property
    def directory(self) -> state.Directory:
        return state.Directory(self.name)

    def place(self, pod: str, family: Family) -> Place:
        """Inside a pod of the namespace "default", which must be running: its network namespace and cgroup."""
        for sandbox in self.directory.sandboxes():
            if (sandbox.namespace, sandbox.name) == ("default", pod):
                enter = namespaces.command(sandbox.netns, Path(sandbox.cgroup), [])
                if address := sandbox.address(family):
                    return Place(pod, address, tuple(enter))
        raise ClusterFailed(f"pod default/{pod} does not run in lab {self.name}, or has no IPv{family} address")

    def process_of(self, program: str) -> int:
        """The pid of one of the lab's processes, such as "node1.dataplane"."""
        found = state.read(self.directory.process(program), state.ProcessId)
        if found is None:
            raise ClusterFailed(f"{program} does not run in lab {self.name}")
        return found.pid


def plexus(*arguments: str, stdin: str = "") -> str:
    """Run the plexus command. Raises ClusterFailed with what it said."""
    try:
        done = subprocess.run(
            [str(COMMAND), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterFailed(f"plexus {' '.join(arguments)}: not done after {error.timeout:g} s") from error
    if done.returncode:
        raise ClusterFailed(f"plexus {' '.join(arguments)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout


@contextmanager
def cluster(nodes: int, settings: Mapping[str, str]) -> Iterator[Cluster]:
    """A lab, up and ready. `settings` are Helm values by full key."""
    name = f"{PREFIX}{os.getpid()}"
    chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    try:
        plexus("lab", "up", "--name", name, "--nodes", str(nodes), *chosen)
        yield Cluster(name)
    finally:
        take_down(name)


def take_down(name: str) -> None:
    """Remove a lab. In a session of its own: a second Ctrl-C does not stop it halfway."""
    command = [str(COMMAND), "lab", "down", "--name", name]
    subprocess.run(command, check=False, capture_output=True, timeout=COMMAND_SECONDS, start_new_session=True)


def owner_of(name: str) -> int | None:
    """The process id in a lab's name; None when no bench made it."""
    number = name.removeprefix(PREFIX)
    return int(number) if name.startswith(PREFIX) and number.isdigit() else None


def remove_leftovers() -> None:
    """Take down the labs of benches that no longer run."""
    for name in state.labs():
        pid = owner_of(name)
        if pid is not None and not Path(f"/proc/{pid}").exists():
            take_down(name)


def pod_manifest(name: str, node: str, **labels: str) -> str:
    """A pod that sleeps, bound to a node."""
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name, **labels}},
        "spec": {"nodeName": node, "containers": [{"name": "sleep", "image": "sleep"}]},
    }
    return json.dumps(document)
