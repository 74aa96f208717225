"""What becomes of a question, and of its answer. Pure.

`judge` a question: it may go to the resolver, or gets a refusal, or nothing. `heard` an answer: it goes on at once, or,
when it gives a name that policies mean new addresses, after the node's map has them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from bus.patterns import Patterns
from services.dns.names import Names
from services.dns.wire import HEADER, NXDOMAIN, REFUSED, SERVFAIL, Question, addresses, question_of, refusal

MOST_REMEMBERED = 20_000  # questions

Rcode = Literal["refused", "nameError"]
RCODES: dict[Rcode, int] = {"refused": REFUSED, "nameError": NXDOMAIN}


class Allowed(NamedTuple):
    question: Question
    is_wanted: bool  # policies mean the name: its answer is read


class Refused(NamedTuple):
    answer: bytes
    question: Question | None


class Heard(NamedTuple):
    """An answer that may go on, when `new` are in the node's map."""

    name: str
    new: frozenset[str]


NOTHING_NEW = Heard("", frozenset())


class Judge:
    """Of one slot. `names` are the node's."""

    def __init__(self, allowed: Patterns, names: Names, rcode: Rcode = "refused") -> None:
        self._allowed = allowed
        self._names = names
        self._rcode = RCODES[rcode]
        self._known: dict[bytes, Question | None] = {}  # what follows a message's id -> what it asks

    def judge(self, message: bytes) -> Allowed | Refused | None:
        """None: it is too short to be answered."""
        if len(message) < HEADER:
            return None
        rest = message[2:]
        try:
            question = self._known[rest]
        except KeyError:
            question = question_of(message)
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            if len(rest) <= 512:
                self._known[rest] = question
        if question is None:
            if message[2] & 0x80:
                return None  # an answer: to answer it might begin a circle
            return Refused(refusal(message, None, REFUSED), None)
        if not self._allowed.has(question.name):
            return Refused(refusal(message, question, self._rcode), question)
        return Allowed(question, self._names.is_wanted(question.name))

    def heard(self, message: bytes, question: Question, now: float) -> Heard | None:
        """The answer to a question that is wanted. None: it cannot be read, and must not go on."""
        found = addresses(message, question)
        if found is None:
            return None
        if not found or question.name is None:
            return NOTHING_NEW
        return Heard(question.name, frozenset(self._names.learn(question.name, found, now)))


def failure(message: bytes, question: Question) -> bytes:
    """What is said instead of an answer that must not go on, or never came."""
    return refusal(message, question, SERVFAIL)
