"""plexus apply, plexus delete: manifests to the resources service, all of them or none."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from bus.messages.resources import Applied, Apply, Notice, Outcome, Refusal
from bus.subjects import APPLY
from bus.texts import visible
from cli.errors import Failed
from cli.output import Format, Output, show_value
from cli.session import Name, Session, run

if TYPE_CHECKING:
    from bus.interface import Bus

SECONDS, SECONDS_EACH = 10.0, 0.01  # for the resources service's answer; a document takes it some milliseconds
TAKEOVER_SECONDS = 4.0  # until a standby answers: a lease (bus/control.py) and one second
RETRY_SECONDS = 0.1

Sources = Annotated[
    list[str], typer.Option("-f", "--filename", metavar="FILE|DIR|-", help="A file, a folder, or - for standard input.")
]

Skip = Annotated[
    bool,
    typer.Option(
        "--skip-unsupported",
        help="Pass over what is no concern of a network (ConfigMap, ServiceAccount, kustomization.yaml...), and say "
        "so. Policies and all else about traffic are refused as ever.",
    ),
]


def apply(filename: Sources, skip_unsupported: Skip = False, name: Name = "", output: Output = Format.TABLE) -> None:
    """Take Kubernetes manifests: all of them, or none when one is refused.

    What is taken and does not do all that it asks for is told on stderr, a line for each place, and kept with the
    resource.
    """
    send(filename, delete=False, skip_unsupported=skip_unsupported, name=name, output=output)


def delete(filename: Sources, skip_unsupported: Skip = False, name: Name = "", output: Output = Format.TABLE) -> None:
    """Delete what the manifests name. What is not there is no error."""
    send(filename, delete=True, skip_unsupported=skip_unsupported, name=name, output=output)


def send(filename: list[str], *, delete: bool, skip_unsupported: bool, name: str, output: Format) -> None:
    """Read, ask, print; warnings and what was passed over go to stderr. Raises Failed with a line for each refusal."""
    from cli.manifests import read

    question = Apply(documents=read(filename), delete=delete, skip_unsupported=skip_unsupported)

    async def ask(session: Session) -> Applied:
        return await carried_out(session.bus, question)

    answer = run(ask, name)
    if answer.refusals:
        raise Failed(*map(refusal_line, answer.refusals))
    if output is Format.TABLE:
        for outcome in answer.outcomes:
            print(visible(outcome_line(outcome)))
    else:
        show_value(answer, output)
    for warning in answer.warnings:
        print(visible(warning_line(warning)), file=sys.stderr)
    if answer.skipped:
        print(visible(skipped_line(answer.skipped)), file=sys.stderr)


async def carried_out(bus: Bus, question: Apply) -> Applied:
    """The resources service's answer; while nobody answers at all, for as long as a successor may take.

    Raises: Unanswered; Failed: too much for one call, or no answer in time, with what that means.
    """
    from bus.codec import TooLarge
    from bus.interface import Unanswered
    from bus.telemetry import caused_by, new_trace

    now = asyncio.get_running_loop().time
    timeout = SECONDS + SECONDS_EACH * len(question.documents)
    give_up = now() + TAKEOVER_SECONDS
    trace = new_trace()  # `plexus bus tail` shows it on everything that follows from this
    while True:
        asked = now()
        try:
            with caused_by(time.time(), trace):
                return await bus.ask(APPLY, message=question, timeout=timeout)
        except (Unanswered, TooLarge) as error:
            size = next((each.size for each in (error, error.__cause__) if isinstance(each, TooLarge)), 0)
            if size or not isinstance(error, Unanswered):
                raise Failed(f"the manifests are {size} bytes together, more than one call takes; split them") from None
            if now() - asked >= timeout:
                raise Failed(
                    f"the service resources did not answer within {timeout:.0f} s; it may still be carried out: "
                    "plexus wait tells, and doing it again does no harm"
                ) from None
            if "nobody answers" not in error.why or now() > give_up:
                raise
        await asyncio.sleep(RETRY_SECONDS)


def outcome_line(outcome: Outcome) -> str:
    """ "ciliumnetworkpolicy/rule1 created"; the namespace is named when it is not the default one."""
    place = f" in namespace {outcome.namespace}" if outcome.namespace not in ("", "default") else ""
    change = "not there" if outcome.change == "absent" else outcome.change
    return f"{outcome.kind.lower()}/{outcome.name} {change}{place}"


def refusal_line(refusal: Refusal) -> str:
    """ "star-wars.yaml, document 2: ciliumnetworkpolicy/rule1: spec.ingress[0]: what is wrong" """
    return ": ".join(part for part in (refusal.source, thing(refusal), refusal.path, refusal.problem) if part)


def warning_line(warning: Notice) -> str:
    """ "warning: web.yaml: pod/web: metadata.annotations[a]: what is not done" """
    parts = ("warning", warning.source, thing(warning), warning.path, warning.text)
    return " ".join(": ".join(part for part in parts if part).split())


def skipped_line(skipped: Mapping[str, int]) -> str:
    """ "passed over, no concern of a network: 2 ConfigMap, 1 ServiceAccount" """
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
    return f"passed over, no concern of a network: {counts}"


def thing(told: Refusal | Notice) -> str:
    """ "pod/web" """
    return told.kind.lower() + (f"/{told.name}" if told.name else "")
