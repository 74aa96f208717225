"""Tables are written in an order that holds, or nothing starts."""

from __future__ import annotations

import itertools

import pytest

from services.dataplane.fallback import rules
from services.dataplane.model import NodeModel
from services.dataplane.part import Misfit, in_order
from services.dataplane.shapes.table import Table


def names(tables: tuple[Table, ...]) -> list[str]:
    return [table.name for table in tables]


def test_what_refers_is_written_after_what_it_refers_to_however_it_is_given() -> None:
    tables = (
        Table("endpoints", after=("policy", "services")),
        Table("policy", after=("ipcache",)),
        Table("services", after=("backends",)),
        Table("backends"),
        Table("ipcache"),
    )
    for given in itertools.permutations(tables):
        found = names(in_order(given))
        assert len(found) == len(tables)
        assert all(found.index(each) < found.index(table.name) for table in given for each in table.after)


def test_a_node_writes_its_tables_in_this_order() -> None:
    found = names(NodeModel("n").tables)
    assert found == ["masq_exclude", "ipcache", "named_ports", "policy", "backends", "living", "services", "endpoints"]
    assert tuple(found) == rules.TABLES


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ([Table("nobody")], "there is no map nobody"),
        ([Table("policy"), Table("policy")], "policy is there twice"),
        ([Table("policy", after=("ipcache",))], "policy is written after ipcache, which nobody has"),
        ([Table("policy", after=("policy",))], "after each other: policy"),
        (
            [Table("ipcache"), Table("policy", after=("endpoints",)), Table("endpoints", after=("policy", "ipcache"))],
            "after each other: policy, endpoints",
        ),
    ],
)
def test_tables_that_do_not_go_together_are_an_error_at_the_start(tables: list[Table], why: str) -> None:
    with pytest.raises(Misfit, match=why):
        in_order(tables)
