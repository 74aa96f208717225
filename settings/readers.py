"""How a setting's value is read: from a values file or `--set`, and from a variable. Pure.

A reader knows what is allowed once, as a type of msgspec's where that has one (`Annotated[int, Meta(ge=1, le=65535)]`):
msgspec converts and checks by it, and a schema of the chart's values can be written from it. What msgspec says of a
value that does not fit names neither the value nor all that is allowed, so the sentences are ours.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bus.addresses import is_mapped
from bus.durations import seconds_of
from settings.devices import patterns
from settings.ports import node_ports_of, ports_of

Value = str | int | bool | list[str]
"""Of a key: what a values file holds, checked."""

Family = Literal[4, 6]


class Unusable(ValueError):
    """A value that cannot be.

    Args:
        problem: completes "KEY: ", for who wrote a key.
        rule: completes "VARIABLE ", for who wrote a variable.
    """

    def __init__(self, problem: str, rule: str) -> None:
        super().__init__(problem)
        self.rule = rule


class Reader(ABC):
    """How the values of a row are read."""

    type: Any = str
    """Of a value in a values file, for msgspec."""
    unset: object = ""
    """What a service goes by where nothing is said and there is no default."""

    @abstractmethod
    def of_chart(self, value: Any) -> Value:
        """A value of a key, checked. Raises: Unusable."""

    @abstractmethod
    def of_variable(self, text: str) -> object:
        """What a service goes by; `text` is not empty. Raises: Unusable."""

    def __call__(self, value: Any) -> Value:
        return self.of_chart(value)


class Text(Reader):
    """Any text."""

    def of_chart(self, value: Any) -> Value:
        return str(value)

    def of_variable(self, text: str) -> object:
        return text


class File(Text):
    """A path."""

    def of_variable(self, text: str) -> object:
        return Path(text)


class Truth(Reader):
    """true or false. `only`: the one that there is so far; `feature` is what the other would need."""

    type = bool
    unset = False

    def __init__(self, only: bool | None = None, feature: str = "") -> None:
        self.only, self.feature = only, feature

    def of_chart(self, value: Any) -> bool:
        if not isinstance(value, bool) and value not in ("true", "false"):
            raise Unusable(f"{value!r} is neither true nor false", f"is true or false, not {value!r}")
        found = value in (True, "true")
        if self.only not in (None, found):
            problem = f"{str(found).lower()} is not supported yet ({self.feature})"
            raise Unusable(problem, f"is {str(self.only).lower()}: {problem}")
        return found

    def of_variable(self, text: str) -> bool:
        try:
            return self.of_chart(text.lower())
        except Unusable as problem:
            raise Unusable(str(problem), problem.rule.replace(repr(text.lower()), repr(text))) from None


class Words(Reader):
    """One of some words. `later`: words of the chart that Plexus does not implement yet."""

    def __init__(self, *words: str, later: tuple[str, ...] = ()) -> None:
        self.words, self.later = words, later
        self.type = Literal[words]

    def of_chart(self, value: Any) -> str:
        allowed = " or ".join(self.words)
        try:
            return str(msgspec.convert(value, self.type))
        except msgspec.ValidationError:
            pass
        if value in self.later:
            problem = f"{value!r} is not supported yet; use {allowed}"
            raise Unusable(problem, f"is {allowed}: {value!r} is not supported yet")
        known = ", ".join((*self.words, *self.later))
        raise Unusable(f"{value!r} is not one of {known}", f"is {allowed}, not {value!r}")

    def of_variable(self, text: str) -> object:
        return self.of_chart(text)


class Number(Reader):
    """A whole number within bounds, both included."""

    unset = 0

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most
        self.type = Annotated[int, Meta(ge=least, le=most)]

    def of_chart(self, value: Any) -> int:
        try:
            # Helm itself writes large numbers as 1.6777216e+07: msgspec takes that for the whole number that it is.
            found = msgspec.convert(value, int, strict=False)
        except msgspec.ValidationError:
            raise Unusable(f"{value!r} is not a whole number", f"is a whole number, not {value!r}") from None
        try:
            return int(msgspec.convert(found, self.type))
        except msgspec.ValidationError:
            raise Unusable(
                f"{found} is not within {self.least} and {self.most}", f"is {self.least} to {self.most}, not {found}"
            ) from None

    def of_variable(self, text: str) -> int:
        if text.startswith("-"):
            raise Unusable(f"{text!r} is not a whole number", f"is a whole number, not {text!r}")
        return self.of_chart(text)


class Places(Number):
    """How many a ring holds whose places are the remainder of a count: 2^n - 1, within bounds."""

    def of_chart(self, value: Any) -> int:
        found = super().of_chart(value)
        if found & (found + 1):
            near = f"{(1 << found.bit_length() - 1) - 1} or {(1 << found.bit_length()) - 1}"
            raise Unusable(f"{found} is not 2^n - 1: {near} is", f"is 2^n - 1, as {near}, not {found}")
        return found


class Share(Reader):
    """From 0 to 1; a key's stays as it was written."""

    type = Annotated[float, Meta(ge=0, le=1)]
    unset = 0.0

    def of_chart(self, value: Any) -> str:
        self.of_variable(str(value))
        return str(value)

    def of_variable(self, text: str) -> float:
        try:
            found = msgspec.convert(text, float, strict=False)
        except msgspec.ValidationError:
            raise Unusable(f"{text!r} is not a number", f"is a number like 0.0025, not {text!r}") from None
        if not 0 <= found <= 1:  # msgspec lets "not a number" through any bounds
            raise Unusable(f"{text} is not within 0 and 1", f"is 0 to 1, not {found}")
        return found


