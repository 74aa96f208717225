"""Written back: statuses, and Events for what a user must know.

A status tells what is in the log, and what other services made of that. It is written only where it differs, against
the very version that was looked at, so two writers do not undo each other. An Event has a name made of what it says:
saying it again makes none anew.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from bus.interface import Bus
from bus.telemetry import count
from bus.texts import shortened, visible
from services.resources.kubernetes.api import Api, Trouble, root_of
from services.resources.kubernetes.following import Backoff, Check
from services.resources.kubernetes.reading import Seen, is_policy
from services.resources.kubernetes.statuses import LONGEST_MESSAGE, Heard, lines, text_of, wanted_status
from services.resources.manifests.meta import Key
from services.resources.registry import BY_NAME

COMPONENT = "plexus"
MOST_EVENTS = 3  # of one object
MOST_WAITING = 10_000  # objects; more are counted and not told

LOST_CAUSES = (400, 404, 409, 422)  # it is gone, or another now, which we shall see; or has no status


def events(seen: Seen, now: datetime) -> list[dict[str, Any]]:
    """Warnings about the object, as v1 Events."""
    if not seen.uid:
        return []
    kind = BY_NAME[seen.key.kind]
    found = []
    for text in lines(seen)[:MOST_EVENTS]:
        mark = hashlib.sha256(f"{seen.uid} {text}".encode()).hexdigest()[:16]
        found.append(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"{seen.key.name[:200]}.{mark}", "namespace": _place(seen)},
                "involvedObject": {
                    "apiVersion": kind.api_version,
                    "kind": kind.name,
                    **({"namespace": seen.key.namespace} if seen.key.namespace else {}),
                    "name": seen.key.name,
                    "uid": seen.uid,
                },
                "reason": "NotAsWritten" if is_policy(kind) else "NotDone",
                "message": shortened(visible(text), LONGEST_MESSAGE),
                "type": "Warning",
                "count": 1,
                "firstTimestamp": text_of(now),
                "lastTimestamp": text_of(now),
                "source": {"component": COMPONENT},
                "reportingComponent": COMPONENT,
            }
        )
    return found


def _place(seen: Seen) -> str:
    """Kubernetes keeps Events of what is in no namespace in the one that is called so."""
    return seen.key.namespace or "default"


class Telling:
    """What waits to be told, the latest of each object."""

    def __init__(self, api: Api, check: Check, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._api, self._check, self._now = api, check, now
        self._heard = Heard()
        self._seen: dict[Key, Seen] = {}  # of kinds of which others make something
        self._waiting: dict[Key, Seen] = {}
        self._told: dict[Key, tuple[str, tuple[Any, ...]]] = {}  # of what was told: uid, and the texts
        self._news = asyncio.Event()
        self._backoff = Backoff()

    async def hear(self, bus: Bus) -> None:
        """What other services make of resources, for ever."""
        if not self._heard.families:
            return
        async for batch in bus.watch_state(*self._heard.families):
            concerned = set()
            for change in batch.changes:
                concerned |= self._heard.take(change.subject, change.message)
            if batch.synced and not self._heard.is_whole:
                self._heard.is_whole = True
                concerned = set(self._seen)
            self._look(each for key in concerned if (each := self._seen.get(key)) is not None)

    def written(self, changes: Mapping[Key, Seen | None]) -> None:
        """These are in the log."""
        for key, seen in changes.items():
            if seen is None:
                for known in (self._told, self._waiting, self._seen):
                    known.pop(key, None)
            elif BY_NAME[key.kind].told is not None:
                self._seen[key] = seen
        self._look(each for each in changes.values() if each is not None)

    def _look(self, objects: Iterable[Seen]) -> None:
        for seen in objects:
            if not self._has_to_be_told(seen):
                self._waiting.pop(seen.key, None)  # it is as it should be by now
            elif len(self._waiting) >= MOST_WAITING and seen.key not in self._waiting:
                count("kubernetes_untold")
            else:
                self._waiting[seen.key] = seen
        if self._waiting:
            self._news.set()
        else:
            self._news.clear()

    def _has_to_be_told(self, seen: Seen) -> bool:
        if self._wanted(seen) is not None:
            return True
        return bool(seen.told) and self._told.get(seen.key) != (seen.uid, seen.told)

    def _wanted(self, seen: Seen) -> dict[str, Any] | None:
        return wanted_status(BY_NAME[seen.key.kind], seen, self._heard, self._now())

    async def run(self) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(await self.turn())

    async def turn(self) -> float:
        """One object. Returns: how many seconds to wait."""
        key = next(iter(self._waiting))
        seen = self._waiting.pop(key)  # what is learned of it meanwhile is told in another turn
        try:
            await self._tell(seen)
        except Trouble as problem:
            count("kubernetes_untold_yet", status=str(problem.status))
            wait = self._backoff.seconds(problem.retry_after_seconds)
            if problem.status in (401, 403):
                self._check("kubernetes statuses", False, f"{problem}; give Plexus the rights that the chart lists")
                self._done(key, seen)
            else:
                self._waiting.setdefault(key, seen)
            return wait
        self._check("kubernetes statuses", True, "")
        self._backoff.reset()
        self._done(key, seen)
        return 0.0

    def _done(self, key: Key, seen: Seen) -> None:
        if seen.told:
            self._told[key] = (seen.uid, seen.told)
        if not self._waiting:
            self._news.clear()

    async def _tell(self, seen: Seen) -> None:
        kind = BY_NAME[seen.key.kind]
        if (wanted := self._wanted(seen)) is not None:
            inside = f"/namespaces/{seen.key.namespace}" if kind.is_namespaced else ""
            place = f"{root_of(kind)}{inside}/{kind.plural}/{seen.key.name}/status"
            body = {"metadata": {"resourceVersion": seen.version}, "status": wanted}
            await _unless(LOST_CAUSES, self._api.patch(place, body))
        if self._told.get(seen.key) != (seen.uid, seen.told):
            for event in events(seen, self._now()):
                where = f"/api/v1/namespaces/{_place(seen)}/events"
                await _unless(LOST_CAUSES, self._api.create(where, event))


async def _unless(statuses: tuple[int, ...], request: Any) -> None:
    try:
        await request
    except Trouble as problem:
        if problem.status not in statuses:
            raise
