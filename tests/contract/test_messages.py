"""Messages survive old and new readers, and no bytes do harm."""

from __future__ import annotations

import copy
import functools
import operator
import random
import re
from collections.abc import Iterator
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import subjects, wire
from bus.codec import LIMIT_BYTES, TooLarge, Undecodable, decode, encode
from bus.messages import OTHER, Message
from bus.messages.dataplane import Endpoint
from bus.messages.resources import Namespace, Pod, PodStatus
from bus.telemetry import counted
from tests.contract.make_golden import golden
from tests.contract.samples import message_types, name_of, sample

Path = tuple[str | int, ...]

every_message = pytest.mark.parametrize("kind", message_types(), ids=name_of)


@every_message
def test_a_message_is_the_same_after_the_wire(kind: type[Message]) -> None:
    assert decode("s", encode(sample(kind)), kind) == sample(kind)


@every_message
def test_bytes_of_an_older_service_are_read_and_written_back_as_they_were(kind: type[Message]) -> None:
    kept = golden().get(name_of(kind))
    assert kept is not None, "a new message: run `python -m tests.contract.make_golden`"
    again = encode(decode("s", kept, kind))  # with more fields the map's own length may be written another way
    assert msgspec.msgpack.decode(again) == msgspec.msgpack.decode(kept), (
        "a field was renamed, retyped, or given another default"
    )


def test_no_message_that_once_travelled_has_lost_its_name() -> None:
    assert set(golden()) <= {name_of(kind) for kind in message_types()}


@every_message
def test_a_newer_writers_fields_are_passed_over(kind: type[Message]) -> None:
    schema, body = msgspec.msgpack.decode(encode(sample(kind)))
    newer = msgspec.msgpack.encode([schema, body | {"a_field_of_tomorrow": {"deep": [1, 2]}}])
    assert decode("s", newer, kind) == sample(kind)


@every_message
def test_an_older_writers_message_is_read_with_defaults(kind: type[Message]) -> None:
    """A field with a default may be missing; all at once is what the oldest writer would send."""
    required = {field.encode_name for field in msgspec.structs.fields(kind) if field.required}
    schema, body = msgspec.msgpack.decode(encode(sample(kind)))
    older = msgspec.msgpack.encode([schema, {name: value for name, value in body.items() if name in required}])
    assert isinstance(decode("s", older, kind), kind)


def words_in(info: msgspec.inspect.Type, path: Path = ()) -> Iterator[tuple[Path, bool]]:
    """Where the words of a message are, and whether "other" is one."""
    match info:
        case msgspec.inspect.StructType():
            for field in info.fields:
                yield from words_in(field.type, (*path, field.encode_name))
        case msgspec.inspect.ListType():
            yield from words_in(info.item_type, (*path, 0))
        case msgspec.inspect.DictType():
            yield from words_in(info.value_type, (*path, "a key"))
        case msgspec.inspect.UnionType():
            for each in info.types:
                yield from words_in(each, path)
        case msgspec.inspect.LiteralType():
            yield path, OTHER in info.values


EVERY_WORD = [
    pytest.param(kind, path, describes, id=f"{name_of(kind)}-{'.'.join(map(str, path))}")
    for kind in message_types()
    for path, describes in words_in(msgspec.inspect.type_info(kind))
]


@pytest.mark.parametrize(("kind", "path", "describes"), EVERY_WORD)
def test_a_word_of_tomorrow_is_other_where_it_describes_and_refused_where_it_decides(
    kind: type[Message], path: Path, describes: bool
) -> None:
    schema, body = msgspec.msgpack.decode(encode(sample(kind)))
    said, expected = copy.deepcopy(body), copy.deepcopy(body)
    for each, word in ((said, "Tomorrow"), (expected, OTHER)):
        *way, last = path
        functools.reduce(operator.getitem, way, each)[last] = word
    newer = msgspec.msgpack.encode([schema, said])
    if not describes:
        with pytest.raises(Undecodable, match=r"Invalid enum value 'Tomorrow'.*" + re.escape(str(path[-1]))):
            decode("s", newer, kind)
        return
    before = counted("unknown_words", message=kind.__name__)
    assert msgspec.msgpack.decode(encode(decode("s", newer, kind))) == [schema, expected]
    assert counted("unknown_words", message=kind.__name__) == before + 1


def test_words_that_decide_what_passes_are_never_guessed() -> None:
    deciding = {f"{name_of(param.values[0])}.{param.values[1][-1]}" for param in EVERY_WORD if not param.values[2]}  # type: ignore[index,arg-type]
    assert {"policy.PolicyRules.direction", "policy.PolicyRules.protocol", "resources.Policy.operator"} <= deciding


@every_message
def test_a_newer_schema_is_refused_and_says_so(kind: type[Message]) -> None:
    schema, body = msgspec.msgpack.decode(encode(sample(kind)))
    with pytest.raises(Undecodable, match=f"schema {schema + 1} is newer than {schema}"):
        decode("s", msgspec.msgpack.encode([schema + 1, body]), kind)


@every_message
def test_truncated_at_any_length_it_is_undecodable_and_nothing_else(kind: type[Message]) -> None:
    whole = encode(sample(kind))
    for length in range(len(whole)):
        with pytest.raises(Undecodable):
            decode("s", whole[:length], kind)


