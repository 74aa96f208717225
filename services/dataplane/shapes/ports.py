"""The ports that masqueraded connections take: a range of their own, beside those of the node's own connections. Pure.

Source: docs/adr/0006-masquerade-ports.md
"""

from __future__ import annotations

from dataclasses import dataclass

NODE_PORTS_END = 32_768  # below it are Kubernetes' node ports, 30000 to 32767
LAST = 65_535
LEAST = 1024  # fewer run out too soon
OWN_LEAST = 4096  # what the node keeps for connections of its own, for each remote address and port


@dataclass(frozen=True)
class Ports:
    """First and last of a range."""

    first: int
    last: int = LAST

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def ports_beside(own: Ports) -> Ports | None:
    """What masqueraded connections may have, where the node's own take `own` (net.ipv4.ip_local_port_range): all above
    these, and of these all but the first `OWN_LEAST`; None: that leaves too few."""
    first = max(NODE_PORTS_END, min(own.first + OWN_LEAST, own.last + 1))
    return Ports(first) if LAST - first >= LEAST - 1 else None


def ports_of(text: str) -> Ports:
    """ "36864-65535". Raises: ValueError: says what would be right."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        raise ValueError(f'is a range like "40000-65535", not {text!r}')
    found = Ports(int(first), int(last))
    if found.first < NODE_PORTS_END or found.last > LAST or found.last - found.first < LEAST - 1:
        raise ValueError(f"is {LEAST} or more ports within {NODE_PORTS_END}-{LAST}, not {text}")
    return found
