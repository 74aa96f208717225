"""Processes by pid and start time: started, watched, killed, found again. Effects."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from lab import names, namespaces
from lab.state import ProcessId

_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "PYTHONDONTWRITEBYTECODE")


def identify(pid: int) -> ProcessId | None:
    """The process that has `pid` now; None when nobody has, or only its exit status is left."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the command's name may hold anything
    return None if fields[0] in "ZX" else ProcessId(pid, int(fields[19]))


def is_alive(process: ProcessId) -> bool:
    return identify(process.pid) == process


def environment(lab: str, more: Mapping[str, str]) -> dict[str, str]:
    """What a process of the lab finds in its environment: little of ours, and the lab's mark."""
    ours = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"} | ours | dict(more) | {names.MARKER: lab}


class Running:
    """A process that somebody waits for: our child, or one that an earlier supervisor started."""

    def __init__(self, identity: ProcessId, child: subprocess.Popen[bytes] | None = None) -> None:
        self.identity = identity
        self._child = child

    async def ended(self) -> int | None:
        """Wait for its end. Its exit status (negative: the signal); None when it was not our child."""
        try:
            descriptor = os.pidfd_open(self.identity.pid)
        except ProcessLookupError:
            return self._reap()
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        try:
            if is_alive(self.identity):  # else the pid is somebody else's, or there is only a status to fetch
                loop.add_reader(descriptor, gone.set)
                await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return self._reap()

    def _reap(self) -> int | None:
        return self._child.wait() if self._child else None


def start(
    lab: str,
    arguments: Iterable[str],
    *,
    netns: str,
    cgroup: Path,
    log: Path,
    more: Mapping[str, str],
    directory: Path,
) -> Running:
    """Start a process in a namespace and a cgroup, in a session of its own, its output appended to `log`.

    It outlives us. Blocks for the time of a fork.

    Args:
        more: environment beside what every process of the lab gets.
        directory: where it works.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    cgroup.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            namespaces.command(netns, cgroup, list(arguments)),
            env=environment(lab, more),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Running(identify(child.pid) or ProcessId(child.pid, 0), child)


def kill(process: ProcessId, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal, to this process and no later one of its pid."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(process):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def kill_and_wait(processes: Iterable[ProcessId], seconds: float = 5.0) -> list[ProcessId]:
    """SIGKILL, and wait until they are gone. Who is left after `seconds`."""
    left = [process for process in processes if is_alive(process)]
    for process in left:
        kill(process)
    deadline = time.monotonic() + seconds
    while (left := [process for process in left if is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.005)
    return left


def marked(lab: str) -> list[ProcessId]:
    """Every process of this machine that bears the lab's mark, but us and those that started us."""
    mark = f"{names.MARKER}={lab}".encode()
    ours = ancestors()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in ours:
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(identify(int(entry.name)))
    return [process for process in found if process is not None]


def leader(cgroup: Path, mark: str) -> ProcessId | None:
    """Who in this cgroup was started by `start` with `mark` ("NAME=value") in its environment, and not by its likes."""
    with suppress(OSError):
        for pid in map(int, (cgroup / "cgroup.procs").read_text().split()):
            with suppress(OSError):
                environment_of = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if os.getsid(pid) == pid and mark.encode() in environment_of:
                    return identify(pid)
    return None


def ancestors() -> set[int]:
    """This process, its parent, and so on."""
    pid, found = os.getpid(), set[int]()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            break
    return found


def listens(pid: int, port: int) -> bool:
    """Somebody in the process's network namespace listens on a TCP port."""
    wanted = f":{port:04X}"
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                if state == "0A" and local.endswith(wanted):  # TCP_LISTEN, include/net/tcp_states.h
                    return True
    return False
