"""One node keeps no reader busy, and takes no other node's place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.bounds import CHANGES, CHANGES_PER_SECOND, KEYS, Bounds
from bus.wire import Entry

MOST_PODS = 250  # of a node that is told so; 110 else
CHANGES_A_POD = 4  # waiting for an identity, for its policy, ready; gone


def entry(number: int, node: str = "a", *, gone: bool = False) -> Entry:
    return Entry(number + 1, f"state.dataplane.endpoint.{node}.default.p{number}", None if gone else b"x")


def test_keys_beyond_the_bound_do_not_count_until_others_go() -> None:
    found = Bounds()
    assert found.admit([entry(number) for number in range(KEYS + 3)], 0.0) == [entry(number) for number in range(KEYS)]
    assert found.problems == {"a": f"3 keys beyond {KEYS}, which do not count"}
    assert found.admit([entry(0, "b")], 0.0) == [entry(0, "b")], "another node has its own bound"
    assert found.admit([entry(7)], 0.0) == [entry(7)], "a key that counts may change"
    assert found.room() == []
    assert found.admit([entry(7, gone=True)], 0.0) == [entry(7, gone=True)]
    assert found.room() == [entry(KEYS).subject]
    assert found.admit([entry(KEYS)], 0.0) == [entry(KEYS)]
    assert found.admit([entry(KEYS + 1, gone=True)], 0.0) == [], "nobody was told of it"
    assert not found.is_over(entry(KEYS + 1).subject) and found.is_over(entry(KEYS + 2).subject)
    assert found.admit([entry(8, gone=True), entry(KEYS + 2)], 0.0) == [entry(8, gone=True), entry(KEYS + 2)]
    assert found.problems == {}


def test_a_key_that_is_told_again_and_again_is_one_key_beyond_the_bound() -> None:
    found = Bounds()
    found.admit([entry(number) for number in range(KEYS)], 0.0)
    found.admit([entry(KEYS)] * 10, 0.0)
    assert found.problems == {"a": f"1 keys beyond {KEYS}, which do not count"}
    found.admit([entry(KEYS, gone=True)], 0.0)
    assert found.problems == {}


def test_changes_beyond_the_rate_come_later_and_the_latest_of_each_key_only() -> None:
    found = Bounds()
    now = 1000.0
    assert len(found.admit([entry(1)] * CHANGES, now)) == CHANGES
    late = [Entry(5000 + number, entry(number % 3).subject, b"y") for number in range(300)]
    assert found.admit(late, now) == []
    assert found.problems == {"a": f"3 changes beyond {CHANGES_PER_SECOND:.0f} a second wait"}
    assert found.admit([entry(1, "b")], now) == [entry(1, "b")], "another node is heard at once"
    assert found.release(now + 2.5 / CHANGES_PER_SECOND) == late[-3:-1]
    assert found.release(now + 10 / CHANGES_PER_SECOND) == late[-1:]
    assert found.problems == {}


def test_what_is_held_back_is_bounded_whatever_comes_and_goes() -> None:
    found = Bounds()
    found.admit([entry(0)] * CHANGES, 0.0)
    for number in range(3 * KEYS):
        assert found.admit([entry(number)], 0.0) == []
        assert number % 2 or found.admit([entry(number, gone=True)], 0.0) == []
    waits = int(found.problems["a"].partition(" changes beyond ")[0].rpartition(" ")[2])
    assert waits <= KEYS
    assert len(found.release(1e6)) <= KEYS


def test_a_node_with_all_the_pods_that_it_may_have_is_never_bound() -> None:
    """All its pods start at once, it is started again, its readers read all of it anew, and all pods go and come."""
    found = Bounds()
    everything = [entry(number) for number in range(MOST_PODS)]
    now = 0.0
    for _ in range(10):
        for batch in (
            [everything] * (CHANGES_A_POD - 1) + [everything] + [[entry(n, gone=True) for n in range(MOST_PODS)]]
        ):
            assert found.admit(batch, now) == batch
            assert found.problems == {}
        now += 15.0  # no runtime ends and starts 250 pods in less


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.floats(0, 0.02))))
def test_in_the_end_the_reader_has_what_the_log_has(steps: list[tuple[int, bool, float]]) -> None:
    """Whatever was held back on the way: with the bound drained first, so that every step is over the rate."""
    found = Bounds()
    log: dict[str, Entry] = {}
    told: dict[str, Entry] = {}

    def tell(entries: list[Entry]) -> None:
        for each in entries:
            if each.body is None:
                del told[each.subject]  # a deletion of what was told, and of nothing else
            else:
                told[each.subject] = each

    tell(found.admit([entry(0)] * CHANGES, 0.0))
    log[entry(0).subject] = entry(0)
    now = 0.0
    for sequence, (number, gone, later) in enumerate(steps):
        now += later
        subject = entry(number).subject
        if gone and subject not in log:
            continue
        change = Entry(sequence, subject, None if gone else b"%d" % sequence)
        if gone:
            del log[subject]
        else:
            log[subject] = change
        tell(found.admit([change], now))
        tell(found.release(now))
    tell(found.release(now + 100))
    assert told == log and found.problems == {}
