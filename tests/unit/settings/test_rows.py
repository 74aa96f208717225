"""The rows of settings: what cannot be is an error, and who reads them has what they say."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, cast, get_type_hints

import msgspec
import pytest

import lab.settings
import settings.read
from bus.service import BadSettings
from bus.service import Settings as Every
from lab.errors import LabError
from lab.plan import Plan
from services.dataplane.load.loader import DatapathConfig
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.limits import constants, limit
from services.ipam.settings import NAMES
from services.resources.settings import NODE_PORTS
from services.resources.settings import VARIABLES as SERVICE_RANGES
from settings.read import read
from settings.readers import Number, Reader, Text, Truth, Unusable, Words
from settings.row import EVERY, LAB, Row, Wrong, checked
from settings.rows import KEYS, ROWS, SWITCHES
from tools import settings_doc

ROW = Row(key="a.b", variable="PLEXUS_A", read=Truth(), default=True, services=("dataplane",), text="what it does")


def test_a_row_that_says_all_is_taken() -> None:
    assert checked([ROW]) == (ROW,)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"read": cast(Any, None)}, "a.b: has no reader"),
        ({"read": cast(Any, bool)}, "a.b: has no reader"),
        ({"services": ()}, "a.b: no service reads it"),
        ({"services": ("dataplan",)}, "a.b: there is no service dataplan"),
        ({"services": (LAB,)}, "a.b: a row that a service reads has a variable, and no other has"),
        ({"variable": ""}, "a.b: a row that a service reads has a variable, and no other has"),
        ({"inert": True}, "a.b: is inert, and is read"),
        ({"variable": "A"}, "a.b: a variable begins with PLEXUS_"),
        ({"key": "", "variable": ""}, "neither key nor variable"),
        ({"into": "map_entries"}, "a.b: what is gathered is gathered by its define"),
        ({"define": "A", "default": None}, "a.b: a switch has two positions, and a default"),
        ({"define": "A", "read": Words("a", "b", "c"), "default": "a"}, "a.b: a switch has two positions"),
        ({"define": "A", "read": Number(1, 2), "default": 1}, "a.b: its define is neither gathered nor a switch"),
        ({"text": ""}, "a.b: says nothing"),
        ({"default": "yes"}, "a.b: its default is refused: 'yes' is neither true nor false"),
        ({"default": "true"}, "a.b: its default 'true' is not as it is read"),
        ({"default": None, "own": {"dataplane": "yes"}}, "a.b: its default is refused"),
    ],
)
def test_a_row_that_cannot_be_is_refused_by_name(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(Wrong) as refused:
        checked([replace(ROW, **changed)])
    assert said in str(refused.value)


def test_two_rows_of_one_variable_or_one_key_are_refused() -> None:
    with pytest.raises(Wrong, match="PLEXUS_A: two rows have this variable"):
        checked([ROW, replace(ROW, key="c")])
    with pytest.raises(Wrong, match=r"a\.b: two rows have this key"):
        checked([ROW, replace(ROW, variable="PLEXUS_C")])


def test_what_a_node_goes_by_are_the_rows_that_it_reads() -> None:
    rows = [row for row in ROWS if "dataplane" in row.services]
    assert {each.name for each in fields(NodeSettings)} == {row.field for row in rows}
    types, node = get_type_hints(NodeSettings), NodeSettings(node="n")
    for row in rows:
        if row.variable != "PLEXUS_NODE" and not row.into:
            value = getattr(node, row.field)
            assert value == row.default_of("dataplane")
            assert isinstance(value, types[row.field]) and not isinstance(value, bool) ^ (types[row.field] is bool)


def test_what_ipam_and_resources_go_by_are_the_rows_that_they_read() -> None:
    ipam = {field for each in NAMES.values() for field in each} | {"ipam_mode"}
    assert ipam == {row.field for row in ROWS if "ipam" in row.services}
    assert {*SERVICE_RANGES.values(), NODE_PORTS, "PLEXUS_SOURCE", "PLEXUS_KUBECONFIG"} == {
        row.variable for row in ROWS if "resources" in row.services
    }


def test_a_new_row_is_all_that_a_lab_a_service_and_the_document_need(monkeypatch: pytest.MonkeyPatch) -> None:
    new = replace(ROW, key="some.newSetting", variable="PLEXUS_NEW", read=Number(1, 9), default=3, text="a new one")
    rows = checked([*ROWS, new])
    monkeypatch.setattr(lab.settings, "ROWS", rows)
    monkeypatch.setattr(lab.settings, "KEYS", {row.key: row for row in rows if row.key})
    monkeypatch.setattr(settings.read, "ROWS", rows)
    monkeypatch.setattr(settings_doc, "SECTIONS", {"New": (new,)})
    for asked, told in (({}, "3"), ({"some.newSetting": 5}, "5")):
        environment = lab.settings.settings(asked).environment(Plan(1), "dataplane")
        assert environment["PLEXUS_NEW"] == told
        assert read(environment, "dataplane")["new"] == int(told)
    with pytest.raises(LabError, match=r"some\.newSetting: 10 is not within 1 and 9"):
        lab.settings.settings({"some.newSetting": 10})
    assert "| `some.newSetting` | `3` | a new one | `PLEXUS_NEW` | dataplane |" in settings_doc.document()


def test_what_every_service_goes_by_are_the_rows_that_every_service_reads() -> None:
    rows = {row.field: row for row in ROWS if EVERY in row.services}
    assert rows.keys() == {each.name for each in fields(Every)}
    for name, row in rows.items():
        assert getattr(Every.of({}), name) == row.default_of(EVERY)
        if isinstance(row.read, Words):
            for word in row.read.words:
                assert getattr(Every.of({row.variable: word}), name) == word
            with pytest.raises(BadSettings, match=row.variable):
                Every.of({row.variable: "odd one"})


def test_what_a_row_defines_is_a_number_that_the_programs_know() -> None:
    for row in ROWS:
        if row.define:
            assert row.define in constants() if row.is_switch else limit(row.define)


def test_a_switch_reaches_the_programs_as_it_is_set() -> None:
    """From the key, by a lab and a node's environment, into what is put into the instructions."""
    for define, row in SWITCHES.items():
        other = row.read.words[1] if isinstance(row.read, Words) else not row.default
        for value in (row.default, other):
            environment = lab.settings.settings({row.key: value}).environment(Plan(1), "dataplane") | {
                "PLEXUS_NODE": "n"
            }
            assert NodeSettings.of(environment).switches[define] == row.turned(value)
            turned = DatapathConfig(device_index=1, switches=NodeSettings.of(environment).switches)
            assert turned.constants()[define] == row.turned(value)
        assert DatapathConfig(device_index=1).constants()[define] == row.turned(row.default)


