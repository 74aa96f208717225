"""Comparing instead of believing: what owners say now, and what a reader holds of it, as a number for each family.

A digest is the number of keys and the sum of their hashes, modulo 2**64: the order in which they came does not matter,
and a change costs one hash. Two digests are equal when the same keys have the same bytes; that others are equal too is
a matter of 2**-64 by chance. It tells faults, not forgeries: whoever may choose many keys can make two sums meet.

The owner's digest is of what its model says, not of what its log holds. It travels in those deltas and heartbeats
(`bus/wire.py`) that end where everything said is in the log, at least once a second. `Held` is the reader's side.

Source: docs/adr/0020-realised-means-compared.md
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from bus.interface import Anew, Batch, Change, Family
from bus.messages import Message
from bus.subjects import STATES, State
from bus.telemetry import count, logger

log = logger(__name__)

GRACE_SECONDS = 0.5  # a difference that lasts for so long has the reader read everything of that owner anew
MOST_SECONDS = 60.0  # between two such readings while it stays: twice as long each time, up to this
NAMED = 3  # keys that a difference is named by

_MODULO = 1 << 64


def hash_of(subject: str, body: bytes) -> int:
    """Of one key with its value, as it is on the wire. No subject has a zero byte."""
    return int.from_bytes(blake2b(b"%b\0%b" % (subject.encode(), body), digest_size=8).digest(), "big")


def family_of(subject: str) -> str:
    """ "identity.address" of "state.identity.address.10.0.0.1"."""
    _, owner, noun, *_ = subject.split(".", 3)
    return f"{owner}.{noun}"


def name_of(family: State[Message]) -> str:
    """As `family_of` names it."""
    return f"{family.owner}.{family.noun}"


class Digests:
    """One digest for each family of subjects, kept while values come and go. `families`: empty, and known to be."""

    def __init__(self, families: Iterable[State[Message]] = ()) -> None:
        self._hashes: dict[str, dict[str, int]] = {name_of(family): {} for family in families}
        self._sums: dict[str, int] = dict.fromkeys(self._hashes, 0)

    @classmethod
    def of_owner(cls, owner: str) -> Digests:
        """Of everything that `owner` may say."""
        return cls(family for family in STATES if family.owner == owner)

    def put(self, subject: str, body: bytes) -> bool:
        """`subject` has this value now. Whether it had another before."""
        family, new = family_of(subject), hash_of(subject, body)
        hashes = self._hashes.setdefault(family, {})
        before = hashes.get(subject)
        self._sums[family] = (self._sums.get(family, 0) + new - (before or 0)) % _MODULO
        hashes[subject] = new
        return before != new

    def delete(self, subject: str) -> bool:
        """`subject` has no value. Whether it had one."""
        family = family_of(subject)
        gone = self._hashes.get(family, {}).pop(subject, None)
        if gone is not None:
            self._sums[family] = (self._sums[family] - gone) % _MODULO
        return gone is not None

    def has(self, subject: str) -> bool:
        return subject in self._hashes.get(family_of(subject), ())

    def of(self, family: str, instead: Mapping[str, int | None] = {}) -> str:
        """The digest of one family: "<keys>:<sum>". `instead`: as if these had these hashes (None: no value)."""
        hashes = self._hashes.get(family, {})
        number, total = len(hashes), self._sums.get(family, 0)
        for subject, other in instead.items():
            number += (other is not None) - (subject in hashes)
            total += (other or 0) - hashes.get(subject, 0)
        return f"{number}:{total % _MODULO:016x}"

    def all(self) -> dict[str, str]:
        """By family."""
        return {family: self.of(family) for family in self._hashes}


@dataclass(frozen=True, slots=True)
class Difference:
    """One family that a reader does not hold as its owner says it."""

    family: str
    said: str
    held: str
    since: float  # seconds since the epoch

    def __str__(self) -> str:
        said, held = self.said.partition(":")[0], self.held.partition(":")[0]
        what = f"holds {held} keys of {said}" if said != held else f"holds {said} keys, not all as they are said"
        return f"{self.family} {what}, since {time.strftime('%H:%M:%S', time.gmtime(self.since))} UTC"


class Held:
    """What a reader holds of the families that it hears, and where that is not what their owners say.

    The reader calls `take` for each change that it has made its own, `refuse` for what makes no sense to it (it tells
    that by itself; said or not, it is not lost, and no difference), and `compare` behind each batch. A difference that
    lasts has the owner read anew, by the watch that is given `anew`: it tells every value once more. Families of which
    only a part is heard are never compared, because the owner's digest is of all of it; nor are those of a log without
    one owner, as "dataplane".
    """

    def __init__(self, *families: Family) -> None:
        self._whole = frozenset(name_of(family) for family in families if isinstance(family, State))
        self._digests = Digests(family for family in families if isinstance(family, State))
        self._refused: dict[str, dict[str, int | None]] = {}  # by family and subject: the hash of what was refused
        self._unreadable: set[str] = set()  # their latest value does not decode here
        self._timer: asyncio.TimerHandle | None = None
        self._pause = GRACE_SECONDS
        self._found: list[str] = []  # of differing families: what came since they are read anew, and was news
        self.anew = Anew()
        self.differing: dict[str, Difference] = {}

    def take(self, change: Change) -> None:
        """The reader holds this now."""
        if change.message is None:
            is_news = self._digests.delete(change.subject)
        else:
            is_news = self._digests.put(change.subject, change.body)
        family = family_of(change.subject)
        if self._refused:
            self._refused.get(family, {}).pop(change.subject, None)
        if is_news and family in self.differing:
            self._found.append(change.subject)

    def refuse(self, change: Change) -> None:
        """The reader goes on with what it held of this before."""
        value = None if change.message is None else hash_of(change.subject, change.body)
        self._refused.setdefault(family_of(change.subject), {})[change.subject] = value

    @property
    def digests(self) -> dict[str, str]:
        """Of the families that are heard whole."""
        return {family: self._digests.of(family) for family in sorted(self._whole)}

    @property
    def problem(self) -> str:
        """What differs, on one line; "" when nothing is known to."""
        lines = [str(each) for _, each in sorted(self.differing.items())]
        if lines and self._unreadable:
            lines.append(f"unreadable here: {named(self._unreadable)}")
        return "; ".join(lines)

    def compare(self, batch: Batch) -> None:
        """What owners say as of this batch against what is held, all of the batch being taken."""
        self._unreadable.difference_update(change.subject for change in batch.changes)
        self._unreadable.update(batch.unreadable)
        for family in self._whole & batch.said.keys():
            said, held = batch.said[family], self._digests.of(family)
            known = self.differing.get(family)
            if said not in (held, self._digests.of(family, self._refused.get(family, {}))):
                if known is None:
                    count("digest_differences", family=family)
                    log.warning("what is held is not what its owner says", family=family, said=said, held=held)
                self.differing[family] = Difference(family, said, held, known.since if known else time.time())
            elif known is not None:
                del self.differing[family]
                found = [subject for subject in self._found if family_of(subject) == family]
                log.warning("held again as its owner says it", family=family, keys=named(found), was=known.held)
        if not self.differing:
            self._found.clear()
            self._pause = GRACE_SECONDS
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._pause, self._read_anew)

    def _read_anew(self) -> None:
        for owner in {family.partition(".")[0] for family in self.differing}:
            self.anew.ask(owner)
        self._pause = min(2 * self._pause, MOST_SECONDS)
        self._timer = asyncio.get_running_loop().call_later(self._pause, self._read_anew)


def named(subjects: Iterable[str]) -> str:
    """The first few of these, and how many more there are."""
    found = sorted(set(subjects))
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more
