"""What a client asks for, checked. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from services.hubble.api import flow_pb2 as pb
from services.hubble.api import observer_pb2 as api
from services.hubble.filters import BadFilter, compile_filters
from services.hubble.flow import Flow, nanoseconds
from services.hubble.kept import Kept, Timed

EVER_NS = 1 << 63

T = TypeVar("T", bound=Timed)
EventsRequest = api.GetFlowsRequest | api.GetAgentEventsRequest | api.GetDebugEventsRequest


class BadRequest(Exception):
    """It cannot be answered; the text says why."""


@dataclass(frozen=True, slots=True)
class Span(Generic[T]):
    """Which of the items that are kept, and whether what comes is asked for too."""

    number: int = 0  # at most so many; 0: all
    first: bool = False  # the oldest, else the newest
    follow: bool = False
    since_ns: int = 0
    until_ns: int = EVER_NS

    def of(self, kept: Kept[T], matches: Callable[[T], bool]) -> list[T]:
        """Those that are kept, oldest first. Who follows, and says no more, is not interested in what was."""
        if self.follow and not self.number and not self.since_ns:
            return []
        choose = kept.first if self.first else kept.last
        return choose(self.number, matches, self.since_ns, self.until_ns)


def span(request: EventsRequest) -> Span[Timed]:
    """Raises: BadRequest."""
    if request.first and request.follow:
        raise BadRequest("first and follow exclude each other: the first flows have been")
    since = nanoseconds(request.since) if request.HasField("since") else 0
    until = nanoseconds(request.until) if request.HasField("until") else EVER_NS
    if until < since:
        raise BadRequest("until is before since")
    return Span(request.number, request.first, request.follow, since, until)


def matching(request: api.GetFlowsRequest) -> Callable[[Flow], bool]:
    """Raises: BadRequest."""
    try:
        return compile_filters(request.whitelist, request.blacklist)
    except BadFilter as problem:
        raise BadRequest(str(problem)) from None


def masked(request: api.GetFlowsRequest) -> Callable[[pb.Flow], pb.Flow]:
    """Leaves of a flow what the field mask names; all of it without one. Raises: BadRequest."""
    mask = request.field_mask
    if not mask.paths:
        return _whole
    for path in mask.paths:
        if not _is_field(path):
            raise BadRequest(f"field_mask: a flow has no field {path!r}")

    def leave(flow: pb.Flow) -> pb.Flow:
        found = pb.Flow()
        mask.MergeMessage(flow, found)
        return found

    return leave


def _is_field(path: str) -> bool:
    """ "source.pod_name": each step but the last is a message, and none is a list but the last."""
    message: Any = pb.Flow.DESCRIPTOR
    *steps, last = path.split(".")
    for step in steps:
        field = message.fields_by_name.get(step) if message else None
        if field is None or field.is_repeated:
            return False
        message = field.message_type
    return message is not None and last in message.fields_by_name


def _whole(flow: pb.Flow) -> pb.Flow:
    return flow
