"""What a service holds: publish, watch, ask, lease. `client.py` does it over NATS, `testing.py` in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from bus.messages import Message
from bus.revision import Revision
from bus.subjects import Request, State

M = TypeVar("M", bound=Message)
A = TypeVar("A", bound=Message)

Family = State[Message] | tuple[State[Message], tuple[str, ...]]
"""A whole family, or the part of it whose subjects start with these tokens: `(ENDPOINT, ("node-1",))`."""


@dataclass(frozen=True, slots=True)
class Change:
    """A key has this value now, or (None) is gone."""

    subject: str
    message: Message | None
    sequence: int  # in the owner's log; of a deletion that was only found missing: where that was found
    caused_at: float  # seconds since the epoch; 0.0 when nobody knows
    trace: Mapping[str, str]  # W3C trace headers, may be empty
    body: bytes = field(default=b"", repr=False, compare=False)  # the value as it came


@dataclass(frozen=True, slots=True)
class Batch:
    """What a watch has heard since the last batch; per key only the latest.

    `synced` turns True with the batch that completes the first full reading of every family, and stays True.
    `revision` is bus/revision.py's merge over all owners watched; empty until synced. A batch without changes says
    that the revision advanced, or what `said` is.

    `lost` names owners whose log was found to be another than before, or to have lost something; what was known of it
    holds until it is vouched for (bus/view.py). Told of logs that are read directly.

    `said` is what owners' models say, by family, a digest each (bus/digest.py): of those whose word is for exactly
    what the watch has told up to here. `unreadable`: subjects whose new value does not decode here. `over`: nodes that
    say more than they may, and in what (bus/bounds.py).
    """

    changes: list[Change]
    synced: bool
    revision: dict[str, int] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    said: dict[str, str] = field(default_factory=dict)
    unreadable: frozenset[str] = frozenset()
    over: Mapping[str, str] = field(default_factory=dict)


class Anew:
    """By this the reader of a watch has everything of an owner told once more."""

    def __init__(self) -> None:
        self._owners: set[str] = set()
        self.asked: Callable[[str], None] = self._owners.add
        """What `ask` calls; a watch that can do it at once puts its own in this place."""

    def ask(self, owner: str) -> None:
        self.asked(owner)

    def take(self, owner: str) -> bool:
        """Whether it was asked for since the last call."""
        is_asked = owner in self._owners
        self._owners.discard(owner)
        return is_asked


class BusError(Exception):
    """Something about the bus that its user may want to handle."""


class Conflict(BusError):
    """Someone else wrote this key first. `sequence` is the key's current one (0: it has none)."""

    def __init__(self, subject: str, sequence: int) -> None:
        super().__init__(f"{subject} is at sequence {sequence}")
        self.subject = subject
        self.sequence = sequence


class Unanswered(BusError):
    """A question got no usable answer; `why` is for people."""

    def __init__(self, subject: str, why: str) -> None:
        super().__init__(f"{subject}: {why}")
        self.subject = subject
        self.why = why


class TurnedAway(BusError):
    """The bus is there, and does not take us as we are; the text says what to do. Waiting does not help."""


class Refused(BusError):
    """The server does not take this from this user, now or later."""

    def __init__(self, subject: str, why: str = "no permission to publish it") -> None:
        super().__init__(f"{subject}: {why}")
        self.subject = subject


class Unreadable(BusError):
    """The key has a value that cannot be read here: taken, but not known by whom. `newer`: its schema is newer than
    ours, so that it is somebody's; else it is garbage."""

    def __init__(self, subject: str, why: str, *, newer: bool) -> None:
        super().__init__(f"{subject}: {why}")
        self.subject = subject
        self.why = why
        self.newer = newer


class BusAway(BusError):
    """The server cannot be reached, or did not answer in time."""


class Lease(Protocol):
    """A named right that one holder has at a time."""

    @property
    def held(self) -> bool:
        """True until this holder's own deadline, which ends before anyone else can take the lease."""

    async def lost(self) -> None:
        """Returns when the lease is held no longer."""


