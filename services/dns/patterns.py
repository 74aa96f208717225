"""Rules on DNS names. Pure.

A name is lower case and without its last dot; "" is the root. One with other characters than letters, digits, "-" and
"_" is None: only the pattern "*" allows it.

Source: Cilium's documentation, "DNS based": `*` is any part of one label, `**.` at the front one label or more, and "*"
alone is everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MOST_REMEMBERED = 10_000  # names


class Patterns:
    """Is a name one of these? It remembers what it was asked."""

    def __init__(self, names: Iterable[str] = (), patterns: Iterable[str] = ()) -> None:
        wanted = [each.lower().rstrip(".") for each in patterns]
        self._names = frozenset(each.lower().rstrip(".") for each in names)
        self._is_any = "*" in wanted
        texts = sorted({regex_of(each) for each in wanted if each != "*"})
        self._regex = re.compile("|".join(texts)) if texts else None
        self._known: dict[str, bool] = {}

    def has(self, name: str | None) -> bool:
        if self._is_any:
            return True
        if name is None:
            return False
        found = self._known.get(name)
        if found is None:
            found = name in self._names or (self._regex is not None and self._regex.fullmatch(name) is not None)
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            self._known[name] = found
        return found


def regex_of(pattern: str) -> str:
    """Of a pattern in lower case, which is not "*"."""
    front, rest = ("", pattern)
    if rest.startswith("**."):
        front, rest = r"(?:[-a-z0-9_]+\.)+", rest[3:]
    return f"(?:{front}{'[-a-z0-9_]*'.join(map(re.escape, rest.split('*')))})"
