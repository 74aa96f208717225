"""How a capability of the dataplane plugs in.

A part is pure: it says what it hears, and what is heard of that is put into it or deleted; it owns tables, and `settle`
brings them up to date with all that it knows; it shows what maps hold, in words. `Parts` are those of a node together.
They know nothing of each other: what one knows and others need is a fact (`Facts`).

In which order tables are written is computed from what each says that it is written after. A mistake in that (a table
that is unknown, there twice, or after itself by way of others) is an error at the start, not a map that stays empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from bus.messages import Message
from bus.messages.dataplane import ClosedDirection
from bus.messages.resources import ContainerPort
from bus.subjects import State, check_subject, state_of
from services.dataplane.shapes.devices import DeviceInfo
from services.dataplane.shapes.layouts import MAPS
from services.dataplane.shapes.table import Table

M = TypeVar("M", bound=Message)
P = TypeVar("P", bound="Part")

K = TypeVar("K")
V = TypeVar("V")

Held = Callable[[str], Mapping[bytes, bytes]]
"""What the kernel holds in a map, by the map's name."""

Row = dict[str, Any]
"""An entry in words, as `plexus bpf` shows it; keys stay as they are once they are there."""


class Entries(Protocol):
    """One map, as it is now."""

    def get(self, key: bytes, /) -> bytes | None: ...

    def items(self) -> Iterable[tuple[bytes, bytes]]: ...


class Maps(Protocol):
    """What the kernel holds, by the map's name: as kernel/maps.py has it."""

    def __getitem__(self, name: str, /) -> Entries: ...


@dataclass(frozen=True, slots=True)
class Shows:
    """What `plexus bpf NAME list` shows, or of "lb/affinity" `plexus bpf lb list --affinity`.

    `rows` gets the maps and the tick that it is now (`Connection.expires`).
    """

    name: str
    text: str  # what it is, for the help
    rows: Callable[[Maps, int], Iterator[Row]]


class Misfit(Exception):
    """Parts do not go together; the text says why. A mistake of ours, found at the start."""


