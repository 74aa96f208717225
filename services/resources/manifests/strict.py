"""A manifest against its schema: every place where it does not fit, by path, with what would fit.

A schema is a msgspec struct in Python's spelling; `kubernetes_case` gives the manifest's. Fields that Plexus takes but
does not read are listed by name in `PASSED_OVER`, so that a real manifest passes and a misspelt field does not.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, ClassVar, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

DEEPEST = 64  # levels of nesting; the deepest field of any kind that we know is at 20

_ACRONYMS = {
    "ip": "IP", "ips": "IPs", "cidr": "CIDR", "cidrs": "CIDRs", "fqdn": "FQDN", "fqdns": "FQDNs", "id": "ID",
    "pid": "PID", "ipc": "IPC", "tls": "TLS",
}  # fmt: skip


def kubernetes_case(field: str) -> str:
    """ "cluster_ips" -> "clusterIPs": camel case, with Kubernetes' spelling of acronyms after the first word."""
    first, *rest = field.split("_")
    return first + "".join(_ACRONYMS.get(word, word.capitalize()) for word in rest)


def names(text: str) -> frozenset[str]:
    """A set of field names out of words."""
    return frozenset(text.split())


class Schema(msgspec.Struct, frozen=True, kw_only=True, rename=kubernetes_case):
    """A manifest, or an object in one. Unknown fields are refused by `misfits`, which knows `PASSED_OVER`."""

    PASSED_OVER: ClassVar[frozenset[str]] = frozenset()  # taken, kept in the manifest, not read by Plexus
    NULL_IS_REFUSED: ClassVar[frozenset[str]] = frozenset()  # elsewhere null is as good as absent; in a map it is not


class Problem(NamedTuple):
    """What is wrong at one place, and what would be right."""

    path: str  # "spec.ingress[0].toPorts", "" for the document itself
    text: str


class Problems(list[Problem]):
    """Collected while reading; a document is taken only when this stays empty, whatever the warnings say."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[Problem] = []

    def warn(self, path: str, text: str) -> None:
        """It is taken, and not as its author may think."""
        self.warnings.append(Problem(path, text))

    def add(self, path: str, text: str) -> None:
        self.append(Problem(path, text))

    def add_if(self, path: str, text: str | None) -> None:
        """For checks that answer None when all is well."""
        if text is not None:
            self.append(Problem(path, text))


S = TypeVar("S", bound=Schema)


def read(schema: type[S], manifest: dict[str, Any], problems: Problems) -> S | None:
    """The manifest as its type; None, and why in `problems`, when it does not fit."""
    found = list(misfits(manifest, _info(schema), ""))
    problems.extend(found)
    if found:
        return None
    try:
        return msgspec.convert(_pruned(manifest, _info(schema)), schema)
    except msgspec.ValidationError as error:  # a number beyond 64 bits, and whatever msgspec is stricter about
        problems.add("", str(error))
        return None


def read_pruned(schema: type[S], manifest: dict[str, Any], problems: Problems) -> S | None:
    """The same of what an API server has checked, and may know more fields than we do: what is `pruned`."""
    try:
        return msgspec.convert(manifest, schema)
    except msgspec.ValidationError as error:
        problems.add("", str(error))
        return None


def pruned(schema: type[Schema], manifest: dict[str, Any]) -> dict[str, Any]:
    """Only the fields that the schema names."""
    kept: dict[str, Any] = _pruned(manifest, _info(schema))
    return kept


def unfit(schema: type[Schema], value: object, path: str) -> Iterator[Problem]:
    """Every place where `value` does not fit the schema: what `pruned` takes away without a word is among them."""
    return misfits(value, _info(schema), path)


def misfits(value: object, wanted: inspect.Type, path: str, null_is_refused: bool = False) -> Iterator[Problem]:
    """Every place under `path` where `value` is not of the type `wanted`.

    Args:
        null_is_refused: as a value of a map; otherwise it is the empty text there, as API servers read it.
    """
    if path.count(".") + path.count("[") > DEEPEST:
        yield Problem(path, f"is nested more than {DEEPEST} levels deep")
        return
    match wanted:
        case inspect.StructType():
            yield from _object_misfits(value, wanted, path)
        case inspect.ListType():
            if not isinstance(value, list):
                yield Problem(path, f"must be a list, got {_shown(value)}")
                return
            for index, item in enumerate(value):
                yield from misfits(item, wanted.item_type, f"{path}[{index}]", null_is_refused)
        case inspect.DictType():
            yield from _map_misfits(value, wanted, path, null_is_refused)
        case inspect.UnionType():
            yield from _union_misfits(value, wanted, path, null_is_refused)
        case inspect.StrType():
            if not isinstance(value, str):
                quotes = "; put it in quotes" if isinstance(value, (int, float)) else ""
                yield Problem(path, f"must be text, got {_shown(value)}{quotes}")
        case inspect.BoolType():
            if not isinstance(value, bool):
                yield Problem(path, f"must be true or false, got {_shown(value)}")
        case inspect.IntType():
            if not isinstance(value, int) or isinstance(value, bool):
                yield Problem(path, f"must be a whole number, got {_shown(value)}")
        case _:
            if depth_exceeds(value, DEEPEST):
                yield Problem(path, f"is nested more than {DEEPEST} levels deep")


def depth_exceeds(value: object, levels: int) -> bool:
    """`value` has more than `levels` levels of lists and maps. Looks no deeper than that, so it cannot overflow."""
    layer: list[object] = [value]
    for _ in range(levels + 1):
        layer = [
            item
            for each in layer
            if isinstance(each, (dict, list))
            for item in (each.values() if isinstance(each, dict) else each)
        ]
        if not layer:
            return False
    return True


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean "x"?', or "" when nothing is near."""
    found = meant(word, known)
    return f'; did you mean "{found}"?' if found else ""


