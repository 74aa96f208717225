"""An object of the API server -> a resource. Pure.

Who writes a manifest is told what Plexus does not do, and nothing is taken. An object in Kubernetes is there already:
it is taken as far as Plexus goes, and what is not done becomes a warning at the resource.

Not so policies. What of a policy cannot be kept as it is written is closed, not left out: an entry that cannot be
read allows nothing, and its direction stays denied by default; one that denies and cannot be read denies everyone, in
its direction, on every port. Where more than entries cannot be read the policy allows nothing at all, and denies what
it denied, of the pods that it selects, or, where even that cannot be read, of those of its namespace (of the cluster,
where it is of no namespace). What was read of an earlier version is not kept: the same object means the same, whatever
was there before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from msgspec.structs import replace as with_fields

from bus.codec import TooLarge, Undecodable, decode, encode
from bus.messages import Message
from bus.messages.resources import Document, Node, Policy
from services.resources.kind import Kind
from services.resources.manifests import words
from services.resources.manifests.annotations import check_annotations
from services.resources.manifests.document import read_document, warned
from services.resources.manifests.meta import Key, Resource, check_metadata
from services.resources.manifests.strict import DEEPEST, Problem, Problems, depth_exceeds, pruned, read_pruned

SOURCE = "Kubernetes"

NOISE = ("managedFields", "ownerReferences", "finalizers", "selfLink", "deletionGracePeriodSeconds")
"""Of metadata: of no use to a network. Who owns a pod takes it away at the API server."""
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

DIRECTIONS = ("ingress", "egress")
DENIES_EVERYONE: Mapping[str, Mapping[str, Any]] = {
    "ingressDeny": {"fromEntities": ["all"]},
    "egressDeny": {"toEntities": ["all"]},
}
"""By the list that they are in: entries in place of those that deny and cannot be read."""

_ENTRY = re.compile(r"(spec|specs\[(\d+)\])\.(ingress|egress|ingressDeny|egressDeny)\[(\d+)\]")
_PASSED_OVER = re.compile(r"(spec|specs\[\d+\])\.log$")
"""Of a policy: refused in a manifest, and no rule is another without it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as it was seen. `resource` None: it cannot be read, and what there is of it stays as it is."""

    key: Key
    resource: Resource | None
    told: tuple[Problem, ...] = ()  # what its author must know: it is not done, or not kept as written
    uid: str = ""
    version: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)  # as the object has it, where something is written there


def read_object(kind: Kind, found: Mapping[str, Any]) -> Seen | None:
    """The object, checked and trimmed. None: it has no name that Plexus could keep it under."""
    raw = {**found, "kind": kind.name, "apiVersion": kind.api_version}  # items of lists do not bear them
    if depth_exceeds(raw, DEEPEST + 3):
        return None
    metadata = raw.get("metadata")
    key = key_of(kind, metadata)
    if key is None or not isinstance(metadata, dict):
        return None
    raw["metadata"] = _trimmed(metadata)
    resource, told = _read_policy(kind, raw, key) if is_policy(kind) else _read_lenient(kind, raw, key)
    status = found.get("status") if kind.has_status else None
    return Seen(
        key,
        resource if resource is None or all(map(_can_be_said, resource.messages)) else None,
        told,
        uid=_text(metadata.get("uid")),
        version=_text(metadata.get("resourceVersion")),
        status=status if isinstance(status, dict) else {},
    )


def is_policy(kind: Kind) -> bool:
    return issubclass(kind.state.message, Policy)


def key_of(kind: Kind, metadata: object) -> Key | None:
    """Which resource an object is; None: its name is none."""
    if not isinstance(metadata, dict):
        return None
    name, namespace = _text(metadata.get("name")), _text(metadata.get("namespace"))
    if not name or kind.manifest().name_problem(name) is not None or bool(namespace) != kind.is_namespaced:
        return None
    if namespace and words.dns_label(namespace) is not None:
        return None
    return Key(kind.name, namespace, name)


def _trimmed(metadata: Mapping[str, Any]) -> dict[str, Any]:
    kept = {field: value for field, value in metadata.items() if field not in NOISE and field != "resourceVersion"}
    annotations = kept.get("annotations")
    if isinstance(annotations, dict):
        kept["annotations"] = {key: value for key, value in annotations.items() if key != LAST_APPLIED}
    return kept


def _read_lenient(kind: Kind, raw: dict[str, Any], key: Key) -> tuple[Resource | None, tuple[Problem, ...]]:
    problems, form = Problems(), kind.manifest()
    kept = pruned(form.schema, raw)
    manifest = read_pruned(form.schema, kept, problems)
    if manifest is None:
        return None, tuple(problems)
    check_metadata(manifest.metadata, problems)
    check_annotations(kind.name, manifest.metadata, "metadata", problems)
    resource = form.read(manifest, raw, key, SOURCE, problems)
    told = (*problems, *problems.warnings)
    messages = tuple((subject, _filled(kind, message, raw, resource, kept)) for subject, message in resource.messages)
    if any(isinstance(message, Node) and not message.addresses for _, message in messages):
        return None, ()  # a node is new, and its addresses will come
    resource = replace(resource, messages=messages)
    return (warned(resource, list(told)) if told else resource), told


def _filled(kind: Kind, message: Any, raw: dict[str, Any], resource: Resource, kept: dict[str, Any]) -> Message:
    """With what the API server knows and a manifest does not say."""
    message = with_fields(message, manifest=kept)
    filled: Message = kind.from_api(message, raw, resource) if kind.from_api is not None else message
    return filled


def _read_policy(kind: Kind, raw: dict[str, Any], key: Key) -> tuple[Resource | None, tuple[Problem, ...]]:
    raw.pop("status", None)
    resource, problems = _strict(raw)
    if resource is not None and all(map(_can_be_said, resource.messages)):
        return resource, resource.warnings
    if resource is not None:
        problems = (Problem("", "is too large for Plexus, and allows nothing: split it"),)
    for closed in _closed(kind, raw, key, problems):
        found = _strict(closed)[0]
        if found is not None:
            (subject, first), *others = found.messages
            for manifest in (raw, {field: raw[field] for field in ("apiVersion", "kind", "metadata")}):
                whole = with_fields(first, manifest=manifest)
                if _can_be_said((subject, whole)):  # as its author wrote it: that is what people look at
                    first = whole
                    break
            resource = warned(replace(found, messages=((subject, first), *others)), list(problems))
            if all(map(_can_be_said, resource.messages)):
                return resource, problems
    return None, problems


def _closed(kind: Kind, raw: dict[str, Any], key: Key, problems: tuple[Problem, ...]) -> Iterator[dict[str, Any]]:
    """The policy closed, as little as it can be first: where there are problems, all but what it denies, all."""
    if (entries_closed := _without_entries(raw, problems)) is not None:
        yield entries_closed
    if (wall := _walled(kind, raw, key, _denied_as_written)) is not None:
        unread = _strict(wall)[1]
        if (readable := _without_entries(wall, unread)) is not None:
            yield readable
    if (wall := _walled(kind, raw, key, _denied_whole)) is not None:
        yield wall


def _strict(raw: dict[str, Any]) -> tuple[Resource | None, tuple[Problem, ...]]:
    found = read_document(Document(source=SOURCE, manifest=raw))
    if isinstance(found, Resource):
        return found, ()
    return None, tuple(Problem(each.path, each.problem) for each in found)


def _without_entries(raw: dict[str, Any], problems: tuple[Problem, ...]) -> dict[str, Any] | None:
    """The policy with entries that are closed where there are problems. None: there are problems elsewhere."""
    closed = deepcopy(raw)
    entries = set()
    for problem in problems:
        entry = _ENTRY.match(problem.path)
        if entry is not None:
            entries.add((entry[1], entry[3], int(entry[4])))
        elif _PASSED_OVER.match(problem.path):
            _rule_at(closed, problem.path.rpartition(".")[0]).pop("log", None)
        else:
            return None
    is_cilium = raw["kind"] != "NetworkPolicy"
    if not is_cilium:
        closed["spec"]["policyTypes"] = _directions(raw["spec"])
    for path, direction, at in sorted(entries, reverse=True):
        section = _rule_at(closed, path)[direction]
        if is_cilium:
            section[at] = dict(DENIES_EVERYONE.get(direction, {}))
        else:
            del section[at]  # an empty list that policyTypes names denies
    return closed


def _rule_at(policy: dict[str, Any], path: str) -> dict[str, Any]:
    rule: dict[str, Any] = policy["spec"] if path == "spec" else policy["specs"][int(path[len("specs[") : -1])]
    return rule


def _directions(spec: Mapping[str, Any]) -> list[str]:
    """Those that a NetworkPolicy denies by default; both, where it cannot be read."""
    said = spec.get("policyTypes")
    if isinstance(said, list) and said and all(each in ("Ingress", "Egress") for each in said):
        return said
    if said:
        return ["Ingress", "Egress"]
    return ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def _walled(
    kind: Kind, raw: Mapping[str, Any], key: Key, denied: Callable[[str, object], list[Any]]
) -> dict[str, Any] | None:
    """A policy that allows nothing of what this one selects. None: it governs no pods.

    Args:
        denied: a list of entries that deny, by its field and as it was found -> what the wall has of it.
    """
    base = {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "metadata": {"name": key.name, "namespace": key.namespace},
    }
    spec = raw.get("spec")
    if kind.name == "NetworkPolicy":
        spec = spec if isinstance(spec, dict) else {}
        return _selecting(
            {**base, "spec": {"podSelector": spec.get("podSelector"), "policyTypes": _directions(spec)}}, "podSelector"
        )
    specs = raw.get("specs")
    rules = [spec] if "spec" in raw else []
    rules += specs if isinstance(specs, list) else [specs] if specs else []
    walls = [wall for rule in rules if (wall := _cilium_wall(rule, base, denied)) is not None]
    return {**base, "specs": walls} if walls else None


def _cilium_wall(
    rule: object, base: Mapping[str, Any], denied: Callable[[str, object], list[Any]]
) -> dict[str, Any] | None:
    if not isinstance(rule, dict):
        rule = {}
    if rule.get("nodeSelector") is not None and rule.get("endpointSelector") is None:
        return None
    by_default = _denied_by_default(rule)
    denies = {field: denied(field, rule[field]) for field in DENIES_EVERYONE if _is_there(rule, field)}
    if not by_default and not denies:
        return None  # what it allows is gone, and nothing else is left of it
    wall = {
        "endpointSelector": rule.get("endpointSelector"),
        "enableDefaultDeny": {each: each in by_default for each in DIRECTIONS},
        **{field: [dict(entry)] for field, entry in DENIES_EVERYONE.items() if field in denies},
    }
    found: dict[str, Any] = _selecting({**base, "spec": wall}, "endpointSelector")["spec"]
    return {**found, **denies}


def _denied_by_default(rule: Mapping[str, Any]) -> set[str]:
    """The directions that a rule denies by default: as `enableDefaultDeny` says, where what cannot be read is true;
    where it says nothing, those that the rule has entries of; and where nothing says anything, both."""
    said = rule.get("enableDefaultDeny")
    if said is None:
        said = {}
    if not isinstance(said, dict):
        return set(DIRECTIONS)
    named = {each for each in DIRECTIONS if _is_there(rule, each) or _is_there(rule, f"{each}Deny")}
    says_nothing = all(said.get(each) is None for each in DIRECTIONS)
    if not said.keys() <= set(DIRECTIONS) or (says_nothing and not named):
        named = set(DIRECTIONS)
    return {each for each in DIRECTIONS if (each in named if said.get(each) is None else said[each] is not False)}


def _is_there(rule: Mapping[str, Any], section: str) -> bool:
    """It is no empty list. Of null it is not known whether it was one that denies."""
    return section in rule and rule[section] != [] and (rule[section] is not None or section in DENIES_EVERYONE)


def _denied_as_written(field: str, entries: object) -> list[Any]:
    return deepcopy(entries) if isinstance(entries, list) else _denied_whole(field, entries)


def _denied_whole(field: str, _: object) -> list[Any]:
    return [dict(DENIES_EVERYONE[field])]


def _selecting(policy: dict[str, Any], selector: str) -> dict[str, Any]:
    """The policy, of all pods that it could select where its selector cannot be read."""
    if policy["spec"][selector] is None or _strict(policy)[0] is None:
        policy["spec"][selector] = {}
    return policy


def _can_be_said(said: tuple[str, Message]) -> bool:
    """Every reader on the bus would take it. What a reader of manifests refuses is in it, so it is looked at."""
    subject, message = said
    try:
        decode(subject, encode(message, subject=subject), type(message))
    except (TooLarge, Undecodable, OverflowError, UnicodeEncodeError):
        return False
    return True


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