@dataclass(frozen=True, eq=False)
class Duration(Reader):
    """A length of time, with units as Helm has it; a variable may also be a number of seconds.

    `least` and `most` are seconds. `whole`: a part of a second counts as one. A key's stays as it was written.
    """

    least: float
    most: float
    whole: bool = False

    unset = 0.0

    def of_chart(self, value: Any) -> str:
        self._seconds(str(value))
        return str(value)

    def of_variable(self, text: str) -> float:
        is_number = text.isascii() and text.isdigit()
        found = float(text) if is_number else self._seconds(text)
        if self.whole:
            found = math.ceil(found)
        if not self.least <= found <= self.most:
            bounds = f"{self.least} and {self.most} seconds"
            raise Unusable(f"{found} is not within {bounds}", f"is {self.least} to {self.most}, not {found}")
        return found

    @staticmethod
    def _seconds(text: str) -> float:
        try:
            return seconds_of(text)
        except ValueError as problem:
            raise Unusable(str(problem), f"is a length of time: {problem}") from None


class PortRange(Reader):
    """Of masqueraded connections, like "40000-65535"."""

    ports = staticmethod(ports_of)

    def of_chart(self, value: Any) -> str:
        try:
            return str(self.ports(str(value)))
        except ValueError as problem:
            raise Unusable(str(problem), str(problem)) from None

    def of_variable(self, text: str) -> str:
        return self.of_chart(text)


class NodePortRange(PortRange):
    """Of node ports, like "30000-32767", or "30000,32767" as the chart has it."""

    ports = staticmethod(node_ports_of)


class DeviceNames(Text):
    """Names of devices, a list or with blanks between."""

    def of_chart(self, value: Any) -> str:
        asked = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        try:
            return " ".join(patterns(asked))
        except ValueError as problem:
            raise Unusable(str(problem), str(problem)) from None

    def of_variable(self, text: str) -> str:
        return self.of_chart(text)


class Prefix(Reader):
    """A network without host bits, of one family or (None) of either; an IPv4 one is not written as IPv6."""

    def __init__(self, family: Family | None = None, like: str = "10.0.0.0/8") -> None:
        self.family, self.like = family, like

    def of_chart(self, value: Any) -> str:
        return str(self.network(str(value)))

    def of_variable(self, text: str) -> str:
        """As it was written."""
        self.network(text)
        return text

    def network(self, text: str) -> IPv4Network | IPv6Network:
        """Raises: Unusable."""
        family = self.family or (6 if ":" in text else 4)
        try:
            found = IPv4Network(text) if family == 4 else IPv6Network(text)
            if is_mapped(found):
                raise ValueError("these are IPv4 addresses")
            if "%" in text:
                raise ValueError("a zone means something on one machine only")
        except ValueError as problem:
            why = f"{text!r} is not an IPv{family} network ({problem})"
            raise Unusable(why, f'is a network like "{self.like}": {why}') from None
        return found


class Prefixes(Reader):
    """Networks: a list, or one alone; a variable has commas between. `blanks`: or spaces."""

    type = list[str]

    def __init__(self, item: Prefix, *, blanks: bool = False) -> None:
        self.item, self.blanks = item, blanks

    def of_chart(self, value: Any) -> list[str]:
        found = [self.item.of_chart(each) for each in (value if isinstance(value, list) else [value])]
        if not found:
            raise Unusable("the list is empty", "is empty")
        return found

    def of_variable(self, text: str) -> str:
        """As it was written, but for spaces."""
        listed = (text.replace(",", " ").split() if self.blanks else text.split(",")) or [text]
        return ",".join(self.item.of_variable(each) for each in listed if each)


def networks(text: str) -> list[IPv4Network | IPv6Network]:
    """Those of a variable that was read."""
    return [ip_network(each) for each in text.split(",") if each]
