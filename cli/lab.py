"""plexus lab: clusters of network namespaces on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import Failed
from cli.output import Column, Format, Output, as_set, show
from cli.session import Name

if TYPE_CHECKING:
    from lab.state import Record

app = typer.Typer(
    help="Clusters of network namespaces on this machine.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

LISTING = (
    Column("NAME", "name"),
    Column("NODES", "nodes"),
    Column("STATE", "state"),
    Column("PODS", "pods"),
    Column("SETTINGS", lambda row: {key: as_set(value) for key, value in row["settings"].items()}),
    Column("BUS", "bus"),
)
PROCESSES = (
    Column("PROCESS", "process"),
    Column("STATE", "state"),
    Column("PID", "pid"),
    Column("RESTARTS", "restarts"),
    Column("PROBLEM", "problem"),
)

Node = Annotated[str, typer.Option("--node", metavar="NODE", help="On this node.")]
Control = Annotated[str, typer.Option("--control", metavar="SERVICE", help="This control service.")]
Bus = Annotated[bool, typer.Option("--bus", help="The message bus.")]
Service = Annotated[
    str, typer.Argument(metavar="[SERVICE]", help="Of the node; default: dataplane.", show_default=False)
]


@app.command()
def up(
    name: Annotated[
        str, typer.Option("--name", metavar="N", help="What to call it; default: $PLEXUS_LAB, else plexus.")
    ] = "",
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = 3,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A Helm value, such as routingMode=native; may be repeated."),
    ] = None,
    values: Annotated[
        list[Path] | None, typer.Option("--values", "-f", metavar="FILE", help="Helm values; --set takes precedence.")
    ] = None,
    subnets: Annotated[int, typer.Option(help="LANs that the nodes are in, by turns; a router joins them.")] = 1,
    fabric_routes: Annotated[
        bool, typer.Option("--fabric-routes", help="The router knows which node has which pods.")
    ] = False,
) -> None:
    """Start a lab. Returns when every node is ready; on Ctrl-C nothing is left behind."""
    from lab import names
    from lab.state import ENVIRONMENT_NAME
    from lab.up import up as bring_up

    name = name or os.environ.get(ENVIRONMENT_NAME, "") or names.DEFAULT
    with told() as progress:
        found = wanted(values or [], settings or [])
        lab, made = bring_up(name, nodes, found, progress, subnets=subnets, fabric_routes=fabric_routes)
    state = "up" if made else "up already, with these settings"
    print(f"lab {lab.name} is {state}: {', '.join(lab.nodes)} ready")


def wanted(files: list[Path], settings: list[str]) -> dict[str, Any]:
    """Values by full key; later files before earlier ones, --set before files. Raises Failed, LabError."""
    from lab.settings import flatten, parse_set

    found: dict[str, Any] = {}
    for file in files:
        found |= flatten(values_of(file))
    for argument in settings:
        found |= parse_set(argument)
    return found


def values_of(file: Path) -> dict[str, Any]:
    """A values file. Raises Failed."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Failed(f"{file} is not YAML: {error}") from None
    except RecursionError:
        raise Failed(f"{file} is nested too deeply") from None
    if not isinstance(content or {}, dict):
        raise Failed(f"{file} holds no mapping of Helm values")
    return content or {}


