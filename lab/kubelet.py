"""The kubelet of every node: brings up the pods that are bound to it, keeps their programs alive, tells how they are.

A pod has one task from when it is bound until its sandbox is gone, so ADD and DEL of one pod never cross. What was made
is on the disk, so a new supervisor goes on with the pods as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import msgspec

from bus.addresses import all_of
from bus.interface import Bus, BusError
from bus.messages.resources import Pod, PodStatus
from bus.subjects import POD_STATUS
from bus.telemetry import logger
from lab import images, processes, runtime
from lab.errors import LabError
from lab.state import Record, Sandbox, write

T = TypeVar("T")

log = logger("lab.kubelet")

AT_ONCE = 12  # pods that are brought up or down at the same time
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.1, 3.0
LISTEN_POLL_SECONDS = 0.01


class Kubelet:
    """All nodes' kubelets in one. Its tasks belong to `tasks`."""

    def __init__(self, lab: Record, bus: Bus, tasks: asyncio.TaskGroup) -> None:
        self._lab = lab
        self._bus = bus
        self._tasks = tasks
        self._threads = ThreadPoolExecutor(AT_ONCE, "kubelet")
        self._ended: dict[str, asyncio.Event] = {}  # by uid of each pod that has a task: set when it must go
        self._boxes = {box.uid: box for box in lab.directory.sandboxes()}
        self._told: dict[str, PodStatus] = {}  # by uid: what was heard of it last

    def hear(self, pods: Iterable[Pod]) -> None:
        """These are all the pods there are. Starts and ends tasks; call it after each change."""
        wanted = {pod.uid: pod for pod in pods if pod.node in self._lab.nodes}
        for uid in self._ended.keys() - wanted.keys():
            self._ended[uid].set()
        for uid, pod in wanted.items():
            if uid in self._ended and uid in self._told and not shows(pod, self._told[uid]):
                again = self._send(self._told[uid], self._ended[uid])  # what we told was lost
                self._tasks.create_task(again, name=f"tell of {pod.name} again")
            if uid not in self._ended:
                self._begin(uid, self.life(pod, self._event(uid)), pod.name)
        for uid in self._boxes.keys() - wanted.keys() - self._ended.keys():  # deleted while no kubelet was there
            self._event(uid).set()
            self._begin(uid, self.bury(self._boxes[uid]), self._boxes[uid].name)

    def _event(self, uid: str) -> asyncio.Event:
        return self._ended.setdefault(uid, asyncio.Event())

    def _begin(self, uid: str, life: Coroutine[None, None, None], name: str) -> None:
        task = self._tasks.create_task(life, name=f"pod {name}")
        task.add_done_callback(lambda _: self._forget(uid))

    def _forget(self, uid: str) -> None:
        self._ended.pop(uid, None)
        self._told.pop(uid, None)

    async def _call(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a blocking function in one of our threads; at most AT_ONCE do."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def life(self, pod: Pod, ended: asyncio.Event) -> None:
        """A pod from its binding to its end."""
        box = self._boxes.get(pod.uid) or runtime.sandbox(self._lab, pod)
        self._boxes[pod.uid] = box
        retry = FIRST_RETRY_SECONDS
        while not ended.is_set():
            try:
                box = await self.set_up(pod, box)
                retry = FIRST_RETRY_SECONDS
                await self.keep(pod, box, ended)
            except (runtime.CniFailed, OSError, LabError) as error:
                log.warning("pod not started", pod=f"{pod.namespace}/{pod.name}", why=str(error))
                await self.tell(pod, box, ended, reason=str(error))
                await happens_within(ended, retry)
                retry = min(retry * 2, LAST_RETRY_SECONDS)
        await self.bury(self._boxes[pod.uid])

    async def set_up(self, pod: Pod, box: Sandbox) -> Sandbox:
        """Everything up to the CNI's answer. Raises CniFailed, OSError."""
        await self._call(runtime.create, self._lab, box)
        if not box.addresses and not box.host_network:
            box = msgspec.structs.replace(box, addresses=await self._call(runtime.add, self._lab, box))
            self.note(box)
        return box

    def note(self, box: Sandbox) -> None:
        """Remember what a sandbox is now."""
        self._boxes[box.uid] = box
        write(self._lab.directory.pod(box.uid), box)

    async def keep(self, pod: Pod, box: Sandbox, ended: asyncio.Event) -> None:
        """Run the pod's programs until `ended`; one that dies is started again, later each time."""
        retry = FIRST_RETRY_SECONDS
        while not ended.is_set():
            began = asyncio.get_running_loop().time()
            running = await self.start_programs(pod, box)
            if not await self.listening(pod, running, ended):
                reason = "a program ended before it listened"
            else:
                await self.tell(pod, box, ended)
                reason = await first_end(running, ended)
            if reason:
                if asyncio.get_running_loop().time() - began > LAST_RETRY_SECONDS:
                    retry = FIRST_RETRY_SECONDS
                await self.tell(pod, box, ended, reason=reason)
                await happens_within(ended, retry)
                retry = min(retry * 2, LAST_RETRY_SECONDS)
            box = self._boxes[pod.uid]

    async def start_programs(self, pod: Pod, box: Sandbox) -> dict[str, processes.Running]:
        """The programs of all containers, started unless they run already."""
        running: dict[str, processes.Running] = {}
        for name, container in runtime.containers(pod).items():
            known = runtime.alive(box, name)
            running[name] = (
                processes.Running(known)
                if known
                else await self._call(runtime.run, self._lab, box, name, images.start(container))
            )
        self.note(msgspec.structs.replace(box, processes={name: each.identity for name, each in running.items()}))
        return running

    async def listening(self, pod: Pod, running: dict[str, processes.Running], ended: asyncio.Event) -> bool:
        """Wait until every program listens that ought to. False: one ended before."""
        for name, container in runtime.containers(pod).items():
            port, identity = images.start(container).port, running[name].identity
            while port and not processes.listens(identity.pid, port):
                if not processes.is_alive(identity):
                    return False
                if await happens_within(ended, LISTEN_POLL_SECONDS):
                    return True
        return True

    async def tell(self, pod: Pod, box: Sandbox, ended: asyncio.Event, reason: str = "") -> None:
        """Say how the pod is, until somebody hears it or the pod has ended. No `reason`: it runs and is ready."""
        addresses = self._lab.node_addresses(box.node) if box.host_network else box.addresses
        status = PodStatus(
            namespace=pod.namespace,
            name=pod.name,
            uid=pod.uid,
            phase="Running" if addresses else "Pending",
            ready=not reason,
            address="".join(addresses[:1]),
            addresses=addresses,
            reason=reason,
            node=box.node,
        )
        await self._send(status, ended)

    async def _send(self, status: PodStatus, ended: asyncio.Event) -> None:
        while not ended.is_set():
            try:
                answer = await self._bus.ask(POD_STATUS, status.node, message=status)
            except BusError:
                await happens_within(ended, FIRST_RETRY_SECONDS)
                continue
            for refusal in answer.refusals:
                log.debug("status refused", pod=f"{status.namespace}/{status.name}", why=refusal.problem)
            if not answer.refusals:
                self._told[status.uid] = status
            return

    async def bury(self, box: Sandbox) -> None:
        """Take the sandbox away, however often it must be tried."""
        retry = FIRST_RETRY_SECONDS
        while True:
            try:
                await self._call(runtime.remove, self._lab, box)
                break
            except (runtime.CniFailed, OSError, LabError) as error:
                log.warning("pod not removed", pod=f"{box.namespace}/{box.name}", why=str(error))
                await asyncio.sleep(retry)
                retry = min(retry * 2, LAST_RETRY_SECONDS)
        self._boxes.pop(box.uid, None)


def shows(pod: Pod, status: PodStatus) -> bool:
    """What was told of the pod is in it; none is ready before it runs."""
    told = (status.phase, status.ready and status.phase == "Running", all_of(status), status.reason)
    return (pod.phase, pod.ready, all_of(pod), pod.reason) == told


async def happens_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for `event`, `seconds` at most. Whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def first_end(running: dict[str, processes.Running], ended: asyncio.Event) -> str:
    """Wait for the first program to end, or for `ended`. Which one and how; "" when `ended` came first."""
    watches = {asyncio.create_task(each.ended()): name for name, each in running.items()}
    stop = asyncio.create_task(ended.wait())
    try:
        done, _ = await asyncio.wait({*watches, stop}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*watches, stop):
            task.cancel()
        await asyncio.gather(*watches, stop, return_exceptions=True)
    if stop in done:
        return ""
    task = done.pop()
    return f"container {watches[task]} ended with status {task.result()}"
