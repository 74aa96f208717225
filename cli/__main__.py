"""The table of commands, and the one place where errors become exit statuses.

A command is imported when it is asked for and not before, so `plexus --help` and `plexus lab exec` start at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup


@dataclass(frozen=True)
class Lazy:
    """A command, or a group of them, that is not imported yet: `attribute` is a function or a typer app."""

    module: str
    attribute: str
    help: str
    section: str


COMMANDS = {
    "demo": Lazy(
        "cli.demo", "demo", "Show it all: a cluster, a Service, a policy, a drop with its reason", "Start here"
    ),
    "lab": Lazy("cli.lab", "app", "Clusters of network namespaces on this machine", "Start here"),
    "apply": Lazy("cli.apply", "apply", "Take Kubernetes manifests", "Resources"),
    "delete": Lazy("cli.apply", "delete", "Delete what the manifests name", "Resources"),
    "wait": Lazy("cli.wait", "wait", "Wait until everything applied is realised on every node", "Resources"),
    "get": Lazy("cli.get", "get", "Show resources, and what the services made of them", "Resources"),
    "status": Lazy("cli.status", "status", "How every service and node is", "What is"),
    "endpoint": Lazy("cli.lists", "endpoint", "Pods' places in the network", "What is"),
    "identity": Lazy("cli.lists", "identity", "Label sets and their numbers", "What is"),
    "service": Lazy("cli.lists", "service", "Service addresses and their backends", "What is"),
    "ipam": Lazy("cli.lists", "ipam", "Blocks of pod addresses and who holds them", "What is"),
    "policy": Lazy("cli.policy", "app", "Policies: what they say, whom they mean, what holds for a pod", "What is"),
    "l2": Lazy("cli.lists", "l2", "Which node answers for which Service's address", "What is"),
    "bpf": Lazy("cli.bpf", "app", "What the nodes' BPF maps hold", "What is"),
    "config": Lazy("cli.status", "config", "The lab's settings", "What is"),
    "version": Lazy("cli.status", "version", "The version", "What is"),
    "why": Lazy("cli.why", "why", "Why a connection is let through or not", "What is"),
    "observe": Lazy("cli.observe", "app", "Flows of all nodes: who, to whom, allowed or not, by what", "What happens"),
    "monitor": Lazy("cli.monitor", "monitor", "Drops and policy verdicts as they happen", "What happens"),
    "bus": Lazy("cli.tail", "app", "The message bus itself", "What happens"),
}


class Commands(TyperGroup):
    """The root: loads one command, runs it, and turns what it raises into a line and an exit status."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # typer hides its Context's base
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = load(cmd_name, COMMANDS[cmd_name])
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, 1)
            ctx.fail(f"There is no command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for section in dict.fromkeys(command.section for command in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl([(name, it.help) for name, it in COMMANDS.items() if it.section == section])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            lines = explain(error)
            if lines is None or os.environ.get("PLEXUS_DEBUG"):
                raise
            from bus.texts import visible

            for line in lines:
                print(f"plexus: {visible(line)}", file=sys.stderr)
            raise typer.Exit(1) from None


def load(name: str, command: Lazy) -> Any:
    """The click command behind an entry of the table."""
    found = getattr(import_module(command.module), command.attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        single.command(name)(found)
        found = single
    loaded = typer.main.get_command(found)
    loaded.name = name
    return loaded


def explain(error: Exception) -> Sequence[str] | None:
    """What to tell the user, a line each; None: it has its own way out (usage, broken pipe)."""
    from cli.errors import Failed

    if isinstance(error, Failed):
        return error.lines
    if type(error).__module__.startswith("typer") or isinstance(error, BrokenPipeError):
        return None
    if isinstance(error, BaseExceptionGroup):
        return explain(next((e for e in leaves(error) if isinstance(e, Failed)), next(leaves(error))))
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return [f"{place}{error.strerror or text}"]
    if expected(error):
        return [text]
    return [f"internal error, {type(error).__name__}: {text}; run it again with --debug and report what it prints"]


def expected(error: Exception) -> bool:
    """It comes from the bus or the lab and its text was written for people."""
    return type(error).__module__.split(".")[0] in ("bus", "lab", "cli")


def leaves(group: BaseExceptionGroup[Any]) -> Any:
    """Every exception within, in order."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


app = typer.Typer(
    name="plexus",
    cls=Commands,
    help="Connects, protects and observes the pods of a cluster with eBPF.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


@app.callback()
def root(
    debug: bool = typer.Option(False, "--debug", help="Tracebacks instead of one line; may stand anywhere."),
) -> None:
    """Connects, protects and observes the pods of a cluster with eBPF.

    A command that acts on a lab takes --name N (default: $PLEXUS_LAB, else the only lab that runs).
    """


def without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without --debug, and whether it was there. What follows "--" is somebody else's."""
    ours = list(arguments)
    end = ours.index("--") if "--" in ours else len(ours)
    kept = [argument for argument in ours[:end] if argument != "--debug"]
    return kept + ours[end:], len(kept) < end


def main() -> None:
    """The entry point of the `plexus` executable."""
    arguments, debug = without_debug(sys.argv[1:])
    if debug:
        os.environ["PLEXUS_DEBUG"] = "1"
    try:
        app(args=arguments, prog_name="plexus")
        sys.stdout.flush()
    except BrokenPipeError:
        hush()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            hush()
        raise


def hush() -> None:
    """Whoever read our output is gone: point it to nowhere, so that the interpreter's last flush is silent too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
