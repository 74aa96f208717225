"""The owner's memory of its log: what it can still tell to one who was away."""

from __future__ import annotations

from bus.outbox import Table
from bus.wire import Entry, Interest

ALL = Interest(["s.>"])


def entry(sequence: int, key: str, body: bytes | None = b"v", stored_at: float = 0.0) -> Entry:
    return Entry(sequence, f"s.{key}", body, stored_at=stored_at)


def test_one_who_missed_a_deletion_is_told_of_it() -> None:
    table = Table()
    table.put(entry(1, "a"))
    table.put(entry(2, "a", None, stored_at=100.0))
    assert table.since(1, ALL) == (1, [entry(2, "a", None, stored_at=100.0)])


def test_one_who_was_away_for_longer_than_deletions_are_kept_gets_everything() -> None:
    table = Table()
    table.put(entry(1, "a"))
    table.put(entry(2, "a", None, stored_at=100.0))
    table.put(entry(3, "b", stored_at=200.0))
    table.forget_deletions(before=150.0)
    assert table.since(1, ALL) == (0, [entry(3, "b", stored_at=200.0)])
    assert table.since(2, ALL) == (2, [entry(3, "b", stored_at=200.0)])


def test_after_loading_only_what_came_after_the_first_recent_entry_is_sure() -> None:
    table = Table()
    table.put(entry(5, "a", stored_at=10.0))
    table.put(entry(9, "b", stored_at=1000.0))
    table.set_floor(12, recent=500.0)
    assert table.since(5, ALL)[0] == 0
    assert table.since(8, ALL)[0] == 8


def test_a_log_without_recent_entries_can_only_be_continued_at_its_end() -> None:
    table = Table()
    table.put(entry(5, "a", stored_at=10.0))
    table.set_floor(7, recent=500.0)
    assert table.since(6, ALL)[0] == 0
    assert table.since(7, ALL) == (7, [])


def test_a_log_seen_before_a_key_was_written_has_lost_nothing_without_it() -> None:
    """What the server tells of its log may be older than what it has acknowledged since."""
    table = Table()
    table.put(entry(1, "a"))
    table.put(entry(2, "b"))
    table.put(entry(3, "a", b"again"))
    table.put(entry(4, "c", None, stored_at=100.0))
    assert table.least_messages(1, recent=0.0) == 0  # "a" was another message then
    assert table.least_messages(2, recent=0.0) == 1
    assert table.least_messages(4, recent=0.0) == 3
    assert table.least_messages(4, recent=200.0) == 2


def test_an_entry_that_comes_late_changes_nothing() -> None:
    table = Table()
    table.put(entry(3, "a", b"new"))
    table.put(entry(2, "a", b"old"))
    assert table.body("s.a") == b"new" and table.sequence("s.a") == 3
