"""log: what an owner says of its own log."""

from __future__ import annotations

from bus.messages import Message


class Vouched(Message, frozen=True, kw_only=True):
    """Everything that `writer` says is in the log now, and nothing else of it. Subject: state.<owner>.vouched.<writer>

    Said after whoever writes the log has taken it over, and again after the log was lost, wholly or in part. A reader
    that knew the log before a loss keeps what it knew until it finds a higher `number` than it has ever seen.
    """

    writer: str  # the owner; in the log of many writers the node
    number: int  # higher each time: nanoseconds since the epoch, by the writer's clock
