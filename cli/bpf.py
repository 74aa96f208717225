"""plexus bpf: what the nodes' BPF maps hold now, read by the nodes themselves, with names where they are known."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bus.messages.dataplane import Dump, DumpRows
from bus.subjects import ADDRESS, DUMP, FRONTEND, IDENTITY, NODE
from cli.errors import Failed
from cli.lists import identity_name
from cli.output import Column, Format, Output, Row, show, text
from cli.session import Name, run
from cli.state import Picture, picture
from services.dataplane.model import NodeModel

if TYPE_CHECKING:
    from bus.interface import Bus

FIRST = (  # columns in the order in which a person asks; others follow as the node sends them
    *("node", "service", "frontend", "policy", "direction", "prefix", "pod", "address", "source", "destination"),
    *(
        "slot",
        "backend",
        "client",
        "remote",
        "identity",
        "protocol",
        "port",
        "verdict",
        "reason",
        "packets",
        "bytes",
        "policies",
        "backends",
    ),
)
SECONDS = 10.0  # a full connection table takes its time

app = typer.Typer(help="What the nodes' BPF maps hold.", no_args_is_help=True, rich_markup_mode=None)

NodeName = Annotated[str, typer.Option("--node", metavar="NODE", help="Of this node only.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Rows of each node at most.")]


@dataclass(frozen=True)
class Names:
    """What numbers and addresses are called."""

    identities: Mapping[int, str]
    addresses: Mapping[str, str]

    def of(self, key: str, value: Any) -> str:
        """The name of what stands under `key` in a row; "" when it has none."""
        if isinstance(value, bool):
            return ""
        if isinstance(value, int) and key.rsplit("_", maxsplit=1)[-1] == "identity":
            return self.identities.get(value) or identity_name(value, {})
        if not isinstance(value, str):
            return ""
        return self.addresses.get(address_in(value), "")


def address_in(value: str) -> str:
    """The address alone of "10.0.0.1", "10.0.0.1/32", "10.0.0.1:80", "fd00::1", "fd00::1/128" or "[fd00::1]:80"."""
    if value.startswith("["):
        return value[1:].partition("]")[0]
    if value.count(":") > 1:
        return value.removesuffix("/128")
    return value.partition(":")[0].removesuffix("/32")


def command(table: str, text: str, others: Mapping[str, str]) -> None:
    """Add `plexus bpf <table> list`. `others`: what options of it show instead."""
    group = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)

    @group.callback()
    def keep() -> None:
        """Keeps `list` a word of its own."""

    def listing(
        node: NodeName = "", limit: Limit = 100_000, name: Name = "", output: Output = Format.TABLE, **asked: bool
    ) -> None:
        chosen = [option for option in others if asked[_argument(option)]]
        if len(chosen) > 1:
            raise typer.BadParameter(f"--{chosen[0]} and --{chosen[1]} are two lists; ask for one")
        whole = "/".join((table, *chosen))
        rows, problems = run(lambda session: dump(session.bus, whole, node, limit), name)
        if rows or not problems or output is not Format.TABLE:  # a node that did not answer may have any
            show(rows, columns_of(rows), output, empty=f"no entries in {whole}")
        if problems:
            raise Failed(*problems)

    group.command("list", help=text)(_with_options(listing, others))
    app.add_typer(group, name=table)


def _argument(option: str) -> str:
    return option.replace("-", "_")


def _with_options(listing: Callable[..., None], options: Mapping[str, str]) -> Callable[..., None]:
    """Typer reads a function's signature: each option is one more parameter of it."""
    signature = inspect.signature(listing, eval_str=True)
    *named, _ = signature.parameters.values()
    for option, meaning in options.items():
        switch = Annotated[bool, typer.Option(f"--{option}", help=meaning)]
        named.append(
            inspect.Parameter(_argument(option), inspect.Parameter.KEYWORD_ONLY, default=False, annotation=switch)
        )
    listing.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]  # inspect looks for it
    listing.__annotations__ = {each.name: each.annotation for each in named}
    return listing


def _commands(shown: Mapping[str, str]) -> None:
    """One for each table; "lb/affinity" is an option of that of "lb"."""
    for table, meaning in shown.items():
        if "/" not in table:
            others = {each.removeprefix(f"{table}/"): shown[each] for each in shown if each.startswith(f"{table}/")}
            command(table, meaning, others)


_commands({each.name: each.text for each in NodeModel("").shown.values()})  # a node of this version has these parts


async def dump(bus: Bus, table: str, node: str, limit: int) -> tuple[Sequence[Row], list[str]]:
    """A map's rows on one node or all, with names added; and what went wrong, a line for each node.

    Raises: Failed: there is no such node, or none at all.
    """
    from bus.interface import Unanswered

    seen = await picture(bus, NODE, ADDRESS, IDENTITY, FRONTEND)
    known = [name for (name,) in seen.of(NODE)]
    if node and node not in known:
        raise Failed(f"there is no node {node}; there are {', '.join(known) or 'none'}")
    names = names_of(seen)

    async def ask(each: str) -> DumpRows:
        try:
            return await bus.ask(DUMP, each, message=Dump(table=table, limit=limit), timeout=SECONDS)
        except Unanswered as error:
            return DumpRows(node=each, problem=f"no answer: {error.why}; plexus status shows more")

    answers = await asyncio.gather(*(ask(each) for each in ([node] if node else known)))
    rows = [named(answer.node, row, names) for answer in answers for row in answer.rows]
    problems = [f"{answer.node}: {answer.problem}" for answer in answers if answer.problem]
    problems += [
        f"{a.node}: there are more than {limit} rows; ask for more with --limit" for a in answers if a.truncated
    ]
    return rows, problems


def names_of(seen: Picture) -> Names:
    """Pods, nodes and Services by address; labels by identity number."""
    addresses = {each.address: each.pod or each.node for each in seen.of(ADDRESS).values()}
    for service in seen.of(FRONTEND).values():
        addresses.update({front.address: f"{service.namespace}/{service.name}" for front in service.frontends})
    identities = {each.number: identity_name(each.number, each.labels) for each in seen.of(IDENTITY).values()}
    return Names(identities, addresses)


def named(node: str, row: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """A node's row, and for each value that has a name `<key>_name`, unless the row tells that name itself.

    `node` is who was asked; another node that the row tells of is `node_address`.
    """
    told = {"node_address" if key == "node" else key: value for key, value in row.items()}
    known = {value for value in told.values() if isinstance(value, str)}
    added = {f"{key}_name": found for key, value in told.items() if (found := names.of(key, value)) not in ("", *known)}
    return {"node": node, **told, **added}


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """A column for each key; a name stands in brackets behind its value."""
    there = dict.fromkeys(key for row in rows for key in row)
    keys = [*(key for key in FIRST if key in there), *(key for key in there if key not in FIRST)]
    shown = [key for key in keys if not (key.endswith("_name") and key.removesuffix("_name") in keys)]
    return [Column(key.upper().replace("_", " "), with_name(key) if f"{key}_name" in keys else key) for key in shown]


def with_name(key: str) -> Any:
    """A column's function: "10.0.1.2 (default/web)"."""

    def cell(row: Row) -> str:
        name = row.get(f"{key}_name")
        return f"{text(row.get(key))} ({name})" if name else text(row.get(key))

    return cell
