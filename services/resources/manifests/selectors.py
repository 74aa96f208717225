"""Label selectors: Kubernetes' form, and Cilium's form over labels with a source.

On the bus a selector is a sorted list of requirements over canonical keys (docs/glossary.md): "k8s:app" is the pod's
label "app", "k8s:io.kubernetes.pod.namespace" its namespace, "k8s:io.cilium.k8s.namespace.labels.<key>" a label of
that namespace.

Sources: Kubernetes, "Labels and Selectors"; Cilium, "Endpoint Selector" and "Terminology: labels" (label sources).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bus.labels import NAMESPACE, NAMESPACE_LABELS
from bus.messages.resources import LabelSelector, Requirement
from services.resources.manifests import words
from services.resources.manifests.strict import Problems, Schema, joined, names, nearest, unfit

RESERVED_LABEL = "reserved:"
"""What keys begin with by which policies know entities; no pod has a label of one."""

NETWORK_LABELS = ("cidr:", "cidrgroup:")
"""The same of networks, and of groups of them."""
GROUP_NAME = "cidrgroup:io.cilium.policy.cidrgroupname/"

OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


class Expression(Schema, frozen=True, kw_only=True):
    key: str
    operator: str
    values: list[str] = []


class Selector(Schema, frozen=True, kw_only=True):
    """meta/v1 LabelSelector."""

    match_labels: dict[str, str] = {}
    match_expressions: list[Expression] = []


class CiliumExpression(Expression, frozen=True, kw_only=True):
    NULL_IS_REFUSED = names("values")


class CiliumSelector(Schema, frozen=True, kw_only=True):
    """The same fields; keys may name a source ("k8s:app", "any:app", "reserved:host"), and null is refused."""

    match_labels: dict[str, str] = {}
    match_expressions: list[CiliumExpression] = []
    NULL_IS_REFUSED = names("matchLabels matchExpressions")


def selector_of(requirements: Iterable[Requirement]) -> LabelSelector:
    """In the order that makes equal selectors equal messages, each requirement once."""
    unique = {(each.key, each.operator, tuple(each.values)): each for each in requirements}
    return LabelSelector(requirements=[unique[key] for key in sorted(unique)])


def is_in(key: str, *values: str) -> Requirement:
    return Requirement(key=key, operator="In", values=sorted(values))


def exists(key: str) -> Requirement:
    return Requirement(key=key, operator="Exists")


def read_selector(selector: Selector, path: str, problems: Problems, prefix: str = "") -> list[Requirement]:
    """A Kubernetes selector over keys with `prefix` put before each; "" keeps plain label keys."""
    requirements = []
    for key, value in selector.match_labels.items():
        problems.add_if(f"{path}.matchLabels[{key}]", words.label_key(key))
        problems.add_if(f"{path}.matchLabels[{key}]", words.label_value(value))
        requirements.append(is_in(prefix + key, value))
    for index, expression in enumerate(selector.match_expressions):
        where = f"{path}.matchExpressions[{index}]"
        problems.add_if(joined(where, "key"), words.label_key(expression.key))
        requirements += _requirement(expression, prefix + expression.key, where, problems)
    return requirements


def read_cilium_selector(selector: CiliumSelector, path: str, problems: Problems) -> list[Requirement]:
    """A Cilium selector over canonical keys. A key without a source, or with "any:", means the pod's label."""
    requirements = []
    for key, value in selector.match_labels.items():
        where = f"{path}.matchLabels[{key}]"
        canonical = _canonical(key, where, problems)
        problems.add_if(where, words.label_value(value))
        requirements.append(is_in(canonical, value))
    for index, expression in enumerate(selector.match_expressions):
        where = f"{path}.matchExpressions[{index}]"
        canonical = _canonical(expression.key, joined(where, "key"), problems)
        requirements += _requirement(expression, canonical, where, problems)
    return requirements


def read_whole_selector(
    spec: Mapping[str, Any], field: str, selector: Selector | None, path: str, problems: Problems
) -> LabelSelector | None:
    """A selector of that which gets something: one that cannot be read whole, or has a field that is not known, selects
    nobody, for what was left of it would select more. None: it is not there.

    Args:
        spec: as it was found, with fields that are not known.
        selector: the same field as far as it was read.
    """
    if selector is None:
        return None
    where, found = joined(path, field), Problems()
    found.extend(unfit(type(selector), spec.get(field), where))
    requirements = read_selector(selector, where, found)
    problems.extend(dict.fromkeys(found))
    if not found:
        return selector_of(requirements)
    problems.warn(where, "cannot be read whole, and selects nobody")
    return selector_of([is_in("")])


def names_a_namespace(requirements: Iterable[Requirement]) -> bool:
    """It says itself which namespaces it means, by name or by their labels."""
    return any(each.key == NAMESPACE or each.key.startswith(NAMESPACE_LABELS) for each in requirements)


def _requirement(expression: Expression, key: str, path: str, problems: Problems) -> list[Requirement]:
    values = sorted(set(expression.values))
    for index, value in enumerate(expression.values):
        problems.add_if(f"{path}.values[{index}]", words.label_value(value))
    match expression.operator:
        case "In" | "NotIn" as operator:
            if not values:
                problems.add(joined(path, "values"), f"is empty; {operator} needs at least one value")
            return [Requirement(key=key, operator=operator, values=values)]
        case "Exists" | "DoesNotExist" as operator:
            if values:
                problems.add(joined(path, "values"), f"must be left out; {operator} looks at the key only")
            return [Requirement(key=key, operator=operator)]
        case other:
            hint = nearest(other, OPERATORS)
            problems.add(
                joined(path, "operator"), f'"{other}" is not an operator; use one of {", ".join(OPERATORS)}{hint}'
            )
            return []


def _canonical(key: str, path: str, problems: Problems) -> str:
    source, colon, name = key.partition(":")
    if not colon:
        source, name = "k8s", key
    if source == "reserved" or f"{source}:" in NETWORK_LABELS:
        return key
    if source == "node":
        problems.add(path, "nodes are not told apart by labels yet; entities call them host and remote-node")
    elif source not in ("k8s", "any"):
        problems.add(path, f'labels of the source "{source}" are not supported yet; use "k8s:" or no source')
    else:
        problems.add_if(path, _label_key(name))
    return "k8s:" + name


def _label_key(name: str) -> str | None:
    """Cilium's key for a namespace's label is longer than a label key may be; its tail is one."""
    tail = NAMESPACE_LABELS.removeprefix("k8s:")
    return words.label_key(name.removeprefix(tail))
