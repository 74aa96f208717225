"""Requests -> plan -> the log. One request at a time: what a plan was made from is still so when it is written."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol
from uuid import uuid4

from msgspec.structs import replace

from bus.control import Action, Claim, Report, Say, Unsay, is_newer
from bus.interface import Bus, Conflict, Lease, Outbox, Unreadable
from bus.messages.resources import Applied, Apply, Bind, ClusterAddress, NodePort, Notice, PodStatus, Refusal
from bus.subjects import APPLY, BIND, CLUSTER_ADDRESS, NODE_PORT, POD_STATUS
from bus.telemetry import logger
from services.resources.kubernetes.source import mirror
from services.resources.manifests.document import read_document, skipped
from services.resources.manifests.meta import Resource
from services.resources.model import (
    Plan,
    plan_apply,
    plan_bind,
    plan_delete,
    plan_release,
    plan_status,
    plan_tidy,
    stages,
)
from services.resources.settings import Settings
from services.resources.store import Store

log = logger(__name__)

LEASE = "resources"
ATTEMPTS = 8  # plans for one request; a second writer exists only for a moment, at a takeover
MOST_TOLD = 200  # refusals, and warnings, in one answer
AT_ONCE = 64  # steps of one stage being written at the same time; a write takes about 2 ms


ASK_KUBERNETES = "this cluster's resources come from Kubernetes; use kubectl"

Check = Callable[[str, bool, str], None]
"""(name, ok, detail): one thing that is well or is not, for health."""


def unheard(_: str, __: bool, ___: str) -> None:
    pass


class Overtaken(Exception):
    """Another replica keeps writing what this one wants to write: it is the active one now."""


class Handlers:
    """What the active replica answers with. It holds the log's values, and writes each change there first.

    `realised` is told the revision after each request, when the log holds all of it.
    """

    def __init__(
        self,
        outbox: Outbox,
        settings: Settings,
        new_uid: Callable[[], str] = lambda: str(uuid4()),
        realised: Callable[[int], None] = lambda _: None,
        store: Store | None = None,
    ) -> None:
        """`store`: what this process held when it was active the last time. It counts where the log has lost some."""
        self._realised = realised
        self._outbox = outbox
        self._settings = settings
        self._new_uid = new_uid
        self._is_current = store is not None and outbox.losses > 0  # the store holds what the log does, or more
        self._store = store if store is not None and self._is_current else Store()
        self._losses = 0 if self._is_current else outbox.losses  # of the log, that the store has made good
        self._seen = 0  # the log's position at the last look
        self._written = 0  # its sequence counted from our own writes: each is at least one more
        self._one_at_a_time = asyncio.Lock()

    async def catch_up(self) -> None:
        """Read the log if it may differ from the store, and tidy it: before the first answer, after a write of which we
        do not know how it ended, and after the log went back."""
        if self._losses != self._outbox.losses:
            await self._say_again()
        if self._is_current and self._outbox.position >= self._seen:
            self._seen = self._outbox.position
            return
        self._store = Store(self._outbox.items())
        self._seen = self._written = self._outbox.position
        self._is_current = True
        for subject in dict(self._store.items()):
            self._as_in_log(subject)
        await self._do(lambda: plan_tidy(self._store))

    async def mend(self) -> None:
        """When the log is lost, wholly or in part, say at once all that the store knows."""
        while True:
            await self._outbox.lost(self._losses)
            async with self._turn():
                pass

    async def _say_again(self) -> None:
        """The store is what the user wants; the log has lost some of it, or gone back. Until it is vouched for, whoever
        hears it goes on with what was said before."""
        log.warning("the log has lost something: saying all of it again", resources=len(list(self._store.items())))
        while (losses := self._outbox.losses) != self._losses:
            said = dict(self._store.items())
            steps: list[Action] = [Say(subject, message) for subject, message in said.items()]
            strays = [subject for subject in self._outbox.subjects() if subject not in said]
            steps += [Unsay(subject) for subject in strays if not is_newer(self._outbox, subject)]
            if await self._carry_out(steps, set()) and losses == self._outbox.losses:
                self._losses = losses
        self._seen = self._written = self._outbox.position
        await self._outbox.vouch()

    @property
    def store(self) -> Store:
        return self._store

    @property
    def digests(self) -> dict[str, str]:
        """Of all that is said, by family."""
        return self._store.digests.all()

    def tell_digests(self) -> None:
        """The store is what is said, and the log holds it."""
        self._outbox.said(self.digests)

    @property
    def revision(self) -> int:
        """A sequence of the log that includes all that we wrote; the log may not have been read back so far yet."""
        self._written = max(self._written, self._outbox.position)
        return self._written

    async def apply(self, apply: Apply) -> Applied:
        """All documents, or none. Repeating it, also after a death half-way, ends in the same state."""
        call = await _read(apply)
        if call.refusals:
            return Applied(refusals=few_refusals(call.refusals), revision=self.revision)
        async with self._turn():
            if apply.delete:
                answer = await self._do(lambda: plan_delete(self._store, call.resources))
            else:
                answer = await self._do(lambda: self._plan_apply(call.resources))
        warnings = few_warnings([*call.warnings, *answer.warnings])
        return replace(answer, warnings=warnings, skipped=call.skipped, refusals=few_refusals(answer.refusals))

    def _plan_apply(self, resources: Sequence[Resource]) -> Plan:
        settings = self._settings
        return plan_apply(self._store, resources, settings.service_networks, self._new_uid, settings.node_ports)

    async def bind(self, bind: Bind) -> Applied:
        async with self._turn():
            return await self._do(lambda: plan_bind(self._store, bind))

    async def pod_status(self, status: PodStatus) -> Applied:
        async with self._turn():
            return await self._do(lambda: plan_status(self._store, status))

    async def carry_out(self, make_plan: Callable[[], Plan]) -> Applied:
        """What somebody else has decided, in the log."""
        async with self._turn():
            return await self._do(make_plan)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One request at a time. What ends in an exception may have been written or not: then the log is read again."""
        async with self._one_at_a_time:
            try:
                await self.catch_up()
                yield
                self._seen = max(self._seen, self._outbox.position)
                self.tell_digests()
                self._realised(self.revision)
            except BaseException:
                self._is_current = False
                raise

    async def _do(self, make_plan: Callable[[], Plan]) -> Applied:
        """Carry a plan out; when another replica was faster anywhere, learn what it wrote and plan again.

        Raises: Overtaken: after ATTEMPTS plans.
        """
        claimed: set[str] = set()
        first: Plan | None = None
        for _ in range(ATTEMPTS):
            if self._losses != self._outbox.losses:
                await self._say_again()
            plan = make_plan()
            first = first or plan
            if plan.refusals:
                await self._carry_out(plan_release(self._store, claimed).steps, set())
                return Applied(refusals=list(plan.refusals), revision=self.revision)
            if await self._carry_out(plan.steps, claimed):
                return Applied(outcomes=list(first.outcomes), revision=self.revision, warnings=list(first.warnings))
        raise Overtaken(f"planned {ATTEMPTS} times, and each time another replica had written first")

    async def _carry_out(self, steps: Sequence[Action], claimed: set[str]) -> bool:
        """False: somebody else's write was in the way; the store knows it now. `claimed` collects what was claimed."""
        for stage in stages(steps):
            if not await self._write_all(stage, claimed):
                return False
        return True

    async def _write_all(self, stage: Sequence[Action], claimed: set[str]) -> bool:
        """One stage, AT_ONCE steps at a time. After a failure no further step is begun. Raises: what a write raised."""
        todo = iter(stage)
        in_the_way = False

        async def work() -> None:
            nonlocal in_the_way
            for step in todo:
                if in_the_way:
                    return
                if not await self._write(step, claimed):
                    in_the_way = True

        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(min(len(stage), AT_ONCE)):
                    tasks.create_task(work(), name=f"write steps {number}")
        except BaseExceptionGroup as problems:
            raise problems.exceptions[0] from None
        return not in_the_way

    async def _write(self, step: Action, claimed: set[str]) -> bool:
        """One step; False: somebody else's write was in the way."""
        try:
            if isinstance(step, Claim):
                holder = await self._outbox.claim(step.subject, step.message)
                self._store.put(step.subject, holder)
                self._as_in_log(step.subject)
                if holder != step.message:
                    return False
                self._written += 1
                claimed.add(step.subject)
            elif isinstance(step, Say):
                is_new = await self._outbox.say(step.subject, step.message)
                self._written += is_new
                self._store.put(step.subject, step.message)
            else:
                was_there = await self._outbox.unsay(step.subject)
                self._written += was_there
                self._store.delete(step.subject)
        except Conflict:
            if self._losses == self._outbox.losses:  # else the log knows less than the store
                self._relearn(step.subject)
            return False
        except Unreadable:  # somebody has what was claimed, whoever it is; plan with another
            self._store.put(step.subject, _somebodys(step.subject))
            self._store.digests.delete(step.subject)  # we do not say that
            return False
        return True

    def _as_in_log(self, subject: str) -> None:
        """The value has the bytes that the log has, which need not be those that we would write: another version wrote
        them, or this one before it had read the value back."""
        body = self._outbox.body(subject)
        if body is not None:
            self._store.digests.put(subject, body)

    def _relearn(self, subject: str) -> None:
        value = self._outbox.get(subject)
        if value is None:
            self._store.delete(subject)
        else:
            self._store.put(subject, value)
            self._as_in_log(subject)


