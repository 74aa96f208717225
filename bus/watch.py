"""The consumer's dance: snapshot from the owner, deltas in order, and the log itself while the owner is away.

For each owner one task keeps a `View` true; the reader of the watch gets, per key, what is latest. Where something is
missing (a gap, silence, a reconnect, another log) the owner is asked again and the view finds what really changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from bus import revision, wire
from bus.bounds import Bounds, called
from bus.codec import Newer, Undecodable, decode
from bus.follow import follow
from bus.interface import Anew, Batch, BusAway, Change, Family, Unreadable
from bus.link import Link, Mailbox
from bus.log import Log
from bus.messages import Message
from bus.natspy import Msg
from bus.services import MANY_WRITERS, ROOTS
from bus.subjects import VOUCHED, State, delta_of, snapshot_of, state_of
from bus.telemetry import count, logger
from bus.view import View
from bus.wire import UNREAD, Delta, Entry, Interest, SnapshotChunk, SnapshotQuestion

log = logger(__name__)

ANSWER_SECONDS = 0.5  # an owner that has not begun to answer by then is away
CHUNK_SECONDS = 2.0  # between the pieces of one snapshot
RELEASE_SECONDS = 0.25  # between looks at what a node said too fast
SILENCE_SECONDS = 2.5  # an owner says something every second; after this long it is asked


def interests(families: Sequence[Family]) -> dict[str, Interest]:
    """Per owner, the subjects asked for. Raises: ValueError: no family, or one that is no state."""
    patterns: dict[str, list[str]] = {}
    for family in families:
        state, tokens = family if isinstance(family, tuple) else (family, ())
        patterns.setdefault(state.owner, []).append(state.all(*tokens))
    if not patterns:
        raise ValueError("watch_state needs at least one family")
    return {owner: Interest(wanted) for owner, wanted in patterns.items()}


def new_view(owner: str, interest: Interest, *, direct: bool = False) -> View:
    """What a reader starts with. `direct`: it is to know the log as it is, before anyone vouches for it, too."""
    many = owner in MANY_WRITERS
    whole = VOUCHED[owner].all()
    tokens = [pattern.split(".") for pattern in interest.patterns]
    if many and all(len(each) > 4 for each in tokens):  # of some nodes only: their words are enough
        return View(interest, {f"state.{owner}.vouched.{each[3]}" for each in tokens}, by_node=True)
    return View(interest, [whole], by_node=many, patient=not direct and not many)


def read_entry(entry: Entry, families: Iterable[State[Message]] | None = None) -> Change | None:
    """The change that an entry stands for; None, counted and logged, when its body is not what belongs there."""
    try:
        message = message_of(entry)
    except Undecodable as problem:
        count("bus_undecodable", family=".".join(entry.subject.split(".")[:3]))
        log.warning("message dropped: it does not decode", subject=problem.subject, why=problem.why)
        return None
    return Change(entry.subject, message, entry.sequence, entry.caused_at, entry.trace, entry.body or b"")


def message_of(entry: Entry) -> Message | None:
    """The value that an entry gives its key; None when it takes it away. Raises: Undecodable.

    A key that is no text belongs to nothing, so that neither its value nor its end is anybody's business.
    """
    family = state_of(entry.subject)
    if family is None:
        raise Undecodable(entry.subject, "no such family of subjects")
    try:
        tokens = family.parse(entry.subject)
        if "%" in entry.subject and family.of(*tokens) != entry.subject:
            raise ValueError(entry.subject)  # another way to write the name of another key
    except ValueError:
        raise Undecodable(entry.subject, "its key is not a text as subjects have it") from None
    return None if entry.body is None else decode(entry.subject, entry.body, family.message)


def unreadable(entry: Entry | None) -> Unreadable | None:
    """Why the value that an entry gives cannot be read here; None when it can, or when it gives none."""
    try:
        if entry is not None:
            message_of(entry)
    except Undecodable as problem:
        return Unreadable(problem.subject, problem.why, newer=isinstance(problem, Newer))
    return None


@dataclass
class Merged:
    """What the reader has not taken yet: per key the latest, so a slow reader costs no more than a value a key."""

    views: dict[str, View]
    changes: dict[str, Change] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    synced: bool = False
    lost: set[str] = field(default_factory=set)  # owners whose logs were
    unreadable: set[str] = field(default_factory=set)
    over: dict[str, str] = field(default_factory=dict)  # writers, and in what
    _is_over_news: bool = False
    _told: dict[str, int] = field(default_factory=dict)
    _said: dict[str, dict[str, str]] = field(default_factory=dict)  # by owner: its digests, as of what is told
    _told_said: dict[str, str] = field(default_factory=dict)

    def add(self, entries: list[Entry]) -> None:
        """Take what one view found, and look whether the revision moved."""
        for entry in entries:
            change = read_entry(entry)
            if change is None:
                (self.unreadable.add if entry.body is not None else self.unreadable.discard)(entry.subject)
            else:
                self.unreadable.discard(entry.subject)
                self.changes.pop(change.subject, None)
                self.changes[change.subject] = change
        if entries or not self.synced or self.revision() != self._told:
            self.news.set()

    def lose(self, owner: str) -> None:
        """A log is another than before, or has lost something."""
        self.lost.add(owner)
        self.news.set()

    def is_over(self, writers: Mapping[str, str]) -> None:
        """These say more than they may, now."""
        if writers != self.over:
            self.over = dict(writers)
            self._is_over_news = True
            self.news.set()

    def says(self, owner: str, digests: Mapping[str, str]) -> None:
        """What the owner's model says is this, as of all that was added. Empty: it is not known."""
        self._said[owner] = {f"{owner}.{noun}": digest for noun, digest in digests.items()}
        if any(self._told_said.get(family) != digest for family, digest in self._said[owner].items()):
            self.news.set()

    def take(self) -> Batch | None:
        """Everything since the last call; None when that is nothing."""
        self.news.clear()
        first = not self.synced and all(view.complete for view in self.views.values())
        self.synced = self.synced or first
        now = self.revision()
        said = {family: digest for each in self._said.values() for family, digest in each.items()}
        is_said = said.items() <= self._told_said.items()  # or less of it: that is no news
        if (
            not (self.changes or self.unreadable or self.lost or self._is_over_news or first)
            and now == self._told
            and is_said
        ):
            return None
        batch = Batch(
            list(self.changes.values()),
            self.synced,
            dict(now),
            lost=frozenset(self.lost),
            said=said,
            unreadable=frozenset(self.unreadable),
            over=self.over,
        )
        self._is_over_news = False
        self.changes, self.lost, self.unreadable = {}, set(), set()
        self._told, self._told_said = now, said
        return batch

    def revision(self) -> dict[str, int]:
        """The merge over all owners; what is not known of one counts as nothing heard."""
        if not self.synced:
            return {}
        return revision.merge(_revision_of(owner, view) for owner, view in self.views.items())


