"""A range of ports, as a setting has it. Pure.

Source: docs/adr/0006-masquerade-ports.md
"""

from __future__ import annotations

from dataclasses import dataclass

NODE_PORTS_END = 32_768  # below it are Kubernetes' node ports, 30000 to 32767
LAST = 65_535
LEAST = 1024  # fewer run out too soon


@dataclass(frozen=True)
class Ports:
    """First and last of a range."""

    first: int
    last: int = LAST

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def ports_of(text: str) -> Ports:
    """ "36864-65535", for masqueraded connections. Raises: ValueError: says what would be right."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        raise ValueError(f'is a range like "40000-65535", not {text!r}')
    found = Ports(int(first), int(last))
    if found.first < NODE_PORTS_END or found.last > LAST or found.last - found.first < LEAST - 1:
        raise ValueError(f"is {LEAST} or more ports within {NODE_PORTS_END}-{LAST}, not {text}")
    return found


def node_ports_of(text: str) -> Ports:
    """ "30000-32767", or with a comma as the chart has it. Raises: ValueError: says what would be right."""
    first, mark, last = text.replace(",", "-").partition("-")
    if not (mark and first.isdecimal() and last.isdecimal()):
        raise ValueError(f'is a range like "30000-32767", not {text!r}')
    found = Ports(int(first), int(last))
    if not LEAST <= found.first <= found.last < NODE_PORTS_END:  # above begin those of masqueraded connections
        raise ValueError(f"is within {LEAST}-{NODE_PORTS_END - 1}, not {text}")
    return found