class Fact(Mapping[K, V]):
    """What one part knows and others may read. Who follows it learns which keys have changed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_kept = False
        self._values: dict[K, V] = {}
        self._followers: list[set[K]] = []

    def __getitem__(self, key: K) -> V:
        return self._values[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def keep(self) -> Fact[K, V]:
        """For the one who knows it, and writes it. Raises: Misfit."""
        if self._is_kept:
            raise Misfit(f"{self._name} is kept by two")
        self._is_kept = True
        return self

    def follow(self) -> set[K]:
        """A set of the reader's own, to which each key is added that changes from here on; keep it as `Final`, for
        `|=` may put another in its place. Raises: Misfit: who keeps it would come after its reader, which then would
        always be one turn late."""
        if not self._is_kept:
            raise Misfit(f"{self._name} is kept by nobody so far")
        self._followers.append(set(self._values))
        return self._followers[-1]

    def put(self, key: K, value: V) -> None:
        if key not in self._values or self._values[key] != value:
            self._values[key] = value
            self._tell(key)

    def delete(self, key: K) -> None:
        if key in self._values:
            del self._values[key]
            self._tell(key)

    def _tell(self, key: K) -> None:
        for each in self._followers:
            each.add(key)


@dataclass(frozen=True, slots=True)
class LocalPod:
    """A pod of this node, as its link was made."""

    namespace: str
    name: str
    addresses: tuple[str, ...]  # one of each family that it has
    interface: str
    interface_index: int
    mac: str
    gateway_mac: str
    uid: str = ""
    identity: int = 0  # of a pod whose `namespace` and `name` are not known (""): what its entry in the kernel says


class Facts:
    """All that parts share, each kept by one of them."""

    def __init__(self) -> None:
        self.pods: Fact[str, LocalPod] = Fact("pods")
        """Those of this node, by each of their addresses; told by pods/."""
        self.own: Fact[str, None] = Fact("own")
        """Addresses that this node answers to, and that no other has."""
        self.identity: Fact[str, int] = Fact("identity")
        """Of the pods here whose labels have a number, by address."""
        self.local: Fact[int, Mapping[str, str]] = Fact("local")
        """Labels of the identities that have pods here."""
        self.ports: Fact[str, Sequence[ContainerPort]] = Fact("ports")
        """Of the pods here that have an identity, by address."""
        self.networks: Fact[str, int] = Fact("networks")
        """Numbers of the networks that policies name, by CIDR."""
        self.uplinks: Fact[int, DeviceInfo] = Fact("uplinks")
        """Devices of the node that lead out, by index."""
        self.enforced: Fact[int, tuple[bool, bool]] = Fact("enforced")
        """Of local identities: whether policy decides on ingress, and on egress. Not there: it is not known yet."""
        self.closed: Fact[int, tuple[ClosedDirection, ...]] = Fact("closed")
        """Of local identities: directions that are denied as a whole, whatever policy says."""


def anything(_: object) -> None:
    """It makes sense."""


@dataclass(frozen=True, slots=True)
class Hears(Generic[M]):
    """One family of subjects, and what a part does with it.

    `put` gets a value that `check` has let pass, in this and in every other part that hears it; `delete` gets the
    tokens of a subject, which may be of a key that never made sense.
    """

    family: State[M]
    put: Callable[[M], None]
    delete: Callable[..., None]
    check: Callable[[M], None] = anything
    """Raises: ValueError: an address, a port or a number in it is none."""


class Part:
    """One capability; it overrides what it has."""

    hears: tuple[Hears[Any], ...] = ()
    tables: tuple[Table, ...] = ()
    shows: tuple[Shows, ...] = ()
    by_rules: ClassVar[bool] = False
    """Rules of nftables stand in for it where the kernel takes no programs (fallback/)."""

    is_on: bool = True
    """The node does this; else nobody misses it."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        """What the last `settle` could not bring up to date, and why."""

    def adopt(self, held: Held) -> None:
        """Before anything is heard: what a process before this one left in the maps."""

    def settle(self) -> None:
        """Bring the tables up to date. What fails is told in `problems`, keeps what the tables held of it, and is tried
        again by the next call; the rest is not touched by that (`tried`)."""

    def synced(self) -> None:
        """All that there is has been heard once."""

    def settle_each(self, stale: set[K], what: str, work: Callable[[K], None]) -> None:
        """Empty `stale`, but for those with which `work` failed. `what`: what of a key, in words that no other work of
        any part has, or one would hide what failed in the other."""
        taken = list(stale)
        stale.clear()
        stale.update([key for key in taken if not self.tried(f"{what} {key}", work, key)])

    def tried(self, what: str, work: Callable[..., None], *arguments: object) -> bool:
        """Whether `work` went to its end."""
        try:
            work(*arguments)
        except Exception as problem:  # noqa: BLE001  # the loop over objects: one that fails must not stop the others
            self.problems[what] = repr(problem)
            return False
        self.problems.pop(what, None)
        return True


class Parts:
    """Those of a node, settled in the order in which they are given. Raises: Misfit."""

    def __init__(self, *parts: Part) -> None:
        self._parts = {type(each): each for each in parts}
        if len(self._parts) != len(parts):
            raise Misfit("a part is there twice")
        self.shown = {each.name: each for part in parts for each in part.shows}
        """By name."""
        if len(self.shown) != sum(len(part.shows) for part in parts):
            raise Misfit("two parts show something by one name")
        self.tables = in_order(table for part in parts for table in part.tables)
        """In the order in which they are written."""
        self._hearing: dict[State[Any], list[Hears[Any]]] = {}
        for part in parts:
            for each in part.hears:
                self._hearing.setdefault(each.family, []).append(each)

    def __getitem__(self, kind: type[P]) -> P:
        return self._parts[kind]  # type: ignore[return-value]  # by its own type

    @property
    def hears(self) -> tuple[State[Any], ...]:
        """Families of subjects."""
        return tuple(self._hearing)

    @property
    def by_rules(self) -> tuple[str, ...]:
        """Names of the tables that rules are made of."""
        return tuple(table.name for part in self._parts.values() if part.by_rules for table in part.tables)

    @property
    def not_by_rules(self) -> tuple[str, ...]:
        """What nobody does where the kernel takes no programs, as people call it."""
        return tuple(
            re.sub(r"(?<!^)(?=[A-Z])", " ", kind.__name__).lower()
            for kind, part in self._parts.items()
            if not part.by_rules and part.is_on
        )

    @property
    def problems(self) -> dict[str, str]:
        """What the last turn could not bring up to date, and why."""
        return {what: why for part in self._parts.values() for what, why in part.problems.items()}

    def put(self, subject: str, message: Message) -> None:
        """`subject` has this value now.

        Raises: ValueError: it is of another thing, or makes no sense to one of those who hear it (an address, a
            network, a port or an identity in it is none); none has taken it.
        """
        hearing = self._hearing.get(check_subject(subject, message), ())
        for each in hearing:
            each.check(message)
        for each in hearing:
            each.put(message)

    def delete(self, subject: str) -> None:
        """`subject` is gone, whatever it was: a key that makes no sense never had a value here."""
        family = state_of(subject)
        for each in self._hearing.get(family, ()) if family else ():
            each.delete(*each.family.parse(subject))

    def adopt(self, held: Held) -> None:
        """Before anything is heard: what a process before this one left in the maps."""
        for part in self._parts.values():
            part.adopt(held)

    def synced(self) -> None:
        """All that there is has been heard once: from here on "no policy" may mean "open"."""
        for part in self._parts.values():
            part.synced()

    def settle_parts(self) -> None:
        for part in self._parts.values():
            part.settle()


def in_order(tables: Iterable[Table]) -> tuple[Table, ...]:
    """Each after those that it says it is written after, and one that is last after all that are not; else as given.
    Entries are removed in the reverse order.

    Raises: Misfit.
    """
    left = list(tables)
    names = [table.name for table in left]
    for table in left:
        if table.name not in MAPS:
            raise Misfit(f"there is no map {table.name}: layouts.MAPS says how maps look")
        if MAPS[table.name].key is None:
            raise Misfit(f"nobody says what keys of the map {table.name} are called: layouts.MAPS takes their type")
        if names.count(table.name) > 1:
            raise Misfit(f"the table {table.name} is there twice")
        unknown = [name for name in table.after if name not in names]
        if unknown:
            raise Misfit(f"the table {table.name} is written after {', '.join(unknown)}, which nobody has")
        late = [each.name for each in left if each.name in table.after and not each.before_programs]
        if table.before_programs and late:
            raise Misfit(f"the table {table.name} is written before programs, and {', '.join(late)} is not")
    early = {table.name for table in left if not table.last}
    after = {table.name: early.union(table.after) if table.last else {*table.after} for table in left}
    found: list[Table] = []
    done: set[str] = set()
    while left:
        ready = next((table for table in left if after[table.name] <= done), None)
        if ready is None:
            raise Misfit(f"tables are written after each other: {', '.join(table.name for table in left)}")
        left.remove(ready)
        found.append(ready)
        done.add(ready.name)
    return tuple(found)
