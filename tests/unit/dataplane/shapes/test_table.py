"""Wanted and Applied of one map."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.dataplane.shapes.table import Table

KEYS = st.sampled_from([b"a", b"b", b"c"])
VALUES = st.sampled_from([b"1", b"2"])
CONTENTS = st.dictionaries(KEYS, VALUES)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, VALUES),
        st.tuples(st.just("delete"), KEYS, VALUES),
        st.tuples(st.sampled_from(["write", "fail", "adopt", "drift", "meddle"]), KEYS, VALUES),
    ),
    max_size=40,
)


def test_what_is_said_again_is_not_written_again() -> None:
    table = Table("x")
    table.put(b"a", b"1")
    assert table.take() == ({b"a": b"1"}, [])
    table.put(b"a", b"1")
    assert not table.is_dirty
    table.delete(b"b")
    assert not table.is_dirty


def test_what_is_owed_is_handed_out_again_as_it_is_then() -> None:
    table = Table("x")
    table.put(b"a", b"1")
    upserts, gone = table.take()
    table.delete(b"a")
    table.owe([*upserts, *gone])
    assert table.take() == ({}, [b"a"])


def test_an_adopted_map_is_owed_the_differences_and_no_more() -> None:
    table = Table("x")
    table.put(b"same", b"1")
    table.put(b"other", b"1")
    table.put(b"missing", b"1")
    table.adopt({b"same": b"1", b"other": b"2", b"old": b"3"})
    assert table.take() == ({b"other": b"1", b"missing": b"1"}, [b"old"])


def test_drift_is_what_someone_else_did() -> None:
    table = Table("x")
    table.put(b"a", b"1")
    table.put(b"b", b"1")
    table.take()
    table.put(b"c", b"1")  # not yet written: no drift
    assert table.drift({b"a": b"2", b"z": b"9"}) == 3
    assert table.drift({b"a": b"2", b"z": b"9"}) == 0
    upserts, gone = table.take()
    assert (upserts, gone) == ({b"a": b"1", b"b": b"1", b"c": b"1"}, [b"z"])


@given(CONTENTS, CHANGES)
def test_whatever_happens_the_map_ends_as_wanted(
    seen: dict[bytes, bytes], changes: list[tuple[str, bytes, bytes]]
) -> None:
    table = Table("x")
    kernel = dict(seen)
    wanted: dict[bytes, bytes] = {}
    for what, key, value in changes:
        if what == "put":
            table.put(key, value)
            wanted[key] = value
        elif what == "delete":
            table.delete(key)
            wanted.pop(key, None)
        elif what == "adopt":
            table.adopt(kernel)
        elif what == "drift":
            table.drift(kernel)
        elif what == "meddle":
            kernel[key] = value
        else:
            upserts, gone = table.take()
            if what == "fail":
                table.owe([*upserts, *gone])
            else:
                write(kernel, upserts, gone)
    table.drift(kernel)
    write(kernel, *table.take())
    assert kernel == wanted == dict(table.wanted)
    assert len(table) == len(wanted)


def write(kernel: dict[bytes, bytes], upserts: dict[bytes, bytes], gone: list[bytes]) -> None:
    kernel.update(upserts)
    for key in gone:
        kernel.pop(key, None)


def test_what_was_written_while_the_map_was_read_is_no_drift() -> None:
    table = Table("x")
    table.put(b"a", b"1")
    table.put(b"b", b"1")
    table.take()
    seen = {b"a": b"1", b"z": b"9"}  # read before b was written and z was removed
    assert table.differing(seen) == {b"b", b"z"}
    assert table.drift_at({b"b": b"1", b"z": None}) == 0
    assert not table.is_dirty
    assert table.drift_at({b"b": None, b"z": b"9"}) == 2
    assert table.take() == ({b"b": b"1"}, [b"z"])


def test_what_is_owed_already_is_no_drift() -> None:
    table = Table("x")
    table.put(b"a", b"1")
    assert table.differing({}) == set()
    assert table.drift_at({b"a": None}) == 0
