"""What is told to an Envoy, against one that is played: it has what it is sent, and refuses what bears "bad"."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from services.proxy.api import envoy_pb2 as envoy
from services.proxy.exchange import TYPE_PREFIX, Book, Exchange
from services.proxy.resources import CLUSTERS, LISTENERS, ROUTES, Item, Resources, closed_routes


def items(**texts: str) -> dict[str, Item]:
    """A resource's version is its text."""
    return {name: Item(text, text.encode()) for name, text in texts.items()}


def wanted(listeners: dict[str, str], routes: dict[str, str]) -> Resources:
    return {CLUSTERS: items(http="1"), LISTENERS: items(**listeners), ROUTES: items(**routes)}


@dataclass
class Played:
    """An Envoy: it asks for the routes of its listeners, and takes of a bad response what is good in it."""

    has: dict[str, dict[str, str]] = field(default_factory=lambda: {CLUSTERS: {}, LISTENERS: {}, ROUTES: {}})
    asked: set[str] = field(default_factory=set)
    received: list[str] = field(default_factory=list)  # names, in the order in which they came

    def greet(self, exchange: Exchange) -> None:
        for kind in (CLUSTERS, LISTENERS):
            exchange.heard(
                envoy.DeltaDiscoveryRequest(type_url=TYPE_PREFIX + kind, initial_resource_versions=self.has[kind])
            )
        self._asks(exchange, list(self.has[ROUTES]), initial=self.has[ROUTES])

    def _asks(self, exchange: Exchange, names: list[str], initial: dict[str, str] | None = None) -> None:
        request = envoy.DeltaDiscoveryRequest(type_url=TYPE_PREFIX + ROUTES, initial_resource_versions=initial or {})
        self.asked.update(names)
        if names:
            request.resource_names_subscribe.extend(names)
            exchange.heard(request)

    def take(self, exchange: Exchange, response: envoy.DeltaDiscoveryResponse) -> None:
        kind = response.type_url.removeprefix(TYPE_PREFIX)
        answer = envoy.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
        for each in response.resources:
            self.received.append(each.name)
            if kind == ROUTES and each.name not in self.asked:
                continue
            if "bad" in each.version:
                answer.error_detail.message += f"{each.name} is bad"
            else:
                self.has[kind][each.name] = each.version
        for name in response.removed_resources:
            self.has[kind].pop(name, None)
            if kind == LISTENERS:
                self.has[ROUTES].pop(name, None)
                self.asked.discard(name)
                gone = envoy.DeltaDiscoveryRequest(type_url=TYPE_PREFIX + ROUTES, resource_names_unsubscribe=[name])
                exchange.heard(gone)
        exchange.heard(answer)
        if kind == LISTENERS:
            self._asks(exchange, [name for name in self.has[LISTENERS] if name not in self.asked])

    def settle(self, exchange: Exchange) -> None:
        for _ in range(50):
            responses = list(exchange.due())
            if not responses:
                return
            for response in responses:
                self.take(exchange, response)
        raise AssertionError("it never ends")


def test_all_that_is_wanted_arrives() -> None:
    book, played = Book(), Played()
    book.want(wanted({"a": "1", "b": "1"}, {"a": "r1", "b": "r1"}))
    exchange = Exchange(book)
    played.greet(exchange)
    played.settle(exchange)
    assert played.has == {CLUSTERS: {"http": "1"}, LISTENERS: {"a": "1", "b": "1"}, ROUTES: {"a": "r1", "b": "r1"}}
    assert exchange.in_force("a") and exchange.in_force("b") and not exchange.in_force("c")


def test_only_what_changed_is_sent() -> None:
    book, played = Book(), Played()
    book.want(wanted({"a": "1", "b": "1"}, {"a": "r1", "b": "r1"}))
    exchange = Exchange(book)
    played.greet(exchange)
    played.settle(exchange)
    played.received.clear()
    book.want(wanted({"a": "1", "b": "1"}, {"a": "r1", "b": "r2"}))
    assert not exchange.in_force("b")
    played.settle(exchange)
    assert played.received == ["b"]
    assert exchange.in_force("b")


def test_one_that_has_everything_is_sent_nothing() -> None:
    book, played = Book(), Played()
    book.want(wanted({"a": "1"}, {"a": "r1"}))
    first = Exchange(book)
    played.greet(first)
    played.settle(first)
    played.received.clear()
    again = Exchange(book)
    played.greet(again)
    played.settle(again)
    assert played.received == []
    assert again.in_force("a")


