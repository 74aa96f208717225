"""Keeps a lab's processes alive and plays Kubernetes for it. `python -m lab.supervisor --name N`; `lab up` starts it.

Everything it starts outlives it, and the next supervisor adopts what runs: packets, streams and pods do not notice.
A process that ends by itself is started again, later each time; one that was stopped by hand stays so until started.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bus.interface import BusError
from bus.messages.dataplane import Health, HealthQuestion
from bus.services import CONTROL_SERVICES, HEALTH
from bus.telemetry import configure_logs, logger
from lab import cluster, dialogue, names, processes, state
from lab.errors import LabError
from lab.plan import BUS_PORT
from lab.programs import BUS, ROOT, Program, programs
from lab.state import ProcessId, Record

log = logger("lab.supervisor")

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.1, 5.0
SETTLED_SECONDS = 10.0  # who ran as long starts again at once
HEALTH_SECONDS = 1.0  # for one answer
START_SECONDS = 30.0  # for `lab start`, until the process is ready
POLL_SECONDS = 0.02
LONGEST_LINE_BYTES = 1 << 20  # in a log; of a longer one its end is read
STOPPED = "stopped by hand"
SILENCE = "it said nothing"
NOT_READY = "not ready"  # and no word why


class Keeper:
    """One process: started, watched, started again."""

    def __init__(self, lab: Record, program: Program) -> None:
        self.program = program
        self.identity: ProcessId | None = None
        self.restarts = 0
        self.since = 0.0  # seconds since the epoch
        self.last = ""  # how it ended the last time
        self.wanted = asyncio.Event()
        self._lab = lab
        if not self.is_stopped:
            self.wanted.set()

    @property
    def is_stopped(self) -> bool:
        """By hand."""
        return self._lab.directory.stopped(self.program.name).exists()

    async def run(self) -> None:
        """Until cancelled; the process goes on then."""
        retry = FIRST_RETRY_SECONDS
        while True:
            if self.is_stopped:
                self.wanted.clear()
            await self.wanted.wait()
            began = time.monotonic()
            status = await self.one_life()
            if self.is_stopped:
                log.info("stopped", process=self.program.name)
                continue
            if time.monotonic() - began > SETTLED_SECONDS:
                retry = FIRST_RETRY_SECONDS
            self.restarts += 1
            self.last = f"ended with status {status}: {last_line(self._lab.directory.log(self.program.name))}"
            log.warning("ended, will start again", process=self.program.name, status=status, seconds=retry)
            await asyncio.sleep(retry)
            retry = min(retry * 2, LAST_RETRY_SECONDS)

    async def one_life(self) -> int | None:
        """Adopt or start the process and wait for its end. Its exit status, when it is known."""
        record = self._lab.directory.process(self.program.name)
        known = state.read(record, ProcessId)
        if known is not None and processes.is_alive(known):
            running = processes.Running(known)
        else:
            running = await asyncio.to_thread(start, self._lab, self.program)
            state.write(record, running.identity)
            if self.is_stopped:  # by somebody who could not know of it yet
                processes.kill(running.identity)
        self.identity, self.since = running.identity, time.time()
        try:
            return await running.ended()
        finally:
            self.identity = None

    def unanswered(self, error: str) -> str:
        """Why it does not answer: as long as it may end again in the way it did, that; else `error`."""
        return self.last if self.last and time.time() - self.since < SETTLED_SECONDS else error

    def row(self) -> dict[str, Any]:
        """For listings."""
        status = "stopped" if self.is_stopped else "running" if self.identity else "down"
        return {
            "process": self.program.name,
            "host": self.program.host,
            "state": status,
            "pid": self.identity.pid if self.identity else 0,
            "restarts": self.restarts,
            "since": self.since,
        }


def start(lab: Record, program: Program) -> processes.Running:
    """Start a program where it belongs."""
    return processes.start(
        lab.name,
        program.arguments,
        netns=names.namespace(lab.name, program.host),
        cgroup=lab.host_cgroup(program.host),
        log=lab.directory.log(program.name),
        more=program.environment,
        directory=ROOT,
    )


class Supervisor:
    """All processes of a lab, and the answers about them."""

    def __init__(self, lab: Record) -> None:
        self._lab = lab
        self._keepers = {name: Keeper(lab, program) for name, program in programs(lab).items()}
        self._bus: Any = None  # Bus | None; None: not connected yet

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(dialogue.serve(self._lab.directory.socket, self.answer), name="dialogue")
            tasks.create_task(self._keepers[BUS].run(), name=BUS)
            if not self._keepers[BUS].is_stopped:
                await self.bus_listens()
            for name, keeper in self._keepers.items():
                if name != BUS:
                    tasks.create_task(keeper.run(), name=name)
            tasks.create_task(self.play_kubernetes(), name="cluster")

    async def bus_listens(self) -> None:
        """Wait until the bus takes connections."""
        while not bus_listens(self._lab):  # noqa: ASYNC110  # another process's socket: there is no event
            await asyncio.sleep(POLL_SECONDS)

    async def play_kubernetes(self) -> None:
        """Connect, and run the cluster's controllers; again from the start when one of them fails."""
        from bus.client import connect

        retry = FIRST_RETRY_SECONDS
        while True:
            began = time.monotonic()
            try:
                async with connect(
                    self._lab.bus_url,
                    name=f"lab-{self._lab.name}",
                    user=self._lab.bus_user,
                    password=self._lab.bus_password,
                    tls=self._lab.bus_tls(),
                ) as bus:
                    self._bus = bus
                    await cluster.run(self._lab, bus)
            except Exception as error:  # noqa: BLE001  # nobody supervises the supervisor
                log.warning("the cluster's controllers start again", why=repr(error), seconds=retry)
            finally:
                self._bus = None
            if time.monotonic() - began > SETTLED_SECONDS:
                retry = FIRST_RETRY_SECONDS
            await asyncio.sleep(retry)
            retry = min(retry * 2, LAST_RETRY_SECONDS)

    async def answer(self, question: dict[str, Any]) -> dialogue.Answer:
        """Raises LabError."""
        if question.get("do") == "status":
            waiting = await self.waiting()
            rows = [keeper.row() for keeper in self._keepers.values()]
            return {"processes": rows, "ready": not waiting, "waiting": waiting}
        if question.get("do") == "start":
            await self.start(str(question.get("process")))
            return {}
        raise LabError(f"the supervisor knows status and start, not {question.get('do')!r}")

    async def start(self, name: str) -> None:
        """Start what was stopped by hand, and wait until it is ready. Raises LabError."""
        keeper = self._keepers.get(name)
        if keeper is None:
            raise LabError(f"there is no process {name!r}; there is {', '.join(self._keepers)}")
        self._lab.directory.stopped(name).unlink(missing_ok=True)
        keeper.wanted.set()
        deadline = time.monotonic() + START_SECONDS
        while problem := await self.problem(keeper):
            if time.monotonic() > deadline:
                log_file = self._lab.directory.log(name)
                raise LabError(f"{name} is not ready after {START_SECONDS:.0f} s ({problem}); look at {log_file}")
            await asyncio.sleep(POLL_SECONDS)

    async def waiting(self) -> list[str]:
        """What is not ready, and why: "node1.dataplane: ..."."""
        keepers = list(self._keepers.values())
        problems = await asyncio.gather(*map(self.problem, keepers))
        return [
            f"{keeper.program.name}: {problem}" for keeper, problem in zip(keepers, problems, strict=True) if problem
        ]

    async def problem(self, keeper: Keeper) -> str:
        """Why a process is not ready; "" when it is."""
        if keeper.is_stopped:
            return f"{STOPPED}; {start_command(self._lab, keeper.program)} starts it"
        if keeper.identity is None:
            return keeper.last or "starts"
        if keeper.program.service == BUS:
            return "" if bus_listens(self._lab) else "does not listen"
        if self._bus is None:
            return "not asked yet"
        question = HEALTH[keeper.program.service]
        try:
            health = await self._bus.ask(
                question, keeper.program.instance, message=HealthQuestion(), timeout=HEALTH_SECONDS
            )
        except BusError as error:
            return keeper.unanswered(str(error))
        found = not_ready(keeper.program, health)
        return keeper.unanswered(found) if found == NOT_READY else found


