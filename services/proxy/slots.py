"""A slot: what is allowed behind one port of the proxy. Pure.

Who may use a slot is decided before, in the kernel: a slot knows no identities (docs/adr/0036-layer-7.md).
"""

from __future__ import annotations

from typing import Literal

import msgspec

FIRST_PORT, LAST_PORT = 10000, 19999  # of the node's 127.0.0.1
MOST_BRANCHES = (
    5  # of headers in one rule that are looked at, and do not deny: there are two routes for each combination
)

Mismatch = Literal["DENY", "LOG", "ADD", "DELETE", "REPLACE"]


class HeaderMatch(msgspec.Struct, frozen=True, kw_only=True):
    """A header that a request must have. A header that comes several times has one value, joined by commas."""

    name: str
    value: str | None = None  # None: any
    mismatch: Mismatch = "DENY"
    """What becomes of a request without it: denied; or let through and told, with the value added, without the header,
    or with this value in its place."""

    @property
    def branches(self) -> bool:
        """A request with it goes by another route than one without."""
        return self.mismatch in ("LOG", "ADD", "DELETE")


class HTTPRule(msgspec.Struct, frozen=True, kw_only=True):
    """A request is allowed when all holds that is said here. The three texts are regular expressions (RE2) that the
    whole has to match; "": any.

    `path` is the path with its query, as it is after "." and "..", escaped characters and double slashes are resolved.
    """

    name: str  # of the policy's rule; requests are recorded under it
    method: str = ""
    path: str = ""
    host: str = ""
    headers: tuple[HeaderMatch, ...] = ()


class ServerName(msgspec.Struct, frozen=True, kw_only=True):
    """TLS connections that ask for this name. `pattern`: "*" is within one label, "**." at the front any labels."""

    name: str  # of the policy's rule
    pattern: str


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """What any of its rules allows, is allowed. It has rules of one kind; with none it denies all."""

    port: int
    direction: Literal["ingress", "egress"]
    http: tuple[HTTPRule, ...] | None = None
    tls: tuple[ServerName, ...] | None = None

    @property
    def name(self) -> str:
        """Of its listener, and of its routes."""
        return f"slot-{self.port}"


def problem(slot: Slot) -> str | None:
    """Why it cannot be a slot; None: it can."""
    if not FIRST_PORT <= slot.port <= LAST_PORT:
        return f"port {slot.port} is not within {FIRST_PORT} to {LAST_PORT}"
    if (slot.http is None) == (slot.tls is None):
        return "it must have rules of one kind, HTTP or TLS"
    for rule in slot.http or ():
        if sum(match.branches for match in rule.headers) > MOST_BRANCHES:
            return f"{rule.name}: at most {MOST_BRANCHES} headers of a rule may have LOG, ADD or DELETE"
    return None
