"""What a service's environment says, by the rows that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bus.service import BadSettings
from settings.readers import Unusable
from settings.rows import ROWS, VARIABLES


def read(environment: Mapping[str, str], service: str) -> dict[str, Any]:
    """The values of the rows that `service` reads and that are said, by field; those that are gathered, by define.

    Raises: BadSettings: names the variable and says what would be right.
    """
    found: dict[str, Any] = {}
    for row in ROWS:
        if service not in row.services:
            continue
        if row.into:
            found.setdefault(row.into, {})
        said = environment.get(row.variable)
        if not said:
            if said == "" and row.says_none:
                found[row.field] = row.read.unset
            continue
        try:
            value = row.read.of_variable(said)
        except Unusable as problem:
            raise BadSettings(f"{row.variable} {problem.rule}") from problem
        if row.into:
            found[row.into][row.define] = value
        else:
            found[row.field] = value
    return found


def default(variable: str, service: str = "dataplane") -> Any:
    """What `service` goes by when `variable` is not set."""
    return VARIABLES[variable].default_of(service)
