"""Every message on the bus, as a type; a file per owner.

A message is a frozen msgspec struct. Types are checked while decoding and the bad field is named.
Rules of change: a new field gets a default; nothing is renamed or retyped; `schema` rises when a meaning changes.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What travels on one subject. Unknown fields of a newer writer are passed over."""

    schema: ClassVar[int] = 1


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of a message; it never travels alone."""
