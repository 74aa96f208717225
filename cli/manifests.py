"""Manifests from files, folders and standard input, as the user wrote them, with where each one stands.

YAML is read strictly: no key twice, only plain values, no aliases that unfold to something huge, no dates out of words.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from bus.messages.resources import Document
from bus.texts import shortened
from cli.errors import Failed

KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml")
SUFFIXES = (".yaml", ".yml", ".json")
FILE_BYTES = 10_000_000  # a larger file is not a manifest
UNFOLDED_VALUES = 200_000  # in one document once every alias is written out
DEEPEST = 64  # levels of lists and mappings; the deepest field of any kind is at 20

TOO_DEEP = f"nested more than {DEEPEST} levels deep"

_TAG = "tag:yaml.org,2002:"
_SCALARS = ("str", "int", "float", "bool", "null")
_PLAIN = {_TAG + kind for kind in (*_SCALARS, "map", "seq", "merge")}
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Malformed(Exception):
    """It cannot be read. `line` counts from 1; 0: no particular one."""

    def __init__(self, problem: str, line: int = 0) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line


class Loader(_Base):  # type: ignore[misc]  # the C loader when PyYAML was built with it, else the Python one
    """PyYAML's safe loader without its surprises: no dates, no base-60 numbers."""


Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in (_TAG + "timestamp", _TAG + "int", _TAG + "float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    _TAG + "int",
    re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
Loader.add_implicit_resolver(
    _TAG + "float",
    re.compile(
        r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan)$",
        re.IGNORECASE,
    ),
    list("-+.0123456789"),
)


def read(sources: Iterable[str]) -> list[Document]:
    """Every manifest in these files, folders (recursively, by name) and "-" (standard input), in order.

    Raises: Failed: with a line for each file that cannot be read, naming it and the line.
    """
    documents: list[Document] = []
    problems: list[str] = []
    for source in sources:
        for name, path in files(source):
            try:
                documents.extend(parse(content(path), name))
            except Malformed as error:
                problems.append(f"{name}{f', line {error.line}' if error.line else ''}: {error.problem}")
    if problems:
        raise Failed(*problems)
    if not documents:
        raise Failed(
            "there is no manifest in it; give files or folders with .yaml, .yml or .json, or - for standard input"
        )
    return documents


def files(source: str) -> Iterator[tuple[str, Path | None]]:
    """(name for messages, path) of each file behind one -f; the path of standard input is None."""
    path = Path(source)
    if source == "-":
        yield "standard input", None
    elif path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES and each.is_file())
        if not found:
            raise Failed(f"{source}: no .yaml, .yml or .json file in this folder")
        yield from ((str(each), each) for each in found)
    elif path.exists():
        yield source, path
    else:
        raise Failed(f"{source}: no such file or folder")


def content(path: Path | None) -> str:
    """A file's text, never more than FILE_BYTES of it."""
    try:
        if path is None:
            raw = sys.stdin.buffer.read(FILE_BYTES + 1)
        else:
            with path.open("rb") as file:
                raw = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise Malformed(error.strerror or str(error)) from error
    if len(raw) > FILE_BYTES:
        raise Malformed(f"larger than {FILE_BYTES // 1_000_000} MB; split it")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"byte {error.start} is not UTF-8", raw[: error.start].count(b"\n") + 1) from error


def parse(text: str, name: str) -> list[Document]:
    """The manifests of one file; empty documents are passed over, a `List` is taken apart.

    Args:
        name: for `Document.source`: "star-wars.yaml, document 2".
    Raises: Malformed: with the line.
    """
    values = [(1, json_value(text))] if name.endswith(".json") else list(yaml_values(text))
    several = len(values) > 1
    documents: list[Document] = []
    for number, (line, value) in enumerate(values, 1):
        if value is None:
            continue
        source = f"{name}, document {number}" if several else name
        if not isinstance(value, dict):
            raise Malformed("a manifest is a mapping with apiVersion, kind and metadata", line)
        if value.get("kind") == "List" and isinstance(value.get("items"), list):
            for position, item in enumerate(value["items"], 1):
                if not isinstance(item, dict):
                    raise Malformed(f"item {position} of the List is not a mapping", line)
                documents.append(Document(source=f"{source}, item {position}", manifest=item))
        else:
            documents.append(Document(source=source, manifest=as_kustomize_reads(value, name)))
    return documents


def as_kustomize_reads(value: dict[str, Any], name: str) -> dict[str, Any]:
    """A kustomization.yaml may leave out what kind it is."""
    if Path(name).name in KUSTOMIZATIONS and "kind" not in value:
        return {"apiVersion": "kustomize.config.k8s.io/v1beta1", **value, "kind": "Kustomization"}
    return value