def test_what_went_away_meanwhile_is_removed() -> None:
    book, played = Book(), Played()
    played.has = {CLUSTERS: {}, LISTENERS: {"old": "1"}, ROUTES: {"old": "r"}}
    book.want(wanted({"a": "1"}, {"a": "r1"}))
    exchange = Exchange(book)
    played.greet(exchange)
    played.settle(exchange)
    assert played.has[LISTENERS] == {"a": "1"}
    assert played.has[ROUTES] == {"a": "r1"}


def test_the_bad_one_of_several_is_known_and_what_was_good_stays() -> None:
    book, played = Book(), Played()
    book.want(wanted({"a": "1", "b": "1"}, {"a": "r1", "b": "r1"}))
    exchange = Exchange(book)
    played.greet(exchange)
    played.settle(exchange)
    book.want(wanted({"a": "1", "b": "1"}, {"a": "r2", "b": "bad"}))
    played.settle(exchange)
    assert played.has[ROUTES] == {"a": "r2", "b": "r1"}
    assert exchange.in_force("a") and not exchange.in_force("b")
    assert (book.why_refused("a"), book.why_refused("b")) == ("", "b is bad")
    book.want(wanted({"a": "1", "b": "1"}, {"a": "r2", "b": "r3"}))
    assert book.why_refused("b") == ""
    played.settle(exchange)
    assert exchange.in_force("b")


def test_an_envoy_that_is_new_gets_what_was_good() -> None:
    book, played = Book(), Played()
    book.want(wanted({"a": "1"}, {"a": "r1"}))
    exchange = Exchange(book)
    played.greet(exchange)
    played.settle(exchange)
    book.want(wanted({"a": "1"}, {"a": "bad"}))
    played.settle(exchange)
    anew, exchange = Played(), Exchange(book)
    anew.greet(exchange)
    anew.settle(exchange)
    assert anew.has[ROUTES] == {"a": "r1"}
    assert not exchange.in_force("a")


def test_where_nothing_was_good_routes_deny_and_there_is_no_listener() -> None:
    book, played = Book(), Played()
    book.want(wanted({"a": "1", "b": "bad"}, {"a": "bad"}))
    exchange = Exchange(book)
    played.greet(exchange)
    played.settle(exchange)
    assert played.has[LISTENERS] == {"a": "1"}
    assert played.has[ROUTES] == {"a": closed_routes("a").version}


def test_what_an_envoy_has_of_a_process_before_us_stays_when_ours_is_bad() -> None:
    book, played = Book(), Played()
    played.has = {CLUSTERS: {"http": "1"}, LISTENERS: {"a": "1"}, ROUTES: {"a": "of before"}}
    book.want(wanted({"a": "1"}, {"a": "bad"}))
    exchange = Exchange(book)
    played.greet(exchange)
    played.settle(exchange)
    assert played.has[ROUTES] == {"a": "of before"}


TEXTS = st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["1", "2", "bad1", "bad2"]))


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1), st.lists(st.booleans(), min_size=20, max_size=20))
def test_it_always_comes_to_what_is_wanted_or_to_what_denies(
    steps: list[tuple[dict[str, str], dict[str, str]]], dies: list[bool]
) -> None:
    """Whatever is wanted one after another, and whenever Envoy is another."""
    book, played = Book(), Played()
    exchange = Exchange(book)
    played.greet(exchange)
    for (listeners, routes), is_new in zip(steps, dies, strict=False):
        if is_new:
            played, exchange = Played(), Exchange(book)
            played.greet(exchange)
        book.want(wanted(listeners, {name: text for name, text in routes.items() if name in listeners}))
        played.settle(exchange)
        for name, text in listeners.items():
            route = routes.get(name)
            has = played.has[LISTENERS].get(name), played.has[ROUTES].get(name)
            if "bad" not in text:
                assert has[0] == text
            if route is not None and "bad" not in route and has[0]:
                assert has[1] == route
            assert exchange.in_force(name) == (has[0] == text and (route is None or has[1] == route))
            assert ("bad" not in f"{text} {route}") or book.why_refused(name) or has[0] is None
        assert set(played.has[LISTENERS]) <= set(listeners)
