"""The Envoy of a node: started, found again by the next process of ours, and started again when it ends.

It is a session of its own and nobody's child that matters: it outlives us, and is never ended by us. It is known by its
pid and the time at which that began, in a file; a pid that is another's by now has another time.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bus.telemetry import count, logger

log = logger(__name__)

QUICK_SECONDS = 5.0  # who ends sooner after its start is not started again at once
PAUSES = (0.0, 0.1, 0.2, 0.5, 1.0)  # before the next start, after so many quick ends; the last for all after it
STARTED_AT = 19  # of /proc/PID/stat behind the name: clock ticks since the boot (proc(5), field 22)


class Envoy:
    """Of one directory, which holds its bootstrap, its sockets, its log and `envoy.pid`."""

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        self._command = list(command)
        self._directory = directory
        self.pid = 0
        self.starts = 0

    async def keep(self, started: Callable[[int], None] = lambda pid: None) -> None:
        """See to it that one runs, for ever. `started` is told the pid of each that is found or begun.

        Raises: OSError: the program cannot be run at all.
        """
        quick = 0
        while True:
            began = time.monotonic()
            self.pid = self.found() or self._start()
            started(self.pid)
            await ended(self.pid)
            count("envoy_ends")
            log.error("Envoy ended, and is started again; its log says why", pid=self.pid, log=str(self.log))
            self.pid = 0
            quick = quick + 1 if time.monotonic() - began < QUICK_SECONDS else 0
            await asyncio.sleep(PAUSES[min(quick, len(PAUSES) - 1)])

    @property
    def log(self) -> Path:
        return self._directory / "envoy.log"

    def found(self) -> int:
        """The pid of one that was started by a process before this one; 0: there is none."""
        try:
            pid, began = map(int, (self._directory / "envoy.pid").read_text().split())
        except (FileNotFoundError, ValueError):
            return 0
        return pid if began_at(pid) == began else 0

    def _start(self) -> int:
        (self._directory / "admin.sock").unlink(missing_ok=True)  # Envoy does not bind over a file that is there
        with (self._directory / "envoy.out").open("wb") as output:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.starts += 1
        fresh = self._directory / "envoy.pid.new"
        fresh.write_text(f"{process.pid} {began_at(process.pid)}\n")
        fresh.rename(self._directory / "envoy.pid")
        process.returncode = 0  # waited for by its pid descriptor: not Popen's any more
        log.info("Envoy started", pid=process.pid)
        return process.pid


async def ended(pid: int) -> None:
    """Wait until this process, a child or not, has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(fd, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    _reap(pid)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # it was started by a process before this one


def began_at(pid: int) -> int:
    """When a living process began; 0: there is none of this pid, or it has ended and nobody has asked how."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[STARTED_AT])
