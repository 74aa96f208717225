"""Written back: conditions in the status of those kinds that have some, and Events for what a user must know. Pure, but
for `Telling.run`.

A status is what is in the log. It is written only where it differs, against the very version that was looked at, so two
writers do not undo each other, and a status that was written does not lead to another one. An Event has a name made of
what it says: saying it again makes none anew.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from bus.telemetry import count, logger
from bus.texts import shortened, visible
from services.resources.kubernetes.api import Api, Trouble
from services.resources.kubernetes.following import Backoff, Check
from services.resources.kubernetes.reading import Seen, is_policy
from services.resources.manifests.meta import Key
from services.resources.registry import BY_NAME

log = logger(__name__)

VALID = "Valid"
COMPONENT = "plexus"
MOST_EVENTS = 3  # of one object
MOST_WAITING = 10_000  # objects; more are counted and not told
LONGEST_MESSAGE = 1000  # characters; an API server takes 1024 in an Event

LOST_CAUSES = (400, 404, 409, 422)  # it is gone, or another now, which we shall see; or has no status


def conditions(seen: Seen, now: datetime) -> list[dict[str, Any]] | None:
    """The conditions as they should be, those of others among them; None: they are so."""
    others = [dict(each) for each in seen.conditions if each.get("type") != VALID]
    old = next((each for each in seen.conditions if each.get("type") == VALID), {})
    lines = [f"{problem.path}: {problem.text}" if problem.path else problem.text for problem in seen.told]
    is_valid = seen.resource is not None and not seen.told
    text = "; ".join(lines) if lines else "Policy validation succeeded"
    wanted = {
        "type": VALID,
        "status": "True" if is_valid else "False",
        "reason": "Accepted" if is_valid else "NotAsWritten",
        "message": shortened(visible(text), LONGEST_MESSAGE),
    }
    if all(old.get(field) == value for field, value in wanted.items()):
        return None
    since = old.get("lastTransitionTime") if old.get("status") == wanted["status"] else None
    return [*others, {**wanted, "lastTransitionTime": since or _text(now)}]


def events(seen: Seen, now: datetime) -> list[dict[str, Any]]:
    """Warnings about the object, as v1 Events; none of what is in no namespace."""
    if not seen.key.namespace or not seen.uid:
        return []
    kind = BY_NAME[seen.key.kind]
    found = []
    for problem in seen.told[:MOST_EVENTS]:
        text = f"{problem.path}: {problem.text}" if problem.path else problem.text
        mark = hashlib.sha256(f"{seen.uid} {text}".encode()).hexdigest()[:16]
        found.append(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"{seen.key.name[:200]}.{mark}", "namespace": seen.key.namespace},
                "involvedObject": {
                    "apiVersion": kind.api_version,
                    "kind": kind.name,
                    "namespace": seen.key.namespace,
                    "name": seen.key.name,
                    "uid": seen.uid,
                },
                "reason": "NotAsWritten" if is_policy(kind) else "NotDone",
                "message": shortened(visible(text), LONGEST_MESSAGE),
                "type": "Warning",
                "count": 1,
                "firstTimestamp": _text(now),
                "lastTimestamp": _text(now),
                "source": {"component": COMPONENT},
                "reportingComponent": COMPONENT,
            }
        )
    return found


class Telling:
    """What waits to be told, the latest of each object."""

    def __init__(self, api: Api, check: Check, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._api, self._check, self._now = api, check, now
        self._waiting: dict[Key, Seen] = {}
        self._told: dict[Key, tuple[str, tuple[Any, ...]]] = {}  # of what was told: uid, and the texts
        self._news = asyncio.Event()
        self._backoff = Backoff()

    def written(self, changes: Mapping[Key, Seen | None]) -> None:
        """These are in the log."""
        for key, seen in changes.items():
            if seen is None:
                self._told.pop(key, None)
                self._waiting.pop(key, None)
            elif self._has_to_be_told(seen):
                if len(self._waiting) >= MOST_WAITING and key not in self._waiting:
                    count("kubernetes_untold")
                    continue
                self._waiting[key] = seen
                self._news.set()

    def _has_to_be_told(self, seen: Seen) -> bool:
        if BY_NAME[seen.key.kind].has_conditions and conditions(seen, self._now()) is not None:
            return True
        return bool(seen.told) and self._told.get(seen.key) != (seen.uid, seen.told)

    async def run(self) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(await self.turn())

    async def turn(self) -> float:
        """One object. Returns: how many seconds to wait."""
        key, seen = next(iter(self._waiting.items()))
        try:
            await self._tell(seen)
        except Trouble as problem:
            count("kubernetes_untold_yet", status=str(problem.status))
            wait = self._backoff.seconds(problem.retry_after_seconds)
            if problem.status in (401, 403):
                self._check("kubernetes statuses", False, f"{problem}; give Plexus the rights that the chart lists")
                self._done(key, seen)
            return wait
        self._check("kubernetes statuses", True, "")
        self._backoff.reset()
        self._done(key, seen)
        return 0.0

    def _done(self, key: Key, seen: Seen) -> None:
        if self._waiting.get(key) is seen:
            del self._waiting[key]
        if seen.told:
            self._told[key] = (seen.uid, seen.told)
        if not self._waiting:
            self._news.clear()

    async def _tell(self, seen: Seen) -> None:
        kind = BY_NAME[seen.key.kind]
        if kind.has_conditions and (wanted := conditions(seen, self._now())) is not None:
            root = "api" if "/" not in kind.api_version else "apis"
            place = f"/{root}/{kind.api_version}/namespaces/{seen.key.namespace}/{kind.plural}/{seen.key.name}/status"
            body = {"metadata": {"resourceVersion": seen.version}, "status": {"conditions": wanted}}
            await _unless(LOST_CAUSES, self._api.patch(place, body))
        if self._told.get(seen.key) != (seen.uid, seen.told):
            for event in events(seen, self._now()):
                where = f"/api/v1/namespaces/{seen.key.namespace}/events"
                await _unless(LOST_CAUSES, self._api.create(where, event))


async def _unless(statuses: tuple[int, ...], request: Any) -> None:
    try:
        await request
    except Trouble as problem:
        if problem.status not in statuses:
            raise


def _text(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
