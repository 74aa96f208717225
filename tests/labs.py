"""A lab for tests: up in a `with`, driven by the command line's own code in this process, down with a check at its end.

    with Lab("t", values={"routingMode": "native"}) as lab:
        lab.apply(manifests)
        lab.wait()
        lab.exec("default/xwing", "curl", "-s", address)

It ends by failing on any drop reason that was not expected and on any line that a service logged at error.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from typer.testing import CliRunner

from bus.client import connect
from bus.interface import BusError
from bus.messages.dataplane import Check, Dump, HealthQuestion
from bus.services import HEALTH
from bus.subjects import DUMP
from cli.__main__ import app
from lab import cleanup, execute, names, state
from lab.capture import Capture
from lab.plan import Family
from lab.programs import choose
from lab.state import Record
from lab.up import up
from services.dataplane.shapes.reasons import DROP_MIN

Done = subprocess.CompletedProcess[str]

COMMAND_SECONDS = 60.0
ANSWER_SECONDS = 30.0


class Unexpected(AssertionError):
    """The lab went through its tests, but not clean."""


class Lab:
    """A running lab.

    Args:
        values: Helm values by full key.
        subnets, fabric_routes: as `plexus lab up` has them.
        expected_drops: public names of drop reasons that its tests cause.
        expected_errors: parts of error log lines that its tests cause.
    """

    def __init__(
        self,
        name: str,
        nodes: int = 3,
        values: Mapping[str, Any] | None = None,
        expected_drops: Iterable[str] = (),
        expected_errors: Iterable[str] = (),
        *,
        subnets: int = 1,
        fabric_routes: bool = False,
    ) -> None:
        self.name = name
        self._subnets, self._fabric_routes = subnets, fabric_routes
        self._nodes = nodes
        self._values = dict(values or {})
        self.expected_drops = set(expected_drops)
        self.expected_errors = set(expected_errors)
        self.record: Record

    def __enter__(self) -> Lab:
        cleanup.clean(self.name)
        self.record, _ = up(
            self.name, self._nodes, self._values, subnets=self._subnets, fabric_routes=self._fabric_routes
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.check_clean()
        finally:
            self.down()

    @property
    def nodes(self) -> list[str]:
        return self.record.nodes

    def down(self) -> None:
        """Remove it. Safe to repeat."""
        cleanup.clean(self.name)

    @property
    def families(self) -> tuple[Family, ...]:
        return self.record.families

    def node_address(self, node: str, family: Family | None = None) -> str:
        """No family: the first one."""
        return of_family(self.record.node_addresses(node), family or self.families[0])

    @property
    def outside_address(self) -> str:
        return self.outside(self.families[0])

    def outside(self, family: Family) -> str:
        """The address of the host beyond the router."""
        return str(self.record.plan.outside_host(family).ip)

    def plexus(self, *arguments: str, text: str | None = None, check: bool = True) -> Done:
        """What the command line does and says, here in this process: to start one takes longer than most commands.

        Raises AssertionError with what it said, unless `check` is False.
        """
        ran = CliRunner().invoke(app, arguments, text, env={state.ENVIRONMENT_NAME: self.name}, prog_name="plexus")
        if ran.exception and not isinstance(ran.exception, SystemExit):
            raise ran.exception
        done = Done(arguments, ran.exit_code, ran.stdout, ran.stderr)
        if check and done.returncode:
            raise AssertionError(f"plexus {' '.join(arguments)}: status {done.returncode}: {done.stderr}{done.stdout}")
        return done

    def apply(self, manifests: str | Path) -> None:
        """Apply manifests: text, or a file or folder."""
        self._manifests("apply", manifests)

    def delete(self, manifests: str | Path) -> None:
        """Delete what the manifests name."""
        self._manifests("delete", manifests)

    def _manifests(self, command: str, manifests: str | Path) -> None:
        if isinstance(manifests, Path):
            self.plexus(command, "-f", str(manifests))
        else:
            self.plexus(command, "-f", "-", text=manifests)

    def wait(self, timeout: str = "30s") -> dict[str, Any]:
        """Until all that was applied is realised on every node. The answer of `plexus wait -o json`."""
        answer: dict[str, Any] = json.loads(self.plexus("wait", "--timeout", timeout, "-o", "json").stdout)
        return answer

    def get(self, kind: str, namespace: str = "default") -> list[dict[str, Any]]:
        """The objects of `plexus get KIND -n NAMESPACE -o json`."""
        found: list[dict[str, Any]] = json.loads(self.plexus("get", kind, "-n", namespace, "-o", "json").stdout)[
            "items"
        ]
        return found

    def address(self, pod: str, family: Family | None = None) -> str:
        """A pod's address; the pod by "namespace/name", or "name" in default. No family: the first one."""
        namespace, _, name = pod.rpartition("/")
        wanted = (namespace or "default", name)
        boxes = self.record.directory.sandboxes()
        own = next(box for box in boxes if (box.namespace, box.name) == wanted)
        return own.address(family or self.families[0])

    def exec(self, pod: str, *command: str, timeout: float = COMMAND_SECONDS) -> Done:
        """Run a program in a pod."""
        return self._run(execute.pod(self.record, pod), command, timeout)

    def exec_node(self, node: str, *command: str, timeout: float = COMMAND_SECONDS) -> Done:
        """Run a program on a node."""
        return self._run(execute.node(self.record, node), command, timeout)

    def exec_outside(self, *command: str, timeout: float = COMMAND_SECONDS) -> Done:
        """Run a program on the host beyond the router."""
        return self._run(execute.own_host(self.record, names.OUTSIDE), command, timeout)

    def exec_lan(self, *command: str, timeout: float = COMMAND_SECONDS) -> Done:
        """Run a program on the host in the nodes' LAN."""
        return self._run(execute.own_host(self.record, names.LAN), command, timeout)

    def _run(self, place: execute.Place, command: Iterable[str], timeout: float) -> Done:
        return subprocess.run(
            execute.command(place, list(command)),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def start(self, place: execute.Place, *command: str) -> subprocess.Popen[str]:
        """Start a program and go on; its output is a pipe. Whoever starts it ends it."""
        return subprocess.Popen(
            execute.command(place, list(command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def start_in(self, pod: str, *command: str) -> subprocess.Popen[str]:
        """As `start`, in a pod."""
        return self.start(execute.pod(self.record, pod), *command)

    def kill(self, *, node: str = "", service: str = "", control: str = "", bus: bool = False) -> None:
        """kill -9 a process; it stays dead."""
        execute.kill(self.record, choose(self.record, node=node, service=service, control=control, bus=bus))

    def revive(self, *, node: str = "", service: str = "", control: str = "", bus: bool = False) -> None:
        """Start what was killed, and wait until it is ready."""
        execute.start(self.record, choose(self.record, node=node, service=service, control=control, bus=bus))

    def capture(self, host: str, expression: str = "", device: str = "eth0") -> Capture:
        """Packets at a node's or another host's device ("node1", "outside", "router")."""
        return Capture(names.namespace(self.name, host), device, expression)

    def dump(self, node: str, table: str) -> list[dict[str, Any]]:
        """The rows of a node's BPF map, as `plexus bpf` shows them."""

        async def ask() -> list[dict[str, Any]]:
            lab = self.record
            async with (
                asyncio.timeout(ANSWER_SECONDS),  # a test that failed may have left the bus dead
                connect(
                    lab.bus_url, name="lab-testing", user=lab.bus_user, password=lab.bus_password, tls=lab.bus_tls()
                ) as bus,
            ):
                answer = await bus.ask(DUMP, node, message=Dump(table=table), timeout=5.0)
                if answer.problem:
                    raise Unexpected(f"{node} does not show {table}: {answer.problem}")
                return answer.rows

        return asyncio.run(ask())

    def checks(self, node: str) -> dict[str, Check]:
        """What a node's dataplane says of itself, by name; empty while it does not answer or is not ready."""

        async def ask() -> dict[str, Check]:
            lab = self.record
            async with connect(
                lab.bus_url, name="lab-testing", user=lab.bus_user, password=lab.bus_password, tls=lab.bus_tls()
            ) as bus:
                try:
                    answer = await bus.ask(HEALTH["dataplane"], node, message=HealthQuestion(), timeout=2.0)
                except BusError:
                    return {}
                return {check.name: check for check in answer.checks} if answer.ready else {}

        return asyncio.run(ask())

    def drops(self) -> Counter[str]:
        """Packets dropped on all nodes since the start, by the reason's public name."""
        found: Counter[str] = Counter()
        for node in self.nodes:
            for row in self.dump(node, "counters"):
                if row["reason_code"] >= DROP_MIN:
                    found[str(row["reason"])] += int(row["packets"])
        return +found

    def errors(self) -> list[str]:
        """Every line that a service logged at error, with the log's name."""
        return [
            f"{path.stem}: {line}"
            for path in sorted(self.record.directory.logs.glob("*.log"))
            for line in path.read_text(errors="replace").splitlines()
            if is_error(line) and not any(part in line for part in self.expected_errors)
        ]

    def check_clean(self) -> None:
        """Raises Unexpected on unexpected drops and on errors in the logs."""
        problems = self.errors()
        problems += [
            f"{count} packets dropped: {reason}"
            for reason, count in self.drops().items()
            if reason not in self.expected_drops
        ]
        if problems:
            raise Unexpected("\n".join(problems))


def of_family(addresses: Iterable[str], family: Family) -> str:
    """The first address of a family. Raises StopIteration: there is none."""
    return next(each for each in addresses if (":" in each) == (family == 6))


def is_error(line: str) -> bool:
    """A structured line at error, or the end of a traceback that nobody caught."""
    if line.startswith("{"):
        try:
            return json.loads(line).get("level") in ("error", "critical")
        except ValueError:
            return False
    return line.startswith("Traceback ")


def eventually(claim: Callable[[], bool], seconds: float = 5.0, every: float = 0.05) -> bool:
    """Whether `claim` becomes true in time."""
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True
