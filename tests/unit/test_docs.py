"""The documents say what is there: files, tests, commands, targets and subjects that they name exist."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.__main__ import app
from settings.row import text
from settings.rows import ROWS
from tools import settings_doc
from tools.events_doc import document

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "cni/README.md", *(ROOT / "docs").rglob("*.md")]
)
MADE_BY_SETUP = (".venv/", "build/")

_FENCE = re.compile(r"```.*?```", re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SUFFIXED = re.compile(r"\.?[\w][\w./-]*\.(py|c|h|md|toml|yaml|json|sh|lock)")
_TEST = re.compile(r"(tests/[\w/]+\.py)::(test_\w+)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def spans(document: Path) -> Iterator[str]:
    """What stands between backticks in running text and tables."""
    yield from _SPAN.findall(_FENCE.sub("", document.read_text()))


def is_path(text: str) -> bool:
    """It names a file or folder of this repository, by its suffix or by its first folder."""
    if text.startswith(("/", *MADE_BY_SETUP)) or re.search(r"[<>*{}: ]", text):
        return False
    return _SUFFIXED.fullmatch(text) is not None or ((ROOT / text.split("/", maxsplit=1)[0]).is_dir() and "/" in text)


def exists(text: str) -> bool:
    """From the root, or a C file by its short name as the documents about the C have it."""
    dataplane = ROOT / "services" / "dataplane"
    places = [ROOT, dataplane, *(dataplane / "bpf" / each for each in ("", "include", "programs"))]
    if "/" not in text:
        places += [ROOT / "cni"]
    return any((place / text).exists() for place in places) or text in GENERIC


# A file that every service has; named without a folder where the text is about any of them.
GENERIC = {"model.py", "store.py", "settings.py", "__init__.py", "__main__.py"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", path.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = path if not target else path.parent / target
        assert file.exists(), link
        if anchor:
            anchors = {re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in headings(file)}
            assert anchor in anchors, link


def headings(file: Path) -> list[str]:
    return _HEADING.findall(_FENCE.sub("", file.read_text()))


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_file_that_a_document_names_exists(path: Path) -> None:
    missing = [text for text in spans(path) if is_path(text) and not _TEST.match(text) and not exists(text)]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_test_that_a_document_names_exists(path: Path) -> None:
    for file, name in _TEST.findall(path.read_text()):
        assert re.search(rf"def {name}\(", (ROOT / file).read_text()), f"{file}::{name}"


def test_every_command_that_a_document_names_is_there() -> None:
    root = typer.main.get_command(app)
    asked = {words for path in DOCUMENTS for words in commands(path.read_text())}
    assert asked, "no document names a command any more: is the pattern right?"
    assert [" ".join(words) for words in sorted(asked) if not has(root, words)] == []


def commands(text: str) -> Iterator[tuple[str, ...]]:
    """The words after "plexus" in code, up to the first that is no plain word."""
    for line in code(text):
        found = re.match(r"(?:\.venv/bin/)?plexus ((?:[a-z]+ ?)+)", line)
        if found:
            yield tuple(found[1].split())


def code(text: str) -> list[str]:
    """What stands between backticks, and the lines of code blocks."""
    blocks = [line.strip() for block in _FENCE.findall(text) for line in block.splitlines()]
    return [*_SPAN.findall(_FENCE.sub("", text)), *blocks]


def has(command: Any, words: tuple[str, ...]) -> bool:
    """Every word is a command until one is reached that has no commands of its own."""
    for word in words:
        if not hasattr(command, "get_command"):
            return True
        command = command.get_command(typer.Context(command), word)
        if command is None:
            return False
    return True


def test_every_target_that_a_document_names_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    layers = re.search(r"^LAYERS := (.*)$", makefile, re.MULTILINE)
    assert layers is not None
    targets = {
        *re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE),
        *(f"test-{each}" for each in layers[1].split()),
    }
    for path in DOCUMENTS:
        asked = {found[1] for each in code(path.read_text()) if (found := re.match(r"make ([a-z][a-z-]*)", each))}
        assert asked <= targets, named(path)


def test_the_list_of_subjects_and_messages_is_current() -> None:
    assert (ROOT / "docs" / "events.md").read_text() == document(), "run `make docs`"


def test_the_generator_prints_what_it_returns() -> None:
    command = [sys.executable, "-m", "tools.events_doc"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == document()


def test_every_setting_is_in_its_document_with_its_default() -> None:
    rows = [line.split("|") for line in (ROOT / "docs/settings.md").read_text().splitlines() if line.startswith("| `")]
    written = {key: row[2].strip() for row in rows for key in _SPAN.findall(row[1])}
    there = {each.name: "-" if each.default is None else f"`{text(each.default)}`" for each in ROWS}
    assert written == there


def test_the_documents_of_settings_are_current() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings_doc.document(), "run `make docs`"
    sizes = (ROOT / "docs" / "map-sizes.md").read_text()
    assert sizes == settings_doc.map_sizes(sizes), "run `make docs`"
