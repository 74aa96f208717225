"""What a reader makes of deltas, snapshots and full readings, whatever is missing from them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.codec import encode
from bus.messages.log import Vouched
from bus.view import HELD_MOST, View
from bus.wire import SCHEMA, UNREAD, Delta, Entry, Interest

ALL = Interest(["s.>"])


def put(sequence: int, key: str) -> Entry:
    return Entry(sequence, f"s.{key}", b"%d" % sequence)


def gone(sequence: int, key: str) -> Entry:
    return Entry(sequence, f"s.{key}", None)


def delta(previous: int, last: int, *entries: Entry, log: str = "log") -> Delta:
    return Delta(SCHEMA, log, previous, last, {}, list(entries))


def view(*entries: Entry, last: int = 0) -> View:
    made = View(ALL)
    news = made.snapshot("log", 0, last, {}, entries)
    assert news == [entry for entry in entries if entry.body and ".vouched." not in entry.subject]
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
    assert told.record(put(2, "a")) == []
    assert told.finish(2) == [put(2, "a")]


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


def is_waiting(told: View) -> bool:
    return told.waits and not told.complete


def vouch(sequence: int, number: int, writer: str = "s") -> Entry:
    return Entry(sequence, f"s.o.vouched.{writer}", encode(Vouched(writer=writer, number=number)))


def read(told: View, *entries: Entry, log: str, went_back: bool = False) -> list[Entry]:
    """A full reading of the log itself."""
    told.begin(log, went_back=went_back)
    last = max((entry.sequence for entry in entries), default=0)
    return [*(news for entry in entries for news in told.record(entry)), *told.finish(last)]


def test_a_log_that_began_anew_takes_nothing_away_until_it_is_vouched_for() -> None:
    told = view(put(1, "a"), put(2, "b"), vouch(3, 10), last=3)
    assert read(told, put(1, "a"), log="new") == []
    assert is_waiting(told)
    assert told.record(put(2, "c")) == []
    assert told.position == 2 and told.included == 0, "what is held back is no revision that anybody has realised"
    assert told.record(vouch(3, 11)) == [put(1, "a"), put(2, "c"), gone(3, "b")]
    assert told.included == 3
    assert told.complete and told.record(put(4, "d")) == [put(4, "d")]


def test_an_older_copy_is_not_believed_though_it_was_vouched_for_once() -> None:
    told = view(put(1, "a"), vouch(2, 10), put(3, "b"), last=3)
    assert told.delta(delta(3, 5, put(4, "a"), vouch(5, 20))) == [put(4, "a")]
    assert read(told, put(1, "a"), vouch(2, 10), log="log", went_back=True) == []
    assert read(told, put(1, "a"), vouch(2, 10), log="log") == []  # nor when it is read again
    assert told.record(put(6, "a")) == []
    assert told.record(vouch(7, 21)) == [put(6, "a"), gone(7, "b")]


def test_who_reads_for_the_first_time_waits_where_it_has_to_and_only_there() -> None:
    patient = View(ALL, patient=True)
    assert read(patient, put(1, "a"), log="log") == []
    assert is_waiting(patient)
    assert patient.record(vouch(2, 1)) == [put(1, "a")]
    assert not is_waiting(patient)
    direct = View(ALL)
    assert read(direct, put(1, "a"), log="log") == [put(1, "a")] and direct.complete


def test_each_writer_of_a_log_of_many_vouches_for_its_own_keys_alone() -> None:
    one, two = (Entry(number, f"s.o.endpoint.n{number}.a", b"") for number in (1, 2))
    told = View(ALL, by_node=True)
    assert read(told, one, two, log="log") == [one, two]
    assert read(told, log="new") == [] and told.complete
    assert told.record(vouch(1, 5, "n1")) == [Entry(1, one.subject, None)]
    again = Entry(2, two.subject, b"x")
    assert told.record(again) == []
    assert told.record(vouch(3, 6, "n2")) == [again]
    new = Entry(4, "s.o.endpoint.n3.a", b"")
    assert told.record(new) == [new]


def test_a_log_that_was_purged_has_lost_what_the_reader_knows() -> None:
    told = view(put(3, "a"), put(5, "b"), last=5)
    assert not told.lost(3) and told.lost(4)
    assert told.probe() == ("s.b", 5)


def test_a_word_that_was_heard_before_the_loss_was_noticed_counts_when_it_is_read_again() -> None:
    """The writer may notice first, say all again and vouch, and be heard as if the log went on."""
    told = view(put(1, "a"), put(2, "b"), vouch(3, 10), last=3)
    assert told.record(put(4, "a")) == [put(4, "a")]
    assert told.record(vouch(5, 20)) == []
    assert read(told, put(1, "c"), put(4, "a"), vouch(5, 20), log="new") == [put(1, "c"), put(4, "a"), gone(5, "b")]
    told.confirm()
    assert read(told, put(4, "a"), vouch(5, 20), log="newer") == []


def of_many(*entries: Entry) -> View:
    """A reader of a log of two writers, each of whom has vouched."""
    made = View(Interest(["state.x.y.>"]), ["state.x.vouched.>"], by_node=True)
    made.begin("log")
    for entry in entries:
        made.record(entry)
    made.finish(max(entry.sequence for entry in entries))
    made.confirm()
    return made


def key(sequence: int, writer: str, name: str, *, is_gone: bool = False) -> Entry:
    return Entry(sequence, f"state.x.y.{writer}.{name}", None if is_gone else b"%d" % sequence)


def word(sequence: int, writer: str, number: int) -> Entry:
    return Entry(sequence, f"state.x.vouched.{writer}", encode(Vouched(writer=writer, number=number)))


BOTH = (key(1, "a", "p"), key(2, "b", "p"), word(3, "a", 10), word(4, "b", 10), key(5, "a", "q"))


def test_of_many_writers_the_one_whose_key_is_missing_vouches_anew_and_the_others_are_heard() -> None:
    told = of_many(*BOTH)
    told.begin("log", has_lost=True)
    for entry in (key(1, "a", "p"), key(2, "b", "p"), word(3, "a", 10), word(4, "b", 10), key(6, "b", "new")):
        assert told.record(entry) == []
    assert told.finish(6) == [key(6, "b", "new")]
    assert told.waited_for == {"a"}
    assert told.record(key(7, "b", "p")) == [key(7, "b", "p")]
    assert told.record(key(8, "a", "r")) == []
    assert told.record(word(9, "a", 11)) == [key(1, "a", "p"), key(8, "a", "r"), Entry(9, "state.x.y.a.q", None)]
    assert not told.waited_for


def test_a_key_whose_end_is_shown_is_missed_by_nobody() -> None:
    told = of_many(*BOTH)
    told.begin("log", has_lost=True)
    for entry in (*BOTH[:4], key(6, "a", "q", is_gone=True)):
        told.record(entry)
    assert told.finish(6) == [Entry(6, "state.x.y.a.q", None)]
    assert not told.waited_for


def test_one_who_has_vouched_since_is_not_waited_for() -> None:
    told = of_many(*BOTH)
    told.begin("log", has_lost=True)
    for entry in (key(1, "a", "p"), key(2, "b", "p"), word(4, "b", 10), word(7, "a", 11)):
        told.record(entry)
    assert told.finish(7) == [key(1, "a", "p"), Entry(7, "state.x.y.a.q", None)]
    assert not told.waited_for


def test_an_older_value_shows_that_the_log_went_back_for_everyone() -> None:
    """It has grown beyond where it was, so that nothing else tells."""
    told = of_many(key(2, "b", "p"), word(3, "a", 10), word(4, "b", 10), key(5, "a", "p"))
    told.begin("log", has_lost=True)
    for entry in (key(1, "a", "p"), key(2, "b", "p"), word(3, "a", 10), word(4, "b", 10), key(9, "b", "new")):
        told.record(entry)
    assert told.finish(9) == []
    assert told.waited_for == {"a", "b"}


def test_of_one_writer_a_full_reading_keeps_so_many_values_and_no_more() -> None:
    told = View(Interest(["state.x.y.>"]), ["state.x.vouched.>"], by_node=True)
    told.begin("log")
    for number in range(HELD_MOST + 10):
        told.record(key(number + 1, "a", f"p{number}"))
    told.record(key(HELD_MOST + 100, "b", "p"))
    news = told.finish(HELD_MOST + 100)
    assert [each.body == UNREAD for each in news] == [False] * HELD_MOST + [True] * 10 + [False]


def test_what_is_waited_for_is_never_lowered_by_a_second_loss() -> None:
    """The first reading is to find at least 9, finds 5 and waits; the log is put back from yet another older copy."""
    told = View(ALL, ["s.o.vouched.>"], patient=True)
    told.expect(9)
    assert read(told, put(1, "a"), vouch(2, 5), log="one") == []
    told.confirm()
    assert read(told, put(1, "a"), vouch(2, 6), log="two") == [] and told.waits
    assert read(told, put(1, "b"), vouch(2, 9), log="three") == [put(1, "b")]
