"""The kubelet of one container that is a node: runs the pods that are bound to it. A pod is a network namespace with
its programs in it, which are those of a lab (lab/images.py); the CNI executable is the real one.
"""

from __future__ import annotations

import asyncio
import json
import os
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from bus.addresses import all_of
from bus.client import connect
from bus.interface import Bus, BusError
from bus.messages.resources import Pod, PodStatus
from bus.service import Settings
from bus.subjects import POD, POD_STATUS
from bus.telemetry import configure_logs, logger
from lab import images, processes

NODE = os.environ["PLEXUS_NODE"]
CNI = Path(images.__file__).resolve().parents[1] / "build/plexus-cni"
NETWORK = {"cniVersion": "1.1.0", "name": "plexus", "type": "plexus-cni"}
RETRY_SECONDS = 0.5
LISTEN_SECONDS = 0.02
HOLD = "echo up; exec sleep infinity"

log = logger("kubelet")


class Sandbox:
    """A pod, from when it is bound to this node until it is gone."""

    def __init__(self, pod: Pod, bus: Bus) -> None:
        self._pod, self._bus = pod, bus
        self._id = uuid4().hex  # of the container, as a runtime names it: a new one for each start of this node
        self._cgroup = Path(os.environ["PLEXUS_CGROUP"]) / f"{pod.namespace}.{pod.name}.{pod.uid}"
        self._programs: list[Process] = []
        self._netns = ""

    async def live(self) -> None:
        """Until cancelled."""
        try:
            while not await self._started():  # noqa: ASYNC110  # a retry: nothing says when it would work
                await asyncio.sleep(RETRY_SECONDS)
            await asyncio.Event().wait()
        finally:
            await asyncio.shield(self._end())

    async def _started(self) -> bool:
        if not self._netns:
            holder = await self._program("unshare", "--net", "--", "/bin/sh", "-c", HOLD)
            assert holder.stdout is not None
            await holder.stdout.readline()
            self._netns = f"/proc/{holder.pid}/ns/net"
        code, answer = await self._cni("ADD")
        if code:
            await self._tell(reason=str(answer.get("msg", "")))
            return False
        addresses = [str(each["address"]).partition("/")[0] for each in answer.get("ips", [])]
        for container in self._pod.manifest.get("spec", {}).get("containers") or []:
            wanted = images.start(container)
            names = {**wanted.environment, "HOSTNAME": self._pod.name, "POD_IP": ",".join(addresses)}
            found = await self._program("nsenter", f"--net={self._netns}", "--", *wanted.arguments, more=names)
            while wanted.port and found.returncode is None and not processes.listens(found.pid, wanted.port):  # noqa: ASYNC110  # the kernel does not tell
                await asyncio.sleep(LISTEN_SECONDS)
        await self._tell(addresses=addresses)
        return True

    async def _program(self, *arguments: str, more: dict[str, str] | None = None) -> Process:
        """In the pod's cgroup from its first moment."""
        self._cgroup.mkdir(parents=True, exist_ok=True)
        into = f'echo $$ > {self._cgroup}/cgroup.procs; exec "$@"'
        made = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", into, "sh", *arguments), env={**os.environ, **(more or {})}, stdin=DEVNULL, stdout=PIPE
        )
        self._programs.append(made)
        return made

    async def _cni(self, command: str) -> tuple[int, dict[str, Any]]:
        pod = self._pod
        told = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self._id,
            "CNI_NETNS": self._netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(CNI.parent),
            "CNI_ARGS": f"K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name};K8S_POD_UID={pod.uid}",
        }
        asked = await asyncio.create_subprocess_exec(str(CNI), env={**os.environ, **told}, stdin=PIPE, stdout=PIPE)
        out, _ = await asked.communicate(json.dumps(NETWORK).encode())
        return asked.returncode or 0, json.loads(out or b"{}")

    async def _tell(self, addresses: list[str] | None = None, reason: str = "") -> None:
        status = PodStatus(
            namespace=self._pod.namespace,
            name=self._pod.name,
            uid=self._pod.uid,
            phase="Running" if addresses else "Pending",
            ready=bool(addresses),
            address="".join((addresses or [])[:1]),
            addresses=addresses or [],
            reason=reason,
            node=NODE,
        )
        log.info("pod", pod=f"{status.namespace}/{status.name}", addresses=all_of(status), reason=reason)
        while True:
            try:
                await self._bus.ask(POD_STATUS, NODE, message=status)
            except BusError:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _end(self) -> None:
        for each in self._programs[1:]:
            await _killed(each)
        if self._netns:
            while (await self._cni("DEL"))[0]:  # noqa: ASYNC110  # a retry: nothing says when it would work
                await asyncio.sleep(RETRY_SECONDS)
        for each in self._programs[:1]:  # who holds the network namespace
            await _killed(each)
        with suppress(OSError):
            self._cgroup.rmdir()


async def _killed(program: Process) -> None:
    if program.returncode is None:
        program.kill()
    await program.wait()


async def run(bus: Bus) -> None:
    lives: dict[str, asyncio.Task[None]] = {}
    pods: dict[str, Pod] = {}
    async with asyncio.TaskGroup() as tasks:
        async for batch in bus.watch_state(POD):
            for change in batch.changes:
                if isinstance(change.message, Pod):
                    pods[change.subject] = change.message
                else:
                    pods.pop(change.subject, None)
            if not batch.synced:
                continue
            mine = {pod.uid: pod for pod in pods.values() if pod.node == NODE and not pod.host_network}
            for uid in lives.keys() - mine.keys():
                lives.pop(uid).cancel()
            for uid in mine.keys() - lives.keys():
                lives[uid] = tasks.create_task(Sandbox(mine[uid], bus).live(), name=f"pod {mine[uid].name}")


async def main() -> None:
    settings = Settings.of(os.environ)
    configure_logs("info", settings.log_format)
    user, password = settings.bus_user, settings.bus_password
    async with connect(settings.bus_url, name=f"kubelet {NODE}", user=user, password=password) as bus:
        await run(bus)


if __name__ == "__main__":
    asyncio.run(main())
