"""Names of devices, as a setting has them. Pure."""

from __future__ import annotations

import re

_PATTERN = re.compile(r"!?(?:[^\s/!+]{1,15}|[^\s/!+]{0,14}\+)")


def patterns(text: str) -> tuple[str, ...]:
    """Names, with blanks or commas between: "eth0", all that begin with eth "eth+", but for one "!eth9".

    Raises: ValueError: says what would be right.
    """
    found = tuple(text.replace(",", " ").split())
    for each in found:
        if not _PATTERN.fullmatch(each):
            raise ValueError(f'is names of devices, like "eth0" or "eth+", with blanks between, not {each!r}')
    return found