def meant(word: str, known: Iterable[str]) -> str:
    """The known word that is nearest to this one, "" when none is near."""
    by_lower = {each.lower(): each for each in sorted(known)}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else ""


def joined(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


def _object_misfits(value: object, wanted: inspect.StructType, path: str) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem(path, f"must be a map of fields, got {_shown(value)}")
        return
    fields, passed_over, refused = _fields(wanted.cls)
    misspelt = set()  # fields that seem to be there under another spelling: one complaint is enough
    for key in value:
        if not isinstance(key, str) or (key not in fields and key not in passed_over):
            known = fields.keys() | passed_over
            misspelt.add(meant(str(key), known))
            yield Problem(joined(path, str(key)), f"is not a known field{nearest(str(key), known)}")
    for name, field in fields.items():
        if name not in value or (value[name] is None and name not in refused):
            if field.required and name not in misspelt:
                yield Problem(joined(path, name), "is required, and missing")
        elif value[name] is None:
            yield Problem(joined(path, name), "is null; give it a value, for without it the policy may be wider")
        else:
            yield from misfits(value[name], field.type, joined(path, name), name in refused)
    for name in passed_over & value.keys():
        if depth_exceeds(value[name], DEEPEST):
            yield Problem(joined(path, name), f"is nested more than {DEEPEST} levels deep")


def _map_misfits(value: object, wanted: inspect.DictType, path: str, null_is_refused: bool) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem(path, f"must be a map, got {_shown(value)}")
        return
    for key, item in value.items():
        if not isinstance(key, str):
            yield Problem(path, f"has the key {_shown(key)}, which is not text; put it in quotes")
        elif item is not None or null_is_refused:
            yield from misfits(item, wanted.value_type, f"{path}[{key}]", null_is_refused)


def _union_misfits(value: object, wanted: inspect.UnionType, path: str, null_is_refused: bool) -> Iterator[Problem]:
    """`x | None` is an x that may be left out; otherwise (a number or text) any member will do."""
    members = [member for member in wanted.types if not isinstance(member, inspect.NoneType)]
    attempts = [list(misfits(value, member, path, null_is_refused)) for member in members]
    if all(attempts):
        if len(attempts) == 1:
            yield from attempts[0]
        else:
            yield Problem(path, f"must be a whole number or text, got {_shown(value)}")


@cache
def _info(schema: type) -> inspect.Type:
    """Costs a millisecond the first time."""
    return inspect.type_info(schema)


@cache
def _fields(schema: type) -> tuple[dict[str, inspect.Field], frozenset[str], frozenset[str]]:
    info = _info(schema)
    assert isinstance(info, inspect.StructType) and issubclass(schema, Schema)
    return {field.encode_name: field for field in info.fields}, schema.PASSED_OVER, schema.NULL_IS_REFUSED


def _pruned(value: Any, wanted: inspect.Type) -> Any:
    """`value`, which fits, as an API server takes it: a null field is not there, a null in a map is the empty text."""
    match wanted:
        case inspect.StructType() if isinstance(value, dict):
            fields, *_ = _fields(wanted.cls)
            return {
                name: _pruned(value[name], field.type) for name, field in fields.items() if value.get(name) is not None
            }
        case inspect.DictType() if isinstance(value, dict):
            return {key: "" if item is None else _pruned(item, wanted.value_type) for key, item in value.items()}
        case inspect.ListType() if isinstance(value, list):
            return [_pruned(item, wanted.item_type) for item in value]
        case inspect.UnionType():
            for member in wanted.types:
                if isinstance(member, (inspect.StructType, inspect.DictType, inspect.ListType)):
                    return _pruned(value, member)
    return value


def _shown(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            return f'the text "{value[:40]}"'
        case list():
            return "a list"
        case dict():
            return "a map"
        case _:
            return f"a {type(value).__name__}"
