"""Parts are given what they hear, and their tables are written in an order that holds; or nothing starts."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from bus.messages.resources import Namespace, Node
from bus.subjects import NAMESPACE, NODE
from services.dataplane.model import NodeModel
from services.dataplane.part import Fact, Hears, Misfit, Part, Parts, Shows, in_order
from services.dataplane.shapes.table import Table


def names(tables: tuple[Table, ...]) -> list[str]:
    return [table.name for table in tables]


def test_what_refers_is_written_after_what_it_refers_to_however_it_is_given() -> None:
    tables = (
        Table("endpoints", last=True),
        Table("policy", after=("ipcache",)),
        Table("services", after=("backends",)),
        Table("backends"),
        Table("ipcache"),
    )
    for given in itertools.permutations(tables):
        found = names(in_order(given))
        assert len(found) == len(tables)
        assert all(found.index(each) < found.index(table.name) for table in given for each in table.after)
        assert found[-1] == "endpoints"


def test_a_nodes_pods_are_opened_last() -> None:
    assert names(NodeModel("n").tables)[-1] == "endpoints"


class ByRules(Part):
    """Rules can stand in for it."""

    by_rules = True

    def __init__(self) -> None:
        super().__init__()
        self.tables = (Table("backends"), Table("services"))


class ByProgramsAlone(Part):
    """A capability that nobody has written rules for."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = (Table("policy"),)


def test_rules_are_made_of_the_tables_of_parts_that_say_so_and_the_others_are_named() -> None:
    parts = Parts(ByRules(), ByProgramsAlone())
    assert parts.by_rules == ("backends", "services")
    assert parts.not_by_rules == ("by programs alone",)
    off = ByProgramsAlone()
    off.is_on = False
    assert Parts(off).not_by_rules == (), "what the node does not do, nobody misses"


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ([Table("nobody")], "there is no map nobody"),
        ([Table("fragments")], "nobody says what keys of the map fragments are called"),
        ([Table("policy"), Table("policy")], "policy is there twice"),
        ([Table("policy", after=("ipcache",))], "policy is written after ipcache, which nobody has"),
        ([Table("policy", after=("policy",))], "after each other: policy"),
        ([Table("policy", after=("endpoints",)), Table("endpoints", last=True)], "after each other: policy, endpoints"),
        (
            [Table("ipcache"), Table("policy", after=("ipcache",), before_programs=True)],
            "policy is written before programs, and ipcache is not",
        ),
        (
            [Table("ipcache"), Table("policy", after=("endpoints",)), Table("endpoints", after=("policy", "ipcache"))],
            "after each other: policy, endpoints",
        ),
    ],
)
def test_tables_that_do_not_go_together_are_an_error_at_the_start(tables: list[Table], why: str) -> None:
    with pytest.raises(Misfit, match=why):
        in_order(tables)


class Heard(Part):
    """Keeps what it hears of nodes."""

    def __init__(self, check: Callable[[Node], None] = lambda node: None) -> None:
        super().__init__()
        self.nodes: list[str] = []
        self.hears = (Hears(NODE, lambda node: self.nodes.append(node.name), self.nodes.remove, check),)


class HeardToo(Heard):
    """Another that hears the same."""


def refuse(node: Node) -> None:
    raise ValueError(f"{node.name} makes no sense")


def test_all_who_hear_a_family_get_it_and_nobody_else() -> None:
    parts = Parts(Heard(), HeardToo())
    parts.put(NODE.of("one"), Node(name="one", addresses=[]))
    parts.put(NODE.of("two"), Node(name="two", addresses=[]))
    parts.put(NAMESPACE.of("three"), Namespace(name="three"))
    parts.delete(NODE.of("one"))
    parts.delete(NAMESPACE.of("three"))
    parts.delete("state.nobody.knows.this")
    assert parts[Heard].nodes == parts[HeardToo].nodes == ["two"]
    assert parts.hears == (NODE,)


def test_what_makes_no_sense_to_one_is_taken_by_none() -> None:
    parts = Parts(Heard(), HeardToo(refuse))
    with pytest.raises(ValueError, match="one makes no sense"):
        parts.put(NODE.of("one"), Node(name="one", addresses=[]))
    assert parts[Heard].nodes == parts[HeardToo].nodes == []


@pytest.mark.parametrize("subject", [NODE.of("two"), NAMESPACE.of("one"), "state.nobody.knows.this"])
def test_what_speaks_of_another_thing_than_its_subject_is_taken_by_none(subject: str) -> None:
    parts = Parts(Heard())
    with pytest.raises(ValueError, match="of another thing"):
        parts.put(subject, Node(name="one", addresses=[]))
    assert parts[Heard].nodes == []


def test_a_part_that_is_there_twice_is_an_error_at_the_start() -> None:
    with pytest.raises(Misfit, match="twice"):
        Parts(Heard(), Heard())


def test_two_parts_that_show_something_by_one_name_are_an_error_at_the_start() -> None:
    one, other = Heard(), HeardToo()
    one.shows = (Shows("nodes", "Those of one.", lambda maps, now: iter(())),)
    assert Parts(one, other).shown == {"nodes": one.shows[0]}
    other.shows = (Shows("nodes", "Those of the other.", lambda maps, now: iter(())),)
    with pytest.raises(Misfit, match="by one name"):
        Parts(one, other)


class Trying(Part):
    """Cannot do what is odd."""

    def __init__(self) -> None:
        super().__init__()
        self.stale = {1, 2, 3, 4}

    def settle(self) -> None:
        self.stale = {each for each in self.stale if not self.tried(f"number {each}", self.do, each)}

    def do(self, number: int) -> None:
        if number % 2:
            raise ArithmeticError(number)


def test_what_cannot_be_settled_is_told_until_it_is_and_keeps_nothing_else() -> None:
    part = Trying()
    parts = Parts(part)
    parts.settle_parts()
    assert part.stale == {1, 3}
    assert parts.problems == {"number 1": "ArithmeticError(1)", "number 3": "ArithmeticError(3)"}
    part.stale = {1, 3}
    part.tried("number 1", lambda: None)
    assert parts.problems.keys() == {"number 3"}


def test_who_follows_a_fact_learns_of_each_change_once_and_of_what_was_there() -> None:
    fact = Fact[str, int]("ages").keep()
    fact.put("early", 1)
    one, other = fact.follow(), fact.follow()
    assert one == other == {"early"}
    one.clear()
    fact.put("early", 1)
    fact.delete("nobody")
    assert one == set()
    fact.put("early", 2)
    fact.put("late", 3)
    fact.delete("late")
    assert one == {"early", "late"}
    assert dict(fact) == {"early": 2}


def test_a_fact_that_two_keep_or_that_is_followed_before_it_is_kept_is_an_error_at_the_start() -> None:
    fact = Fact[str, int]("ages")
    with pytest.raises(Misfit, match="ages is kept by nobody so far"):
        fact.follow()
    fact.keep()
    with pytest.raises(Misfit, match="ages is kept by two"):
        fact.keep()
