"""The one renderer: tables for people, JSON and YAML for programs. A listing is rows: dictionaries with stable keys."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, TextIO

import typer

from bus.texts import visible

Row = Mapping[str, Any]

_WIDE = 10_000  # columns when nobody looks: nothing is wrapped or cut
_GOOD = {"ready", "running", "active", "yes", "ok", "forwarded", "created"}
_BAD = {"dropped", "not as expected", "failed", "no", "down", "missing", "not ready"}


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[Format, typer.Option("-o", "--output", help="table, json or yaml.")]


@dataclass(frozen=True)
class Column:
    """A table's column. `value`: a row's key, or a function of the row. Numbers are set right."""

    title: str
    value: str | Callable[[Row], Any]

    def of(self, row: Row) -> Any:
        return row.get(self.value) if isinstance(self.value, str) else self.value(row)


def show(
    rows: Sequence[Row], columns: Sequence[Column], form: Format, *, empty: str = "nothing", file: TextIO | None = None
) -> None:
    """Print a listing. As JSON or YAML: the rows with all their keys, an empty list when there are none.

    Args:
        empty: what a person reads when there are no rows (on stderr, so that a pipe sees nothing).
    """
    out = file or sys.stdout
    if form is not Format.TABLE:
        show_value(list(rows), form, file=out)
    elif rows:
        out.write(table(rows, columns, terminal=out.isatty()))
    else:
        print(empty, file=sys.stderr)


def show_value(value: Any, form: Format, *, file: TextIO | None = None) -> None:
    """Print one value as JSON or YAML."""
    out = file or sys.stdout
    if form is Format.YAML:
        import yaml

        written = yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=120)
        if any(line != visible(line) for line in written.split("\n")):
            written = yaml.safe_dump(plain(value), sort_keys=False, width=120)
        out.write(written)
    else:
        written = json.dumps(plain(value), indent=2, ensure_ascii=False)
        out.write("\n".join(map(visible, written.split("\n"))) + "\n")


def json_line(value: Any) -> str:
    """One value on one line, for streams."""
    return visible(json.dumps(plain(value), ensure_ascii=False, separators=(",", ":")))


def plain(value: Any) -> Any:
    """Only dictionaries, lists and scalars: bytes as hexadecimal, tuples and sets as lists, structs as dictionaries."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    import msgspec

    return plain(msgspec.to_builtins(value))


def table(rows: Sequence[Row], columns: Sequence[Column], *, terminal: bool, width: int | None = None) -> str:
    """Rows under headings, no rules. In colour and within the terminal's width only on a terminal.

    Args:
        width: columns; None: the terminal's, or without end when there is no terminal.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold" if terminal else "")
    for column in columns:
        number = all(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in map(column.of, rows))
        grid.add_column(column.title, justify="right" if number else "left", no_wrap=not terminal, overflow="fold")
    for row in rows:
        texts = [text(column.of(row)) for column in columns]
        grid.add_row(*(Text(cell, style=colour(cell) if terminal else "") for cell in texts))
    console = Console(width=width or (None if terminal else _WIDE), color_system="auto" if terminal else None)
    with console.capture() as captured:
        console.print(grid)
    return "".join(line.rstrip() + "\n" for line in captured.get().splitlines())


def text(value: Any) -> str:
    """A cell, visible as it is. Lists by commas, labels as key=value, nothing as a dash."""
    return visible(_text(value))


def _text(value: Any) -> str:
    if value is None or value == "" or value == [] or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" if item != "" else str(key) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return str(value)


def as_set(value: Any) -> Any:
    """A setting's value as --set takes it: true and false, where a cell says yes and no."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{{{','.join(value)}}}" if isinstance(value, list) else value


def colour(cell: str) -> str:
    """Green for what is well, red for what is not, on a terminal."""
    word = cell.lower()
    return "green" if word in _GOOD else "red" if word in _BAD else ""


def duration(seconds: float) -> str:
    """A length of time for people: "350 us", "42 ms", "1.2 s", "3 min 5 s", "2 h 10 min"."""
    if round(seconds, 6) < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if round(seconds, 3) < 1:
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = max(60, int(seconds))
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def clock(at: float) -> str:
    """The time of day here of a moment in seconds since the epoch, "10:42:07.123"; "-" for what is none."""
    try:
        return datetime.fromtimestamp(at, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except (OverflowError, ValueError, OSError):  # not a number; a year that no calendar has
        return "-"


def size(octets: int) -> str:
    """An amount of memory for people, in MB of 10^6 bytes."""
    return f"{octets / 1e6:.0f} MB" if octets else "-"


def parse_duration(value: str) -> float:
    """Seconds out of "30s", "500ms", "2m", "1h" or a plain number of seconds. Raises typer.BadParameter."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
    digits = value.strip().rstrip("msh")
    try:
        seconds = float(digits) * units[value.strip()[len(digits) :]]
    except (ValueError, KeyError):
        raise typer.BadParameter(f"{value!r} is not a length of time; write 30s, 500ms or 2m") from None
    if not 0 <= seconds < float("inf"):
        raise typer.BadParameter(f"{value!r} is not a length of time; write 30s, 500ms or 2m")
    return seconds
