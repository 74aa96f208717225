"""plexus apply, plexus delete: manifests to the resources service, all of them or none."""

from __future__ import annotations

from typing import Annotated

import typer

from bus.messages.resources import Applied, Apply, Outcome, Refusal
from bus.subjects import APPLY
from cli.errors import Failed
from cli.output import Format, Output, show_value
from cli.session import Name, Session, run

SECONDS = 10.0  # for the resources service's answer

Sources = Annotated[
    list[str], typer.Option("-f", "--filename", metavar="FILE|DIR|-", help="A file, a folder, or - for standard input.")
]


def apply(filename: Sources, name: Name = "", output: Output = Format.TABLE) -> None:
    """Take Kubernetes manifests: all of them, or none when one is refused."""
    send(filename, delete=False, name=name, output=output)


def delete(filename: Sources, name: Name = "", output: Output = Format.TABLE) -> None:
    """Delete what the manifests name. What is not there is no error."""
    send(filename, delete=True, name=name, output=output)


def send(filename: list[str], *, delete: bool, name: str, output: Format) -> None:
    """Read, ask, print. Raises Failed with a line for each refusal."""
    from cli.manifests import read

    question = Apply(documents=read(filename), delete=delete)

    async def ask(session: Session) -> Applied:
        return await session.bus.ask(APPLY, message=question, timeout=SECONDS)

    answer = run(ask, name)
    if answer.refusals:
        raise Failed(*map(refusal_line, answer.refusals))
    if output is Format.TABLE:
        for outcome in answer.outcomes:
            print(outcome_line(outcome))
    else:
        show_value(answer, output)


def outcome_line(outcome: Outcome) -> str:
    """ "ciliumnetworkpolicy/rule1 created"; the namespace is named when it is not the default one."""
    place = f" in namespace {outcome.namespace}" if outcome.namespace not in ("", "default") else ""
    change = "not there" if outcome.change == "absent" else outcome.change
    return f"{outcome.kind.lower()}/{outcome.name} {change}{place}"


def refusal_line(refusal: Refusal) -> str:
    """ "star-wars.yaml, document 2: ciliumnetworkpolicy/rule1: spec.ingress[0]: what is wrong" """
    thing = refusal.kind.lower() + (f"/{refusal.name}" if refusal.name else "")
    return ": ".join(part for part in (refusal.source, thing, refusal.path, refusal.problem) if part)
