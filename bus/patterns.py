"""Rules on DNS names. Pure.

A name is lower case and without its last dot; "" is the root. One with other characters than letters, digits, "-" and
"_" is None: only the pattern "*" allows it.

Source: Cilium's documentation, "DNS based": `*` is any part of one label, `**.` at the front one label or more, and "*"
alone is everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

MOST_REMEMBERED = 10_000  # names


class Patterns:
    """Is a name one of these? It remembers what it was asked. One look takes time by the lengths of name and patterns,
    whatever they are: names are pods' to choose."""

    def __init__(self, names: Iterable[str] = (), patterns: Iterable[str] = ()) -> None:
        wanted = {each.lower().rstrip(".") for each in patterns}
        self._names = frozenset(each.lower().rstrip(".") for each in names)
        self._is_any = "*" in wanted
        self._patterns = [_Pattern.of(each) for each in sorted(wanted - {"*"})]
        self._known: dict[str, bool] = {}

    def has(self, name: str | None) -> bool:
        if self._is_any:
            return True
        if name is None:
            return False
        found = self._known.get(name)
        if found is None:
            labels = name.split(".")
            found = name in self._names or any(each.has(labels) for each in self._patterns)
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            self._known[name] = found
        return found


class _Pattern(NamedTuple):
    is_deep: bool  # any labels, one at least, go before
    labels: tuple[tuple[str, ...], ...]  # each as what stands between its "*"

    @staticmethod
    def of(text: str) -> _Pattern:
        is_deep = text.startswith("**.")
        rest = text[3:] if is_deep else text
        return _Pattern(is_deep, tuple(tuple(label.split("*")) for label in rest.split(".")))

    def has(self, labels: list[str]) -> bool:
        before = len(labels) - len(self.labels)
        if before < 1 if self.is_deep else before != 0:
            return False
        return all(map(_fits, labels[before:], self.labels))


def _fits(label: str, pieces: tuple[str, ...]) -> bool:
    """The pieces stand in it one after another, the first at its beginning and the last at its end."""
    if len(pieces) == 1:
        return label == pieces[0]
    first, *middle, last = pieces
    end = len(label) - len(last)
    at = len(first)
    if at > end or not label.startswith(first) or not label.endswith(last):
        return False
    for piece in middle:
        found = label.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True
