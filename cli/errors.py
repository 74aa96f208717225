"""How a command says that it could not: an exception whose text is for people."""

from __future__ import annotations

from collections.abc import Sequence

from bus.texts import shortened, visible

LONGEST_LINE = 1500  # characters; what somebody else wrote may stand in a line, and be of any length


class Failed(Exception):
    """Refused or failed. Exit status 1; each line says what, where, and what to do; no traceback.

    One line is the rule. Several only where several things were refused at once, a line each.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines: Sequence[str] = [shortened(visible(" ".join(line.split())), LONGEST_LINE) for line in lines]
