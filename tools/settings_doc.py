"""Writes docs/settings.md out of the rows in settings/rows.py, and the tables of docs/map-sizes.md that they fill.

    python -m tools.settings_doc

In docs/map-sizes.md a table stands between two comments, `<!-- rows: limits -->` and `<!-- end -->`; the rest of it is
written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from services.dataplane.shapes.limits import declared_maps
from services.dataplane.shapes.sizes import SIZED
from settings.limits import CT, KEPT, MAP_ENTRIES
from settings.row import LAB, Row, text
from settings.rows import ROWS, SECTIONS
from tools.events_doc import cell

DOCS = Path(__file__).resolve().parent.parent / "docs"

HEAD = """\
# Settings

Written by `make docs` out of `settings/rows.py` and `settings/limits.py`; do not edit it by hand.
[how-to-add-a-setting.md](how-to-add-a-setting.md) says how one is added.

What a cluster is set up with. The keys are those of Cilium's Helm chart, so a values file that names nothing Plexus
lacks can be taken as it is; `plexus lab up` takes them by `--set key=value` and `--values file`. A key that nobody
knows, a value that cannot be, and a feature that does not exist yet are refused by name. What the chart has for "not
set" is not set here: nothing, `""`, `[]`, and 0 for `MTU` and `tunnelPort`.

"Chart" is the chart's own default where it differs. A dash: nobody decides, the text says what happens. The variable
is what the named services read in their environment; who sets a cluster up reads the other keys itself.
"""

BEFORE: Mapping[str, str] = {
    "The bus": "These keys are not the chart's: there the components have no bus.",
    "Sizes and times": """\
[map-sizes.md](map-sizes.md) says what each limit costs, and what a full map does to a packet. A limit is 1024 to
16777216 entries, where it says nothing else.""",
    "Of every service": "`plexus` reads those of the bus, too.",
    "Where a service runs": "No key of the chart sets these: who starts a service says them, as a lab does by itself.",
}
AFTER: Mapping[str, str] = {
    "The bus": """\
A lab makes the certificates itself, with openssl: `certificates/` in its directory under `/run/plexus`. Elsewhere
they are yours: PEM files that each process finds by `PLEXUS_BUS_TLS_CA` (with it there is TLS, without it none), and,
where the bus verifies clients, `PLEXUS_BUS_TLS_CERT` and `PLEXUS_BUS_TLS_KEY`. `plexus` takes them too, beside
`PLEXUS_BUS_URL`. The bus's certificate names the host or address that clients have in `PLEXUS_BUS_URL`. A file that
is no use is refused at the start. Files are read once, at the start: a process that is to use renewed ones is started
again. Who does not trust the bus's certificate, or has none that the bus asks for, says so in its log and tries on;
`plexus` says it and ends.

Who starts a cluster's bus (`python -m bus.serve`) sets `PLEXUS_BUS_LISTEN` (`0.0.0.0:4222`), `PLEXUS_BUS_STORE`
(`/var/lib/plexus-bus`), `PLEXUS_BUS_SECRETS` (`/etc/plexus/bus`: a folder with the files `control` and `nodes`, of
which passwords are made, 32 characters each at least), and the three files of TLS, or none of them.""",
}


def document() -> str:
    """docs/settings.md."""
    parts = [HEAD]
    for section, rows in SECTIONS.items():
        parts.append(f"## {section}\n")
        if section in BEFORE:
            parts.append(f"{BEFORE[section]}\n")
        parts.append("\n".join(table(rows)) + "\n")
        if section in AFTER:
            parts.append(f"{AFTER[section]}\n")
    return "\n".join(parts)


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Of settings; without columns that all of them leave empty."""
    columns: dict[str, Callable[[Row], str]] = {
        "setting": lambda row: f"`{row.name}`",
        "default": default,
        "unit": lambda row: row.unit,
        "chart": lambda row: f"`{row.chart}`" if row.chart else "",
        "what it does": lambda row: cell(row.text),
        "variable": lambda row: f"`{row.variable}`" if row.key and row.variable else "",
        "read by": lambda row: ", ".join(each for each in row.services if each != LAB),
    }
    listed = list(rows)
    return lines({name: read for name, read in columns.items() if any(map(read, listed))}, listed)


def lines(columns: Mapping[str, Callable[[Row], str]], rows: Iterable[Row]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(read(row) for read in columns.values())} |"


def default(row: Row) -> str:
    return "-" if row.default is None else f"`{text(row.default)}`"


def limits() -> Iterator[str]:
    """What sets the size of a map."""
    maps: dict[str, list[str]] = {}
    for name, declared in declared_maps().items():
        maps.setdefault(declared.size, []).append(name)
    columns: dict[str, Callable[[Row], str]] = {
        "key": lambda row: f"`{row.key}`",
        "Plexus": lambda row: f"by memory, else {SIZED[row.define].entries}" if row.define in SIZED else default(row),
        "published": lambda row: row.published,
        "map": lambda row: ", ".join(f"`{each}`" for each in [*row.maps, *maps.get(row.define, [])]),
        "name": lambda row: f"`{row.define or row.variable.removeprefix('PLEXUS_')}`" if row.variable else "",
        "what it limits": lambda row: cell(row.text),
    }
    return lines(columns, [row for row in ROWS if row.into == MAP_ENTRIES or row.maps or row.published])


def times() -> Iterator[str]:
    """How long a connection is kept after its last packet."""
    columns: dict[str, Callable[[Row], str]] = {
        "kind of connection, after its last packet": lambda row: cell(row.text.removeprefix(KEPT)),
        "default": default,
        "name": lambda row: f"`{row.define}`",
        "key": lambda row: f"`{row.key}`",
    }
    return lines(columns, [row for row in ROWS if row.into == CT])


TABLES: Mapping[str, Callable[[], Iterator[str]]] = {"limits": limits, "times": times}


def map_sizes(before: str) -> str:
    """docs/map-sizes.md with its tables of rows written anew."""
    for name, rows in TABLES.items():
        start, end = f"<!-- rows: {name}, by `make docs` -->", "<!-- end -->"
        found = "\n".join((start, *rows(), end))
        if before.count(start) != 1:
            raise SystemExit(f"docs/map-sizes.md: {start} stands there {before.count(start)} times")
        head, _, rest = before.partition(start)
        _, _, tail = rest.partition(end)
        before = head + found + tail
    return before


def main() -> None:
    (DOCS / "settings.md").write_text(document())
    path = DOCS / "map-sizes.md"
    path.write_text(map_sizes(path.read_text()))


if __name__ == "__main__":
    main()
