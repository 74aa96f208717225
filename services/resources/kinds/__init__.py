"""Every kind of manifest that is read, a file each, called as the kind is: whatever is in this folder and has a `KIND`.

Services take all of them (`services.resources.registry`). The command wants one, and is started for each question: it
imports the files only that mention the word which it was given.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from services.resources.kind import Kind


def every() -> tuple[Kind, ...]:
    """All of them, by the names of their files."""
    return tuple(map(_in_file, _files()))


def named(word: str) -> Kind | None:
    """The kind that goes by this name, in any case, short or long, one or many; None: nobody does."""
    wanted = word.lower()
    likely = [path for path in _files() if path.stem.replace("_", "") == wanted or f'"{wanted}"' in path.read_text()]
    return next((kind for kind in map(_in_file, likely) if wanted in kind.names), None)


def _files() -> Iterator[Path]:
    folder = Path(__file__).parent
    return (path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py")


def _in_file(path: Path) -> Kind:
    kind: Kind = import_module(f"{__name__}.{path.stem}").KIND
    return kind
