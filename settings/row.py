"""What one row of `rows.py` says, and what makes a list of rows a wrong one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bus.services import BY_NAME
from settings.readers import Reader, Truth, Unusable, Value, Words

PREFIX = "PLEXUS_"
LAB = "lab"  # who sets a cluster up reads it itself, and tells services what comes of it
EVERY = "every service"  # by bus/service.py, which lies below: a test holds it to the rows


class Wrong(Exception):
    """The rows cannot be so; the text names the row."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting, wherever it is read. Either of `key` and `variable` may be missing."""

    key: str = ""
    """Of the Helm chart; "": a service is told by its variable alone."""
    variable: str = ""
    """Of a service's environment; "": no service is told."""
    read: Reader
    default: Value | None = None
    """As a values file has it. None: the text says what happens without one."""
    own: Mapping[str, str] = field(default_factory=dict)
    """By service: what its variable is when nobody sets it, where there is no common default."""
    chart: str = ""
    """The chart's own default, where it differs."""
    unit: str = ""
    services: tuple[str, ...] = ()
    """Who reads it: names of bus/services.py, or `LAB`, or `EVERY`."""
    inert: bool = False
    """Taken because the chart has it, and read by nobody: it changes nothing."""
    zero_is_unset: bool = False
    """The chart says 0 for "not set"."""
    says_none: bool = False
    """The variable may be set to "", which is not the same as not set: there are none of it."""
    define: str = ""
    """A number that the dataplane's programs are compiled with; of true or false, and of two words, a switch."""
    into: str = ""
    """The field of the service's settings that gathers it, by `define`; "": it has a field of its own."""
    maps: tuple[str, ...] = ()
    """BPF maps that a larger value makes larger."""
    published: str = ""
    """The limit that Cilium documents for the same job."""
    text: str

    @property
    def name(self) -> str:
        return self.key or self.variable

    @property
    def field(self) -> str:
        """In the settings of each service that reads it."""
        return self.into or self.variable.removeprefix(PREFIX).lower()

    @property
    def is_switch(self) -> bool:
        """It turns something in the dataplane's programs on or off."""
        return bool(self.define) and isinstance(self.read, (Truth, Words))

    def turned(self, value: object) -> int:
        """A switch's number: 1 is true, or the first of two words."""
        return int(value == self.read.words[0] if isinstance(self.read, Words) else bool(value))

    def is_unset(self, value: object) -> bool:
        """It is what the chart has for "not set"."""
        return value is None or value in ("", []) or (self.zero_is_unset and str(value) == "0")

    def default_of(self, service: str) -> object:
        """What `service` goes by when its variable is not set."""
        said = self.own.get(service, "" if self.default is None else text(self.default))
        return self.read.of_variable(said) if said else self.read.unset


def text(value: Value) -> str:
    """A value as an environment variable has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, list) else str(value)


def checked(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The same rows. Raises: Wrong: one cannot be so, or two are of one name."""
    found = tuple(rows)
    for row in found:
        _check(row)
    for kind, names in (("key", [row.key for row in found]), ("variable", [row.variable for row in found])):
        twice = sorted({name for name in names if name and names.count(name) > 1})
        if twice:
            raise Wrong(f"{', '.join(twice)}: two rows have this {kind}")
    return found


def _check(row: Row) -> None:
    if not row.name:
        raise Wrong(f"a row has neither key nor variable: {row.text!r}")
    if not isinstance(row.read, Reader):
        raise Wrong(f"{row.name}: has no reader")
    if row.inert == bool(row.services):
        raise Wrong(f"{row.name}: no service reads it" if not row.services else f"{row.name}: is inert, and is read")
    if unknown := set(row.services) - {*BY_NAME, LAB, EVERY}:
        raise Wrong(f"{row.name}: there is no service {', '.join(sorted(unknown))}")
    if bool(row.variable) != bool({*row.services} - {LAB}):
        raise Wrong(f"{row.name}: a row that a service reads has a variable, and no other has")
    if row.variable and not row.variable.startswith(PREFIX):
        raise Wrong(f"{row.name}: a variable begins with {PREFIX}")
    if row.into and not row.define:
        raise Wrong(f"{row.name}: what is gathered is gathered by its define")
    if row.define and not (row.into or row.is_switch):
        raise Wrong(f"{row.name}: its define is neither gathered nor a switch, so the programs would not know it")
    if row.is_switch and (row.default is None or (isinstance(row.read, Words) and len(row.read.words) != 2)):
        raise Wrong(f"{row.name}: a switch has two positions, and a default")
    if not row.text:
        raise Wrong(f"{row.name}: says nothing of what it does")
    try:
        if row.default is not None and row.read.of_chart(row.default) != row.default:
            raise Wrong(f"{row.name}: its default {row.default!r} is not as it is read")
        for service in row.services:
            row.default_of(service)
    except Unusable as problem:
        raise Wrong(f"{row.name}: its default is refused: {problem}") from problem
