"""plexus get: resources as applied, their status, and what the services made of them.

JSON and YAML have the form that Kubernetes tools expect (one object for a name, else a `List`); what is ours stands
under the key `plexus` of each object.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from bus.messages import Message
from bus.messages.dataplane import Health
from bus.subjects import NODE, State
from cli.errors import Failed
from cli.output import Column, Format, Output, show, show_value
from cli.session import Name, Session, run
from cli.state import Picture, differences, healths, picture
from lab import workloads
from services.resources.kind import Kind, at
from services.resources.kinds import every, named

if TYPE_CHECKING:
    from lab.workloads import Workload

M = TypeVar("M", bound=Message)


@dataclass
class Known:
    """Everything that a status is made of, as `services.resources.kind.Known` describes it."""

    seen: Picture
    nodes: dict[str, Health] = field(default_factory=dict)  # the nodes that answered

    def of(self, family: State[M], /) -> Mapping[tuple[str, ...], M]:
        return self.seen.of(family)

    def sequence_of(self, subject: str, /) -> int:
        return self.seen.sequences[subject]

    def realised(self, sequence: int, /) -> list[str]:
        return sorted(
            node
            for node, health in self.nodes.items()
            if health.revision.get("resources", -1) >= sequence and not differences(health)
        )

    def health_of(self, node: str, /) -> Health | None:
        return self.nodes.get(node)

    def pods_wanted(self, workload: Workload, /) -> int:
        return len(workloads.pod_names(workload, self.seen.of(NODE).values()))


def get(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="pods, svc, nodes, cnp...: its name, one or many, short or long."),
    ],
    resource: Annotated[str, typer.Argument(metavar="NAME", help="One of them.", show_default=False)] = "",
    namespace: Annotated[str, typer.Option("-n", "--namespace", help="Where it is.")] = "default",
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="In every namespace.")] = False,
    name: Name = "",
    output: Output = Format.TABLE,
) -> None:
    """Show resources as applied, with their status, and what the services made of them.

    JSON and YAML: one object when NAME is given, else a List with `items`; what Plexus adds is under `plexus`.
    """
    word, _, after = kind.partition("/")
    chosen = kind_named(word)
    objects = run(lambda session: read(session, chosen), name)
    if chosen.is_namespaced and not everywhere:
        objects = [each for each in objects if each["metadata"]["namespace"] == namespace]
    wanted = resource or after
    if wanted:
        objects = [each for each in objects if each["metadata"]["name"] == wanted]
        if not objects:
            place = f" in namespace {namespace}" if chosen.is_namespaced and not everywhere else ""
            raise Failed(f"there is no {chosen.name} {wanted}{place}; plexus get {chosen.plural} -A lists them")
    if output is not Format.TABLE:
        one = len(objects) == 1 and bool(wanted)
        show_value(objects[0] if one else {"apiVersion": "v1", "kind": "List", "items": objects}, output)
        return
    place = f" in namespace {namespace}" if chosen.is_namespaced and not everywhere else ""
    show(objects, columns(chosen, everywhere), output, empty=f"no {chosen.plural}{place}")


def columns(kind: Kind, everywhere: bool = False) -> list[Column]:
    """Of a kind's table. `everywhere`: with the namespace, of what is in one."""
    shown = {"NAME": "metadata.name", **kind.columns}
    if kind.is_namespaced and everywhere:
        shown = {"NAMESPACE": "metadata.namespace", **shown}
    return [Column(title, at(value) if isinstance(value, str) else value) for title, value in shown.items()]


def kind_named(word: str) -> Kind:
    """The kind that goes by this name, in any case, short or long, one or many. Raises typer.BadParameter."""
    if (kind := named(word)) is not None:
        return kind
    known = ", ".join(kind.name.lower() for kind in every())
    raise typer.BadParameter(f"{word!r} is no kind of resource here; there are {known}")


async def read(session: Session, kind: Kind) -> list[dict[str, Any]]:
    """Every object of a kind, by namespace and name."""
    families = dict.fromkeys((kind.state, *kind.draws_on, *((NODE,) if kind.asks_nodes else ())))
    seen = await picture(session.bus, *families)
    known = Known(seen)
    if kind.asks_nodes:
        answers = await healths(session.bus, [("dataplane", node) for (node,) in seen.of(NODE)])
        known.nodes = {instance: health for (_, instance), health in answers.items() if not isinstance(health, str)}
    messages = seen.of(kind.state).values()
    return [assemble(kind, message, known) for message in messages if getattr(message, "kind", kind.name) == kind.name]


def assemble(kind: Kind, message: Any, known: Known) -> dict[str, Any]:
    """The manifest as applied, and over it what is known now."""
    whole: dict[str, Any] = {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "metadata": {},
        **copy.deepcopy(message.manifest),
    }
    metadata = {**(whole.get("metadata") or {}), "name": message.name}
    if kind.is_namespaced:
        metadata["namespace"] = message.namespace
    whole["metadata"] = metadata
    for section, values in (kind.status(message, known) if kind.status else {}).items():
        whole[section] = {**(whole.get(section) or {}), **values}
    if message.warnings:
        whole["plexus"] = {**whole.get("plexus", {}), "warnings": message.warnings}
        condition = {"type": "Warned", "status": "True", "message": "; ".join(message.warnings)}
        status = whole.get("status") or {}
        whole["status"] = {**status, "conditions": [*(status.get("conditions") or []), condition]}
    return whole
