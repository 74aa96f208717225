"""What a kind of manifest is: one row, of which all that knows kinds is made.

A file in `services/resources/kinds/` holds a row, `KIND = Kind(...)`. From it follow how a manifest is read and
checked, where the resource is kept, when it is said and taken away, and how `plexus get` shows it. The command imports
every row to find one by a short name, so a row is light: the schema and what reads it are imported when `manifest` is
called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from bus.messages import Message
from bus.subjects import State

if TYPE_CHECKING:
    from bus.messages.dataplane import Health
    from services.resources.manifests.meta import Key, Manifest, Resource
    from services.resources.manifests.strict import Problems

M = TypeVar("M", bound=Message)

Object = Mapping[str, Any]  # a resource as `plexus get -o json` has it
Shown = (
    str | Callable[[Object], Any]
)  # a column's value: where it is in the object ("plexus.address"), or what finds it


class Values(Protocol):
    """What the bus says."""

    def of(self, family: State[M], /) -> Mapping[tuple[str, ...], M]:
        """The values of a family by their key tokens; of those that the row draws on."""


class Known(Values, Protocol):
    """What a status is made of, beside the resource itself."""

    def sequence_of(self, subject: str, /) -> int:
        """Where the value stands in the log of resources."""

    def realised(self, sequence: int, /) -> list[str]:
        """The nodes on which all is in force up to that place."""

    def health_of(self, node: str, /) -> Health | None:
        """How a node says that it is; None: it does not answer."""

    def pods_wanted(self, workload: Any, /) -> int:
        """How many pods whoever plays its controller would make."""


class Form(msgspec.Struct, frozen=True):
    """How a manifest of a kind is read."""

    schema: type[Manifest]
    read: Callable[[Any, dict[str, Any], Key, str, Problems], Resource]
    name_problem: Callable[[str], str | None]  # what is wrong with a name; None: nothing


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What others make of a resource, written into its object's status at an API server."""

    families: tuple[State[Any], ...]
    """Of which it is made."""
    concerns: Callable[[Any], Iterable[tuple[str, str]]]
    """(value of one of them) -> (namespace, name) of whatever it tells of."""
    status: Callable[[Any, Values, Object], dict[str, Any] | None]
    """(message, what is known, the status as it is) -> fields that it should have; None as a field's value: none. A
    condition is told from others' by its type, one whose status is None is to go. None: there is nothing to say."""


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of manifest, and of resource."""

    name: str  # "CiliumNetworkPolicy"
    api_version: str  # "cilium.io/v2"
    older_versions: tuple[str, ...] = ()  # that are read too, alike: "cilium.io/v2alpha1"
    plural: str  # on the command line, beside the name itself
    short: tuple[str, ...] = ()
    state: State[Any]
    """Where a resource is kept. Kinds may share one, the keys of which then begin with "kind"; of such a kind one
    resource may be several subjects ("name", "name/specs[1]")."""
    manifest: Callable[[], Form]
    is_namespaced: bool = True
    after: tuple[str, ...] = ()
    """Kinds that are said before it, and are taken away after it. What is in a namespace comes after it anyway."""
    before: tuple[str, ...] = ()
    """The same of this one, and by that before whatever `makes` those."""
    makes: tuple[str, ...] = ()
    """Kinds of which one may be owned by this one: it is said before them, and taken away before them, or it would make
    them again; they go with it."""
    holds: tuple[State[Any], ...] = ()
    """Families beside `state` that are the resource's too, and go right after it."""
    fixed: Mapping[str, str] = {}
    """Fields of the message that cannot change while it is there -> where they are in the manifest."""
    columns: Mapping[str, Shown] = {}
    """Of the table, after its name."""
    status: Callable[[Any, Known], dict[str, Any]] | None = None
    """(message, what is known) -> sections of the object that are filled in: `status`, `plexus`, `spec`, `metadata`."""
    from_api: Callable[[Any, Object, Resource], Message] | None = None
    """(message, object, resource) -> the message with what an API server knows and a manifest does not say. Who only
    `makes` others is not watched there: Kubernetes' own controllers make them."""
    has_conditions: bool = False
    """Whether it is valid is written back into its status, at an API server."""
    told: Told | None = None
    draws_on: tuple[State[Any], ...] = ()
    asks_nodes: bool = False

    @property
    def has_status(self) -> bool:
        """Something is written into its status at an API server."""
        return self.has_conditions or self.told is not None

    @property
    def api_versions(self) -> tuple[str, ...]:
        """Those that are read."""
        return (self.api_version, *self.older_versions)

    @property
    def names(self) -> tuple[str, ...]:
        """What it goes by on the command line."""
        return (self.plural, *self.short, self.name.lower())

    @property
    def is_shared(self) -> bool:
        """Resources of other kinds are kept in the same family."""
        return self.state.keys[0] == "kind"


def at(path: str) -> Callable[[Object], Any]:
    """A column's function: the value at "plexus.address" of an object, None when it is not there."""

    def find(found: Object) -> Any:
        value: Any = found
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    return find
