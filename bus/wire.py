"""How an owner hands its log to those who watch it: deltas, heartbeats, snapshots. MessagePack arrays.

The bodies of states travel inside as they are in the log, so an entry that does not decode harms only itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, TypeVar

import msgspec
import zstandard
from msgspec import Meta

from bus.codec import Undecodable

CHUNK_BYTES = 256 * 1024  # entries go into one message until they reach this; so a message stays below 1 MiB
SCHEMA = 1
_UNPACKED_LIMIT_BYTES = 16 * 1024 * 1024  # no honest chunk unpacks to more


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """One message of a log. `body` None: the key is gone."""

    sequence: int
    subject: str
    body: bytes | None
    caused_at: float = 0.0  # seconds since the epoch, 0.0: not known
    trace: dict[str, str] = {}
    stored_at: float = 0.0  # seconds since the epoch, by the server's clock; 0.0: not known


UNREAD = b""
"""In the place of a value that is there and was not kept: it is to be read again. No message is so short."""


class Delta(msgspec.Struct, array_like=True, frozen=True):
    """What was added to a log after `previous`, up to `last`. Without entries: a heartbeat."""

    schema: int
    log: str  # which log this is: changes when the stream was made anew or went back
    previous: int
    last: int
    revision: dict[str, int]  # empty: the owner has not heard enough to say
    entries: list[Entry]
    digests: dict[str, str] = {}  # what the owner's model says at `last`, by noun (bus/digest.py); empty: it is writing


PATTERNS_MOST = 64  # of one question: each key of the log is held against all of them
Pattern = Annotated[str, Meta(max_length=1000)]


class SnapshotQuestion(msgspec.Struct, array_like=True, frozen=True):
    """What do these patterns hold? All, or what changed after `since` when the log is still `log`."""

    schema: int
    log: Annotated[str, Meta(max_length=200)]
    since: int
    patterns: Annotated[list[Pattern], Meta(max_length=PATTERNS_MOST)]


class SnapshotChunk(msgspec.Struct, array_like=True, frozen=True):
    """Piece `number` (from 0) of `of`. `since` 0: it is everything, what is missing is gone."""

    schema: int
    log: str
    since: int
    last: int
    revision: dict[str, int]
    number: int
    of: int
    packed: bytes  # zstandard over a MessagePack array of entries


W = TypeVar("W", Delta, SnapshotQuestion, SnapshotChunk)

_encoder = msgspec.msgpack.Encoder()
_entries = msgspec.msgpack.Decoder(list[Entry])
_decoders: dict[type[Any], msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Delta, SnapshotQuestion, SnapshotChunk)
}


def pack(value: Delta | SnapshotQuestion | SnapshotChunk) -> bytes:
    return _encoder.encode(value)


def unpack(subject: str, body: bytes, kind: type[W]) -> W:
    """Raises: Undecodable, and nothing else."""
    try:
        value: W = _decoders[kind].decode(body)
    except Exception as problem:  # noqa: BLE001  # one answer to hostile bytes, as in codec.decode
        raise Undecodable(subject, str(problem) or type(problem).__name__) from None
    if value.schema > SCHEMA:
        raise Undecodable(subject, f"schema {value.schema} is newer than {SCHEMA}, which is known here")
    return value


def pack_entries(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Entries, compressed, in pieces that each fit into one message; at least one piece."""
    compressor = zstandard.ZstdCompressor(level=1)
    pieces = 0
    for piece in in_pieces(entries):
        pieces += 1
        yield compressor.compress(_encoder.encode(piece))
    if not pieces:
        yield compressor.compress(_encoder.encode([]))


def unpack_entries(subject: str, packed: bytes) -> list[Entry]:
    """Raises: Undecodable, and nothing else."""
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= _UNPACKED_LIMIT_BYTES:
            raise Undecodable(subject, f"a chunk of {size} bytes, the limit is {_UNPACKED_LIMIT_BYTES}")
        return _entries.decode(zstandard.ZstdDecompressor().decompress(packed))
    except Undecodable:
        raise
    except Exception as problem:  # noqa: BLE001  # one answer to hostile bytes, as in codec.decode
        raise Undecodable(subject, str(problem) or type(problem).__name__) from None


def in_pieces(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Entries in order, cut into lists of about CHUNK_BYTES each."""
    piece: list[Entry] = []
    size = 0
    for entry in entries:
        piece.append(entry)
        size += len(entry.body or b"") + len(entry.subject) + 64
        if size >= CHUNK_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


class Interest:
    """Which subjects a reader asked for. Patterns are whole subjects, or end in ".>"."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = sorted(set(patterns))
        self._exact = frozenset(pattern for pattern in self.patterns if not pattern.endswith(".>"))
        self._prefixes = tuple(pattern[:-1] for pattern in self.patterns if pattern.endswith(".>"))

    def has(self, subject: str) -> bool:
        return subject in self._exact or subject.startswith(self._prefixes)
