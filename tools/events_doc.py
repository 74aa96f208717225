"""Writes docs/events.md: every subject and every message, out of bus/subjects.py and the classes in bus/messages/.

    python -m tools.events_doc > docs/events.md

Names, types and defaults come from the source text, so what a reader sees is what a programmer wrote; a comment behind
a field, or on the lines right above it, is that field's description.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bus import subjects
from bus.messages import Message
from bus.services import HEALTH
from bus.subjects import Event, Request, State, Subject

ROOT = Path(__file__).resolve().parent.parent

HEAD = """\
# Subjects and messages

Written by `make docs` out of `bus/subjects.py` and `bus/messages/`; do not edit it by hand.

Three families of subjects:

- `state.*`: the last value of a thing. The owner's JetStream stream `STATE_<OWNER>` is the truth.
- `evt.*`: a fact, over core NATS. It may be lost.
- `req.*`: a question, answered by a queue group within a deadline.

A token in angle brackets is a key, escaped: a byte that is not a letter, a digit or one of `_ / : = -` is `%XX`, and
an empty key is `%`. The body is the MessagePack array `[schema, map]`. The map's keys are the field names below; a
field at its default is left out. A reader passes over fields that it does not know, reads a word that it does not
know as "other" where the field has that, and refuses a schema that is newer than its own. Headers: `Plexus-Caused-At`
(seconds since the epoch when the change began), `traceparent` and `tracestate` when the change is traced, and
`Plexus-Deleted` on a state without a body: the key is gone.

How an owner hands out its log (`delta.<owner>`, `req.<owner>.snapshot`) is described in `bus/wire.py`.
"""


@dataclass(frozen=True)
class Field:
    name: str
    type: str
    default: str  # as written; "" when the field must be given
    text: str


@dataclass(frozen=True)
class Shape:
    """One message, or a part of one."""

    name: str
    text: str  # the docstring without the line that names the subject
    fields: tuple[Field, ...]
    is_part: bool


def shapes(folder: Path = ROOT / "bus" / "messages") -> dict[str, Shape]:
    """Every message class by name, in the order of files and of their text."""
    found: dict[str, Shape] = {}
    for path in sorted(folder.glob("*.py")):
        if path.name == "__init__.py":
            continue
        source = path.read_text()
        comments = comments_of(source)
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                found[node.name] = shape_of(node, comments)
    return found


def comments_of(source: str) -> dict[int, tuple[str, bool]]:
    """Line number -> (comment, whether it stands alone on its line)."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = token.line[: token.start[1]].strip() == ""
            found[token.start[0]] = (token.string.lstrip("# ").strip(), alone)
    return found


def shape_of(node: ast.ClassDef, comments: dict[int, tuple[str, bool]]) -> Shape:
    text = re.sub(r"\s*Subject: \S+?(?=\.?(\s|$))", "", ast.get_docstring(node) or "")
    fields = tuple(
        Field(
            name=each.target.id,
            type=ast.unparse(each.annotation),
            default=ast.unparse(each.value) if each.value is not None else "",
            text=description(each, comments),
        )
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    )
    is_part = any(isinstance(base, ast.Name) and base.id == "Part" for base in node.bases)
    return Shape(node.name, " ".join(text.split()).strip(" ."), fields, is_part)


def description(field: ast.AnnAssign, comments: dict[int, tuple[str, bool]]) -> str:
    behind = comments.get(field.end_lineno or field.lineno)
    if behind is not None:
        return behind[0]
    above: list[str] = []
    line = field.lineno - 1
    while line in comments and comments[line][1]:
        above.insert(0, comments[line][0])
        line -= 1
    return " ".join(above)


def document() -> str:
    known = shapes()
    lines = [HEAD]
    states = [each for each in vars(subjects).values() if isinstance(each, State)]
    events = [each for each in vars(subjects).values() if isinstance(each, Event)]
    requests = [each for each in vars(subjects).values() if isinstance(each, Request)]
    lines += ["## States\n", "| subject | message | owner |", "| --- | --- | --- |"]
    lines += [f"| `{pattern(each)}` | {link(each.message.__name__)} | {each.owner} |" for each in states]
    lines += ["\n## Events\n", "| subject | message |", "| --- | --- |"]
    lines += [f"| `{pattern(each)}` | {link(each.message.__name__)} |" for each in events]
    lines += ["\n## Questions\n", "| subject | question | answer |", "| --- | --- | --- |"]
    for each in [*requests, *HEALTH.values()]:
        lines.append(f"| `{pattern(each)}` | {link(each.message.__name__)} | {link(each.answer.__name__)} |")
    lines += ["\n## Messages\n", *described(each for each in known.values() if not each.is_part)]
    lines += ["## Parts\n", "A part travels inside a message, never alone.\n"]
    lines += described(each for each in known.values() if each.is_part)
    return "\n".join(lines).rstrip() + "\n"


def pattern(subject: Subject[Message]) -> str:
    return ".".join((subject.head, *(f"<{key}>" for key in subject.keys)))


def link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def described(found: Iterable[Shape]) -> Iterator[str]:
    for shape in found:
        yield f"### {shape.name}\n"
        if shape.text:
            yield f"{shape.text}.\n"
        if not shape.fields:
            yield "It has no fields.\n"
            continue
        yield "| field | type | default | meaning |"
        yield "| --- | --- | --- | --- |"
        for field in shape.fields:
            default = f"`{cell(field.default)}`" if field.default else ""
            yield f"| `{field.name}` | `{cell(field.type)}` | {default} | {cell(field.text)} |"
        yield ""


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(document())