class Outbox(Protocol):
    """What one active owner says: its log, and handing it to all who watch."""

    @property
    def owner(self) -> str: ...

    @property
    def position(self) -> int:
        """The last sequence of the log that this outbox has seen or written."""

    def get(self, subject: str) -> Message | None:
        """The value of `subject` now; None when it has none (or one that does not decode)."""

    def body(self, subject: str) -> bytes | None:
        """The value's bytes in the log; None when it has none."""

    def items(self) -> Mapping[str, Message]:
        """Every subject that has a value, with it."""

    def subjects(self) -> list[str]:
        """Every subject that has a value, decodable or not."""

    def unreadable(self, subject: str) -> Unreadable | None:
        """Why the value of `subject` cannot be read here; None when it can, or when there is none."""

    async def say(self, subject: str, message: Message) -> bool:
        """Give `subject` this value. False: it has it already, nothing was written.

        Raises: Conflict: another writer was first; the outbox knows its value now, so saying it again may succeed.
        """

    async def unsay(self, subject: str) -> bool:
        """Take the value away. False: there was none. Raises: Conflict, as `say`."""

    async def claim(self, subject: str, message: Message) -> Message:
        """Take `subject` if it has no value. Returns the value that it has then: mine, or who was first.

        Raises: Unreadable: it has one that cannot be read here; TooLarge, Refused.
        """

    async def amend(self, subject: str, before: Message | None, after: Message | None) -> Message | None:
        """Put `after` in the place of `before` if that is the value of `subject`; None is no value. Returns the value
        that it has then: `after`, or what it was, as far as this process has heard. Raises: as `claim`."""

    @property
    def losses(self) -> int:
        """How often the log was found to be another than before, or to have lost something. Not 0 at first: since this
        process owned it the last time."""

    async def lost(self, known: int) -> None:
        """Returns when `losses` is not `known`, and the log as it is now has been read."""

    async def restore(self) -> int:
        """Say again what the log has lost and the journal has (bus/journal.py); how many keys. For an owner that knows
        nothing but the log, before it vouches for that."""

    async def vouch(self) -> None:
        """All that the owner says is in the log, and nothing else: from here on it is handed out, until the next loss.

        A loss while this runs leaves it unvouched.
        """

    def heard(self, revision: Revision) -> None:
        """All said up to now includes the roots up to `revision`; travels with the next delta."""

    def said(self, digests: Mapping[str, str]) -> None:
        """This is what the model says, by family (bus/digest.py), and all of it is written. Holds until the next write
        of this outbox begins; whoever else writes the log does not change what the model says."""

    async def close(self) -> None:
        """Stop handing out. Safe to repeat."""


class Bus(Protocol):
    """One connection. While the server is away all of it waits, unless it says otherwise."""

    def stuck(self) -> str:
        """Writes that the server has not taken for some seconds, with its reason, in words; "" when there are none."""

    def watch_state(self, *families: Family, direct: bool = False, anew: Anew | None = None) -> AsyncIterator[Batch]:
        """Every value of these families, then every change, merged over owners.

        `direct` reads the logs themselves and never asks an owner; the log of many writers ("dataplane") always is.
        `anew`: the reader's wish to be told everything of an owner again; not of logs that are read directly.
        """

    async def own(self, owner: str, *, vouch: bool = True) -> Outbox:
        """Load the owner's log and begin to hand it out. `vouch`: the log as it is, whatever it is, is what the owner
        says; else nothing is handed out before `Outbox.vouch`.
        """

    async def publish_state(self, subject: str, message: Message, *, expected: int | None = None) -> int:
        """Write one key of a log of many writers; returns its sequence.

        `expected`: the key's sequence that must still be the last (0: it has no value).
        Raises: Conflict, TooLarge, Refused.
        """

    async def compare_and_set(self, subject: str, message: Message | None, expected: int) -> int | None:
        """As `publish_state` (None: delete), but a lost race is the value None."""

    async def delete_state(self, subject: str) -> int:
        """Take the key's value away; returns the sequence of that."""

    async def publish_event(self, subject: str, message: Message) -> None:
        """Tell a fact. While the server is away it is lost, and counted."""

    def watch_events(self, pattern: str, kind: type[M]) -> AsyncIterator[tuple[str, M]]:
        """Facts from now on, with their subjects. A reader that is too slow loses some, counted."""

    async def ask(self, request: Request[M, A], *tokens: str, message: M, timeout: float = 2.0) -> A:
        """Ask, and have the answer within `timeout` seconds. Raises: Unanswered."""

    async def answer(self, request: Request[M, A], *tokens: str, handler: Callable[[M], Awaitable[A]]) -> None:
        """Answer questions until cancelled, sharing them with others who answer the same."""

    def lease(self, name: str, *, seconds: float = 3.0) -> AbstractAsyncContextManager[Lease]:
        """Wait until the lease is ours; given back on exit."""

    async def ensure_streams(self) -> None:
        """Make every stream that is missing."""

    async def keep_streams(self) -> None:
        """The same, again whenever one is missing, until cancelled."""