@contextmanager
def told() -> Iterator[Any]:
    """One line on the terminal that says what is waited for; silent where there is no terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update


@app.command()
def down(
    name: Name = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Every lab on this machine, whatever is left of it.")
    ] = False,
    owner: Annotated[
        str, typer.Option("--owner", metavar="O", help="Every lab that was brought up with PLEXUS_LAB_OWNER=O.")
    ] = "",
) -> None:
    """Stop a lab and remove all of it; also what a crash left. Nothing to remove is fine."""
    from lab import cleanup, names
    from lab.state import ENVIRONMENT_NAME, labs, owned_by

    if owner and (name or everything):
        raise typer.BadParameter("--owner stands alone")
    name = name or os.environ.get(ENVIRONMENT_NAME, "")
    if owner:
        gone = owned_by(owner)
    elif everything:
        gone = cleanup.rests()
    elif name:
        gone = [names.check(name)]
    else:
        gone = labs()
        if len(gone) > 1:
            raise Failed(f"several labs are up: {', '.join(gone)}; say which by --name, or --all")
    for each in gone:
        was_there = each in labs() or bool(cleanup.left(each))
        cleanup.clean(each)
        print(f"lab {each} is down" if was_there else f"there is no lab {each}: nothing to take down")
    if not gone:
        print("no lab is up")


@app.command("exec")
def execute(
    arguments: Annotated[
        list[str], typer.Argument(metavar="[[NAMESPACE/]POD] -- CMD...", help="Where, and what to run there.")
    ],
    name: Name = "",
    node: Node = "",
    outside: Annotated[bool, typer.Option("--outside", help="On the host beyond the router.")] = False,
    lan: Annotated[bool, typer.Option("--lan", help="On a host in the nodes' LAN.")] = False,
) -> None:
    """Run a program of this machine in a pod's, a node's or another host's network namespace and cgroup."""
    from lab import execute as places
    from lab import processes, state

    in_pod = not (node or outside or lan)
    of_pod = arguments[0] if in_pod else ""
    command = arguments[1:] if in_pod else arguments
    lab = state.find(name)
    place = places.choose(lab, of_pod=of_pod, of_node=node, outside=outside, lan=lan)
    if not command:
        raise typer.BadParameter("what to run is missing: put it after --")
    sys.stdout.flush()
    entered = places.command(place, command)
    os.execvpe(entered[0], entered, {**places.RESOLVER, **os.environ, **processes.environment(lab.name, {})})


@app.command()
def kill(service: Service = "", name: Name = "", node: Node = "", control: Control = "", bus: Bus = False) -> None:
    """kill -9 one process; it stays dead until `lab start`."""
    from lab import execute as processes

    lab, process = chosen(name, node, service, control, bus)
    processes.kill(lab, process)
    print(f"{process} is killed")


@app.command()
def start(service: Service = "", name: Name = "", node: Node = "", control: Control = "", bus: Bus = False) -> None:
    """Start what was killed, and wait until it is ready."""
    from lab import execute as processes

    lab, process = chosen(name, node, service, control, bus)
    processes.start(lab, process)
    print(f"{process} is ready")


def chosen(name: str, node: str, service: str, control: str, bus: bool) -> tuple[Record, str]:
    """The lab and the process that the options mean. Raises LabError."""
    from lab import programs, state

    lab = state.find(name)
    return lab, programs.choose(lab, node=node, service=service, control=control, bus=bus)


@app.command("list")
def listing(output: Output = Format.TABLE) -> None:
    """Every lab on this machine."""
    from lab import dialogue, state

    rows = []
    for each in filter(None, map(state.record, state.labs())):
        try:
            answer = dialogue.ask(each.directory.socket, {"do": "status"}, 5.0)
            condition = "ready" if answer["ready"] else "not ready"
        except dialogue.SupervisorGone:
            condition = "no supervisor"
        rows.append(
            {
                "name": each.name,
                "nodes": len(each.nodes),
                "state": condition,
                "pods": len(each.directory.sandboxes()),
                "settings": dict(each.values),
                "bus": each.bus_url,
            }
        )
    show(rows, LISTING, output, empty="no lab is up; plexus lab up makes one")


@app.command()
def status(name: Name = "", output: Output = Format.TABLE) -> None:
    """A lab's processes. Exit status 1 unless all are ready."""
    from lab import dialogue, state

    lab = state.find(name)
    answer = dialogue.ask(lab.directory.socket, {"do": "status"}, 5.0)
    problems = {line.partition(": ")[0]: line.partition(": ")[2] for line in answer["waiting"]}
    rows = [{**row, "problem": problems.get(row["process"], "")} for row in answer["processes"]]
    show(rows, PROCESSES, output)
    if problems:
        raise typer.Exit(1)