def _revision_of(owner: str, view: View) -> revision.Revision:
    if owner in ROOTS:
        return {owner: view.included}
    return view.revision or dict.fromkeys(ROOTS, 0)


async def watch(
    link: Link, families: Sequence[Family], *, direct: bool, anew: Anew | None = None
) -> AsyncIterator[Batch]:
    """Bus.watch_state over NATS."""
    views = {owner: new_view(owner, interest, direct=direct) for owner, interest in interests(families).items()}
    merged = Merged(views)
    tasks = [
        asyncio.create_task(_watch_owner(link, owner, view, merged, direct, anew or Anew()), name=f"watch {owner}")
        for owner, view in views.items()
    ]
    for task in tasks:
        task.add_done_callback(lambda _: merged.news.set())
    try:
        while True:
            await merged.news.wait()
            for task in tasks:
                if task.done():
                    task.result()  # a task here ends only by failing: the reader is to know
            batch = merged.take()
            if batch is not None:
                yield batch
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch_owner(link: Link, owner: str, view: View, merged: Merged, direct: bool, anew: Anew) -> None:
    if owner in MANY_WRITERS:
        await _watch_writers(link, owner, view, merged)
    elif direct:
        await follow(link, Log(link, owner), view, merged.add, began=partial(merged.lose, owner))
    else:
        await OwnerWatch(link, owner, view, merged, anew).run()


async def _watch_writers(link: Link, owner: str, view: View, merged: Merged) -> None:
    """A log of many writers, each of them bounded in what is heard of it."""
    source = Log(link, owner)
    bounds = Bounds()
    is_over = asyncio.Event()
    now = asyncio.get_running_loop().time

    def tell(entries: list[Entry]) -> None:
        merged.add(entries)
        waiting = dict.fromkeys(map(called, view.waited_for), "has not vouched for its keys since the log lost some")
        merged.is_over({**bounds.problems, **waiting})
        (is_over.set if bounds.problems else is_over.clear)()

    def hear(entries: list[Entry]) -> None:
        tell(bounds.admit(entries, now()))

    async def release() -> None:
        while True:
            await is_over.wait()
            await asyncio.sleep(RELEASE_SECONDS)
            tell(bounds.release(now()))
            for subject in bounds.room():
                entry = await source.last(subject)
                if bounds.is_over(subject) and not view.waited_for:  # still: nothing later of it was heard
                    hear([entry if entry is not None and entry.body != UNREAD else Entry(0, subject, None)])

    async with asyncio.TaskGroup() as tasks:  # neither goes on without the other
        tasks.create_task(release(), name=f"bounds of {owner}")
        await follow(link, source, view, hear, began=partial(merged.lose, owner))


