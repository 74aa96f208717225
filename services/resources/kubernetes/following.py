"""List and watch of one kind, for ever. What goes wrong is waited out; nothing is taken for deleted by it.

    list, in pages      the whole of it counts, or nothing: a list cut short tells nobody that something is gone
    watch from there    each event in order; bookmarks move the place where the next watch begins
    410 Gone            the API server has forgotten that place: list again
    anything else       wait, and go on from the same place

A resourceVersion counts up over the whole cluster. A list, or an event, that is older than what was seen before comes
from a server that lags, or from a log that was put back to an earlier state. The first passes, and the second is the
truth from then on; they look the same. So an older list is believed only when nothing newer was to be had for
OLDER_SECONDS; until then what there is stays.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bus.telemetry import count, logger
from services.resources.kind import Kind
from services.resources.kubernetes.api import Api, Event, Trouble, error_of, root_of
from services.resources.kubernetes.pending import Pending
from services.resources.kubernetes.reading import Seen, key_of, read_object
from services.resources.manifests.meta import Key

log = logger(__name__)

PAGE = 500  # objects in one answer, as kubectl asks
WATCH_SECONDS = 120.0  # of one watch, give or take a quarter: a server that hangs silently is noticed after as long
ABSENT_SECONDS = 5.0  # between two questions for a kind that is not installed
OLDER_SECONDS = 60.0
AT_A_TIME = 50  # objects that are read before others may run; 20 ms

GONE, ABSENT = 410, 404

Check = Callable[[str, bool, str], None]
"""(name, ok, detail): how it goes, for health."""


@dataclass
class Backoff:
    """How long to wait after a failure: twice as long each time, and each one for a time of its own, so that many who
    lost one server do not come back to it at once."""

    first_seconds: float = 0.2
    most_seconds: float = 10.0
    failures: int = 0
    chance: Callable[[], float] = random.random

    def seconds(self, asked: float = 0.0) -> float:
        """After one more failure. `asked`: how long the server asks to wait, at least."""
        whole = min(self.most_seconds, self.first_seconds * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return min(asked, self.most_seconds * 2) + whole * (0.5 + self.chance() / 2)

    def reset(self) -> None:
        self.failures = 0


class Older(Exception):
    """The server knows less than we have seen."""


@dataclass
class Following:
    """One kind. `turn` is one round of the endless loop.

    Args:
        here: the kind's resources that the log has.
        same_cluster: raises Trouble when the server is another cluster's; asked before each list, and after each
            silence.
    """

    kind: Kind
    api: Api
    pending: Pending
    here: Callable[[], set[Key]]
    same_cluster: Callable[[], Awaitable[None]]
    check: Check
    clock: Callable[[], float]
    backoff: Backoff = field(default_factory=Backoff)
    version: str = ""  # where the next watch begins; "": list first
    newest: int = 0  # the newest version that was seen, ever
    older_since: float | None = None  # since when the server has had nothing but older lists
    is_sure: bool = False  # that it is our cluster's server, since the last time that nobody answered
    is_in_doubt: bool = False  # whether the server has got as far as we: a watch from later than that says nothing
    is_whole: bool = False  # pages did not work: all in one
    told: str = ""  # what was wrong last
    unread: dict[Key, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"{root_of(self.kind)}/{self.kind.plural}"

    @property
    def is_custom(self) -> bool:
        """Its kind is there when somebody has installed it. Kubernetes' own kinds are always there."""
        group, slash, _ = self.kind.api_version.partition("/")
        return bool(slash) and "." in group and not group.endswith(".k8s.io")

    async def run(self) -> None:
        while True:
            wait = await self.turn()
            await asyncio.sleep(wait)

    async def turn(self) -> float:
        """List if need be, watch until that ends. Returns: how many seconds to wait before the next turn."""
        began = self.clock()
        try:
            if not self.version or not self.is_sure:
                await self.same_cluster()
                self.is_sure = True
            if not self.version:
                await self.list()
                self.backoff.reset()
            elif self.is_in_doubt:
                self._believe((await self.api.page(self.path, 1)).version)
            self.is_in_doubt = False
            self._well()
            heard = await self.watch()
        except Trouble as problem:
            return self._troubled(problem)
        except Older as problem:
            self.version = ""
            self._unwell(str(problem))
            return self.backoff.seconds()
        self.is_in_doubt = heard == 0
        if heard or self.clock() - began >= 1.0:
            self.backoff.reset()
            return 0.0
        return self.backoff.seconds()  # a server that ends each watch at once

    def _troubled(self, problem: Trouble) -> float:
        if problem.status == GONE:
            if not self.version:  # a page of a list: it took longer than the server keeps the rest of it
                self.is_whole = True
            self.version = ""
            count("kubernetes_gone", kind=self.kind.name)
            return self.backoff.seconds()
        if problem.status == ABSENT and self.is_custom:
            self.version = ""
            self.pending.known(self.kind.name)
            self.check(self._name, True, f"{self.kind.api_version} is not installed; waiting for it")
            return ABSENT_SECONDS * (0.75 + random.random() / 2)
        count("kubernetes_trouble", kind=self.kind.name, status=str(problem.status))
        why = str(problem)
        self.is_sure = self.is_sure and problem.status != 0
        self.is_in_doubt = True
        if problem.status in (401, 403):
            why += f"; give Plexus the right to get, list and watch {self.kind.plural}"
        self._unwell(why)
        return self.backoff.seconds(problem.retry_after_seconds)

    # -- list

    async def list(self) -> None:
        """All that there is, as one. Raises: Trouble, Older: nothing has changed."""
        seen: list[Seen] = []
        keys: set[Key] = set()
        version, rest = "", ""
        while True:
            page = await self.api.page(self.path, 0 if self.is_whole else PAGE, rest)
            if not version:
                version = page.version
                self._believe(version)
            for at, item in enumerate(page.items):
                if at % AT_A_TIME == 0:
                    await asyncio.sleep(0)
                key = key_of(self.kind, item.get("metadata"))
                if key is not None:
                    keys.add(key)
                    found = read_object(self.kind, item)
                    if found is not None:
                        seen.append(found)
            rest = page.rest
            if not rest:
                break
        for key in (self.here() | self.pending.keys(self.kind.name)) - keys:
            self.pending.gone(key)
        self.unread = {}
        for found in seen:
            self._put(found)
        self.version, self.newest, self.is_whole = version, _number(version) or self.newest, False
        self.pending.known(self.kind.name)
        log.info("listed", kind=self.kind.name, objects=len(keys), version=version)

    def _believe(self, version: str) -> None:
        """Raises: Older."""
        number = _number(version)
        if number is None or number >= self.newest:
            self.older_since = None
            return
        now = self.clock()
        if self.older_since is None:
            self.older_since = now
        if now - self.older_since < OLDER_SECONDS:
            count("kubernetes_older", kind=self.kind.name)
            raise Older(f"the API server has {self.kind.plural} as of {version}, and {self.newest} was seen before; "
                        "keeping what there is")  # fmt: skip
        log.warning("the API server went back, and stays so: what it has is taken", kind=self.kind.name,
                    version=version, newest=self.newest)  # fmt: skip
        self.older_since = None

    # -- watch

    async def watch(self) -> int:
        """Until the server ends it. Returns how many events came. Raises: Trouble, Older."""
        heard = 0
        seconds = WATCH_SECONDS * (0.75 + random.random() / 2)
        async with self.api.watch(self.path, self.version, seconds) as events:
            async for event in events:
                if event.type == "ERROR":
                    raise error_of(event.object, self.path)
                self._hear(event)
                heard += 1
                self.backoff.reset()
        return heard

    def _hear(self, event: Event) -> None:
        metadata = event.object.get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
        if not isinstance(version, str) or not version:
            raise Trouble(f"{self.path}: an event without resourceVersion")
        number = _number(version)
        if number is not None and number < self.newest:
            raise Older(f"the API server says {self.kind.plural} of {version} after {self.newest}")
        if event.type in ("ADDED", "MODIFIED"):
            key = key_of(self.kind, metadata)
            found = read_object(self.kind, event.object) if key is not None else None
            if found is not None:
                self._put(found)
        elif event.type == "DELETED":
            key = key_of(self.kind, metadata)
            if key is not None:
                self.unread.pop(key, None)
                self.pending.gone(key)
        self.version = version
        self.newest = max(self.newest, number or 0)

    def _put(self, found: Seen) -> None:
        self.pending.put(found)
        if found.resource is None and found.told:
            if self.unread.get(found.key) != found.told[0].text:
                log.warning("an object cannot be read: what there is of it stays", kind=found.key.kind,
                            namespace=found.key.namespace, name=found.key.name, why=found.told[0].text)  # fmt: skip
            self.unread[found.key] = found.told[0].text
            self._well()
        elif self.unread.pop(found.key, None) is not None:
            self._well()

    # -- how it goes

    @property
    def _name(self) -> str:
        return f"kubernetes {self.kind.plural}"

    def _well(self) -> None:
        self.told = ""
        first = next(iter(self.unread.items()), None)
        if first is None:
            self.check(self._name, True, "")
            return
        (key, why), more = first, len(self.unread) - 1
        name = f"{key.namespace}/{key.name}" if key.namespace else key.name
        self.check(self._name, False, f"{name} cannot be read: {why}" + (f"; and {more} more" if more else ""))

    def _unwell(self, why: str) -> None:
        if why != self.told:
            log.warning("the API server is no help; going on with what there is", kind=self.kind.name, why=why)
        self.told = why
        self.check(self._name, False, why)


def _number(version: str) -> int | None:
    return int(version) if version.isdecimal() and len(version) < 20 else None
