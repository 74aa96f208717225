"""What every manifest has: metadata, and what reading one gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bus.messages import Message
from bus.messages.resources import Notice, Refusal
from bus.texts import shortened
from services.resources.manifests import words
from services.resources.manifests.strict import Problem, Problems, Schema, joined, names

LONGEST_TEXT, LONGEST_PATH, LONGEST_NAME = 400, 250, 253  # characters of a problem, of its path, of a kind or name
ANNOTATION_BYTES = 256 * 1024  # Kubernetes' limit for all annotations of an object together


@dataclass(frozen=True, slots=True)
class Key:
    """Which resource. `namespace` is "" for kinds that have none."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Resource:
    """One manifest, checked by itself; `model.py` checks it against what is there."""

    key: Key
    source: str  # "star-wars.yaml, document 2"
    messages: tuple[tuple[str, Message], ...] = ()  # (subject, value); none when it was read to be deleted
    uid: str = ""  # metadata.uid: the resource that the user means, "" for whichever has the name
    asked_addresses: tuple[str, ...] = ()  # a Service's spec.clusterIPs: none for any, ("None",) for headless
    warnings: tuple[Problem, ...] = ()  # what was taken and is not done; the first message says it too


def refusal(source: str, kind: str, name: str, path: str, problem: str) -> Refusal:
    """What a document holds stands in these texts, and a document may hold anything: all are cut to what one reads."""
    return Refusal(
        source=source,
        kind=shortened(kind, LONGEST_NAME),
        name=shortened(name, LONGEST_NAME),
        path=shortened(path, LONGEST_PATH),
        problem=shortened(problem, LONGEST_TEXT),
    )


def notice(source: str, kind: str, name: str, path: str, text: str) -> Notice:
    """As `refusal`, of what was taken."""
    return Notice(
        source=source,
        kind=shortened(kind, LONGEST_NAME),
        name=shortened(name, LONGEST_NAME),
        path=shortened(path, LONGEST_PATH),
        text=shortened(text, LONGEST_TEXT),
    )


class OwnerReference(Schema, frozen=True, kw_only=True):
    api_version: str
    kind: str
    name: str
    PASSED_OVER = names("uid controller blockOwnerDeletion")


class ObjectMeta(Schema, frozen=True, kw_only=True):
    name: str = ""
    namespace: str = ""
    generate_name: str = ""
    uid: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: list[OwnerReference] = []
    PASSED_OVER = names(
        "creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers generation managedFields"
        " resourceVersion selfLink"
    )


class Manifest(Schema, frozen=True, kw_only=True):
    """The outermost object of every kind."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    PASSED_OVER = names("status")


def check_metadata(metadata: ObjectMeta, problems: Problems, path: str = "metadata") -> None:
    """Labels and annotations; names are checked with the kind, which says what a name of it looks like."""
    check_labels(metadata.labels, joined(path, "labels"), problems)
    for key in metadata.annotations:
        problems.add_if(f"{path}.annotations[{key}]", words.annotation_key(key))
    size = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.annotations.items())
    if size > ANNOTATION_BYTES:
        problems.add(joined(path, "annotations"), f"are {size} bytes together; at most {ANNOTATION_BYTES} are allowed")
    if metadata.generate_name and not metadata.name:
        problems.add(joined(path, "generateName"), "is not supported yet; give metadata.name")


def check_labels(labels: dict[str, str], path: str, problems: Problems) -> None:
    for key, value in labels.items():
        problems.add_if(f"{path}[{key}]", words.label_key(key))
        problems.add_if(f"{path}[{key}]", words.label_value(value))


def refuse_when_set(manifest: Any, fields: dict[str, str], path: str, problems: Problems) -> None:
    """Valid in Kubernetes, not done here: say so, rather than pass it over.

    Args:
        manifest: the raw object.
        fields: its field in the manifest's spelling -> what it is, for the sentence. Absent, null, false, "", 0, []
            and {} are not "set".
    """
    for field, what in fields.items():
        if manifest.get(field):
            problems.add(joined(path, field), f"{what} is not supported yet; remove the field")