def not_ready(program: Program, health: Health) -> str:
    """Why a service is not ready by what it says of itself; "" when it is. Of a control service there is one in a lab,
    so a standby is not ready: it waits for its predecessor's lease to end, and nobody answers yet."""
    if not health.ready:
        return unready(health)
    return "stands by" if program.service in CONTROL_SERVICES and not health.active else ""


def unready(health: Health) -> str:
    """What a service says of itself when it is not ready."""
    return (
        ", ".join(f"{check.name}: {check.detail or 'not ok'}" for check in health.checks if not check.ok) or NOT_READY
    )


def last_line(log_file: Path) -> str:
    """What a process said last: 300 characters of it, made readable. A line with a traceback may be long."""
    with suppress(OSError), log_file.open("rb") as file:
        end, length = file.seek(0, 2), 4096
        while True:
            file.seek(max(0, end - length))
            found = file.read(length).strip()
            if b"\n" in found or length >= min(end, LONGEST_LINE_BYTES):
                break
            length *= 4
        if found:
            return readable(found.rpartition(b"\n")[2].decode(errors="replace"))[:300]
    return SILENCE


def readable(line: str) -> str:
    """A structured log line as text: its message, and why."""
    with suppress(ValueError, AttributeError):
        told = json.loads(line)
        return ": ".join(str(told[key]) for key in ("message", "why") if key in told)
    return line


def start_command(lab: Record, program: Program) -> str:
    """What to type to start a program again."""
    where = "--bus" if program.service == BUS else f"--control {program.service}"
    if program.host != names.CONTROL:
        where = f"--node {program.host} {program.service}"
    return f"plexus lab start --name {lab.name} {where}"


def bus_listens(lab: Record) -> bool:
    """The bus takes connections."""
    with suppress(OSError), socket.create_connection((str(lab.plan.management_control.ip), BUS_PORT), timeout=0.2):
        return True
    return False


def spawn(lab: Record) -> None:
    """Start a lab's supervisor, apart from this process and this terminal."""
    running = processes.start(
        lab.name,
        (sys.executable, "-m", "lab.supervisor", "--name", lab.name),
        netns="",
        cgroup=lab.cgroup / "supervisor",
        log=lab.directory.log("supervisor"),
        more={},
        directory=ROOT,
    )
    state.write(lab.directory.process("supervisor"), running.identity)


def is_alive(lab: Record) -> bool:
    known = state.read(lab.directory.process("supervisor"), ProcessId)
    return known is not None and processes.is_alive(known)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lab.supervisor", description="Keeps a lab's processes alive.")
    parser.add_argument("--name", required=True)
    name = parser.parse_args().name
    configure_logs("info", "json")
    lab = state.record(names.check(name))
    if lab is None:
        sys.exit(f"there is no lab {name!r}")
    asyncio.run(Supervisor(lab).run())


if __name__ == "__main__":
    main()
