"""One value of every message type with every field filled, made from the types themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

import bus.subjects  # noqa: F401  # imports every module of messages
from bus.messages import OTHER, Message


def message_types() -> list[type[Message]]:
    """Every message, by name."""
    return sorted(_below(Message), key=lambda kind: (kind.__module__, kind.__name__))


def name_of(kind: type[Message]) -> str:
    return f"{kind.__module__.removeprefix('bus.messages.')}.{kind.__name__}"


def sample(kind: type[Message]) -> Message:
    """A value that no default equals, the same on every call."""
    message = _of(msgspec.inspect.type_info(kind), kind.__name__)
    assert isinstance(message, kind)
    return message


def _below(kind: type[Message]) -> Iterator[type[Message]]:
    for below in kind.__subclasses__():
        if below.__module__.startswith("bus.messages."):
            yield below
        yield from _below(below)


def _of(info: msgspec.inspect.Type, name: str) -> Any:
    match info:
        case msgspec.inspect.StructType():
            return info.cls(**{field.name: _of(field.type, field.name) for field in info.fields})
        case msgspec.inspect.StrType():
            return f"a {name}"
        case msgspec.inspect.IntType():
            return 300 + len(name)
        case msgspec.inspect.FloatType():
            return 1234.5
        case msgspec.inspect.BoolType():
            return True
        case msgspec.inspect.BytesType():
            return b"\x00bytes"
        case msgspec.inspect.LiteralType():
            return [each for each in info.values if each != OTHER][-1]
        case msgspec.inspect.ListType():
            return [_of(info.item_type, name)]
        case msgspec.inspect.DictType():
            return {_of(info.key_type, "key"): _of(info.value_type, name)}
        case msgspec.inspect.UnionType():
            kinds = [kind for kind in info.types if not isinstance(kind, msgspec.inspect.NoneType)]
            return _of(kinds[0], name)
        case msgspec.inspect.AnyType():
            return {"nested": [1, None, "text", 2.5, True]}
    raise NotImplementedError(f"{name}: no sample for {info}")
