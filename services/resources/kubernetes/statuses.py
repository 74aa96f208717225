"""(an object, what the bus says of it) -> what is to be written into its status. Pure.

A status is compared with what it should be, field by field, so what others write beside it stays, and what was written
leads to no other write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from bus.messages import Message
from bus.subjects import State, state_of
from bus.texts import shortened, visible
from services.resources.kind import Kind
from services.resources.kubernetes.reading import Seen
from services.resources.manifests.meta import Key
from services.resources.registry import KINDS

VALID = "Valid"
LONGEST_MESSAGE = 1000  # characters; an API server takes 1024 in an Event, and 32768 in a condition

M = TypeVar("M", bound=Message)

TELLS: Mapping[str, tuple[Kind, ...]] = {
    family.head: tuple(kind for kind in KINDS if kind.told is not None and family in kind.told.families)
    for row in KINDS
    if row.told is not None
    for family in row.told.families
}
"""By family: the kinds of whose status it is a part."""


class Heard:
    """What other services say of resources. Nothing is made of it before it is all there (`is_whole`)."""

    families = tuple(dict.fromkeys(family for row in KINDS if row.told is not None for family in row.told.families))

    def __init__(self) -> None:
        self.is_whole = False
        self._values: dict[str, dict[tuple[str, ...], Message]] = {}

    def of(self, family: State[M]) -> Mapping[tuple[str, ...], M]:
        return self._values.get(family.head, {})  # type: ignore[return-value]  # `take` looks at what family it is of

    def take(self, subject: str, message: Message | None) -> set[Key]:
        """A value is this now, or (None) is gone. Returns: of which objects the status may be another for it."""
        family = state_of(subject)
        if family is None or family.head not in TELLS:
            return set()
        values = self._values.setdefault(family.head, {})
        tokens = family.parse(subject)
        old = values.pop(tokens, None)
        if message is not None:
            values[tokens] = message
        return {
            Key(kind.name, namespace, name)
            for kind in TELLS[family.head]
            for value in (old, message)
            if value is not None and kind.told is not None
            for namespace, name in kind.told.concerns(value)
        }


def wanted_status(kind: Kind, seen: Seen, heard: Heard, now: datetime) -> dict[str, Any] | None:
    """A merge patch of the status; None: it is as it should be, or nothing is known of it."""
    fields: dict[str, Any] = {}
    ours: list[Mapping[str, Any]] = [_valid(seen)] if kind.has_conditions else []
    if kind.told is not None and heard.is_whole and seen.resource is not None:
        fields = dict(kind.told.status(seen.resource.messages[0][1], heard, seen.status) or {})
        ours += fields.pop("conditions", ())
    patch = {field: value for field, value in fields.items() if not holds(seen.status.get(field), value)}
    conditions = _conditions(seen.status, ours, now)
    if conditions is not None:
        patch["conditions"] = conditions
    return patch or None


def holds(has: Any, wanted: Any) -> bool:
    """What it has is what is wanted; it may have more than that in an object, but not in a list."""
    if isinstance(wanted, dict):
        return all(holds(has.get(key) if isinstance(has, dict) else None, value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(has, list) and len(has) == len(wanted) and all(map(holds, has, wanted))
    return bool(has == wanted)


def lines(seen: Seen) -> list[str]:
    """What its author must know."""
    return [f"{problem.path}: {problem.text}" if problem.path else problem.text for problem in seen.told]


def _valid(seen: Seen) -> dict[str, Any]:
    is_valid = seen.resource is not None and not seen.told
    text = "; ".join(lines(seen)) or "Policy validation succeeded"
    return {
        "type": VALID,
        "status": "True" if is_valid else "False",
        "reason": "Accepted" if is_valid else "NotAsWritten",
        "message": shortened(visible(text), LONGEST_MESSAGE),
    }


def _conditions(
    status: Mapping[str, Any], ours: Iterable[Mapping[str, Any]], now: datetime
) -> list[dict[str, Any]] | None:
    """All of them with ours as they should be; None: they are so."""
    there = status.get("conditions")
    kept = {str(each.get("type")): dict(each) for each in there or () if isinstance(each, dict)} \
        if isinstance(there, list) else {}  # fmt: skip
    before = dict(kept)
    for each in ours:
        old = kept.get(each["type"])
        if each["status"] is None:
            kept.pop(each["type"], None)
        elif old is None or not holds(old, dict(each)):
            same = old is not None and old.get("status") == each["status"]
            since = old.get("lastTransitionTime") if old is not None and same else None
            kept[each["type"]] = {**(old or {}), **each, "lastTransitionTime": since or text_of(now)}
    return list(kept.values()) if kept != before else None


def text_of(when: datetime) -> str:
    """As Kubernetes writes a time."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
