"""A control service is a function from what it hears to what it says. This runs one; the service is the function.

The model is pure and never awaits. `run_control` watches its inputs (its own log among them, when the service
allocates), feeds changes to the model, and, while it holds the owner's lease, carries out the actions that the model
asks for. Outputs are written only when they differ from what the log holds, so a takeover causes no storm. When the log
is lost, wholly or in part, all of it is written again, what was claimed among it, before anything else is.

What goes wrong with one subject stops no other, and shows in health as a check that is not ok:
- "inputs": changes that the model could not take. The revision goes on (the owner has heard them); a subject is left
  out of the check again when a later value, or its deletion, is taken.
- "digests": the model has lost something of what the owners of its inputs say, and of which family (bus/digest.py). The
  revision is held back until it has it.
- "outputs": actions that can never be carried out as they are (too large, not permitted). The revision is held back
  until the model says something else of the subject that works.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Protocol

from bus.codec import TooLarge, encode
from bus.digest import Digests, Held
from bus.interface import Batch, Bus, Conflict, Lease, Outbox, Refused, Unreadable
from bus.messages import Message
from bus.revision import Revision
from bus.subjects import State
from bus.telemetry import Cause, caused_by, count, logger

log = logger(__name__)

LEASE_SECONDS = 3.0  # how long the cluster is without a leader after one is killed
RETRY_SECONDS = 1.0  # until a model whose `act` failed is asked again
AT_ONCE = 256  # outputs being written at the same time
TRIES = 10  # of one output against other writers
NAMED = 3  # subjects in a check's detail; the others are counted


@dataclass(frozen=True, slots=True)
class Say:
    """This is the value of `subject` now. Repeating it writes nothing."""

    subject: str
    message: Message


@dataclass(frozen=True, slots=True)
class Unsay:
    """`subject` has no value any more."""

    subject: str


@dataclass(frozen=True, slots=True)
class Claim:
    """Take `subject` if nobody has it (compare-and-set).

    Either way the model next hears `put(subject, holder's value)`. When that value cannot be read here (a newer schema,
    garbage), or `put` failed on it, it stays as it is, and the model hears `taken(subject)`.
    """

    subject: str
    message: Message


@dataclass(frozen=True, slots=True)
class Amend:
    """Put `after` in the place of `before`, if that is the value still (compare-and-set). None is no value.

    Either way the model next hears what the value is then, by `put` or `delete`. As of a claim, of a value that cannot
    be read here it hears `taken`. What is amended is not said or unsaid otherwise.
    """

    subject: str
    before: Message | None
    after: Message | None


Action = Say | Unsay | Claim | Amend


class Model(Protocol):
    """What a control service is: plain state, no I/O, no clock, no awaits.

    Two more methods are optional; `act` is called again after them:

        def taken(self, subject: str) -> None
            A claim or an amendment of `subject` met a value that cannot be read here. Somebody has it, until `put` or
            `delete` of that subject says otherwise: claim another. Without this method it counts as refused.

        def refused(self, subject: str, why: str) -> None
            The last action on `subject` cannot be carried out (`why`, for people): too large, or not permitted. Its old
            value stays, and the revision is held back, until `act` says something else of it that works. Told at most
            once a turn of each subject.
    """

    owner: ClassVar[str]
    hears: ClassVar[tuple[State[Message], ...]]  # families; the service's own when it makes claims
    says: ClassVar[
        tuple[State[Message], ...]
    ]  # families it fills; keys there that `said` does not list are unsaid after the first sync

    def put(self, subject: str, message: Message) -> None:
        """`subject` has this value now. May be repeated."""

    def delete(self, subject: str) -> None:
        """`subject` is gone. May be repeated, also for what was never there."""

    def act(self) -> Iterable[Action]:
        """What to do about all that was heard since the last call. Called only after every input is synced.

        Called again at once when claims were answered, so an allocation that lost its race tries the next candidate.
        """

    def said(self) -> Iterable[str]:
        """Every subject that has a value by this model, for pruning after the first sync."""


class Report(Protocol):
    """Whoever wants to know how the control service is (bus/service.py shows it to the world)."""

    def report(self, *, ready: bool, active: bool, revision: Revision) -> None:
        """`ready`: every input is synced. `active`: we hold the lease. `revision`: up to where all outputs are said."""


class ControlReport(Report, Protocol):
    """What `run_control` tells: with it, which subjects are in trouble."""

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        """One thing ("inputs", "outputs") that is well or is not; the latest of each name counts."""


@dataclass(frozen=True, slots=True)
class Leading:
    """For what is done beside a model while it leads, and changes the model by itself."""

    lease: Lease
    changed: asyncio.Event

    @property
    def holds(self) -> bool:
        """Nobody else leads. Ask it last, before anything is promised: the clock may have stood still since."""
        return self.lease.held

    def act(self) -> None:
        """The model has changed, and is to be asked."""
        self.changed.set()


Beside = Callable[[Leading], Coroutine[None, None, None]]
"""Runs while the lease is held and everything was heard once; cancelled when it is lost. What it raises ends all."""


async def run_control(
    bus: Bus,
    model: Model,
    *,
    report: ControlReport | None = None,
    lease_seconds: float = LEASE_SECONDS,
    beside: Beside | None = None,
) -> None:
    """Run `model` until cancelled: hear always, act while holding the lease named after its owner.

    Two replicas may run this; the other one hears everything, so that it can go on at once.

    Args:
        beside: what this service does beside hearing and saying: it answers questions, or looks at a clock.
    """
    control = Control(bus, model, report, beside)
    async with asyncio.TaskGroup() as tasks:
        own = control.own
        others = tuple(family for family in model.hears if family.owner != model.owner)
        if others:
            control.waits_for.add("inputs")
            control.held = Held(*others)
            inputs = bus.watch_state(*others, anew=control.held.anew)
            tasks.create_task(control.hear("inputs", inputs), name="hear inputs")
        if own:
            control.waits_for.add("own log")
            tasks.create_task(control.hear("own log", bus.watch_state(*own, direct=True)), name="hear own log")
        tasks.create_task(control.lead(lease_seconds), name="act")


class Control:
    """What `run_control` keeps beside the model: heard and not yet acted on, said and not yet written."""

    def __init__(self, bus: Bus, model: Model, report: ControlReport | None, beside: Beside | None = None) -> None:
        self._bus = bus
        self._model = model
        self._report = report
        self._beside = beside
        self.waits_for: set[str] = set()  # inputs that are not synced yet
        self._changed = asyncio.Event()
        self._changed.set()
        self.held = Held()  # of the inputs, as the model took them
        self._said = Digests.of_owner(model.owner)  # what the model says, whatever becomes of the log
        self._prefix = f"state.{model.owner}."
        self._revision: dict[str, int] = {}  # of what the model has heard
        self._cause: Cause | None = None  # of the oldest change that was not acted on
        self._wanted: dict[str, Message | None] = {}  # what we said, to say it again after another has led
        self.own = tuple(family for family in model.hears if family.owner == model.owner)
        self._known: dict[str, Message] = {}  # of those families: what the log held when we knew it last
        self._over: Mapping[str, str] = {}  # nodes that say more than they may
        self._unwritten: dict[str, Action] = {}
        self._given_up: dict[str, tuple[Action, str]] = {}  # what cannot be carried out as it is, and why
        self._tried: dict[str, tuple[Action, str]] = {}  # in this turn and in vain: each subject's last action, and why
        self._unusable: dict[str, str] = {}  # subject -> why the model could not take its latest change
        self._failure = ""  # why the model's last `act` failed
        self._done: dict[str, int] = {}  # up to where everything is said
        self._active = False

    # -- hearing

    async def hear(self, what: str, batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            self.take(what, batch)

    def take(self, what: str, batch: Batch) -> None:
        """Feed one batch to the model."""
        before = self._unusable.copy(), self.held.problem, self._over
        if what == "inputs":
            self._over = batch.over
        for change in batch.changes:
            is_taken = self._feed(change.subject, change.message, change.body)
            if what == "inputs":
                (self.held.take if is_taken else self.held.refuse)(change)
        if what == "inputs" and batch.synced:
            self.held.compare(batch)
        if batch.changes and batch.synced and what not in self.waits_for:
            newest = batch.changes[-1]
            if self._cause is None and newest.caused_at:
                self._cause = Cause(newest.caused_at, newest.trace)
        if batch.synced and what in self.waits_for:
            self.waits_for.discard(what)
            self._tell()
        elif (self._unusable, self.held.problem, self._over) != before:
            self._tell()
        if what == "inputs":  # our own log does not count: its revision is what we say of it
            self._revision = batch.revision
        self._changed.set()

    def _feed(self, subject: str, message: Message | None, body: bytes = b"") -> bool:
        """Whether the model took it. `body`: as it came, where it came from the bus."""
        try:
            if message is None:
                self._model.delete(subject)
            else:
                self._model.put(subject, message)
        except Exception as problem:  # noqa: BLE001  # one thing that the model cannot take must not stop the others
            self._unusable[subject] = repr(problem)
            count("control_errors", owner=self._model.owner, step="hear")
            log.error("the model failed on a change; the rest goes on", subject=subject, cause=problem)
            return False
        self._unusable.pop(subject, None)
        self._learn(subject, message)
        if subject.startswith(self._prefix):
            if message is None:
                self._said.delete(subject)
            else:
                self._said.put(subject, body or encode(message))
        given_up = self._given_up.get(subject)
        if given_up and message is not None and isinstance(given_up[0], (Claim, Amend)):
            del self._given_up[subject]  # somebody has it, and the model knows who
        return True

    def _learn(self, subject: str, message: Message | None) -> None:
        """What is claimed and by whom, to be said again should the log lose it."""
        if self._is_own(subject):
            if message is None:
                self._known.pop(subject, None)
            else:
                self._known[subject] = message

    def _is_own(self, subject: str) -> bool:
        """It is of a family that the model both says and hears: what was claimed."""
        return any(family.has(subject) for family in self.own)

    # -- acting

    async def lead(self, lease_seconds: float) -> None:
        """Take the lease, act while it is held, and so on."""
        while True:
            self._tell()
            async with self._bus.lease(self._model.owner, seconds=lease_seconds) as lease:
                outbox = await self._bus.own(self._model.owner, vouch=False)
                acting = asyncio.create_task(self._act(outbox, lease), name=f"lead {self._model.owner}")
                losing = asyncio.create_task(lease.lost(), name=f"lease {self._model.owner}")
                noticing = asyncio.create_task(self._notice(outbox), name=f"log of {self._model.owner}")
                try:
                    await asyncio.wait([acting, losing], return_when=asyncio.FIRST_COMPLETED)
                    if acting.done():
                        acting.result()
                finally:
                    self._active = False
                    for task in (acting, losing, noticing):
                        task.cancel()
                    await asyncio.gather(acting, losing, noticing, return_exceptions=True)
                    await outbox.close()

    async def _act(self, outbox: Outbox, lease: Lease) -> None:
        while self.waits_for:
            self._changed.clear()
            await self._changed.wait()
        if not lease.held:
            return  # it ended while the log was loaded
        self._active = True
        self._tell()
        losses = outbox.losses
        if losses:
            self._say_all_again()
        else:
            if self.own and not self._known:
                await outbox.restore()  # what was claimed follows from nothing else
            self._hear_log(outbox)
        await self._begin(outbox)
        async with asyncio.TaskGroup() as tasks:
            beside = self._beside and tasks.create_task(
                self._beside(Leading(lease, self._changed)), name=f"beside {self._model.owner}"
            )
            await self._go_on(outbox, lease, losses)
            if beside:
                beside.cancel()

    async def _go_on(self, outbox: Outbox, lease: Lease, losses: int) -> None:
        while lease.held:
            self._changed.clear()
            if outbox.losses != losses:
                losses = outbox.losses
                self._say_all_again()
                await self._begin(outbox)
            done = await self.turn(outbox)
            self._tell()
            if done:
                await self._changed.wait()
            else:
                await self._changed_or_later()

    async def _changed_or_later(self) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _notice(self, outbox: Outbox) -> None:
        while True:
            await outbox.lost(outbox.losses)
            self._changed.set()

    def _say_all_again(self) -> None:
        """What the log holds is older than what we know, or less."""
        count("control_said_again", owner=self._model.owner)
        log.warning("the log has lost something: saying all of it again", owner=self._model.owner)
        self._unwritten = {subject: Say(subject, message) for subject, message in self._known.items()}

    def _hear_log(self, outbox: Outbox) -> None:
        for subject, message in outbox.items().items():
            if any(family.has(subject) for family in self.own):
                self._feed(subject, message)

    async def _begin(self, outbox: Outbox) -> None:
        """The first acts of one who leads, or whose log was lost: say again what is not so, take back strays, vouch."""
        again = {
            subject: Unsay(subject) if message is None else Say(subject, message)
            for subject, message in self._wanted.items()
        }
        given_up = {subject: action for subject, (action, _) in self._given_up.items()}
        self._unwritten = {**again, **given_up, **self._unwritten}
        while not await self.turn(outbox):
            self._tell()
            await self._changed_or_later()
        said = set(self._model.said())
        strays = [
            subject
            for subject in outbox.subjects()
            if subject not in said and any(family.has(subject) for family in self._model.says)
        ]
        strays = [subject for subject in strays if not is_newer(outbox, subject)]
        if strays:
            count("control_pruned", len(strays), owner=self._model.owner)
            log.info("taking back what nobody says any more", owner=self._model.owner, subjects=len(strays))
        await self._carry_out(outbox, [Unsay(subject) for subject in strays])
        await outbox.vouch()

    async def turn(self, outbox: Outbox) -> bool:
        """Let the model act until it has nothing more to do, then say how far that reaches. False: try again later.

        Nothing is said of how far it reaches while an action is given up (there is nothing to try again either), or
        while the model does not hold what its inputs' owners say.
        """
        self._tried.clear()
        revision = self._revision
        cause, self._cause = self._cause, None
        with caused_by(cause.at, cause.trace) if cause else nullcontext():
            while True:
                try:
                    actions = [action for action in self._model.act() if not self._is_vain(action)]
                except Exception as problem:  # noqa: BLE001  # the model's own state is what it is; the next turn may do better
                    count("control_errors", owner=self._model.owner, step="act")
                    log.error("the model failed to act; asking it again", owner=self._model.owner, cause=problem)
                    self._failure = repr(problem)
                    return False
                self._failure = ""
                if not actions and not self._unwritten:
                    break
                if not await self._carry_out(outbox, actions):
                    return False
        if not self._given_up and not self.held.differing:
            outbox.heard(revision)
            self._done = revision
        outbox.said(self._said.all())
        return True

    async def _carry_out(self, outbox: Outbox, actions: Iterable[Action]) -> bool:
        """Write what is not so yet. Per subject the last action counts. False: some could not be written yet."""
        for action in actions:
            self._unwritten.pop(action.subject, None)
            self._unwritten[action.subject] = action
        places = asyncio.Semaphore(AT_ONCE)
        todo = list(self._unwritten.values())
        if len(todo) == 1:
            await self._write(outbox, todo[0], places)
        else:
            async with asyncio.TaskGroup() as tasks:
                for action in todo:
                    tasks.create_task(self._write(outbox, action, places), name=f"write {action.subject}")
        return not self._unwritten

    async def _write(self, outbox: Outbox, action: Action, places: asyncio.Semaphore) -> None:
        async with places:
            for _ in range(TRIES):
                try:
                    match action:
                        case Say(subject, message):
                            await outbox.say(subject, message)
                            if not self._is_own(subject):  # else another may have given it away when we lead again
                                self._wanted[subject] = message
                            self._learn(subject, message)
                            self._said.put(subject, encode(message))
                        case Unsay(subject):
                            await outbox.unsay(subject)
                            self._wanted.pop(subject, None)
                            self._learn(subject, None)
                            self._said.delete(subject)
                        case Claim(subject, message):
                            winner = await outbox.claim(subject, message)
                            self._feed(subject, winner)
                            if subject in self._unusable:
                                raise Unreadable(subject, self._unusable[subject], newer=False)
                        case Amend(subject, before, after):
                            value = await outbox.amend(subject, before, after)
                            self._feed(subject, value)
                            if subject in self._unusable:
                                raise Unreadable(subject, self._unusable[subject], newer=False)
                    self._given_up.pop(action.subject, None)
                except Conflict:
                    count("control_conflicts", owner=self._model.owner)  # the outbox has learned; we lead, so we insist
                    continue
                except (TooLarge, Refused, Unreadable) as problem:
                    self._cannot(action, problem)
                if self._unwritten.get(action.subject) is action:
                    del self._unwritten[action.subject]
                return
            log.warning("another writer keeps changing our output", subject=action.subject)

    def _is_vain(self, action: Action) -> bool:
        """It failed in this turn already, and will fail again: the model has nothing better."""
        tried = self._tried.get(action.subject)
        if tried is None or tried[0] != action:
            return False
        self._given_up[action.subject] = tried
        return True

    def _cannot(self, action: Action, problem: TooLarge | Refused | Unreadable) -> None:
        """The action cannot be carried out, now or later, as it is. The model may know another."""
        subject = action.subject
        first = subject not in self._tried
        self._tried[subject] = action, str(problem)
        if isinstance(problem, Unreadable) and first and self._mention("taken", subject):
            self._given_up.pop(subject, None)
            count("control_claims_unreadable", owner=self._model.owner)
            log.warning("a claim met a value that cannot be read here: it counts as taken", subject=subject)
            return
        self._given_up[subject] = action, str(problem)
        count("control_errors", owner=self._model.owner, step="write")
        log.error("an output cannot be written; its old value stays", subject=subject, cause=problem)
        if first:
            self._mention("refused", subject, str(problem))

    def _mention(self, what: str, subject: str, *facts: str) -> bool:
        """Call a method that the model may have. False: it has none, or that failed."""
        if not callable(getattr(type(self._model), what, None)):
            return False
        try:
            getattr(self._model, what)(subject, *facts)
        except Exception as problem:  # noqa: BLE001  # as in _feed
            count("control_errors", owner=self._model.owner, step=what)
            log.error("the model failed on what became of its action", subject=subject, cause=problem)
            return False
        return True

    def _tell(self) -> None:
        if self._report is not None:
            given_up = {subject: why for subject, (_, why) in self._given_up.items()}
            outputs = [f"the model fails: {self._failure}"] if self._failure else []
            outputs = outputs + named("cannot be written", given_up) if self._active else []  # else another's business
            inputs = named("cannot be used", self._unusable)
            self._report.check("inputs", not inputs, "; ".join(inputs))
            over = "; ".join(f"{node}: {why}" for node, why in sorted(self._over.items()))
            self._report.check("nodes within bounds", not over, over)
            self._report.check("digests", not self.held.problem, self.held.problem)
            self._report.check("outputs", not outputs, "; ".join(outputs))
            self._report.report(ready=not self.waits_for, active=self._active, revision=self._done)


def is_newer(outbox: Outbox, subject: str) -> bool:
    """`subject` has a value of a newer schema than ours: not to be taken back by one who cannot read it."""
    problem = outbox.unreadable(subject)
    return problem is not None and problem.newer


def named(what: str, problems: Mapping[str, str]) -> list[str]:
    """For a check's detail: the first of these subjects, each with why, and how many more there are."""
    lines = [f"{subject} {what}: {why}" for subject, why in sorted(problems.items())[:NAMED]]
    return [*lines, f"and {len(problems) - NAMED} more"] if len(problems) > NAMED else lines