@every_message
def test_a_flipped_byte_gives_a_message_or_undecodable(kind: type[Message]) -> None:
    whole = encode(sample(kind))
    chance = random.Random(7)
    for at in range(len(whole)):
        spoilt = bytearray(whole)
        spoilt[at] ^= chance.randrange(1, 256)
        with suppress(Undecodable):
            assert isinstance(decode("s", bytes(spoilt), kind), kind)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_undecodable(body: bytes) -> None:
    for read in (
        lambda: decode("s", body, Pod),
        lambda: wire.unpack("s", body, wire.Delta),
        lambda: wire.unpack("s", body, wire.SnapshotQuestion),
        lambda: wire.unpack("s", body, wire.SnapshotChunk),
        lambda: wire.unpack_entries("s", body),
    ):
        with suppress(Undecodable):
            read()


def test_deep_nesting_and_huge_lengths_are_undecodable() -> None:
    deep = b"\x92\x01\x82\xa4name\xa1n\xa8manifest\x81\xa1a" + b"\x91" * 100_000
    huge = b"\x92\x01\x82\xa4name\xdb\xff\xff\xff\xff"
    for body in (deep, huge, b"\xc1", b"\x92\x01\xc0", b"\x92\xcf" + b"\xff" * 8 + b"\x80", b"\x93\x01\x80\x80"):
        with pytest.raises(Undecodable):
            decode("s", body, Namespace)


def test_the_bad_field_is_named() -> None:
    body = msgspec.msgpack.encode([1, {"name": "n", "labels": {"app": 5}}])
    with pytest.raises(Undecodable, match="labels") as refused:
        decode("state.resources.namespace.n", body, Namespace)
    assert refused.value.subject == "state.resources.namespace.n"
    with pytest.raises(Undecodable, match="name"):
        decode("s", msgspec.msgpack.encode([1, {}]), Namespace)


def test_equal_messages_are_equal_bytes_whatever_the_order_of_their_keys() -> None:
    one = Namespace(name="n", labels={"a": "1", "b": "2"})
    other = Namespace(name="n", labels={"b": "2", "a": "1"})
    assert encode(one) == encode(other)


LONG_LISTS = [
    (Endpoint, "addresses", ["10.0.0.1", "fd00::1", "10.0.0.2"]),
    (PodStatus, "addresses", ["10.0.0.1", "fd00::1", "10.0.0.2"]),
    (Endpoint, "interface", "sixteen-letters!"),
    (Endpoint, "mac", "00:00:00:00:00:00:"),
]


@pytest.mark.parametrize(("kind", "field", "value"), LONG_LISTS)
def test_a_node_says_no_more_of_a_pod_than_a_pod_can_have(kind: type[Message], field: str, value: object) -> None:
    """Else one message of a node would have control services write thousands of keys."""
    schema, body = msgspec.msgpack.decode(encode(sample(kind)))
    with pytest.raises(Undecodable, match=rf"length <= \d+.*{field}"):
        decode("s", msgspec.msgpack.encode([schema, body | {field: value}]), kind)


def test_a_question_for_a_snapshot_names_no_more_patterns_than_a_reader_has() -> None:
    for patterns in (["state.resources.pod.>"] * (wire.PATTERNS_MOST + 1), ["x" * 1001]):
        with pytest.raises(Undecodable, match="length <= "):
            wire.unpack("s", wire.pack(wire.SnapshotQuestion(1, "log", 0, patterns)), wire.SnapshotQuestion)


def test_what_is_too_large_is_refused_on_both_sides() -> None:
    large = Namespace(name="n", manifest={"text": "x" * LIMIT_BYTES})
    with pytest.raises(TooLarge, match="limit"):
        encode(large)
    with pytest.raises(Undecodable, match="limit"):
        decode("s", encode(large, limit=10 * LIMIT_BYTES), Namespace)


ENTRIES = [
    wire.Entry(1, "state.resources.pod.a.b", b"\x92\x01\x80", 12.5, {"traceparent": "00-a-b-01"}, 13.5),
    wire.Entry(2, "state.resources.pod.a.c", None),
]
FRAMES = [
    wire.Delta(1, "log", 0, 2, {"resources": 2}, ENTRIES),
    wire.SnapshotQuestion(1, "log", 7, ["state.resources.>"]),
    wire.SnapshotChunk(1, "log", 0, 2, {"resources": 2}, 0, 1, next(iter(wire.pack_entries(ENTRIES)))),
]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_what_owners_hand_out_survives_the_wire_and_is_undecodable_when_cut(
    frame: wire.Delta | wire.SnapshotQuestion | wire.SnapshotChunk,
) -> None:
    whole = wire.pack(frame)
    kind = type(frame)
    assert wire.unpack("s", whole, kind) == frame  # type: ignore[type-var]
    for length in range(len(whole)):
        with pytest.raises(Undecodable):
            wire.unpack("s", whole[:length], kind)  # type: ignore[type-var]
    newer = msgspec.msgpack.encode([2, *msgspec.msgpack.decode(whole)[1:]])
    with pytest.raises(Undecodable, match="newer"):
        wire.unpack("s", newer, kind)  # type: ignore[type-var]


def test_entries_survive_compression_and_are_undecodable_when_cut() -> None:
    (packed,) = wire.pack_entries(ENTRIES)
    assert wire.unpack_entries("s", packed) == ENTRIES
    for length in range(len(packed)):
        with pytest.raises(Undecodable):
            wire.unpack_entries("s", packed[:length])


def test_every_family_and_question_names_a_message_that_has_golden_bytes() -> None:
    named = {state.message for state in subjects.STATES}
    named |= {value.message for value in vars(subjects).values() if isinstance(value, subjects.Event)}
    requests = [value for value in vars(subjects).values() if isinstance(value, subjects.Request)]
    named |= {request.message for request in requests} | {request.answer for request in requests}
    assert {name_of(kind) for kind in named} <= set(golden())