def _somebodys(subject: str) -> ClusterAddress | NodePort:
    """An address or a node port, which are all that is claimed, of a holder who cannot be read."""
    if NODE_PORT.has(subject):
        return NodePort(port=int(NODE_PORT.parse(subject)[0]), namespace="", service="")
    return ClusterAddress(address=CLUSTER_ADDRESS.parse(subject)[0], namespace="", service="")


async def serve(
    bus: Bus, lease: Lease, settings: Settings, report: Report, store: Store | None = None, check: Check = unheard
) -> Store:
    """Answer while the lease is held. Returns when it is lost, with what was held then; a standby answers nothing."""
    outbox = await bus.own("resources", vouch=False)
    is_synced = not settings.is_kubernetes
    try:

        def realised(revision: int) -> None:
            report.report(ready=is_synced, active=True, revision={"resources": revision})

        handlers = Handlers(outbox, settings, realised=realised, store=store)

        def synced() -> None:
            nonlocal is_synced
            is_synced = True
            realised(handlers.revision)

        if store is None:
            await outbox.restore()
        await handlers.catch_up()
        await outbox.vouch()
        handlers.tell_digests()
        realised(handlers.revision)
        asked: Answers = handlers
        async with asyncio.TaskGroup() as tasks:
            work = [
                tasks.create_task(handlers.mend(), name="mend the log"),
                tasks.create_task(bus.keep_streams(), name="keep streams"),
            ]
            if settings.is_kubernetes:
                asked = Elsewhere()
                following = mirror(bus, handlers, settings.kubeconfig, check, synced)
                work.append(tasks.create_task(following, name="follow Kubernetes"))
            work += [
                tasks.create_task(bus.answer(APPLY, handler=asked.apply), name="answer apply"),
                tasks.create_task(bus.answer(BIND, handler=asked.bind), name="answer bind"),
                tasks.create_task(bus.answer(POD_STATUS, handler=asked.pod_status), name="answer podstatus"),
            ]
            log.info("active", revision=handlers.revision)
            await lease.lost()
            for task in work:
                task.cancel()
    finally:
        await outbox.close()
    log.warning("the lease was lost; this replica stands by")
    return handlers.store


