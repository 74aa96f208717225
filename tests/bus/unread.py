"""Values on the subjects of identities and blocks that this version cannot read."""

from __future__ import annotations

from typing import ClassVar

from bus.messages import Message


class NewerIdentity(Message, frozen=True, kw_only=True):
    """As a later version may write it: the same fields, and another meaning."""

    schema: ClassVar[int] = 99

    number: int


class NewerBlock(Message, frozen=True, kw_only=True):
    schema: ClassVar[int] = 99

    cidr: str


class Garbled(Message, frozen=True, kw_only=True):
    """What no version means: `number` is a number."""

    number: str
