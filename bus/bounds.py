"""How much one writer of a log of many writers may say before the others' readers stop listening. Pure.

Each node writes its own keys, and everybody reads them: without a bound one node could keep all readers busy, or fill
their memory. What is over the bound is that node's own loss: its further keys do not count, its further changes are
told later, each key's latest only. Both are told, and show in the health of who reads, until it is right again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from urllib.parse import unquote

from bus.telemetry import count, logger
from bus.wire import UNREAD, Entry

log = logger(__name__)

KEYS = 1024  # of one writer; a node has one for each pod, and a kubelet takes 110 unless it is told otherwise
CHANGES = 2 * KEYS  # that may come at once: all it has, and the end of all it had
CHANGES_PER_SECOND = 100.0  # afterwards


@dataclass
class Writer:
    """What one of them has said. A key counts from its first value until its end was told."""

    at: float  # when `allowed` was true
    allowed: float = field(default_factory=lambda: float(CHANGES))
    keys: dict[str, bool] = field(default_factory=dict)  # those that count: has the reader been told of it?
    held: dict[str, Entry] = field(default_factory=dict)  # changes of these over the rate, oldest key first
    over: dict[str, None] = field(default_factory=dict)  # keys beyond the bound, in their order

    def pays(self, now: float) -> bool:
        """One more change, if the rate allows it."""
        self.allowed = min(float(CHANGES), self.allowed + (now - self.at) * CHANGES_PER_SECOND)
        self.at = now
        if self.allowed < 1:
            return False
        self.allowed -= 1
        return True

    def readable(self) -> list[str]:
        """Of what is over: what counts already, and so many others as there is room for."""
        known = [subject for subject in self.over if subject in self.keys]
        return known + list(islice((each for each in self.over if each not in self.keys), KEYS - len(self.keys)))


class Bounds:
    """All writers of one log. Memory: a name for each key, and at most KEYS values of one writer."""

    def __init__(self) -> None:
        self._writers: dict[str, Writer] = {}
        self._problems: dict[str, str] = {}

    def admit(self, entries: Iterable[Entry], now: float) -> list[Entry]:
        """Of what was read, what is to be told now. `now`: seconds, of a clock that only goes forward."""
        told: list[Entry] = []
        concerned = {}
        for entry in entries:
            name = _name(entry.subject)
            concerned[name] = writer = self._writers.setdefault(name, Writer(now))
            told += self._hear(name, writer, entry, now)
        self._judge(concerned)
        return told

    def release(self, now: float) -> list[Entry]:
        """What was held back and may be told now."""
        told: list[Entry] = []
        concerned = {name: writer for name, writer in self._writers.items() if writer.held}
        for writer in concerned.values():
            while writer.held and writer.pays(now):
                told.append(self._tell(writer, writer.held.pop(next(iter(writer.held)))))
        self._judge(concerned)
        return told

    def room(self) -> list[str]:
        """Keys that were over the bound, and for which there is room now: to be read again, and admitted."""
        writers = (writer for writer in self._writers.values() if writer.over)
        return [subject for writer in writers for subject in writer.readable()]

    def is_over(self, subject: str) -> bool:
        """It is there, and does not count."""
        writer = self._writers.get(_name(subject))
        return writer is not None and subject in writer.over

    @property
    def problems(self) -> Mapping[str, str]:
        """By node, in what it is over its bounds."""
        return self._problems

    def _hear(self, name: str, writer: Writer, entry: Entry, now: float) -> list[Entry]:
        subject = entry.subject
        if entry.body == UNREAD:
            writer.over[subject] = None
            return []
        if subject not in writer.keys:
            if entry.body is None:
                writer.over.pop(subject, None)
                return []
            if len(writer.keys) >= KEYS:
                if not writer.over:
                    count("bus_writer_too_many", writer=name)
                    log.warning("a node has more keys than it may: the rest does not count", node=name, most=KEYS)
                writer.over[subject] = None
                return []
            writer.keys[subject] = False
        writer.over.pop(subject, None)
        if entry.body is None and not writer.keys[subject]:  # it came and went, and nobody was told
            del writer.keys[subject], writer.held[subject]
            return []
        if not writer.held and writer.pays(now):
            return [self._tell(writer, entry)]
        if not writer.held:
            count("bus_writer_too_fast", writer=name)
            log.warning("a node says more than it may: the rest is heard later", node=name)
        writer.held[subject] = entry  # in the place of an older one: a key that changes always is told some time, too
        return []

    def _tell(self, writer: Writer, entry: Entry) -> Entry:
        if entry.body is not None:
            writer.keys[entry.subject] = True
        else:
            del writer.keys[entry.subject]
        return entry

    def _judge(self, writers: Mapping[str, Writer]) -> None:
        for name, writer in writers.items():
            node = called(name)
            words = []
            if writer.over:
                words.append(f"{len(writer.over)} keys beyond {KEYS}, which do not count")
            if writer.held:
                words.append(f"{len(writer.held)} changes beyond {CHANGES_PER_SECOND:.0f} a second wait")
            if words:
                self._problems[node] = "; ".join(words)
            else:
                self._problems.pop(node, None)


def called(writer: str) -> str:
    """A writer's name, for people."""
    return unquote(writer, errors="replace")


def _name(subject: str) -> str:
    """Of the writer of state.<owner>.<noun>.<writer>..., as subjects spell it."""
    return subject.split(".", 4)[3]
