"""Which kind is said before which, and which is taken away before which: computed from what their rows say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from services.resources.kind import Kind


class NoOrder(ValueError):
    """The rows cannot all have what they say; the text says which."""


def said(kinds: Iterable[Kind]) -> tuple[str, ...]:
    """Names of kinds, what others stand on first. Raises: NoOrder."""
    return _sorted(_stands_on(kinds))


def taken(kinds: Sequence[Kind]) -> tuple[str, ...]:
    """Nouns of families in the order of taking away: makers before what they make, else the reverse of saying.

    Raises: NoOrder.
    """
    by_name = {each.name: each for each in kinds}
    goes_after: dict[str, set[str]] = {each.name: set() for each in kinds}
    for name, stands_on in _stands_on(kinds).items():
        for other in stands_on:
            if name in by_name[other].makes:
                goes_after[name].add(other)
            else:
                goes_after[other].add(name)
    families = (family for name in _sorted(goes_after) for family in (by_name[name].state, *by_name[name].holds))
    return tuple(dict.fromkeys(family.noun for family in families))


def _stands_on(kinds: Iterable[Kind]) -> dict[str, set[str]]:
    """By kind: those that are said before it."""
    rows = list(kinds)
    found = {each.name: set(each.after) for each in rows}
    for row in rows:
        if row.is_namespaced:
            found[row.name].add("Namespace")
        for other in (*row.after, *row.before, *row.makes):
            if other not in found:
                raise NoOrder(f"{row.name} names {other}, and there is no such kind")
        for other in (*row.before, *row.makes):
            found[other].add(row.name)
        for maker in rows:
            if set(maker.makes) & set(row.before):
                found[maker.name].add(row.name)
    return found


def _sorted(predecessors: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    try:
        return tuple(TopologicalSorter(predecessors).static_order())
    except CycleError as error:
        raise NoOrder(f"kinds stand on each other: {', '.join(error.args[1])}") from error
