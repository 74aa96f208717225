"""Bytes and messages: the MessagePack array [schema, body] on the wire, checked field by field when it is read.

The body is a map of field names, fields at their default left out, map keys sorted: equal messages are equal bytes.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import msgspec

from bus.messages import Message

M = TypeVar("M", bound=Message)

LIMIT_BYTES = 512 * 1024  # one state or event; a NATS server takes 1 MiB unless told otherwise

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_envelope = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])


class Undecodable(Exception):
    """These bytes are not the message that belongs on this subject; `why` names the field."""

    def __init__(self, subject: str, why: str) -> None:
        super().__init__(f"{subject}: {why}")
        self.subject = subject
        self.why = why


class Newer(Undecodable):
    """Its schema is newer than the one known here: no garbage, but a value with a meaning for others."""


class TooLarge(Exception):
    """A message is over the limit; nothing was sent."""

    def __init__(self, subject: str, size: int, limit: int) -> None:
        super().__init__(f"{subject}: {size} bytes, the limit is {limit}")
        self.subject = subject
        self.size = size


def encode(message: Message, *, subject: str = "", limit: int = LIMIT_BYTES) -> bytes:
    """The wire form. Raises: TooLarge: over `limit` bytes; `subject` is for its text."""
    body = _encoder.encode((type(message).schema, message))
    if len(body) > limit:
        raise TooLarge(subject or type(message).__name__, len(body), limit)
    return body


def decode(subject: str, body: bytes, expected: type[M], *, limit: int = LIMIT_BYTES) -> M:
    """The message in `body`, every field checked against its type.

    Unknown fields are passed over; a schema newer than ours is refused, because a meaning has changed.
    Raises: Undecodable (Newer, when it is that), and nothing else, whatever the bytes are.
    """
    if len(body) > limit:
        raise Undecodable(subject, f"{len(body)} bytes, the limit is {limit}")
    try:
        schema, rest = _envelope.decode(body)
        if schema > expected.schema:
            raise Newer(subject, f"schema {schema} is newer than {expected.schema}, which is known here")
        if schema < 1:
            raise Undecodable(subject, f"schema {schema}: the first is 1")
        message: M = _decoder(expected).decode(rest)
    except Undecodable:
        raise
    except Exception as problem:  # noqa: BLE001  # whatever a decoder does with hostile bytes, it is one answer here
        raise Undecodable(subject, str(problem) or type(problem).__name__) from None
    return message


@cache
def _decoder(expected: type[Message]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(expected)
