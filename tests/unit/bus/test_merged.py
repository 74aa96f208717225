"""What a reader is told that was busy while much has come."""

from __future__ import annotations

from bus import subjects
from bus.codec import encode
from bus.messages.resources import Namespace
from bus.watch import Merged, new_view
from bus.wire import Entry, Interest

A, B = subjects.NAMESPACE.of("a"), subjects.NAMESPACE.of("b")


def entry(sequence: int, subject: str, name: str = "") -> Entry:
    return Entry(sequence, subject, encode(Namespace(name=name)) if name else None)


def merged() -> Merged:
    return Merged({"resources": new_view("resources", Interest([subjects.NAMESPACE.all()]), direct=True)})


def test_of_each_key_the_latest_is_told_in_the_order_of_the_log() -> None:
    found = merged()
    found.add([entry(1, A, "a"), entry(2, B, "b")])
    found.add([entry(3, A)])
    batch = found.take()
    assert batch is not None and [(each.subject, each.message) for each in batch.changes] == [
        (B, Namespace(name="b")),
        (A, None),
    ]
    found.add([entry(4, A), entry(5, A, "a")])
    batch = found.take()
    assert batch is not None and [(each.subject, each.sequence) for each in batch.changes] == [(A, 5)]


def test_every_loss_is_told_and_once() -> None:
    found = merged()
    found.lose("resources")
    found.add([entry(1, A, "a")])
    found.lose("lb")
    batch = found.take()
    assert batch is not None and batch.lost == {"resources", "lb"}
    found.add([entry(2, A)])
    batch = found.take()
    assert batch is not None and not batch.lost


def test_what_completes_the_first_reading_comes_with_all_that_came_before_it() -> None:
    found = merged()
    view = found.views["resources"]
    view.begin("log")
    found.add([entry(1, A, "a")])
    view.record(entry(2, B, "b"))
    found.add(view.finish(2))
    batch = found.take()
    assert batch is not None and batch.synced and batch.revision == {"resources": 2}
    assert {each.subject for each in batch.changes} == {A, B}
    assert found.take() is None


def test_what_can_be_read_again_is_not_unreadable() -> None:
    found = merged()
    found.add([Entry(1, A, b"\xc1"), Entry(2, B, b"\xc1")])
    found.add([entry(3, A, "a")])
    batch = found.take()
    assert batch is not None and batch.unreadable == {B}
    assert [each.subject for each in batch.changes] == [A]
