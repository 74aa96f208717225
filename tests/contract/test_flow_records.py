"""What the observer reads of the kernel's events is what the C writes: shape, reasons and files have one source."""

from __future__ import annotations

import re
from pathlib import Path

from services.dataplane.shapes import reasons
from services.hubble import reasons as reasons_of_flows
from services.hubble import records
from services.hubble.api import flow_pb2 as pb
from services.hubble.flow import FILES

INCLUDE = Path(__file__).resolve().parents[2] / "services/dataplane/bpf/include"
BYTES = {"__u64": 8, "__u32": 4, "__u16": 2, "__be16": 2, "__u8": 1, "struct address": 16}


def columns_in_c() -> list[tuple[str, int]]:
    """(name, bytes) of each field of `struct event`."""
    body = re.search(r"^struct event \{\n(.*?)^\};", (INCLUDE / "types.h").read_text(), re.MULTILINE | re.DOTALL)
    assert body is not None
    found = re.findall(r"^\t((?:struct )?\w+) (\w+);", body[1], re.MULTILINE)
    return [(name, BYTES[kind]) for kind, name in found]


def test_every_column_stands_where_the_c_has_it() -> None:
    columns = columns_in_c()
    assert columns[-1] == ("pad", 1) and records.LAYOUT.size == sum(size for _, size in columns)
    numbers = {name.lower(): value for name, value in vars(records).items() if name.isupper() and type(value) is int}
    for place, (name, _) in enumerate(columns[:-1]):
        assert numbers[name] == place, name


def test_reasons_are_called_as_the_c_calls_them() -> None:
    assert reasons.reasons() == reasons_of_flows.NAMES
    assert reasons_of_flows.reason_name(194) == "No egress gateway"
    assert reasons_of_flows.reason_name(7) == "7"


def test_every_reason_of_ours_has_its_public_number() -> None:
    for number in reasons.reasons():
        assert pb.DropReason.Name(number)  # raises ValueError for one that is not public


def test_files_have_the_numbers_that_the_c_gives_them() -> None:
    assert list(FILES) == [reasons.file_name(number) for number in range(len(FILES))]
    assert reasons.file_name(len(FILES)) == ""
