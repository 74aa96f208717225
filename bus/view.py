"""What one reader knows of one log, and what each thing that it hears changes. Pure: no I/O, no clock.

The reader holds no values, only each key's sequence. That is enough to tell a put from a repetition, to find what a
full reading no longer holds, and to notice a gap.

"There is none" and "nobody told me" are two things. A log that is another than the one that was read, or that went
back, or lost messages, may hold too little or what is long outdated. Nothing of it is told, and nothing is taken for
gone, until whoever writes it has vouched for it anew (bus/messages/log.py); until then the reader keeps what it knew.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import structs

from bus.codec import Undecodable, decode
from bus.messages.log import Vouched
from bus.subjects import is_vouch
from bus.wire import UNREAD, Delta, Entry, Interest

HELD_MOST = 2048  # values of one of many writers that a full reading keeps: bus/bounds.py lets fewer count


class View:
    """Position in one log, and the sequence of every key that the reader has been told of.

    Args:
        interest: the keys to be told of.
        vouches: patterns of the words by which the log is vouched for (bus/subjects.py: VOUCHED).
        by_node: the log has many writers, each of whom vouches for its own keys; else one owner vouches for all.
        patient: the first reading, too, waits until the log is vouched for. False: what it finds is told as it is.
        believes: it is the owner's own view: a loss is told as it is, for the owner to mend.
    """

    def __init__(
        self,
        interest: Interest,
        vouches: Iterable[str] = (),
        *,
        by_node: bool = False,
        patient: bool = False,
        believes: bool = False,
    ) -> None:
        self.interest = interest
        self.reads = Interest([*interest.patterns, *vouches])  # what it has to be given
        self.log = ""  # which log `position` counts in; "" before the first reading
        self.position = 0  # everything up to this sequence has been heard
        self.revision: dict[str, int] = {}  # what the owner said that its log includes; empty: never said
        self._by_node = by_node
        self._patient = patient
        self._believes = believes
        self._sequences: dict[str, int] = {}
        self._behind = 0
        self._is_read = False  # a full reading has come to its end
        self._held: dict[str, dict[str, Entry]] = {}  # by writer: what was read and is not told yet
        self._vouched: dict[str, int] = {}  # by writer: the highest number seen
        self._confirmed: dict[str, int] = {}  # the same, when the log was last known to be whole
        self._doubted = False  # the reading that has begun is to show whose keys are missing
        self._ended: set[str] = set()  # keys of which it has shown the end
        self._owed: dict[str, int] = {}  # by writer whose word is waited for: the number that it has to exceed
        self._least = 0  # the number of the owner's word, at the least, as of before the first reading

    @property
    def complete(self) -> bool:
        """A full reading has been finished, and what it found was told."""
        return self._is_read and (self._by_node or not self._owed)

    @property
    def waits(self) -> bool:
        """A full reading has been finished, and nobody has vouched for what it found."""
        return self._is_read and bool(self._owed)

    @property
    def waited_for(self) -> frozenset[str]:
        """Writers whose keys are held back until they vouch for them."""
        return frozenset(self._owed) if self._is_read else frozenset()

    @property
    def included(self) -> int:
        """Up to this sequence of the log everything was told; 0 while what was read of another log is held back."""
        return 0 if self._owed and not self._by_node else self.position

    def since(self, log: str) -> int:
        """From where a reader of `log` may ask for the rest; 0: it needs everything."""
        return self.position if self.complete and log == self.log else 0

    def lost(self, first: int) -> bool:
        """Whether a log that begins at sequence `first` has lost a key that the reader was told of."""
        return any(0 <= sequence < first for sequence in self._sequences.values())

    @property
    def few_keys(self) -> str:
        """The pattern of one node's keys in the log of many, where no more is read: they can be asked for by name."""
        (pattern, *more) = self.interest.patterns
        return pattern if self._by_node and not more and pattern.count(".") > 3 else ""

    def misses(self, keys: frozenset[str], last: int) -> bool:
        """Whether a log that had these keys, up to sequence `last`, had lost one that the reader was told of."""
        return any(0 <= sequence <= last and subject not in keys for subject, sequence in self._sequences.items())

    def probe(self) -> tuple[str, int]:
        """The key that was heard last, and its sequence: what the log must have, or something later. ("", 0): none."""
        return max(self._sequences.items(), key=lambda item: item[1], default=("", 0))

    @property
    def is_first(self) -> bool:
        """Nothing was read yet, and the first reading counts when it is vouched for."""
        return self._patient and not self.log

    def expect(self, number: int) -> None:
        """The owner has vouched with this number already: what a first reading finds with a lower one is older."""
        self._least = max(number, self._least)

    def retell(self) -> None:
        """The next full reading tells every value, known or not."""
        self._sequences = dict.fromkeys(self._sequences, -1)

    def confirm(self) -> None:
        """The log is whole now. What its writer says from here on may come after a loss that is noticed later."""
        self._confirmed |= {writer: number for writer, number in self._vouched.items() if writer not in self._owed}

    # -- from the owner

    def delta(self, delta: Delta) -> list[Entry] | None:
        """What the delta changes; None when something is missing and the owner must be asked again."""
        if delta.log != self.log or delta.previous > self.position:
            return None
        if delta.last < self.position:
            if not delta.entries:
                self._behind += 1  # a heartbeat; one may be late, but an owner that stays behind us has lost something
            return None if self._behind > 1 else []
        self._behind = 0
        news = self._after(self.position, delta.entries)
        self.position = delta.last
        self.revision = delta.revision or self.revision
        self.confirm()
        return news

    def snapshot(
        self, log: str, since: int, last: int, revision: dict[str, int], entries: Iterable[Entry]
    ) -> list[Entry] | None:
        """What the owner's snapshot changes; an owner hands out only what it vouches for.

        None: it lies behind what we have heard; only the log itself can tell.
        """
        if log == self.log and last < self.position:
            return None
        if since:
            news = self._after(self.position, entries)
        else:
            self.begin(log)
            self._owed.clear()
            for entry in entries:
                self.record(entry)
            news = self.finish(last)
        self.position = last
        self._behind = 0
        self.revision = revision or self.revision
        self.confirm()
        return news

    # -- from the log itself

    def begin(self, log: str, *, went_back: bool = False, has_lost: bool = False) -> None:
        """A full reading of `log` begins. In another log, or one that went back, old sequences mean nothing.

        `has_lost`: keys are missing in a log that has otherwise gone on. Of many writers those whose keys are missing
        are to vouch for them anew, and they alone: one who takes keys of his own away costs the others nothing.
        """
        self._doubted = has_lost and self._by_node and log == self.log and not went_back
        self._ended = set()
        went_back = went_back or (has_lost and not self._doubted)
        if self.log and (log != self.log or went_back):
            writers = {self._writer(subject) for subject in self._sequences} if self._by_node else {""}
            if not self._believes:
                self._wait_for(writers)
            self._sequences = dict.fromkeys(self._sequences, -1)
            self.revision = {}
        elif not self.log and self._patient:
            self._owed = {"": max(self._least - 1, 0)}
        if log != self.log or went_back:
            self.position = 0
        self.log = log
        self._is_read = False
        self._held = {}

    def record(self, entry: Entry) -> list[Entry]:
        """One message of the log, in order. Returns what is news to the reader."""
        self.position = max(self.position, entry.sequence)
        writer = self._writer(entry.subject)
        if is_vouch(entry.subject) and not self._believes:
            self._hear_vouch(writer, entry)
            return self._tell([writer]) if self._is_read and writer in self._held else []
        if not self.interest.has(entry.subject):
            return []
        held = self._held.get(writer) if self._is_read else self._held.setdefault(writer, {})
        if held is None:
            return self._news(entry)
        if self._doubted and entry.sequence < self._sequences.get(entry.subject, 0):
            self._doubt_all()
        held.pop(entry.subject, None)
        if entry.body is None:
            self._ended.add(entry.subject)
        else:
            is_too_much = self._by_node and len(held) >= HELD_MOST
            held[entry.subject] = structs.replace(entry, body=UNREAD) if is_too_much else entry
        return []

    def finish(self, position: int) -> list[Entry]:
        """The full reading is done up to `position`: what it did not show is gone, once the log is vouched for."""
        self._is_read = True
        self.position = max(self.position, position)
        for subject in self._sequences:
            self._held.setdefault(self._writer(subject), {})
        if self._doubted:
            missing = {
                self._writer(subject)
                for subject in self._sequences
                if subject not in self._ended and subject not in self._held[self._writer(subject)]
            }
            self._owe(missing)
        self._doubted = False
        for writer in self._owed:
            self._held.setdefault(writer, {})
        return self._tell(list(self._held))

    def _doubt_all(self) -> None:
        """An older value of a key is there: the log went back, and has grown beyond where it was."""
        self._doubted = False
        self._owe({self._writer(subject) for subject in self._sequences})

    def _wait_for(self, writers: Iterable[str]) -> None:
        """For a higher number than any that was known to be of a whole log, or was waited for already."""
        for each in writers:
            self._owed[each] = max(self._owed.get(each, 0), self._confirmed.get(each, 0), self._least - 1)

    def _owe(self, writers: set[str]) -> None:
        """Their words are waited for, but for who has vouched since the log was last known to be whole."""
        waited = {each for each in writers if self._vouched.get(each, 0) <= self._confirmed.get(each, 0)}
        self._wait_for(waited)
        for subject in self._sequences:
            if self._writer(subject) in writers:
                self._sequences[subject] = -1

    def _tell(self, writers: Iterable[str]) -> list[Entry]:
        """What the full reading found of those who have vouched, and what it did not find."""
        found = {writer: self._held.pop(writer) for writer in writers if writer not in self._owed}
        news = [change for held in found.values() for entry in held.values() for change in self._news(entry)]
        gone = [
            subject
            for subject in self._sequences
            if (held := found.get(self._writer(subject))) is not None and subject not in held
        ]
        for subject in gone:
            del self._sequences[subject]
        news.sort(key=lambda entry: entry.sequence)
        return news + [Entry(self.position, subject, None) for subject in sorted(gone)]

    def _hear_vouch(self, writer: str, entry: Entry) -> None:
        try:
            number = decode(entry.subject, entry.body, Vouched).number if entry.body is not None else 0
        except Undecodable:
            return
        self._vouched[writer] = max(number, self._vouched.get(writer, 0))
        if number > self._owed.get(writer, number):
            del self._owed[writer]

    def _writer(self, subject: str) -> str:
        """Who vouches for it."""
        return subject.split(".", 4)[3] if self._by_node else ""

    def _after(self, position: int, entries: Iterable[Entry]) -> list[Entry]:
        """The news among what came after `position`; a repetition of older entries could revive a deleted key."""
        return [change for entry in entries if entry.sequence > position for change in self._news(entry)]

    def _news(self, entry: Entry) -> list[Entry]:
        if is_vouch(entry.subject) and not self._believes:
            self._hear_vouch(self._writer(entry.subject), entry)
            return []
        if not self.interest.has(entry.subject):
            return []
        known = self._sequences.get(entry.subject)
        if known is not None and entry.sequence <= known:
            return []
        if entry.body is not None:
            self._sequences[entry.subject] = entry.sequence
            return [entry]
        if known is None:
            return [entry] if self._believes else []  # the owner counts what the log holds, deletions too
        del self._sequences[entry.subject]
        return [entry]
