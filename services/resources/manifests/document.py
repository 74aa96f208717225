"""One document -> a resource, or every reason why not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from bus.messages.resources import Document, Notice, Refusal
from bus.texts import shortened
from services.resources.kind import Kind
from services.resources.manifests import not_read, words
from services.resources.manifests.annotations import check_annotations
from services.resources.manifests.meta import LONGEST_TEXT, Key, Resource, check_metadata, notice, refusal
from services.resources.manifests.strict import DEEPEST, Problem, Problems, depth_exceeds, nearest, read
from services.resources.registry import BY_NAME

DEFAULT_NAMESPACE = "default"

NOT_READ = (not_read.LATER | not_read.WORKLOADS | not_read.NO_CONCERN) - BY_NAME.keys()

MOST_WARNINGS = 20  # of one document; as many are kept with the resource


def read_document(document: Document, to_delete: bool = False) -> Resource | list[Refusal]:
    """One document, checked by itself.

    Args:
        to_delete: only what names the resource is read; a manifest that is refused today can be deleted.
    Returns: the resource, or every reason why not, at least one.
    """
    problems = Problems()
    resource = _read(document, problems, to_delete)
    if resource is not None and not problems:
        return warned(resource, problems.warnings) if problems.warnings else resource
    kind, name = _names(document)
    return [refusal(document.source, kind, name, problem.path, problem.text) for problem in problems]


def skipped(document: Document) -> tuple[str, list[Notice]] | None:
    """The kind of a document that may be passed over, and what is to be said of that; None: it is to be read."""
    kind, name = _names(document)
    api_version = document.manifest.get("apiVersion")
    if not kind or not isinstance(api_version, str) or not not_read.may_be_skipped(kind, api_version):
        return None
    if kind in BY_NAME and api_version in BY_NAME[kind].api_versions:
        return None
    missing = not_read.what_is_missing(kind)
    return kind, [] if missing is None else [notice(document.source, kind, name, "", missing)]


def _names(document: Document) -> tuple[str, str]:
    """Kind and name as far as they are text."""
    meta = document.manifest.get("metadata")
    found = document.manifest.get("kind"), meta.get("name") if isinstance(meta, dict) else None
    kind, name = (value if isinstance(value, str) else "" for value in found)
    return kind, name


def warned(resource: Resource, warnings: list[Problem]) -> Resource:
    """With what was taken and is not done, kept in the first of its messages too."""
    kept = warnings[:MOST_WARNINGS]
    if len(warnings) > MOST_WARNINGS:
        kept[-1] = Problem("", f"{len(warnings) - MOST_WARNINGS + 1} more places ask for what is not done")
    (subject, first), *others = resource.messages
    told = [shortened(f"{path}: {text}" if path else text, LONGEST_TEXT) for path, text in kept]
    first = msgspec.structs.replace(first, warnings=told)  # each kind of message has the field
    return replace(resource, messages=((subject, first), *others), warnings=tuple(kept))


def _read(document: Document, problems: Problems, to_delete: bool) -> Resource | None:
    raw = document.manifest
    if depth_exceeds(raw, DEEPEST):
        problems.add("", f"is nested more than {DEEPEST} levels deep")
        return None
    kind = _kind(raw, problems)
    if kind is None:
        return None
    if to_delete:
        key = _key_to_delete(raw, kind, problems)
        return Resource(key, document.source) if key is not None else None
    form = kind.manifest()
    manifest = read(form.schema, raw, problems)
    if manifest is None:
        return None
    check_metadata(manifest.metadata, problems)
    check_annotations(manifest.kind, manifest.metadata, "metadata", problems)
    key = _key(kind, manifest.metadata.name, manifest.metadata.namespace, problems)
    return form.read(manifest, raw, key, document.source, problems)


def _kind(raw: dict[str, Any], problems: Problems) -> Kind | None:
    name, api_version = raw.get("kind"), raw.get("apiVersion")
    for field, value in (("kind", name), ("apiVersion", api_version)):
        if not isinstance(value, str) or not value:
            problems.add(field, "is required, and missing" if not value else "must be text")
    if not isinstance(name, str) or not isinstance(api_version, str) or problems:
        return None
    kind = BY_NAME.get(name)
    supported = ", ".join(sorted(BY_NAME))
    if kind is None and name in NOT_READ:
        problems.add("kind", not_read.why_refused(name, supported))
    elif kind is None:
        hint = nearest(name, BY_NAME.keys() | NOT_READ) or f"; supported are {supported}"
        if not_read.may_be_skipped(name, api_version):
            hint = f" of this version; leave it out, or let --skip-unsupported pass over it{nearest(name, BY_NAME)}"
        problems.add("kind", f'"{name}" is not a known kind{hint}')
    elif api_version not in kind.api_versions:
        problems.add("apiVersion", f"{name} is of {' or '.join(kind.api_versions)}, not {api_version}")
        return None
    return kind


def _key(kind: Kind, name: str, namespace: str, problems: Problems) -> Key:
    if not name:
        problems.add("metadata.name", "is required, and missing")
    else:
        problems.add_if("metadata.name", kind.manifest().name_problem(name))
    if not kind.is_namespaced:
        if namespace:
            problems.add("metadata.namespace", f"must be left out; a {kind.name} is in no namespace")
        return Key(kind.name, "", name)
    if namespace:
        problems.add_if("metadata.namespace", words.dns_label(namespace))
    return Key(kind.name, namespace or DEFAULT_NAMESPACE, name)


def _key_to_delete(raw: dict[str, Any], kind: Kind, problems: Problems) -> Key | None:
    metadata = raw.get("metadata")
    if not isinstance(metadata, dict):
        problems.add("metadata", "is required, and missing" if metadata is None else "must be a map of fields")
        return None
    words_ = {field: metadata.get(field) or "" for field in ("name", "namespace")}
    for field, value in words_.items():
        if not isinstance(value, str):
            problems.add(f"metadata.{field}", "must be text")
    if problems:
        return None
    return _key(kind, words_["name"], words_["namespace"], problems)
