"""What one reader knows of one log, and what each thing that it hears changes. Pure: no I/O, no clock.

The reader holds no values, only each key's sequence. That is enough to tell a put from a repetition, to find what a
full reading no longer holds, and to notice a gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bus.wire import Delta, Entry, Interest


class View:
    """Position in one log, and the sequence of every key that the reader has been told of."""

    def __init__(self, interest: Interest) -> None:
        self.interest = interest
        self.log = ""  # which log `position` counts in; "" before the first reading
        self.position = 0  # everything up to this sequence has been heard
        self.complete = False  # a full reading has been finished at least once
        self.revision: dict[str, int] = {}  # what the owner said that its log includes; empty: never said
        self._sequences: dict[str, int] = {}
        self._behind = 0
        self._unseen: set[str] | None = None  # keys that the full reading under way has not shown yet

    def since(self, log: str) -> int:
        """From where a reader of `log` may ask for the rest; 0: it needs everything."""
        return self.position if self.complete and log == self.log else 0

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
        return news

    def snapshot(
        self, log: str, since: int, last: int, revision: dict[str, int], entries: Iterable[Entry]
    ) -> list[Entry] | None:
        """What the owner's snapshot changes. None: it lies behind what we have heard; only the log itself can tell."""
        if log == self.log and last < self.position:
            return None
        if since:
            news = self._after(self.position, entries)
        else:
            self.begin(log)
            news = [change for entry in entries if (change := self.record(entry))]
            news += self.finish(last)
        self.position = last
        self._behind = 0
        self.revision = revision or self.revision
        return news

    # -- from the log itself

    def begin(self, log: str, *, went_back: bool = False) -> None:
        """A full reading of `log` begins. In another log, or one that went back, old sequences mean nothing."""
        if log != self.log or went_back:
            self._sequences = dict.fromkeys(self._sequences, -1)
            self.position = 0
            self.revision = {}
        self.log = log
        self.complete = False
        self._unseen = set(self._sequences)

    def record(self, entry: Entry) -> Entry | None:
        """One message of the log, in order. Returns it when it is news to the reader."""
        if self._unseen is not None and entry.body is not None:
            self._unseen.discard(entry.subject)
        news = self._news(entry)
        self.position = max(self.position, entry.sequence)
        return news

    def finish(self, position: int) -> list[Entry]:
        """The full reading is done up to `position`: what it did not show is gone."""
        gone = [Entry(position, subject, None) for subject in sorted(self._unseen or ())]
        for entry in gone:
            self._sequences.pop(entry.subject, None)
        self._unseen = None
        self.complete = True
        self.position = max(self.position, position)
        return gone

    def _after(self, position: int, entries: Iterable[Entry]) -> list[Entry]:
        """The news among what came after `position`; a repetition of older entries could revive a deleted key."""
        return [change for entry in entries if entry.sequence > position and (change := self._news(entry))]

    def _news(self, entry: Entry) -> Entry | None:
        if not self.interest.has(entry.subject):
            return None
        known = self._sequences.get(entry.subject)
        if known is not None and entry.sequence <= known:
            return None
        if entry.body is not None:
            self._sequences[entry.subject] = entry.sequence
            return entry
        if known is None:
            return None
        del self._sequences[entry.subject]
        if self._unseen is not None:
            self._unseen.discard(entry.subject)
        return entry


def latest(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Per key the last of `entries`, in the order of those."""
    kept: dict[str, Entry] = {}
    for entry in entries:
        kept.pop(entry.subject, None)
        kept[entry.subject] = entry
    return kept
