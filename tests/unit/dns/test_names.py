"""What is known of names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.patterns import Patterns
from services.dns.names import Names
from services.dns.wire import Found


def known(minimum_ttl: float = 0.0, most: int = 10) -> Names:
    names = Names(minimum_ttl, most)
    names.want(Patterns(patterns=["*.b"]))
    return names


def test_only_new_addresses_are_new() -> None:
    names = known()
    assert names.learn("a.b", [Found("192.0.2.1", 10), Found("192.0.2.2", 20)], 100.0) == {"192.0.2.1", "192.0.2.2"}
    assert names.learn("a.b", [Found("192.0.2.1", 10)], 105.0) == set()
    assert names.addresses("a.b") == {"192.0.2.1": 115.0, "192.0.2.2": 120.0}
    assert names.learn("a.c", [Found("192.0.2.1", 10)], 100.0) == set()
    assert list(names) == ["a.b"]


def test_the_later_end_holds_and_then_it_is_over() -> None:
    names = known()
    names.learn("a.b", [Found("192.0.2.1", 60)], 0.0)
    names.learn("a.b", [Found("192.0.2.1", 1)], 1.0)
    assert names.over(59.0) == {}
    assert names.next_end() == 60.0
    assert names.over(60.0) == {"a.b": {"192.0.2.1"}}
    assert len(names) == 0


def test_the_minimum_holds_for_short_answers() -> None:
    names = known(minimum_ttl=30.0)
    names.learn("a.b", [Found("192.0.2.1", 0)], 0.0)
    assert names.over(29.0) == {}
    assert names.over(30.0) == {"a.b": {"192.0.2.1"}}


def test_over_the_limit_those_go_whose_time_is_over_first() -> None:
    names = known(most=2)
    names.learn("a.b", [Found("192.0.2.1", 10), Found("192.0.2.2", 30)], 0.0)
    assert names.learn("a.b", [Found("192.0.2.3", 20), Found("192.0.2.4", 5)], 0.0) == {"192.0.2.3"}
    assert set(names.addresses("a.b")) == {"192.0.2.2", "192.0.2.3"}


def test_what_is_wanted_no_more_is_forgotten() -> None:
    names = known()
    names.learn("a.b", [Found("192.0.2.1", 10)], 0.0)
    assert names.want(Patterns(names=["c.b"])) == {"a.b"}
    assert len(names) == 0
    assert names.over(100.0) == {}


LEARNED = st.tuples(st.sampled_from(["a.b", "c.b"]), st.sampled_from("123"), st.integers(0, 20), st.integers(0, 5))


@given(st.lists(LEARNED))
def test_an_address_is_there_exactly_as_long_as_some_answer_says(steps: list[tuple[str, str, int, int]]) -> None:
    names, ends, now = known(), dict[tuple[str, str], int](), 0
    for name, address, ttl, passed in steps:
        now += passed
        names.over(now)
        names.learn(name, [Found(address, ttl)], now)
        ends[name, address] = max(ends.get((name, address), 0), now + ttl)
        names.over(now)
        alive = {key for key, end in ends.items() if end > now}
        assert {(each, found) for each in names for found in names.addresses(each)} == alive
