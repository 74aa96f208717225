"""What a reader makes of deltas, snapshots and full readings, whatever is missing from them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.view import View
from bus.wire import SCHEMA, Delta, Entry, Interest

ALL = Interest(["s.>"])


def put(sequence: int, key: str) -> Entry:
    return Entry(sequence, f"s.{key}", b"%d" % sequence)


def gone(sequence: int, key: str) -> Entry:
    return Entry(sequence, f"s.{key}", None)


def delta(previous: int, last: int, *entries: Entry, log: str = "log") -> Delta:
    return Delta(SCHEMA, log, previous, last, {}, list(entries))


def view(*entries: Entry, last: int = 0) -> View:
    made = View(ALL)
    assert made.snapshot("log", 0, last, {}, entries) == [entry for entry in entries if entry.body]
    return made


def test_a_delta_that_continues_is_told() -> None:
    told = view(put(1, "a"), last=1)
    assert told.delta(delta(1, 3, put(2, "b"), gone(3, "a"))) == [put(2, "b"), gone(3, "a")]
    assert told.position == 3


def test_a_delta_after_a_gap_or_of_another_log_asks_for_more() -> None:
    told = view(put(1, "a"), last=1)
    assert told.delta(delta(2, 3, put(3, "b"))) is None
    assert told.delta(delta(1, 2, put(2, "b"), log="other")) is None
    assert told.position == 1


def test_a_delta_that_overlaps_tells_only_what_is_new_and_revives_nothing() -> None:
    told = view(put(1, "a"), put(2, "b"), last=2)
    assert told.delta(delta(2, 3, gone(3, "a"))) == [gone(3, "a")]
    assert told.delta(delta(0, 4, put(1, "a"), put(2, "b"), put(4, "c"))) == [put(4, "c")]


def test_one_late_heartbeat_is_passed_over_and_a_second_one_is_not() -> None:
    told = view(put(1, "a"), put(5, "b"), last=5)
    assert told.delta(delta(3, 3)) == []
    assert told.delta(delta(3, 3)) is None


def test_a_full_reading_finds_what_is_gone_and_repeats_nothing() -> None:
    told = view(put(1, "a"), put(2, "b"), last=2)
    news = told.snapshot("log", 0, 9, {}, [put(2, "b"), put(9, "c")])
    assert news == [put(9, "c"), gone(9, "a")]


def test_another_log_is_told_in_full_even_where_its_sequences_look_old() -> None:
    told = view(put(7, "a"), put(8, "b"), last=8)
    assert told.snapshot("new", 0, 1, {}, [put(1, "a")]) == [put(1, "a"), gone(1, "b")]
    assert told.position == 1


def test_a_snapshot_behind_what_was_heard_is_left_to_the_log_itself() -> None:
    told = view(put(7, "a"), last=7)
    assert told.snapshot("log", 0, 5, {}, []) is None
    assert told.delta(delta(7, 8, put(8, "a"))) == [put(8, "a")]


def test_the_rest_is_asked_for_only_in_the_log_that_was_read_to_the_end() -> None:
    told = View(ALL)
    assert told.since("log") == 0
    told.begin("log")
    told.record(put(3, "a"))
    assert told.since("log") == 0
    told.finish(3)
    assert told.since("log") == 3 and told.since("other") == 0


def test_a_key_that_changes_while_a_full_reading_runs_is_not_taken_for_gone() -> None:
    told = view(put(1, "a"), last=1)
    told.begin("log")
    assert told.record(put(2, "a")) == put(2, "a")
    assert told.finish(2) == []


def test_interest_is_whole_subjects_and_their_beginnings() -> None:
    some = Interest(["s.pod.default.>", "s.node.n1"])
    assert some.has("s.pod.default.a") and some.has("s.node.n1")
    assert not some.has("s.pod.default") and not some.has("s.node.n10") and not some.has("s.pod.other.a")


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=30),
    st.lists(st.sampled_from(["lose", "deliver", "repeat", "snapshot"]), max_size=40),
)
def test_whatever_is_lost_or_repeated_the_reader_holds_the_log_in_the_end(
    writes: list[tuple[str, bool]], fates: list[str]
) -> None:
    """The log is written one entry at a time; each delta meets a fate; a gap is answered with the rest of the log."""
    told = View(ALL)
    held: dict[str, bytes] = {}
    log: dict[str, Entry] = {}

    def take(news: list[Entry] | None) -> bool:
        for entry in news or ():
            if entry.body is None:
                held.pop(entry.subject, None)
            else:
                held[entry.subject] = entry.body
        return news is not None

    def ask(last: int) -> None:
        since = told.since("log")
        rest = sorted((entry for entry in log.values() if entry.sequence > since), key=lambda entry: entry.sequence)
        assert take(told.snapshot("log", since, last, {}, rest if since else [e for e in rest if e.body is not None]))

    ask(0)
    for sequence, (key, keep) in enumerate(writes, 1):
        entry = put(sequence, key) if keep else gone(sequence, key)
        log[entry.subject] = entry
        fate = fates[sequence % len(fates)] if fates else "deliver"
        if fate == "snapshot":
            ask(sequence)
        for _ in range({"lose": 0, "repeat": 2}.get(fate, 1)):
            if not take(told.delta(delta(sequence - 1, sequence, entry))):
                ask(sequence)
    if not take(told.delta(delta(len(writes), len(writes)))):
        ask(len(writes))
    assert held == {entry.subject: entry.body for entry in log.values() if entry.body is not None}
