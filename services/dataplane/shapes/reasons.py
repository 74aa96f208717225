"""Drop reasons and source files by number, read from bpf/include/reasons.h, which is their one source."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

HEADER = Path(__file__).parents[1] / "bpf/include/reasons.h"
DROP_MIN = 130  # what is counted below is no drop
POLICY_DENIED = 133
POLICY_DENIED_BY_DENYLIST = 181

_ENTRY = re.compile(r"^\s*(DROP|FILE|NOTE)_\w+ = (\d+),\s*/\* (.+?) \*/$", re.MULTILINE)


@cache
def _entries(kind: str) -> dict[int, str]:
    return {int(number): text for found, number, text in _ENTRY.findall(HEADER.read_text()) if found == kind}


def reason_name(number: int) -> str:
    """The public name: 133 is "Policy denied"; a number that is not ours is shown as it is."""
    if number == 0:
        return "Forwarded"
    return (_entries("DROP") | _entries("NOTE")).get(number, str(number))


def reasons() -> dict[int, str]:
    """Every drop reason, by number."""
    return dict(_entries("DROP"))


def file_name(number: int) -> str:
    """The C file in which a drop was decided; "" for 0."""
    return _entries("FILE").get(number, "")
