"""What was seen at the API server and is not in the log yet: the latest of each object, so that a burst on one is one
write. As large as the cluster at most. Plain dictionaries; no I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from services.resources.kubernetes.reading import Seen
from services.resources.manifests.meta import Key

Changes = Mapping[Key, Seen | None]
"""None: the object is gone."""


class Pending:
    """Filled by the followers of all kinds, emptied by one writer.

    Args:
        awaited: kinds of which nothing is known yet. Until each was listed once, or is known to be absent, nothing is
            written: a pod without the policies that govern it would be open.
    """

    def __init__(self, awaited: Collection[str]) -> None:
        self._awaited = set(awaited)
        self._changes: dict[Key, Seen | None] = {}
        self._news = asyncio.Event()

    @property
    def awaited(self) -> list[str]:
        return sorted(self._awaited)

    def known(self, kind: str) -> None:
        """The kind was listed whole, or is absent."""
        self._awaited.discard(kind)
        self._tell()

    def put(self, seen: Seen) -> None:
        self._changes[seen.key] = seen
        self._tell()

    def gone(self, key: Key) -> None:
        self._changes[key] = None
        self._tell()

    def keys(self, kind: str) -> set[Key]:
        """Of objects that are there and wait to be written."""
        return {key for key, seen in self._changes.items() if key.kind == kind and seen is not None}

    def back(self, changes: Changes) -> None:
        """They were taken and not written; what was seen since stays."""
        self._changes = {**changes, **self._changes}
        self._tell()

    async def take(self) -> Changes:
        """All of it, when there is any and nothing is awaited."""
        await self._news.wait()
        self._news.clear()
        changes, self._changes = self._changes, {}
        return changes

    def _tell(self) -> None:
        if not self._awaited:
            self._news.set()
