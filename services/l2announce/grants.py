"""Who may answer for an address now. Pure; times are seconds of the caller's monotonic clock.

The rules, by which no two nodes ever answer for one address:

1. A node's entry runs out `seconds` after the node has sent the question whose answer granted it, on the node's clock.
   It uses no answer but that to its latest question.
2. An address is granted to a node only if each other one that it was granted to has since sent a question that does not
   list it among what its kernel holds, or was granted it `patience` ago. `patience` is `seconds` and a margin for
   clocks that run at different speeds.
3. What was granted before this term began is not known. So for `patience` from its beginning an address is granted
   only to the node that the log names, and only if that node says that it holds it, in a question which it sent after
   this term had begun: the question bears the term's name, which an answer of this term has told it. While a node
   holds an address no other does, and none but this term can have granted it to another since.
4. A question counts if it is the latest that came from its node: they bear a number, and the name of their process.

A grant of an earlier term that is still on its way does no harm: it was decided while that term's lease was held, so
the question was sent before this term began, and what it grants has run out by rule 3's `patience`. Where leases were
longer then, that counts: the log says how long they may be, before any is granted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from bus.messages.l2announce import Granted, HeldAddress, Renewal

MARGIN = 0.05  # of a lease: how far two clocks may drift apart in its length; one in a thousand would be a broken one
MOST_PROCESSES = 1000  # of a node that are remembered as over


@dataclass(slots=True)
class _Seen:
    """What is known of a node by its questions."""

    process: str
    number: int
    at: float
    over: dict[str, None] = field(default_factory=dict)  # its processes before, the oldest first


class Grants:
    """One term: as long as one process leads.

    Args:
        seconds: how long a grant lasts.
        term: a name that no other term has.
        now: the term begins.
        longest: that an earlier term may have granted.
    """

    def __init__(self, seconds: float, term: str, now: float, longest: float = 0.0) -> None:
        self.term = term
        self._seconds = seconds
        self._patience = seconds * (1 + MARGIN)
        self._settled_at = now + max(seconds, longest) * (1 + MARGIN)
        self._seen: dict[str, _Seen] = {}
        self._granted: dict[str, dict[str, float]] = {}  # by address and node: when it was granted last
        self._of_node: dict[str, set[str]] = {}  # addresses in `_granted`, by node

    def renew(
        self, question: Renewal, assigned: Mapping[str, HeldAddress], now: float, *, may_grant: bool = True
    ) -> Granted | None:
        """The answer to a node's question; None: it is not its latest, and gets none.

        Args:
            assigned: the addresses that the log says the node announces, with how; not granted yet.
            may_grant: the log says how long leases may be.
        """
        if not self._is_latest(question, now):
            return None
        holds = set(question.holds)
        for address in self._of_node.get(question.node, set()) - holds:
            self._forget(address, question.node)
        knows_us = may_grant and question.term == self.term
        addresses = [
            replace(each, granted=knows_us and self._may_have(address, question.node, address in holds, now))
            for address, each in sorted(assigned.items())
        ]
        for each in addresses:
            if each.granted:
                self._granted.setdefault(each.address, {})[question.node] = now
                self._of_node.setdefault(question.node, set()).add(each.address)
        return Granted(term=self.term, seconds=self._seconds, addresses=addresses)

    def live(self, now: float) -> frozenset[str]:
        """Nodes that may still hold what they were granted; of others it has run out."""
        return frozenset(node for node, seen in self._seen.items() if now < seen.at + self._patience)

    def is_settled(self, now: float) -> bool:
        """Whatever earlier terms have granted has run out."""
        return now >= self._settled_at

    def changes_at(self, now: float) -> float:
        """When `live` or `is_settled` will be another next, if nobody asks."""
        ends = [each for seen in self._seen.values() if (each := seen.at + self._patience) > now]
        return min([*ends, self._settled_at if now < self._settled_at else math.inf])

    def forget(self, nodes: Iterable[str]) -> None:
        """These are nodes no more. What they were granted still counts."""
        for node in nodes:
            self._seen.pop(node, None)

    def _is_latest(self, question: Renewal, now: float) -> bool:
        seen = self._seen.get(question.node)
        if seen is None:
            self._seen[question.node] = _Seen(question.process, question.number, now)
            return True
        if question.process in seen.over or (question.process == seen.process and question.number <= seen.number):
            return False
        if question.process != seen.process:
            seen.over[seen.process] = None
            if len(seen.over) > MOST_PROCESSES:
                del seen.over[next(iter(seen.over))]
        seen.process, seen.number, seen.at = question.process, question.number, now
        return True

    def _may_have(self, address: str, node: str, holds: bool, now: float) -> bool:
        granted = self._granted.get(address, {})
        for other in [each for each, at in granted.items() if each != node and at + self._patience <= now]:
            self._forget(address, other)
        if granted.keys() - {node}:
            return False
        return self.is_settled(now) or node in granted or holds

    def _forget(self, address: str, node: str) -> None:
        granted = self._granted.get(address, {})
        granted.pop(node, None)
        if not granted:
            self._granted.pop(address, None)
        self._of_node[node].discard(address)
