"""Bytes and messages: the MessagePack array [schema, body] on the wire, checked field by field when it is read.

The body is a map of field names, fields at their default left out, map keys sorted: equal messages are equal bytes.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import msgspec

from bus.messages import OTHER, Message
from bus.telemetry import count, logger

log = logger(__name__)

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

    Unknown fields are passed over, and an unknown word reads "other" where the field has that; a schema newer than ours
    is refused, because a meaning has changed.
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
        try:
            message: M = _decoder(expected).decode(rest)
        except msgspec.ValidationError:
            message = _decode_newer(expected, rest)
    except Undecodable:
        raise
    except Exception as problem:  # noqa: BLE001  # whatever a decoder does with hostile bytes, it is one answer here
        raise Undecodable(subject, str(problem) or type(problem).__name__) from None
    return message


@cache
def _decoder(expected: type[Message]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(expected)


def _decode_newer(expected: type[M], rest: msgspec.Raw) -> M:
    """What a newer writer says in words that are not known here. Raises: msgspec.ValidationError: it says no such."""
    read = msgspec.msgpack.decode(rest)
    unknown: list[str] = []
    known = _in_known_words(msgspec.inspect.type_info(expected), read, unknown)
    message: M = _decoder(expected).decode(_encoder.encode(known))
    count("unknown_words", len(unknown), message=expected.__name__)
    if expected not in _told:
        _told.add(expected)
        log.warning("a newer service's words are not known here: they read as other", message=expected.__name__,
                    words=unknown[:3])  # fmt: skip
    return message


_told: set[type[Message]] = set()


def _in_known_words(info: msgspec.inspect.Type, value: Any, unknown: list[str]) -> Any:
    match info, value:
        case msgspec.inspect.StructType(), dict():
            types = {field.encode_name: field.type for field in info.fields}
            return {
                key: _in_known_words(types[key], each, unknown) if key in types else each for key, each in value.items()
            }
        case msgspec.inspect.ListType(), list():
            return [_in_known_words(info.item_type, each, unknown) for each in value]
        case msgspec.inspect.DictType(), dict():
            return {key: _in_known_words(info.value_type, each, unknown) for key, each in value.items()}
        case msgspec.inspect.UnionType(), _:
            for each in info.types:
                value = _in_known_words(each, value, unknown)
            return value
        case msgspec.inspect.LiteralType(), str() if OTHER in info.values and value not in info.values:
            unknown.append(value)
            return OTHER
        case _:
            return value
