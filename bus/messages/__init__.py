"""Every message on the bus, as a type; a file per owner.

A message is a frozen msgspec struct. Types are checked while decoding and the bad field is named.
Rules of change: a new field gets a default; nothing is renamed or retyped; `schema` rises when a meaning changes.

Words (a `Literal`) are of two kinds. One that describes lists "other", which no writer says: a word that an older
reader does not know reads so, and the rest of the message counts (`bus/codec.py`). One that decides (a direction, a
protocol, an operator) lists no "other": guessing it could open something, so the message is refused with the field's
name, what was said before it stays in force, and the check "changes" tells. A field whose meaning an older reader must
not pass over (a rule that denies) is such a change of meaning too: `schema` rises with it.
"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec

OTHER: Final = "other"
"""What an older reader makes of a descriptive word that it does not know."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What travels on one subject. Unknown fields of a newer writer are passed over."""

    schema: ClassVar[int] = 1


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of a message; it never travels alone."""
