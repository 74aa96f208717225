"""A control service is a function from what it hears to what it says. This runs one; the service is the function.

The model is pure and never awaits. `run_control` watches its inputs (its own log among them, when the service
allocates), feeds changes to the model, and, while it holds the owner's lease, carries out the actions that the model
asks for. Outputs are written only when they differ from what the log holds, so a takeover causes no storm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from bus.messages import Message
from bus.subjects import State


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
    """Take `subject` if nobody has it (compare-and-set). Either way the model next hears `put(subject, holder's value)`."""

    subject: str
    message: Message


Action = Say | Unsay | Claim


class Model(Protocol):
    """What a control service is: plain state, no I/O, no clock, no awaits."""

    owner: ClassVar[str]
    hears: ClassVar[tuple[State[Message], ...]]  # families; the service's own when it makes claims
    says: ClassVar[tuple[State[Message], ...]]  # families it fills; keys there that `said` does not list are unsaid after the first sync

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