def json_value(text: str) -> Any:
    """One JSON document. Raises Malformed."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise Malformed(f"the key {key!r} is there twice")
            found[key] = value
        return found

    def refuse(word: str) -> Any:
        raise Malformed(f"{word} is not a value")

    def whole(digits: str) -> int:
        if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
            raise Malformed(f"{shortened(digits, 60)} needs more than 64 bits; quote it if it is text")
        return int(digits)

    def number(digits: str) -> float:
        if not math.isfinite(float(digits)):
            raise Malformed(f"{shortened(digits, 60)} is not a number that a manifest can hold")
        return float(digits)

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=refuse, parse_int=whole, parse_float=number)
    except json.JSONDecodeError as error:
        raise Malformed(error.msg, error.lineno) from error
    except RecursionError as error:
        raise Malformed(TOO_DEEP) from error
    layer = [value] if isinstance(value, (dict, list)) else []  # all lists and mappings of one level
    for _ in range(DEEPEST):
        items = (item for each in layer for item in (each.values() if isinstance(each, dict) else each))
        layer = [item for item in items if isinstance(item, (dict, list))]
    if layer:
        raise Malformed(TOO_DEEP)
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Malformed("a text has half of a pair of \\u escapes, which is no character") from None
    return value


def yaml_values(text: str) -> Iterator[tuple[int, Any]]:
    """(first line, value) of each YAML document. Raises Malformed."""
    try:
        check_depth(text)
        loader = Loader(text)
        try:
            while loader.check_node():
                node = loader.get_node()
                unfolded(node, {}, set())
                yield node.start_mark.line + 1, value_of(node, loader)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Malformed(error.problem or error.context or "not YAML", mark.line + 1 if mark else 0) from error
    except yaml.YAMLError as error:
        raise Malformed(f"not YAML: {' '.join(str(error).split())}") from error


def check_depth(text: str) -> None:
    """Raises Malformed, YAMLError. Comes first and recurses nowhere: composing does, and overflows the C stack."""
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise Malformed(TOO_DEEP, event.start_mark.line + 1 if event.start_mark else 0)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def unfolded(node: Any, sizes: dict[int, int], above: set[int]) -> int:
    """How many values `node` has once every alias is written out; each node is visited once.

    Raises: Malformed: more than UNFOLDED_VALUES, or an alias that contains itself.
    """
    known = sizes.get(id(node))
    if known is not None:
        return known
    if id(node) in above:
        raise Malformed("this alias contains itself", node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        return 1
    above.add(id(node))
    inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    total = 1 + sum(unfolded(part, sizes, above) for part in inner)
    above.discard(id(node))
    if total > UNFOLDED_VALUES:
        raise Malformed(
            f"more than {UNFOLDED_VALUES} values once its aliases are written out", node.start_mark.line + 1
        )
    sizes[id(node)] = total
    return total


def value_of(node: Any, loader: Any) -> Any:
    """The plain value of a node whose size is already known to be harmless. Raises Malformed."""
    line = node.start_mark.line + 1
    if node.tag not in _PLAIN:
        raise Malformed(f"the tag {node.tag.replace(_TAG, '!!')} has no place in a manifest", line)
    if isinstance(node, yaml.SequenceNode):
        return [value_of(item, loader) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return mapping_of(node, loader)
    try:
        value = loader.construct_object(node)
    except ValueError as error:
        raise Malformed(f"{node.value!r} is not a value: {error}", line) from error
    if isinstance(value, float) and not math.isfinite(value):
        raise Malformed(f"{node.value} is not a number that a manifest can hold", line)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise Malformed(f"{node.value} needs more than 64 bits; quote it if it is text", line)
    return value


def mapping_of(node: Any, loader: Any) -> dict[str, Any]:
    """A mapping with text keys, none twice; `<<` fills in what is not written here."""
    own: dict[str, Any] = {}
    lines: dict[str, int] = {}
    merged: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag == _TAG + "merge":
            value = value_of(value_node, loader)
            for part in reversed(value if isinstance(value, list) else [value]):
                if not isinstance(part, dict):
                    raise Malformed("<< takes a mapping or a list of mappings", line)
                merged.update(part)
            continue
        key = value_of(key_node, loader)
        if not isinstance(key, str):
            raise Malformed(
                f"the key {key_node.value} is not text; quote it"
                if isinstance(key_node, yaml.ScalarNode)
                else "a key is text",
                line,
            )
        if key in own:
            raise Malformed(f"the key {key!r} is there twice, first on line {lines[key]}", line)
        own[key] = value_of(value_node, loader)
        lines[key] = line
    return {**merged, **own}
