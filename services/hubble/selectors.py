"""Kubernetes label selectors as clients write them: "app=web,tier in (a, b),!old". Pure.

A key without a source ("app") is of any source: it is met by "k8s:app" as by "reserved:app". So are keys of "any:".
`=`, `==`, `in`: the label is there and has one of the values. `!=`, `notin`: also where it is not there. A key alone:
it is there; with `!` before it: it is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SELECTOR_BYTES = 4096

_KEY = r"(?:[A-Za-z0-9_-]+:)?[A-Za-z0-9](?:[A-Za-z0-9_./-]*[A-Za-z0-9])?"
_VALUE = r"[A-Za-z0-9_.:/-]*"
_TERM = re.compile(
    rf"\s*(?:(?P<absent>!)\s*(?P<gone>{_KEY})"
    rf"|(?P<key>{_KEY})(?:\s*(?P<equal>==|=|!=)\s*(?P<value>{_VALUE})"
    rf"|\s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?)\s*",
    re.ASCII,
)


class BadSelector(Exception):
    """It cannot be read; the text says where."""


@dataclass(frozen=True, slots=True)
class Term:
    key: str
    values: frozenset[str] | None  # None: whatever it is
    is_negated: bool

    def holds(self, labels: Iterable[str]) -> bool:
        return self._is_there(labels) != self.is_negated

    def _is_there(self, labels: Iterable[str]) -> bool:
        for label in labels:
            key, _, value = label.partition("=")
            source, colon, name = key.partition(":")
            mine, _, wanted = self.key.partition(":")
            is_it = (name if colon else source) == wanted and mine in ("any", source if colon else "")
            if is_it and (self.values is None or value in self.values):
                return True
        return False


@dataclass(frozen=True, slots=True)
class Selector:
    terms: tuple[Term, ...]

    def selects(self, labels: Sequence[str]) -> bool:
        return all(term.holds(labels) for term in self.terms)


def selector(text: str) -> Selector:
    """Raises: BadSelector."""
    if len(text) > SELECTOR_BYTES:
        raise BadSelector(f"a selector has {SELECTOR_BYTES} letters at most")
    terms: list[Term] = []
    at = 0
    while at < len(text) or not terms:
        found = _TERM.match(text, at)
        if found is None:
            raise BadSelector(f"{text!r}: at letter {at + 1} a label is expected")
        terms.append(_term(found))
        at = found.end()
        if at < len(text):
            if text[at] != ",":
                raise BadSelector(f"{text!r}: at letter {at + 1} a comma is expected, not {text[at]!r}")
            at += 1
            if not text[at:].strip():
                raise BadSelector(f"{text!r}: nothing stands after the last comma")
    return Selector(tuple(terms))


def _term(found: re.Match[str]) -> Term:
    key = found["gone"] or found["key"]
    key = key if ":" in key else f"any:{key}"
    if found["absent"]:
        return Term(key, None, True)
    if found["equal"]:
        return Term(key, frozenset((found["value"],)), found["equal"] == "!=")
    if found["set"]:
        values = frozenset(each.strip() for each in found["values"].split(","))
        return Term(key, values, found["set"] == "notin")
    return Term(key, None, False)
