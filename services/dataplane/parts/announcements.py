"""Addresses of Services that this node answers for on its devices' networks: the map `l2_answers`. Pure.

What it is granted, and for how long, it learns by asking l2announce (`question`, `answered`; keep/announce.py asks). An
entry bears the time at which the grant runs out, counted from before the question was sent, and the program compares.
What is heard on the bus decides nothing here: it says when to ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import Final

import re2

from bus.messages.l2announce import Announcement, Granted, HeldAddress, Renewal
from bus.subjects import ANNOUNCEMENT
from services.dataplane.part import Facts, Hears, Held, Maps, Part, Row, Shows
from services.dataplane.shapes.devices import DeviceInfo
from services.dataplane.shapes.layouts import L2AnswerEntry, L2AnswerKey
from services.dataplane.shapes.table import Table

SECOND_NS = 1_000_000_000


def boot_ns() -> int:
    """The clock that entries are compared with: it goes on while the node sleeps."""
    return clock_gettime_ns(CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class _Answer:
    """An address that the node may answer for."""

    until: int  # boot time, ns
    patterns: tuple[str, ...] | None  # of devices' names; (): all that lead out. None: those where the map has it


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of an answer to the node's question."""

    again: bool  # ask at once: whoever answers does not know yet what the kernel holds now
    waits: bool  # an address is to be this node's, and is not yet


def _rows(maps: Maps, now: int) -> Iterator[Row]:
    ns = boot_ns()
    for key, value in maps["l2_answers"].items():
        k, v = L2AnswerKey.unpack(key), L2AnswerEntry.unpack(value)
        yield {
            "address": k.address,
            "device_index": k.device,
            "mac": v.mac.hex(":"),
            "answers": v.until > ns,
            "expires_seconds": round((v.until - ns) / SECOND_NS, 1),
        }


class Announcements(Part):
    """See the module.

    Args:
        node: its name.
        is_on: the node announces; else nothing is heard, and what the map holds goes.
    """

    def __init__(self, facts: Facts, node: str, *, is_on: bool) -> None:
        super().__init__()
        self.table = Table("l2_answers", after=("services",))
        self.tables = (self.table,)
        self.shows = (Shows("l2", "Addresses of Services that the node answers for (ARP, NDP).", _rows),)
        if is_on:
            self.hears = (Hears(ANNOUNCEMENT, self._put, self._delete),)
        self._node = node
        self.is_on = is_on
        self._devices = facts.uplinks
        self._changed_devices: Final[set[int]] = facts.uplinks.follow()
        self._answers: dict[str, _Answer] = {}
        self._keys: dict[str, set[bytes]] = {}  # of the table, by address
        self._where: dict[str, set[int]] = {}  # devices where the map had an address before anything was heard
        self._stale: Final[set[str]] = set()
        self._assigned: set[str] = set()  # addresses that are to be this node's, as heard
        self._number = 0  # of the last question
        self._term = ""
        self.quiet: set[str] = set()
        """Addresses that are not to be said unasked."""
        self.has_news = False
        """Something was heard because of which it is to ask."""

    def adopt(self, held: Held) -> None:
        if not self.is_on:
            return
        for key, value in held("l2_answers").items():
            k, v = L2AnswerKey.unpack(key), L2AnswerEntry.unpack(value)
            self._answers[k.address] = _Answer(v.until, None)
            self._where.setdefault(k.address, set()).add(k.device)
            self._stale.add(k.address)

    def _put(self, message: Announcement) -> None:
        if message.node == self._node:
            self.has_news |= message.address not in self._assigned
            self._assigned.add(message.address)
        else:
            self._delete(message.address)

    def _delete(self, address: str) -> None:
        self.has_news |= address in self._assigned
        self._assigned.discard(address)

    # Asking

    def question(self, process: str, kernel: Mapping[bytes, bytes], now: int) -> Renewal:
        """The node's next one. `kernel`: what the map holds. Answers to earlier ones must not be used from now on."""
        self._number += 1
        self.has_news = False
        return Renewal(
            node=self._node,
            process=process,
            number=self._number,
            term=self._term,
            holds=sorted({L2AnswerKey.unpack(key).address for key, value in kernel.items() if _until(value) > now}),
        )

    def answered(self, question: Renewal, answer: Granted, sent: int, now: int) -> Outcome:
        """`sent`: boot time at which the question was not yet on its way. The caller settles, and writes the table."""
        self.expire(now)
        if not answer.term or question.number != self._number:
            return Outcome(again=False, waits=True)
        until = sent + int(answer.seconds * SECOND_NS)
        for each in answer.addresses:
            self._take(each, until, now)
        gone = self._answers.keys() - {each.address for each in answer.addresses}
        for address in gone:
            self._set(address, None)
        self.quiet = {each.address for each in answer.addresses if not each.tell}
        is_new_term = question.term != answer.term
        self._term = answer.term
        return Outcome(again=bool(gone) or is_new_term, waits=not all(each.granted for each in answer.addresses))

    def _take(self, each: HeldAddress, until: int, now: int) -> None:
        known = self._answers.get(each.address)
        if each.granted and until > now:
            self._set(each.address, _Answer(until, tuple(each.interfaces)))
        elif known is not None:
            self._set(each.address, replace(known, patterns=tuple(each.interfaces)))

    def expire(self, now: int) -> None:
        """What has run out is of no use any more. The caller settles, and writes the table."""
        for address, answer in list(self._answers.items()):
            if answer.until <= now:
                self._set(address, None)

    def _set(self, address: str, answer: _Answer | None) -> None:
        if self._answers.get(address) == answer:
            return
        if answer is None:
            del self._answers[address]
        else:
            self._answers[address] = answer
        self._stale.add(address)

    # What follows

    def settle(self) -> None:
        if self._changed_devices:
            self._changed_devices.clear()
            self._stale.update(self._answers)
        self.settle_each(self._stale, "the announcement of", self._settle)

    def _settle(self, address: str) -> None:
        answer = self._answers.get(address)
        wanted: dict[bytes, bytes] = {}
        if answer is not None:
            for each in self._devices.values():
                if self._is_meant(each, address, answer):
                    mac = bytes.fromhex(each.mac.replace(":", ""))
                    wanted[L2AnswerKey(each.index, address).pack()] = L2AnswerEntry(answer.until, mac).pack()
        else:
            self._where.pop(address, None)
        for key in self._keys.pop(address, set()) - wanted.keys():
            self.table.delete(key)
        for key, value in wanted.items():
            self.table.put(key, value)
        if wanted:
            self._keys[address] = set(wanted)

    def _is_meant(self, device: DeviceInfo, address: str, answer: _Answer) -> bool:
        if answer.patterns is None:
            return device.index in self._where.get(address, ())
        return not answer.patterns or any(_found(pattern, device.name) for pattern in answer.patterns)


def _until(value: bytes) -> int:
    return L2AnswerEntry.unpack(value).until


def _found(pattern: str, name: str) -> bool:
    try:
        return re2.search(pattern, name) is not None
    except re2.error:  # of a later version: it is for no device that is known here
        return False