class OwnerWatch:
    """One owner's deltas, as long as it speaks; its log, as long as it does not."""

    def __init__(self, link: Link, owner: str, view: View, merged: Merged, anew: Anew) -> None:
        self._link = link
        self._owner = owner
        self._view = view
        self._merged = merged
        self._anew = anew
        self._is_asked_anew = False  # the next snapshot is to be of everything, and all of it to be told
        self._deltas = delta_of(owner)

    async def run(self) -> None:
        while True:
            async with Mailbox(self._link) as box:
                await box.join(self._deltas)
                while await self._ask(box):
                    why = await self._hear(box)
                    count("bus_resync", owner=self._owner, why=why)
                    log.debug("asking the owner again", owner=self._owner, why=why)
                await self._read_log(box)

    async def _ask(self, box: Mailbox) -> bool:
        """Bring the view up to date with the owner's snapshot. False: the owner is away, or behind what we know."""
        view = self._view
        since = view.since(view.log)
        if self._is_asked_anew:
            since = 0
            view.retell()
            self._is_asked_anew = False
        question = SnapshotQuestion(wire.SCHEMA, view.log, since, view.reads.patterns)
        inbox = self._link.client.new_inbox()
        async with Mailbox(self._link) as answers:
            try:
                await answers.join(inbox)
                await self._link.publish(snapshot_of(self._owner), wire.pack(question), reply=inbox)
                chunks = await _collect(answers)
            except BusAway:
                return False
            except Undecodable as problem:
                count("bus_undecodable", family=problem.subject)
                log.warning("snapshot dropped: it does not decode", subject=problem.subject, why=problem.why)
                return False
        if chunks is None:
            return False
        first = chunks[0][0]
        entries = (entry for _, piece in chunks for entry in piece)
        news = view.snapshot(first.log, first.since, first.last, first.revision, entries)
        if news is None:
            return False
        self._merged.says(self._owner, {})
        self._merged.add(news)
        return True

    async def _hear(self, box: Mailbox) -> str:
        """Apply deltas in order; returns why the owner has to be asked again."""
        now = asyncio.get_running_loop().time
        while True:
            item = await box.get(now() + SILENCE_SECONDS)
            if item is None:
                return "silence"
            label, message = item
            if label == Mailbox.RECONNECTED or message is None:
                return "reconnect"
            delta = self._delta(message)
            if delta is None:
                continue
            if delta.log != self._view.log:
                return "another log"
            news = self._view.delta(delta)
            if news is None:
                return "gap"
            self._merged.says(self._owner, delta.digests if delta.last == self._view.position else {})
            self._merged.add(news)
            if self._anew.take(self._owner):
                self._is_asked_anew = True
                return "read anew"

    async def _read_log(self, box: Mailbox) -> None:
        """Read the log itself until the owner is heard."""
        count("bus_direct", owner=self._owner)
        log.info("reading the log itself until its owner is heard", owner=self._owner)
        self._merged.says(self._owner, {})
        reading = asyncio.create_task(
            follow(self._link, Log(self._link, self._owner), self._view, self._merged.add), name=f"follow {self._owner}"
        )
        hearing = asyncio.create_task(self._heartbeat(box), name=f"hear {self._owner}")
        try:
            await asyncio.wait([reading, hearing], return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
        finally:
            for task in (reading, hearing):
                task.cancel()
            await asyncio.gather(reading, hearing, return_exceptions=True)

    async def _heartbeat(self, box: Mailbox) -> None:
        while True:
            item = await box.get()
            if item is not None and item[1] is not None and self._delta(item[1]) is not None:
                return

    def _delta(self, message: Msg) -> Delta | None:
        try:
            return wire.unpack(message.subject, message.data, Delta)
        except Undecodable as problem:
            count("bus_undecodable", family=message.subject)
            log.warning("delta dropped: it does not decode", subject=problem.subject, why=problem.why)
            return None


async def _collect(answers: Mailbox) -> list[tuple[SnapshotChunk, list[Entry]]] | None:
    """All pieces of a snapshot; None when they do not come. Raises: Undecodable."""
    now = asyncio.get_running_loop().time
    chunks: list[tuple[SnapshotChunk, list[Entry]]] = []
    wait = ANSWER_SECONDS
    while True:
        item = await answers.get(now() + wait)
        if item is None or item[1] is None or (item[1].headers or {}).get("Status") == "503":
            return None
        message = item[1]
        chunk = wire.unpack("snapshot", message.data, SnapshotChunk)
        if chunk.number != len(chunks):
            return None
        chunks.append((chunk, wire.unpack_entries("snapshot", chunk.packed)))
        if len(chunks) == chunk.of:
            return chunks
        wait = CHUNK_SECONDS
