"""How a command says that it could not: an exception whose text is for people."""

from __future__ import annotations

from collections.abc import Sequence


class Failed(Exception):
    """Refused or failed. Exit status 1; each line says what, where, and what to do; no traceback.

    One line is the rule. Several only where several things were refused at once, a line each.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines: Sequence[str] = [" ".join(line.split()) for line in lines]
