"""What to tell an Envoy: delta xDS as a pure state, `heard` a request, `due` are the responses.

Of each kind one response is on its way at a time; what changes meanwhile goes with the next. When Envoy refuses a
response with several resources, each goes by itself, so that the bad one is known: it stays refused until it is
another. In its place Envoy has what was good before; where it has nothing, routes that deny, or no listener.

Source: Envoy's documentation, "xDS REST and gRPC protocol", incremental.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from google.protobuf.any_pb2 import Any

from services.proxy.api import envoy_pb2 as envoy
from services.proxy.resources import LISTENERS, ORDER, ROUTES, Item, Kind, Resources, closed_routes

TYPE_PREFIX = "type.googleapis.com/"
BY_NAME = frozenset({ROUTES})
"""Kinds that Envoy asks for by name; it gets all of the others."""


@dataclass(slots=True)
class Book:
    """What lasts longer than one stream: what is wanted, what was good, and what Envoy has refused."""

    wanted: Resources = field(default_factory=lambda: {kind: {} for kind in ORDER})
    good: dict[tuple[Kind, str], Item] = field(default_factory=dict)
    refused: dict[tuple[Kind, str], tuple[str, str]] = field(default_factory=dict)
    """Its version, and Envoy's words."""

    def want(self, wanted: Resources) -> None:
        self.wanted = wanted
        for kind, name in [*self.good, *self.refused]:
            if name not in wanted[kind]:
                self.good.pop((kind, name), None)
                self.refused.pop((kind, name), None)

    def is_refused(self, kind: Kind, name: str) -> bool:
        found, wanted = self.refused.get((kind, name)), self.wanted[kind].get(name)
        return found is not None and wanted is not None and found[0] == wanted.version

    def why_refused(self, name: str) -> str:
        """Of the resources that bear a slot's name; "": none is refused."""
        for kind in ORDER:
            if self.is_refused(kind, name):
                return self.refused[kind, name][1]
        return ""

    def chosen(self, kind: Kind, name: str, has: str) -> Item | None:
        """What Envoy is to have. `has`: the version that it has, "" for none. None: leave it as it is."""
        if name not in self.wanted[kind]:
            return closed_routes(name)
        if not self.is_refused(kind, name):
            return self.wanted[kind][name]
        good = self.good.get((kind, name))
        if good is not None:
            return good
        return closed_routes(name) if kind == ROUTES and not has else None


@dataclass(slots=True)
class _Sent:
    nonce: str
    versions: dict[str, str]  # name -> version; "": removed


@dataclass(slots=True)
class _OfKind:
    asked: set[str] = field(default_factory=set)
    has: dict[str, str] = field(default_factory=dict)  # name -> version, as far as Envoy has said
    sent: _Sent | None = None
    singly: set[str] = field(default_factory=set)  # names that were in a refused response, and go by themselves
    is_greeted: bool = False


class Exchange:
    """One stream, from Envoy's connecting to its end."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._kinds: dict[Kind, _OfKind] = {}
        self._nonces = 0

    def heard(self, request: envoy.DeltaDiscoveryRequest) -> None:
        kind = request.type_url.removeprefix(TYPE_PREFIX)
        if kind not in ORDER:
            return
        state = self._kinds.get(kind)
        if state is None:
            state = self._kinds[kind] = _OfKind(has=dict(request.initial_resource_versions))
        state.asked.update(request.resource_names_subscribe)
        for name in request.resource_names_unsubscribe:
            state.asked.discard(name)
            state.has.pop(name, None)
        if state.sent is not None and request.response_nonce == state.sent.nonce:
            self._answered(kind, state, state.sent, request)

    def _answered(self, kind: Kind, state: _OfKind, sent: _Sent, request: envoy.DeltaDiscoveryRequest) -> None:
        state.sent = None
        if not request.HasField("error_detail"):
            for name, version in sent.versions.items():
                state.singly.discard(name)
                if version and kind in BY_NAME and name not in state.asked:
                    continue  # it asked no more when that came, and has not kept it
                if version:
                    state.has[name] = version
                    self._take(kind, name, version)
                else:
                    state.has.pop(name, None)
        elif len(sent.versions) == 1:
            ((name, version),) = sent.versions.items()
            state.singly.discard(name)
            self._refused(kind, state, name, version, request.error_detail.message)
        else:
            state.singly.update(sent.versions)

    def _refused(self, kind: Kind, state: _OfKind, name: str, version: str, why: str) -> None:
        """Envoy goes on with what it has of this name."""
        wanted, good = self._book.wanted[kind].get(name), self._book.good.get((kind, name))
        if wanted is not None and wanted.version == version:
            self._book.refused[kind, name] = (version, why)
        if good is not None and good.version == version:
            del self._book.good[kind, name]  # of an Envoy before this one, of another version
        if not version:
            state.has.pop(name, None)

    def _take(self, kind: Kind, name: str, version: str) -> None:
        wanted = self._book.wanted[kind].get(name)
        if wanted is not None and wanted.version == version:
            self._book.good[kind, name] = wanted
            self._book.refused.pop((kind, name), None)

    def due(self) -> Iterator[envoy.DeltaDiscoveryResponse]:
        """What is to be sent now; it counts as sent."""
        for kind in ORDER:
            state = self._kinds.get(kind)
            if state is None or state.sent is not None:
                continue
            changes = self._changes(kind, state)
            if not changes and state.is_greeted:
                continue
            state.is_greeted = True
            single = next((name for name in sorted(changes) if name in state.singly), None)
            if single is not None:
                changes = {single: changes[single]}
            self._nonces += 1
            state.sent = _Sent(
                str(self._nonces), {name: each.version if each else "" for name, each in changes.items()}
            )
            yield _response(kind, state.sent.nonce, changes)

    def _changes(self, kind: Kind, state: _OfKind) -> dict[str, Item | None]:
        """None: to be removed. Routes that nobody wants deny, until Envoy stops asking for them with their listener."""
        wanted = self._book.wanted[kind]
        changes: dict[str, Item | None] = {}
        for name in sorted(state.asked) if kind in BY_NAME else wanted:
            has = state.has.get(name, "")
            chosen = self._book.chosen(kind, name, has)
            if chosen is not None and has != chosen.version:
                changes[name] = chosen
        if kind not in BY_NAME:
            changes.update((name, None) for name in state.has if name not in wanted)
        return changes

    def in_force(self, name: str) -> bool:
        """Envoy has acknowledged all that bears this slot's name, as it is wanted now."""
        return all(
            kind in self._kinds and self._kinds[kind].has.get(name) == self._book.wanted[kind][name].version
            for kind in (LISTENERS, ROUTES)
            if name in self._book.wanted[kind]
        ) and any(name in self._book.wanted[kind] for kind in (LISTENERS, ROUTES))


def _response(kind: Kind, nonce: str, changes: Mapping[str, Item | None]) -> envoy.DeltaDiscoveryResponse:
    made = envoy.DeltaDiscoveryResponse(type_url=TYPE_PREFIX + kind, nonce=nonce)
    for name, each in changes.items():
        if each is None:
            made.removed_resources.append(name)
        else:
            body = Any(type_url=TYPE_PREFIX + kind, value=each.body)
            made.resources.append(envoy.Resource(name=name, version=each.version, resource=body))
    return made