async def run(bus: Bus, settings: Settings, report: Report, check: Check = unheard) -> None:
    """Stand by, be active, and stand by again, until cancelled."""
    store: Store | None = None
    while True:
        report.report(ready=True, active=False, revision={})
        async with bus.lease(LEASE) as lease:
            store = await serve(bus, lease, settings, report, store, check)


class Answers(Protocol):
    """Who is asked."""

    async def apply(self, apply: Apply) -> Applied: ...
    async def bind(self, bind: Bind) -> Applied: ...
    async def pod_status(self, status: PodStatus) -> Applied: ...


class Elsewhere:
    """What is answered where Kubernetes is the source: it is asked there."""

    async def apply(self, _: Apply) -> Applied:
        return Applied(refusals=[Refusal(source="", problem=ASK_KUBERNETES)])

    async def bind(self, _: Bind) -> Applied:
        return Applied(refusals=[Refusal(source="", problem=ASK_KUBERNETES)])

    async def pod_status(self, _: PodStatus) -> Applied:
        return Applied(refusals=[Refusal(source="", problem=ASK_KUBERNETES)])


@dataclass
class _Call:
    """What the documents of one request are."""

    resources: list[Resource] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    warnings: list[Notice] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


async def _read(apply: Apply) -> _Call:
    """Lets others run between documents: a call may bring thousands, and the lease must be renewed meanwhile."""
    call = _Call()
    for document in apply.documents:
        await asyncio.sleep(0)
        passed_over = skipped(document) if apply.skip_unsupported else None
        if passed_over is not None:
            call.skipped[passed_over[0]] += 1
            call.warnings += passed_over[1]
            continue
        found = read_document(document, apply.delete)
        if isinstance(found, Resource):
            call.resources.append(found)
        else:
            call.refusals += found
    return call


def few_refusals(told: Sequence[Refusal]) -> list[Refusal]:
    """As many as an answer holds and a person reads; the last one says how many there are besides."""
    kept = list(told[:MOST_TOLD])
    if len(told) > MOST_TOLD:
        kept[-1] = Refusal(source="", problem=f"{len(told) - MOST_TOLD + 1} more places are refused")
    return kept


def few_warnings(told: Sequence[Notice]) -> list[Notice]:
    kept = list(told[:MOST_TOLD])
    if len(told) > MOST_TOLD:
        kept[-1] = Notice(source="", text=f"{len(told) - MOST_TOLD + 1} more places ask for what is not done")
    return kept