PICKY = [row for row in ROWS if not isinstance(row.read, Text)]


@pytest.mark.parametrize("row", PICKY, ids=[row.name for row in PICKY])
def test_a_bad_value_is_named_with_what_is_allowed(row: Row) -> None:
    """By the reader of every row, for a key and for a variable."""
    with pytest.raises(Unusable, match="'odd one'"):
        row.read.of_chart("odd one")
    if row.variable and EVERY not in row.services:
        with pytest.raises(BadSettings, match=rf"^{row.variable} is .*'odd( one)?'"):
            read({row.variable: "odd one"}, row.services[0])


@pytest.mark.parametrize(
    ("read", "value", "found"),
    [
        (Number(1, 10), "10", 10),
        (Number(1, 1 << 24), 1.6777216e7, 1 << 24),  # as Helm itself writes it
        (Number(1, 1 << 24), "1.6777216e+07", 1 << 24),
        (Truth(), "false", False),
        (Words("a", "b"), "b", "b"),
    ],
)
def test_a_value_may_be_written_as_helm_does(read: Reader, value: object, found: object) -> None:
    assert read(value) == found


@pytest.mark.parametrize("value", [True, 1.5, "1.5", "0x5", " 5", "", "5 ", "1_0", "５", None, [5], 0, 11, "-1"])
def test_a_number_is_a_whole_one_within_its_bounds(value: object) -> None:
    with pytest.raises(Unusable):
        Number(1, 10)(value)


def test_a_schema_can_be_written_from_what_readers_allow() -> None:
    assert msgspec.json.schema(KEYS["MTU"].read.type) == {"type": "integer", "minimum": 576, "maximum": 65_535}
    assert msgspec.json.schema(KEYS["routingMode"].read.type) == {"enum": ["native", "tunnel"]}
    for row in KEYS.values():
        assert msgspec.json.schema(row.read.type)
